"""Different settings are described differently, equal ones alike in every process."""

import os
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from rsfl._fingerprint import (
    described,
    differences,
    identity,
    input_hash,
    model_fingerprint,
    weights_hash,
)
from rsfl.fed.layout import Layout


@dataclass(frozen=True)
class Setting:
    value: object


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.float16)),
        (torch.zeros(2), torch.tensor([0.0, 1e-45])),
        (torch.tensor(0.0), torch.zeros(1)),
        ((1, 2), (2, 1)),
        ({"a": 1}, {"a": 2}),
        ({1: "a"}, {"1": "a"}),
        ({1, 2}, {1, 3}),
        (Setting(1), Setting(2)),
        (Setting((1, (2, 3))), Setting((1, (3, 2)))),
        (nn.ReLU(), nn.GELU()),
        (torch.sin, torch.cos),
        (1, 1.0),
        (partial(torch.sin, 1), partial(torch.cos, 1)),
        (partial(torch.add, alpha=1), partial(torch.add, alpha=2)),
    ],
)
def test_what_differs_is_told_apart(one, other):
    assert described(one) != described(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.arange(6).view(2, 3).T, torch.tensor([[0, 3], [1, 4], [2, 5]])),
        (torch.zeros(3)[::2], torch.zeros(2, requires_grad=True)),
        ({"b", "a"}, frozenset({"a", "b"})),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        (Setting({1: [2]}), Setting({1: (2,)})),
        (nn.Linear(2, 2), nn.Linear(2, 2)),
        (lambda: 1, lambda: 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_alike_is_described_alike(one, other):
    assert described(one) == described(other)
    assert " at 0x" not in described(one)


class Held:
    """An object that a model computes with."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x


class Holder(nn.Module):
    def __init__(self, **held):
        super().__init__()
        vars(self).update(held)

    def forward(self, x):
        return x


def other_forward(self, x):
    return x + 1


def seeded(make):
    torch.manual_seed(0)
    return make()


def with_hook(hook):
    model = nn.Sequential(nn.ReLU())
    model[0].register_forward_hook(hook)
    return model


def scaling(factor):
    return lambda *_: factor


CHANGES = {
    "forward hook": (
        lambda: with_hook(lambda module, x, y: y),
        lambda: with_hook(lambda module, x, y: -y),
        ["code"],
    ),
    "what a hook holds": (
        lambda: with_hook(scaling(1.0)),
        lambda: with_hook(scaling(2.0)),
        ["code"],
    ),
    "module in a list": (
        lambda: Holder(layers=[nn.Linear(2, 2)]),
        lambda: Holder(layers=[nn.Linear(2, 2).double()]),
        ["attributes"],
    ),
    "attribute of an object": (
        lambda: Holder(held=Held(1.0)),
        lambda: Holder(held=Held(2.0)),
        ["attributes"],
    ),
    "weights": (lambda: nn.Linear(2, 2), lambda: nn.Linear(2, 2).bfloat16(), ["weights"]),
    "structure": (
        lambda: nn.LeakyReLU(0.1),
        lambda: nn.LeakyReLU(0.2),
        ["structure", "attributes"],
    ),
    "code of the object": (
        lambda: Holder(forward=lambda x: x),
        lambda: Holder(forward=lambda x: -x),
        ["attributes"],
    ),
    "code of the class": (
        Holder,
        lambda: type("Holder", (Holder,), {"forward": other_forward})(),
        ["attributes", "code"],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_differs_of_a_model_is_named(name):
    one, other, parts = CHANGES[name]
    before = model_fingerprint(seeded(one))
    assert before == model_fingerprint(seeded(one))
    found = before.differs(model_fingerprint(seeded(other)))
    assert set(found) <= set(parts)
    assert found
    assert before.whole != model_fingerprint(seeded(other)).whole


def test_a_patched_class_and_global_hooks_are_code(monkeypatch):
    model = nn.Sequential(nn.ReLU())
    before = model_fingerprint(model)
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    assert before.differs(model_fingerprint(model)) == ["code"]
    handle.remove()
    assert before == model_fingerprint(model)
    monkeypatch.setattr(nn.ReLU, "forward", other_forward)
    assert before.differs(model_fingerprint(model)) == ["code"]


def test_answers_are_a_part_of_their_own():
    model = nn.Linear(2, 2)
    asked = model_fingerprint(model, [torch.zeros(2)])
    assert asked.differs(model_fingerprint(model, [torch.ones(2)])) == ["answers"]


def test_a_model_that_refers_to_itself_ends():
    model = Holder(held=Held(1.0))
    model.held.owner = model
    vars(model)["parent"] = [model]
    assert model_fingerprint(model) == model_fingerprint(model)


def test_fingerprints_are_the_same_in_another_process():
    code = (
        "from test_fingerprint import *\n"
        "makes = [make for pair in CHANGES.values() for make in pair[:2]]\n"
        "print([model_fingerprint(seeded(make)).whole for make in makes])"
    )
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    found = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in "12"
    ]
    assert found[0] == found[1]


def test_weights_hash_is_of_what_is_exchanged():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    layout = Layout.of(model)
    before = weights_hash(model)
    assert weights_hash(layout.split(layout.read(model))) == before
    model[1].num_batches_tracked += 1  # stays where it is
    assert weights_hash(model) == before
    model[1].running_mean += 1
    assert weights_hash(model) != before
    assert weights_hash(nn.Linear(2, 2)) != weights_hash(nn.Linear(2, 2).double())


def test_inputs_are_told_apart():
    x = torch.zeros(2, 2)
    others = [x, x + 1, x.double(), x.flatten(), -x]
    assert len({input_hash(other) for other in others}) == len(others)
    assert input_hash(x) == input_hash(x.clone().T)
    assert all(0 < input_hash(other) < 2**63 for other in others)


def test_what_differs_between_two_runs_is_named_and_quoted_where_it_is_short():
    run = identity({"seed": 0, "data": torch.zeros(3), "rate": [0.1]})
    assert differences(run, identity({"rate": [0.1], "data": torch.zeros(3), "seed": 0})) == ""
    other = identity({"seed": 1, "data": torch.ones(3), "rate": [0.1]})
    assert differences(run, other) == "seed is 1 there, 0 here; data differs"
    assert differences(run, {}) == "seed differs; data differs; rate differs"
    assert differences({}, {"seed": "0"}) == "seed differs"
