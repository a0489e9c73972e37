#include "app/experiments/hyperparameter_problem.h"

#include <torch/nn/functional/loss.h>

#include <algorithm>
#include <cmath>

#include "app/dataset.h"
#include "gimli/data/image_batch.h"
#include "gimli/nn/mlp.h"
#include "gimli/optim/rules/sgd.h"

namespace gimli::app {
namespace {

namespace F = torch::nn::functional;

/// What random numbers are for.
enum Stream : uint64_t { kParts, kCorruption, kWeights, kOrder, kReal };

at::Tensor number(double value) { return at::full({}, value, at::kDouble); }

at::Tensor leaf(const at::Tensor& start) { return start.detach().clone().requires_grad_(); }

at::Tensor penalty(const TensorList& log_penalties, const TensorList& parameters) {
  at::Tensor sum = at::zeros({}, parameters[0].options().requires_grad(false));
  for (size_t i = 0; i < parameters.size(); ++i) {
    const auto& log_penalty = log_penalties[log_penalties.size() == 1 ? 0 : i];
    sum = sum + (log_penalty.exp() * parameters[i].square()).sum() / 2;
  }
  return sum;
}

NamedTensors learn_rate(Recipe& recipe, const Config&, const torch::nn::Sequential&) {
  recipe.log_rate = leaf(recipe.log_rate);
  return {{"log_rate"}, {recipe.log_rate}};
}

NamedTensors learn_step_rates(Recipe& recipe, const Config& config, const torch::nn::Sequential&) {
  recipe.log_rate = leaf(recipe.log_rate.expand({config.integer("inner_steps")}));
  return {{"log_rate"}, {recipe.log_rate}};
}

NamedTensors learn_weight_decay(Recipe& recipe, const Config&, const torch::nn::Sequential&) {
  recipe.log_penalties = {leaf(recipe.log_penalties[0])};
  return {{"log_penalty"}, recipe.log_penalties};
}

NamedTensors learn_l2(Recipe& recipe, const Config&, const torch::nn::Sequential& network) {
  NamedTensors learned;
  const auto start = recipe.log_penalties[0].item<double>();
  for (const auto& parameter : network->named_parameters()) {
    learned.names.push_back("log_penalty." + parameter.key());
    learned.tensors.push_back(leaf(at::full_like(parameter.value(), start)));
  }
  recipe.log_penalties = learned.tensors;
  return learned;
}

NamedTensors learn_data_weights(Recipe& recipe, const Config&, const torch::nn::Sequential&) {
  const auto& pixels = recipe.examples.pixels;
  recipe.weight_logits = leaf(at::zeros({pixels.size(0)}, pixels.options()));
  return {{"weight_logits"}, {recipe.weight_logits}};
}

NamedTensors learn_images(Recipe& recipe, const Config& config, const torch::nn::Sequential&) {
  const auto& [pixels, labels] = recipe.examples;
  const auto per_class = config.integer("images_per_class");
  recipe.examples = {leaf(at::zeros({per_class * kImageClasses, pixels.size(1)}, pixels.options())),
                     at::arange(kImageClasses, labels.options()).repeat_interleave(per_class)};
  recipe.log_rate = leaf(recipe.log_rate);
  return {{"pixels", "log_rate"}, {recipe.examples.pixels, recipe.log_rate}};
}

}  // namespace

at::Tensor training_loss(torch::nn::Sequential network, const Recipe& recipe, const at::Tensor& rows) {
  const auto examples = rows.defined() ? recipe.examples.at(rows) : recipe.examples;
  auto losses = F::cross_entropy(network->forward(examples.pixels), examples.labels,
                                 F::CrossEntropyFuncOptions().reduction(torch::kNone));
  if (recipe.weight_logits.defined()) {
    const auto logits = rows.defined() ? recipe.weight_logits.index_select(0, rows) : recipe.weight_logits;
    losses = logits.sigmoid() * losses;
  }
  const auto mean = losses.mean();
  return recipe.log_penalties.empty() ? mean : mean + penalty(recipe.log_penalties, network->parameters());
}

OuterValue score(torch::nn::Sequential network, const LabelledImages& images) {
  const auto logits = network->forward(images.pixels);
  return {F::cross_entropy(logits, images.labels), logits.detach().argmax(1).eq(images.labels).to(at::kDouble).mean()};
}

Bilevel training_problem(const torch::nn::Sequential& network, const Recipe& recipe, const InnerTraining& training,
                         const LabelledImages& validation) {
  optim::Optimizer inner(optim::SGD(optim::SGDOptions(1).momentum(training.momentum)), network->parameters());
  inner.set("lr", [log_rate = recipe.log_rate](int64_t step) {
    return optim::Value((log_rate.dim() == 0 ? log_rate : log_rate[step]).exp());
  });
  return Bilevel(network, inner)
      .steps(training.steps)
      .seed(training.order_seed)
      .inner([=](int64_t step) {
        if (training.batch == 0) return training_loss(network, recipe);
        const auto rows =
            data::shuffled(training.order_seed, recipe.examples.size(), step * training.batch, training.batch);
        return training_loss(network, recipe, at::tensor(rows, recipe.examples.labels.options()));
      })
      .outer([=] { return score(network, validation); });
}

const std::vector<HyperparameterKind>& hyperparameter_kinds() {
  static const std::vector<HyperparameterKind> rows{
      {"learning-rate", false, learn_rate},       {"step-rates", false, learn_step_rates},
      {"weight-decay", true, learn_weight_decay}, {"l2", true, learn_l2},
      {"data-weights", true, learn_data_weights}, {"distillation", false, learn_images},
  };
  return rows;
}

Repetition make_repetition(const Config& config, const data::MnistData& data, int64_t index) {
  const auto device = parse_device(config.text("device"));
  const auto seed = fork_seed(config.integer("seed"), index);
  Repetition made;
  made.parts = draw_parts(
      data, {config.integer("training_images"), config.integer("validation_images"), config.integer("test_images")},
      fork_seed(seed, kParts));
  const auto corrupted =
      corrupt(made.parts.training.labels, config.number("corrupted"), kImageClasses, fork_seed(seed, kCorruption));
  made.parts.training.labels = corrupted.labels;
  made.is_corrupted = corrupted.is_corrupted;
  for (auto* part : {&made.parts.training, &made.parts.validation, &made.parts.test}) *part = part->to(device);

  torch::manual_seed(fork_seed(seed, kWeights));
  std::vector<int64_t> sizes{made.parts.training.pixels.size(1), kImageClasses};
  if (const auto hidden = config.integer("hidden")) sizes.insert(sizes.begin() + 1, hidden);
  made.network = nn::mlp(sizes);
  made.network->to(device);

  made.training = {config.integer("inner_steps"), config.number("momentum"), config.integer("batch"),
                   fork_seed(seed, kOrder)};
  made.start = {made.parts.training, {}, number(std::log(config.number("lr"))), {}};
  if (const auto decay = config.number("weight_decay"); decay > 0) {
    made.start.log_penalties = {number(std::log(decay))};
  }
  made.recipe = made.start;
  const auto& kinds = hyperparameter_kinds();
  const auto kind = std::find_if(kinds.begin(), kinds.end(),
                                 [&](const auto& row) { return row.name == config.text("hyperparameter"); });
  made.learned = kind->learn(made.recipe, config, made.network);
  if (kind->name == "distillation") {
    made.real =
        draw_each_class(made.parts.training, config.integer("images_per_class"), kImageClasses, fork_seed(seed, kReal));
  }
  return made;
}

}  // namespace gimli::app
