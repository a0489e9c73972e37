#pragma once

#include <torch/arg.h>

#include <tuple>

#include "gimli/optim/optimizer.h"

namespace gimli::optim {

/// The options of Python's torch.optim.Muon, and the dtype in which updates are orthogonalised: torch.optim takes
/// bfloat16, whose rounding no derivative sees; the default is the parameter's own.
struct MuonOptions {
  MuonOptions(double lr = 1e-3) : lr_(lr) {}
  typedef std::tuple<double, double, double> coefficients_t;
  TORCH_ARG(double, lr);
  TORCH_ARG(double, weight_decay) = 0.1;
  TORCH_ARG(double, momentum) = 0.95;
  TORCH_ARG(bool, nesterov) = true;
  TORCH_ARG(coefficients_t, ns_coefficients) = std::make_tuple(3.4445, -4.7750, 2.0315);
  TORCH_ARG(double, eps) = 1e-7;
  TORCH_ARG(int64_t, ns_steps) = 5;
  /// "original" scales the rate by sqrt(max(1, rows / columns)), "match_rms_adamw" by 0.2 sqrt(max(rows, columns)).
  TORCH_ARG(std::string, adjust_lr_fn) = "original";
  TORCH_ARG(std::optional<at::ScalarType>, orthogonalization_dtype);
};

/// Muon (Jordan et al. 2024) for matrices:
///
///     b <- momentum b + (1 - momentum) g
///     u <- b                                     nesterov: momentum b + (1 - momentum) g
///     X <- u / max(|u|_F, eps), transposed if it has more rows than columns
///     ns_steps times: A = X X', X <- a X + (b A + c A^2) X       (the ns_coefficients a, b, c)
///     theta <- (1 - lr weight_decay) theta - lr scale X
///
/// The slot is the first b. eps and the coefficients, hyperparameters ns_a, ns_b and ns_c, are one value a tensor.
class Muon final : public UpdateRule {
 public:
  explicit Muon(MuonOptions options = {});

  std::string name() const override { return "Muon"; }
  std::vector<HyperparameterSpec> hyperparameters() const override;
  ParameterState init(const at::Tensor& parameter) const override;
  Iterate update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                 const Values& hyperparameters) const override;

 private:
  MuonOptions options_;
};

}  // namespace gimli::optim
