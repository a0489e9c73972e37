#include "gimli/optim/rules/lbfgs.h"

#include <ATen/ATen.h>

namespace gimli::optim {
namespace {

/// What the iterates keep about one update: the step, and the change of the gradient.
struct Pair {
  TensorList s, y;
};

at::Tensor dot(const TensorList& a, const TensorList& b) {
  auto sum = (widened(a[0]) * widened(b[0])).sum();
  for (size_t i = 1; i < a.size(); ++i) sum = sum + (widened(a[i]) * widened(b[i])).sum();
  return sum;
}

/// x + a y.
TensorList add(TensorList x, const Value& a, const TensorList& y) {
  for (size_t i = 0; i < x.size(); ++i) x[i] = add_scaled(x[i], a, y[i]);
  return x;
}

TensorList scaled(const Value& a, TensorList x) {
  for (auto& tensor : x) tensor = scale(a, tensor);
  return x;
}

/// The k-th slot of every iterate.
TensorList slots(const std::vector<Iterate>& iterates, size_t k) {
  TensorList list;
  for (const auto& iterate : iterates) list.push_back(iterate.state.slots[k]);
  return list;
}

/// -H g by the two-loop recursion.
TensorList direction(const TensorList& g, const std::vector<Pair>& history) {
  auto d = scaled(-1, g);
  if (history.empty()) return d;
  TensorList alphas(history.size());
  for (size_t k = history.size(); k-- > 0;) {
    const auto& [s, y] = history[k];
    alphas[k] = dot(s, d) / dot(y, s);
    d = add(std::move(d), -alphas[k], y);
  }
  const auto& [s, y] = history.back();
  d = scaled(dot(y, s) / dot(y, y), std::move(d));
  for (size_t k = 0; k < history.size(); ++k) {
    const auto& [s, y] = history[k];
    d = add(std::move(d), alphas[k] - dot(y, d) / dot(y, s), s);
  }
  return d;
}

}  // namespace

LBFGS::LBFGS(LBFGSOptions options) : options_(options) {
  TORCH_CHECK(options.history_size() >= 1, "LBFGS: expected a history_size of at least 1, got ",
              options.history_size());
}

std::vector<HyperparameterSpec> LBFGS::hyperparameters() const { return {{"lr", options_.lr(), Domain::positive}}; }

ParameterState LBFGS::init(const at::Tensor&) const { return {}; }

void LBFGS::update_all(std::vector<Iterate>& iterates, const TensorList& gradients,
                       const std::vector<Values>& hyperparameters) const {
  constexpr double least_curvature = 1e-10;
  bool any = false;
  TensorList g;
  for (size_t i = 0; i < iterates.size(); ++i) {
    any = any || gradients[i].defined();
    g.push_back(gradients[i].defined() ? gradients[i] : at::zeros_like(iterates[i].parameter));
  }
  if (!any) return;
  const auto small = [&](const at::Tensor& x) { return x.abs().le(options_.tolerance_grad()).all().item<bool>(); };
  if (std::all_of(g.begin(), g.end(), small)) return;

  const bool fresh = iterates[0].state.slots.empty();
  std::vector<Pair> history;
  if (!fresh) {
    for (size_t k = 2; k < iterates[0].state.slots.size(); k += 2) {
      history.push_back({slots(iterates, k), slots(iterates, k + 1)});
    }
    const Pair last{slots(iterates, 1), add(g, -1, slots(iterates, 0))};
    if (dot(last.y, last.s).item<double>() > least_curvature) {
      if (static_cast<int64_t>(history.size()) == options_.history_size()) history.erase(history.begin());
      history.push_back(last);
    }
  }
  const auto d = direction(g, history);

  Value shortening = 1;
  if (fresh) {
    TensorList signs;
    for (const auto& tensor : g) signs.push_back(tensor.sign());
    shortening = dot(g, signs).reciprocal().clamp_max(1);
  }
  const bool stays =
      dot(g, d).item<double>() > -options_.tolerance_change();  // false for NaN, which is not to be hidden
  std::vector<Iterate> next;
  for (size_t i = 0; i < iterates.size(); ++i) {
    const auto step = scale(shortening * hyperparameters[i][0], d[i]);
    TensorList kept{g[i], step};
    for (const auto& pair : history) {
      kept.push_back(pair.s[i]);
      kept.push_back(pair.y[i]);
    }
    const auto& [parameter, state] = iterates[i];
    next.push_back({stays ? parameter : parameter + step, {state.step + 1, std::move(kept)}});
  }
  iterates = std::move(next);
}

Iterate LBFGS::update(const at::Tensor& parameter, const at::Tensor& gradient, const ParameterState& state,
                      const Values& hyperparameters) const {
  return update_alone(*this, parameter, gradient, state, hyperparameters);
}

}  // namespace gimli::optim
