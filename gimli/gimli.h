#pragma once

#include "gimli/tensor_list.h"

#include "gimli/memory_meter.h"

#include "gimli/linear_solve.h"

#include "gimli/operators/replacement.h"

#include "gimli/substitution.h"

#include "gimli/optim/gradient_transform.h"
#include "gimli/optim/hyperparameter.h"
#include "gimli/optim/learned_hyperparameters.h"
#include "gimli/optim/optimizer.h"
#include "gimli/optim/registry.h"
#include "gimli/optim/rules/adadelta.h"
#include "gimli/optim/rules/adafactor.h"
#include "gimli/optim/rules/adagrad.h"
#include "gimli/optim/rules/adam.h"
#include "gimli/optim/rules/adamax.h"
#include "gimli/optim/rules/asgd.h"
#include "gimli/optim/rules/coordinates.h"
#include "gimli/optim/rules/lamb.h"
#include "gimli/optim/rules/lbfgs.h"
#include "gimli/optim/rules/lion.h"
#include "gimli/optim/rules/lstm_optimizer.h"
#include "gimli/optim/rules/mlp_optimizer.h"
#include "gimli/optim/rules/muon.h"
#include "gimli/optim/rules/nadam.h"
#include "gimli/optim/rules/radam.h"
#include "gimli/optim/rules/rmsprop.h"
#include "gimli/optim/rules/rprop.h"
#include "gimli/optim/rules/sgd.h"
#include "gimli/optim/rules/yogi.h"
#include "gimli/optim/schedule.h"

#include "gimli/inner_loop.h"

#include "gimli/bilevel.h"

#include "gimli/task_batch.h"

#include "gimli/hypergradient.h"
#include "gimli/hypergradient/captured.h"
#include "gimli/hypergradient/evolution.h"
#include "gimli/hypergradient/finite_difference.h"
#include "gimli/hypergradient/forward_mode.h"
#include "gimli/hypergradient/implicit.h"
#include "gimli/hypergradient/recommend.h"
#include "gimli/hypergradient/replay.h"
#include "gimli/hypergradient/replay_schedule.h"
#include "gimli/hypergradient/reptile.h"
#include "gimli/hypergradient/reversible.h"

#include "gimli/gradcheck.h"
