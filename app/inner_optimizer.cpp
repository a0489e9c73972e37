#include "app/inner_optimizer.h"

#include <functional>

#include "gimli/optim/rules/adadelta.h"
#include "gimli/optim/rules/adafactor.h"
#include "gimli/optim/rules/adagrad.h"
#include "gimli/optim/rules/adam.h"
#include "gimli/optim/rules/adamax.h"
#include "gimli/optim/rules/asgd.h"
#include "gimli/optim/rules/lamb.h"
#include "gimli/optim/rules/lbfgs.h"
#include "gimli/optim/rules/lion.h"
#include "gimli/optim/rules/muon.h"
#include "gimli/optim/rules/nadam.h"
#include "gimli/optim/rules/radam.h"
#include "gimli/optim/rules/rmsprop.h"
#include "gimli/optim/rules/rprop.h"
#include "gimli/optim/rules/sgd.h"
#include "gimli/optim/rules/yogi.h"

namespace gimli::app {
namespace {

using namespace gimli::optim;

struct Row {
  std::string name;
  std::function<Optimizer(double, TensorList)> make;
};

template <class Rule, class Options>
Row row(const std::string& name) {
  return {name, [](double lr, TensorList parameters) { return Optimizer(Rule(Options(lr)), std::move(parameters)); }};
}

const std::vector<Row>& rows() {
  static const std::vector<Row> rows{
      row<SGD, SGDOptions>("sgd"),
      {"momentum",
       [](double lr, TensorList parameters) {
         return Optimizer(SGD(SGDOptions(lr).momentum(0.9)), std::move(parameters));
       }},
      row<Adam, AdamOptions>("adam"),
      {"adamw",
       [](double lr, TensorList parameters) {
         return Optimizer(AdamW(AdamOptions(lr).weight_decay(1e-2)), std::move(parameters));
       }},
      row<Adamax, AdamaxOptions>("adamax"),
      row<NAdam, NAdamOptions>("nadam"),
      row<RAdam, RAdamOptions>("radam"),
      row<Adadelta, AdadeltaOptions>("adadelta"),
      row<Adagrad, AdagradOptions>("adagrad"),
      row<RMSprop, RMSpropOptions>("rmsprop"),
      row<ASGD, ASGDOptions>("asgd"),
      row<Rprop, RpropOptions>("rprop"),
      row<Adafactor, AdafactorOptions>("adafactor"),
      {"muon",
       [](double lr, TensorList parameters) {
         TensorList matrices, others;
         for (auto& p : parameters) (p.dim() == 2 ? matrices : others).push_back(p);
         return Optimizer{Optimizer(Muon(MuonOptions(lr)), matrices), Optimizer(AdamW(AdamOptions(lr)), others)};
       }},
      row<LBFGS, LBFGSOptions>("lbfgs"),
      row<Lion, LionOptions>("lion"),
      row<LAMB, LAMBOptions>("lamb"),
      row<Yogi, YogiOptions>("yogi"),
  };
  return rows;
}

}  // namespace

const std::vector<std::string>& inner_optimizer_names() {
  static const auto names = [] {
    std::vector<std::string> names;
    for (const auto& row : rows()) names.push_back(row.name);
    return names;
  }();
  return names;
}

Optimizer make_inner_optimizer(const std::string& name, double lr, TensorList parameters) {
  for (const auto& row : rows()) {
    if (row.name == name) return row.make(lr, std::move(parameters));
  }
  TORCH_CHECK(false, "there is no inner optimizer '", name, "'");
}

}  // namespace gimli::app
