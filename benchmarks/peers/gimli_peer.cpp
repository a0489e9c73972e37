// gimli as a contender of compare.py: gimli_peer FOLDER WAY THREADS, with WAY one of
//
//     own         Unroll() on gimli's own operators
//     captured    Captured(Unroll())
//     libtorch    Unroll() on libtorch's operators
//     vmap        Unroll(), the tasks together
//     replay      Replay()
//     binomial    Replay(Binomial(10))
//
// It reads the work and answers on stdout to the lines on stdin as contender.py says.

#include <ATen/record_function.h>
#include <torch/torch.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "gimli/gimli.h"
#include "gimli/nn/conv4.h"
#include "gimli/nn/densenet.h"
#include "gimli/nn/mlp.h"
#include "gimli/nn/resnet.h"
#include "gimli/trace.h"

namespace gimli {
namespace {

using nlohmann::json;
using torch::Tensor;

Tensor read(const std::string& file, at::IntArrayRef sizes, at::ScalarType dtype) {
  auto tensor = torch::empty(sizes, dtype);
  std::ifstream in(file, std::ios::binary);
  in.read(static_cast<char*>(tensor.mutable_data_ptr()), tensor.nbytes());
  TORCH_CHECK(in, "gimli_peer: cannot read ", tensor.nbytes(), " bytes of '", file, "'");
  return tensor;
}

struct Task {
  Tensor x, y, x_query, y_query;
};

struct Model {
  std::shared_ptr<torch::nn::Module> module;
  std::function<Tensor(const Tensor&)> forward;
};

template <class Holder>
Model model(Holder holder) {
  return {holder.ptr(), [holder](const Tensor& x) mutable { return holder->forward(x); }};
}

struct TransformerImpl final : torch::nn::Module {
  TransformerImpl(int64_t width, int64_t heads, int64_t layers, int64_t classes)
      : encoder(register_module(
            "encoder",
            torch::nn::TransformerEncoder(torch::nn::TransformerEncoderOptions(
                torch::nn::TransformerEncoderLayerOptions(width, heads).dim_feedforward(2 * width).dropout(0),
                layers)))),
        head(register_module("head", torch::nn::Linear(width, classes))) {}
  Tensor forward(const Tensor& x) { return head(encoder(x.transpose(0, 1)).mean(0)); }

  torch::nn::TransformerEncoder encoder;
  torch::nn::Linear head;
};
TORCH_MODULE(Transformer);

Model network(const json& spec) {
  const std::string name = spec["network"];
  if (name == "mlp") return model(nn::mlp(spec["sizes"].get<std::vector<int64_t>>()));
  const int64_t ways = spec["ways"];
  const auto example = spec["example"].get<std::vector<int64_t>>();
  if (name == "conv4") return model(nn::Conv4(nn::Conv4Options(ways).hidden(spec["hidden"])));
  if (name == "resnet12") {
    return model(nn::ResNet(
        nn::ResNetOptions(ways, 3).in_channels(example[0]).widths(spec["widths"].get<std::vector<int64_t>>())));
  }
  if (name == "densenet") {
    return model(nn::DenseNet(nn::DenseNetOptions(ways)
                                  .layers(std::vector<int64_t>(3, spec["layers"].get<int64_t>()))
                                  .growth(spec["growth"])
                                  .initial_channels(2 * spec["growth"].get<int64_t>())
                                  .track_running_stats(false)));
  }
  TORCH_CHECK(name == "transformer", "gimli_peer: no network '", name, "'");
  return model(Transformer(example[1], spec["heads"], spec["layers"], ways));
}

class Work final {
 public:
  explicit Work(const std::string& folder)
      : spec_(json::parse(std::ifstream(folder + "/spec.json"))),
        dtype_(spec_["dtype"] == "float64" ? torch::kDouble : torch::kFloat),
        model_(network(spec_)) {
    model_.module->to(dtype_);
    const auto parameters = model_.module->parameters();
    meta_parameters_ = parameters;
    read_into(parameters, "shapes", folder + "/parameters");

    const std::string learned = spec_["learned"].is_null() ? "" : spec_["learned"], name = spec_["optimizer"];
    const double lr = spec_["lr"];
    const optim::LSTMOptimizer lstm(optim::LSTMOptimizerOptions(lr).hidden_size(spec_.value("hidden", 20)));
    lstm.network()->to(dtype_);
    auto optimizer = name == "adam"   ? optim::Optimizer(optim::Adam(optim::AdamOptions(lr)), parameters)
                     : name == "lstm" ? optim::Optimizer(lstm, parameters)
                                      : optim::Optimizer(optim::SGD(lr), parameters);
    TensorList hyperparameters;
    if (learned == "rates") {
      hyperparameters =
          optim::learn(optimizer, {"lr"}, optim::LearnOptions().granularity(optim::Granularity::per_tensor)).tensors();
    } else if (learned == "penalties") {
      hyperparameters = {
          torch::zeros(static_cast<int64_t>(parameters.size()), torch::dtype(dtype_).requires_grad(true))};
    } else if (learned == "optimizer") {
      hyperparameters = lstm.parameters();
    }
    read_into(hyperparameters, "hyperparameter_shapes", folder + "/hyperparameters");
    meta_parameters_.insert(meta_parameters_.end(), hyperparameters.begin(), hyperparameters.end());

    const bool classes = spec_.contains("ways");
    const auto of = [&](const std::string& what) {
      const auto sizes = spec_[what + "_shape"].get<std::vector<int64_t>>();
      return read(folder + "/" + what, sizes, what[0] == 'y' && classes ? torch::kLong : dtype_);
    };
    const auto x = of("x"), y = of("y"), x_query = of("xq"), y_query = of("yq");
    for (int64_t t = 0; t < x.size(0); ++t) tasks_.push_back({x[t], y[t], x_query[t], y_query[t]});

    const auto loss = [forward = model_.forward, classes](const Tensor& inputs, const Tensor& targets) {
      const auto output = forward(inputs);
      return classes ? torch::cross_entropy_loss(output, targets) : torch::mse_loss(output, targets);
    };
    problem_.emplace(model_.module, optimizer);
    problem_->steps(spec_["steps"].get<int64_t>())
        .inputs([](const Task& task) {
          return TensorList{task.x, task.y, task.x_query, task.y_query};
        })
        .inner([loss](const Task& task) { return loss(task.x, task.y); })
        .outer([loss](const Task& task) { return loss(task.x_query, task.y_query); });
    if (learned == "penalties") {
      problem_->inner([loss, parameters, penalties = hyperparameters[0]](const Task& task) {
        auto value = loss(task.x, task.y);
        const auto strengths = penalties.exp().unbind();
        for (size_t i = 0; i < parameters.size(); ++i) value = value + strengths[i] * parameters[i].square().sum();
        return value;
      });
    }
  }

  Result differentiate(const Strategy& strategy, const TaskBatch& batch) const {
    return hypergradient(*problem_, meta_parameters_, tasks_, strategy, batch);
  }

  /// Operators of a recording of all tasks' hypergradients by Unroll(), or 0 if there is none.
  int64_t recorded_operators() const {
    TraceInputs inputs{{}, problem_->tensors()};
    inputs.shared.insert(inputs.shared.end(), meta_parameters_.begin(), meta_parameters_.end());
    int64_t count = 0;
    for (const auto& task : tasks_) {
      inputs.copied = problem_->inputs_of(TaskRef::to(task));
      const auto recording = Trace::record(
          [&] { return Unroll().differentiate(*problem_, meta_parameters_, TaskRef::to(task)).gradients; }, inputs);
      if (!recording.trace) return 0;
      count += recording.trace->on_own_kernels()->size();
    }
    return count;
  }

  int64_t task_count() const { return static_cast<int64_t>(tasks_.size()); }

 private:
  /// Fills the tensors, whose sizes must be those that the spec has there, with the numbers of the file.
  void read_into(const TensorList& tensors, const std::string& shapes, const std::string& file) const {
    const auto sizes = spec_[shapes].get<std::vector<std::vector<int64_t>>>();
    TORCH_CHECK(sizes.size() == tensors.size(), "gimli_peer: expected ", sizes.size(), " tensors in '", shapes,
                "', got ", tensors.size());
    int64_t count = 0;
    for (const auto& tensor : tensors) count += tensor.numel();
    const auto values = read(file, {count}, dtype_);
    torch::NoGradGuard no_grad;
    int64_t at = 0;
    for (size_t i = 0; i < tensors.size(); ++i) {
      TORCH_CHECK(tensors[i].sizes() == at::IntArrayRef(sizes[i]), "gimli_peer: expected sizes ",
                  at::IntArrayRef(sizes[i]), " in '", shapes, "', got ", tensors[i].sizes());
      tensors[i].copy_(values.slice(0, at, at + tensors[i].numel()).view(sizes[i]));
      at += tensors[i].numel();
    }
  }

  json spec_;
  at::ScalarType dtype_;
  Model model_;
  TensorList meta_parameters_;
  std::vector<Task> tasks_;
  std::optional<Bilevel> problem_;
};

/// Counts, while it lives, the operators of all threads that call no other operators.
class OperatorCounter final {
 public:
  OperatorCounter() {
    count = 0;
    handle_ = at::addGlobalCallback(at::RecordFunctionCallback(&begin, &end).scopes({at::RecordScope::FUNCTION}));
  }
  ~OperatorCounter() { at::removeCallback(handle_); }
  OperatorCounter(const OperatorCounter&) = delete;
  OperatorCounter& operator=(const OperatorCounter&) = delete;

  static inline std::atomic<int64_t> count = 0;

 private:
  static std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction&) {
    open.push_back(true);
    return nullptr;
  }
  static void end(const at::RecordFunction&, at::ObserverContext*) {
    count += open.back();
    open.pop_back();
    if (!open.empty()) open.back() = false;
  }

  static inline thread_local std::vector<bool> open;  // the calls under way: whether each has called no other so far
  at::CallbackHandle handle_;
};

class Stopwatch final {
 public:
  double milliseconds() const {
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin_).count();
  }

 private:
  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
};

int64_t memory(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(field + ":", 0) == 0) return std::stoll(line.substr(field.size() + 1)) * 1024;
  }
  return 0;
}

void serve(const Work& work, const Strategy& strategy, bool together, int64_t threads) {
  const bool captured = dynamic_cast<const Captured*>(&strategy);
  std::map<int64_t, std::shared_ptr<const TaskBatch>> batches;  // which remember what they have compared
  const auto use = [&](int64_t count) {
    at::set_num_threads(static_cast<int>(count));
    auto& batch = batches[count];
    if (batch) return batch;
    const auto at_once = std::min(count, work.task_count());
    if (together) {
      batch = std::make_shared<Vmap>(at_once);
    } else if (at_once > 1) {
      batch = std::make_shared<Threads>(at_once);
    } else {
      batch = std::make_shared<Sequential>();
    }
    return batch;
  };
  auto batch = use(threads);
  const auto loaded = memory("VmRSS");
  std::cout << "ready" << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string command, argument;
    words >> command >> argument;
    json answer;
    if (command == "gradient") {
      const OperatorCounter counter;
      const Stopwatch stopwatch;
      const auto result = work.differentiate(strategy, *batch);
      answer["milliseconds"] = stopwatch.milliseconds();
      answer["operators"] = captured ? work.recorded_operators() : counter.count.load();
      answer["remark"] = result.cost.capture_remark;
      std::ofstream out(argument, std::ios::binary);
      for (const auto& gradient : result.gradients) {
        const auto dense = gradient.to(torch::kDouble).contiguous();
        out.write(static_cast<const char*>(dense.const_data_ptr()), static_cast<std::streamsize>(dense.nbytes()));
      }
    } else if (command == "threads") {
      batch = use(std::stoll(argument));
      answer = true;
    } else if (command == "measure") {
      for (int64_t i = 0; i < std::stoll(argument); ++i) {
        const Stopwatch stopwatch;
        work.differentiate(strategy, *batch);
        answer.push_back(stopwatch.milliseconds());
      }
    } else {
      answer = memory("VmHWM") - loaded;
    }
    std::cout << answer << std::endl;
  }
}

}  // namespace
}  // namespace gimli

int main(int argc, char** argv) {
  const std::map<std::string, std::shared_ptr<const gimli::Strategy>> ways{
      {"own", std::make_shared<gimli::Unroll>()},
      {"captured", std::make_shared<gimli::Captured>()},
      {"libtorch", std::make_shared<gimli::Unroll>()},
      {"vmap", std::make_shared<gimli::Unroll>()},
      {"replay", std::make_shared<gimli::Replay>()},
      {"binomial", std::make_shared<gimli::Replay>(gimli::Binomial(10))},
  };
  if (argc != 4 || !ways.count(argv[2])) {
    std::fprintf(stderr, "gimli_peer FOLDER own|captured|libtorch|vmap|replay|binomial THREADS\n");
    return 2;
  }
  const std::string way = argv[2];
  gimli::use_own_operators(way != "libtorch");
  try {
    gimli::serve(gimli::Work(argv[1]), *ways.at(way), way == "vmap", std::stoll(argv[3]));
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "%s\n", error.what_without_backtrace());
    return 1;
  }
}
