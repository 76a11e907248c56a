"""Honest records to check, and a pen to change them with."""

import json
import zlib

import torch
from torch import nn

from rsfl import deform, fed, noise, smooth

LAWS = [
    noise.Gaussian(0.5),
    noise.Uniform(0.3),
    noise.Laplace(0.2),
    noise.RoundedGaussian(0.25),
    noise.ParameterGaussian(0.1),
    deform.Rotation(0.4),
    deform.Scaling(0.2),
    deform.Translation(0.1),
    deform.Affine(0.05),
    deform.DCT(0.05, bases=2),
    deform.PixelFlow(0.02),
]
READINGS = {
    "complement": lambda ballot: ballot.certificate(),
    "bounded": lambda ballot: ballot.certificate(0.01, runner_up="bounded"),
    "hoeffding": lambda ballot: ballot.certificate(confidence="hoeffding"),
    "bounded hoeffding": lambda ballot: ballot.certificate(
        runner_up="bounded", confidence="hoeffding"
    ),
    "at": lambda ballot: ballot.certificate_at(0.02, 0.001),
    "prediction": lambda ballot: ballot.prediction(0.001),
}


def ballot(law, inputs=40, n=1000, dim=64):
    """Votes of every kind: unanimous, close, lost, for no class."""
    generator = torch.Generator().manual_seed(7)
    share = torch.rand(inputs, generator=generator, dtype=torch.float64)
    first = (n * (1 - (1 - share) ** 3)).long()
    first[0], first[1] = n, 0
    second = ((n - first) * torch.rand(inputs, generator=generator)).long()
    rest = n - first - second
    votes = smooth.Votes(torch.stack([first, second, rest // 2], dim=1), rest - rest // 2)
    selection = smooth.Votes(torch.tensor([[90, 9, 0]] * inputs), torch.ones(inputs).long())
    return smooth.Ballot(law, selection, votes, dim=dim)


def edited(path, change):
    """Change what a document says, and make its checksum fit."""
    document = json.loads(path.read_text())
    change(document["content"])
    document["crc32"] = zlib.crc32(json.dumps(document["content"]).encode())
    path.write_text(json.dumps(document) + "\n")
    return path


def false(report):
    """What a report says to be false, in words."""
    return [str(one) for one in report if one.holds is False]


def federation(batch_size=None, **settings):
    """A run of twenty clients that train a linear model, six inputs, and the same as a data set."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (200,), generator=generator)
    centres = 3 * torch.eye(3, 4, dtype=torch.float64)
    x = centres[y] + 0.3 * torch.randn(200, 4, generator=generator, dtype=torch.float64)
    model = nn.Linear(4, 3).double()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    trainer = fed.SGD(lr=0.05, batch_size=batch_size, decay=0.05)
    clients = fed.clients(x, y, fed.partition.equal(200, 20), trainer)
    server = fed.Server(model, clients, update_clip=3.0, **settings)
    return (
        server.run(8),
        x[:6],
        [(one, int(label)) for one, label in zip(x[:6], y[:6], strict=True)],
    )
