#pragma once

#include <torch/nn/module.h>

#include <functional>
#include <memory>
#include <vector>

#include "app/config.h"
#include "app/labelled_images.h"

namespace gimli::app {

/// What an optimizer is tried on: several problems of one shape, solved side by side. None sees another, so that the
/// gradient of the sum of their losses is that of each: one run of a coordinate-wise optimizer on all is what it does
/// on each alone, in far fewer operators.
struct Optimizee {
  /// Its parameters are theta_0.
  std::shared_ptr<torch::nn::Module> module;
  /// f_step(theta) of each problem, [problems]: step counts the updates that led to theta.
  std::function<at::Tensor(int64_t step)> losses;
};

/// A distribution of problems to optimize, by number: a function of a seed.
class Optimizees {
 public:
  virtual ~Optimizees() = default;

  /// Problems `first` to `first + count` - 1, in optimizees of equally many.
  virtual std::vector<Optimizee> draw(int64_t first, int64_t count) const = 0;
};

/// f(theta) = |W theta - y|^2 with W [d, d] and y [d] standard normal, theta_0 normal of deviation 0.01. Problems that
/// are drawn together are one optimizee with theta [problems, d].
class Quadratics final : public Optimizees {
 public:
  Quadratics(uint64_t seed, int64_t dimensions, at::TensorOptions options)
      : seed_(seed), dimensions_(dimensions), options_(options) {}

  std::vector<Optimizee> draw(int64_t first, int64_t count) const override;

 private:
  uint64_t seed_;
  int64_t dimensions_;
  at::TensorOptions options_;
};

/// The cross-entropy of a perceptron with a hidden layer of sigmoid units on images of ten classes, each step on a new
/// batch of images drawn with replacement. Problems differ in these and in the initial weights, normal of deviation
/// 0.01. Each is an optimizee of its own, as its many weights fill the operators.
class Perceptrons final : public Optimizees {
 public:
  Perceptrons(uint64_t seed, LabelledImages images, int64_t hidden, int64_t batch)
      : seed_(seed), images_(std::move(images)), hidden_(hidden), batch_(batch) {}

  std::vector<Optimizee> draw(int64_t first, int64_t count) const override;

 private:
  uint64_t seed_;
  LabelledImages images_;
  int64_t hidden_, batch_;
};

/// Problems to learn on, those to choose by, and those to test on; only the first ones depend on the setting seed. Of
/// images, the test images are for the last ones alone.
struct OptimizeeSplits {
  std::shared_ptr<const Optimizees> training, validation, held_out;
};

/// Reads the settings dataset, dimensions, data_root, image_size, units, batch, seed and device.
OptimizeeSplits make_optimizees(const Config& config);

}  // namespace gimli::app
