#include <gtest/gtest.h>

#include "expect.h"
#include "problem_table.h"

namespace gimli {
namespace {

namespace nn = torch::nn;
namespace F = torch::nn::functional;
using at::Tensor;

const auto f64 = torch::dtype(torch::kDouble);

void expect_same(const Result& result, const Result& expected, double bound, const std::string& name) {
  EXPECT_LE(relative_error({result.outer_losses}, {expected.outer_losses}), bound) << name;
  EXPECT_LE(relative_error(result.gradients, expected.gradients), bound) << name;
  EXPECT_LE(relative_error(result.auxiliary, expected.auxiliary), bound) << name;
  ASSERT_EQ(result.final_states.size(), expected.final_states.size()) << name;
  for (size_t t = 0; t < result.final_states.size(); ++t) {
    const auto &last = result.final_states[t], &expected_last = expected.final_states[t];
    EXPECT_EQ(last.step, expected_last.step) << name;
    EXPECT_LE(relative_error(last.parameters, expected_last.parameters), bound) << name;
    EXPECT_LE(relative_error(last.buffers, expected_last.buffers), bound) << name;
    TensorList slots, expected_slots;  // as one vector: the bias before a batch norm has a gradient of rounding alone
    for (size_t i = 0; i < last.optimizer.size(); ++i) {
      const auto &own = last.optimizer[i], &expected_own = expected_last.optimizer[i];
      EXPECT_EQ(own.step, expected_own.step) << name;
      slots.insert(slots.end(), own.slots.begin(), own.slots.end());
      expected_slots.insert(expected_slots.end(), expected_own.slots.begin(), expected_own.slots.end());
    }
    EXPECT_LE(relative_error(slots, expected_slots), bound) << name;
  }
  EXPECT_EQ(result.cost.inner_steps, expected.cost.inner_steps) << name;
  EXPECT_EQ(result.cost.gradient_evaluations, expected.cost.gradient_evaluations) << name;
  EXPECT_EQ(result.cost.outer_evaluations, expected.cost.outer_evaluations) << name;
  EXPECT_EQ(result.cost.states_stored, expected.cost.states_stored) << name;
}

// ---------------------------------------------------------------- networks x optimizers x strategies

class VmapTest : public testing::TestWithParam<Pairing> {};

INSTANTIATE_TEST_SUITE_P(Table, VmapTest, testing::ValuesIn(pairings()),
                         [](const auto& info) { return info.param.name(); });

TEST_P(VmapTest, AgreesWithTasksOneByOne) {
  const auto learner = GetParam().learner();
  const auto tasks = learner.tasks(3);
  const auto problem = learner.problem(GetParam().optimizer.make(learner.module->parameters()));
  const double bound = GetParam().dtype == at::kDouble ? 1e-10 : 1e-5;
  const auto metas = learner.all_meta_parameters();
  if (GetParam().optimizer.name == "LBFGS") {
    expect_error([&] { hypergradient(problem, metas, tasks, Unroll(), Vmap()); }, "aten::item looks at a value");
    return;
  }
  const auto expect_of = [&](const Strategy& strategy, const TensorList& asked, std::vector<int64_t> outer_steps) {
    const auto bilevel = Bilevel(problem).outer_at(std::move(outer_steps)).keep_final_states(true);
    const auto expected = hypergradient(bilevel, asked, tasks, strategy);
    expect_same(hypergradient(bilevel, asked, tasks, strategy, Vmap()), expected, bound, strategy.name());
  };
  expect_of(Unroll(), metas, {4});
  expect_of(Replay(), metas, {0, 2, 4});
  if (GetParam().dtype == at::kDouble) {
    expect_of(Unroll(), metas, {0, 2, 4});
    expect_of(Unroll::first_order(), learner.module->parameters(), {4});
    expect_of(Unroll::last(2), learner.hyperparameters(), {4});
    expect_of(Replay(Binomial(1)), metas, {4});
    expect_of(Replay(Sqrt()).keep_gradients(true), metas, {4});
    expect_of(ForwardMode(), {learner.lr, learner.weights}, {2, 4});
  }
  if (GetParam().optimizer.name == "SGD_momentum") expect_of(Reversible(), metas, {4});
  expect_same(evaluate(problem, tasks, Vmap()), evaluate(problem, tasks), bound, "evaluate");
}

TEST(Vmap, serves_all_that_a_problem_can_ask_for) {
  for (const auto& [name, problem, metas, tasks] : problem_table()) {
    for (const auto& strategy : std::initializer_list<std::shared_ptr<const Strategy>>{
             std::make_shared<Unroll>(), std::make_shared<Replay>(Binomial(2))}) {
      const auto bilevel = Bilevel(problem).keep_final_states(true);
      if (name == "clipped and noisy gradients") {  // alone, a task has the gradient of a weight as a transposed one
        expect_error([&] { hypergradient(bilevel, metas, tasks, *strategy, Vmap()); }, "memory of another layout");
        continue;
      }
      SCOPED_TRACE(name);
      const auto expected = hypergradient(bilevel, metas, tasks, *strategy);
      EXPECT_NO_THROW(
          expect_same(hypergradient(bilevel, metas, tasks, *strategy, Vmap()), expected, 1e-10, strategy->name()));
    }
  }
}

TEST(Vmap, takes_norms_and_moments_for_each_task) {
  torch::manual_seed(11);
  const auto learner = mlp_learner();
  const auto parameters = learner.module->parameters();
  const auto tasks = learner.tasks(3);
  using namespace optim;
  const LSTMOptimizer lstm;
  const MLPOptimizer mlp;
  lstm.network()->to(torch::kDouble);
  mlp.network()->to(torch::kDouble);
  const std::vector<std::pair<std::string, Optimizer>> optimizers{
      {"Adadelta", {Adadelta(), parameters}},
      {"Adafactor", {Adafactor(), parameters}},
      {"Adamax", {Adamax(), parameters}},
      {"ASGD", {ASGD(), parameters}},
      {"LAMB", {LAMB(), parameters}},
      {"Lion", {Lion(), parameters}},
      {"Muon", {{Muon(), {parameters[0], parameters[2]}}, {SGD(0.1), {parameters[1], parameters[3]}}}},
      {"NAdam", {NAdam(), parameters}},
      {"RAdam", {RAdam(), parameters}},
      {"Rprop", {Rprop(), parameters}},
      {"Yogi", {Yogi(), parameters}},
      {"LSTMOptimizer", {lstm, parameters}},
      {"MLPOptimizer", {mlp, parameters}},
  };
  for (const auto& [name, optimizer] : optimizers) {
    const auto problem = learner.problem(optimizer)
                             .gradient_transform(adaptive_clip(0.1))
                             .gradient_transform(clip_by_norm(0.05))
                             .keep_final_states(true);
    const auto expected = hypergradient(problem, learner.meta_parameters(), tasks);
    expect_same(hypergradient(problem, learner.meta_parameters(), tasks, Unroll(), Vmap()), expected, 1e-10, name);
  }
}

// ---------------------------------------------------------------- operators

/// A regression on x [6, 4, 8, 8], whose model is a small network and then what a row adds.
struct Operation {
  std::string name;
  std::function<Tensor(const Tensor&)> apply;    ///< [6, 4, 8, 8] to anything
  std::shared_ptr<nn::Module> module = nullptr;  ///< whose parameters are adapted as well
  std::string refusal = {};
};

template <class Module>
Operation of(const std::string& name, Module module, std::string refusal = {}) {
  return {name, [module](const Tensor& x) mutable { return module(x); }, module.ptr(), std::move(refusal)};
}

std::vector<Operation> operations() {
  const auto labels = [](const Tensor& x) { return x.select(1, 0).select(1, 0).gt(0).to(at::kLong); };  // [6, 8]
  const auto logits = [](const Tensor& x) { return x.mean({2, 3}); };                                   // [6, 4]
  const auto classes = [labels](const Tensor& x) { return labels(x).sum(1).remainder(4); };             // [6]
  std::vector<Operation> list;  // one by one: GCC is slow with as many temporaries in one expression
  const auto add = [&](Operation operation) { list.push_back(std::move(operation)); };
  add(of("convolution", nn::Conv2d(nn::Conv2dOptions(4, 3, 3).padding(1).stride(2))));
  add(of("convolution in groups", nn::Conv2d(nn::Conv2dOptions(4, 6, 3).groups(2).bias(false))));
  add(of("convolution of many products", nn::Conv2d(nn::Conv2dOptions(4, 96, 3).padding(1))));
  const nn::Conv1d sequences(nn::Conv1dOptions(4, 3, 3));
  add({"convolution of sequences", [=](const Tensor& x) { return sequences.ptr()->forward(x.flatten(2)); },
       sequences.ptr()});
  add(of("dilated convolution", nn::Conv2d(nn::Conv2dOptions(4, 2, 3).dilation(2))));
  add(of("transposed convolution", nn::ConvTranspose2d(nn::ConvTranspose2dOptions(4, 2, 3).stride(2))));
  add(of("batch norm", nn::BatchNorm2d(4)));
  add(of("batch norm without running statistics",
         nn::BatchNorm2d(nn::BatchNorm2dOptions(4).track_running_stats(false))));
  add(of("batch norm without weights", nn::BatchNorm2d(nn::BatchNorm2dOptions(4).affine(false))));
  add(of("batch norm with cumulative averages", nn::BatchNorm2d(nn::BatchNorm2dOptions(4).momentum(std::nullopt))));
  add(of("layer norm", nn::LayerNorm(nn::LayerNormOptions({8, 8}))));
  add(of("group norm", nn::GroupNorm(nn::GroupNormOptions(2, 4))));
  add(of("instance norm", nn::InstanceNorm2d(nn::InstanceNorm2dOptions(4).affine(true))));
  add(of("prelu", nn::PReLU(nn::PReLUOptions().num_parameters(4))));
  add(of("linear map of the last dimension", nn::Linear(8, 3)));
  add({"dropout", [](const Tensor& x) { return torch::dropout(x, 0.3, true); }});
  add({"dropout of channels", [](const Tensor& x) { return torch::feature_dropout(x, 0.3, true); }});
  add({"alpha dropout", [](const Tensor& x) { return torch::alpha_dropout(x, 0.3, true); }});
  add({"noise", [](const Tensor& x) { return x + torch::randn_like(x) + torch::randn({8}, x.options()); }});
  add({"noise in place", [](const Tensor& x) { return x + torch::empty_like(x).uniform_(); }});
  add({"noise in place of a shared tensor",
       [](const Tensor& x) { return x + torch::empty({8}, x.options()).uniform_(); }, nullptr,
       "draws into a tensor that all tasks share"});
  add({"a permutation", [](const Tensor& x) { return x.index_select(0, torch::randperm(6)); }});
  add({"softplus", [](const Tensor& x) { return F::softplus(x); }});
  add({"gelu", [](const Tensor& x) { return F::gelu(x); }});
  add({"silu", [](const Tensor& x) { return F::silu(x); }});
  add({"elu", [](const Tensor& x) { return F::elu(x); }});
  add({"relu", [](const Tensor& x) { return F::relu(x); }});
  add({"leaky relu", [](const Tensor& x) { return F::leaky_relu(x); }});
  add({"maximum pooling", [](const Tensor& x) { return torch::max_pool2d(x, 2); }});
  add({"average pooling", [](const Tensor& x) { return torch::avg_pool2d(x, 3, 2, 1); }});
  add({"adaptive pooling", [](const Tensor& x) { return torch::adaptive_avg_pool2d(x, {2, 2}); }});
  add({"interpolation", [](const Tensor& x) {
         return F::interpolate(
             x, F::InterpolateFuncOptions().scale_factor(std::vector<double>{2, 2}).mode(torch::kNearest));
       }});
  add({"padding", [](const Tensor& x) { return F::pad(x, F::PadFuncOptions({1, 1, 1, 1}).mode(torch::kReflect)); }});
  add({"softmax", [](const Tensor& x) { return x.softmax(1) * x.log_softmax(3); }});
  add({"cross entropy", [=](const Tensor& x) { return F::cross_entropy(logits(x), classes(x)); }});
  add({"cross entropy with weights and an ignored class", [=](const Tensor& x) {
         return F::cross_entropy(
             logits(x), classes(x),
             F::CrossEntropyFuncOptions().weight(torch::linspace(0.5, 2, 4, x.options())).ignore_index(1));
       }});
  add({"smoothed cross entropy", [=](const Tensor& x) {
         return F::cross_entropy(logits(x), classes(x), F::CrossEntropyFuncOptions().label_smoothing(0.1));
       }});
  add({"cross entropy of pixels", [=](const Tensor& x) {
         return F::cross_entropy(x.mean(3, true), labels(x).unsqueeze(2),
                                 F::CrossEntropyFuncOptions().reduction(torch::kSum));
       }});
  add({"cross entropy of one sample", [=](const Tensor& x) { return F::cross_entropy(logits(x)[0], classes(x)[0]); }});
  add({"cross entropy with probabilities",
       [=](const Tensor& x) { return F::cross_entropy(logits(x), logits(x).softmax(1).detach()); }});
  add({"binary cross entropy",
       [](const Tensor& x) { return F::binary_cross_entropy_with_logits(x, x.detach().sigmoid().roll(1, 0)); }});
  add({"squared error", [](const Tensor& x) { return F::mse_loss(x, x.detach().roll(1, 0)); }});
  add({"Huber's loss", [](const Tensor& x) { return F::huber_loss(x, x.detach().roll(1, 0)); }});
  add({"divergence", [=](const Tensor& x) {
         return at::kl_div(logits(x).log_softmax(1), logits(x).softmax(1).detach(), at::Reduction::Sum);
       }});
  add({"einsum", [](const Tensor& x) { return torch::einsum("nchw,ncvw->nhv", {x, x}); }});
  add({"an integer index", [=](const Tensor& x) {
         return x.flatten(2).index({torch::indexing::Slice(), classes(x)});
       }});
  add({"assignment to a part", [](const Tensor& x) {
         auto copy = x.clone();
         copy.select(1, 0).mul_(2);
         return copy;
       }});
  add({"sorting", [=](const Tensor& x) { return std::get<0>(logits(x).sort(1)) * std::get<0>(x.topk(2, 3)).sum(); }});
  add({"cumulative sums", [](const Tensor& x) { return x.cumsum(3).logsumexp(2); }});
  add({"normal equations", [=](const Tensor& x) {
         const auto a = logits(x);
         return at::linalg_solve(a.t().matmul(a) + torch::eye(4, a.options()), a.t().matmul(a.sum(1, true)));
       }});
  add({"one-hot labels", [=](const Tensor& x) { return logits(x) * torch::one_hot(classes(x), 4); }});
  add({"item", [](const Tensor& x) { return x * x.sum().item<double>(); }, nullptr, "looks at a value"});
  add({"a branch", [](const Tensor& x) { return (x[0].sum() > 0).item<bool>() ? x : -x; }, nullptr,
       "looks at a value"});
  add({"a branch that all tasks take", [](const Tensor& x) { return (x.square().sum() > 0).item<bool>() ? x : -x; }});
  add({"a boolean index", [](const Tensor& x) { return x.index({x > 0}); }, nullptr, "dynamic shape"});
  add({"places", [](const Tensor& x) { return x.flatten().index_select(0, (x.flatten() > 0).nonzero().flatten()); },
       nullptr, "dynamic shape"});
  add({"an operator without batching rule", [=](const Tensor& x) { return x * torch::bincount(classes(x)).sum(); },
       nullptr, "Vmap: aten::bincount has no batching rule"});
  return list;
}

struct Holder final : nn::Module {
  Holder(const std::shared_ptr<nn::Module>& first, const std::shared_ptr<nn::Module>& second) {
    register_module("first", first);
    if (second) register_module("second", second);
  }
};

TEST(Vmap, computes_or_refuses_each_operator) {
  for (const auto& operation : operations()) {
    const auto& [name, apply, module, refusal] = operation;
    torch::manual_seed(11);
    const nn::Conv2d first(nn::Conv2dOptions(1, 4, 1));
    const auto model = std::make_shared<Holder>(first.ptr(), module);
    model->to(torch::kDouble);
    const auto problem =
        Bilevel(*model, optim::Optimizer(optim::SGD(0.01), model->parameters()))
            .steps(2)
            .seed(5)
            .inputs([](const Classification& task) {
              return TensorList{task.x, task.x_query};
            })
            .inner([&](const Classification& task) { return apply(first.ptr()->forward(task.x)).pow(2).mean(); })
            .outer([&](const Classification& task) {
              const auto y = apply(first.ptr()->forward(task.x_query));
              return OuterValue(y.sin().mean(), y);
            })
            .keep_final_states(true);
    std::vector<Classification> tasks;
    for (int i = 0; i < 3; ++i)
      tasks.push_back({torch::randn({6, 1, 8, 8}, f64), {}, torch::randn({6, 1, 8, 8}, f64), {}});
    const auto run = [&](const TaskBatch& batch) {
      return hypergradient(problem, model->parameters(), tasks, Unroll(), batch);
    };
    if (!refusal.empty()) {
      const auto message = message_of([&] { run(Vmap()); });
      EXPECT_NE(message.find(refusal), std::string::npos) << name << ": " << message;
      continue;
    }
    try {
      expect_same(run(Vmap()), run(Sequential()), 1e-10, name);
    } catch (const std::exception& error) {
      ADD_FAILURE() << name << ": " << std::string(error.what()).substr(0, 300);
    }
  }
}

}  // namespace
}  // namespace gimli
