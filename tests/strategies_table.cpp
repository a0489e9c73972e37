#include "strategies_table.h"

#include <limits>

namespace gimli {
namespace nn = torch::nn;
using torch::Tensor;

namespace {

struct LstmNetworkImpl : nn::Module {
  LstmNetworkImpl()
      : lstm(register_module("lstm", nn::LSTM(nn::LSTMOptions(3, 4).num_layers(2).batch_first(true).dropout(0.2)))),
        head(register_module("head", nn::Linear(4, 2))) {}
  Tensor forward(const Tensor& x) { return head(std::get<0>(lstm(x)).select(1, -1)); }

  nn::LSTM lstm;
  nn::Linear head;
};

struct TransformerNetworkImpl : nn::Module {
  TransformerNetworkImpl()
      : block(register_module("block", nn::TransformerEncoderLayer(
                                           nn::TransformerEncoderLayerOptions(4, 2).dim_feedforward(6).dropout(0.2)))),
        head(register_module("head", nn::Linear(4, 2))) {}
  Tensor forward(const Tensor& x) { return head(block(x.transpose(0, 1)).mean(0)); }

  nn::TransformerEncoderLayer block;
  nn::Linear head;
};

/// A network whose module has a forward(Tensor).
template <class Module>
Network make_network(const std::string& name, std::vector<int64_t> input,
                     std::function<std::shared_ptr<Module>()> make) {
  return {name, std::move(input), make,
          [](nn::Module& module, const Tensor& x) { return dynamic_cast<Module&>(module).forward(x); }};
}

template <class... Modules>
std::shared_ptr<nn::SequentialImpl> sequential(Modules... modules) {
  return nn::Sequential(modules...).ptr();
}

template <class Rule>
InnerOptimizer make_optimizer(const std::string& name, Rule rule) {
  return {name, [rule](const TensorList& parameters) { return optim::Optimizer(rule, parameters); }};
}

}  // namespace

const std::vector<Network> networks{
    make_network<nn::SequentialImpl>("mlp", {3},
                                     [] { return sequential(nn::Linear(3, 5), nn::Tanh(), nn::Linear(5, 2)); }),
    make_network<nn::SequentialImpl>("conv", {1, 4, 4},
                                     [] {
                                       return sequential(nn::Conv2d(nn::Conv2dOptions(1, 3, 3).padding(1)),
                                                         nn::BatchNorm2d(3), nn::ReLU(), nn::MaxPool2d(2),
                                                         nn::Flatten(), nn::Linear(12, 2));
                                     }),
    make_network<LstmNetworkImpl>("lstm", {3, 3}, [] { return std::make_shared<LstmNetworkImpl>(); }),
    make_network<TransformerNetworkImpl>("transformer", {3, 4},
                                         [] { return std::make_shared<TransformerNetworkImpl>(); }),
};

const std::vector<InnerOptimizer> inner_optimizers{
    make_optimizer("SGD", optim::SGD(optim::SGDOptions(0.03))),
    make_optimizer("SGD_momentum", optim::SGD(optim::SGDOptions(0.03).momentum(0.9).weight_decay(0.01))),
    make_optimizer("SGD_nesterov", optim::SGD(optim::SGDOptions(0.03).momentum(0.8).nesterov(true))),
    make_optimizer("Adam", optim::Adam(optim::AdamOptions(0.02).eps(1e-3))),
    make_optimizer("AdamW", optim::AdamW(optim::AdamOptions(0.02).eps(1e-3).weight_decay(0.01))),
    make_optimizer("RMSprop", optim::RMSprop(optim::RMSpropOptions(0.01).eps(1e-2).centered(true).momentum(0.5))),
    make_optimizer("Adagrad", optim::Adagrad(optim::AdagradOptions(0.05).initial_accumulator_value(0.1))),
    make_optimizer("LBFGS", optim::LBFGS(optim::LBFGSOptions(0.1).history_size(3))),
};

namespace {

template <class Row>
const Row& find(const std::vector<Row>& rows, const std::string& name) {
  return *std::find_if(rows.begin(), rows.end(), [&](const Row& row) { return row.name == name; });
}

}  // namespace

const Network& network(const std::string& name) { return find(networks, name); }
const InnerOptimizer& inner_optimizer(const std::string& name) { return find(inner_optimizers, name); }

StrategyProblem::StrategyProblem(const Network& network, const InnerOptimizer& optimizer, at::ScalarType dtype,
                                 int task_count)
    : network_(network), optimizer_(optimizer) {
  torch::manual_seed(11);
  const auto options = torch::dtype(torch::kDouble);
  model = network.make();
  model->to(torch::kDouble);
  auto shape = network.input;
  shape.insert(shape.begin(), 4);
  for (int i = 0; i < task_count; ++i) {
    tasks.push_back({torch::randn(shape, options), torch::randn({4, 2}, options), torch::randn(shape, options),
                     torch::randn({4, 2}, options)});
  }
  const auto leaf = [&](const Tensor& tensor) { return tensor.to(dtype).requires_grad_(); };
  lr = leaf(torch::tensor(optimizer.make(model->parameters()).groups()[0].value("lr").number(), options));
  example_weights = leaf(torch::rand({4}, options) + 0.5);
  loss_network = {leaf(torch::randn({4, 3}, options)), leaf(torch::randn({3}, options))};

  model->to(dtype);
  for (auto& task : tasks) {
    for (auto* tensor : {&task.x, &task.y, &task.x_query, &task.y_query}) *tensor = tensor->to(dtype);
  }
}

Bilevel StrategyProblem::bilevel(int64_t steps) const {
  const auto predict = [forward = network_.forward, model = model](const Tensor& x) { return forward(*model, x); };
  return Bilevel(*model, optimizer_.make(model->parameters()).set("lr", lr))
      .steps(steps)
      .inner([=, weights = example_weights, network = loss_network](const Examples& task, int64_t step) {
        const auto prediction = predict(task.x.roll(step, 0));
        const auto target = task.y.roll(step, 0);
        const auto learned = torch::tanh(torch::cat({prediction, target}, 1).matmul(network[0])).matmul(network[1]);
        return ((prediction - target).pow(2).sum(1) * weights + 0.3 * learned).mean();
      })
      .outer([=](const Examples& task) { return (predict(task.x_query) - task.y_query).pow(2).mean(); })
      .seed(3);
}

TensorList StrategyProblem::meta_parameters() const {
  auto list = model->parameters();
  list.insert(list.end(), loss_network.begin(), loss_network.end());
  list.insert(list.end(), {lr, example_weights});
  return list;
}

double relative_difference(const TensorList& a, const TensorList& b) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i].defined() != b[i].defined()) return std::numeric_limits<double>::infinity();
    if (!a[i].defined()) continue;
    difference += (a[i] - b[i]).to(torch::kDouble).square().sum().item<double>();
    size += b[i].to(torch::kDouble).square().sum().item<double>();
  }
  return difference == 0 ? 0 : std::sqrt(difference / size);
}

}  // namespace gimli
