#pragma once

#include "app/experiment.h"

namespace gimli::app {

/// Model-agnostic meta-learning (Finn et al. 2017, "Model-agnostic meta-learning for fast adaptation of deep
/// networks"): the initial weights from which a few steps of an inner optimizer on a task's support set do best on its
/// query set.
ExperimentEntry maml();

}  // namespace gimli::app
