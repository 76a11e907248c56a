"""The recipe of the settings guide: every path on the digits, nothing computed twice, and clients
that are really left out."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")

from benchmarks.papers import settings
from benchmarks.papers.settings import Case


def test_smoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = settings.main(["--out", str(tmp_path)])
    nowhere = [words for claim, words in said.items() if "differ nowhere" in claim]
    assert nowhere == ["agrees"] * 4
    shown = capsys.readouterr().out
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*/*.json")}
    before = [path for path in files if path.name != "verdicts.json"]
    cases = settings.cases(settings.SCALES["smoke"])
    assert len(before) == 4 + len(cases) + 2
    assert sum(line.startswith("| ") for line in shown.splitlines()) == 1 + len(cases)
    assert (tmp_path / "smoke" / "rounds.png").stat().st_size > 5000
    assert settings.main(["--out", str(tmp_path)]) == said
    assert [path.stat().st_mtime_ns for path in before] == [files[path] for path in before]


def test_the_paper_scale_tries_every_setting() -> None:
    cases = settings.cases(settings.SCALES["paper"])
    assert len(cases) == len(set(cases))
    for clients in (20, 100, 1000):
        assert set(settings.RECOMMENDED.values()) <= {
            replace(case, clients=100) for case in cases if case.clients == clients
        }
    changed = {name for case in cases for name in settings.SETTINGS if name in str(case)}
    assert changed == set(settings.SETTINGS)


def test_clients_are_left_out_worst_first() -> None:
    scale = settings.SCALES["smoke"]
    experiment = settings.Experiment(scale, Path(), Path("unused"))
    case = Case(clients=10, features="pixels", rounds=2)
    result = experiment.server(case).run(2)
    sets = list(settings.chosen(result, 3, 4))
    assert [len(one) for one in sets] == [3] * 4
    gaps = {one.client: one.gap for one in result.ledger.rounds[0].participants}
    assert max(gaps, key=gaps.__getitem__) in sets[0]
    # A client that is left out is not there: no round has heard of it.
    server = experiment.server(case)
    gone = sets[0]
    others = [one for one in server.clients if one.id not in gone]
    ledger = replace(server, clients=others).run(2).ledger
    assert not gone & {one.client for record in ledger.rounds for one in record.participants}


def test_features_are_of_unit_norm_and_spread_over_everybody() -> None:
    experiment = settings.Experiment(settings.SCALES["smoke"], Path(), Path("unused"))
    for kind in ("random", "pixels"):
        _, inputs, test = experiment.seen(kind)
        norms = torch.cat([inputs, test]).norm(dim=1)
        assert torch.allclose(norms, torch.ones_like(norms))
    labels = experiment.y
    for spread in ("equal", "dirichlet", "major"):
        parts = settings.shares(Case(clients=7, spread=spread), labels)
        assert len(parts) == 7
        assert min(map(len, parts)) >= 10
