"""Writes optim_baselines.h: what Python's torch.optim does, for optim_test.cpp to agree with.

    python optim_baselines.py > optim_baselines.h

A new optimizer or option set is a new row below. All inputs are numbers that float64 holds exactly, so C++ recreates
them to the last bit.
"""

import math
import textwrap

import torch

DEFAULTS = {
    "SGD": dict(lr=0.1, momentum=0.0, dampening=0.0, weight_decay=0.0),
    "Adam": dict(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0),
    "AdamW": dict(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=1e-2),
}

UPDATES = [
    ("SGD", dict()),
    ("SGD", dict(momentum=0.9)),
    ("SGD", dict(momentum=0.9, dampening=0.4)),
    ("SGD", dict(momentum=0.9, weight_decay=0.1)),
    ("SGD", dict(momentum=0.9, nesterov=True)),
    ("SGD", dict(weight_decay=0.1)),
    ("SGD", dict(maximize=True)),
    ("SGD", dict(momentum=0.7, dampening=0.3, weight_decay=0.05, maximize=True)),
    ("SGD", dict(momentum=0.7, weight_decay=0.05, nesterov=True, maximize=True)),
]
LOOPS = [
    ("SGD", dict()),
    ("SGD", dict(momentum=0.9, weight_decay=0.1)),
    ("SGD", dict(momentum=0.7, dampening=0.3, weight_decay=0.05)),
    ("SGD", dict(momentum=0.7, weight_decay=0.05, nesterov=True)),
    ("SGD", dict(lr=0.03, momentum=0.7, dampening=0.3, weight_decay=0.05, maximize=True)),
]
for name in ("Adam", "AdamW"):
    UPDATES += [
        (name, dict()),
        (name, dict(lr=0.1, beta1=0.5, beta2=0.8)),
        (name, dict(lr=0.1, beta1=0.0, beta2=0.0)),
        (name, dict(lr=0.1, eps=0.5)),
        (name, dict(lr=0.1, eps=1e-12)),
        (name, dict(lr=0.1, weight_decay=0.1)),
        (name, dict(lr=0.1, weight_decay=0.0)),
        (name, dict(lr=0.1, beta2=0.8, amsgrad=True)),
        (name, dict(lr=0.1, maximize=True)),
        (name, dict(lr=0.1, beta2=0.8, weight_decay=0.1, amsgrad=True, maximize=True)),
    ]
    LOOPS += [
        (name, dict(lr=0.02)),
        (name, dict(lr=0.02, beta1=0.0, beta2=0.0, eps=0.1, weight_decay=0.0)),
        (name, dict(lr=0.05, beta1=0.7, beta2=0.8, eps=0.1, weight_decay=0.1)),
        (name, dict(lr=0.05, beta1=0.7, beta2=0.5, eps=0.05, weight_decay=0.1, amsgrad=True)),
        (name, dict(lr=0.05, beta1=0.7, beta2=0.8, eps=0.05, weight_decay=0.1, maximize=True)),
    ]


def values(shape, offset):
    """Odd multiples of 1/32 between -0.75 and 0.75, never 0."""
    flat = [(2 * ((7 * i + 5 * offset) % 23) - 23) / 32 for i in range(math.prod(shape))]
    return torch.tensor(flat, dtype=torch.float64).reshape(shape)


def build(name, options, parameters):
    optimizer = getattr(torch.optim, name)(parameters, lr=0.1)
    group = optimizer.param_groups[0]  # set here, past the constructor's checks: differences may step below 0
    group.update(options)
    if "beta1" in options:
        group["betas"] = (options["beta1"], options["beta2"])
    return optimizer


def updates(name, options):
    """The parameters after 1, 2 and 20 updates."""
    parameters = [values((3, 2), 0), values((4,), 1)]
    optimizer = build(name, options, parameters)
    result = []
    for t in range(20):
        for p, parameter in enumerate(parameters):
            parameter.grad = values(parameter.shape, 2 + 3 * t + p) * 0.5 ** (t % 4)
        optimizer.step()
        if t + 1 in (1, 2, 20):
            result.append([x for parameter in parameters for x in parameter.flatten().tolist()])
    return result


def outer_loss(name, options, moved=None, by=0.0):
    """The loss after an inner loop of 5 steps, with one hyperparameter, or the first element of one weight, moved."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1)).double()
    with torch.no_grad():
        for i, (key, parameter) in enumerate(net.named_parameters()):
            parameter.copy_(values(parameter.shape, 5 + i))
            if key == moved:
                parameter.view(-1)[0] += by
    options = {key: value + by if key == moved else value for key, value in options.items()}
    if options.get("momentum") == 0:
        options["momentum"] = 1e-300  # at exactly 0 torch.optim ignores the dampening: its derivative would be lost
    optimizer = build(name, options, net.parameters())
    for _ in range(5):
        optimizer.zero_grad()
        (net(values((5, 2), 1)) - values((5, 1), 2)).square().mean().backward()
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


def wrapped(items, indent):
    text = "{" + ", ".join(items) + "}"
    return textwrap.fill(text, 118, initial_indent=" " * indent, subsequent_indent=" " * (indent + 1))


def options_text(options):
    return wrapped([f'{{"{key}", {float(value)!r}}}' for key, value in options.items()], 5)


def main():
    print(f"""// Generated by optim_baselines.py with torch {torch.__version__.split("+")[0]}; do not edit.
#pragma once

#include <map>
#include <string>
#include <vector>

// Every hyperparameter, and the switches that are on.
using Options = std::map<std::string, double>;

struct UpdateBaseline {{
  std::string optimizer;
  Options options;
  std::vector<std::vector<double>> parameters;  // all of them, flat, after 1, 2 and 20 updates
}};

struct Derivative {{
  std::string of;       // a hyperparameter, or the first element of a weight
  double value, error;  // the error is an estimate
}};

struct LoopBaseline {{
  std::string optimizer;
  Options options;
  double outer_loss;
  std::vector<Derivative> derivatives;
}};

inline const std::vector<UpdateBaseline> update_baselines = {{""")
    for name, changes in UPDATES:
        options = DEFAULTS[name] | changes
        print(f'    {{"{name}",\n{options_text(options)},\n     {{')
        for row in updates(name, options):
            print(wrapped([f"{x:.17g}" for x in row], 9) + ",")
        print("     }},")
    print("};\n\ninline const std::vector<LoopBaseline> loop_baselines = {")
    for name, changes in LOOPS:
        options = DEFAULTS[name] | changes
        print(f'    {{"{name}",\n{options_text(options)},')
        print(f"     {outer_loss(name, options):.17g},\n     {{")
        for of in list(DEFAULTS[name]) + ["0.weight", "0.bias", "2.weight", "2.bias"]:
            step = min(0.02, (1 - options.get(of, 0)) / 2)  # keeps a beta below 1
            value, error = derivative(lambda by: outer_loss(name, options, of, by), step)
            print(f'         {{"{of}", {value:.17g}, {error:.1e}}},')
        print("     }},")
    print("};")


main()
