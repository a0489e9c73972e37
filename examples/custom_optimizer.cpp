// An optimizer that gimli does not know: a torch::optim one, the same as a differentiable rule, one call that makes
// inner loops accept it, and the proof that its hypergradients are right.
#include <torch/torch.h>

#include "gimli/gimli.h"
#include "gimli/nn/mlp.h"

// ---- the optimizer as its author has it: b <- momentum b + g / (|g| + eps), theta <- theta - lr b

struct NormalizedOptions : torch::optim::OptimizerCloneableOptions<NormalizedOptions> {
  NormalizedOptions(double lr = 0.1) : lr_(lr) {}
  TORCH_ARG(double, lr);
  TORCH_ARG(double, momentum) = 0.9;
  TORCH_ARG(double, eps) = 1e-8;
};

struct NormalizedState : torch::optim::OptimizerCloneableParamState<NormalizedState> {
  TORCH_ARG(torch::Tensor, buffer);
};

struct Normalized : torch::optim::Optimizer {
  Normalized(std::vector<torch::Tensor> parameters, NormalizedOptions options)
      : torch::optim::Optimizer(std::move(parameters), std::make_unique<NormalizedOptions>(options)) {}

  torch::Tensor step(LossClosure = nullptr) override {
    torch::NoGradGuard no_gradient;
    for (auto& group : param_groups()) {
      const auto& options = static_cast<const NormalizedOptions&>(group.options());
      for (auto& p : group.params()) {
        auto& state = this->state()[p.unsafeGetTensorImpl()];
        if (!state) state = std::make_unique<NormalizedState>();
        auto& b = static_cast<NormalizedState&>(*state).buffer();
        if (!b.defined()) b = torch::zeros_like(p);
        b.mul_(options.momentum()).add_(p.grad() / (p.grad().norm() + options.eps()));
        p.sub_(options.lr() * b);
      }
    }
    return {};
  }
};

// ---- the same as a rule: pure functions of tensors, in which a hyperparameter is a number or a tensor

using namespace gimli::optim;

class NormalizedRule final : public UpdateRule {
 public:
  explicit NormalizedRule(NormalizedOptions options) : options_(std::move(options)) {}

  std::string name() const override { return "Normalized"; }
  std::vector<HyperparameterSpec> hyperparameters() const override {
    return {{"lr", options_.lr(), Domain::positive},
            {"momentum", options_.momentum(), Domain::unit},
            {"eps", options_.eps(), Domain::positive}};
  }
  ParameterState init(const at::Tensor& parameter) const override { return {0, zeros(parameter, 1)}; }
  Iterate update(const at::Tensor& theta, const at::Tensor& g, const ParameterState& state,
                 const Values& hyperparameters) const override {
    const auto [lr, momentum, eps] = unpack<3>(hyperparameters);
    const auto norm = root(g.square().sum());  // a root whose derivative at 0 is 0, not NaN
    const auto b = add_scaled(g / shift(norm, eps), momentum, state.slots[0]);
    return {add_scaled(theta, -lr, b), {state.step + 1, {b}}};
  }

 private:
  NormalizedOptions options_;
};

int main() {
  register_optimizer<Normalized, NormalizedOptions, NormalizedState>(
      [](const NormalizedOptions& options) { return NormalizedRule(options); },
      [](const NormalizedState& state) {
        return ParameterState{1, {state.buffer()}};
      },
      [](const ParameterState& state) { return NormalizedState().buffer(state.slots[0]); },
      {{"lr", [](auto& to, double x) { to.lr(x); }}, {"momentum", [](auto& to, double x) { to.momentum(x); }}});

  torch::manual_seed(0);
  auto model = gimli::nn::mlp({1, 8, 1});
  model->to(torch::kDouble);
  const auto x = torch::linspace(-2, 2, 16, torch::kDouble).unsqueeze(1), y = torch::sin(2 * x);
  const auto loss = [&] { return torch::mse_loss(model->forward(x), y); };

  Normalized inner_optimizer(model->parameters(), NormalizedOptions(0.1));
  Optimizer optimizer(inner_optimizer);
  const auto learned = learn(optimizer, {"lr", "momentum"});
  auto meta_parameters = model->parameters();
  for (const auto& tensor : learned.tensors()) meta_parameters.push_back(tensor);
  const auto problem = gimli::Bilevel(model, optimizer).steps(5).inner(loss).outer(loss);
  const auto report = gimli::gradcheck(problem, meta_parameters);
  std::cout << "5 steps, " << meta_parameters.size() << " meta-parameters: largest difference to central differences "
            << report.worst_error << (report ? ", all right" : ", wrong: " + report.message) << std::endl;
  return report ? 0 : 1;
}
