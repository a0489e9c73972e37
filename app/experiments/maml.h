#pragma once

#include "app/experiment.h"

namespace gimli::app {

/// Model-agnostic meta-learning (Finn et al. 2017, "Model-agnostic meta-learning for fast adaptation of deep
/// networks"): the initial weights from which a few steps of an inner optimizer on a task's support set do best on its
/// query set. Its relatives are rows of one table: first-order MAML; ANIL (Raghu et al. 2020), which adapts the last
/// layer alone; Meta-SGD (Li et al. 2017), which also learns a rate for each weight; Reptile (Nichol et al. 2018); and
/// iMAML (Rajeswaran et al. 2019).
ExperimentEntry maml();

}  // namespace gimli::app
