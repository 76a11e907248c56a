"""The Fed-SmoothAdv recipe computes nothing twice, compares like with like, and says when it cannot
tell."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.papers import chen2021, recipe
from benchmarks.papers.chen2021 import Case
from rsfl.noise import Gaussian


def test_smoke_is_computed_once_and_consistent(tmp_path: Path) -> None:
    words = chen2021.main(["--out", str(tmp_path)])
    files = sorted((tmp_path / "smoke").rglob("*.json"))
    before = {path: path.stat().st_mtime_ns for path in files if path.name != "verdicts.json"}
    assert chen2021.main(["--out", str(tmp_path)]) == words
    assert {path: path.stat().st_mtime_ns for path in before} == before
    report = json.loads((tmp_path / "smoke" / "verdicts.json").read_text())
    assert report["verdicts"] == words
    assert all(re.match("(agrees|differs|cannot tell) ", said) for said in words.values())
    assert len(words) > 15
    for figure in ("sigma", "epsilon", "ablation", "step"):
        assert (tmp_path / "smoke" / f"{figure}.png").stat().st_size > 5000

    cases = [json.loads(path.read_text()) for path in before if path.parent.name == "cases"]
    asked = {Case(**case["settings"]["case"]) for case in cases}
    assert asked == {case for chosen in chen2021.figures("smoke").values() for case in chosen}
    for case in cases:
        numbers, sigma = case["numbers"], case["settings"]["case"]["sigma"]
        curve, radius = np.array(numbers["certified accuracy"]), np.array(numbers["radius"])
        assert (np.diff(curve) <= 0).all()
        np.testing.assert_allclose(curve, [(radius >= r).mean() for r in numbers["radii"]])
        assert numbers["mean radius"] == pytest.approx(radius.clip(min=0).mean())
        assert radius.max() <= Gaussian(sigma).radius(0.001 ** (1 / chen2021.SCALES["smoke"].n))


def test_a_figure_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        chen2021.main(["--out", str(tmp_path), "--figures", "corners"])
    assert "unknown figures ['corners'] at this scale" in capsys.readouterr().err


@pytest.mark.parametrize("scale", chen2021.SCALES.values(), ids=chen2021.SCALES.keys())
def test_one_place_sees_as_many_samples_as_the_devices(scale: chen2021.Scale) -> None:
    assert scale.passes * scale.images == scale.rounds * scale.active * scale.batches * 30


def test_the_paper_scale_has_its_whole_grid() -> None:
    cases = {case for chosen in chen2021.figures("paper").values() for case in chosen}
    for sigma in (0.12, 0.25, 0.5):
        for epsilon in (64, 128, 256):
            for training in ("stochastic", "one-point"):
                assert {
                    Case(sigma, epsilon, training, gamma) for gamma in (None, 0.1, 0.5)
                } <= cases


@pytest.mark.parametrize(
    ("training", "shared"), [("plain", 1), ("adversarial", 1), ("noise", 2), ("stochastic", 2)]
)
def test_cases_share_a_training_where_it_sees_no_noise(training: str, shared: int) -> None:
    assert len({Case(sigma=sigma, training=training).trained for sigma in (0.12, 0.5)}) == shared


@pytest.mark.parametrize("training", ["stochastic", "one-point"])
@pytest.mark.parametrize(("step", "same"), [(chen2021.LITERAL, True), (None, False)])
def test_with_the_literal_step_epsilon_does_nothing(
    tmp_path: Path, training: str, step: float | None, same: bool
) -> None:
    scale = replace(chen2021.SCALES["smoke"], rounds=1, batches=2)
    experiment = chen2021.Experiment(scale, Path(), "cpu", tmp_path)
    models = [experiment.model(Case(epsilon=e, training=training, step=step)) for e in (64, 256)]
    pairs = zip(*(model.parameters() for model in models), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs) is same


def reached(*radii: float) -> dict[str, list[float]]:
    return {"radius": list(radii)}


def test_difference_is_paired_by_image_and_counts_both_samples() -> None:
    found = {
        Case(gamma=None): reached(0.3, 0.3, -1.0, 0.0),
        Case(gamma=0.1): reached(0.3, 0.2, -1.0, -1.0),
        Case(gamma=None, sigma=0.5): reached(0.6, 0.6, 0.6, -1.0),
        Case(gamma=0.1, sigma=0.5): reached(0.6, -1.0, -1.0, -1.0),
    }
    pairs = chen2021.rivals(found, {"gamma": 0.1}, gamma=(None,), training=chen2021.ESTIMATORS)
    assert len(pairs) == 2
    # At r = 0 the first of a pair gains image 3, and images 1 and 2.
    gain, error = chen2021.difference(found, pairs, 0)
    assert gain == pytest.approx(3 / 8)
    images, runs = np.var([0, 0.5, 0.5, 0.5], ddof=1) / 4, np.var([1 / 4, 2 / 4], ddof=1) / 2
    assert error == pytest.approx((images + runs) ** 0.5)
    # At r = sigma image 1 is gained in both.
    assert chen2021.difference(found, pairs, 1)[0] == pytest.approx(3 / 8)
    assert chen2021.rivals(found, {"sigma": 0.12}) == []


@pytest.mark.parametrize(
    ("gain", "error", "said"),
    [
        (0.10, 0.02, ("agrees", "agrees", "differs", "agrees")),
        (0.10, 0.04, ("agrees", "agrees", "cannot tell", "cannot tell")),
        (0.01, 0.01, ("cannot tell", "agrees", "agrees", "differs")),
        (-0.10, 0.02, ("differs", "differs", "differs", "differs")),
    ],
)
def test_words_need_two_standard_errors(gain: float, error: float, said: tuple[str, ...]) -> None:
    tests = (recipe.sure, chen2021.hardly, chen2021.close, chen2021.much)
    assert tuple(test(gain, error) for test in tests) == said
