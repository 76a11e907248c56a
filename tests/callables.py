"""What the command line is pointed at in the tests."""

import os
import signal
from types import SimpleNamespace

import torch
from models import MODELS
from torch import nn

from rsfl import fed

SIZE = 12
X = torch.linspace(-0.9, 1.7, SIZE)[:, None]
LABELS = [0] * 6 + [1] * 3 + [2, 1, 3]


def model():
    return MODELS["staircase"]


def data():
    return list(zip(X, LABELS, strict=True))


def stream():
    yield from data()


def interrupted():
    for index, item in enumerate(data()):
        if index == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        yield item


def ragged():
    return [(torch.zeros(2), 0), *data()]


def linear():
    torch.manual_seed(0)
    return nn.Linear(1, 4)


def parts():
    from rsfl.smooth import Parts

    class Beside(nn.Module):
        def forward(self, x, shift):
            return SimpleNamespace(logits=model()(x + shift))

    return Parts(Beside(), "x")


def mappings():
    return [({"x": x, "shift": [0.0]}, label) for x, label in data()]


def wide():
    return nn.Linear(7, 3)


def flat():
    return nn.Flatten(0)


def server():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = nn.Linear(3, 2).double()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    clients = fed.clients(
        x, (x[:, 0] > 0).long(), fed.partition.equal(60, 6), fed.SGD(lr=0.1, batch_size=4)
    )
    return fed.Server(model, clients, fraction=0.5, noise_std=0.01, clip=1.0)


def broken():
    raise KeyError("no such\nweights")


number = 3
