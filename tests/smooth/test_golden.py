"""Readings of votes that are given by hand, bit for bit as they were when ``golden.json`` was
written.

A change here is a change of radii. Where it is meant, it goes into the changelog under
"Guarantees".
"""

import json
from math import isclose
from pathlib import Path

import pytest
import scipy
import torch

from rsfl._laws import from_document
from rsfl.smooth import Ballot, Sequential, Votes

GOLDEN = json.loads((Path(__file__).parent / "golden.json").read_text())

SCIPY = "1.17.1"  # whose special functions gave the last digits: others differ in the twelfth


def same(found, written):
    if scipy.__version__ == SCIPY:
        return found.hex() == written
    return isclose(found, float.fromhex(written), rel_tol=1e-11)


def named(reading):
    law = "-".join(map(str, reading["law"].values()))
    return f"{reading['kind']}-{law}-{reading['dim']}-{reading['alpha']}"


def ballot(reading, **how):
    return Ballot(
        from_document(reading["law"]),
        Votes(torch.tensor(GOLDEN["selection"]), torch.tensor(GOLDEN["selection_invalid"])),
        Votes(torch.tensor(GOLDEN["counts"]), torch.tensor(GOLDEN["invalid"])),
        torch.tensor(GOLDEN["index"]),
        dim=reading["dim"],
        seed=3,
        **how,
    )


@pytest.mark.parametrize("reading", GOLDEN["readings"], ids=named)
def test_a_reading_is_what_it_was(reading):
    alpha = reading["alpha"]
    if reading["kind"] == "prediction":
        found = ballot(reading).prediction(alpha)
    elif reading["kind"] == "certificate":
        how = {name: reading[name] for name in ("runner_up", "confidence")}
        found = ballot(reading).certificate(alpha, **how)
    else:
        rule = Sequential(float.fromhex(reading["radius_asked"]), alpha, 1000)
        found = ballot(reading, rule=rule).certificate_at()
    assert found.label.tolist() == reading["label"]
    for name in ("radius", "p_lower", "p_upper"):
        if name in reading:
            numbers = getattr(found, name).tolist()
            assert len(numbers) == len(reading[name])
            pairs = zip(numbers, reading[name], strict=True)
            assert all(same(value, written) for value, written in pairs), (name, numbers)
