"""The recipes of the papers run, on a small scale, and keep what they have computed."""

import gzip
import struct
from pathlib import Path

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from benchmarks.papers import recipe, xie2021


def test_xie2021_smoke(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path)]
    words = xie2021.main(arguments)
    assert words["larger scale, smaller radius: published"].startswith("agrees")
    assert words["more attackers, smaller radius: pattern"].startswith("agrees")
    assert {path.stem for path in tmp_path.rglob("*.png")} == {
        *xie2021.figures(xie2021.SCALES["smoke"]),
        "closeness",
        "formula",
    }
    numbers = recipe.once(tmp_path / "smoke" / "closeness-2.json", dict)
    assert all(near <= bound for near, bound in zip(numbers["distance"], numbers["sound"], strict=True))
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert xie2021.main(arguments) == words
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == times


@pytest.mark.parametrize("packed", [False, True])
def test_idx_reads_what_the_header_says(tmp_path: Path, packed: bool) -> None:
    data = struct.pack(">BBBBII", 0, 0, 8, 2, 2, 3) + bytes(range(6))
    (tmp_path / ("a.gz" if packed else "a")).write_bytes(gzip.compress(data) if packed else data)
    assert recipe.idx(tmp_path / "a").equal(torch.arange(6, dtype=torch.uint8).view(2, 3))


@pytest.mark.parametrize("data", [b"", b"\0\0\x0d\x01\0\0\0\0", b"\0\0\x08\x01\0\0\0\x02a"])
def test_idx_refuses_other_files(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ValueError, match="a must"):
        recipe.idx(tmp_path / "a")


def test_verdict() -> None:
    assert recipe.verdict([1.0, 2.0], rising=True) == "agrees"
    assert recipe.verdict([1.0, 1.0], rising=True) == recipe.verdict([1.0], rising=True) == "differs"
