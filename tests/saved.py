"""Honest records to check, and a pen to change them with."""

import json
import zlib

import torch

from rsfl import deform, noise, smooth

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
