"""Margins of linear models at the ends of float64."""

from fractions import Fraction
from math import inf

import numpy as np
import pytest
import torch
from torch import nn

from rsfl import bounds, fed, smooth

DOUBLE = torch.float64
SCALES = [1e-320, 1e-300, 1e-170, 1e-160, 1e-154, 1.0, 1e150, 1e160]


def linear(bias):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Linear(4, 3, bias=bias).double()


def inputs(scale, many=8):
    drawn = torch.randn(many, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    return scale * drawn


def exact_square(model, x):
    """The squared margin radius of one input in rational arithmetic, and the label."""
    x = [Fraction(value) for value in x.tolist()]
    bias = [0] * 3 if model.bias is None else map(Fraction, model.bias.tolist())
    logits = [
        sum(Fraction(w) * v for w, v in zip(row, x, strict=True)) + b
        for row, b in zip(model.weight.tolist(), bias, strict=True)
    ]
    norm = sum(v * v for v in x) + (model.bias is not None)
    first, second = sorted(logits)[:-3:-1]
    return (first - second) ** 2 / (2 * norm), logits.index(first)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("bias", [False, True])
def test_margins_are_never_above_the_exact_ones(scale, bias):
    """Squares of short inputs underflowed, and their radii were 1e137."""
    model, x = linear(bias), inputs(scale)
    certificate = smooth.margins(model, x)
    for one, radius, label in zip(x, certificate.radius, certificate.label, strict=True):
        square, right = exact_square(model, one)
        assert Fraction(float(radius)) ** 2 <= square
        assert int(label) in (right, smooth.ABSTAIN)
        if scale > 1e-290:
            assert float(radius) == pytest.approx(float(square) ** 0.5, rel=1e-6)


def test_short_inputs_are_not_certified_for_nothing():
    """53 of 2000 predictions were wrong that were certified at the client level."""
    x, y = inputs(1.0, 96), torch.arange(96) % 3
    members = fed.clients(x, y, fed.partition.equal(96, 12), fed.SGD(lr=0.1, decay=0.1))
    server = fed.Server(linear(False), members, update_clip=0.5)
    honest = server.run(3)
    attacked = server.run(3, attacks={0: fed.Attack(update=fed.poison.Noise(10.0))})
    seen = inputs(1e-170, 2000)
    threat = bounds.ClientThreat(clients=[0])
    certificate = fed.certify(attacked.model, seen, attacked.ledger, threat)
    made = ~certificate.abstained
    assert 0 < int(made.sum()) < 2000
    assert certificate.label[made].equal(honest.model(seen).argmax(1)[made])
    assert not np.isclose(certificate.deviation, inf)
