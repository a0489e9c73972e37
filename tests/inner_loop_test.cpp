#include "gimli/inner_loop.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "expect.h"
#include "gimli/memory_meter.h"
#include "gimli/optim/rules/muon.h"
#include "gimli/optim/rules/rmsprop.h"
#include "gimli/optim/rules/sgd.h"

namespace gimli {
namespace {

namespace nn = torch::nn;
using torch::Tensor;

const auto f64 = torch::dtype(torch::kDouble);

/// A small net with batch norm (running statistics), a problem for it, and the means to train it by torch::optim.
class InnerLoopTest : public testing::Test {
 protected:
  InnerLoopTest() {
    torch::manual_seed(3);
    model = nn::Sequential(nn::Linear(4, 6), nn::BatchNorm1d(6), nn::Tanh(), nn::Linear(6, 1));
    model->to(torch::kDouble);
    x = torch::randn({8, 4}, f64);
    y = torch::randn({8, 1}, f64);
    x_query = torch::randn({8, 4}, f64);
    y_query = torch::randn({8, 1}, f64);
  }

  Tensor loss() const { return torch::mse_loss(model.ptr()->forward(x), y); }
  Tensor query_loss() const { return torch::mse_loss(model.ptr()->forward(x_query), y_query); }

  void step(InnerLoop& inner, int count) const {
    for (int k = 0; k < count; ++k) inner.step([&] { return loss(); });
  }

  nn::Sequential model;
  Tensor x, y, x_query, y_query;
};

TEST_F(InnerLoopTest, FollowsTorchOptimAndLeavesModelAndOptimizerAlone) {
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9).weight_decay(0.01));
  // A pre-stepped optimizer: its momentum is copied in.
  for (int k = 0; k < 2; ++k) {
    optimizer.zero_grad();
    loss().backward();
    optimizer.step();
  }
  optimizer.zero_grad();
  const auto parameters = clones(model->parameters()), buffers = clones(model->buffers());
  const auto key = model->parameters()[0].unsafeGetTensorImpl();
  const auto momentum = [&] {
    return static_cast<torch::optim::SGDParamState&>(*optimizer.state().at(key)).momentum_buffer();
  };
  const auto momentum_before = momentum().clone();

  InnerLoop inner(model, optimizer);
  step(inner, 3);

  expect_equal(model->parameters(), parameters);
  expect_equal(model->buffers(), buffers);
  EXPECT_TRUE(torch::equal(momentum(), momentum_before));
  for (const auto& p : model->parameters()) EXPECT_FALSE(p.grad().defined());

  for (int k = 0; k < 3; ++k) {
    optimizer.zero_grad();
    loss().backward();
    optimizer.step();
  }
  const auto expect_close = [](const TensorList& actual, const TensorList& expected) {
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_TRUE(torch::allclose(actual[i], expected[i], 1e-13, 1e-15)) << i;
    }
  };
  expect_close(inner.parameters(), model->parameters());
  expect_close(inner.state().buffers, model->buffers());
}

TEST_F(InnerLoopTest, OuterGradientIsThatOfTheHandWrittenLoop) {
  nn::Linear linear(3, 1);
  linear->to(torch::kDouble);
  const auto a = torch::randn({5, 3}, f64), b = torch::randn({5, 1}, f64);
  const auto lr = torch::tensor(0.2, f64.requires_grad(true));

  InnerLoop inner(linear, optim::Optimizer(optim::SGD(0.1), linear->parameters()).set("lr", lr));
  for (int k = 0; k < 4; ++k) inner.step([&] { return torch::mse_loss(linear(a), b); });
  inner.run([&] { return linear(a).pow(2).mean(); }).backward();

  Tensor w = linear->weight, c = linear->bias;
  for (int k = 0; k < 4; ++k) {
    const auto g =
        torch::autograd::grad({torch::mse_loss(torch::nn::functional::linear(a, w, c), b)}, {w, c}, {}, true, true);
    w = torch::addcmul(w, -lr, g[0]);
    c = torch::addcmul(c, -lr, g[1]);
  }
  const auto expected =
      torch::autograd::grad({torch::nn::functional::linear(a, w, c).pow(2).mean()}, {linear->weight, linear->bias, lr});
  EXPECT_TRUE(torch::equal(linear->weight.grad(), expected[0]));
  EXPECT_TRUE(torch::equal(linear->bias.grad(), expected[1]));
  EXPECT_TRUE(torch::equal(lr.grad(), expected[2]));
}

TEST_F(InnerLoopTest, CopiesBranch) {
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  InnerLoop trunk(model, optimizer);
  step(trunk, 2);
  auto branch = trunk;
  const auto at_fork = clones(trunk.parameters());
  const auto buffers_at_fork = clones(trunk.state().buffers);
  step(branch, 2);
  expect_equal(trunk.parameters(), at_fork);
  expect_equal(trunk.state().buffers, buffers_at_fork);
  EXPECT_EQ(trunk.state().step, 2);
  EXPECT_EQ(branch.state().step, 4);
  step(trunk, 2);
  expect_equal(trunk.parameters(), branch.parameters());
  // Both reach back through the shared past.
  const auto sum = trunk.run([&] { return query_loss(); }) + branch.run([&] { return query_loss(); });
  EXPECT_TRUE(torch::autograd::grad({sum}, {model->parameters()[0]})[0].abs().sum().item<double>() > 0);
}

TEST_F(InnerLoopTest, KeepsTheWeightsOfEveryStepOnRequest) {
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  InnerLoop inner(model, optimizer, InnerLoopOptions().history(true));
  std::vector<TensorList> seen{inner.parameters()};
  for (int k = 0; k < 3; ++k) {
    step(inner, 1);
    seen.push_back(inner.parameters());
  }
  for (int k = 0; k <= 3; ++k) expect_equal(inner.parameters(k), seen[k]);
  EXPECT_TRUE(inner.parameters(0)[0].is_same(model->parameters()[0]));
  expect_error([&] { inner.parameters(4); }, "expected a step from 0 to 3, got 4");
  expect_error([&] { InnerLoop(model, optimizer).parameters(0); }, "history(true)");
}

TEST_F(InnerLoopTest, CopiesWeightsBuffersAndStateBack) {
  // The large eps: the gradient of the bias before the batch norm is rounding noise, which Adam would make a step of.
  torch::optim::Adam optimizer(model->parameters(), torch::optim::AdamOptions(0.05).eps(1e-3));
  InnerLoop inner(model, optimizer);
  step(inner, 3);
  inner.copy_parameters_to(model);
  inner.copy_state_to(optimizer);
  expect_equal(model->parameters(), clones(inner.parameters()));
  expect_equal(model->buffers(), inner.state().buffers);

  // Going on in place is going on in the loop.
  auto on = InnerLoop(model, optimizer, InnerLoopOptions().graph(Graph::none));
  step(on, 2);
  for (int k = 0; k < 2; ++k) {
    optimizer.zero_grad();
    loss().backward();
    optimizer.step();
  }
  for (size_t i = 0; i < on.parameters().size(); ++i) {
    EXPECT_TRUE(torch::allclose(on.parameters()[i], model->parameters()[i], 1e-12, 1e-14));
  }
  expect_error([&] { inner.copy_parameters_to(nn::Linear(4, 6)); }, "other names");
}

TEST_F(InnerLoopTest, AdaptsASubsetAndLeavesFrozenAndUnusedParametersAlone) {
  auto head = model->ptr(3)->parameters();
  auto all = model->parameters();
  all[0].set_requires_grad(false);
  const auto unused = model->register_parameter("unused", torch::ones({2}, f64));

  torch::optim::SGD only_head({head[0], head[1], unused, all[0]}, torch::optim::SGDOptions(0.1).weight_decay(0.1));
  InnerLoop inner(model, only_head);
  step(inner, 2);
  const auto names = model->named_parameters();
  for (size_t i = 0; i < names.size(); ++i) {
    const bool adapted = names[i].key() == "3.weight" || names[i].key() == "3.bias";
    EXPECT_EQ(inner.parameters()[i].is_same(names[i].value()), !adapted) << names[i].key();
  }
  // Frozen ones can still be meta-learned: the gradient reaches the body, as in ANIL.
  const auto g = torch::autograd::grad({inner.run([&] { return query_loss(); })}, {names["0.bias"], names["3.weight"]});
  for (const auto& gradient : g) EXPECT_GT(gradient.abs().sum().item<double>(), 0);
}

TEST_F(InnerLoopTest, SeveralGroupsAndSeveralOptimizers) {
  const auto p = model->parameters();
  torch::optim::SGD groups(
      {torch::optim::OptimizerParamGroup({p[0], p[1]}, std::make_unique<torch::optim::SGDOptions>(0.3)),
       torch::optim::OptimizerParamGroup({p[2], p[3], p[4], p[5]})},
      torch::optim::SGDOptions(0.1));
  torch::optim::SGD body({p[0], p[1]}, 0.3), rest({p[2], p[3]}, 0.1);
  torch::optim::Adam head({p[4], p[5]}, 0.02);

  InnerLoop by_groups(model, groups), by_optimizers(model, {body, rest, head});
  step(by_groups, 1);
  step(by_optimizers, 1);
  const auto& a = by_groups.parameters();
  const auto& b = by_optimizers.parameters();
  for (int i : {0, 1, 2, 3}) EXPECT_TRUE(torch::equal(a[i], b[i])) << i;
  EXPECT_TRUE(torch::allclose((b[4] - p[4]).abs(), torch::full_like(p[4], 0.02), 1e-5));

  expect_error([&] { InnerLoop(model, {body, groups}); }, "parameter '0.weight' is there twice in the groups");
  nn::Linear stranger(2, 7);
  torch::optim::SGD other(stranger->parameters(), 0.1);
  expect_error([&] { InnerLoop(model, other); },
               "the optimizer's group 0 holds a parameter (number 0, shape [7, 2]) that the model does not have");
}

TEST_F(InnerLoopTest, HyperparametersPerGroupTensorElementAndStep) {
  const auto p = model->parameters();
  const optim::Optimizer sgd(optim::SGD(0.1), p);
  const auto one_step = [&](const optim::Hyperparameter& lr) {
    auto optimizer = sgd;
    InnerLoop inner(model, optimizer.set("lr", lr));
    step(inner, 1);
    return inner;
  };
  const auto plain = one_step(0.1);
  const auto scalar = torch::tensor(0.1, f64.requires_grad(true));
  TensorList per_tensor, per_element;
  for (const auto& tensor : p) {
    per_tensor.push_back(torch::tensor(0.1, f64.requires_grad(true)));
    per_element.push_back(torch::full_like(tensor.detach(), 0.1).requires_grad_());
  }
  const auto check = [&](InnerLoop inner, const TensorList& metas) {
    for (size_t i = 0; i < p.size(); ++i) {
      EXPECT_TRUE(torch::allclose(inner.parameters()[i], plain.parameters()[i], 1e-14, 1e-16));
    }
    return torch::autograd::grad({inner.run([&] { return query_loss(); })}, metas);
  };
  const auto by_group = check(one_step(scalar), {scalar});
  const auto by_tensor = check(one_step(per_tensor), per_tensor);
  const auto by_element = check(one_step(per_element), per_element);
  auto total = torch::zeros({}, f64), total_elements = torch::zeros({}, f64);
  for (size_t i = 0; i < p.size(); ++i) {
    total += by_tensor[i];
    total_elements += by_element[i].sum();
    EXPECT_TRUE(torch::allclose(by_element[i].sum(), by_tensor[i]));
  }
  EXPECT_TRUE(torch::allclose(by_group[0], total));

  const auto rates = torch::tensor({0.1, 0.2, 0.3}, f64.requires_grad(true));
  auto scheduled = sgd;
  scheduled.set("lr", [&](int64_t step) { return optim::Hyperparameter(rates[step]); });
  InnerLoop inner(model, scheduled);
  step(inner, 3);
  auto by_hand = InnerLoop(model, sgd);
  for (double rate : {0.1, 0.2, 0.3}) {
    const auto g = torch::autograd::grad({by_hand.run([&] { return loss(); })}, by_hand.parameters());
    auto state = by_hand.state();
    for (size_t i = 0; i < g.size(); ++i) state.parameters[i] = state.parameters[i] - rate * g[i];
    by_hand.set_state(state);
  }
  for (size_t i = 0; i < p.size(); ++i) {
    EXPECT_TRUE(torch::allclose(inner.parameters()[i], by_hand.parameters()[i], 1e-13, 1e-15));
  }
  const auto g = torch::autograd::grad({inner.run([&] { return query_loss(); })}, {rates})[0];
  EXPECT_TRUE((g != 0).all().item<bool>());
}

TEST_F(InnerLoopTest, FirstOrderTreatsInnerGradientsAsConstants) {
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  InnerLoop by_option(model, optimizer, InnerLoopOptions().graph(Graph::first_order));
  InnerLoop by_transform(model, optimizer, InnerLoopOptions().gradient_transforms({optim::stop_gradient()}));
  step(by_option, 3);
  step(by_transform, 3);
  const auto last = clones(by_option.parameters());
  const auto p = model->parameters();
  const auto a = torch::autograd::grad({by_option.run([&] { return query_loss(); })}, p);
  const auto b = torch::autograd::grad({by_transform.run([&] { return query_loss(); })}, p);
  // By definition: the outer gradient at the adapted weights.
  InnerLoop at_last(model, optimizer);
  auto state = by_option.state().detach();
  at_last.set_state(state);
  const auto c = torch::autograd::grad({at_last.run([&] { return query_loss(); })}, at_last.parameters());
  expect_equal(a, b);
  expect_equal(a, c);
}

TEST_F(InnerLoopTest, TransformsTheGradientsOfEachStep) {
  torch::optim::SGD optimizer(model->parameters(), 1.0);
  std::vector<int64_t> steps;
  const auto spy = [&](TensorList g, const TensorList&, int64_t step) {
    steps.push_back(step);
    return g;
  };
  InnerLoop inner(model, optimizer, InnerLoopOptions().gradient_transforms({spy, optim::clip_by_norm(0.01), spy}));
  step(inner, 2);
  EXPECT_EQ(steps, (std::vector<int64_t>{0, 0, 1, 1}));
  double squares = 0;
  const auto& p = model->parameters();
  InnerLoop once(model, optimizer, InnerLoopOptions().gradient_transforms({optim::clip_by_norm(0.01)}));
  step(once, 1);
  for (size_t i = 0; i < p.size(); ++i) squares += (once.parameters()[i] - p[i]).pow(2).sum().item<double>();
  EXPECT_NEAR(std::sqrt(squares), 0.01, 1e-5);
  expect_error(
      [&] {
        InnerLoop bad(model, optimizer,
                      InnerLoopOptions().gradient_transforms(
                          {[](TensorList, const TensorList&, int64_t) { return TensorList{}; }}));
        step(bad, 1);
      },
      "returned 0 tensors for 6 parameters");
}

TEST_F(InnerLoopTest, StopGradientCutsThePast) {
  torch::optim::SGD optimizer(model->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  const auto lr = torch::tensor(0.1, f64.requires_grad(true));
  InnerLoop cut(model, optim::Optimizer(optimizer).set("lr", lr)),
      whole(model, optim::Optimizer(optimizer).set("lr", lr));
  step(whole, 4);
  step(cut, 2);
  cut.stop_gradient();
  step(cut, 2);
  expect_equal(cut.parameters(), whole.parameters());
  const auto g = torch::autograd::grad({cut.run([&] { return query_loss(); })}, {lr, model->parameters()[0]}, {}, true,
                                       false, true);
  EXPECT_TRUE(g[0].defined());
  EXPECT_FALSE(g[1].defined());
}

TEST_F(InnerLoopTest, ANestedLoopStartsFromTheOuterLoopsWeights) {
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  InnerLoop outer(model, optimizer);
  step(outer, 2);
  const auto nested = [&] {
    InnerLoop inner(model, optimizer);
    step(inner, 2);
    return inner.parameters();
  };
  const auto inside = outer.run(nested);
  auto flat = outer;
  step(flat, 2);
  expect_equal(inside, flat.parameters());
}

TEST_F(InnerLoopTest, EvaluationKeepsNoGraphAndDoesNotGrow) {
  torch::optim::Adam optimizer(model->parameters(), 0.01);
  InnerLoop recorded(model, optimizer), evaluated(model, optimizer, InnerLoopOptions().graph(Graph::none));
  step(recorded, 3);
  step(evaluated, 3);
  expect_equal(evaluated.parameters(), recorded.parameters());
  for (const auto& p : evaluated.parameters()) EXPECT_EQ(p.grad_fn(), nullptr);
  EXPECT_FALSE(evaluated.step([&] { return loss(); }).requires_grad());

  const auto live_bytes_after = [&](Graph graph, int steps) {
    MemoryMeter meter;
    InnerLoop inner(model, optimizer, InnerLoopOptions().graph(graph));
    step(inner, steps);
    return std::pair(meter.live_bytes(), meter.peak_bytes());
  };
  const auto few = live_bytes_after(Graph::none, 3), many = live_bytes_after(Graph::none, 50);
  EXPECT_EQ(few, many);
  EXPECT_GT(few.first, 0);
  EXPECT_GT(live_bytes_after(Graph::full, 50).first, 10 * many.first);
  {
    MemoryMeter meter;
    { live_bytes_after(Graph::full, 5); }
    InnerLoop(model, optimizer);
    EXPECT_EQ(meter.live_bytes(), 0);
  }
}

TEST_F(InnerLoopTest, StatesKeepTheirBuffersAndTheirPast) {
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  InnerLoop inner(model, optimizer, InnerLoopOptions().history(true));
  step(inner, 1);
  const auto taken = inner.state();
  const auto buffers = clones(taken.buffers), parameters = clones(taken.parameters);
  step(inner, 2);
  const auto last = clones(inner.parameters());
  expect_equal(taken.buffers, buffers);

  auto other = inner;
  other.set_state(taken);
  step(other, 1);
  expect_equal(other.parameters(1), parameters);
  expect_equal(other.parameters(2), other.parameters());
  expect_error([&] { other.parameters(3); }, "expected a step from 0 to 2");
  step(other, 1);
  expect_equal(other.parameters(), last);
  expect_equal(other.state().buffers, inner.state().buffers);

  // A closure that throws leaves them as they were.
  EXPECT_THROW(inner.step([&]() -> Tensor {
    loss();
    throw std::runtime_error("from the closure");
  }),
               std::runtime_error);
  expect_equal(inner.state().buffers, other.state().buffers);
}

// What eval() saved of running statistics for its backward pass is not what later steps make of them.
TEST_F(InnerLoopTest, LaterStepsDoNotReachTheGradientOfAnEarlierLoss) {
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  const auto gradient = [&](int steps_after) {
    InnerLoop inner(model, optimizer);
    step(inner, 1);
    model->eval();
    const auto outer = inner.run([&] { return query_loss(); });
    model->train();
    step(inner, steps_after);
    return torch::autograd::grad({outer}, model->parameters());
  };
  expect_equal(gradient(0), gradient(2));
}

TEST_F(InnerLoopTest, AFailedUpdateChangesNothing) {
  auto rates = TensorList(6, torch::tensor(0.1, f64));
  rates[5] = torch::ones({7}, f64);
  InnerLoop inner(model, optim::Optimizer(optim::SGD(0.1), model->parameters()).set("lr", rates));
  expect_error([&] { step(inner, 1); }, "expands to the shape [1]");
  expect_equal(inner.parameters(), model->parameters());
  EXPECT_EQ(inner.state().step, 0);
}

// The second group's rule throws when the first has been updated.
TEST_F(InnerLoopTest, AFailedUpdateOfOneGroupChangesNone) {
  const auto parameters = model->parameters();
  optim::Optimizer matrices(optim::Muon(0.1), {parameters[0]});
  matrices.set("eps", torch::ones_like(parameters[0]));
  const optim::Optimizer both{optim::Optimizer(optim::SGD(0.1), TensorList(parameters.begin() + 1, parameters.end())),
                              matrices};
  for (const auto graph : {Graph::full, Graph::none}) {
    InnerLoop inner(model, both, InnerLoopOptions().graph(graph).history(true));
    for (int attempt = 0; attempt < 2; ++attempt) {
      expect_error([&] { step(inner, 1); }, "expected one value a tensor");
      expect_equal(inner.parameters(), model->parameters());
      expect_equal(inner.parameters(0), inner.parameters());
      EXPECT_EQ(inner.state().step, 0);
      EXPECT_EQ(inner.state().optimizer[1].step, 0);
    }
  }
}

TEST_F(InnerLoopTest, TakesOnlyStatesOfItsOwnKind) {
  const auto state_of = [&](const optim::Optimizer& optimizer) {
    InnerLoop inner(model, optimizer);
    step(inner, 1);
    return inner.state().detach();
  };
  const auto parameters = model->parameters();
  const auto sgd = state_of(optim::Optimizer(optim::SGD(0.1), parameters));
  InnerLoop other(model, optim::Optimizer(optim::RMSprop(0.1), parameters));
  expect_error([&] { other.set_state(sgd); }, "InnerLoop::set_state: the state was made by SGD, SGD,");
  const auto frozen = state_of(optim::Optimizer(optim::RMSprop(0.1), {parameters[0]}));
  expect_error([&] { other.set_state(frozen); }, "the state was made by RMSprop, ,");
  auto reshaped = state_of(optim::Optimizer(optim::RMSprop(0.1), parameters));
  reshaped.parameters[0] = torch::zeros({1}, f64);
  expect_error([&] { other.set_state(reshaped); }, "' as Double of shape [1], expected Double of shape [");
  auto early = state_of(optim::Optimizer(optim::RMSprop(0.1), parameters));
  early.step = -1;
  expect_error([&] { other.set_state(early); }, "expected a state of step 0 or later, got -1");
  EXPECT_EQ(other.state().step, 0);
}

TEST_F(InnerLoopTest, CopiesStateOnlyIntoItsOwnKindOfOptimizer) {
  torch::optim::SGD sgd(model->parameters(), torch::optim::SGDOptions(0.1).momentum(0.9));
  torch::optim::Adam adam(model->parameters(), 0.1);
  InnerLoop inner(model, sgd);
  step(inner, 1);
  expect_error([&] { inner.copy_state_to(adam); }, "was adapted by SGD, whose state cannot be copied into Adam");
  EXPECT_TRUE(adam.state().empty());
}

TEST_F(InnerLoopTest, BadLossesGetOneSentence) {
  torch::optim::SGD optimizer(model->parameters(), 0.1);
  InnerLoop inner(model, optimizer);
  const auto with = [&](Tensor loss) { return [&inner, loss] { inner.step([&] { return loss; }); }; };
  expect_error(with(torch::ones({2, 1}, f64)), "must be a scalar of floating point, got Double of shape [2, 1]");
  expect_error(with(torch::tensor(1)), "got Long of shape []");
  expect_error(with(Tensor()), "got an undefined tensor");
  expect_error(with(torch::tensor(NAN, f64)), "the loss of step 0 is nan");
  expect_error(with(torch::tensor(1., f64)), "does not depend on the model's parameters");
  expect_error(with(torch::tensor(1., f64.requires_grad(true)) * 2), "does not depend on the model's parameters");
  expect_error([&] { InnerLoop(model, optim::Optimizer(optim::SGD(0.1), {})).step([&] { return loss(); }); },
               "every parameter of the model is frozen");
  EXPECT_EQ(inner.state().step, 0);
  expect_equal(inner.parameters(), model->parameters());
}

// The step 0 is where a fast weight and the parameter are one; what escapes is found from step 1 on.
TEST_F(InnerLoopTest, AnEscapeIsFoundInTheOuterLossToo) {
  struct Identity : torch::autograd::Function<Identity> {
    static Tensor forward(torch::autograd::AutogradContext*, const Tensor& t) { return t.clone(); }
    static torch::autograd::tensor_list backward(torch::autograd::AutogradContext*, torch::autograd::tensor_list g) {
      return g;
    }
  };
  nn::Linear m(3, 1);
  torch::optim::SGD optimizer(m->parameters(), 0.1);
  InnerLoop inner(m, optimizer);
  const auto a = torch::randn({4, 3});
  inner.step([&] { return torch::linear(a, Identity::apply(m->weight), m->bias).pow(2).sum(); });
  expect_error([&] { inner.run([&] { return torch::linear(a, Identity::apply(m->weight), m->bias); }); },
               "was applied to parameter 'weight' itself");
  EXPECT_NO_THROW(inner.run([&] { return torch::linear(a, Identity::apply(resolve(m->weight)), m->bias); }));
}

}  // namespace
}  // namespace gimli
