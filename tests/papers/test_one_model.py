"""The recipe of one model against clients that lie in every round: every path on the digits, and a
second run that computes nothing."""

from pathlib import Path

import pytest

pytest.importorskip("sklearn")

from benchmarks.papers import one_model


def test_smoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = one_model.main(["--out", str(tmp_path)])
    assert len(found) == 4
    assert all(said == "agrees" for claim, said in found.items() if "replayed" in claim)
    table = capsys.readouterr().out
    assert table.count("\n") >= 6
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.json")}
    assert len(files) == 4 * 2 + 4 + 2 + 2
    assert one_model.main(["--out", str(tmp_path)]) == found
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.json")}
