"""The recipes of dual smoothing and of conformal sets: every path on the digits, once."""

import json
from pathlib import Path

import pytest

pytest.importorskip("sklearn")

from benchmarks.papers import dual, sets


@pytest.mark.parametrize("recipe", [dual, sets])
def test_smoke_is_computed_once(recipe, tmp_path: Path) -> None:
    found = recipe.main(["--out", str(tmp_path)])
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("smoke/cases/*.json")}
    assert recipe.main(["--out", str(tmp_path)]) == found
    assert files == {path: path.stat().st_mtime_ns for path in tmp_path.glob("smoke/cases/*.json")}
    (only,) = files
    numbers = json.loads(only.read_text())["numbers"]
    if recipe is dual:
        (case,) = (one for name, one in numbers.items() if name.startswith("("))
        assert all(a <= b for a, b in zip(case["dual"], case["best"], strict=True))
        assert case["dual"][0] > 0.5
        assert sum(case["shares"].values()) == pytest.approx(1.0)
    else:
        (coverage, size), (moved, _) = (
            numbers["outcomes"][f"one pass, {key}"] for key in ("clean", "attacked")
        )
        assert numbers["distance"] <= 0.125 * (1 + 1e-6)
        assert coverage >= moved >= 0.8
        assert 1 <= size < 10
    assert set(found.values()) <= {"agrees", "differs"}
