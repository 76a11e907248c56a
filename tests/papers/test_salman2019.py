"""The recipe of Salman et al. runs through, computes nothing twice, and its verdicts say what the
numbers say."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.papers import salman2019, salman2019_findings, salman2019_plan
from benchmarks.papers.salman2019 import Experiment, Moved, ThenNoise
from benchmarks.papers.salman2019_findings import Gap
from benchmarks.papers.salman2019_plan import PAPER, SCALES, SMOKE, Attacked, Case
from rsfl.attacks import PGD
from rsfl.noise import Gaussian
from rsfl.train import Adversarial, Batches

SCALE = SCALES["smoke"]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    out = tmp_path_factory.mktemp("salman2019")
    return out / "smoke", salman2019.main(["--scale", "smoke", "--out", str(out)])


def test_smoke_draws_every_figure_and_judges_every_claim(ran) -> None:
    out, verdicts = ran
    assert {path.stem for path in out.glob("*.png")} == set(salman2019_plan.figures(SCALE))
    assert all(said.startswith(("agrees", "differs", "cannot tell")) for said in verdicts.values())
    assert json.loads((out / "verdicts.json").read_text())["verdicts"] == verdicts
    assert verdicts["no attack refutes a certificate"].startswith("agrees")


def test_smoke_again_computes_nothing(ran) -> None:
    out, verdicts = ran

    def kept() -> dict[Path, int]:
        files = [
            path for folder in ("numbers", "weights", "votes") for path in (out / folder).rglob("*")
        ]
        return {path: path.stat().st_mtime_ns for path in files if path.suffix != ".lock"}

    before = kept()
    assert salman2019.main(["--scale", "smoke", "--out", str(out.parent)]) == verdicts
    assert kept() == before


def test_smoke_certifies_no_more_than_the_votes_can(ran) -> None:
    contents = [json.loads(path.read_text()) for path in (ran[0] / "numbers").iterdir()]
    certified = [content for content in contents if "reach" in content["numbers"]]
    assert len(certified) >= 20
    for content in certified:
        reach = np.array(content["numbers"]["reach"])
        assert len(reach) == SMOKE.images
        assert reach.max() <= salman2019_plan.largest(content["settings"]["item"]["sigma"], SMOKE.n)
        assert bool(
            ((reach == -1) | (reach > 0)).all()
        )  # what abstains is not certified at radius 0
    for content in contents:
        if "right" in content["numbers"]:
            assert np.mean(content["numbers"]["right"]) + content["numbers"]["abstained"] <= 1


def test_other_figures_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        salman2019.main(["--out", str(tmp_path), "--figures", "imagenet"])
    assert "unknown figures ['imagenet']" in capsys.readouterr().err


def test_a_gap_and_its_error() -> None:
    first, second = np.array([True, True, False, True]), np.array([True, False, False, False])
    gap = Gap.between([first], [second])
    assert gap.value == 0.5
    assert gap.error == pytest.approx(np.sqrt(1 / 3 / 4))
    # Seeds that disagree are part of the error: here the images' means are all 1/2, and the seeds'
    # 1 and 0.
    seeds = Gap.between([np.ones(4), np.ones(4)], [np.zeros(4), np.ones(4)])
    assert (seeds.value, seeds.error) == (0.5, pytest.approx(0.5))


@pytest.mark.parametrize(
    ("gaps", "heading"),
    [
        ([Gap(0.3, 0.1), Gap(-0.1, 0.1)], "cannot tell ("),
        ([Gap(0.3, 0.1), Gap(-0.3, 0.1)], "differs ("),
        ([Gap(0.3, 0.1), Gap(0.2, 0.09)], "agrees ("),
        ([Gap(0.3, 0.1)], "agrees ("),
    ],
)
def test_what_is_said_of_gaps(gaps: list[Gap], heading: str) -> None:
    assert salman2019_findings.said({str(i): gap for i, gap in enumerate(gaps)}).startswith(heading)


def made_up(reaches: dict[Case, np.ndarray]) -> dict:
    return {case: {"reach": reach.tolist(), "seconds": 1.0} for case, reach in reaches.items()}


NEAR, FAR = np.repeat([0.05, -1.0], [30, 10]), np.repeat([0.3, -1.0], [20, 20])
"""Certified at small radii for many images, or at large ones for fewer."""


def test_epsilon_trades_accuracy_for_radius() -> None:
    low, high = (
        salman2019_plan.smooth_adv(SCALE, 0.25, epsilon=epsilon) for epsilon in (0.25, 0.5)
    )
    for reaches, heading in (
        ({low: NEAR, high: FAR}, "agrees"),
        ({low: FAR, high: NEAR}, "differs"),
    ):
        found = salman2019_findings.judged_epsilon(SCALE, made_up(reaches))
        assert len(found) == 2
        assert all(said.startswith(heading) for said in found.values())


def test_more_draws_and_more_data_are_judged_by_what_they_certify() -> None:
    one, two = (salman2019_plan.smooth_adv(SCALE, 0.25, samples=m) for m in (1, 2))
    for reaches, heading in (({one: NEAR, two: FAR}, "agrees"), ({one: FAR, two: NEAR}, "differs")):
        (said,) = salman2019_findings.judged_samples(SCALE, made_up(reaches)).values()
        assert said.startswith(heading)
    kinds = ("few", "pre-training", "self-training", "both")
    cases = [salman2019_plan.smooth_adv(SCALE, 0.25, data=data) for data in kinds]
    found = salman2019_findings.judged_data(
        SCALE, made_up(dict(zip(cases, (NEAR, FAR, NEAR, FAR), strict=True)))
    )
    assert [said.split(" (")[0] for said in found.values()] == ["agrees", "cannot tell", "agrees"]


def test_envelopes_are_judged_by_the_best_and_read_in_linf() -> None:
    found = {
        case: NEAR if case.way == "noise" else np.full(40, -1.0)
        for case in salman2019_plan.grid(SCALE)
    }
    best = salman2019_plan.smooth_adv(SCALE, 0.25, epsilon=0.5)
    verdicts = salman2019_findings.judged_envelopes(SCALE, made_up(found | {best: FAR}))
    assert verdicts["the best of SmoothAdv certifies more than the best of noise"].startswith(
        "agrees (r = 0.25: +0.5"
    )
    assert verdicts["so it does at sigma = 0.12"].startswith("differs")
    # 2/255 in linf is 0.063 in l2 for 64 pixels: FAR reaches it and NEAR does not.
    (linf,) = [said for claim, said in verdicts.items() if "linf" in claim]
    assert linf.startswith("agrees")
    assert "0.500 and 0.000, accuracy 0.500 and 0.750" in linf


def test_ways_are_judged_over_their_seeds() -> None:
    cases = salman2019_plan.ways(0.25, 0.5, ("noise", "SmoothAdv-PGD"), 2)
    reaches = {case: NEAR if case.way == "noise" else FAR for case in cases}
    (said,) = salman2019_findings.judged_training(made_up(reaches), 0.25, SMOKE.n).values()
    assert said.startswith("agrees")
    turned = {case: FAR if case.way == "noise" else NEAR for case in cases}
    (said,) = salman2019_findings.judged_training(made_up(turned), 0.25, SMOKE.n).values()
    assert said.startswith("differs")


def test_attacks_are_judged_by_what_they_leave() -> None:
    def left(item: Attacked) -> int:
        share = {"PGD": 3, "one-point": 4, "SmoothAdv": 5 - item.samples}[item.attack]
        return share - (item.n < SCALE.predicted)

    found = {
        item: {
            "right": [True] * left(item) + [False] * (5 - left(item)),
            "abstained": 0.0,
            "refuted": 0,
        }
        for item in salman2019_plan.under_attack(SCALE)
    }
    ours = salman2019_plan.smooth_adv(SCALE, 0.25, epsilon=0.25)
    certified = made_up(
        {case: np.full(5, 0.2 if case == ours else -1.0) for case in salman2019_plan.grid(SCALE)}
    )
    verdicts = salman2019_findings.judged_attack(SCALE, found | certified)
    numbers = {claim: said.split(": ", 1)[-1][:6] for claim, said in verdicts.items()}
    assert numbers["an attack of m = 1 is weaker than PGD on the network"] == "+0.200"
    assert numbers["an attack of m = 2 is stronger than one of m = 1"] == "+0.200"
    assert numbers["n = 100 votes predict better than 20"] == "+0.200"
    assert (
        numbers["the one-point attack of m = 2 is weaker than SmoothAdv-PGD of as many"] == "+0.200"
    )
    assert numbers["SmoothAdv certifies more than noise training has under attack"] == "+0.400"
    assert verdicts["no attack refutes a certificate"].startswith("agrees (0 of")
    item = next(iter(found))
    refuted = salman2019_findings.judged_attack(
        SCALE, found | certified | {item: found[item] | {"refuted": 1}}
    )
    assert refuted["no attack refutes a certificate"].startswith("differs (1 of")


def test_moved_images_are_shifts_or_mirror_images() -> None:
    x, y = torch.rand(6, 2, 8, 8) + 0.1, torch.arange(6)
    moved = Moved(Batches(x, y, 4))
    assert len(moved) == 2
    seen = set()
    for images, labels in moved(1):
        for image, label in zip(images, labels.tolist(), strict=True):
            padded = nn.functional.pad(x[label], (4, 4, 4, 4))
            places = [
                (row, column, mirrored)
                for row in range(9)
                for column in range(9)
                for mirrored in (False, True)
                if image.equal(
                    padded[:, row : row + 8, column : column + 8].flip([2] if mirrored else [])
                )
            ]
            assert len(places) == 1
            seen |= set(places)
    assert len(seen) > 2
    first, again, other = (torch.cat([images for images, _ in moved(epoch)]) for epoch in (1, 1, 2))
    assert first.equal(again)
    assert not first.equal(other)


def test_noise_after_the_attack() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3), torch.rand(8, 4), torch.arange(8) % 3

    def value(kind: type[Adversarial], sigma: float) -> float:
        attack = PGD(epsilon=0.5, steps=2)
        loss = kind(attack=attack, law=Gaussian(sigma), num_classes=3)
        return loss(model, x, y, torch.Generator().manual_seed(0)).item()

    assert value(ThenNoise, 1e-9) == pytest.approx(value(Adversarial, 1e-9), abs=1e-6)
    assert abs(value(ThenNoise, 1.0) - value(Adversarial, 1.0)) > 0.01


def test_substitute_data_are_apart_and_fine_tuning_starts_where_pre_training_ended(
    tmp_path: Path,
) -> None:
    setting = replace(SMOKE, epochs=1, tuning_lr=1e-12)
    experiment = Experiment(setting, tmp_path, "cpu", tmp_path)
    case = Case("SmoothAdv-PGD", 0.25, 0.5)
    few, held = (experiment.examples(replace(case, data=data)) for data in ("few", "held back"))
    both, guessed = experiment.examples(replace(case, data="self-training"))
    assert [len(part) for part in (few[0], held[0], both)] == [150, 300, 450]
    assert both[:150].equal(few[0])
    rows = torch.cat([few[0], held[0], both[150:]]).flatten(1)
    assert rows.equal(experiment.x[:750].flatten(1))
    assert guessed[:150].equal(few[1])
    assert not guessed[150:].equal(experiment.y[450:750])  # the teacher's guesses, not the labels
    before, after = (
        list(experiment.trained(replace(case, data=data))[0].parameters())
        for data in ("held back", "pre-training")
    )
    distances = [float((a - b).detach().abs().max()) for a, b in zip(before, after, strict=True)]
    assert max(distances[:-2]) < 1e-6
    assert min(distances[-2:]) > 1e-3


def test_paper_scale_takes_a_step_of_each_kind(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (4, 3072)).astype(np.uint8)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(
            pickle.dumps({b"data": images, b"labels": [0, 1, 2, 3]}, protocol=4)
        )
    setting = replace(
        PAPER, train=4, few=4, more=4, epochs=1, tuning=1, batch=4, images=1, attacked=1, n=20
    )
    experiment = Experiment(setting, tmp_path, "cpu", tmp_path / "out")
    case = salman2019_plan.smooth_adv(SCALES["paper"], 0.25, data="both")
    numbers = experiment.numbers(case)
    assert len(numbers["reach"]) == 1
    model, _ = experiment.trained(case)
    weights = [weight for weight in model.parameters() if weight.ndim == 4]
    assert len(weights) == 109
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)
