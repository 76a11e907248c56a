"""CRFL's recipe: every path on the digits, twice; its other data sets from made-up files; its
verdicts."""

import gzip
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from benchmarks.papers import xie2021, xie2021_findings

LOANS = "amount,delinq_2yrs,pub_rec,addr_state,loan_status\n" + "\n".join(
    f"{i},{i % 3},{i % 2},{('CA', 'CA', 'NY', 'CA')[i % 4]},{('Fully Paid', xie2021.TARGET)[i % 2]}"
    for i in range(80)
)


def found(folder: Path, *options: str) -> tuple[dict[str, str], dict[Path, int]]:
    """The verdicts, and when each file of numbers was written."""
    words = xie2021.main(["--out", str(folder), *options])
    return words, {path: path.stat().st_mtime_ns for path in folder.rglob("cases/*.json")}


def ways(cases: list[dict]) -> Iterator[tuple[dict, str, dict]]:
    for case in cases:
        for samples in ("clean", "backdoored"):
            for way, numbers in case[samples]["ways"].items():
                yield case[samples], way, numbers


def test_smoke(tmp_path: Path) -> None:
    words, times = found(tmp_path)
    assert words["more attackers, smaller radius: pattern"].startswith("agrees")
    assert words["our bound holds in every round from t_adv = 2 on"].startswith("agrees")
    assert words["inputs have norm at most 1, as Lemma 1 needs"].startswith("differs")
    assert {path.stem for path in tmp_path.rglob("*.png")} == set(xie2021.ALL)
    assert [path.name for path in tmp_path.rglob("verdicts.json")] == ["verdicts.json"]
    assert found(tmp_path) == (words, times)


def test_only_the_figures_asked_for(tmp_path: Path) -> None:
    words, _ = found(tmp_path, "--figures", "formula")
    assert list(words) == ["more rounds raise the radius at small rho / sigma only, factors"]
    assert [path.name for path in tmp_path.rglob("*.png")] == ["formula.png"]


@pytest.mark.parametrize(
    "options", [["--figures", "tau"], ["--dataset", "cifar"], ["--scale", "huge"]]
)
def test_refuses_what_it_does_not_have(options: list[str]) -> None:
    with pytest.raises(SystemExit):
        xie2021.main(options)


def test_a_stronger_threat_certifies_less_and_no_certificate_beats_its_model() -> None:
    experiment = xie2021.Experiment(xie2021.SMOKE, xie2021.load("digits", Path()), "cpu")
    case = replace(xie2021.SMOKE.base, gamma=1.0)
    numbers = experiment.measured(case)
    for samples, way, curves in ways([numbers]):
        rate, right = np.array(curves["rate"]), np.array(curves["certified accuracy"])
        assert (np.diff(rate) <= 0).all()
        assert (np.diff(right) <= 0).all()
        assert (right <= rate).all()
        if way in xie2021.SOUND:
            assert right[0] <= samples["accuracy"]
    for samples in ("clean", "backdoored"):
        pattern, labels, honest = (numbers[samples]["ways"][way]["rate"] for way in xie2021.SOUND)
        assert np.greater_equal(pattern, labels).all()
        assert np.greater_equal(labels, honest).all()
        assert pattern[1] > 0


def test_settings_tell_experiments_apart() -> None:
    data, base = xie2021.load("digits", Path()), xie2021.SMOKE.base
    some = xie2021.Experiment(replace(xie2021.SMOKE, certified=50), data, "cpu")
    more = xie2021.Experiment(xie2021.SMOKE, data, "cpu")
    told = [
        some.settings("measured", base),
        more.settings("measured", base),
        more.settings("closeness", base),
        more.settings("measured", replace(base, alpha=0.01)),
    ]
    assert len({repr(one) for one in told}) == 4
    assert len(some.labels) == 50


def test_loans(tmp_path: Path) -> None:
    (tmp_path / "loan").mkdir()
    (tmp_path / "loan" / "loans.csv").write_text(LOANS)
    data = xie2021.load("loan", tmp_path)
    assert data.pattern.norm().item() == pytest.approx(xie2021.PATTERN)
    assert data.pattern.count_nonzero() == 2
    case = xie2021.Case(batch=6, poisoned=1, steps=4, clients=2, rounds=3, attacked=2, models=50)
    parts = data.split(case)
    assert [set(data.groups[part]) for part in parts] == [{"CA"}, {"NY"}]
    assert [len(part) % 6 for part in parts] == [0, 0]
    experiment = xie2021.Experiment(xie2021.Scale(case, 10, ("sigma",)), data, "cpu")
    rounds = experiment.trained(case).ledger.rounds
    assert [one.weight for one in rounds[0].participants] == [0.5, 0.5]
    assert {one.batch_sizes for one in rounds[0].participants} == {(6,) * 4}
    numbers = experiment.measured(case)
    assert numbers["backdoored"]["ways"]["pattern"]["largest radius"] > 0


@pytest.mark.parametrize("train", ["train", "train-subset"])
def test_emnist(tmp_path: Path, train: str) -> None:
    (tmp_path / "emnist").mkdir()
    draw = np.random.default_rng(0)
    for part, many in ((train, 8), ("test", 3)):
        name = tmp_path / "emnist" / f"emnist-bymerge-{part}"
        images, labels = draw.integers(256, size=(many, 28, 28)), np.arange(many)
        for end, values in (("images-idx3", images), ("labels-idx1", labels)):
            head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
            path = name.with_name(f"{name.name}-{end}-ubyte.gz")
            path.write_bytes(gzip.compress(head + values.astype(np.uint8).tobytes()))
    data = xie2021.load("emnist", tmp_path)
    assert data.x.shape == (8, 1, 28, 28)
    assert data.test_x[2, 0, 5, 7].item() == pytest.approx(images[2, 5, 7] / 255)
    assert data.test_y.tolist() == [0, 1, 2]
    assert [len(part) for part in data.split(xie2021.Case(clients=4))] == [2] * 4


@pytest.mark.parametrize(
    ("means", "error", "word"),
    [
        ((1.0, 0.5, 0.1), 0.01, "agrees (1, 0.5, 0.1)"),
        ((1.0, 0.5, 0.0, 0.0), 0.01, "agrees"),
        ((1.0, 0.5, 0.49), 0.01, "cannot tell"),
        ((1.0, 0.5, 0.51), 0.01, "cannot tell"),
        ((1.0, 0.5, 0.6), 0.01, "differs"),
        ((0.0, 0.0, 0.0), 0.0, "cannot tell"),
    ],
)
def test_a_difference_within_two_standard_errors_tells_nothing(
    means: tuple[float, ...], error: float, word: str
) -> None:
    cases = [
        {
            "clean": {"ways": {"pattern": {"mean radius": mean, "mean radius, error": error}}},
            "case": {},
        }
        for mean in means
    ]
    words = xie2021_findings.verdicts({"gamma": cases}, 100)
    assert words["larger scale, smaller radius: pattern"].startswith(word)
