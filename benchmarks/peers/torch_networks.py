"""The networks of work.py as PyTorch modules, written as one would for oneself."""

import torch
from torch import nn


class Residual(nn.Module):
    def __init__(self, channels, width):
        super().__init__()
        layers = []
        for inputs in (channels, width, width):
            layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), norm(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])
        self.shortcut = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), norm(width))
        self.end = nn.Sequential(nn.ReLU(), nn.MaxPool2d(2))

    def forward(self, x):
        return self.end(self.layers(x) + self.shortcut(x))


class Dense(nn.Module):
    def __init__(self, channels, growth):
        super().__init__()
        self.layers = nn.Sequential(norm(channels), nn.ReLU(), nn.Conv2d(channels, 4 * growth, 1, bias=False),
                                    norm(4 * growth), nn.ReLU(), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False))

    def forward(self, x):
        return torch.cat([x, self.layers(x)], 1)


class Mean(nn.Module):
    def __init__(self, *dims):
        super().__init__()
        self.dims = dims

    def forward(self, x):
        return x.mean(self.dims)


def norm(channels):
    return nn.BatchNorm2d(channels, track_running_stats=False)


def mlp(spec):
    sizes = spec["sizes"]
    return [layer for i, o in zip(sizes, sizes[1:]) for layer in (nn.Linear(i, o), nn.ReLU())][:-1]


def conv4(spec):
    layers, channels, hidden = [], 1, spec["hidden"]
    for _ in range(4):
        layers += [nn.Conv2d(channels, hidden, 3, padding=1), norm(hidden), nn.ReLU(), nn.MaxPool2d(2)]
        channels = hidden
    return layers + [nn.Flatten(), nn.Linear(hidden, spec["ways"])]


def resnet12(spec):
    widths = spec["widths"]
    blocks = [Residual(channels, width) for channels, width in zip([spec["example"][0], *widths], widths)]
    return blocks + [Mean(2, 3), nn.Linear(widths[-1], spec["ways"])]


def densenet(spec):
    growth, channels = spec["growth"], 2 * spec["growth"]
    layers = [nn.Conv2d(spec["example"][0], channels, 3, padding=1, bias=False)]
    for block in range(3):
        if block > 0:
            layers += [norm(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range(spec["layers"]):
            layers.append(Dense(channels, growth))
            channels += growth
    return layers + [norm(channels), nn.ReLU(), Mean(2, 3), nn.Linear(channels, spec["ways"])]


def transformer(spec):
    torch.backends.cuda.enable_flash_sdp(False)  # on the CPU, too; it has no second derivatives
    width = spec["example"][1]
    layers = [nn.TransformerEncoderLayer(width, spec["heads"], 2 * width, dropout=0, batch_first=True)
              for _ in range(spec["layers"])]
    return layers + [Mean(1), nn.Linear(width, spec["ways"])]


NETWORKS = {"mlp": mlp, "conv4": conv4, "resnet12": resnet12, "densenet": densenet, "transformer": transformer}


def network(spec, initial):
    model = nn.Sequential(*NETWORKS[spec["network"]](spec)).to(getattr(torch, spec["dtype"]))
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), initial, strict=True):
            parameter.copy_(torch.from_numpy(value))
    return model
