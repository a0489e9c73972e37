#include <gtest/gtest.h>
#include <torch/torch.h>

#include "expect.h"
#include "gimli/gradcheck.h"
#include "gimli/optim/fused/kernels.h"
#include "gimli/optim/rules/adam.h"
#include "gimli/optim/rules/sgd.h"
#include "gimli/processor.h"

// update_all of the optimizers that have a form of their own for it, against UpdateRule::update_all, which is `update`
// for each tensor.

namespace {

using gimli::expect_error;
using gimli::TensorList;
using namespace gimli::optim;

struct Row {
  std::string title;
  std::shared_ptr<const UpdateRule> rule;
};

template <class Rule, class Options>
Row row(const std::string& title, Options options) {
  return {title, std::make_shared<Rule>(options)};
}

const std::vector<Row> rows = {
    row<SGD>("SGD", SGDOptions(0.3)),
    row<SGD>("SGD, decay", SGDOptions(0.3).weight_decay(0.2)),
    row<SGD>("SGD, maximize, decay", SGDOptions(0.3).weight_decay(0.2).maximize(true)),
    row<SGD>("SGD, momentum", SGDOptions(0.3).momentum(0.8)),
    row<SGD>("SGD, momentum, dampening, decay", SGDOptions(0.3).momentum(0.8).dampening(0.3).weight_decay(0.2)),
    row<SGD>("SGD, nesterov, maximize", SGDOptions(0.3).momentum(0.8).nesterov(true).maximize(true)),
    row<SGD>("SGD, nesterov, decay", SGDOptions(0.3).momentum(0.8).nesterov(true).weight_decay(0.2)),
    row<Adam>("Adam", AdamOptions(0.3)),
    row<Adam>("Adam, decay, maximize", AdamOptions(0.3).betas({0.4, 0.6}).weight_decay(0.2).maximize(true)),
    row<Adam>("Adam, amsgrad", AdamOptions(0.3).betas({0.8, 0.3}).eps(0.1).amsgrad(true)),
    row<AdamW>("AdamW", AdamOptions(0.3).betas({0.7, 0.9}).weight_decay(0.2)),
    row<AdamW>("AdamW, no decay", AdamOptions(0.3)),
    row<AdamW>("AdamW, amsgrad, maximize", AdamOptions(0.3).weight_decay(0.2).eps(0.1).amsgrad(true).maximize(true)),
};

const auto f64 = at::TensorOptions(at::kDouble);

enum class Layout { dense, transposed, channels_last, mixed };

/// A tensor whose memory has the layout; `salt` tells which of a mixture.
at::Tensor laid_out(const at::Tensor& tensor, Layout layout, size_t salt) {
  if (layout == Layout::mixed) layout = static_cast<Layout>(salt % 3);
  if (tensor.dim() < 2 || layout == Layout::dense) return tensor;
  if (layout == Layout::transposed) return tensor.transpose(0, 1).contiguous().transpose(0, 1);
  return tensor.dim() == 4 ? tensor.contiguous(at::MemoryFormat::ChannelsLast) : tensor;
}

/// Everything that goes into updates of a group: the parameters, then their slots, then one gradient a step and tensor,
/// then the hyperparameters where they are tensors.
struct Inputs {
  TensorList parameters, slots, gradients, hyperparameters;

  std::vector<TensorList*> lists() { return {&parameters, &slots, &gradients, &hyperparameters}; }
};

struct Setting {
  Row row;
  std::vector<std::vector<int64_t>> sizes = {{7}, {3, 5}, {2, 3, 2, 2}, {}, {0}};
  at::ScalarType dtype = at::kDouble;
  Layout layout = Layout::dense;
  bool state = true;        ///< begin with a state, of a different step for each tensor
  bool tensors = true;      ///< hyperparameters are tensors
  bool per_tensor = false;  ///< a different one for each
  int64_t steps = 2;

  Inputs inputs() const {
    torch::manual_seed(7);
    Inputs in;
    const auto fresh = [&](const std::vector<int64_t>& size) {
      const auto x = at::randn(size, f64);
      return x + 0.3 * x.sign();
    };
    size_t salt = 0;
    for (const auto& size : sizes) in.parameters.push_back(laid_out(fresh(size), layout, salt++));
    for (const auto& size : sizes) {
      const auto count = row.rule->init(at::zeros(size, f64)).slots.size();
      for (size_t k = 0; state && k < count; ++k) in.slots.push_back(laid_out(fresh(size).abs(), layout, salt++));
    }
    for (int64_t t = 0; t < steps; ++t) {
      for (const auto& size : sizes) in.gradients.push_back(laid_out(fresh(size), layout, salt++));
    }
    for (auto* list : in.lists()) {
      for (auto& tensor : *list) tensor = tensor.to(dtype);
    }
    for (const auto& spec : row.rule->hyperparameters()) {
      for (size_t i = 0; tensors && i < (per_tensor ? sizes.size() : 1); ++i) {
        in.hyperparameters.push_back(at::scalar_tensor(spec.value * (1 - 0.01 * static_cast<double>(i)), f64));
      }
    }
    return in;
  }

  using UpdateAll = void (*)(const UpdateRule&, std::vector<Iterate>&, const TensorList&, const std::vector<Values>&);

  std::vector<Iterate> run(const Inputs& in, UpdateAll update_all) const {
    std::vector<Iterate> iterates;
    auto slot = in.slots.begin();
    for (size_t i = 0; i < sizes.size(); ++i) {
      auto initial = row.rule->init(in.parameters[i].detach());
      if (state) {
        initial.step = static_cast<int64_t>(1 + i / 2);
        for (auto& each : initial.slots) each = *slot++;
      }
      iterates.push_back({in.parameters[i], std::move(initial)});
    }
    std::vector<Values> values(sizes.size());
    const auto specs = row.rule->hyperparameters();
    for (size_t i = 0; i < sizes.size(); ++i) {
      for (size_t h = 0; h < specs.size(); ++h) {
        values[i].push_back(!tensors ? Value(specs[h].value)
                                     : in.hyperparameters[per_tensor ? h * sizes.size() + i : h]);
      }
    }
    for (int64_t t = 0; t < steps; ++t) {
      TensorList gradients;
      for (size_t i = 0; i < sizes.size(); ++i) {
        const bool unused = t == 1 && i == 2;
        gradients.push_back(unused ? at::Tensor() : in.gradients[t * sizes.size() + i]);
      }
      update_all(*row.rule, iterates, gradients, values);
    }
    return iterates;
  }
};

void fused(const UpdateRule& rule, std::vector<Iterate>& iterates, const TensorList& gradients,
           const std::vector<Values>& values) {
  rule.update_all(iterates, gradients, values);
}

void plain(const UpdateRule& rule, std::vector<Iterate>& iterates, const TensorList& gradients,
           const std::vector<Values>& values) {
  rule.UpdateRule::update_all(iterates, gradients, values);
}

TensorList outputs_of(const std::vector<Iterate>& iterates) {
  TensorList result;
  for (const auto& [parameter, state] : iterates) {
    result.push_back(parameter);
    result.insert(result.end(), state.slots.begin(), state.slots.end());
  }
  return result;
}

void expect_near(const TensorList& actual, const TensorList& expected, double relative) {
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(actual[i].defined(), expected[i].defined()) << "tensor " << i;
    if (!actual[i].defined() || actual[i].numel() == 0) continue;
    ASSERT_EQ(actual[i].sizes(), expected[i].sizes()) << "tensor " << i;
    ASSERT_EQ(actual[i].scalar_type(), expected[i].scalar_type()) << "tensor " << i;
    const auto error = (actual[i] - expected[i]).detach().abs().max().item<double>();
    EXPECT_LE(error, relative * expected[i].detach().abs().max().item<double>()) << "tensor " << i;
  }
}

std::vector<Setting> settings() {
  std::vector<Setting> result;
  for (const auto& row : rows) {
    for (const auto layout : {Layout::dense, Layout::transposed, Layout::channels_last, Layout::mixed}) {
      result.push_back({.row = row, .layout = layout});
    }
    result.push_back({.row = row, .state = false});
    result.push_back({.row = row, .tensors = false});
    result.push_back({.row = row, .state = false, .tensors = false});
    result.push_back({.row = row, .per_tensor = true});
  }
  return result;
}

std::string title(const Setting& setting) {
  return c10::str(setting.row.title, setting.state ? ", state" : "", setting.tensors ? ", tensors" : "",
                  setting.per_tensor ? " per tensor" : "", ", layout ", static_cast<int>(setting.layout));
}

// ---------------------------------------------------------------- values

TEST(Fused, values_agree_with_operators) {
  for (auto setting : settings()) {
    SCOPED_TRACE(title(setting));
    setting.sizes[3] = {3, 23459};  // operators make a 0-dimensional float tensor a double one
    for (const auto dtype : {at::kDouble, at::kFloat}) {
      setting.dtype = dtype;
      const auto in = setting.inputs();
      const auto actual = setting.run(in, fused), expected = setting.run(in, plain);
      expect_near(outputs_of(actual), outputs_of(expected), dtype == at::kDouble ? 1e-15 : 1e-6);
      for (size_t i = 0; i < actual.size(); ++i) {
        EXPECT_EQ(actual[i].state.step, expected[i].state.step);
        EXPECT_EQ(actual[i].parameter.strides(), in.parameters[i].strides());
        EXPECT_FALSE(actual[i].parameter.requires_grad());
      }
    }
  }
}

TEST(Fused, plain_descent_is_bitwise_that_of_add) {
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    Setting setting{.row = rows[0], .sizes = {{1}, {7}, {64}, {1001}, {40001}}, .dtype = dtype, .tensors = false};
    const auto in = setting.inputs();
    gimli::expect_equal(outputs_of(setting.run(in, fused)), outputs_of(setting.run(in, plain)));
  }
}

TEST(Fused, nan_and_infinity_go_through) {
  const auto nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();
  for (const auto& row : rows) {
    SCOPED_TRACE(row.title);
    for (const bool tensors : {false, true}) {
      Setting setting{.row = row, .sizes = {{9}}, .tensors = tensors};
      auto in = setting.inputs();
      in.parameters[0][0] = nan;
      in.parameters[0][1] = infinity;
      in.gradients[0][2] = nan;
      in.gradients[0][3] = infinity;
      for (size_t k = 0; k < in.slots.size(); ++k) in.slots[k][4 + k] = nan;
      const auto actual = outputs_of(setting.run(in, fused)), expected = outputs_of(setting.run(in, plain));
      for (size_t i = 0; i < actual.size(); ++i) {
        EXPECT_TRUE(at::allclose(actual[i], expected[i], 1e-14, 0, /*equal_nan=*/true)) << actual[i] << "\nexpected\n"
                                                                                        << expected[i];
      }
    }
  }
}

template <int bytes, class Formula>
std::vector<float> by_width(const Formula& formula, gimli::optim::fused::Order order, std::vector<float> inputs) {
  constexpr int64_t n = 1003;
  gimli::optim::fused::Pass<Formula> pass;
  pass.formula = formula;
  pass.c.fill(0.3);
  pass.direction.fill(0.7);
  std::vector<float> outputs(pass.out.size() * n);
  for (size_t k = 0; k < pass.in.size(); ++k) pass.in[k] = inputs.data() + k * n;
  for (size_t k = 0; k < pass.out.size(); ++k) pass.out[k] = outputs.data() + k * n;
  std::array<double, Formula::coefficients> sums{};
  const bool summed = order != gimli::optim::fused::Order::value;
  gimli::optim::fused::kernel_of_width<bytes, Formula>(order, false, summed)(pass, 0, n, sums.data());
  outputs.insert(outputs.end(), sums.begin(), sums.end());
  return outputs;
}

template <class Formula>
void expect_widths_agree(const Formula& formula) {
  namespace fused = gimli::optim::fused;
  torch::manual_seed(3);
  const auto numbers = at::rand({20 * 1003}) + 0.1;
  const std::vector<float> inputs(numbers.const_data_ptr<float>(), numbers.const_data_ptr<float>() + numbers.numel());
  for (const auto order : {fused::Order::value, fused::Order::first, fused::Order::second}) {
    const auto tensor = [](const std::vector<float>& list) { return torch::tensor(list).to(at::kDouble); };
    const auto expected = tensor(by_width<16>(formula, order, inputs));
    const auto near = [&](const at::Tensor& actual) { return at::allclose(actual, expected, 1e-4, 1e-4); };
    EXPECT_TRUE(gimli::register_bytes() < 32 || near(tensor(by_width<32>(formula, order, inputs))));
    EXPECT_TRUE(gimli::register_bytes() < 64 || near(tensor(by_width<64>(formula, order, inputs))));
  }
}

TEST(Fused, registers_of_every_width_agree) {
  expect_widths_agree(gimli::optim::fused::SgdFormula{true, true, true, false});
  expect_widths_agree(gimli::optim::fused::AdamFormula{true, true, false, true});
  expect_widths_agree(gimli::optim::fused::AdamFormula{false, false, true, false});
}

// ---------------------------------------------------------------- derivatives

struct Derivatives {
  TensorList first, second;
};

/// Gradients by `inputs` of a nonlinear function of everything that comes out, and of their product with fixed
/// directions.
Derivatives derivatives(const TensorList& outputs, const TensorList& inputs) {
  torch::manual_seed(11);
  auto sum = at::zeros({}, f64);
  for (const auto& output : outputs) {
    if (output.defined()) sum = sum + (output * at::randn(output.sizes(), f64) + output * output).sum();
  }
  Derivatives result;
  result.first = torch::autograd::grad({sum}, inputs, {}, true, true, true);
  auto product = at::zeros({}, f64);
  for (const auto& gradient : result.first) {
    if (gradient.defined()) product = product + (gradient * at::randn(gradient.sizes(), f64)).sum();
  }
  if (product.requires_grad()) result.second = torch::autograd::grad({product}, inputs, {}, true, false, true);
  return result;
}

TEST(Fused, derivatives_agree_with_operators) {
  for (const auto& setting : settings()) {
    SCOPED_TRACE(title(setting));
    auto in = setting.inputs();
    TensorList inputs;
    for (auto* list : in.lists()) {
      for (auto& tensor : *list) inputs.push_back(tensor.requires_grad_());
    }
    const auto actual = derivatives(outputs_of(setting.run(in, fused)), inputs);
    const auto expected = derivatives(outputs_of(setting.run(in, plain)), inputs);
    expect_near(actual.first, expected.first, 1e-13);
    expect_near(actual.second, expected.second, 1e-12);
  }
}

// Which derivatives exist, and not only their values: nothing gets a graph that has none by operators.
TEST(Fused, derivatives_by_a_part_of_the_inputs) {
  for (const auto& row : rows) {
    for (const bool state : {false, true}) {
      for (uint32_t part = 1; part < 16; ++part) {
        SCOPED_TRACE(c10::str(row.title, ", part ", part, state ? ", state" : ""));
        Setting setting{.row = row, .sizes = {{5}, {2, 3}}, .state = state, .tensors = (part & 8) != 0};
        auto in = setting.inputs();
        TensorList inputs;
        for (size_t l = 0; l < 4; ++l) {
          for (auto& tensor : *in.lists()[l]) {
            if (part >> l & 1) inputs.push_back(tensor.requires_grad_());
          }
        }
        if (inputs.empty()) continue;
        const auto ours = outputs_of(setting.run(in, fused)), theirs = outputs_of(setting.run(in, plain));
        bool any = false;
        for (size_t i = 0; i < ours.size(); ++i) {
          EXPECT_EQ(ours[i].requires_grad(), theirs[i].requires_grad()) << "output " << i;
          any = any || theirs[i].requires_grad();
        }
        if (!any) continue;
        const auto actual = derivatives(ours, inputs), expected = derivatives(theirs, inputs);
        expect_near(actual.first, expected.first, 1e-13);
        expect_near(actual.second, expected.second, 1e-11);
      }
    }
  }
}

TEST(Fused, derivatives_at_zeros_and_ties) {
  for (const auto& row : rows) {
    SCOPED_TRACE(row.title);
    Setting setting{.row = row, .sizes = {{4}, {3}}};
    auto in = setting.inputs();
    for (auto& gradient : in.gradients) gradient.slice(0, 0, 2).zero_();
    for (auto& slot : in.slots) slot.slice(0, 0, 2).zero_();  // v and amsgrad's maximum, too
    TensorList inputs;
    for (auto* list : in.lists()) {
      for (auto& tensor : *list) inputs.push_back(tensor.requires_grad_());
    }
    const auto actual = derivatives(outputs_of(setting.run(in, fused)), inputs);
    const auto expected = derivatives(outputs_of(setting.run(in, plain)), inputs);
    expect_near(actual.first, expected.first, 1e-13);
    expect_near(actual.second, expected.second, 1e-12);
  }
}

TEST(Fused, hyperparameters_whose_value_is_0_have_a_gradient) {
  for (const auto& options : {SGDOptions(0.3), SGDOptions(0.3).weight_decay(0.1)}) {
    Setting setting{.row = row<SGD>("", options)};
    auto in = setting.inputs();
    for (auto& value : in.hyperparameters) value.requires_grad_();
    const auto actual = derivatives(outputs_of(setting.run(in, fused)), in.hyperparameters);
    const auto expected = derivatives(outputs_of(setting.run(in, plain)), in.hyperparameters);
    for (const auto& gradient : actual.first) EXPECT_NE(gradient.item<double>(), 0);
    expect_near(actual.first, expected.first, 1e-13);
    expect_near(actual.second, expected.second, 1e-12);
  }
}

TEST(Fused, derivatives_agree_with_central_differences) {
  for (const auto& row : rows) {
    SCOPED_TRACE(row.title);
    Setting setting{.row = row, .sizes = {{3}, {2}}, .steps = 1};
    auto in = setting.inputs();
    TensorList inputs;
    for (auto* list : in.lists()) {
      for (auto& tensor : *list) {
        tensor = list == &in.hyperparameters ? tensor * 0.9 + 0.05 : tensor;  // away from 1, where powers are steep
        inputs.push_back(tensor.requires_grad_());
      }
    }
    const auto function = [&](const TensorList& now) {
      auto next = now.begin();
      for (auto* list : in.lists()) {
        for (auto& tensor : *list) tensor = *next++;
      }
      auto sum = at::zeros({}, f64);
      for (const auto& output : outputs_of(setting.run(in, fused))) {
        if (output.defined()) sum = sum + (output * output).sum();
      }
      return sum;
    };
    const auto first = gimli::gradcheck(function, inputs), second = gimli::gradgradcheck(function, inputs);
    EXPECT_TRUE(first) << first.message;
    EXPECT_TRUE(second) << second.message;
  }
}

double error_of(const at::Tensor& tensor, const at::Tensor& exact) { return (tensor - exact).norm().item<double>(); }

void expect_no_worse(const TensorList& ours, const TensorList& theirs, const TensorList& exact) {
  for (size_t i = 0; i < exact.size(); ++i) {
    ASSERT_EQ(ours[i].defined(), exact[i].defined()) << "tensor " << i;
    if (!exact[i].defined()) continue;
    EXPECT_LE(error_of(ours[i], exact[i]), 2 * error_of(theirs[i], exact[i]) + 1e-6 * exact[i].norm().item<double>())
        << "tensor " << i;
  }
}

TEST(Fused, float_derivatives_and_large_tensors) {
  for (const auto& row : rows) {
    SCOPED_TRACE(row.title);
    Setting setting{.row = row, .sizes = {{70001}, {5}, {33000}}, .dtype = at::kFloat};
    const auto run = [&](at::ScalarType dtype, Setting::UpdateAll update_all) {
      setting.dtype = dtype;
      auto in = setting.inputs();
      TensorList inputs, outputs;
      for (auto* list : in.lists()) {
        for (auto& tensor : *list) inputs.push_back(tensor.requires_grad_());
      }
      for (const auto& output : outputs_of(setting.run(in, update_all))) {
        outputs.push_back(output.defined() ? output.to(at::kDouble) : output);
      }
      auto result = derivatives(outputs, inputs);
      for (auto* list : {&result.first, &result.second}) {
        for (auto& tensor : *list) tensor = tensor.defined() ? tensor.to(at::kDouble) : tensor;
      }
      return result;
    };
    const auto exact = run(at::kDouble, plain), one = run(at::kFloat, fused);
    const auto theirs = run(at::kFloat, plain);
    expect_no_worse(one.first, theirs.first, exact.first);
    expect_no_worse(one.second, theirs.second, exact.second);

    at::set_num_threads(3);
    const auto three = run(at::kFloat, fused);
    at::set_num_threads(1);
    expect_near(three.first, one.first, 0);
    expect_near(three.second, one.second, 0);
  }
}

// ---------------------------------------------------------------- the graph

TEST(Fused, a_group_is_one_node) {
  for (const auto& row : rows) {
    Setting setting{.row = row, .tensors = false, .steps = 1};
    auto in = setting.inputs();
    for (auto& tensor : in.gradients) tensor.requires_grad_();
    const auto iterates = setting.run(in, fused);
    for (const auto& iterate : iterates) {
      ASSERT_TRUE(iterate.parameter.requires_grad());
      EXPECT_EQ(iterate.parameter.grad_fn(), iterates[0].parameter.grad_fn());
    }
  }
}

TEST(Fused, keeps_only_what_derivatives_need) {
  for (const auto& row : rows) {
    for (const bool first_order : {true, false}) {
      SCOPED_TRACE(row.title);
      Setting setting{.row = row, .sizes = {{1000}}, .tensors = false, .steps = 1};
      auto in = setting.inputs();
      in.parameters[0].requires_grad_();
      if (!first_order) in.gradients[0] = in.gradients[0].requires_grad_() + 0;
      const auto theta = setting.run(in, fused)[0].parameter;
      const c10::weak_intrusive_ptr<c10::TensorImpl> gradient(in.gradients[0].getIntrusivePtr());
      in.gradients.clear();
      const bool through_decay = row.title.find("Adam, decay") == 0;  // the gradient has theta in it
      EXPECT_EQ(gradient.expired(), (first_order && !through_decay) || row.rule->name() == "SGD");
      const auto derivative = torch::autograd::grad({theta.sum()}, {in.parameters[0]})[0];
      EXPECT_TRUE(derivative.isfinite().all().item<bool>());
    }
  }
}

TEST(Fused, sees_that_what_it_kept_was_written_to) {
  Setting setting{.row = rows[7], .tensors = false, .steps = 1};
  auto in = setting.inputs();
  in.gradients[0].requires_grad_();
  const auto iterates = setting.run(in, fused);
  {
    torch::NoGradGuard no_gradient;
    in.gradients[0].add_(1);
  }
  expect_error([&] { iterates[0].parameter.sum().backward(); }, "modified by an inplace operation");
}

TEST(Fused, refuses_a_second_backward_pass) {
  Setting setting{.row = rows[7], .sizes = {{3}}, .tensors = false, .steps = 1};
  auto in = setting.inputs();
  in.gradients[0].requires_grad_();
  const auto theta = setting.run(in, fused)[0].parameter;
  theta.sum().backward();
  expect_error([&] { theta.sum().backward(); }, "backward through the graph a second time");
}

TEST(Fused, third_derivatives_agree_with_operators) {
  for (const auto& row : rows) {
    SCOPED_TRACE(row.title);
    Setting setting{.row = row, .sizes = {{3}, {2, 2}}, .per_tensor = true};
    auto in = setting.inputs();
    TensorList inputs;
    for (auto* list : in.lists()) {
      for (auto& tensor : *list) inputs.push_back(tensor.requires_grad_());
    }
    const auto third = [&](Setting::UpdateAll update_all) {
      return derivatives(derivatives(outputs_of(setting.run(in, update_all)), inputs).first, inputs).second;
    };
    expect_near(third(fused), third(plain), 1e-11);
  }
}

// ---------------------------------------------------------------- memory

Values numbers(const UpdateRule& rule) {
  Values result;
  for (const auto& spec : rule.hyperparameters()) result.emplace_back(spec.value);
  return result;
}

TensorList defined_outputs(const std::vector<Iterate>& iterates) {
  auto list = outputs_of(iterates);
  list.erase(std::remove_if(list.begin(), list.end(), [](const auto& tensor) { return !tensor.defined(); }),
             list.end());
  return list;
}

/// Updates tensors of which nobody else but what `hold` makes of them knows. How many of them were written over, of how
/// many?
template <class Hold>
std::pair<size_t, size_t> written_over(const UpdateRule& rule, Hold hold) {
  torch::NoGradGuard no_gradient;
  std::vector<Iterate> iterates;
  for (const std::vector<int64_t>& size : {std::vector<int64_t>{7}, std::vector<int64_t>{3, 5}}) {
    auto parameter = at::randn(size, f64).requires_grad_();
    iterates.push_back({parameter, rule.init(parameter)});
    for (auto& slot : iterates.back().state.slots) slot = at::rand(size, f64);
  }
  if (numbers(rule)[1].is_off()) iterates[0].state.slots = iterates[1].state.slots = {at::Tensor()};
  std::vector<const void*> before;
  for (const auto& tensor : defined_outputs(iterates)) before.push_back(tensor.const_data_ptr());
  const TensorList held = hold(defined_outputs(iterates)), values = gimli::clones(held);

  rule.update_all(iterates, {at::randn({7}, f64), at::randn({3, 5}, f64)}, {numbers(rule), numbers(rule)});

  gimli::expect_equal(held, values);
  for (const auto& iterate : iterates) EXPECT_FALSE(iterate.parameter.requires_grad());
  const auto after = defined_outputs(iterates);
  size_t count = 0;
  for (size_t i = 0; i < after.size(); ++i) count += after[i].const_data_ptr() == before[i];
  return {count, after.size()};
}

TEST(Fused, writes_over_what_nobody_else_holds) {
  for (const auto& row : rows) {
    SCOPED_TRACE(row.title);
    const auto [count, all] = written_over(*row.rule, [](const TensorList&) { return TensorList(); });
    EXPECT_EQ(count, all);
    EXPECT_EQ(written_over(*row.rule, [](const TensorList& list) { return list; }).first, 0);
    const auto aliases = [](TensorList list) {
      for (auto& tensor : list) tensor = tensor.detach();
      return list;
    };
    EXPECT_EQ(written_over(*row.rule, aliases).first, 0);
    EXPECT_EQ(written_over(*row.rule, [](const TensorList& list) { return TensorList{list[1]}; }).first, all - 1);
  }
}

TEST(Fused, never_writes_over_a_callers_memory) {
  torch::NoGradGuard no_gradient;
  std::vector<double> memory{1, 2, 3};
  const auto& rule = *rows[0].rule;
  std::vector<Iterate> iterates{{at::from_blob(memory.data(), {3}, f64), {0, {at::Tensor()}}}};
  rule.update_all(iterates, {at::ones({3}, f64)}, {numbers(rule)});
  EXPECT_EQ(memory, (std::vector<double>{1, 2, 3}));
}

TEST(Fused, leaves_everything_as_it_was_when_something_throws) {
  torch::NoGradGuard no_gradient;
  for (const auto& row : rows) {
    SCOPED_TRACE(row.title);
    const auto values = std::vector<Values>(2, numbers(*row.rule));
    std::vector<Iterate> iterates;
    for (int i = 0; i < 2; ++i) {
      const auto parameter = at::ones({4}, f64);
      iterates.push_back({parameter, row.rule->init(parameter)});
    }
    row.rule->update_all(iterates, {at::ones({4}, f64), at::ones({4}, f64)}, values);
    const auto before = gimli::clones({iterates[0].parameter, iterates[1].parameter});
    expect_error([&] { row.rule->update_all(iterates, {at::ones({4}, f64), at::ones({3}, f64)}, values); }, "size");
    gimli::expect_equal({iterates[0].parameter, iterates[1].parameter}, before);
    EXPECT_EQ(iterates[0].state.step, 1);
  }
}

TEST(Fused, falls_back_to_operators_where_it_does_not_fit) {
  for (const auto& row : rows) {
    SCOPED_TRACE(row.title);
    std::vector<Iterate> ours, theirs;
    Values per_element;
    for (const auto& spec : row.rule->hyperparameters()) per_element.emplace_back(at::full({4}, spec.value, f64));
    TensorList parameters{at::ones({4}, f64), at::ones({4}, f64), at::ones({4}, f64).to(at::kBFloat16),
                          at::ones({1}, f64).expand({4})};
    TensorList gradients{at::ones({4}, f64), at::ones({4}, f64), at::ones({4}, f64).to(at::kBFloat16),
                         at::ones({4}, f64)};
    for (const auto& parameter : parameters) ours.push_back({parameter, row.rule->init(parameter)});
    theirs = ours;
    const auto same = numbers(*row.rule);
    const std::vector<Values> values{same, per_element, same, same};
    for (int step = 0; step < 2; ++step) {
      fused(*row.rule, ours, gradients, values);
      plain(*row.rule, theirs, gradients, values);
    }
    expect_near(outputs_of(ours), outputs_of(theirs), 1e-15);
  }
}

}  // namespace
