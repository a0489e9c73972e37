"""The works that the peers are measured on: networks, data and settings, written to a folder that every contender reads.

A folder has spec.json and raw little-endian files: parameters.f32 (all initial weights, one after the other), x.f32 and
xq.f32 (support and query inputs of all tasks), and y, yq as .f32 (regression) or .i64 (classes).
"""

import json
import pathlib

import numpy as np


def mlp_shapes(sizes):
    return [shape for i, o in zip(sizes, sizes[1:]) for shape in ([o, i], [o])]


def conv4_shapes(hidden, ways):
    shapes = []
    for channels in (1, hidden, hidden, hidden):
        shapes += [[hidden, channels, 3, 3], [hidden], [hidden], [hidden]]
    return shapes + [[ways, hidden], [ways]]


def initial(shapes, rng):
    """Uniform within 1 / sqrt(fan in), as torch.nn begins. A vector is the bias of the matrix or kernel before it; two
    more are a normalization's weight and bias, 1 and 0."""
    values, fan_in, vectors = [], 1, 0
    for shape in shapes:
        if len(shape) > 1:
            fan_in, vectors = int(np.prod(shape[1:])), 0
        else:
            vectors += 1
        values.append(np.full(shape, float(vectors == 2)) if vectors > 1 else rng.uniform(-1, 1, shape) / np.sqrt(fan_in))
    return values


def sinusoids(tasks, shots, rng):
    amplitude = rng.uniform(0.1, 5, (tasks, 1, 1))
    phase = rng.uniform(0, np.pi, (tasks, 1, 1))
    x = rng.uniform(-5, 5, (tasks, shots, 1))
    return x, amplitude * np.sin(x - phase)


def images(tasks, ways, shots, rng):
    """Strokes of white on black in 28 x 28 pixels, a class in each group of `shots`."""
    x = rng.uniform(0, 1, (tasks, ways * shots, 1, 28, 28)) > 0.8
    return x.astype(float), np.tile(np.repeat(np.arange(ways), shots), (tasks, 1))


def write(folder, work):
    """Writes the inputs of a work, as WORKS has it, and returns its spec."""
    rng = np.random.default_rng(work.get("seed", 1))
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    spec = dict(work)
    spec["shapes"] = mlp_shapes(work["sizes"]) if work["network"] == "mlp" else conv4_shapes(work["hidden"], work["ways"])
    values = initial(spec["shapes"], rng)
    np.concatenate([v.ravel() for v in values]).astype("<f4").tofile(folder / "parameters.f32")
    for x_name, y_name, count in (("x", "y", work["shots"]), ("xq", "yq", work["queries"])):
        if work["network"] == "mlp":
            x, y = sinusoids(work["tasks"], count, rng)
            y.astype("<f4").tofile(folder / f"{y_name}.f32")
        else:
            x, y = images(work["tasks"], work["ways"], count, rng)
            y.astype("<i8").tofile(folder / f"{y_name}.i64")
        x.astype("<f4").tofile(folder / f"{x_name}.f32")
        spec[f"{x_name}_shape"], spec[f"{y_name}_shape"] = list(x.shape), list(y.shape)
    (folder / "spec.json").write_text(json.dumps(spec))
    return spec


def read(folder):
    """The spec, the initial weights, and x, y, xq, yq of all tasks, as NumPy arrays."""
    folder = pathlib.Path(folder)
    spec = json.loads((folder / "spec.json").read_text())
    flat, parameters, at = np.fromfile(folder / "parameters.f32", "<f4"), [], 0
    for shape in spec["shapes"]:
        count = int(np.prod(shape))
        parameters.append(flat[at : at + count].reshape(shape))
        at += count
    data = {}
    for name in ("x", "y", "xq", "yq"):
        file = folder / f"{name}.f32"
        kind = "<f4" if file.exists() else "<i8"
        file = file if file.exists() else folder / f"{name}.i64"
        data[name] = np.fromfile(file, kind).reshape(spec[f"{name}_shape"])
    return spec, parameters, data


def sinusoid(steps, tasks):
    return {"name": f"sinusoid, {steps} steps, {tasks} tasks", "network": "mlp", "sizes": [1, 40, 40, 1], "steps": steps,
            "tasks": tasks, "shots": 10, "queries": 10, "optimizer": "sgd", "lr": 0.01}


def conv4(ways, shots, optimizer):
    return {"name": f"conv4-64, {ways}-way {shots}-shot, {optimizer}", "network": "conv4", "hidden": 64, "ways": ways,
            "steps": 5, "tasks": 8, "shots": shots, "queries": 1, "optimizer": optimizer,
            "lr": 0.01 if optimizer == "sgd" else 0.001}


WORKS = {
    "a": [sinusoid(steps, tasks) for steps in (1, 5, 10) for tasks in (1, 4, 25)],
    "b": [conv4(ways, shots, optimizer) for ways, shots in ((5, 1), (20, 5)) for optimizer in ("sgd", "adam")],
}
