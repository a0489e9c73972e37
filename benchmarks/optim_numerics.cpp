// What docs/numerics.md says in figures: what a root at zero, eps, bias correction and signs do to hypergradients.

#include <torch/torch.h>

#include <cstdio>

#include "gimli/gimli.h"

namespace gimli::optim {
namespace {

using torch::Tensor;

/// A regression by a small network: a smooth one, or one of rectifiers some of which are dead.
struct Problem {
  Problem(at::ScalarType dtype, bool dead) {
    torch::manual_seed(1);
    using torch::nn::Functional, torch::nn::Linear;
    const auto activation = [&] { return dead ? Functional(torch::relu) : Functional(torch::tanh); };
    model = torch::nn::Sequential(Linear(1, 20), activation(), Linear(20, 20), activation(), Linear(20, 1));
    model->to(torch::kDouble);
    x = torch::linspace(-2, 2, 20, torch::kDouble).unsqueeze(1).to(dtype);
    y = torch::sin(3 * x);
    if (dead) {
      torch::NoGradGuard no_gradient;
      model->parameters()[1].slice(0, 0, 5).fill_(-9);
    }
    model->to(dtype);
  }

  Bilevel with(const Optimizer& optimizer, int64_t steps = 5) {
    const auto loss = [this] { return torch::mse_loss(model->forward(x), y); };
    return Bilevel(model, optimizer).steps(steps).inner(loss).outer(loss);
  }

  torch::nn::Sequential model{nullptr};
  Tensor x, y;
};

/// Adam's update as its formula is usually written down.
class PlainAdam final : public UpdateRule {
 public:
  explicit PlainAdam(AdamOptions options) : adam_(options) {}

  std::string name() const override { return "PlainAdam"; }
  std::vector<HyperparameterSpec> hyperparameters() const override { return adam_.hyperparameters(); }
  ParameterState init(const Tensor& parameter) const override { return adam_.init(parameter); }
  Iterate update(const Tensor& theta, const Tensor& g, const ParameterState& state,
                 const Values& hyperparameters) const override {
    const auto [lr, beta1, beta2, eps, weight_decay] = unpack<5>(hyperparameters);
    const auto t = state.step + 1;
    const auto m = moving_average(beta1, state.slots[0], g), v = moving_average(beta2, state.slots[1], g * g);
    const auto denominator = shift(divide(v, 1 - pow(beta2, t)).sqrt(), eps);
    return {add_scaled_ratio(theta, -(lr / (1 - pow(beta1, t))), m, denominator), {t, {m, v}}};
  }

 private:
  Adam adam_;
};

Tensor flat(const TensorList& list) {
  TensorList parts;
  for (const auto& tensor : list) parts.push_back(tensor.flatten().to(torch::kDouble));
  return at::cat(parts);
}

double relative_error(const Tensor& a, const Tensor& b) { return ((a - b).norm() / b.norm()).item<double>(); }

void root_at_zero() {
  std::printf("## root: 5 steps of Adam, 5 of 20 units dead\n\n");
  std::printf("| update | elements of the hypergradient | NaN | error to central differences |\n|---|--:|--:|--:|\n");
  for (const bool plain : {true, false}) {
    Problem problem(torch::kDouble, /*dead=*/true);
    const auto options = AdamOptions(0.01).eps(1e-3);
    const auto parameters = problem.model->parameters();
    const auto bilevel =
        problem.with(plain ? Optimizer(PlainAdam(options), parameters) : Optimizer(Adam(options), parameters));
    const auto gradient = flat(hypergradient(bilevel, parameters).gradients);
    const auto report = gradcheck(bilevel, parameters, {}, Unroll(), GradcheckOptions().step(1e-6));
    std::printf("| %s | %ld | %ld | %.1e |\n", plain ? "sqrt(v)" : "gimli's", static_cast<long>(gradient.numel()),
                static_cast<long>(gradient.isnan().sum().item<int64_t>()), report.worst_error);
  }
}

void eps_and_precision() {
  std::printf("\n## eps: hypergradient of the initial weights through 5 steps of Adam\n\n");
  std::printf(
      "| eps | steepest slope of the first update, lr / eps | norm of the hypergradient | float32 against float64 |\n");
  std::printf("|--:|--:|--:|--:|\n");
  for (const double eps : {1e-8, 1e-6, 1e-4, 1e-2}) {
    Tensor found[2];
    for (const auto dtype : {torch::kDouble, torch::kFloat}) {
      Problem problem(dtype, /*dead=*/false);
      const auto parameters = problem.model->parameters();
      const Optimizer adam(Adam(AdamOptions(0.01).eps(eps)), parameters);
      found[dtype == torch::kFloat] = flat(hypergradient(problem.with(adam), parameters).gradients);
    }
    std::printf("| %.0e | %.0e | %.3f | %.1e |\n", eps, 0.01 / eps, found[0].norm().item<double>(),
                relative_error(found[1], found[0]));
  }
}

void bias_correction() {
  std::printf("\n## bias correction: 1 - beta2^t at beta2 = 0.999f, relative error\n\n");
  std::printf("| t | computed in float32 | in float64, as gimli does |\n|--:|--:|--:|\n");
  const auto beta = torch::tensor(0.999f);
  for (const int64_t t : {1, 5, 100}) {
    const double exact = -std::expm1(static_cast<double>(t) * std::log(static_cast<double>(0.999f)));
    const auto error = [&](const Tensor& b) { return std::abs((1 - b.pow(t)).item<double>() / exact - 1); };
    std::printf("| %ld | %.1e | %.1e |\n", static_cast<long>(t), error(beta), error(beta.to(torch::kDouble)));
  }

  std::printf("\nDerivative of the outer loss by Adam's betas, after so many steps (float64):\n\n");
  std::printf("| steps | by beta1 | by beta2 |\n|--:|--:|--:|\n");
  for (const int64_t steps : {1, 2, 5, 20}) {
    Problem problem(torch::kDouble, /*dead=*/false);
    Optimizer adam(Adam(AdamOptions(0.01)), problem.model->parameters());
    const auto learned = learn(adam, {"beta1", "beta2"}, LearnOptions().domain(Domain::real));
    const auto found = hypergradient(problem.with(adam, steps), learned.tensors()).gradients;
    std::printf("| %ld | %.1e | %.1e |\n", static_cast<long>(steps), found[0].item<double>(), found[1].item<double>());
  }
}

void signs() {
  std::printf("\n## signs: derivative of the outer loss by a shift of a layer's initial weights, through 5 steps\n\n");
  std::printf("| optimizer | hypergradient | differences over 1e-7 | over 1e-3 | over 1e-1 |\n|---|--:|--:|--:|--:|\n");
  const auto row = [](const char* name, const std::function<Optimizer(const TensorList&)>& make) {
    Problem problem(torch::kDouble, /*dead=*/false);
    const auto parameters = problem.model->parameters();
    const auto bilevel = problem.with(make(parameters));
    auto weight = parameters[2].detach();
    const auto by_differences = [&](double h) {
      const auto at = [&](double by) {
        weight.add_(by);
        const auto loss = evaluate(bilevel).outer_loss.item<double>();
        weight.sub_(by);
        return loss;
      };
      return (at(h) - at(-h)) / (2 * h);
    };
    std::printf("| %s | %.5f | %.5f | %.5f | %.5f |\n", name,
                hypergradient(bilevel, parameters).gradients[2].sum().item<double>(), by_differences(1e-7),
                by_differences(1e-3), by_differences(1e-1));
  };
  row("SGD", [](const TensorList& p) { return Optimizer(SGD(SGDOptions(0.05)), p); });
  row("Adam", [](const TensorList& p) { return Optimizer(Adam(AdamOptions(0.01)), p); });
  row("Lion", [](const TensorList& p) { return Optimizer(Lion(LionOptions(0.01)), p); });
  row("Rprop", [](const TensorList& p) { return Optimizer(Rprop(), p); });
}

void zero_values() {
  std::printf("\n## a hyperparameter that is 0: derivative of the outer loss through 5 steps of SGD\n\n");
  std::printf("| hyperparameter | hypergradient at 0 | by central differences |\n|---|--:|--:|\n");
  for (const auto* name : {"momentum", "weight_decay"}) {
    Problem problem(torch::kDouble, /*dead=*/false);
    Optimizer sgd(SGD(SGDOptions(0.05)), problem.model->parameters());
    const auto learned = learn(sgd, {name}, LearnOptions().domain(Domain::real));
    const auto bilevel = problem.with(sgd);
    const auto x = learned.tensors()[0].detach();
    const auto at = [&](double value) {
      x.fill_(value);
      return evaluate(bilevel).outer_loss.item<double>();
    };
    const double differences = (at(1e-5) - at(-1e-5)) / 2e-5;
    x.fill_(0);
    std::printf("| %s | %.9f | %.9f |\n", name, hypergradient(bilevel, learned.tensors()).gradients[0].item<double>(),
                differences);
  }
}

}  // namespace
}  // namespace gimli::optim

int main() {
  at::set_num_threads(1);
  gimli::optim::root_at_zero();
  gimli::optim::eps_and_precision();
  gimli::optim::bias_correction();
  gimli::optim::signs();
  gimli::optim::zero_values();
}
