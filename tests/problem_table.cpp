#include "problem_table.h"

#include <cmath>
#include <limits>

namespace gimli {
namespace {

namespace nn = torch::nn;
using at::Tensor;

const auto f64 = torch::dtype(torch::kDouble);

struct Recurrent final : nn::Module {
  Recurrent()
      : lstm(register_module("lstm", nn::LSTM(nn::LSTMOptions(2, 4).num_layers(2).batch_first(true).dropout(0.2)))),
        head(register_module("head", nn::Linear(4, 3))) {}
  Tensor forward(const Tensor& x) { return head(std::get<0>(lstm(x)).select(1, -1)); }

  nn::LSTM lstm;
  nn::Linear head;
};

struct Attentive final : nn::Module {
  Attentive()
      : block(register_module(
            "block",
            nn::TransformerEncoderLayer(
                nn::TransformerEncoderLayerOptions(4, 2).dim_feedforward(6).dropout(0.2).activation(torch::kGELU)))),
        head(register_module("head", nn::Linear(4, 3))) {}
  Tensor forward(const Tensor& x) { return head(block(x.transpose(0, 1)).mean(0)); }

  nn::TransformerEncoderLayer block;
  nn::Linear head;
};

Learner sequential(const nn::Sequential& model, std::vector<int64_t> input_sizes) {
  return {model.ptr(), [model](const Tensor& x) { return model.ptr()->forward(x); }, std::move(input_sizes)};
}

template <class Module>
Learner of_module(std::vector<int64_t> input_sizes) {
  const auto module = std::make_shared<Module>();
  return {module, [module](const Tensor& x) { return module->forward(x); }, std::move(input_sizes)};
}

template <class Rule>
InnerOptimizer row(const std::string& name, double lr, Rule rule) {
  return {name, lr, [rule](const TensorList& parameters) { return optim::Optimizer(rule, parameters); }};
}

optim::Optimizer momentum(const TensorList& parameters) {
  return {optim::SGD(optim::SGDOptions(0.1).momentum(0.9)), parameters};
}

}  // namespace

Learner::Learner(std::shared_ptr<nn::Module> own_module, std::function<Tensor(const Tensor&)> own_forward,
                 std::vector<int64_t> sizes)
    : module(std::move(own_module)),
      forward(std::move(own_forward)),
      input_sizes(std::move(sizes)),
      lr(torch::tensor(0.1, f64.requires_grad(true))),
      weights(torch::linspace(0.5, 1.5, 6, f64).requires_grad_()),
      loss_network(3, 2) {
  to(torch::kDouble);
}

void Learner::to(at::ScalarType type) {
  module->to(type);
  loss_network->to(type);
  lr = lr.detach().to(type).requires_grad_();
  weights = weights.detach().to(type).requires_grad_();
}

const auto tensors_of = [](const Classification& task) {
  return TensorList{task.x, task.y, task.x_query, task.y_query};
};

Bilevel Learner::problem(optim::Optimizer optimizer) const {
  const auto inner = [own = *this](const Classification& task, int64_t step) {
    const auto logits = own.forward(task.x.roll(step, 0));
    const auto options = nn::functional::CrossEntropyFuncOptions().reduction(torch::kNone);
    const auto losses = nn::functional::cross_entropy(logits, task.y.roll(step, 0), options);
    return (own.weights * losses).mean() + own.loss_network.ptr()->forward(logits).tanh().mean();
  };
  const auto outer = [own = *this](const Classification& task) {
    return nn::functional::cross_entropy(own.forward(task.x_query), task.y_query);
  };
  return Bilevel(module, optimizer.set("lr", lr)).steps(4).seed(11).inputs(tensors_of).inner(inner).outer(outer);
}

std::vector<Classification> Learner::tasks(int count) const {
  auto sizes = input_sizes;
  sizes.insert(sizes.begin(), 6);
  std::vector<Classification> tasks;
  for (int i = 0; i < count; ++i) {
    const auto x = torch::randn(sizes, f64), x_query = torch::randn(sizes, f64);
    const auto y = torch::randint(3, {6}, torch::kLong), y_query = torch::randint(3, {6}, torch::kLong);
    tasks.push_back({x.to(weights.scalar_type()), y, x_query.to(weights.scalar_type()), y_query});
  }
  return tasks;
}

TensorList Learner::hyperparameters() const {
  TensorList list{lr, weights};
  for (const auto& parameter : loss_network->parameters()) list.push_back(parameter);
  return list;
}

TensorList Learner::meta_parameters() const {
  auto list = hyperparameters();
  list.push_back(module->parameters().back());
  return list;
}

TensorList Learner::all_meta_parameters() const {
  auto list = hyperparameters();
  for (const auto& parameter : module->parameters()) list.push_back(parameter);
  return list;
}

const std::vector<Network> networks{
    {"mlp", mlp_learner},
    {"conv",
     [] {
       return sequential(nn::Sequential(nn::Conv2d(nn::Conv2dOptions(1, 3, 3).padding(1)), nn::BatchNorm2d(3),
                                        nn::Tanh(), nn::AvgPool2d(2), nn::Flatten(), nn::Linear(12, 3)),
                         {1, 4, 4});
     }},
    {"lstm",
     [] {
       return of_module<Recurrent>({3, 2});
     }},
    {"transformer",
     [] {
       return of_module<Attentive>({3, 4});
     }},
};

const std::vector<InnerOptimizer> inner_optimizers{
    row("SGD", 0.1, optim::SGD(0.1)),
    row("SGD_momentum", 0.03, optim::SGD(optim::SGDOptions(0.1).momentum(0.9).weight_decay(0.01))),
    row("SGD_nesterov", 0.03, optim::SGD(optim::SGDOptions(0.1).momentum(0.8).nesterov(true))),
    row("Adam", 0.02, optim::Adam(optim::AdamOptions(0.1).eps(1e-3))),
    row("AdamW", 0.02, optim::AdamW(optim::AdamOptions(0.1).eps(1e-3).weight_decay(0.01))),
    row("RMSprop", 0.01, optim::RMSprop(optim::RMSpropOptions(0.1).eps(1e-2).centered(true).momentum(0.5))),
    row("Adagrad", 0.05, optim::Adagrad(optim::AdagradOptions(0.1).initial_accumulator_value(0.1))),
    row("LBFGS", 0.1, optim::LBFGS(optim::LBFGSOptions(0.1).history_size(3))),
};

Learner mlp_learner() { return sequential(nn::Sequential(nn::Linear(4, 5), nn::Tanh(), nn::Linear(5, 3)), {4}); }

std::string Pairing::name() const {
  return network.name + "_" + optimizer.name + (dtype == at::kDouble ? "_float64" : "_float32");
}

Learner Pairing::learner() const {
  torch::manual_seed(11);
  auto learner = network.make();
  const torch::NoGradGuard no_gradient;
  learner.lr.fill_(optimizer.lr);
  learner.to(dtype);
  return learner;
}

std::vector<Pairing> pairings() {
  std::vector<Pairing> result;
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    for (const auto& network : networks) {
      for (const auto& optimizer : inner_optimizers) result.push_back({network, optimizer, dtype});
    }
  }
  return result;
}

std::vector<ProblemRow> problem_table() {
  torch::manual_seed(3);
  std::vector<ProblemRow> rows;
  const auto add = [&](const std::string& name, const Learner& learner, const Bilevel& problem, TensorList metas) {
    rows.push_back({name, problem, std::move(metas), learner.tasks(2)});
  };

  for (const auto& network : networks) {
    const auto learner = network.make();
    const auto parameters = learner.module->parameters();
    add(network.name + ", SGD", learner, learner.problem(momentum(parameters)), learner.meta_parameters());
    add(network.name + ", Adam", learner, learner.problem({optim::Adam(optim::AdamOptions(0.1).eps(1e-3)), parameters}),
        learner.meta_parameters());
  }

  const auto mlp = mlp_learner();
  const auto parameters = mlp.module->parameters();
  const auto problem = [&] { return mlp.problem(momentum(parameters)); };
  const auto metas = mlp.meta_parameters();
  add("outer losses on the way", mlp, problem().outer_at({0, 2, 3}), metas);
  add("no outer loss at the end", mlp, problem().outer_at({0, 2}), metas);
  add("a stopped gradient", mlp, problem().stop_gradient_before({2}).outer_at({1, 3, 4}), mlp.hyperparameters());
  add("a gradient stopped at once", mlp, problem().stop_gradient_before({0}), mlp.hyperparameters());
  add("one step", mlp, problem().steps(1), metas);
  add("clipped and noisy gradients", mlp,
      problem()
          .gradient_transform(optim::clip_by_norm(0.3))
          .gradient_transform([](TensorList gradients, const TensorList&, int64_t) {
            for (auto& gradient : gradients) gradient = gradient + 0.1 * torch::randn_like(gradient);
            return gradients;
          }),
      metas);

  const auto tasks = mlp.tasks(1);
  const auto start = hypergradient(problem().keep_final_states(true), {mlp.lr}, tasks).final_states[0];
  add("a warm start", mlp, problem().start_from(start), mlp.hyperparameters());

  const auto strength = torch::tensor(0.3, f64.requires_grad(true));
  auto with_strength = metas;
  with_strength.push_back(strength);
  add("a proximal term", mlp, problem().proximal(strength), with_strength);

  auto with_frozen = metas;
  with_frozen.push_back(parameters[1]);
  add("frozen weights", mlp, mlp.problem(momentum({parameters[0], parameters[2], parameters[3]})), with_frozen);

  TensorList rates;
  for (size_t i = 0; i < parameters.size(); ++i)
    rates.push_back(torch::tensor(0.1 + 0.02 * i, f64.requires_grad(true)));
  auto with_rates = rates;
  with_rates.push_back(mlp.weights);
  rows.push_back({"a learning rate a tensor",
                  Bilevel(mlp.module, optim::Optimizer(optim::Adam(0.1), parameters).set("lr", rates))
                      .steps(4)
                      .inputs(tensors_of)
                      .inner([mlp](const Classification& task) {
                        return (mlp.forward(task.x).log_softmax(1).select(1, 0) * mlp.weights).mean();
                      })
                      .outer([mlp](const Classification& task) {
                        return mlp.forward(task.x_query).log_softmax(1).select(1, 1).mean();
                      }),
                  with_rates, mlp.tasks(2)});
  return rows;
}

double relative_error(const TensorList& a, const TensorList& b) {
  TORCH_INTERNAL_ASSERT(a.size() == b.size());
  double error = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].defined() != b[i].defined()) return std::numeric_limits<double>::infinity();
    if (!a[i].defined()) continue;
    error = std::hypot(error, (a[i] - b[i]).norm().item<double>());
    size = std::hypot(size, b[i].norm().item<double>());
  }
  return error == 0 ? 0 : error / size;
}

}  // namespace gimli
