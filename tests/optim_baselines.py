"""Writes optim_baselines.h: what Python's torch.optim, and optax where that has no such optimizer, do in float64, for
the tests of the optimizers to agree with.

    pip install torch==2.13.0 jax optax
    python optim_baselines.py > optim_baselines.h

A new optimizer or option set is a new row below. All inputs are numbers that float64 holds exactly, so C++ recreates
them to the last bit.
"""

import contextlib
import inspect
import math
import textwrap

import jax
import numpy
import optax
import torch

jax.config.update("jax_enable_x64", True)
torch.set_default_dtype(torch.float64)  # NAdam and ASGD keep scalars of their state in it

BETAS = dict(beta1=0.9, beta2=0.999)
# gimli's names of all hyperparameters, with the values that rows do not change.
DEFAULTS = {
    "SGD": dict(lr=0.1, momentum=0.0, dampening=0.0, weight_decay=0.0),
    "Adam": dict(lr=1e-3, **BETAS, eps=1e-8, weight_decay=0.0),
    "AdamW": dict(lr=1e-3, **BETAS, eps=1e-8, weight_decay=1e-2),
    "Adamax": dict(lr=2e-3, **BETAS, eps=1e-8, weight_decay=0.0),
    "NAdam": dict(lr=2e-3, **BETAS, eps=1e-8, weight_decay=0.0, momentum_decay=4e-3),
    "RAdam": dict(lr=1e-3, **BETAS, eps=1e-8, weight_decay=0.0),
    "Adadelta": dict(lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0),
    "Adagrad": dict(lr=1e-2, lr_decay=0.0, weight_decay=0.0, initial_accumulator_value=0.0, eps=1e-10),
    "RMSprop": dict(lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0),
    "ASGD": dict(lr=1e-2, lambd=1e-4, alpha=0.75, t0=1e6, weight_decay=0.0),
    "Rprop": dict(lr=1e-2, etaminus=0.5, etaplus=1.2, step_size_min=1e-6, step_size_max=50.0),
    "Adafactor": dict(lr=1e-2, beta2_decay=-0.8, eps1=2**-52, eps2=1e-3, d=1.0, weight_decay=0.0),
    "Muon": dict(lr=1e-3, weight_decay=0.1, momentum=0.95, ns_a=3.4445, ns_b=-4.775, ns_c=2.0315, eps=1e-7),
    "LBFGS": dict(lr=1.0),
    "Lion": dict(lr=1e-4, beta1=0.9, beta2=0.99, weight_decay=0.0),
    "LAMB": dict(lr=1e-3, **BETAS, eps=1e-6, weight_decay=0.0),
    "Yogi": dict(lr=1e-2, **BETAS, eps=1e-3, initial_accumulator_value=1e-6, weight_decay=0.0),
}

UPDATES = {
    "SGD": [
        dict(),
        dict(momentum=0.9),
        dict(momentum=0.9, dampening=0.4),
        dict(momentum=0.9, weight_decay=0.1),
        dict(momentum=0.9, nesterov=True),
        dict(weight_decay=0.1),
        dict(maximize=True),
        dict(momentum=0.7, dampening=0.3, weight_decay=0.05, maximize=True),
        dict(momentum=0.7, weight_decay=0.05, nesterov=True, maximize=True),
    ],
    "Adam": (
        adam := [
            dict(),
            dict(lr=0.1, beta1=0.5, beta2=0.8),
            dict(lr=0.1, beta1=0.0, beta2=0.0),
            dict(lr=0.1, eps=0.5),
            dict(lr=0.1, eps=1e-12),
            dict(lr=0.1, weight_decay=0.1),
            dict(lr=0.1, beta2=0.8, amsgrad=True),
            dict(lr=0.1, maximize=True),
            dict(lr=0.1, beta2=0.8, weight_decay=0.1, amsgrad=True, maximize=True),
        ]
    ),
    "AdamW": adam + [dict(lr=0.1, weight_decay=0.0)],
    "Adamax": [
        dict(),
        dict(lr=0.1, beta1=0.5, beta2=0.8),
        dict(lr=0.1, beta1=0.0, beta2=0.0),
        dict(lr=0.1, eps=0.5),
        dict(lr=0.1, eps=1e-12),
        dict(lr=0.1, weight_decay=0.1),
        dict(lr=0.1, beta2=0.8, weight_decay=0.1, maximize=True),
    ],
    "NAdam": [
        dict(),
        dict(lr=0.1, beta1=0.5, beta2=0.8, momentum_decay=0.1),
        dict(lr=0.1, beta1=0.0, beta2=0.0),
        dict(lr=0.1, eps=0.5, momentum_decay=0.0),
        dict(lr=0.1, weight_decay=0.1),
        dict(lr=0.1, weight_decay=0.1, decoupled_weight_decay=True),
        dict(lr=0.1, beta2=0.8, weight_decay=0.1, maximize=True),
    ],
    "RAdam": [
        dict(),
        dict(lr=0.1, beta1=0.5, beta2=0.9),
        dict(lr=0.1, beta1=0.0, beta2=0.0),
        dict(lr=0.1, beta2=0.9, eps=0.5),
        dict(lr=0.1, weight_decay=0.1),
        dict(lr=0.1, weight_decay=0.1, decoupled_weight_decay=True),
        dict(lr=0.1, beta2=0.9, weight_decay=0.1, maximize=True),
    ],
    "Adadelta": [
        dict(),
        dict(lr=0.5, rho=0.5, eps=0.1),
        dict(rho=0.0, eps=0.1),
        dict(eps=1e-10),
        dict(weight_decay=0.1, eps=1e-3),
        dict(lr=0.5, eps=0.01, weight_decay=0.1, maximize=True),
    ],
    "Adagrad": [
        dict(),
        dict(lr=0.1, lr_decay=0.1),
        dict(lr=0.1, initial_accumulator_value=0.5),
        dict(lr=0.1, eps=0.5),
        dict(lr=0.1, weight_decay=0.1),
        dict(lr=0.1, lr_decay=0.05, weight_decay=0.1, initial_accumulator_value=0.1, maximize=True),
    ],
    "RMSprop": [
        dict(),
        dict(alpha=0.5),
        dict(alpha=0.0),
        dict(eps=0.5),
        dict(weight_decay=0.1),
        dict(momentum=0.9),
        dict(centered=True),
        dict(alpha=0.8, eps=0.1, momentum=0.7, weight_decay=0.1, centered=True, maximize=True),
    ],
    "ASGD": [
        dict(),
        dict(lr=0.1, lambd=0.1, alpha=0.5, t0=2.5),
        dict(lr=0.1, lambd=0.0, t0=-0.5),
        dict(lr=0.1, weight_decay=0.1),
        dict(lr=0.1, lambd=0.05, t0=1.5, weight_decay=0.1, maximize=True),
    ],
    "Rprop": [
        dict(),
        dict(lr=0.1, etaminus=0.3, etaplus=1.5),
        dict(lr=0.1, step_size_min=0.08, step_size_max=0.11),
        dict(lr=0.05, step_size_min=0.06),
        dict(lr=0.1, maximize=True),
    ],
    "Adafactor": [
        dict(),
        dict(lr=2.0, beta2_decay=-0.5),
        dict(lr=0.1, d=1.5, eps2=0.6),
        dict(lr=0.1, eps1=1.5),
        dict(lr=0.1, weight_decay=0.1),
        dict(lr=0.1, d=1.1, weight_decay=0.1, maximize=True),
    ],
    "Muon": [
        dict(),
        dict(lr=0.1, nesterov=False),
        dict(lr=0.1, momentum=0.0, weight_decay=0.0),
        dict(lr=0.1, momentum=0.6, ns_a=1.5, ns_b=-0.5, ns_c=0.0, ns_steps=2),
        dict(lr=0.1, momentum=0.6, eps=2.0, ns_steps=3, match_rms_adamw=True),
    ],
    "LBFGS": [
        dict(),
        dict(lr=0.5, history_size=2),
        dict(lr=0.1, history_size=1),
    ],
    "Lion": [
        dict(),
        dict(lr=0.05, beta1=0.3, beta2=0.6),
        dict(lr=0.05, beta1=0.0, beta2=0.0),
        dict(lr=0.05, weight_decay=0.1),
        dict(lr=0.05, beta2=0.6, weight_decay=0.1, maximize=True),
    ],
    "LAMB": [
        dict(),
        dict(lr=0.1, beta1=0.5, beta2=0.8),
        dict(lr=0.1, beta1=0.0, beta2=0.0),
        dict(lr=0.1, eps=0.5),
        dict(lr=0.1, weight_decay=0.1),
        dict(lr=0.1, beta2=0.8, weight_decay=0.1, maximize=True),
    ],
    "Yogi": [
        dict(),
        dict(lr=0.1, beta1=0.5, beta2=0.8, initial_accumulator_value=0.1),
        dict(lr=0.1, beta1=0.0, beta2=0.0),
        dict(lr=0.1, eps=0.5),
        dict(lr=0.1, weight_decay=0.1),
        dict(lr=0.1, beta2=0.8, weight_decay=0.1, maximize=True),
    ],
}
# Muon as torch.optim computes it: orthogonalised in bfloat16.
ROUNDED = {"Muon": [dict(lr=0.1), dict(lr=0.1, momentum=0.6, nesterov=False, match_rms_adamw=True)]}

LOOPS = {
    "SGD": [
        dict(),
        dict(momentum=0.9, weight_decay=0.1),
        dict(momentum=0.7, dampening=0.3, weight_decay=0.05),
        dict(momentum=0.7, weight_decay=0.05, nesterov=True),
        dict(lr=0.03, momentum=0.7, dampening=0.3, weight_decay=0.05, maximize=True),
    ],
    "Adam": (
        adam := [
            dict(lr=0.02),
            dict(lr=0.02, beta1=0.0, beta2=0.0, eps=0.1, weight_decay=0.0),
            dict(lr=0.05, beta1=0.7, beta2=0.8, eps=0.1, weight_decay=0.1),
            dict(lr=0.05, beta1=0.7, beta2=0.5, eps=0.05, weight_decay=0.1, amsgrad=True),
            dict(lr=0.05, beta1=0.7, beta2=0.8, eps=0.05, weight_decay=0.1, maximize=True),
        ]
    ),
    "AdamW": adam,
    "Adamax": [dict(lr=0.02), dict(lr=0.05, beta1=0.7, beta2=0.8, eps=0.05, weight_decay=0.1, maximize=True)],
    "NAdam": [
        dict(lr=0.02),
        dict(lr=0.05, beta1=0.7, beta2=0.8, eps=0.1, weight_decay=0.1, momentum_decay=0.2),
        dict(lr=0.05, beta1=0.7, beta2=0.8, eps=0.1, weight_decay=0.1, decoupled_weight_decay=True, maximize=True),
    ],
    "RAdam": [  # rectified from the sixth step on
        dict(lr=0.02, steps=8),
        dict(lr=0.05, beta1=0.7, beta2=0.95, eps=0.1, weight_decay=0.1, steps=8),
        dict(lr=0.05, beta1=0.7, eps=0.1, weight_decay=0.1, decoupled_weight_decay=True, maximize=True, steps=8),
    ],
    "Adadelta": [dict(), dict(lr=0.7, rho=0.5, eps=0.05, weight_decay=0.1, maximize=True)],
    "Adagrad": [
        dict(lr=0.02, initial_accumulator_value=0.1),
        dict(lr=0.05, lr_decay=0.3, weight_decay=0.1, initial_accumulator_value=0.2, eps=0.05, maximize=True),
    ],
    "RMSprop": [
        dict(momentum=0.2),
        dict(lr=0.02, alpha=0.6, eps=0.05, weight_decay=0.1, momentum=0.6),
        dict(lr=0.02, alpha=0.6, eps=0.05, weight_decay=0.1, momentum=0.6, centered=True, maximize=True),
    ],
    "ASGD": [dict(lr=0.1), dict(lr=0.1, lambd=0.2, alpha=0.5, weight_decay=0.1, maximize=True)],
    "Rprop": [dict(), dict(lr=0.1, etaminus=0.4, etaplus=1.3, step_size_min=0.08, step_size_max=0.14, maximize=True)],
    "Adafactor": [
        dict(),
        dict(lr=0.05, beta2_decay=-0.5, eps1=0.2, eps2=0.9, d=1.1, weight_decay=0.1),
        dict(lr=0.6, beta2_decay=-0.5, d=1.05, weight_decay=0.1, maximize=True),
    ],
    "Muon": [dict(lr=0.02), dict(lr=0.05, momentum=0.6, weight_decay=0.3, eps=2.0, ns_steps=3, match_rms_adamw=True)],
    "LBFGS": [dict(lr=0.5), dict(lr=0.3, history_size=2)],
    "Lion": [dict(lr=0.02), dict(lr=0.03, beta1=0.6, beta2=0.7, weight_decay=0.1, maximize=True)],
    "LAMB": [dict(lr=0.02), dict(lr=0.05, beta1=0.7, beta2=0.8, eps=0.1, weight_decay=0.1, maximize=True)],
    "Yogi": [
        dict(lr=0.02, initial_accumulator_value=0.01),
        dict(lr=0.05, beta1=0.7, beta2=0.8, eps=0.1, initial_accumulator_value=0.2, weight_decay=0.1, maximize=True),
    ],
}

# The state's entries as gimli's slots.
SLOTS = {
    "SGD": ["momentum_buffer"],
    "Adam": ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"],
    "AdamW": ["exp_avg", "exp_avg_sq", "max_exp_avg_sq"],
    "Adamax": ["exp_avg", "exp_inf"],
    "NAdam": ["exp_avg", "exp_avg_sq", "mu_product"],
    "RAdam": ["exp_avg", "exp_avg_sq"],
    "Adadelta": ["square_avg", "acc_delta"],
    "Adagrad": ["sum"],
    "RMSprop": ["square_avg", "grad_avg", "momentum_buffer"],
    "ASGD": ["eta", "mu", "ax"],
    "Rprop": ["prev", "step_size"],
    "Adafactor": ["row_var", "col_var", "variance"],
    "Muon": ["momentum_buffer"],
    "Lion": ["mu"],
    "LAMB": ["mu", "nu"],
    "Yogi": ["mu", "nu"],
}
# Those that are missing rather than not there yet.
OPTIONAL = {"max_exp_avg_sq", "row_var", "col_var", "variance"}


class Optax:
    """An optax optimizer as if it were one of torch.optim."""

    def __init__(self, name, parameters, lr):
        self.name = name
        self.param_groups = [{"params": list(parameters), "lr": lr}]
        self.state = {}

    def zero_grad(self):
        for parameter in self.param_groups[0]["params"]:
            parameter.grad = None

    def transformation(self, group):
        b1, b2, decay = group["beta1"], group["beta2"], group["weight_decay"]
        if self.name == "Lion":
            return optax.lion(group["lr"], b1, b2, weight_decay=decay)
        if self.name == "LAMB":
            return optax.lamb(group["lr"], b1, b2, group["eps"], weight_decay=decay)
        start = group["initial_accumulator_value"]
        yogi = optax.chain(optax.scale_by_yogi(b1, b2, group["eps"], initial_accumulator_value=start))
        return optax.chain(optax.add_decayed_weights(decay), yogi, optax.scale(-group["lr"]))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            transformation = self.transformation(group)
            for parameter in group["params"]:
                value = jax.numpy.asarray(parameter.numpy())
                gradient = jax.numpy.asarray(parameter.grad.numpy()) * (-1 if group.get("maximize") else 1)
                state = self.state.setdefault(parameter, {})
                if not state:
                    state["optax"] = transformation.init(value)
                change, state["optax"] = transformation.update(gradient, state["optax"], value)
                parameter += torch.from_numpy(numpy.array(change))
                moments = state["optax"][1][0] if self.name == "Yogi" else state["optax"][0]
                for key in ("mu", "nu"):
                    if hasattr(moments, key):
                        state[key] = torch.from_numpy(numpy.array(getattr(moments, key)))


@contextlib.contextmanager
def orthogonalised_in(dtype):
    """Muon in `dtype` in place of bfloat16."""
    original = torch.Tensor.bfloat16
    torch.Tensor.bfloat16 = lambda tensor: tensor.to(dtype, copy=True)
    yield
    torch.Tensor.bfloat16 = original


def values(shape, offset):
    """Odd multiples of 1/32 between -0.75 and 0.75, never 0."""
    flat = [(2 * ((7 * i + 5 * offset) % 23) - 23) / 32 for i in range(math.prod(shape))]
    return torch.tensor(flat, dtype=torch.float64).reshape(shape)


def build(name, options, parameters):
    """An optimizer whose options are set past the constructor's checks: differences may step below 0."""
    if name in ("Lion", "LAMB", "Yogi"):
        optimizer = Optax(name, parameters, lr=0.1)
    else:
        optimizer = getattr(torch.optim, name)(parameters, lr=0.1)
    set_options(optimizer, optimizer.param_groups[0], options)
    return optimizer


def set_options(optimizer, group, options):
    group.update(options)
    for key, parts in (
        ("betas", ("beta1", "beta2")),
        ("etas", ("etaminus", "etaplus")),
        ("step_sizes", ("step_size_min", "step_size_max")),
        ("ns_coefficients", ("ns_a", "ns_b", "ns_c")),
        ("eps", ("eps1", "eps2")),
    ):
        if parts[0] in options:
            group[key] = tuple(options[part] for part in parts)
    if options.get("match_rms_adamw"):
        group["adjust_lr_fn"] = "match_rms_adamw"
    if isinstance(optimizer, torch.optim.LBFGS):
        group["max_iter"] = 1
    if isinstance(optimizer, torch.optim.Adagrad):
        for parameter in group["params"]:
            optimizer.state[parameter]["sum"].fill_(options["initial_accumulator_value"])


def slots(name, optimizer, parameters):
    """The state of each parameter as gimli's slots: flat lists, empty where there is nothing yet."""
    if name != "LBFGS":
        result = []
        for parameter in parameters:
            state = optimizer.state[parameter]
            keys = [key for key in SLOTS[name] if key not in OPTIONAL or state.get(key) is not None]
            result.append([[] if state.get(key) is None else state[key].flatten().tolist() for key in keys])
        return result
    state = optimizer.state[parameters[0]]
    vectors = [state["prev_flat_grad"], state["d"] * state["t"]]
    for s, y in zip(state["old_stps"], state["old_dirs"]):
        vectors += [s, y]
    split = [vector.split([parameter.numel() for parameter in parameters]) for vector in vectors]
    return [[part[i].tolist() for part in split] for i in range(len(parameters))]


def updates(name, options):
    """The parameters after 1, 2, 3 and 20 updates, and the state after 3. The first parameter is a group of its own."""
    shapes = [(3, 2), (2, 3), (2, 2)] if name == "Muon" else [(3, 2), (2,), (1, 2, 2, 1)]
    parameters = [values(shape, i) for i, shape in enumerate(shapes)]
    optimizer = build(name, options, parameters)
    if name != "LBFGS":
        group = optimizer.param_groups[0]
        others = dict(group, params=group["params"][1:])
        group["params"] = group["params"][:1]
        optimizer.param_groups.append(others)
        more = {"lr": 2 * options["lr"]}
        if "weight_decay" in options:
            more["weight_decay"] = options["weight_decay"] + 0.05
        set_options(optimizer, others, options | more)
    result, state = [], None
    for t in range(20):
        for p, parameter in enumerate(parameters):
            parameter.grad = values(parameter.shape, 3 + 3 * t + p) * 0.5 ** (t % 4)
        optimizer.step(*([lambda: 0.0] if name == "LBFGS" else []))
        if t + 1 in (1, 2, 3, 20):
            result.append([x for parameter in parameters for x in parameter.flatten().tolist()])
        if t + 1 == 3:
            state = slots(name, optimizer, parameters)
    return result, state


def outer_loss(name, options, moved=None, by=0.0):
    """The loss after an inner loop, with one hyperparameter, or the first element of one weight, moved."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)).double()
    with torch.no_grad():
        for i, (key, parameter) in enumerate(net.named_parameters()):
            parameter.copy_(values(parameter.shape, 5 + i))
            if key == moved:
                parameter.view(-1)[0] += by
    options = {key: value + by if key == moved else value for key, value in options.items()}
    if options.get("momentum") == 0:
        options["momentum"] = 1e-300  # at exactly 0 torch.optim ignores the dampening: its derivative would be lost
    parameters = [p for p in net.parameters() if p.dim() == 2 or name != "Muon"]
    optimizer = build(name, options, parameters)

    def loss():
        optimizer.zero_grad()
        value = (net(values((5, 2), 1)) - values((5, 1), 2)).square().mean()
        value.backward()
        return value

    for _ in range(options.get("steps", 5)):
        if name == "LBFGS":
            optimizer.step(loss)
        else:
            loss()
            optimizer.step()
    return (net(values((5, 2), 3)) - values((5, 1), 4)).square().mean().item()


def derivative(function, step):
    """Central differences extrapolated to step 0 (Ridders 1982): the value and an estimate of its error."""
    best, table = (math.nan, math.inf), []
    for level in range(12):
        h = step / 2**level
        above_x, below_x = function(h), function(-h)
        roundoff = 2**-53 * (abs(above_x) + abs(below_x)) / h
        row = [(above_x - below_x) / (2 * h)]
        for k, above in enumerate(table):
            factor = 4.0 ** (k + 1)
            row.append((factor * row[k] - above) / (factor - 1))
            error = max(abs(row[-1] - row[k]), abs(row[-1] - above)) + roundoff
            if error < best[1]:
                best = (row[-1], error)
        table = row
    return best


def reach(of, options):
    """A first difference that keeps a beta below 1, and what lies under a root above 0."""
    value = options.get(of, 0)
    step = min(0.02, abs(1 - value) / 2 or 0.02)
    return min(step, value / 2) if of in ("eps", "eps1", "initial_accumulator_value") and value > 0 else step


def defaults(name):
    """What the constructor takes where it is not told, by gimli's names."""
    given = {k: p.default for k, p in inspect.signature(getattr(torch.optim, name)).parameters.items()}
    named = dict(given)
    for key, parts in (
        ("betas", ("beta1", "beta2")),
        ("etas", ("etaminus", "etaplus")),
        ("step_sizes", ("step_size_min", "step_size_max")),
        ("ns_coefficients", ("ns_a", "ns_b", "ns_c")),
    ):
        if key in given:
            named.update(zip(parts, given[key]))
    if name == "Adafactor":
        named.update(eps1=0.0, eps2=given["eps"][1])
    return {key: named[key] for key in DEFAULTS[name] if key in named}


def wrapped(items, indent):
    text = "{" + ", ".join(items) + "}"
    return textwrap.fill(text, 118, initial_indent=" " * indent, subsequent_indent=" " * (indent + 1))


def numbers(items):
    return [f"{x:.17g}" for x in items]


def options_text(options):
    return wrapped([f'{{"{key}", {float(value)!r}}}' for key, value in options.items()], 5)


def print_updates(rows):
    for name, changes in ((name, changes) for name, list in rows.items() for changes in list):
        options = DEFAULTS[name] | changes
        parameters, states = updates(name, options)
        print(f'    {{"{name}",\n{options_text(options)},\n     {{')
        for row in parameters:
            print(wrapped(numbers(row), 9) + ",")
        print("     },\n     {")
        for slots in states:
            print("         {")
            for slot in slots:
                print(wrapped(numbers(slot), 13) + ",")
            print("         },")
        print("     }},")


def main():
    print(f"""// Generated by optim_baselines.py with torch {torch.__version__.split("+")[0]} and optax {optax.__version__}; do not edit.
#pragma once

#include "optim_table.h"

namespace gimli::optim {{

const std::vector<DefaultBaseline> default_baselines = {{""")
    for name in DEFAULTS:
        if hasattr(torch.optim, name):
            print(f'    {{"{name}",\n{options_text(defaults(name))}}},')
    print("};\n\nconst std::vector<UpdateBaseline> update_baselines = {")
    with orthogonalised_in(torch.float64):
        print_updates(UPDATES)
    print("};\n\n// Computed in bfloat16 in part.\nconst std::vector<UpdateBaseline> rounded_baselines = {")
    print_updates(ROUNDED)
    print("};\n\nconst std::vector<LoopBaseline> loop_baselines = {")
    with orthogonalised_in(torch.float64):
        for name, changes in ((name, changes) for name, list in LOOPS.items() for changes in list):
            options = DEFAULTS[name] | changes
            print(f'    {{"{name}",\n{options_text(options)},')
            print(f"     {outer_loss(name, options):.17g},\n     {{")
            for of in list(DEFAULTS[name]) + ["0.weight", "0.bias", "2.weight", "2.bias"]:
                value, error = derivative(lambda by: outer_loss(name, options, of, by), reach(of, options))
                print(f'         {{"{of}", {value:.17g}, {error:.1e}}},')
            print("     }},")
    print("};\n\n}  // namespace gimli::optim")


main()
