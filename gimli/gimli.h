#pragma once

#include "gimli/tensor_list.h"

#include "gimli/substitution.h"

#include "gimli/optim/adam.h"
#include "gimli/optim/coordinates.h"
#include "gimli/optim/gradient_transform.h"
#include "gimli/optim/hyperparameter.h"
#include "gimli/optim/lstm_optimizer.h"
#include "gimli/optim/mlp_optimizer.h"
#include "gimli/optim/optimizer.h"
#include "gimli/optim/registry.h"
#include "gimli/optim/schedule.h"
#include "gimli/optim/sgd.h"

#include "gimli/inner_loop.h"

#include "gimli/bilevel.h"

#include "gimli/task_batch.h"

#include "gimli/hypergradient.h"

#include "gimli/gradcheck.h"
