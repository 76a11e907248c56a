"""The same bounds, to the last digits, as before the threats became classes of their own."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ledgers import participant, record, threat
from torch import nn

from rsfl import fed
from rsfl.bounds import (
    RemovalThreat,
    deviation,
    largest_norm,
    latest_round,
    most_attackers,
)
from rsfl.smooth import exact_votes, margins

FILE = Path(__file__).with_name("golden.json")
RADII = np.array([0.0, 1e-3, 0.02, 0.1, 0.5, 3.0, 1e3])
CASES = [
    ("feature", {"clients": [0, 1], "norm": 0.1, "flips": False}),
    ("feature", {"clients": [2], "norm": 0.3, "per_batch": 2, "scale": 3.0, "rounds": [2]}),
    ("feature", {"clients": [2], "norm": 0.3, "share": 0.2, "input_norm": 1.2}),
    ("feature", {"at_most": 2, "norm": 0.1, "samples": 2, "scale": (0.5, 2.0)}),
    ("feature", {"clients": [0, 1], "norm": 0.1, "scale": 2.0, "comparator": "scaled"}),
    ("feature", {"clients": [0], "norm": 0.1, "samples": {0: [1, 4]}}),
    ("sample", {"clients": [0, 1], "input_norm": 2.0, "per_batch": 1}),
    ("sample", {"at_most": 1, "input_norm": 2.0, "samples": 3}),
    ("client", {"at_most": 2}),
    ("client", {"clients": [1], "rounds": [1, 3]}),
    ("forensic", {"clients": [0, 1]}),
    ("forensic", {"at_most": 1}),
    ("removal", {"clients": [0, 1]}),
    ("removal", {"at_most": 2}),
]


def ledger(seed):
    """A random ledger that meets the conditions: settings of each client, a tight or no clip, an
    absence."""
    rng = np.random.default_rng([7, seed])
    clients, rounds = int(rng.integers(4, 8)), int(rng.integers(3, 6))
    weight = rng.uniform(0.5, 2, clients)
    weight /= weight.sum()
    everyone = []
    for i in range(clients):
        size, decay = rng.uniform(1, 3), rng.choice([0.0, 0.1, 1.0])
        everyone.append(
            participant(
                client=i,
                weight=weight[i],
                input_norm=size,
                decay=(decay, decay),
                lr=rng.uniform(0.05, 2) / (decay + size**2 / 2),
            )
        )
    out = []
    for t in range(rounds):
        now = [
            replace(
                one,
                update_norm=0.0 if absent else rng.uniform(0, 1),
                gap=rng.uniform(0, 0.1),
                outcome="absent" if absent else "used",
            )
            for one, absent in zip(everyone, rng.random(clients) < 0.1, strict=True)
        ]
        out.append(
            record(
                t + 1,
                participants=now,
                broadcast_norm=rng.uniform(0, 0.1),
                noise_norm=rng.choice([0.0, 0.01]),
                clip=(np.inf, 1.0, 0.1)[seed % 3],
                server_step=rng.choice([0.5, 1.0]),
                update_clip=1000.0,
            )
        )
    return out


def bounds_of(seed):
    """Every number that the rooms of poisoning give about a ledger."""
    rounds, found = ledger(seed), {}
    for number, (level, settings) in enumerate(CASES):
        stated = threat(level, **settings)
        numbers = {"trace": deviation(rounds, stated).trace.tolist()}
        if level == "feature":
            numbers["norm"] = largest_norm(rounds, stated, RADII).tolist()
        if "at_most" in settings:
            numbers["most"] = most_attackers(rounds, stated, RADII).tolist()
        if level != "removal" and not isinstance(settings.get("samples"), dict):
            numbers["latest"] = latest_round(rounds, stated, RADII).tolist()
        found[str(number)] = numbers
    return found


def linear():
    """A linear model and inputs, the same on every machine."""
    rng = np.random.default_rng(11)
    model = nn.Linear(5, 3).double()
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(rng.normal(size=(3, 5))))
        model.bias.copy_(torch.from_numpy(rng.normal(size=3)))
    return model, torch.from_numpy(rng.normal(size=(40, 5)))


def certificates():
    model, x = linear()
    found = {}
    for name, base in (("margin", margins(model, x)), ("votes", exact_votes(model, x, 0.2))):
        one = fed.withstood(base, ledger(1), RemovalThreat(at_most=1))
        found[name] = {
            "reach": one.reach.tolist(),
            "label": one.label.tolist(),
            "p_lower": one.p_lower.tolist(),
            "p_upper": one.p_upper.tolist(),
        }
    return found


def sharper(level, settings):
    """Where the minimum with the clipped comparison run may be the smaller one."""
    return level == "client" or settings.get("comparator") == "scaled"


@pytest.mark.parametrize("seed", range(6))
def test_bounds_are_as_they_were(seed):
    now, then = bounds_of(seed), json.loads(FILE.read_text())["bounds"][seed]
    for number, (level, settings) in enumerate(CASES):
        found, kept = now[str(number)], then[str(number)]
        assert set(found) == set(kept)
        for name, values in kept.items():
            old, new = np.array(values, float), np.array(found[name], float)
            if sharper(level, settings):
                assert ((new <= old * (1 + 1e-12)) if name == "trace" else (new >= old)).all()
            elif name == "norm":  # where a clip decides, the norm may now be larger
                moderate = old < 100  # less a hair for rounding that depends on the ledger's size
                np.testing.assert_allclose(new[moderate], old[moderate], rtol=1e-10)
                assert (new >= old * (1 - 1e-10)).all()
            else:
                np.testing.assert_allclose(new, old, rtol=1e-13)


def test_certificates_of_linear_models_are_as_they_were():
    now, before = certificates(), json.loads(FILE.read_text())["exact"]
    assert now.keys() == before.keys()
    for kind, columns in before.items():
        assert now[kind].keys() == columns.keys()
        for name, values in columns.items():
            # the last bits are those of the processor's matrix products, and of scipy
            np.testing.assert_allclose(now[kind][name], values, rtol=1e-10, err_msg=name)
