"""The recipe for Alfarra et al. 2022: its smoke scale, its way from claims to words, and its ways
to train."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.papers import alfarra2022 as recipe
from rsfl import fed
from rsfl.deform import Rotation

TASK = recipe.Case("digits", "rotation", 0.1, 4)


def experiment(out: Path) -> recipe.Experiment:
    return recipe.Experiment("smoke", Path(), "cpu", out)


def parameters(model: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def numbers(scores: list[list[float]], distance: float = 0.0) -> recipe.Numbers:
    return {
        "scores": scores,
        "mean radius": [float(np.mean(own)) for own in scores],
        "distance": distance,
    }


def test_smoke_draws_everything_and_computes_once(tmp_path: Path) -> None:
    asked = ["--out", str(tmp_path)]
    words = recipe.main(asked)
    out = tmp_path / "smoke"
    cases = sorted((out / "cases").glob("*.json"))
    before = [path.stat().st_mtime_ns for path in cases]
    assert recipe.main(asked) == words
    assert [path.stat().st_mtime_ns for path in cases] == before

    wanted = {case for cases in recipe.figures(recipe.SCALES["smoke"]).values() for case in cases}
    assert len(cases) == len(wanted)
    drawn = {"affine", "clients", "each", "longer", "mixture", "nominal"}
    assert {path.name.split("-")[0] for path in out.glob("*.png")} == drawn
    assert json.loads((out / "verdicts.json").read_text())["verdicts"] == words

    far = {}
    for path in cases:
        content = json.loads(path.read_text())
        case, found = recipe.Case(**content["settings"]["case"]), content["numbers"]
        far[case] = found["distance"]
        curves = np.array(found["curves"])
        assert (np.diff(curves, axis=1) <= 0).all()
        assert curves.shape[0] == len(found["scores"]) == min(case.clients, 3)
        assert all(len(own) == 6 and min(own) >= 0 for own in found["scores"])
        assert np.max(found["scores"]) <= found["radii"][-1]
        # Where it is right, an image counts at radius 0 and with its radius.
        assert [np.mean(np.array(own) > 0) for own in found["scores"]] == pytest.approx(
            curves[:, 0]
        )
        assert found["rejected"] == 0
    assert far[TASK] < 1e-6  # all have one model
    assert far[replace(TASK, tuned=1.0)] > 1e-3
    by_lambda = [far[replace(TASK, mixture=value)] for value in (*recipe.LAMBDAS, 1.0)]
    assert by_lambda == sorted(by_lambda)  # lambda is the weight of a client's own loss


def test_unknown_figures_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        recipe.main(["--out", str(tmp_path), "--figures", "clients", "spread"])
    assert "unknown figures ['spread']" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_local_training_is_the_mixture_whose_lambda_is_1(tmp_path: Path) -> None:
    lab = experiment(tmp_path)
    local = replace(TASK, mixture=1.0)
    models, _ = lab.models(local)
    members = lab.members(local, lab.sgd(local, 1.0))
    alone = fed.personalise(lab.network("digits"), members, lab.scale.rounds, seed=recipe.SEED)
    for client in range(4):
        torch.testing.assert_close(
            parameters(models[client]), parameters(alone[client]), rtol=0, atol=1e-5
        )
    assert (parameters(models[0]) - parameters(models[1])).norm() > 0.1


def test_rounds_in_common_see_what_they_are_told_to(tmp_path: Path) -> None:
    nominal = replace(TASK, shared="nominal", tuned=1.0)
    assert nominal.rounds == recipe.Case("digits", "nominal", 0.0, 4)
    assert replace(nominal, shared="affine").rounds == recipe.Case("digits", "affine", 0.1, 4)
    assert replace(TASK, tuned=0.5).rounds == TASK
    lab = experiment(tmp_path)
    assert lab.sgd(nominal.rounds, None).loss == fed.SGD().loss
    assert lab.sgd(nominal, None).loss == recipe.train.CrossEntropy(Rotation(0.1 * math.pi))


def test_steps_shrink_as_in_the_scripts_of_the_paper(tmp_path: Path) -> None:
    lab = experiment(tmp_path)
    local, together, last = (
        lab.sgd(TASK, mixture, shift=shift).lr
        for mixture, shift in ((1.0, 0), (None, 0), (0.5, 30))
    )
    assert callable(local)
    assert callable(together)
    assert callable(last)
    first = lab.scale.lr
    assert [local(index) for index in (1, 10, 11, 20, 21)] == pytest.approx(
        [first, first, *[first / 10] * 2, first / 100]
    )
    assert [together(index) for index in (1, 15, 16, 30)] == pytest.approx(
        [first, first, first / 10, first / 10]
    )
    assert last(1) == together(31) == pytest.approx(first / 100)
    longer = lab.sgd(replace(TASK, longer=4), None).lr
    assert callable(longer)
    assert [longer(index) for index in (60, 61)] == pytest.approx([first, first / 10])


def test_paper_scale_is_the_papers() -> None:
    scale = recipe.SCALES["paper"]
    cases = {case for figure in recipe.figures(scale).values() for case in figure}
    for data in ("cifar10", "mnist"):
        for law, sigmas in (
            ("rotation", (0.1, 0.5)),
            ("translation", (0.1, 0.5)),
            ("pixel", (0.12, 0.5)),
        ):
            for sigma in sigmas:
                task = recipe.Case(data, law, sigma, 10)
                ways = {replace(task, mixture=value) for value in (None, 0.1, 0.5, 0.9, 1.0)}
                ways |= {replace(task, shared="nominal", tuned=value) for value in (None, 1.0)}
                assert ways <= cases
    assert {case.clients for case in cases if case.way == "nominal, then personalised"} == {10, 100}
    assert {case.clients for case in cases if case.way == "personalised"} == {4, 10, 20, 100}
    assert {case.law for case in cases if case.way == "affine, then personalised"} == {
        "rotation",
        "translation",
    }


def test_a_gain_is_found_only_beyond_the_noise_of_the_images() -> None:
    found = {
        replace(TASK, mixture=1.0): numbers([[0.1, 0.2], [0.3, 0.4]]),
        TASK: numbers([[0.3, 0.4], [0.5, 0.6]]),
        replace(TASK, tuned=1.0): numbers([[0.4, 0.3], [0.5, 0.6]]),
    }
    check = recipe.Verdicts(found)
    value, error = check.gain(TASK, "federated", "local")
    assert value == pytest.approx(0.2)
    assert error == pytest.approx(0, abs=1e-12)
    check.more("up", "federated", "local", [TASK])
    check.more("down", "local", "federated", [TASK])
    check.more("none", "personalised", "federated", [TASK])
    check.alike("alike", "federated", "local")
    assert [said.split(":")[0] for said in check.words.values()] == [
        "agrees",
        "differs",
        "cannot tell",
        "differs",
    ]
    assert "0.25 to 0.45" in check.words["up"]


def test_gains_are_compared_between_the_fewest_and_the_most_clients() -> None:
    def ways(clients: int, gain: float) -> dict[recipe.Case, recipe.Numbers]:
        task = replace(TASK, clients=clients)
        local = np.linspace(0, 1, 20)
        return {
            task: numbers((local + gain).reshape(4, 5).tolist()),
            replace(task, mixture=1.0): numbers(local.reshape(4, 5).tolist()),
        }

    for gains, word in (((0.1, 0.2, 0.3), "agrees"), ((0.3, 0.5, 0.2), "differs")):
        found = {
            case: each
            for k, gain in zip((4, 10, 20), gains, strict=True)
            for case, each in ways(k, gain).items()
        }
        check = recipe.Verdicts(found)
        check.grows("more", "federated", "local")
        assert check.words["more"].startswith(word)
        assert "4 against 20 clients" in check.words["more"]


def test_spread_and_distance() -> None:
    wide = [[float(k), float(k)] for k in range(10)]
    narrow = [[4 + k / 10, 4 + k / 10] for k in range(10)]
    check = recipe.Verdicts(
        {
            replace(TASK, mixture=1.0): numbers(wide, 1.0),
            replace(TASK, mixture=0.1): numbers(narrow, 0.1),
        }
    )
    check.wider("wide", "local", "mixture 0.1")
    check.wider("narrow", "mixture 0.1", "local")
    check.wider("same", "local", "local")
    check.nearer("near", ["local", "mixture 0.1"])
    assert [said.split(":")[0] for said in check.words.values()] == [
        "agrees",
        "differs",
        "cannot tell",
        "cannot tell",
    ]
    assert "by distance 0.1: 4.45, 1: 4.5" in check.words["near"]
