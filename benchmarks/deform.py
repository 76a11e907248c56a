"""Votes under deformations beside votes under Gaussian noise, through the same loop."""

import math
from collections.abc import Iterator
from statistics import median

import torch

from benchmarks.networks import resnet, small_cnn
from benchmarks.row import Row, ratio, turns
from rsfl import deform, noise
from rsfl.smooth import Smoother

LAWS = (
    noise.Gaussian(0.25),
    deform.Rotation(0.1 * math.pi),
    deform.Translation(0.1),
    deform.Scaling(0.1),
    deform.Affine(0.1),
    deform.DCT(0.1, bases=2),
    deform.PixelFlow(0.1),
)


def rows() -> Iterator[Row]:
    """Throughput as a share of Gaussian noise's; the aim is for the residual network, whose forward
    pass outweighs the warp, and the small network shows what the warp costs."""
    for name, network, shape, n, target in (
        ("ResNet-20", resnet(20), (3, 32, 32), 300, 0.75),
        ("small CNN", small_cnn(), (1, 28, 28), 2000, None),
    ):
        x = torch.rand(2, *shape)
        calls = {
            type(law).__name__: lambda law=law, network=network, x=x, n=n: Smoother(
                network, law, 10
            ).votes(x, n)
            for law in LAWS
        }
        times = turns(calls, repeats=5)
        for law in list(calls)[1:]:
            detail = f"{2 * n / median(times[law]):.0f} votes/s"
            share = ratio(times["Gaussian"], times[law])
            yield Row(
                f"{name}, {law}: throughput over Gaussian noise's",
                share,
                "times",
                target,
                detail=detail,
            )
