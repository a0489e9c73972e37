#pragma once

#include <functional>
#include <optional>
#include <typeindex>

#include "gimli/optim/optimizer.h"

namespace gimli::optim {

/// How the groups and states of a torch::optim optimizer translate.
struct Translation {
  std::function<std::shared_ptr<const UpdateRule>(const torch::optim::OptimizerOptions&)> rule;
  /// Sets a hyperparameter in options, by the rule's name for it.
  std::function<void(torch::optim::OptimizerOptions&, const std::string& name, double value)> set;
  /// The states that the optimizer holds for parameters of one group.
  std::function<std::vector<std::optional<ParameterState>>(const torch::optim::Optimizer&, const TensorList&)> read;
  /// Gives it states for parameters of one group.
  std::function<void(const std::vector<ParameterState>&, const TensorList&, torch::optim::Optimizer&)> write;
};

/// The translation of an optimizer, by its dynamic type; throws if there is none.
Translation translation_of(const torch::optim::Optimizer& optimizer);

void register_translation(std::type_index optimizer, Translation translation);

/// The state that `optimizer` holds for `parameter`, or nullptr.
const torch::optim::OptimizerParamState* find_state(const torch::optim::Optimizer& optimizer,
                                                    const at::Tensor& parameter);

/// Makes `state` the one that `optimizer` holds for `parameter`; nullptr removes it.
void set_state(torch::optim::Optimizer& optimizer, const at::Tensor& parameter,
               std::unique_ptr<torch::optim::OptimizerParamState> state);

/// The options of the group that holds `parameter`.
const torch::optim::OptimizerOptions& options_of(const torch::optim::Optimizer& optimizer, const at::Tensor& parameter);

/// Writes detached copies of `states` into `optimizer` as those of `parameters`, which are of one of its groups.
void copy_states(std::vector<ParameterState> states, const TensorList& parameters, torch::optim::Optimizer& optimizer);

/// A rule's hyperparameters and how options take their values, as in {{"lr", [](auto& to, double x) { to.lr(x); }}}.
template <class Options>
using Setters = std::vector<std::pair<std::string, std::function<void(Options&, double)>>>;

/// `rule` and `setters` as the first half of a translation.
template <class Options, class Rule>
Translation translate_options(Rule rule, Setters<Options> setters) {
  Translation translation;
  translation.rule = [rule](const torch::optim::OptimizerOptions& options) -> std::shared_ptr<const UpdateRule> {
    auto result = rule(static_cast<const Options&>(options));
    return std::make_shared<const decltype(result)>(std::move(result));
  };
  translation.set = [setters](torch::optim::OptimizerOptions& options, const std::string& name, double value) {
    for (const auto& [known, set] : setters) {
      if (known == name) return set(static_cast<Options&>(options), value);
    }
    TORCH_CHECK(false, "register_optimizer: the optimizer was registered without a setter for '", name, "'");
  };
  return translation;
}

/// Typed functions as a translation: `rule(const Options&)` returns an UpdateRule, `read(const State&)` a
/// ParameterState, and `write(const ParameterState&)` or `write(const ParameterState&, const Options&)` a State. Where
/// torch.optim has nothing to remember it keeps no state at all, and takes one for complete: a state all of whose slots
/// are undefined is not written.
template <class Options, class State, class Rule, class Read, class Write>
Translation translate(Rule rule, Read read, Write write, Setters<Options> setters) {
  auto translation = translate_options<Options>(std::move(rule), std::move(setters));
  translation.read = [read](const torch::optim::Optimizer& optimizer, const TensorList& parameters) {
    std::vector<std::optional<ParameterState>> states;
    for (const auto& parameter : parameters) {
      const auto* state = find_state(optimizer, parameter);
      states.push_back(state ? std::optional(read(static_cast<const State&>(*state))) : std::nullopt);
    }
    return states;
  };
  translation.write = [write](const std::vector<ParameterState>& states, const TensorList& parameters,
                              torch::optim::Optimizer& optimizer) {
    for (size_t i = 0; i < states.size(); ++i) {
      const auto state = [&] {
        if constexpr (std::is_invocable_v<Write, const ParameterState&, const Options&>) {
          return write(states[i], static_cast<const Options&>(options_of(optimizer, parameters[i])));
        } else {
          return write(states[i]);
        }
      };
      const auto& slots = states[i].slots;
      const bool nothing =
          !slots.empty() && std::none_of(slots.begin(), slots.end(), [](const auto& slot) { return slot.defined(); });
      set_state(optimizer, parameters[i], nothing ? nullptr : std::make_unique<State>(state()));
    }
  };
  return translation;
}

/// Makes inner loops accept torch::optim optimizers of a third party's type, whose options and per-parameter state are
/// `Options` and `State`; the functions are those of `translate`. Registering a type again replaces its translation.
/// Setters are needed to write learned hyperparameters back.
template <class TorchOptimizer, class Options, class State, class Rule, class Read, class Write>
void register_optimizer(Rule rule, Read read, Write write, Setters<Options> setters = {}) {
  register_translation(typeid(TorchOptimizer), translate<Options, State>(rule, read, write, std::move(setters)));
}

}  // namespace gimli::optim
