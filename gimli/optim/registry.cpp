#include "gimli/optim/registry.h"

#include <c10/util/Type.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "gimli/optim/adam.h"
#include "gimli/optim/sgd.h"

namespace gimli::optim {
namespace {

Translation sgd() {
  using State = torch::optim::SGDParamState;
  return translate<torch::optim::SGDOptions, State>(
      [](const torch::optim::SGDOptions& from) {
        return SGD(SGDOptions(from.lr())
                       .momentum(from.momentum())
                       .dampening(from.dampening())
                       .weight_decay(from.weight_decay())
                       .nesterov(from.nesterov()));
      },
      [](const State& from) {
        return ParameterState{from.momentum_buffer().defined(), {from.momentum_buffer()}};
      },
      [](const ParameterState& from) {
        State to;
        to.momentum_buffer(from.slots[0]);
        return to;
      });
}

// torch::optim::Adam and AdamW have options and states of the same fields.
template <class TorchOptions, class State, class Rule>
Translation adam() {
  return translate<TorchOptions, State>(
      [](const TorchOptions& from) {
        return Rule(AdamOptions(from.lr())
                        .betas(from.betas())
                        .eps(from.eps())
                        .weight_decay(from.weight_decay())
                        .amsgrad(from.amsgrad()));
      },
      [](const State& from) {
        ParameterState to{from.step(), {from.exp_avg(), from.exp_avg_sq()}};
        if (from.max_exp_avg_sq().defined()) to.slots.push_back(from.max_exp_avg_sq());
        return to;
      },
      [](const ParameterState& from) {
        State to;
        to.step(from.step);
        to.exp_avg(from.slots[0]);
        to.exp_avg_sq(from.slots[1]);
        if (from.slots.size() > 2) to.max_exp_avg_sq(from.slots[2]);
        return to;
      });
}

struct Registry {
  std::mutex mutex;
  std::map<std::type_index, Translation> translations{
      {typeid(torch::optim::SGD), sgd()},
      {typeid(torch::optim::Adam), adam<torch::optim::AdamOptions, torch::optim::AdamParamState, Adam>()},
      {typeid(torch::optim::AdamW), adam<torch::optim::AdamWOptions, torch::optim::AdamWParamState, AdamW>()},
  };
};

Registry& registry() {
  static Registry instance;
  return instance;
}

// libtorch 2.6 and later key an optimizer's states by the parameter's TensorImpl.
void* state_key(const at::Tensor& parameter) { return parameter.unsafeGetTensorImpl(); }

}  // namespace

Translation translation_of(const torch::optim::Optimizer& optimizer) {
  auto& known = registry();
  const std::lock_guard lock(known.mutex);
  const auto found = known.translations.find(typeid(optimizer));
  TORCH_CHECK(found != known.translations.end(), "InnerLoop: the optimizer ", c10::demangle(typeid(optimizer).name()),
              " is not supported; register an update rule for it with gimli::optim::register_optimizer");
  return found->second;
}

void register_translation(std::type_index optimizer, Translation translation) {
  auto& known = registry();
  const std::lock_guard lock(known.mutex);
  known.translations.insert_or_assign(optimizer, std::move(translation));
}

const torch::optim::OptimizerParamState* find_state(const torch::optim::Optimizer& optimizer,
                                                    const at::Tensor& parameter) {
  const auto found = optimizer.state().find(state_key(parameter));
  return found == optimizer.state().end() ? nullptr : found->second.get();
}

void copy_state(const ParameterState& state, const at::Tensor& parameter, torch::optim::Optimizer& optimizer) {
  ParameterState copy{state.step, {}};
  for (const auto& slot : state.slots) copy.slots.push_back(slot.defined() ? slot.detach().clone() : slot);
  // Where torch.optim has nothing to remember it keeps no state at all, and takes one for complete.
  const bool nothing = !copy.slots.empty() && std::none_of(copy.slots.begin(), copy.slots.end(),
                                                           [](const at::Tensor& slot) { return slot.defined(); });
  if (nothing) {
    optimizer.state().erase(state_key(parameter));
  } else {
    optimizer.state()[state_key(parameter)] = translation_of(optimizer).write(copy);
  }
}

}  // namespace gimli::optim
