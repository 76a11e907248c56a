"""The recipe for TSS: its smoke scale, and its way from claims to words."""

import json
import math
from pathlib import Path

import torch

from benchmarks.papers import li2021 as recipe


def test_smoke_does_everything_and_goes_on_where_it_was(tmp_path: Path) -> None:
    asked = ["--out", str(tmp_path)]
    words = recipe.main(asked)
    out = tmp_path / "smoke"
    log = (out / "rotation-50" / "orbits.jsonl").read_bytes()
    assert recipe.main(asked) == words
    assert (out / "rotation-50" / "orbits.jsonl").read_bytes() == log
    numbers = json.loads((out / "rotation-50.json").read_text())
    assert numbers["images"] == 2
    assert numbers["attack"]["changed"] == 0
    assert list(numbers["curve"]) == ["5", "10", "20", "30", "40", "50"]
    assert json.loads((out / "verdicts.json").read_text())["verdicts"] == words


def test_half_of_the_digits_changes_little() -> None:
    torch.manual_seed(0)
    model = recipe.network().eval()
    half, x = recipe.Half(model), torch.rand(5, 1, 28, 28)
    assert half(x).dtype == torch.float32
    torch.testing.assert_close(half(x), model(x), rtol=0.05, atol=0.01)
    half(x).sum().backward()
    assert all(weight.grad.dtype == torch.float32 for weight in model.parameters())


def test_families_are_trained_a_little_wider() -> None:
    assert recipe.CASES["rotation-50"].orbit().box[0][1] == math.radians(50)
    assert math.radians(52) < recipe.CASES["rotation-50"].orbit(1.06).box[0][1] < math.radians(54)
    assert recipe.CASES["rotation-180"].orbit(1.06).box[0][1] == math.pi


def test_verdicts() -> None:
    numbers = {"certified": 0.95, "error": 0.005, "images": 500, "votes": 21_000.0}
    said = recipe.verdicts({"rotation-50": numbers | {"attack": {"changed": 1}}})
    assert [words.split(":")[0] for words in said.values()] == ["differs", "differs", "differs"]
    numbers |= {"certified": 0.99, "votes": 12_000.0}
    said = recipe.verdicts({"rotation-180": numbers | {"attack": {"changed": 0}}})
    assert [words.split(":")[0] for words in said.values()] == ["agrees", "agrees"]
