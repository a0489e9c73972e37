"""The works that the peers are measured on: networks, data and settings, written to a folder that every contender reads.

A folder has spec.json and raw files of the spec's dtype: parameters (all initial weights, one after the other),
hyperparameters (likewise, of what is learned besides), x and xq (support and query inputs of all tasks), y and yq
(targets; classes are int64).
"""

import json
import pathlib

import numpy as np

# The parameters of a network, in the order in which PyTorch registers them: the kind and shape of each.


def linear(inputs, outputs):
    return [("weight", [outputs, inputs]), ("bias", [outputs])]


def convolution(inputs, outputs, size):
    return [("weight", [outputs, inputs, size, size])]


def norm(channels):
    return [("scale", [channels]), ("shift", [channels])]


def mlp(work):
    sizes = work["sizes"]
    return [p for inputs, outputs in zip(sizes, sizes[1:]) for p in linear(inputs, outputs)]


def conv4(work):
    hidden, channels, parameters = work["hidden"], 1, []
    for _ in range(4):
        parameters += convolution(channels, hidden, 3) + [("bias", [hidden])] + norm(hidden)
        channels = hidden
    return parameters + linear(hidden, work["ways"])


def resnet12(work):
    channels, parameters = work["example"][0], []
    for width in work["widths"]:
        for inputs in (channels, width, width):
            parameters += convolution(inputs, width, 3) + norm(width)
        parameters += convolution(channels, width, 1) + norm(width)
        channels = width
    return parameters + linear(channels, work["ways"])


def densenet(work):
    growth, channels = work["growth"], 2 * work["growth"]
    parameters = convolution(work["example"][0], channels, 3)
    for block in range(3):
        if block > 0:
            parameters += norm(channels) + convolution(channels, channels // 2, 1)
            channels //= 2
        for _ in range(work["layers"]):
            parameters += norm(channels) + convolution(channels, 4 * growth, 1)
            parameters += norm(4 * growth) + convolution(4 * growth, growth, 3)
            channels += growth
    return parameters + norm(channels) + linear(channels, work["ways"])


def transformer(work):
    width = work["example"][1]
    layer = linear(width, 3 * width) + linear(width, width)  # of attention: its inputs, its output
    layer += linear(width, 2 * width) + linear(2 * width, width) + norm(width) + norm(width)
    return work["layers"] * layer + linear(width, work["ways"])


def initial(parameters, rng):
    """Uniform within 1 / sqrt(fan in), as torch.nn begins; a normalization's scale and shift are 1 and 0."""
    values, fan_in = [], 1
    for kind, shape in parameters:
        if kind == "weight":
            fan_in = np.prod(shape[1:])
        random = kind in ("weight", "bias")
        values.append(rng.uniform(-1, 1, shape) / np.sqrt(fan_in) if random else np.full(shape, float(kind == "scale")))
    return values


def hyperparameters(work, tensors, rng):
    """What is learned besides the initial weights: logarithms of a rate or of a penalty for each tensor, or the weights
    of the inner optimizer."""
    around = lambda value: np.log(value) + 0.1 * rng.standard_normal(tensors)
    if work["learned"] == "rates":
        return [around(work["lr"])]
    if work["learned"] == "penalties":
        return [around(work["penalty"])]
    if work["learned"] == "optimizer":
        hidden, shapes = work["hidden"], []
        for inputs in (2, hidden):
            shapes += [[4 * hidden, inputs], [4 * hidden, hidden], [4 * hidden], [4 * hidden]]
        return [rng.uniform(-1, 1, shape) / np.sqrt(hidden) for shape in shapes + [[1, hidden], [1]]]
    return []


def sinusoids(tasks, shots, rng):
    amplitude = rng.uniform(0.1, 5, (tasks, 1, 1))
    phase = rng.uniform(0, np.pi, (tasks, 1, 1))
    x = rng.uniform(-5, 5, (tasks, shots, 1))
    return x, amplitude * np.sin(x - phase)


def examples(work, shots, rng):
    """Classes in groups of `shots`: images of conv4 are white dots on black, others noise about a pattern of the class."""
    y = np.tile(np.repeat(np.arange(work["ways"]), shots), (work["tasks"], 1))
    x = rng.standard_normal((*y.shape, *work["example"]))
    if work["network"] == "conv4":
        return (x > 0.8).astype(float), y
    return x + work["patterns"][y], y


def write(folder, work, dtype):
    """Writes the inputs of a work, as WORKS has it, and returns its spec."""
    rng = np.random.default_rng(1)
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parameters = NETWORKS[work["network"]](work)
    learned = hyperparameters(work, len(parameters), rng)
    spec = dict(work, dtype=dtype, shapes=[shape for _, shape in parameters],
                hyperparameter_shapes=[list(values.shape) for values in learned])
    for name, values in (("parameters", initial(parameters, rng)), ("hyperparameters", learned)):
        np.concatenate([np.empty(0), *(v.ravel() for v in values)]).astype(dtype).tofile(folder / name)
    if "ways" in work:
        work = dict(work, patterns=0.5 * rng.standard_normal((work["ways"], *work["example"])))
    for x_name, y_name, count in (("x", "y", work["shots"]), ("xq", "yq", work["queries"])):
        x, y = examples(work, count, rng) if "ways" in work else sinusoids(work["tasks"], count, rng)
        for name, values in ((x_name, x), (y_name, y)):
            values.astype(dtype_of(spec, name)).tofile(folder / name)
            spec[f"{name}_shape"] = list(values.shape)
    (folder / "spec.json").write_text(json.dumps(spec))
    return spec


def dtype_of(spec, name):
    return "int64" if name in ("y", "yq") and "ways" in spec else spec["dtype"]


def read(folder):
    """The spec, the initial weights, the hyperparameters, and x, y, xq, yq of all tasks, as NumPy arrays."""
    folder = pathlib.Path(folder)
    spec = json.loads((folder / "spec.json").read_text())

    def arrays(name, shapes):
        ends = np.cumsum([np.prod(shape, dtype=int) for shape in shapes])
        parts = np.split(np.fromfile(folder / name, spec["dtype"]), ends)
        return [part.reshape(shape) for part, shape in zip(parts, shapes)]

    data = {name: np.fromfile(folder / name, dtype_of(spec, name)).reshape(spec[f"{name}_shape"])
            for name in ("x", "y", "xq", "yq")}
    return spec, arrays("parameters", spec["shapes"]), arrays("hyperparameters", spec["hyperparameter_shapes"]), data


NETWORKS = {"mlp": mlp, "conv4": conv4, "resnet12": resnet12, "densenet": densenet, "transformer": transformer}


def counted(count, noun):
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def sinusoid(steps, tasks):
    return {"name": f"sinusoid, {counted(steps, 'step')}, {counted(tasks, 'task')}", "network": "mlp",
            "sizes": [1, 40, 40, 1], "steps": steps, "tasks": tasks, "shots": 10, "queries": 10, "optimizer": "sgd",
            "lr": 0.01}


def omniglot(ways, shots, optimizer):
    return {"name": f"conv4-64, {ways}-way {shots}-shot, {optimizer}", "network": "conv4", "hidden": 64, "ways": ways,
            "example": [1, 28, 28], "steps": 5, "tasks": 8, "shots": shots, "queries": 1, "optimizer": optimizer,
            "lr": 0.01 if optimizer == "sgd" else 0.001, "long": ways > 5}


def learned_optimizer(steps):
    return {"name": f"learned LSTM optimizer, {steps} steps", "network": "mlp", "sizes": [20, 32, 5], "ways": 5,
            "example": [20], "steps": steps, "tasks": 1, "shots": 10, "queries": 10, "optimizer": "lstm", "lr": 0.1,
            "learned": "optimizer", "hidden": 20}


WORKS = {
    "a": [sinusoid(steps, tasks) for steps in (1, 5, 10) for tasks in (1, 4, 25)],
    "b": [omniglot(ways, shots, optimizer) for ways, shots in ((5, 1), (20, 5)) for optimizer in ("sgd", "adam")],
    "c": [{"name": "ResNet-12, 84x84, 5-way 1-shot", "network": "resnet12", "widths": [64, 128, 256, 512], "ways": 5,
           "example": [3, 84, 84], "steps": 5, "tasks": 2, "shots": 1, "queries": 1, "optimizer": "sgd", "lr": 0.01,
           "long": True}],
    "d": [{"name": "DenseNet-BC-100-12, learned rates", "network": "densenet", "growth": 12, "layers": 16, "ways": 4,
           "example": [3, 32, 32], "steps": 15, "tasks": 1, "shots": 1, "queries": 1, "optimizer": "sgd", "lr": 0.01,
           "learned": "rates", "long": True}],
    "e": [{"name": "transformer of 4 layers, 16 steps", "network": "transformer", "layers": 4, "heads": 4, "ways": 4,
           "example": [64, 32], "steps": 16, "tasks": 1, "shots": 4, "queries": 4, "optimizer": "sgd", "lr": 0.05,
           "strategies": ["replay"]}],
    "f": [{"name": "penalties of an MLP, 1,000 steps", "network": "mlp", "sizes": [20, 32, 5], "ways": 5,
           "example": [20], "steps": 1000, "tasks": 1, "shots": 10, "queries": 10, "optimizer": "sgd", "lr": 0.1,
           "learned": "penalties", "penalty": 0.001, "strategies": ["binomial"]}],
    "g": [learned_optimizer(steps) for steps in (20, 100)],
}
for each in sum(WORKS.values(), []):
    each.setdefault("learned", None)
    each.setdefault("strategies", [])
    each.setdefault("long", False)
