"""A contender on PyTorch: torch_peer.py FOLDER LIBRARY THREADS, LIBRARY one of LIBRARIES below."""

import sys

import torch
from torch import nn
from torch.nn import functional as F

import contender
import work

folder, library, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(threads)
spec, initial, data = work.read(folder)
data = {name: torch.from_numpy(values) for name, values in data.items()}


def network():
    if spec["network"] == "mlp":
        sizes = spec["sizes"]
        layers = [layer for i, o in zip(sizes, sizes[1:]) for layer in (nn.Linear(i, o), nn.ReLU())][:-1]
    else:
        layers, channels = [], 1
        for _ in range(4):
            layers += [nn.Conv2d(channels, spec["hidden"], 3, padding=1),
                       nn.BatchNorm2d(spec["hidden"], track_running_stats=False), nn.ReLU(), nn.MaxPool2d(2)]
            channels = spec["hidden"]
        layers += [nn.Flatten(), nn.Linear(spec["hidden"], spec["ways"])]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), initial):
            parameter.copy_(torch.from_numpy(value))
    return model


model = network()
loss = F.mse_loss if spec["network"] == "mlp" else F.cross_entropy
tasks, steps, lr = spec["tasks"], spec["steps"], spec["lr"]
adam = spec["optimizer"] == "adam"


def gradients_of(parameters):
    result = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    return result


def with_higher():
    import higher

    optimizer = (torch.optim.Adam if adam else torch.optim.SGD)(model.parameters(), lr=lr)
    for t in range(tasks):
        with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False) as (fast, differentiable):
            for _ in range(steps):
                differentiable.step(loss(fast(data["x"][t]), data["y"][t]))
            (loss(fast(data["xq"][t]), data["yq"][t]) / tasks).backward()
    return gradients_of(list(model.parameters()))


def with_torchopt():
    import torchopt

    parameters = list(model.parameters())
    optimizer = (torchopt.MetaAdam if adam else torchopt.MetaSGD)(model, lr=lr)
    start = torchopt.extract_state_dict(model, by="reference")
    start_of_optimizer = torchopt.extract_state_dict(optimizer, by="reference")
    for t in range(tasks):
        for _ in range(steps):
            optimizer.step(loss(model(data["x"][t]), data["y"][t]))
        (loss(model(data["xq"][t]), data["yq"][t]) / tasks).backward()
        torchopt.recover_state_dict(model, start)
        torchopt.recover_state_dict(optimizer, start_of_optimizer)
    return gradients_of(parameters)


def adapted(parameters, gradient_of):
    """The weights after the inner loop, by functions of dictionaries alone."""
    names = list(parameters)
    moments = {n: (torch.zeros_like(p), torch.zeros_like(p)) for n, p in parameters.items()}
    for step in range(1, steps + 1):
        gradients = gradient_of(parameters)
        if not adam:
            parameters = {n: parameters[n] - lr * gradients[n] for n in names}
            continue
        moments = {n: (0.9 * m + 0.1 * gradients[n], 0.999 * v + 0.001 * gradients[n] ** 2) for n, (m, v) in moments.items()}
        parameters = {n: parameters[n] - lr * (moments[n][0] / (1 - 0.9**step))
                      / ((moments[n][1] / (1 - 0.999**step)).sqrt() + 1e-8) for n in names}
    return parameters


def loss_with(parameters, x, y):
    return loss(torch.func.functional_call(model, parameters, (x,)), y)


def with_func():
    """torch.func: vmap over the tasks, grad within."""

    def outer(parameters, x, y, xq, yq):
        fast = adapted(parameters, lambda p: torch.func.grad(loss_with)(p, x, y))
        return loss_with(fast, xq, yq)

    of_each = torch.func.vmap(torch.func.grad(outer), in_dims=(None, 0, 0, 0, 0))
    found = of_each(dict(model.named_parameters()), data["x"], data["y"], data["xq"], data["yq"])
    return [g.mean(0).detach() for g in found.values()]


def by_hand():
    """torch.autograd.grad, task by task."""
    parameters = dict(model.named_parameters())
    for t in range(tasks):

        def gradient(p, t=t):
            found = torch.autograd.grad(loss_with(p, data["x"][t], data["y"][t]), list(p.values()), create_graph=True)
            return dict(zip(p, found))

        (loss_with(adapted(parameters, gradient), data["xq"][t], data["yq"][t]) / tasks).backward()
    return gradients_of(list(parameters.values()))


LIBRARIES = {"higher": with_higher, "torchopt": with_torchopt, "func": with_func, "torch": by_hand}
contender.serve(LIBRARIES[library])
