"""The yardstick runs through at every setting, computes nothing twice, and compares like with
like."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.networks import lenet
from benchmarks.papers import mnist
from benchmarks.papers.mnist import METHODS, PUBLISHED, SIGMAS, Case, judged, loss


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    out = tmp_path_factory.mktemp("mnist")
    arguments = ["--scale", "smoke", "--out", str(out), "--sigmas", "0.5"]
    return out, mnist.main(arguments)


def test_smoke_trains_and_certifies_every_method(ran) -> None:
    out, verdicts = ran
    assert verdicts == {f"{method} 0.5 seed 0": "not compared" for method in METHODS}
    assert len((out / "smoke" / "tables.txt").read_text().splitlines()) == len(METHODS)
    reach = [
        json.loads(path.read_text())["numbers"]["reach"]
        for path in out.rglob("*.json")
        if path.parent.name == "numbers"
    ]
    assert len(reach) == len(METHODS)
    assert all(len(one) == 20 for one in reach)
    assert np.mean([np.mean(np.array(one) > 0) for one in reach]) > 0.05


def test_smoke_again_computes_nothing(ran) -> None:
    out, verdicts = ran

    def kept() -> dict[Path, int]:
        files = (
            path
            for part in ("numbers", "weights", "votes")
            for path in (out / "smoke" / part).rglob("*")
        )
        return {path: path.stat().st_mtime_ns for path in files if path.suffix != ".lock"}

    before = kept()
    assert mnist.main(["--out", str(out), "--sigmas", "0.5"]) == verdicts
    assert kept() == before


def test_lenet_is_of_the_published_size() -> None:
    assert sum(p.numel() for p in lenet().parameters()) == 520 + 25_050 + 400_500 + 5_010
    assert lenet()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_published_settings(sigma: float) -> None:
    weights = {0.25: (10, 16, 2), 0.5: (5, 16, 4), 1.0: (5, 6, 8)}[sigma]
    found = [loss(Case(method, sigma)) for method in ("Consistency", "MACER", "SmoothMix")]
    assert (found[0].weight, found[1].weight, found[2].steps) == weights  # type: ignore[attr-defined]
    assert all(one.law.sigma == sigma for one in found)  # type: ignore[attr-defined]
    assert all((method, sigma) in PUBLISHED for method in METHODS)


def test_agreement_is_with_the_same_number_of_votes_and_within_two_errors() -> None:
    case, (mean, spread) = Case("noise", 0.5), PUBLISHED["noise", 0.5].whole
    shift = np.linspace(-0.01, 0.01, 500)
    acr, error, said = judged(case, 100_000, (mean + shift).tolist())
    assert (acr, said) == (pytest.approx(mean), "agrees")
    assert spread * math.sqrt(1.2) < error < 2 * spread
    assert judged(case, 100_000, (mean + 1.9 * error + shift).tolist())[2] == "agrees"
    assert judged(case, 100_000, (mean + 2.1 * error + shift).tolist())[2] == "differs"
    assert judged(case, 10_000, (mean + shift).tolist())[2] == "differs"
    for n in (10_000, 1000):
        part, _ = PUBLISHED["noise", 0.5].at(n)  # type: ignore[misc]
        assert judged(case, n, [part] * 500)[2] == "agrees"
    wrong = [2 * part] * 250 + [-1.0] * 250  # of which the average counts as 0
    assert judged(case, 1000, wrong)[0] == pytest.approx(part)
    assert judged(case, 1000, [part] * 20)[2] == "not compared"  # other images
    assert judged(case, 500, [part] * 500)[2] == "not compared"
