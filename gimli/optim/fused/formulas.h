#pragma once

#include <array>

#include "gimli/pack.h"

namespace gimli::optim::fused {

/// (1 - w) x + w y, exact at both ends; at::lerp's form.
template <class T>
GIMLI_INLINE T interpolate(T w, T x, T y) {
  const T way = y - x;
  return select(is_small(w), x + w * way, y - (T(1) - w) * way);
}

/// The update of one element: forward() from the parameter, its gradient, the slots (x) and the coefficients (c) to the
/// new parameter and slots (y), and its vector-Jacobian product, from a cotangent of y to those of x and c. T is a
/// number, a Dual to differentiate either once more, or a Trace. passes_theta_bar() says whether the parameter's
/// cotangent comes out as it went in.
template <class T, int inputs, int coefficients>
struct Cotangents {
  std::array<T, inputs> x;
  std::array<T, coefficients> c;
};

/// gimli::optim::SGD. The slot b is unused without momentum, and 0 before the first update.
struct SgdFormula {
  static constexpr int inputs = 3, outputs = 2, coefficients = 4;
  static constexpr auto name = "SGD";

  bool momentum, nesterov, decay, maximize;

  int slots() const { return momentum ? 1 : 0; }
  bool passes_theta_bar() const { return !decay; }

  template <class T>
  GIMLI_INLINE std::array<T, outputs> forward(const std::array<T, inputs>& x,
                                              const std::array<T, coefficients>& c) const {
    const auto [theta, gradient, b] = x;
    const auto [minus_lr, mu, weight, lambda] = c;
    const T ascent = select(maximize, -gradient, gradient);
    const T g = select(decay, ascent + lambda * theta, ascent);
    const T next = mu * b + weight * g;
    const T direction = select(momentum, select(nesterov, g + mu * next, next), g);
    return {theta + minus_lr * direction, next};
  }

  template <class T>
  GIMLI_INLINE Cotangents<T, inputs, coefficients> vjp(const std::array<T, inputs>& x,
                                                       const std::array<T, coefficients>& c,
                                                       const std::array<T, outputs>& y_bar) const {
    const auto [theta, gradient, b] = x;
    const auto [minus_lr, mu, weight, lambda] = c;
    const auto [theta_bar, b_bar] = y_bar;
    const T ascent = select(maximize, -gradient, gradient);
    const T g = select(decay, ascent + lambda * theta, ascent);
    const T next = mu * b + weight * g;
    const T direction = select(momentum, select(nesterov, g + mu * next, next), g);

    const T direction_bar = minus_lr * theta_bar;
    const T through_b = select(momentum, b_bar + select(nesterov, mu * direction_bar, direction_bar), T(0));
    const T past_b = select(momentum && !nesterov, T(0), direction_bar);
    const T g_bar = past_b + weight * through_b;
    const T ascent_bar = select(maximize, -g_bar, g_bar);
    return {{theta_bar + select(decay, lambda * g_bar, T(0)), ascent_bar, mu * through_b},
            {theta_bar * direction, through_b * b + select(nesterov, direction_bar * next, T(0)), through_b * g,
             select(decay, g_bar * theta, T(0))}};
  }
};

/// gimli::optim::Adam and AdamW. The slot u is unused without amsgrad.
struct AdamFormula {
  static constexpr int inputs = 5, outputs = 4, coefficients = 6;
  static constexpr auto name = "Adam";

  bool amsgrad, decay, shrink, maximize;  // decay: g + c theta; shrink: c theta

  int slots() const { return amsgrad ? 3 : 2; }
  bool passes_theta_bar() const { return !decay && !shrink; }

  template <class T>
  GIMLI_INLINE std::array<T, outputs> forward(const std::array<T, inputs>& x,
                                              const std::array<T, coefficients>& c) const {
    const auto [theta, gradient, m, v, u] = x;
    const auto [step, one_minus_beta1, one_minus_beta2, correction, eps, lambda] = c;
    const T ascent = select(maximize, -gradient, gradient);
    const T g = select(decay, ascent + lambda * theta, ascent);
    const T next_m = interpolate(one_minus_beta1, m, g);
    const T next_v = interpolate(one_minus_beta2, v, g * g);
    const T next_u = select(amsgrad, larger(u, next_v), next_v);
    const T denominator = root(next_u) / correction + eps;
    return {select(shrink, lambda * theta, theta) + step * (next_m / denominator), next_m, next_v, next_u};
  }

  template <class T>
  GIMLI_INLINE Cotangents<T, inputs, coefficients> vjp(const std::array<T, inputs>& x,
                                                       const std::array<T, coefficients>& c,
                                                       const std::array<T, outputs>& y_bar) const {
    const auto [theta, gradient, m, v, u] = x;
    const auto [step, one_minus_beta1, one_minus_beta2, correction, eps, lambda] = c;
    const auto [theta_bar, m_bar, v_bar, u_bar] = y_bar;
    const T ascent = select(maximize, -gradient, gradient);
    const T g = select(decay, ascent + lambda * theta, ascent);
    const T next_m = interpolate(one_minus_beta1, m, g);
    const T next_v = interpolate(one_minus_beta2, v, g * g);
    const T next_u = select(amsgrad, larger(u, next_v), next_v);
    const T root_u = root(next_u);
    const T scaled = root_u / correction;
    const T denominator = scaled + eps;
    const T ratio = next_m / denominator;

    const T ratio_bar = step * theta_bar;
    const T slope = ratio_bar / denominator;
    const T next_m_bar = m_bar + slope;
    const T denominator_bar = -(slope * ratio);
    const T root_bar = denominator_bar / correction;
    const T next_u_bar = select(amsgrad, u_bar, T(0)) + root_bar * half_inverse(root_u);
    const T share = select(amsgrad, share_of(u, next_v), T(0));
    const T next_v_bar = v_bar + (T(1) - share) * next_u_bar;
    const T g_bar = one_minus_beta1 * next_m_bar + T(2) * (one_minus_beta2 * next_v_bar) * g;
    return {{select(shrink, lambda * theta_bar, theta_bar) + select(decay, lambda * g_bar, T(0)),
             select(maximize, -g_bar, g_bar), (T(1) - one_minus_beta1) * next_m_bar,
             (T(1) - one_minus_beta2) * next_v_bar, share * next_u_bar},
            {theta_bar * ratio, next_m_bar * (g - m), next_v_bar * (g * g - v), -(root_bar * scaled), denominator_bar,
             select(shrink, theta_bar * theta, T(0)) + select(decay, g_bar * theta, T(0))}};
  }
};

}  // namespace gimli::optim::fused
