#pragma once

#include <torch/arg.h>

#include "gimli/optim/optimizer.h"

namespace gimli::optim {

/// The options of Python's torch.optim.Adafactor. eps1 = 0 stands for the machine epsilon of the parameter's dtype.
struct AdafactorOptions {
  AdafactorOptions(double lr = 1e-2) : lr_(lr) {}
  TORCH_ARG(double, lr);
  TORCH_ARG(double, beta2_decay) = -0.8;
  TORCH_ARG(double, eps1) = 0;
  TORCH_ARG(double, eps2) = 1e-3;
  TORCH_ARG(double, d) = 1;
  TORCH_ARG(double, weight_decay) = 0;
  TORCH_ARG(bool, maximize) = false;
};

/// Adafactor (Shazeer & Stern 2018), with t counting updates from 1, rms(x) = |x|_2 / sqrt(numel) and means over the
/// last (R) and the last but one dimension (C):
///
///     R <- (1 - t^beta2_decay) R + t^beta2_decay mean(g^2),  and C likewise
///     v <- R C / max(mean(R), eps1)              vectors and scalars: a running mean of g^2 itself
///     u <- g / sqrt(max(v, eps1^2))
///     theta <- (1 - lr weight_decay) theta - min(lr, 1 / sqrt(t)) max(eps2, rms(theta)) u / max(1, rms(u) / d)
///
/// The slots are R [..., rows, 1] and C [..., 1, columns], or v. beta2_decay is one value a tensor.
class Adafactor final : public UpdateRule {
 public:
  explicit Adafactor(AdafactorOptions options = {});

  std::string name() const override { return "Adafactor"; }
  std::vector<HyperparameterSpec> hyperparameters() const override;
  ParameterState init(const at::Tensor& parameter) const override;
  Iterate update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                 const Values& hyperparameters) const override;

 private:
  AdafactorOptions options_;
};

}  // namespace gimli::optim
