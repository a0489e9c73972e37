#include "optim_table.h"

#include "optim_baselines.h"

namespace gimli::optim {
namespace {

template <class Torch, class TorchOptions>
TorchOptimizer two_groups(TorchOptions options, const TensorList& parameters) {
  auto others = options;
  others.lr(2 * options.lr()).weight_decay(options.weight_decay() + 0.05);
  std::vector<torch::optim::OptimizerParamGroup> groups;
  groups.emplace_back(TensorList{parameters[0]}, std::make_unique<TorchOptions>(options));
  groups.emplace_back(TensorList(parameters.begin() + 1, parameters.end()), std::make_unique<TorchOptions>(others));
  return std::make_unique<Torch>(groups, options);
}

template <class To>
To sgd_options(const Options& from) {
  return To(from.at("lr"))
      .momentum(from.at("momentum"))
      .dampening(from.at("dampening"))
      .weight_decay(from.at("weight_decay"))
      .nesterov(has(from, "nesterov"));
}

template <class To>
To adam_options(const Options& from) {
  return To(from.at("lr"))
      .betas({from.at("beta1"), from.at("beta2")})
      .eps(from.at("eps"))
      .weight_decay(from.at("weight_decay"))
      .amsgrad(has(from, "amsgrad"));
}

/// Of the descendants of Adam.
template <class To>
To moment_options(const Options& from) {
  return To(from.at("lr"))
      .betas({from.at("beta1"), from.at("beta2")})
      .weight_decay(from.at("weight_decay"))
      .maximize(has(from, "maximize"));
}

template <class To>
To adagrad_options(const Options& from) {
  return To(from.at("lr"))
      .lr_decay(from.at("lr_decay"))
      .weight_decay(from.at("weight_decay"))
      .initial_accumulator_value(from.at("initial_accumulator_value"))
      .eps(from.at("eps"));
}

template <class To>
To rmsprop_options(const Options& from) {
  return To(from.at("lr"))
      .alpha(from.at("alpha"))
      .eps(from.at("eps"))
      .weight_decay(from.at("weight_decay"))
      .momentum(from.at("momentum"))
      .centered(has(from, "centered"));
}

template <class To>
To lbfgs_options(const Options& from) {
  return To(from.at("lr"))
      .history_size(has(from, "history_size") ? static_cast<int64_t>(from.at("history_size")) : 100);
}

}  // namespace

MuonOptions muon_options(const Options& from) {
  auto to = MuonOptions(from.at("lr"))
                .weight_decay(from.at("weight_decay"))
                .momentum(from.at("momentum"))
                .ns_coefficients({from.at("ns_a"), from.at("ns_b"), from.at("ns_c")})
                .eps(from.at("eps"));
  if (has(from, "nesterov")) to.nesterov(from.at("nesterov") != 0);
  if (has(from, "ns_steps")) to.ns_steps(static_cast<int64_t>(from.at("ns_steps")));
  if (has(from, "match_rms_adamw")) to.adjust_lr_fn("match_rms_adamw");
  return to;
}

namespace {

/// Applied to parameters: `make(rule)` for `[](const Options& from) { return Rule(...); }`.
template <class Rule>
auto make(Rule rule) {
  return [rule](const Options& from, TensorList parameters) { return Optimizer(rule(from), std::move(parameters)); };
}

}  // namespace

const std::map<std::string, Family> families = {
    {"SGD",
     {make([](const Options& from) { return SGD(sgd_options<SGDOptions>(from).maximize(has(from, "maximize"))); }),
      [](const Options& from, const TensorList& parameters) {
        return two_groups<torch::optim::SGD>(sgd_options<torch::optim::SGDOptions>(from), parameters);
      }}},
    {"Adam",
     {make([](const Options& from) { return Adam(adam_options<AdamOptions>(from).maximize(has(from, "maximize"))); }),
      [](const Options& from, const TensorList& parameters) {
        return two_groups<torch::optim::Adam>(adam_options<torch::optim::AdamOptions>(from), parameters);
      }}},
    {"AdamW",
     {make([](const Options& from) { return AdamW(adam_options<AdamOptions>(from).maximize(has(from, "maximize"))); }),
      [](const Options& from, const TensorList& parameters) {
        return two_groups<torch::optim::AdamW>(adam_options<torch::optim::AdamWOptions>(from), parameters);
      }}},
    {"Adamax",
     {make([](const Options& from) { return Adamax(moment_options<AdamaxOptions>(from).eps(from.at("eps"))); })}},
    {"NAdam", {make([](const Options& from) {
       return NAdam(moment_options<NAdamOptions>(from)
                        .eps(from.at("eps"))
                        .momentum_decay(from.at("momentum_decay"))
                        .decoupled_weight_decay(has(from, "decoupled_weight_decay")));
     })}},
    {"RAdam", {make([](const Options& from) {
       return RAdam(moment_options<RAdamOptions>(from)
                        .eps(from.at("eps"))
                        .decoupled_weight_decay(has(from, "decoupled_weight_decay")));
     })}},
    {"Adadelta", {make([](const Options& from) {
       return Adadelta(AdadeltaOptions(from.at("lr"))
                           .rho(from.at("rho"))
                           .eps(from.at("eps"))
                           .weight_decay(from.at("weight_decay"))
                           .maximize(has(from, "maximize")));
     })}},
    {"Adagrad",
     {make([](const Options& from) {
        return Adagrad(adagrad_options<AdagradOptions>(from).maximize(has(from, "maximize")));
      }),
      [](const Options& from, const TensorList& parameters) {
        return two_groups<torch::optim::Adagrad>(adagrad_options<torch::optim::AdagradOptions>(from), parameters);
      }}},
    {"RMSprop",
     {make([](const Options& from) {
        return RMSprop(rmsprop_options<RMSpropOptions>(from).maximize(has(from, "maximize")));
      }),
      [](const Options& from, const TensorList& parameters) {
        return two_groups<torch::optim::RMSprop>(rmsprop_options<torch::optim::RMSpropOptions>(from), parameters);
      }}},
    {"ASGD", {make([](const Options& from) {
       return ASGD(ASGDOptions(from.at("lr"))
                       .lambd(from.at("lambd"))
                       .alpha(from.at("alpha"))
                       .t0(from.at("t0"))
                       .weight_decay(from.at("weight_decay"))
                       .maximize(has(from, "maximize")));
     })}},
    {"Rprop",
     {.make = make([](const Options& from) {
        return Rprop(RpropOptions(from.at("lr"))
                         .etas({from.at("etaminus"), from.at("etaplus")})
                         .step_sizes({from.at("step_size_min"), from.at("step_size_max")})
                         .maximize(has(from, "maximize")));
      }),
      .signs = true}},
    {"Adafactor",
     {.make = make([](const Options& from) {
        return Adafactor(AdafactorOptions(from.at("lr"))
                             .beta2_decay(from.at("beta2_decay"))
                             .eps1(from.at("eps1"))
                             .eps2(from.at("eps2"))
                             .d(from.at("d"))
                             .weight_decay(from.at("weight_decay"))
                             .maximize(has(from, "maximize")));
      }),
      .scalar_only = {"beta2_decay"}}},
    {"Muon",
     {.make = make([](const Options& from) { return Muon(muon_options(from)); }),
      .shapes = {{3, 2}, {2, 3}, {2, 2}},
      .scalar_only = {"ns_a", "ns_b", "ns_c", "eps"}}},
    {"LBFGS",
     {make([](const Options& from) { return LBFGS(lbfgs_options<LBFGSOptions>(from)); }),
      [](const Options& from, const TensorList& parameters) {
        return std::make_unique<torch::optim::LBFGS>(parameters,
                                                     lbfgs_options<torch::optim::LBFGSOptions>(from).max_iter(1));
      }}},
    {"Lion",
     {.make = make([](const Options& from) { return Lion(moment_options<LionOptions>(from)); }),
      .signs = true,
      .flat = {"beta1"}}},
    {"LAMB", {make([](const Options& from) { return LAMB(moment_options<LAMBOptions>(from).eps(from.at("eps"))); })}},
    {"Yogi", {make([](const Options& from) {
       return Yogi(moment_options<YogiOptions>(from)
                       .eps(from.at("eps"))
                       .initial_accumulator_value(from.at("initial_accumulator_value")));
     })}},
};

}  // namespace gimli::optim
