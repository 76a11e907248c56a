"""The recipe for clients and inputs at once computes nothing twice and has nested tables."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from benchmarks.papers import joint
from rsfl import fed
from rsfl.smooth import JointBallot, JointSmoother


def test_smoke_is_computed_once_and_nested(tmp_path: Path) -> None:
    words = joint.main(["--out", str(tmp_path)])
    files = sorted((tmp_path / "smoke" / "cases").glob("*.json"))
    before = [path.stat().st_mtime_ns for path in files]
    assert joint.main(["--out", str(tmp_path)]) == words
    assert [path.stat().st_mtime_ns for path in files] == before
    assert len(files) == 4
    for path in files:
        numbers = json.loads(path.read_text())["numbers"]
        shares = np.array(numbers["joint"])
        assert (np.diff(shares, axis=0) <= 0).all()
        assert (np.diff(shares, axis=1) <= 0).all()
        assert (np.array(numbers["joint, all rungs at once"]) <= shares).all()
        assert shares[0, 0] > 0
    for case in joint.CASES["smoke"]:
        picture = tmp_path / "smoke" / f"{case.name}.png"
        assert picture.stat().st_size > 5000


def test_a_case_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class StoppedError(Exception):
        pass

    wanted, asked = ["--out", str(tmp_path), "--case", "pixels-10"], []
    ballot = JointSmoother.ballot

    def counted(self: JointSmoother, x: Tensor, **votes: Any) -> JointBallot:
        asked.append(votes["index"].tolist())
        if len(asked) == 2:
            raise StoppedError
        return ballot(self, x, **votes)

    monkeypatch.setattr(JointSmoother, "ballot", counted)
    with pytest.raises(StoppedError):
        joint.main(wanted)
    monkeypatch.setattr(fed.training, "fit_alone", None)  # nobody trains again
    monkeypatch.setattr(fed.training, "fit_stacked", None)
    words = joint.main(wanted)
    assert asked == [list(range(10)), list(range(10, 20)), list(range(10, 20))]
    monkeypatch.undo()
    assert joint.main(["--out", str(tmp_path / "whole"), *wanted[2:]]) == words
    both = [folder / "smoke" / "tables.json" for folder in (tmp_path, tmp_path / "whole")]
    stopped, whole = (json.loads(path.read_text())["pixels-10"] for path in both)
    assert stopped["joint"] == whole["joint"]
    assert stopped["seconds of votes"] is None
    assert whole["seconds of votes"] > 0
