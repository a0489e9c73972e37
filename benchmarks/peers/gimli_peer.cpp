// gimli as a contender of compare.py: gimli_peer FOLDER WAY THREADS, with WAY one of
//
//     captured    Captured(Unroll())
//     own         Unroll() on gimli's own operators
//     libtorch    Unroll() on libtorch's operators
//
// It reads the work and answers on stdout to the lines on stdin as contender.py says.

#include <torch/torch.h>

#include <chrono>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "gimli/gimli.h"
#include "gimli/nn/conv4.h"
#include "gimli/nn/mlp.h"

namespace gimli {
namespace {

using nlohmann::json;
using torch::Tensor;

template <class T>
Tensor read(const std::string& file, at::IntArrayRef sizes) {
  auto tensor = torch::empty(sizes, c10::CppTypeToScalarType<T>::value);
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

class Work final {
 public:
  explicit Work(const std::string& folder) : spec_(json::parse(std::ifstream(folder + "/spec.json"))) {
    const bool regression = spec_["network"] == "mlp";
    model_ = regression ? model(nn::mlp(spec_["sizes"].get<std::vector<int64_t>>()))
                        : model(nn::Conv4(nn::Conv4Options(spec_["ways"].get<int64_t>()).hidden(spec_["hidden"])));
    parameters_ = model_.module->parameters();
    int64_t count = 0;
    for (const auto& parameter : parameters_) count += parameter.numel();
    const auto values = read<float>(folder + "/parameters.f32", {count});
    torch::NoGradGuard no_grad;
    int64_t at = 0;
    for (const auto& parameter : parameters_) {
      parameter.copy_(values.slice(0, at, at + parameter.numel()).view(parameter.sizes()));
      at += parameter.numel();
    }
    const auto of = [&](const std::string& name) {
      const auto sizes = spec_[name + "_shape"].get<std::vector<int64_t>>();
      if (name[0] == 'x' || regression) return read<float>(folder + "/" + name + ".f32", sizes);
      return read<int64_t>(folder + "/" + name + ".i64", sizes);
    };
    const auto x = of("x"), y = of("y"), x_query = of("xq"), y_query = of("yq");
    for (int64_t t = 0; t < x.size(0); ++t) tasks_.push_back({x[t], y[t], x_query[t], y_query[t]});

    const auto lr = spec_["lr"].get<double>();
    const auto optimizer = spec_["optimizer"] == "adam"
                               ? optim::Optimizer(optim::Adam(optim::AdamOptions(lr)), parameters_)
                               : optim::Optimizer(optim::SGD(lr), parameters_);
    const auto loss = [forward = model_.forward](const Tensor& inputs, const Tensor& targets) {
      const auto out = forward(inputs);
      return targets.is_floating_point() ? torch::mse_loss(out, targets) : torch::cross_entropy_loss(out, targets);
    };
    problem_.emplace(model_.module, optimizer);
    problem_->steps(spec_["steps"].get<int64_t>())
        .inputs([](const Task& task) {
          return TensorList{task.x, task.y, task.x_query, task.y_query};
        })
        .inner([loss](const Task& task) { return loss(task.x, task.y); })
        .outer([loss](const Task& task) { return loss(task.x_query, task.y_query); });
  }

  TensorList gradients(const Strategy& strategy, const TaskBatch& batch) const {
    return hypergradient(*problem_, parameters_, tasks_, strategy, batch).gradients;
  }

  int64_t task_count() const { return static_cast<int64_t>(tasks_.size()); }

 private:
  json spec_;
  Model model_;
  TensorList parameters_;
  std::vector<Task> tasks_;
  std::optional<Bilevel> problem_;
};

int64_t memory(const std::string& field) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.rfind(field + ":", 0) == 0) return std::stoll(line.substr(field.size() + 1)) * 1024;
  }
  return 0;
}

void serve(const Work& work, const Strategy& strategy, const TaskBatch& batch) {
  const auto loaded = memory("VmRSS");
  std::cout << "ready" << std::endl;
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    std::string command, argument;
    words >> command >> argument;
    if (command == "gradient") {
      std::ofstream out(argument, std::ios::binary);
      for (const auto& gradient : work.gradients(strategy, batch)) {
        const auto dense = gradient.contiguous();
        out.write(static_cast<const char*>(dense.const_data_ptr()), dense.nbytes());
      }
      out.close();
      std::cout << "\"written\"" << std::endl;
    } else if (command == "measure") {
      json milliseconds = json::array();
      for (int64_t i = 0; i < std::stoll(argument); ++i) {
        const auto begin = std::chrono::steady_clock::now();
        work.gradients(strategy, batch);
        milliseconds.push_back(
            std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
      }
      std::cout << milliseconds << std::endl;
    } else {
      std::cout << memory("VmHWM") - loaded << std::endl;
    }
  }
}

}  // namespace
}  // namespace gimli

int main(int argc, char** argv) {
  if (argc != 4) {
    std::fprintf(stderr, "gimli_peer FOLDER captured|own|libtorch THREADS\n");
    return 2;
  }
  const std::string way = argv[2];
  gimli::use_own_operators(way != "libtorch");
  const gimli::Work work(argv[1]);
  const gimli::Threads batch(std::min<int64_t>(std::stoll(argv[3]), work.task_count()));
  if (way == "captured") {
    gimli::serve(work, gimli::Captured(), batch);
  } else {
    gimli::serve(work, gimli::Unroll(), batch);
  }
}
