"""A contender on PyTorch: torch_peer.py FOLDER LIBRARY THREADS, LIBRARY one of LIBRARIES below."""

import math
import sys

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import contender
import torch_networks
import work

folder, library, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(threads)
spec, initial, hyperparameters, data = work.read(folder)
data = {name: torch.from_numpy(values) for name, values in data.items()}
hyperparameters = [torch.from_numpy(values).requires_grad_() for values in hyperparameters]
model = torch_networks.network(spec, initial)
weights = dict(model.named_parameters())
meta_parameters = [*weights.values(), *hyperparameters]
tasks, steps, lr, learned = spec["tasks"], spec["steps"], spec["lr"], spec["learned"]
adam = spec["optimizer"] == "adam"


def loss(output, target):
    return F.cross_entropy(output, target) if "ways" in spec else F.mse_loss(output, target)


def inner_loss(output, target, parameters, hyperparameters):
    value = loss(output, target)
    if learned == "penalties":
        value = value + sum(h.exp() * p.square().sum() for h, p in zip(hyperparameters[0], parameters))
    return value


# The update rules that are written out: from parameters, gradients, state (None at first) and hyperparameters to
# parameters and state.


def sgd_update(parameters, gradients, state, hyperparameters):
    rates = hyperparameters[0].exp() if learned == "rates" else [lr] * len(parameters)
    return [p - rate * g for p, rate, g in zip(parameters, rates, gradients)], None


def adam_update(parameters, gradients, state, hyperparameters):
    step, m, v = state or (0, *2 * [[torch.zeros_like(p) for p in parameters]])
    step += 1
    m = [0.9 * m + 0.1 * g for m, g in zip(m, gradients)]
    v = [0.999 * v + 0.001 * g**2 for v, g in zip(v, gradients)]
    return [p - lr * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            for p, m, v in zip(parameters, m, v)], (step, m, v)


def lstm_update(parameters, gradients, state, hyperparameters):
    """Andrychowicz et al. 2016."""
    g = torch.cat([g.reshape(-1) for g in gradients])
    state = state or 2 * [2 * [g.new_zeros(len(g), spec["hidden"])]]
    large = g.detach().abs() >= math.exp(-10)
    logarithm = torch.where(large, g.abs(), 1.0).log() / 10
    x = torch.stack([torch.where(large, logarithm, -1.0), torch.where(large, g.sign(), math.exp(10) * g)], -1)
    following = []
    for layer, before in enumerate(state):
        x, c = torch.lstm_cell(x, before, *hyperparameters[4 * layer : 4 * layer + 4])
        following.append([x, c])
    u = F.linear(x, *hyperparameters[8:]).squeeze(-1).split([p.numel() for p in parameters])
    return [p + lr * u.view_as(p) for p, u in zip(parameters, u)], following


update = {"sgd": sgd_update, "adam": adam_update, "lstm": lstm_update}[spec["optimizer"]]


def gradients_of_meta_parameters():
    result = [p.grad for p in meta_parameters]
    for p in meta_parameters:
        p.grad = None
    return result


def with_higher():
    import higher

    class Learned(torch.optim.Optimizer):
        def __init__(self, parameters):
            super().__init__(parameters, {})

    class DifferentiableLearned(higher.optim.DifferentiableOptimizer):
        def _update(self, grouped_gradients, **_):
            group, state = self.param_groups[0], self.state[0]
            group["params"], state["rule"] = update(group["params"], grouped_gradients[0], state["rule"], hyperparameters)

    higher.register_optim(Learned, DifferentiableLearned)
    if spec["optimizer"] == "lstm":
        optimizer = Learned(model.parameters())
    else:
        groups = [{"params": [p]} for p in model.parameters()] if learned == "rates" else model.parameters()
        optimizer = (torch.optim.Adam if adam else torch.optim.SGD)(groups, lr=lr)
    for t in range(tasks):
        rates = {"lr": hyperparameters[0].exp().unbind()} if learned == "rates" else None
        with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False, override=rates) as (fast, differentiable):
            for _ in range(steps):
                differentiable.step(inner_loss(fast(data["x"][t]), data["y"][t], fast.parameters(), hyperparameters))
            (loss(fast(data["xq"][t]), data["yq"][t]) / tasks).backward()
    return gradients_of_meta_parameters()


def with_torchopt():
    import torchopt

    def init(parameters):
        """Where each weight is: TorchOpt sorts the tensors of a module by name."""
        places = {id(p): place for place, p in enumerate(parameters)}
        return [places[id(p)] for p in weights.values()], None

    def step(gradients, state, *, params, inplace):
        places, state = state
        following, state = update([params[i] for i in places], [gradients[i] for i in places], state, hyperparameters)
        after = dict(zip(places, following))
        return tuple(after[i] - p for i, p in enumerate(params)), (places, state)

    if learned in ("rates", "optimizer"):
        optimizer = torchopt.MetaOptimizer(model, torchopt.base.GradientTransformation(init, step))
    else:
        optimizer = (torchopt.MetaAdam if adam else torchopt.MetaSGD)(model, lr=lr)
    start = torchopt.extract_state_dict(model, by="reference")
    start_of_optimizer = torchopt.extract_state_dict(optimizer, by="reference")
    for t in range(tasks):
        for _ in range(steps):
            optimizer.step(inner_loss(model(data["x"][t]), data["y"][t], model.parameters(), hyperparameters))
        (loss(model(data["xq"][t]), data["yq"][t]) / tasks).backward()
        torchopt.recover_state_dict(model, start)
        torchopt.recover_state_dict(optimizer, start_of_optimizer)
    return gradients_of_meta_parameters()


def output_with(parameters, x):
    return torch.func.functional_call(model, dict(zip(weights, parameters)), (x,))


def adapted(parameters, hyperparameters, gradient_of):
    state = None
    for _ in range(steps):
        parameters, state = update(parameters, gradient_of(parameters), state, hyperparameters)
    return parameters


def with_func():
    """torch.func: vmap over the tasks, grad within."""

    def outer(parameters, hyperparameters, x, y, xq, yq):
        inner = torch.func.grad(lambda p: inner_loss(output_with(p, x), y, p, hyperparameters))
        return loss(output_with(adapted(parameters, hyperparameters, inner), xq), yq)

    of_each = torch.func.vmap(torch.func.grad(outer, (0, 1)), in_dims=(None, None, 0, 0, 0, 0))
    found = of_each(list(weights.values()), hyperparameters, data["x"], data["y"], data["xq"], data["yq"])
    return [g.mean(0).detach() for part in found for g in part]


def by_hand():
    """torch.autograd.grad, task by task."""
    for t in range(tasks):

        def gradient(p, t=t):
            value = inner_loss(output_with(p, data["x"][t]), data["y"][t], p, hyperparameters)
            return torch.autograd.grad(value, p, create_graph=True)

        fast = adapted(list(weights.values()), hyperparameters, gradient)
        (loss(output_with(fast, data["xq"][t]), data["yq"][t]) / tasks).backward()
    return gradients_of_meta_parameters()


class Counter(TorchDispatchMode):
    operators = flops = 0

    def __torch_dispatch__(self, operator, types, arguments=(), named=None):
        result = operator(*arguments, **(named or {}))
        self.operators += 1
        if formula := flop_registry.get(operator.overloadpacket):
            self.flops += formula(*arguments, **(named or {}), out_val=result)
        return result


def counted(function):
    """Operators below autograd, and the floating-point operations of matrix products and convolutions among them."""
    with Counter() as counter:
        result = function()
    return result, {"operators": counter.operators, "flops": counter.flops}


LIBRARIES = {"higher": with_higher, "torchopt": with_torchopt, "func": with_func, "torch": by_hand}
contender.serve(LIBRARIES[library], counted, torch.set_num_threads)
