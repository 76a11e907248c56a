"""The recipe for clients and inputs at once computes nothing twice and has nested tables."""

import json
from pathlib import Path

import numpy as np

from benchmarks.papers import joint


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
