#include "gimli/optim/learned_hyperparameters.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "gimli/optim/registry.h"

namespace gimli::optim {
namespace {

at::Tensor constrained(const at::Tensor& x, Domain domain) {
  switch (domain) {
    case Domain::positive:
      return x.exp();
    case Domain::unit:
      return x.sigmoid();
    default:
      return x;
  }
}

double unconstrained(double value, Domain domain) {
  switch (domain) {
    case Domain::positive:
      return std::log(value);
    case Domain::unit:
      return std::log(value / (1 - value));
    default:
      return value;
  }
}

/// The part of a meta-parameter that acts at `step`.
at::Tensor at_step(const at::Tensor& x, int64_t step, const std::optional<int64_t>& steps) {
  return steps ? x.select(0, std::min(step, *steps - 1)) : x;
}

std::string in_words(Domain domain) { return domain == Domain::positive ? "above 0" : "between 0 and 1"; }

}  // namespace

LearnedHyperparameters learn(Optimizer& optimizer, const std::vector<std::string>& hyperparameters,
                             LearnOptions options) {
  TORCH_CHECK(!options.steps() || *options.steps() >= 1, "learn: expected at least 1 step, got ", *options.steps());
  LearnedHyperparameters learned;
  learned.options_ = options;
  auto changed = optimizer;
  for (const auto& name : hyperparameters) {
    TORCH_CHECK(std::count(hyperparameters.begin(), hyperparameters.end(), name) == 1, "learn: '", name,
                "' is named more than once");
    bool known = false;
    for (size_t g = 0; g < optimizer.groups().size(); ++g) {
      const auto& group = optimizer.groups()[g];
      if (!group.has(name)) continue;
      known = true;
      if (group.parameters.empty()) continue;
      const auto spec = group.spec(name);
      const auto domain = options.domain().value_or(spec.domain);
      TORCH_CHECK(group.value(name).is_number(), "learn: '", name, "' of group ", g, " is not a number any more");
      const double start = unconstrained(group.value(name).number(), domain);
      TORCH_CHECK(std::isfinite(start), "learn: '", name, "' of group ", g, " is ", group.value(name).number(),
                  ", expected a start ", in_words(domain), "; set one, or learn it with the domain real");

      const auto add = [&](std::string label, std::vector<int64_t> shape, at::ScalarType dtype) {
        if (options.steps()) shape.insert(shape.begin(), *options.steps());
        const auto like = group.parameters[0].options().dtype(dtype);
        learned.meta_parameters_.names.push_back(std::move(label));
        learned.meta_parameters_.tensors.push_back(at::full(shape, start, like).requires_grad_());
        learned.origins_.push_back({g, group.rule->name(), name, domain});
        return learned.meta_parameters_.tensors.back();
      };
      const auto label = c10::str(name, ".", g);
      const auto steps = options.steps();
      if (options.granularity() == Granularity::per_group) {
        const auto x = add(label, {}, at::kDouble);
        changed.set(g, name, [=](int64_t step) { return constrained(at_step(x, step, steps), domain); });
      } else if (options.granularity() == Granularity::per_tensor) {
        const auto x = add(label, {static_cast<int64_t>(group.parameters.size())}, at::kDouble);
        changed.set(g, name, [=](int64_t step) { return constrained(at_step(x, step, steps), domain).unbind(); });
      } else {
        TensorList each;
        for (size_t i = 0; i < group.parameters.size(); ++i) {
          const auto& parameter = group.parameters[i];
          each.push_back(add(c10::str(label, ".", i), parameter.sizes().vec(), parameter.scalar_type()));
        }
        changed.set(g, name, [=](int64_t step) {
          TensorList now;
          for (const auto& x : each) now.push_back(constrained(at_step(x, step, steps), domain));
          return now;
        });
      }
    }
    TORCH_CHECK(known, "learn: no parameter group has a hyperparameter '", name, "'; the first has: ",
                optimizer.groups().empty() ? "none" : c10::Join(", ", optimizer.groups()[0].names));
  }
  optimizer = std::move(changed);
  return learned;
}

NamedTensors LearnedHyperparameters::values() const {
  NamedTensors values{meta_parameters_.names, {}};
  for (size_t i = 0; i < origins_.size(); ++i) {
    values.tensors.push_back(constrained(meta_parameters_.tensors[i].detach(), origins_[i].domain).clone());
  }
  return values;
}

void LearnedHyperparameters::copy_to(torch::optim::Optimizer& optimizer) const {
  const auto translation = translation_of(optimizer);
  const auto now = values();
  auto& groups = optimizer.param_groups();
  TORCH_CHECK(options_.granularity() != Granularity::per_element && !options_.steps(),
              "LearnedHyperparameters::copy_to: a torch::optim optimizer has one number a group, these are ",
              options_.steps() ? "one a step" : "one an element");
  for (size_t i = 0; i < origins_.size(); ++i) {
    TORCH_CHECK(origins_[i].group < groups.size(), "LearnedHyperparameters::copy_to: '", now.names[i],
                "' is of a group that the optimizer does not have, it has ", groups.size());
    const auto kind = translation.rule(groups[origins_[i].group].options())->name();
    TORCH_CHECK(kind == origins_[i].rule, "LearnedHyperparameters::copy_to: '", now.names[i], "' was learned for ",
                origins_[i].rule, ", the optimizer is ", kind);
    TORCH_CHECK(now.tensors[i].numel() == 1, "LearnedHyperparameters::copy_to: '", now.names[i], "' has ",
                now.tensors[i].numel(), " values for one group; give each tensor a group of its own");
  }
  for (size_t i = 0; i < origins_.size(); ++i) {
    translation.set(groups[origins_[i].group].options(), origins_[i].hyperparameter, now.tensors[i].item<double>());
  }
}

}  // namespace gimli::optim
