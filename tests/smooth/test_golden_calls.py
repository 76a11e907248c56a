"""Whole calls, bit for bit as they were when ``golden_calls.json`` was written, on the same kind of
processor: other instruction sets draw and round otherwise in the last digit.

A change here is another draw, or another reading. Where it is meant, run this file as a script.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from models import LAWS, MODELS
from torch import nn

from rsfl import deform, runs
from rsfl.smooth import DeformationSmoother, ParameterSmoother, Smoother

GOLDEN = Path(__file__).parent / "golden_calls.json"
MACHINE = torch.backends.cpu.get_cpu_capability()
X = torch.tensor([-0.9, 0.1, 0.4, 0.7, 1.0]).mul(255).round().div(255).clamp(0, 1)[:, None]
IMAGES = torch.linspace(0, 1, 3 * 36).mul(255).round().div(255).view(3, 1, 6, 6)


def network(inputs, classes=3):
    """Weights that no generator draws."""
    layer = nn.Linear(inputs, classes)
    values = torch.arange(layer.weight.numel(), dtype=torch.float32)
    layer.weight.data = ((values * 37) % 101 / 101 - 0.5).view(classes, inputs)
    layer.bias.data = torch.arange(classes) / 100
    return nn.Sequential(nn.Flatten(), layer)


def smoothers():
    found = {name: (Smoother(MODELS["staircase"], law, 4), X, 0.02) for name, law in LAWS.items()}
    for law in (deform.Rotation(0.4), deform.Translation(0.2), deform.DCT(0.2, bases=2)):
        smoother = DeformationSmoother(network(36), law, 3)
        found[type(law).__name__] = smoother, IMAGES, 0.02
    found["parameters"] = ParameterSmoother(network(36), 0.1, 3), IMAGES, 0.01
    rest = ParameterSmoother(network(36), 0.1, 3, parameters=["1.bias"])
    found["some parameters"] = rest, IMAGES, 0.001
    return found


def calls(smoother, x, radius):
    shared = {"seed": 3, "index": list(range(4, 4 + len(x)))}
    return {
        "certify": smoother.certify(x, n0=20, n=300, **shared),
        "certify bounded": smoother.certify(
            x, n0=20, n=300, alpha=0.05, runner_up="bounded", confidence="hoeffding", **shared
        ),
        "certify_at": smoother.certify_at(x, radius, n0=20, n_max=500, **shared),
        "predict": smoother.predict(x, n=200, **shared),
    }


def run(out):
    smoother = Smoother(MODELS["staircase"], LAWS["gaussian"], 4)
    runs.certify(smoother, (X, torch.tensor([0, 1, 2, 1, 3])), out=out, n0=20, n=300)
    return {
        "run": runs.load(out)[0],
        "run at another alpha": runs.load(out, alpha=0.05)[0],
        "run bounded": runs.load(out, runner_up="bounded")[0],
    }


def told(certificate):
    """What a certificate says, exactly."""
    reals = {
        name: [value.hex() for value in getattr(certificate, name).tolist()]
        for name in ("radius", "p_lower")
    }
    whole = ("label", "counts", "selection_counts", "n")
    return {name: getattr(certificate, name).tolist() for name in whole} | reals


def recorded(out):
    found = {name: calls(*how) for name, how in smoothers().items()} | {"runs": run(out)}
    return {
        name: {call: told(certificate) for call, certificate in made.items()}
        for name, made in found.items()
    }


@pytest.mark.skipif(
    json.loads(GOLDEN.read_text())["machine"] != MACHINE if GOLDEN.exists() else True,
    reason=f"was written on another kind of processor than {MACHINE}",
)
def test_whole_calls_are_what_they_were(tmp_path):
    expected, found = json.loads(GOLDEN.read_text())["calls"], recorded(tmp_path)
    assert found.keys() == expected.keys()
    for name, made in found.items():
        for call, certificate in made.items():
            for field, value in certificate.items():
                assert value == expected[name][call][field], (name, call, field)


if __name__ == "__main__":
    content = {"machine": MACHINE, "calls": recorded(sys.argv[1])}
    GOLDEN.write_text(json.dumps(content, separators=(",", ":")) + "\n")
