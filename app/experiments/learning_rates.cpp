#include "app/experiments/learning_rates.h"

#include <fmt/format.h>
#include <torch/nn/functional/loss.h>
#include <torch/optim/adam.h>

#include <limits>
#include <map>
#include <set>

#include "app/dataset.h"
#include "app/estimate.h"
#include "app/interrupt.h"
#include "app/table.h"
#include "gimli/data/cifar10.h"
#include "gimli/data/image_batch.h"
#include "gimli/hypergradient.h"
#include "gimli/hypergradient/replay.h"
#include "gimli/optim/learned_hyperparameters.h"
#include "gimli/optim/registry.h"
#include "gimli/optim/schedule.h"
#include "gimli/tensor_list.h"

namespace gimli::app {
namespace {

using Example = torch::data::Example<>;

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kClasses = 10;

/// Images in a batch of the evaluation.
constexpr int64_t kEvaluated = 200;

const std::vector<std::string> kMethods{"learned", "fixed", "multi-step"};

// clang-format off
Schema make_schema() {
  Schema schema{{"cifar-10"}, {
      // key, group, help, default
      {"dataset", "Data", "Photographs of ten kinds of things",            {text("cifar-10")}, true, 0, {"cifar-10"}},
      {"data_root", "Data", "Folder with CIFAR-10's binary files, or with a folder cifar-10-batches-bin that has them",
                                                                           {text("data")}, false},
      {"training_images", "Data", "The first so many of the training images that are there; 0: all",
                                                                           {integer(0)}, true, 0},
      {"test_images", "Data", "Likewise, of the test images",              {integer(0)}, true, 0},
      {"layers", "Network", "Layers in each block of DenseNet-BC",         {std::vector<int64_t>{16, 16, 16}}, true, 1},
      {"growth", "Network", "Channels that a layer adds",                  {integer(12)}, true, 1},
      {"methods", "Training", "learned: a learned rate for each tensor; fixed; multi-step: divided by 10 after 1/2 and "
                              "3/4 of the epochs",                         {kMethods}, true, 0, kMethods},
      {"seeds", "Training", "Trainings with each method",                  {integer(3)}, true, 1},
      {"epochs", "Training", "Passes through the training images",         {integer(300)}, true, 1},
      {"epoch_iterations", "Training", "Parts of an epoch, between which training can be stopped",
                                                                           {integer(16)}, true, 1},
      {"batch", "Training", "Images in a batch",                           {integer(64)}, true, 2},
      {"lr", "Training", "Learning rate; where learning it begins",        {0.1}, true, 0},
      {"momentum", "Training", "Nesterov's, of SGD",                       {0.9}, true, 1e-3, {}, 1},
      {"weight_decay", "Training", "An L2 penalty's factor",               {1e-4}, true, 0},
      {"inner_steps", "Meta-update", "Steps of the inner loop",            {integer(15)}, true, 1},
      {"meta_batch", "Meta-update", "Images in a batch, in inner steps and in the meta-loss",
                                                                           {integer(16)}, true, 2},
      {"meta_batches", "Meta-update", "Batches of validation images in the meta-loss",
                                                                           {integer(10)}, true, 1},
      {"outer_lr", "Meta-update", "Learning rate of the outer Adam",       {1e-3}, true, 0},
      {"strategy", "Meta-update", "replay: one inner step recorded at a time; unroll: all of them, in more memory and "
                                  "less time",                             {text("replay")}, true, 0,
                                                                           {"replay", "unroll"}},
  }};
  for (auto& setting : run_settings(20)) schema.settings.push_back(std::move(setting));
  return schema;
}
// clang-format on

/// What random numbers are for: each purpose has a seed of its own.
enum Stream : uint64_t { kWeights, kSplit, kOrder, kAugmentation, kMetaTraining, kMetaAugmentation, kMetaValidation };

/// Where an iteration stands: the methods follow one another with one seed, then with the next.
struct Place {
  std::string method;
  int64_t seed, epoch, part;

  bool learns() const { return method == "learned"; }
};

struct Images {
  at::Tensor pixels;  ///< uint8 [n, 3, 32, 32]
  at::Tensor labels;  ///< int64 [n]

  Images first(int64_t count, const std::string& key) const {
    const auto size = labels.size(0);
    TORCH_CHECK(count <= size, key, ": expected at most ", size, ", as there are, got ", count);
    return count == 0 ? *this : Images{pixels.narrow(0, 0, count), labels.narrow(0, 0, count)};
  }

  Images at(const std::vector<int64_t>& indices) const {
    const auto rows = at::tensor(indices, at::kLong);
    return {pixels.index_select(0, rows), labels.index_select(0, rows)};
  }
};

void copy(const TensorList& from, const TensorList& to) {
  at::NoGradGuard no_grad;
  for (size_t i = 0; i < from.size(); ++i) to[i].copy_(from[i]);
}

nn::DenseNet make_network(const Config& config, uint64_t seed) {
  torch::manual_seed(seed);
  const auto growth = config.integer("growth");
  return nn::DenseNet(
      nn::DenseNetOptions(kClasses).layers(config.integers("layers")).growth(growth).initial_channels(2 * growth));
}

/// A group for each tensor, so that each has a rate of its own.
std::unique_ptr<torch::optim::SGD> make_sgd(const Config& config, const TensorList& parameters) {
  std::vector<torch::optim::OptimizerParamGroup> groups;
  for (const auto& parameter : parameters) groups.emplace_back(TensorList{parameter});
  return std::make_unique<torch::optim::SGD>(std::move(groups), torch::optim::SGDOptions(config.number("lr"))
                                                                    .momentum(config.number("momentum"))
                                                                    .nesterov(true)
                                                                    .weight_decay(config.number("weight_decay")));
}

std::unique_ptr<const Strategy> make_strategy(const std::string& name) {
  if (name == "unroll") return std::make_unique<const Unroll>();
  return std::make_unique<const Replay>();
}

/// The kinds of tensors that are shown apart.
const std::vector<std::string> kKinds{"convolutions", "scales of normalizations", "shifts of normalizations",
                                      "last layer"};

size_t kind_of(const std::string& parameter, int64_t dimensions) {
  if (parameter.starts_with("classifier.")) return 3;
  if (dimensions == 4) return 0;
  return parameter.ends_with("weight") ? 1 : 2;
}

/// One training, epoch by epoch.
struct Curve {
  std::vector<double> accuracy, training_loss;
  std::vector<std::vector<double>> rates;  ///< of each tensor, if they are learned
};

using Curves = std::map<std::string, std::vector<Curve>>;  ///< by method, one a seed

Curves curves_of(const std::vector<nlohmann::json>& metrics) {
  Curves curves;
  std::vector<double> losses;
  for (const auto& line : metrics) {
    losses.push_back(line["training_loss"].get<double>());
    if (!line.contains("test_accuracy")) continue;
    auto& seeds = curves[line["method"].get<std::string>()];
    seeds.resize(std::max(seeds.size(), line["seed"].get<size_t>()));
    auto& curve = seeds[line["seed"].get<size_t>() - 1];
    curve.accuracy.push_back(line["test_accuracy"].get<double>());
    curve.training_loss.push_back(estimate(losses).mean);
    losses.clear();
    if (line.contains("rates")) curve.rates.push_back(line["rates"].get<std::vector<double>>());
  }
  return curves;
}

/// The means and intervals over those seeds that have come to an epoch.
std::vector<Estimate> by_epoch(const std::vector<Curve>& curves, std::vector<double> Curve::*values) {
  std::vector<Estimate> result;
  for (size_t epoch = 0;; ++epoch) {
    std::vector<double> sample;
    for (const auto& curve : curves) {
      if (epoch < (curve.*values).size()) sample.push_back((curve.*values)[epoch]);
    }
    if (sample.empty()) return result;
    result.push_back(estimate(sample));
  }
}

Series band(const std::string& title, const std::vector<Estimate>& estimates, double scale) {
  Series series{title, Look::band};
  for (size_t epoch = 0; epoch < estimates.size(); ++epoch) {
    const auto& [mean, interval] = estimates[epoch];
    series.x.push_back(static_cast<double>(epoch + 1));
    series.y.push_back(scale * mean);
    series.low.push_back(scale * (mean - interval));
    series.high.push_back(scale * (mean + interval));
  }
  return series;
}

/// Figure 1 of the paper.
Figure curves_figure(const Curves& curves) {
  const auto panel = [&](const std::string& label, std::vector<double> Curve::*values, double scale) {
    Panel result{.x_label = "epoch", .y_label = label};
    for (const auto& method : kMethods) {
      if (curves.contains(method)) {
        result.series.push_back(band(method, by_epoch(curves.at(method), values), scale));
      }
    }
    return result;
  };
  return {
      "accuracy",
      2,
      {panel("accuracy on test images (%)", &Curve::accuracy, 100), panel("training loss", &Curve::training_loss, 1)},
      /*shared_legend=*/true};
}

/// The mean over the trainings of the rate of each tensor, by epoch: [epoch][tensor].
std::vector<std::vector<double>> mean_rates(const std::vector<Curve>& curves) {
  std::vector<std::vector<double>> result;
  for (size_t epoch = 0; epoch < curves[0].rates.size(); ++epoch) {
    auto& means = result.emplace_back();
    for (size_t i = 0; i < curves[0].rates[epoch].size(); ++i) {
      std::vector<double> sample;
      for (const auto& curve : curves) {
        if (epoch < curve.rates.size()) sample.push_back(curve.rates[epoch][i]);
      }
      means.push_back(estimate(sample).mean);
    }
  }
  return result;
}

/// The part of one training whose epochs have been finished, or more.
struct Score {
  std::vector<double> final_accuracy, best_accuracy, mean_accuracy, final_loss;  ///< one a seed
};

Score score_of(const std::vector<Curve>& curves, int64_t epochs) {
  Score score;
  for (const auto& curve : curves) {
    if (static_cast<int64_t>(curve.accuracy.size()) < epochs) continue;
    score.final_accuracy.push_back(curve.accuracy.back());
    score.best_accuracy.push_back(*std::max_element(curve.accuracy.begin(), curve.accuracy.end()));
    score.mean_accuracy.push_back(estimate(curve.accuracy).mean);
    score.final_loss.push_back(curve.training_loss.back());
  }
  return score;
}

/// The first epoch in which the mean over the seeds is at least `accuracy`, counted from 1, or 0 if there is none.
int64_t epochs_to(const std::vector<Curve>& curves, double accuracy) {
  const auto means = by_epoch(curves, &Curve::accuracy);
  const auto found = std::find_if(means.begin(), means.end(), [&](const auto& e) { return e.mean >= accuracy; });
  return found == means.end() ? 0 : found - means.begin() + 1;
}

double best_mean(const std::vector<Curve>& curves) {
  double best = 0;
  for (const auto& e : by_epoch(curves, &Curve::accuracy)) best = std::max(best, e.mean);
  return best;
}

class LearningRates final : public Experiment {
 public:
  explicit LearningRates(const Config& config)
      : config_(config),
        device_(parse_device(config.text("device"))),
        network_(make_network(config, seed_of(0, kWeights))),
        strategy_(make_strategy(config.text("strategy"))) {
    const auto data = data::load_cifar10(config.text("data_root"));
    files_ = data.batches;
    training_ =
        Images{data.train_images, data.train_labels}.first(config.integer("training_images"), "training_images");
    test_ = Images{data.test_images, data.test_labels}.first(config.integer("test_images"), "test_images");
    const auto size = training_.labels.size(0);
    const auto least = size - validation_size(size);
    TORCH_CHECK(least >= 2, "learning-rates: expected at least 3 training images, got ", size);
    TORCH_CHECK(steps_in_epoch(least) >= config.integer("epoch_iterations"), "epoch_iterations: expected at most ",
                steps_in_epoch(least), ", the batches of an epoch, got ", config.integer("epoch_iterations"));
    const auto& methods = config.texts("methods");
    TORCH_CHECK(!methods.empty(), "methods: expected at least one");
    TORCH_CHECK(std::set<std::string>(methods.begin(), methods.end()).size() == methods.size(),
                "methods: expected each one once");
    moments_ = data::channel_moments(training_.pixels);

    network_->to(device_);
    sgd_ = make_sgd(config, network_->parameters());
    inner_.emplace(*sgd_);
    rates_ = optim::learn(*inner_, {"lr"}, optim::LearnOptions().domain(optim::Domain::real));
    adam_ =
        std::make_unique<torch::optim::Adam>(rates_.tensors(), torch::optim::AdamOptions(config.number("outer_lr")));
  }

  int64_t iterations() const override {
    return config_.integer("seeds") * static_cast<int64_t>(config_.texts("methods").size()) * training_iterations();
  }

  TrainingState state() override {
    const ModelTensors model(network_);
    NamedTensors tensors;
    for (const auto* list : {&model.parameters, &model.buffers}) {
      tensors.names.insert(tensors.names.end(), list->names.begin(), list->names.end());
      tensors.tensors.insert(tensors.tensors.end(), list->tensors.begin(), list->tensors.end());
    }
    tensors.names.insert(tensors.names.end(), rates_.names().begin(), rates_.names().end());
    tensors.tensors.insert(tensors.tensors.end(), rates_.tensors().begin(), rates_.tensors().end());
    return {std::move(tensors), {sgd_.get(), adam_.get()}};
  }

  bool is_long(int64_t iteration) const override { return ends_epoch(place_of(iteration)); }

  std::optional<Iteration> iterate(int64_t iteration) override {
    const auto place = place_of(iteration);
    if (place.epoch == 0 && place.part == 0) begin(place);
    if (place.method == "multi-step") {
      const auto epochs = config_.integer("epochs");
      const auto schedule = optim::multi_step(config_.number("lr"), {epochs / 2, epochs * 3 / 4}, 0.1);
      set_rate(schedule(place.epoch).number());
    }
    const auto loss = train(place);
    if (!loss) return std::nullopt;

    Iteration done;
    done.metrics["method"] = place.method;
    done.metrics["seed"] = place.seed + 1;
    done.metrics["epoch"] = place.epoch + 1;
    done.metrics["training_loss"] = *loss;
    if (!ends_epoch(place)) return done;
    if (place.learns()) {
      done.metrics["outer_loss"] = update_rates(place);
      for (const auto& rate : rates_.values().tensors) done.metrics["rates"].push_back(rate.item<double>());
    } else {
      done.metrics["rate"] = sgd_->param_groups()[0].options().get_lr();
    }
    const auto accuracy = test_accuracy();
    if (!accuracy) return std::nullopt;
    done.metrics["test_accuracy"] = *accuracy;
    done.note = fmt::format("{}, seed {}, epoch {}: training loss {:.4f}, test accuracy {:.2f} %", place.method,
                            place.seed + 1, place.epoch + 1, *loss, 100 * *accuracy);
    return done;
  }

  std::optional<Report> report(const std::vector<nlohmann::json>& metrics) override;

 private:
  int64_t training_iterations() const { return config_.integer("epochs") * config_.integer("epoch_iterations"); }

  int64_t steps_in_epoch(int64_t images) const {
    return (images + config_.integer("batch") - 1) / config_.integer("batch");
  }

  Place place_of(int64_t iteration) const {
    const auto& methods = config_.texts("methods");
    const auto parts = config_.integer("epoch_iterations");
    const auto training = iteration / training_iterations(), within = iteration % training_iterations();
    const auto count = static_cast<int64_t>(methods.size());
    return {methods[training % count], training / count, within / parts, within % parts};
  }

  bool ends_epoch(const Place& place) const { return place.part + 1 == config_.integer("epoch_iterations"); }

  uint64_t seed_of(int64_t seed, Stream stream) const {
    return fork_seed(fork_seed(config_.integer("seed"), seed), stream);
  }

  /// The baselines train on all images.
  Split split_of(const Place& place) const {
    auto parts = split(seed_of(place.seed, kSplit), training_.labels.size(0));
    if (place.learns()) return parts;
    parts.training.insert(parts.training.end(), parts.validation.begin(), parts.validation.end());
    return {std::move(parts.training), {}};
  }

  /// Draws from `indices`, as `shuffled` does.
  static std::vector<int64_t> draw(const std::vector<int64_t>& indices, uint64_t seed, int64_t begin, int64_t count) {
    auto drawn = data::shuffled(seed, static_cast<int64_t>(indices.size()), begin, count);
    for (auto& i : drawn) i = indices[i];
    return drawn;
  }

  Example example(const Images& images) const {
    return {data::normalize(images.pixels, moments_).to(device_), images.labels.to(device_)};
  }

  /// Cropped and flipped, as the `index`-th batch of `seed`.
  Example augmented(Images images, uint64_t seed, int64_t index) const {
    images.pixels = data::crop_and_flip(images.pixels, index, data::CropAndFlipOptions().seed(seed));
    return example(images);
  }

  void begin(const Place& place) {
    const ModelTensors from(make_network(config_, seed_of(place.seed, kWeights))), to(network_);
    copy(from.parameters.tensors, to.parameters.tensors);
    copy(from.buffers.tensors, to.buffers.tensors);
    sgd_->state().clear();
    adam_->state().clear();
    set_rate(config_.number("lr"));
    at::NoGradGuard no_grad;
    for (const auto& rate : rates_.tensors()) rate.fill_(config_.number("lr"));
  }

  void set_rate(double rate) {
    for (auto& group : sgd_->param_groups()) group.options().set_lr(rate);
  }

  /// The part of an epoch's steps that `place` makes. Returns their mean loss; nothing if interrupted.
  std::optional<double> train(const Place& place) {
    const auto indices = split_of(place).training;
    const auto size = static_cast<int64_t>(indices.size()), batch = config_.integer("batch");
    const auto steps = steps_in_epoch(size), parts = config_.integer("epoch_iterations");
    const auto first = steps * place.part / parts, last = steps * (place.part + 1) / parts;
    network_->train();
    auto sum = at::zeros({}, at::TensorOptions(device_).dtype(at::kDouble));
    for (auto step = first; step < last; ++step) {
      if (interrupted()) return std::nullopt;
      const auto drawn = draw(indices, seed_of(place.seed, kOrder), place.epoch * size + step * batch,
                              std::min(batch, size - step * batch));
      const auto examples =
          augmented(training_.at(drawn), seed_of(place.seed, kAugmentation), place.epoch * steps + step);
      sgd_->zero_grad();
      const auto loss = torch::nn::functional::cross_entropy(network_->forward(examples.data), examples.target);
      loss.backward();
      sgd_->step();
      sum += loss.detach();
    }
    return sum.item<double>() / static_cast<double>(last - first);
  }

  MetaBatches meta_batches(const Place& place) const {
    const auto indices = split_of(place);
    const auto steps = config_.integer("inner_steps"), batches = config_.integer("meta_batches"),
               batch = config_.integer("meta_batch");
    MetaBatches result;
    for (auto k = place.epoch * steps; k < (place.epoch + 1) * steps; ++k) {
      const auto drawn = draw(indices.training, seed_of(place.seed, kMetaTraining), k * batch, batch);
      result.training.push_back(augmented(training_.at(drawn), seed_of(place.seed, kMetaAugmentation), k));
    }
    for (auto k = place.epoch * batches; k < (place.epoch + 1) * batches; ++k) {
      const auto drawn = draw(indices.validation, seed_of(place.seed, kMetaValidation), k * batch, batch);
      result.validation.push_back(example(training_.at(drawn)));
    }
    return result;
  }

  /// The meta-update. Returns the meta-loss.
  double update_rates(const Place& place) {
    const auto problem = meta_problem(network_, *inner_, *sgd_, config_.integer("inner_steps"));
    const auto result =
        hypergradient(problem, rates_.tensors(), std::vector<MetaBatches>{meta_batches(place)}, *strategy_);
    assign_gradients(rates_.tensors(), result.gradients);
    adam_->step();
    rates_.copy_to(*sgd_);
    return result.outer_loss.item<double>();
  }

  std::optional<double> test_accuracy() {
    at::NoGradGuard no_grad;
    network_->eval();
    int64_t right = 0;
    const auto size = test_.labels.size(0);
    for (int64_t begin = 0; begin < size; begin += kEvaluated) {
      if (interrupted()) return std::nullopt;
      const auto count = std::min(kEvaluated, size - begin);
      const auto examples = example({test_.pixels.narrow(0, begin, count), test_.labels.narrow(0, begin, count)});
      right += network_->forward(examples.data).argmax(1).eq(examples.target).sum().item<int64_t>();
    }
    return static_cast<double>(right) / static_cast<double>(size);
  }

  void report_rates(const std::vector<Curve>& curves, Report& report) const;

  Config config_;
  at::Device device_;
  nn::DenseNet network_;
  std::unique_ptr<const Strategy> strategy_;
  int64_t files_ = 0;
  Images training_, test_;
  data::ChannelMoments moments_;
  std::unique_ptr<torch::optim::SGD> sgd_;
  std::optional<optim::Optimizer> inner_;  // SGD with the rates as meta-parameters
  optim::LearnedHyperparameters rates_;
  std::unique_ptr<torch::optim::Adam> adam_;
};

void LearningRates::report_rates(const std::vector<Curve>& curves, Report& report) const {
  const auto rates = mean_rates(curves);
  if (rates.empty()) return;
  const auto parameters = network_->named_parameters();
  Figure figure{"rates", 2};
  std::vector<std::vector<std::string>> table{{"learned rates of", "tensors", "mean", "least", "greatest"}};
  for (size_t kind = 0; kind < kKinds.size(); ++kind) {
    auto& panel = figure.panels.emplace_back();
    panel.title = kKinds[kind];
    panel.x_label = "epoch";
    panel.y_label = "learned rate, mean of the seeds";
    panel.legend = Legend::none;
    std::vector<double> last;
    for (size_t i = 0; i < parameters.size(); ++i) {
      if (kind_of(parameters[i].key(), parameters[i].value().dim()) != kind) continue;
      auto& series = panel.series.emplace_back(Series{parameters[i].key(), Look::thin, {0}, {config_.number("lr")}});
      for (size_t epoch = 0; epoch < rates.size(); ++epoch) {
        series.x.push_back(static_cast<double>(epoch + 1));
        series.y.push_back(rates[epoch][i]);
      }
      last.push_back(rates.back()[i]);
    }
    const auto [least, greatest] = std::minmax_element(last.begin(), last.end());
    table.push_back({kKinds[kind], std::to_string(last.size()), fmt::format("{:.4f}", estimate(last).mean),
                     fmt::format("{:.4f}", *least), fmt::format("{:.4f}", *greatest)});
    report.numbers["rates"].push_back({{"of", kKinds[kind]},
                                       {"tensors", last.size()},
                                       {"mean", estimate(last).mean},
                                       {"least", *least},
                                       {"greatest", *greatest}});
  }
  report.markdown +=
      "\n" + markdown_table(table) +
      fmt::format("\nMeans of the seeds after {} meta-updates; all began at {}.\n", rates.size(), config_.number("lr"));
  report.figures.push_back(std::move(figure));
}

std::optional<Report> LearningRates::report(const std::vector<nlohmann::json>& metrics) {
  const auto curves = curves_of(metrics);
  const auto epochs = config_.integer("epochs");
  Report report;
  const auto size = training_.labels.size(0);
  report.numbers["training_files"] = files_;
  report.numbers["training_images"] = size;
  report.numbers["validation_images"] = validation_size(size);
  report.numbers["test_images"] = test_.labels.size(0);
  report.numbers["epochs"] = epochs;

  const bool has_fixed = curves.contains("fixed");
  const double target = has_fixed ? best_mean(curves.at("fixed")) : kNaN;
  std::vector<std::vector<std::string>> table{
      {"rates", "seeds", "final accuracy (%)", "best accuracy (%)", "mean over epochs (%)", "final training loss"}};
  if (has_fixed) table[0].push_back(fmt::format("epochs to {:.2f} %", 100 * target));
  std::map<std::string, Score> scores;
  for (const auto& method : kMethods) {
    if (!curves.contains(method)) continue;
    auto score = score_of(curves.at(method), epochs);
    if (score.final_accuracy.empty()) continue;
    table.push_back({method, std::to_string(score.final_accuracy.size()),
                     to_text(estimate(score.final_accuracy), 2, 100), to_text(estimate(score.best_accuracy), 2, 100),
                     to_text(estimate(score.mean_accuracy), 2, 100), to_text(estimate(score.final_loss), 4)});
    auto& numbers = report.numbers["methods"][method];
    numbers = {{"seeds", score.final_accuracy.size()},
               {"final_accuracy", to_json(estimate(score.final_accuracy))},
               {"best_accuracy", to_json(estimate(score.best_accuracy))},
               {"mean_accuracy", to_json(estimate(score.mean_accuracy))},
               {"final_training_loss", to_json(estimate(score.final_loss))}};
    if (has_fixed) {
      const auto reached = epochs_to(curves.at(method), target);
      table.back().push_back(reached == 0 ? "never" : std::to_string(reached));
      if (reached > 0) numbers["epochs_to_best_of_fixed"] = reached;
    }
    scores.emplace(method, std::move(score));
  }
  if (scores.empty()) {
    report.markdown = fmt::format("No training has come to the end of its {} epochs.\n", epochs);
    return report;
  }
  report.markdown = markdown_table(table) + fmt::format(
                                                "\nDenseNet-BC with {} tensors of parameters on CIFAR-10: {} training "
                                                "images (of {} of the 5 files), of which "
                                                "the learned rates take {} for validation; accuracy on {} test images, "
                                                "mean and 95 % interval over the seeds. "
                                                "The best accuracy is that of the best epoch by the test images.\n",
                                                network_->parameters().size(), size, files_, validation_size(size),
                                                test_.labels.size(0));

  if (scores.contains("learned")) {
    const auto mean = [&](const std::string& method, std::vector<double> Score::*values) {
      return estimate(scores.at(method).*values).mean;
    };
    report.markdown += "\n";
    const auto ends = mean("learned", &Score::final_accuracy), over = mean("learned", &Score::mean_accuracy);
    if (scores.contains("fixed")) {
      const auto other = mean("fixed", &Score::final_accuracy), over_fixed = mean("fixed", &Score::mean_accuracy);
      report.claim("learned rates end at a higher test accuracy than the fixed rate", ends, other, ends > other);
      report.claim("learned rates have a higher test accuracy over the epochs than the fixed rate", over, over_fixed,
                   over > over_fixed);
      const auto loss = mean("learned", &Score::final_loss), fixed_loss = mean("fixed", &Score::final_loss);
      report.claim("learned rates end at a lower training loss than the fixed rate", loss, fixed_loss,
                   loss < fixed_loss);
      const auto reached = epochs_to(curves.at("learned"), target), by_fixed = epochs_to(curves.at("fixed"), target);
      report.claim("learned rates reach the best accuracy of the fixed rate in fewer epochs (0: never)",
                   static_cast<double>(reached), static_cast<double>(by_fixed), reached > 0 && reached < by_fixed);
    }
    if (scores.contains("multi-step")) {
      const auto other = mean("multi-step", &Score::mean_accuracy);
      report.claim("learned rates have a higher test accuracy over the epochs than the multi-step rate", over, other,
                   over > other);
    }
    report_rates(curves.at("learned"), report);
  }
  report.figures.insert(report.figures.begin(), curves_figure(curves));
  return report;
}

}  // namespace

ExperimentEntry learning_rates() {
  return {"learning-rates",
          "A learned rate for each tensor of DenseNet-BC on CIFAR-10, against a fixed and a multi-step one",
          make_schema(), [](const Config& config) { return std::make_unique<LearningRates>(config); }};
}

int64_t validation_size(int64_t images) { return std::max<int64_t>(1, (images + 50) / 100); }

Split split(uint64_t seed, int64_t images) {
  const auto order = data::shuffled(seed, images, 0, images);
  const auto middle = order.begin() + (images - validation_size(images));
  return {{order.begin(), middle}, {middle, order.end()}};
}

Bilevel meta_problem(const nn::DenseNet& network, optim::Optimizer inner, const torch::optim::SGD& sgd, int64_t steps) {
  const auto parameters = network->parameters();
  const auto states = optim::translation_of(sgd).read(sgd, parameters);
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (states[i]) inner.start_from(parameters[i], *states[i]);
  }
  const auto loss = [network = network.ptr()](const Example& examples) {
    return torch::nn::functional::cross_entropy(network->forward(examples.data), examples.target);
  };
  return Bilevel(network, std::move(inner))
      .steps(steps)
      .inner([loss](const MetaBatches& batches, int64_t step) { return loss(batches.training[step]); })
      .outer([loss](const MetaBatches& batches) {
        auto sum = loss(batches.validation[0]);
        for (size_t i = 1; i < batches.validation.size(); ++i) sum = sum + loss(batches.validation[i]);
        return sum / static_cast<double>(batches.validation.size());
      });
}

}  // namespace gimli::app
