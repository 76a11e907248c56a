"""Different settings are described differently, equal ones alike in every process."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import nn

from rsfl._fingerprint import described, differences, identity


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


def test_what_differs_between_two_runs_is_named_and_quoted_where_it_is_short():
    run = identity({"seed": 0, "data": torch.zeros(3), "rate": [0.1]})
    assert differences(run, identity({"rate": [0.1], "data": torch.zeros(3), "seed": 0})) == ""
    other = identity({"seed": 1, "data": torch.ones(3), "rate": [0.1]})
    assert differences(run, other) == "seed is 1 there, 0 here; data differs"
    assert differences(run, {}) == "seed differs; data differs; rate differs"
    assert differences({}, {"seed": "0"}) == "seed differs"
