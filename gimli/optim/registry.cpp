#include "gimli/optim/registry.h"

#include <c10/util/Type.h>
#include <torch/optim/adagrad.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/lbfgs.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "gimli/optim/rules/adagrad.h"
#include "gimli/optim/rules/adam.h"
#include "gimli/optim/rules/lbfgs.h"
#include "gimli/optim/rules/rmsprop.h"
#include "gimli/optim/rules/sgd.h"

namespace gimli::optim {
namespace {

namespace from = torch::optim;

Translation sgd() {
  using Options = from::SGDOptions;
  using State = from::SGDParamState;
  return translate<Options, State>(
      [](const Options& options) {
        return SGD(SGDOptions(options.lr())
                       .momentum(options.momentum())
                       .dampening(options.dampening())
                       .weight_decay(options.weight_decay())
                       .nesterov(options.nesterov()));
      },
      [](const State& state) {
        return ParameterState{state.momentum_buffer().defined(), {state.momentum_buffer()}};
      },
      [](const ParameterState& state) {
        State to;
        to.momentum_buffer(state.slots[0]);
        return to;
      },
      {{"lr", [](Options& to, double x) { to.lr(x); }},
       {"momentum", [](Options& to, double x) { to.momentum(x); }},
       {"dampening", [](Options& to, double x) { to.dampening(x); }},
       {"weight_decay", [](Options& to, double x) { to.weight_decay(x); }}});
}

// torch::optim::Adam and AdamW have options and states of the same fields.
template <class Options, class State, class Rule>
Translation adam() {
  return translate<Options, State>(
      [](const Options& options) {
        return Rule(AdamOptions(options.lr())
                        .betas(options.betas())
                        .eps(options.eps())
                        .weight_decay(options.weight_decay())
                        .amsgrad(options.amsgrad()));
      },
      [](const State& state) {
        ParameterState to{state.step(), {state.exp_avg(), state.exp_avg_sq()}};
        if (state.max_exp_avg_sq().defined()) to.slots.push_back(state.max_exp_avg_sq());
        return to;
      },
      [](const ParameterState& state, const Options& options) {
        State to;
        to.step(state.step);
        to.exp_avg(state.slots[0]);
        to.exp_avg_sq(state.slots[1]);
        if (options.amsgrad()) {
          to.max_exp_avg_sq(state.slots.size() > 2 ? state.slots[2] : at::zeros_like(state.slots[1]));
        }
        return to;
      },
      {{"lr", [](Options& to, double x) { to.lr(x); }},
       {"beta1",
        [](Options& to, double x) {
          to.betas({x, std::get<1>(to.betas())});
        }},
       {"beta2",
        [](Options& to, double x) {
          to.betas({std::get<0>(to.betas()), x});
        }},
       {"eps", [](Options& to, double x) { to.eps(x); }},
       {"weight_decay", [](Options& to, double x) { to.weight_decay(x); }}});
}

Translation adagrad() {
  using Options = from::AdagradOptions;
  using State = from::AdagradParamState;
  return translate<Options, State>(
      [](const Options& options) {
        return Adagrad(AdagradOptions(options.lr())
                           .lr_decay(options.lr_decay())
                           .weight_decay(options.weight_decay())
                           .initial_accumulator_value(options.initial_accumulator_value())
                           .eps(options.eps()));
      },
      // Before its first update the sum is the initial value, which is a hyperparameter here.
      [](const State& state) {
        return ParameterState{state.step(), {state.step() > 0 ? state.sum() : at::Tensor()}};
      },
      [](const ParameterState& state) {
        State to;
        to.step(state.step);
        to.sum(state.slots[0]);
        return to;
      },
      {{"lr", [](Options& to, double x) { to.lr(x); }},
       {"lr_decay", [](Options& to, double x) { to.lr_decay(x); }},
       {"weight_decay", [](Options& to, double x) { to.weight_decay(x); }},
       {"initial_accumulator_value", [](Options& to, double x) { to.initial_accumulator_value(x); }},
       {"eps", [](Options& to, double x) { to.eps(x); }}});
}

Translation rmsprop() {
  using Options = from::RMSpropOptions;
  using State = from::RMSpropParamState;
  return translate<Options, State>(
      [](const Options& options) {
        return RMSprop(RMSpropOptions(options.lr())
                           .alpha(options.alpha())
                           .eps(options.eps())
                           .weight_decay(options.weight_decay())
                           .momentum(options.momentum())
                           .centered(options.centered()));
      },
      [](const State& state) {
        return ParameterState{state.step(), {state.square_avg(), state.grad_avg(), state.momentum_buffer()}};
      },
      [](const ParameterState& state, const Options& options) {
        const auto begun = [&](const at::Tensor& slot) {
          return slot.defined() ? slot : at::zeros_like(state.slots[0]);
        };
        State to;
        to.step(state.step);
        to.square_avg(state.slots[0]);
        if (options.centered()) to.grad_avg(begun(state.slots[1]));
        if (options.momentum() > 0) to.momentum_buffer(begun(state.slots[2]));
        return to;
      },
      {{"lr", [](Options& to, double x) { to.lr(x); }},
       {"alpha", [](Options& to, double x) { to.alpha(x); }},
       {"eps", [](Options& to, double x) { to.eps(x); }},
       {"weight_decay", [](Options& to, double x) { to.weight_decay(x); }},
       {"momentum", [](Options& to, double x) { to.momentum(x); }}});
}

// torch::optim::LBFGS keeps one state, under its first parameter, of all parameters as one vector.
Translation lbfgs() {
  using Options = from::LBFGSOptions;
  using State = from::LBFGSParamState;
  auto translation = translate_options<Options>(
      [](const Options& options) {
        TORCH_CHECK(!options.line_search_fn(), "LBFGS: a line search (", *options.line_search_fn(),
                    ") is not differentiable; leave out line_search_fn");
        return LBFGS(LBFGSOptions(options.lr())
                         .tolerance_grad(options.tolerance_grad())
                         .tolerance_change(options.tolerance_change())
                         .history_size(options.history_size()));
      },
      {{"lr", [](Options& to, double x) { to.lr(x); }}});
  translation.read = [](const from::Optimizer& optimizer, const TensorList& parameters) {
    std::vector<std::optional<ParameterState>> states(parameters.size());
    if (parameters.empty()) return states;
    const auto* state = static_cast<const State*>(find_state(optimizer, parameters[0]));
    if (!state || state->n_iter() == 0) return states;
    int64_t begin = 0;
    for (size_t i = 0; i < parameters.size(); ++i) {
      const auto part = [&, count = parameters[i].numel()](const at::Tensor& vector) {
        return vector.narrow(0, begin, count).view(parameters[i].sizes());
      };
      TensorList slots{part(state->prev_flat_grad()), part(state->d() * state->t())};
      for (size_t k = 0; k < state->old_stps().size(); ++k) {
        slots.push_back(part(state->old_stps()[k]));
        slots.push_back(part(state->old_dirs()[k]));
      }
      states[i] = ParameterState{state->n_iter(), std::move(slots)};
      begin += parameters[i].numel();
    }
    return states;
  };
  translation.write = [](const std::vector<ParameterState>& states, const TensorList& parameters,
                         from::Optimizer& optimizer) {
    TORCH_CHECK(parameters.size() == optimizer.param_groups().at(0).params().size(),
                "LBFGS: its state is one vector, and the inner loop adapted ", parameters.size(), " of its ",
                optimizer.param_groups().at(0).params().size(), " parameters");
    const auto flat = [&](size_t slot) {
      TensorList parts;
      for (const auto& state : states) parts.push_back(state.slots[slot].reshape(-1));
      return at::cat(parts);
    };
    auto to = std::make_unique<State>();
    to->n_iter(states[0].step);
    to->func_evals(states[0].step);
    to->prev_flat_grad(flat(0));
    to->d(flat(1));
    to->t(1);
    to->H_diag(at::ones({}, states[0].slots[0].options()));
    for (size_t slot = 2; slot < states[0].slots.size(); slot += 2) {
      const auto s = flat(slot), y = flat(slot + 1), ys = y.dot(s);
      to->old_stps().push_back(s);
      to->old_dirs().push_back(y);
      to->ro().push_back(1 / ys);
      to->H_diag(ys / y.dot(y));
    }
    set_state(optimizer, parameters[0], std::move(to));
  };
  return translation;
}

struct Registry {
  std::mutex mutex;
  std::map<std::type_index, Translation> translations{
      {typeid(torch::optim::SGD), sgd()},
      {typeid(torch::optim::Adam), adam<torch::optim::AdamOptions, torch::optim::AdamParamState, Adam>()},
      {typeid(torch::optim::AdamW), adam<torch::optim::AdamWOptions, torch::optim::AdamWParamState, AdamW>()},
      {typeid(torch::optim::Adagrad), adagrad()},
      {typeid(torch::optim::RMSprop), rmsprop()},
      {typeid(torch::optim::LBFGS), lbfgs()},
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
  TORCH_CHECK(found != known.translations.end(), "The optimizer ", c10::demangle(typeid(optimizer).name()),
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

const torch::optim::OptimizerOptions& options_of(const torch::optim::Optimizer& optimizer,
                                                 const at::Tensor& parameter) {
  for (const auto& group : optimizer.param_groups()) {
    for (const auto& held : group.params()) {
      if (held.is_same(parameter)) return group.options();
    }
  }
  TORCH_CHECK(false, "options_of: the optimizer does not hold the parameter (shape ", parameter.sizes(), ")");
}

void set_state(torch::optim::Optimizer& optimizer, const at::Tensor& parameter,
               std::unique_ptr<torch::optim::OptimizerParamState> state) {
  if (state) {
    optimizer.state()[state_key(parameter)] = std::move(state);
  } else {
    optimizer.state().erase(state_key(parameter));
  }
}

void copy_states(std::vector<ParameterState> states, const TensorList& parameters, torch::optim::Optimizer& optimizer) {
  if (states.empty()) return;
  for (auto& state : states) state = detached_copy(std::move(state));
  translation_of(optimizer).write(states, parameters, optimizer);
}

}  // namespace gimli::optim
