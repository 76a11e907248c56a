"""The recipe for TSS: its smoke scale, and its way from claims to words."""

import json
import math
from pathlib import Path

import torch

from benchmarks.papers import li2021 as recipe
from rsfl import _checkpoint
from rsfl.smooth import largest_difference


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
    assert json.loads((out / "verdicts.json").read_text())["verdicts"] == words


def test_what_is_certified_is_the_network_without_its_normalisations(tmp_path: Path) -> None:
    scale = recipe.Scale(training=1 / 24)
    x, y = torch.rand(64, 1, 28, 28), torch.arange(64) % 10
    model = recipe.trained(recipe.CASES["rotation-50"], scale, x, y, tmp_path)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in model.modules())
    (kept,) = tmp_path.glob("rotation-50.ckpt")  # of the network as it was trained
    network = recipe.network()
    network.load_state_dict(_checkpoint.read(kept)["model"])
    assert largest_difference(network, model, x) < 1e-4


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
