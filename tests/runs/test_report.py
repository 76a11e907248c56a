import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from callables import LABELS, data
from models import MODELS

from rsfl import runs
from rsfl.runs.report import as_json, as_text, read_runs
from rsfl.smooth import GaussianSmoother, UniformSmoother

RADII = ["0", "0.10", "0.25", "3"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for sigma in (0.25, 0.5):
        smoother = GaussianSmoother(MODELS["staircase"], sigma, 4)
        runs.certify(smoother, data(), out=folder / f"sigma-{sigma}", n=500)
    at = GaussianSmoother(MODELS["staircase"], 0.5, 4)
    runs.certify(at, data(), out=folder / "at", n=2000, radius=0.1)
    runs.write_tsv(folder / "old.tsv", *runs.load(folder / "sigma-0.25"))
    return [str(folder / name) for name in ("sigma-0.25", "sigma-0.5", "at", "old.tsv")]


def test_json_says_what_the_functions_say(paths):
    document = json.loads(as_json(read_runs(paths), RADII))
    assert set(document) == {"runs", "envelope"}
    assert [run["name"] for run in document["runs"]] == ["sigma-0.25", "sigma-0.5", "at", "old.tsv"]
    for run, path in zip(document["runs"][:3], paths, strict=False):
        certificate, labels = runs.load(path)
        assert run == {
            "name": run["name"],
            "n": 12,
            "radii": {r: runs.certified_accuracy(certificate, labels, float(r)) for r in RADII},
            "acr": runs.average_certified_radius(certificate, labels),
            "abstained": int(certificate.abstained.sum()),
        }
    best = {r: max(run["radii"][r] for run in document["runs"]) for r in RADII}
    assert document["envelope"] == best


def test_text_says_it_floored(paths):
    text = as_text(read_runs(paths), RADII, with_envelope=True)
    sections = text.split("\n\n")
    assert len(sections) == 6
    certificate, labels = runs.load(paths[0])
    assert sections[0].startswith(
        "sigma-0.25: 12 inputs\n  l2 radius in input units, Gaussian(sigma=0.25), alpha = 0.001"
    )
    assert "p_A is at least" in sections[0]
    shown = float(re.search(r"average certified radius (\S+),", sections[0])[1])
    exact = runs.average_certified_radius(certificate, labels)
    assert exact - 1e-4 < shown <= exact
    low, high = runs.accuracy_interval(certificate, labels, [0.0])
    sure = runs.high_probability_accuracy(certificate, labels, [0.0], alpha=0.001)
    row = re.search(r"^ +0 +(\S+) +(\S+) - (\S+) +(\S+)$", sections[0], re.MULTILINE)
    share, shown_low, shown_high, shown_sure = map(float, row.groups())
    assert share == pytest.approx(runs.certified_accuracy(certificate, labels, 0.0), abs=1e-3)
    assert low[0] - 1e-3 < shown_low <= low[0]
    assert high[0] <= shown_high < high[0] + 1e-3
    assert sure[0] - 1e-3 < shown_sure <= sure[0]
    assert "asked only whether the radius is at least 0.1" in sections[2]
    assert re.search(r"0.25 +not asked$", sections[2], re.MULTILINE)
    assert "as published" in sections[3]
    assert "all at once" not in sections[3]  # the file does not say its alpha
    assert sections[4].startswith("upper envelope")


def test_shares_are_floored_and_radii_are_the_text_that_was_given(paths):
    size = 2500
    (run,) = read_runs(paths[:1])
    certificate = run.certificate[torch.zeros(size, dtype=torch.int64)]
    certificate = replace(
        certificate, index=torch.arange(size), label=torch.tensor([0] * (size - 1) + [1])
    )
    many = replace(
        run, certificate=certificate, labels=np.zeros(size, dtype=np.int64), seconds=np.ones(size)
    )
    (section, envelope, _) = as_text([many], ["0", "1e-9", "0.0999999"], with_envelope=True).split(
        "\n\n"
    )
    for rows in (section, envelope):
        assert re.search(r"^ +0 +0\.999\b", rows, re.MULTILINE)  # 2499 of 2500 is not all of them
        assert re.search(r"^ +1e-9 +0\.999\b", rows, re.MULTILINE)
        assert re.search(r"^ +0\.0999999 ", rows, re.MULTILINE)
    asked = replace(many, asked=128 / 255)
    text = as_text([asked], ["0.5019607843137255", "0.501961"])
    assert "whether the radius is at least 0.5019607843137255\n" in text
    assert re.search(r"^ +0\.501961 +not asked$", text, re.MULTILINE)


def test_files_are_read_as_they_are_called(paths, tmp_path):
    smoother = UniformSmoother(MODELS["staircase"], 1.0, 4)
    runs.certify(smoother, data(), out=tmp_path / "l1", n=500, progress=False)
    runs.write_tsv(tmp_path / "l1.tsv", *runs.load(tmp_path / "l1"), norm="l1")
    named = read_runs([str(tmp_path / "l1.tsv")], norm="l1", unit="pixels")
    assert "as published, taken for l1 radius in pixels" in as_text(named, RADII)
    assert "as published, taken for l2 radius in input units" in as_text(
        read_runs(paths[3:]), RADII
    )
    l1 = [str(tmp_path / "l1"), str(tmp_path / "l1.tsv")]
    assert "upper envelope" in as_text(read_runs(l1, norm="l1"), RADII, with_envelope=True)
    with pytest.raises(ValueError, match="curves must share one norm and unit"):
        as_text(read_runs([*l1, paths[0]], norm="l1"), RADII, with_envelope=True)
    assert json.loads(as_json(read_runs([*l1, paths[0]], norm="l1"), RADII))["envelope"] is None


def test_votes_are_read_at_another_alpha(paths):
    loose, strict = (read_runs(paths[:1], alpha=alpha)[0].certificate for alpha in (0.1, 0.001))
    assert bool((loose.radius >= strict.radius).all())
    assert float(loose.radius.sum()) > float(strict.radius.sum())
    (bounded,) = read_runs(paths[:1], runner_up="bounded")
    assert torch.equal(
        bounded.certificate.radius, runs.load(paths[0], runner_up="bounded")[0].radius
    )
    assert read_runs(paths[3:], alpha=0.01)[0].alpha == 0.01
    with pytest.raises(ValueError, match="a sequential test stopped these votes"):
        read_runs(paths[2:3], alpha=0.01)


def test_an_unfinished_run_is_called_so(tmp_path):
    smoother = GaussianSmoother(MODELS["staircase"], 0.5, 4)
    runs.certify(smoother, data(), out=tmp_path, n=5000, world_size=2)
    assert f"{tmp_path.name}: 6 inputs of 12: the run is not finished" in as_text(
        read_runs([str(tmp_path)]), ["0"]
    )
    (tmp_path / "votes-00000.jsonl").write_bytes(b"")
    with pytest.raises(ValueError, match="holds no input yet"):
        read_runs([str(tmp_path)])


def test_names_are_short_where_that_is_clear(paths, tmp_path):
    other = tmp_path / "sigma-0.25"
    runs.write_tsv(other, *runs.load(paths[0]))
    assert [run.name for run in read_runs([paths[0], str(other), paths[1]])] == [
        paths[0],
        str(other),
        "sigma-0.5",
    ]
    with pytest.raises(ValueError, match="radii must be numbers, got '0,x'"):
        as_json(read_runs(paths[:1]), ["0", "x"])
    with pytest.raises(
        FileNotFoundError, match=r"there is no file .*nothing, nor a directory of a run"
    ):
        read_runs([str(tmp_path / "nothing")])


def test_mean_seconds_are_those_recorded(paths):
    run = read_runs(paths[:1])[0]
    assert run.seconds.shape == (12,)
    assert (run.seconds > 0).all()
    assert f"{np.mean(run.seconds):.3g} s and 500 votes for an input" in as_text([run], ["0"])
    assert run.labels.tolist() == LABELS
