#pragma once

#include <functional>
#include <typeindex>

#include "gimli/optim/optimizer.h"

namespace gimli::optim {

/// How the groups and states of a torch::optim optimizer translate.
struct Translation {
  std::function<std::shared_ptr<const UpdateRule>(const torch::optim::OptimizerOptions&)> rule;
  std::function<ParameterState(const torch::optim::OptimizerParamState&)> read;
  std::function<std::unique_ptr<torch::optim::OptimizerParamState>(const ParameterState&)> write;
};

/// The translation of an optimizer, by its dynamic type; throws if there is none.
Translation translation_of(const torch::optim::Optimizer& optimizer);

void register_translation(std::type_index optimizer, Translation translation);

/// Typed functions as a translation: `rule(const Options&)` returns an UpdateRule, `read(const State&)` a
/// ParameterState, and `write(const ParameterState&)` a State.
template <class Options, class State, class Rule, class Read, class Write>
Translation translate(Rule rule, Read read, Write write) {
  return {[rule](const torch::optim::OptimizerOptions& options) -> std::shared_ptr<const UpdateRule> {
            auto result = rule(static_cast<const Options&>(options));
            return std::make_shared<const decltype(result)>(std::move(result));
          },
          [read](const torch::optim::OptimizerParamState& state) { return read(static_cast<const State&>(state)); },
          [write](const ParameterState& state) -> std::unique_ptr<torch::optim::OptimizerParamState> {
            return std::make_unique<State>(write(state));
          }};
}

/// Makes inner loops accept torch::optim optimizers of a third party's type, whose options and per-parameter state are
/// `Options` and `State`; the functions are those of `translate`. Registering a type again replaces its translation.
template <class TorchOptimizer, class Options, class State, class Rule, class Read, class Write>
void register_optimizer(Rule rule, Read read, Write write) {
  register_translation(typeid(TorchOptimizer), translate<Options, State>(rule, read, write));
}

/// The state that `optimizer` holds for `parameter`, or nullptr.
const torch::optim::OptimizerParamState* find_state(const torch::optim::Optimizer& optimizer,
                                                    const at::Tensor& parameter);

/// Writes a detached copy of `state` into `optimizer` as its state for `parameter`.
void copy_state(const ParameterState& state, const at::Tensor& parameter, torch::optim::Optimizer& optimizer);

}  // namespace gimli::optim
