#include "gimli/optim/fused/update.h"

#include <ATen/ATen.h>

#include <numeric>

#include "gimli/optim/fused/node.h"
#include "gimli/trace.h"

namespace gimli::optim::fused {
namespace {

bool same(const Value& a, const Value& b) {
  if (a.is_number() || b.is_number()) return a.is_number() && b.is_number() && a.number() == b.number();
  return a.tensor().is_same(b.tensor());
}

bool same(const Values& a, const Values& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const Value& x, const Value& y) { return same(x, y); });
}

bool same_slots(const ParameterState& a, const ParameterState& b) {
  return std::equal(a.slots.begin(), a.slots.end(), b.slots.begin(), b.slots.end(),
                    [](const at::Tensor& x, const at::Tensor& y) { return x.defined() == y.defined(); });
}

bool fits(const Value& value) {
  if (value.is_number()) return true;
  const auto& tensor = value.tensor();
  return tensor.dim() == 0 && tensor.scalar_type() == at::kDouble && is_plain(tensor);
}

bool fits(const Iterate& iterate, const at::Tensor& gradient, const Values& hyperparameters) {
  const auto& parameter = iterate.parameter;
  const auto like_parameter = [&](const at::Tensor& tensor) {
    return is_plain(tensor) && tensor.scalar_type() == parameter.scalar_type() && tensor.sizes() == parameter.sizes() &&
           !tensor.is_neg() && !tensor._is_zerotensor();
  };
  const auto& slots = iterate.state.slots;
  return is_plain(parameter) && parameter.is_non_overlapping_and_dense() && like_parameter(parameter) &&
         like_parameter(gradient) &&
         std::all_of(slots.begin(), slots.end(),
                     [&](const at::Tensor& slot) { return !slot.defined() || like_parameter(slot); }) &&
         std::all_of(hyperparameters.begin(), hyperparameters.end(), [](const Value& value) { return fits(value); });
}

/// Whether nobody could tell if the tensor's memory were used again.
bool is_held_once(const at::Tensor& tensor) {
  return tensor.use_count() == 1 && tensor.storage().use_count() == 1 && tensor.storage().resizable() &&
         !tensor.is_inference();
}

constexpr int64_t kRecordedElements = 1 << 14;

int64_t count_of_elements(const std::vector<Iterate>& iterates) {
  return std::accumulate(iterates.begin(), iterates.end(), int64_t(0),
                         [](int64_t count, const Iterate& iterate) { return count + iterate.parameter.numel(); });
}

/// The iterates that are updated in one pass.
template <class Formula>
class Update final {
 public:
  void add(const Recipe<Formula>& recipe, bool same_as_last, const Iterate& iterate, const at::Tensor& gradient) {
    if (!same_as_last) add_row(recipe);
    const auto& [parameter, state] = iterate;
    const auto slots = state.slots.begin();
    const auto count = recipe.formula.slots();
    const auto& member = group_->members.emplace_back(parameter, recipe.formula, group_->rows.size() - 1);

    y_.push_back(place_for(parameter, member));
    for (int k = 0; k < count; ++k) y_.push_back(place_for(slots[k], member));
    y_.resize(group_->count_of_outputs());

    x_.push_back(parameter);
    x_.push_back(gradient);
    x_.insert(x_.end(), slots, slots + count);
    x_.resize(group_->members.size() * Formula::inputs);
  }

  /// What the iterate that was added as the `member`-th will be after run().
  Iterate result(size_t member, const ParameterState& state) const {
    const auto of = [&](int k) {
      const auto& y = y_[group_->y(member, k)];
      return y.requires_grad() ? y.detach() : y;
    };
    auto slots = state.slots;
    for (int k = 0; k < group_->members[member].formula.slots(); ++k) slots[k] = of(k + 1);
    return {of(0), {state.step + 1, std::move(slots)}};
  }

  void run() {
    x_.insert(x_.end(), c_.begin(), c_.end());
    evaluate<Formula>(group_, Order::value, x_, y_);
    if (at::GradMode::is_enabled()) record<Formula>(group_, x_, y_);
    for (const auto& tensor : written_over_) tensor.unsafeGetTensorImpl()->bump_version();
  }

 private:
  /// Where the new value of `tensor` goes.
  at::Tensor place_for(const at::Tensor& tensor, const Member<Formula>& member) {
    if (at::GradMode::is_enabled() || !tensor.defined() || !is_held_once(tensor) || !member.lies_as(tensor)) {
      return member.empty();
    }
    return written_over_.emplace_back(tensor);
  }

  void add_row(const Recipe<Formula>& recipe) {
    auto& row = group_->rows.emplace_back();
    for (size_t k = 0; k < row.size(); ++k) {
      const auto& value = recipe.coefficients[k];
      row[k] = value.is_number() ? value.number() : 0;
      c_.push_back(value.is_number() ? at::Tensor() : value.tensor());
    }
  }

  std::shared_ptr<Group<Formula>> group_ = std::make_shared<Group<Formula>>();
  TensorList x_, c_, y_, written_over_;
};

}  // namespace

template <class Formula>
void update_all(const UpdateRule& rule,
                const std::function<Recipe<Formula>(const ParameterState&, const Values&)>& recipe_for,
                std::vector<Iterate>& iterates, const TensorList& gradients,
                const std::vector<Values>& hyperparameters) {
  // Of small tensors, a trace replays plain operators faster.
  if (Trace::is_recording() && count_of_elements(iterates) < kRecordedElements) {
    return rule.UpdateRule::update_all(iterates, gradients, hyperparameters);
  }
  Update<Formula> update;
  std::vector<size_t> positions;
  std::vector<std::pair<size_t, Iterate>> results;
  std::optional<Recipe<Formula>> recipe;
  for (size_t i = 0; i < iterates.size(); ++i) {
    if (!gradients[i].defined()) continue;
    const auto& state = iterates[i].state;
    if (fits(iterates[i], gradients[i], hyperparameters[i])) {
      const bool same_as_last = recipe && state.step == iterates[positions.back()].state.step &&
                                same_slots(state, iterates[positions.back()].state) &&
                                same(hyperparameters[i], hyperparameters[positions.back()]);
      auto own = same_as_last ? *recipe : recipe_for(state, hyperparameters[i]);
      if (own.formula.slots() <= static_cast<int>(state.slots.size())) {
        update.add(own, same_as_last, iterates[i], gradients[i]);
        recipe = std::move(own);
        positions.push_back(i);
        continue;
      }
    }
    results.emplace_back(i, rule.update(iterates[i].parameter, gradients[i], state, hyperparameters[i]));
  }
  for (size_t k = 0; k < positions.size(); ++k) {
    results.emplace_back(positions[k], update.result(k, iterates[positions[k]].state));
  }
  update.run();
  for (auto& [i, result] : results) iterates[i] = std::move(result);
}

template void update_all<SgdFormula>(const UpdateRule&,
                                     const std::function<Recipe<SgdFormula>(const ParameterState&, const Values&)>&,
                                     std::vector<Iterate>&, const TensorList&, const std::vector<Values>&);
template void update_all<AdamFormula>(const UpdateRule&,
                                      const std::function<Recipe<AdamFormula>(const ParameterState&, const Values&)>&,
                                      std::vector<Iterate>&, const TensorList&, const std::vector<Values>&);

}  // namespace gimli::optim::fused
