"""Freed memory is kept within a block, given back after the outermost one, and never changes a result."""

import sys
from contextlib import nullcontext
from threading import Thread

import pytest
import torch
from torch import nn

from rsfl import _heap, fed
from rsfl.noise import Gaussian
from rsfl.smooth import GaussianSmoother
from rsfl.train import Batches, CrossEntropy, fit


class Heap:
    """A C library that writes down what it is asked for."""

    def __init__(self):
        self.asked = []

    def mallopt(self, what, value):
        self.asked.append((what, value))

    def malloc_trim(self, pad):
        self.asked.append("trim")


@pytest.fixture
def heap(monkeypatch):
    heap = Heap()
    monkeypatch.setattr(_heap, "_glibc", lambda: heap)
    return heap


@pytest.mark.fast("heap")
def test_only_the_outermost_block_asks(heap):
    with _heap.kept():
        first = list(heap.asked)
        assert len(first) == 2
        with _heap.kept():
            pass
        with pytest.raises(ValueError, match="inner"), _heap.kept():
            raise ValueError("inner")
        assert heap.asked == first
    assert heap.asked[-1] == "trim"
    assert {what for what, _ in heap.asked[2:4]} == {what for what, _ in first}


@pytest.mark.fast("heap")
def test_a_block_of_another_thread_keeps_the_heap(heap):
    with _heap.kept():
        other = _heap.kept()
        thread = Thread(target=other.__enter__)
        thread.start()
        thread.join()
    assert "trim" not in heap.asked
    other.__exit__(None, None, None)
    assert heap.asked[-1] == "trim"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is a Linux library")
def test_glibc_is_found_where_it_is():
    pytest.importorskip("ctypes")
    libc = _heap._glibc()
    assert libc is None or libc.mallopt(_heap._TRIM_THRESHOLD, _heap._DEFAULT) == 1


def trained():
    x, y = torch.rand(60, 40, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(40, 16), nn.ReLU(), nn.Linear(16, 3))
    fit(model, Batches(x, y, 20), CrossEntropy(Gaussian(0.1)), torch.optim.SGD(model.parameters(), 0.1), epochs=2)
    run = fed.Server(model, fed.clients(x, y, fed.partition.equal(60, 4), fed.SGD(lr=0.1))).run(2, progress=False)
    own = fed.personalise(run.model, fed.clients(x, y, fed.partition.equal(60, 2), fed.SGD(lr=0.1)))
    votes = GaussianSmoother(own[1], 0.25, 3).votes(x, 200)
    return [parameter.detach() for parameter in own[1].parameters()], votes


def test_results_are_the_same_without_it(monkeypatch):
    parameters, votes = trained()
    monkeypatch.setattr(_heap, "kept", nullcontext)
    plain, plain_votes = trained()
    assert all(a.equal(b) for a, b in zip(parameters, plain, strict=True))
    assert votes.equal(plain_votes)
