"""What the hot loop costs, in numbers that are the same on every machine: calls, operations, bytes,
waits."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rsfl import noise
from rsfl.smooth import GaussianSmoother, Smoother, votes


class Meter(TorchDispatchMode):
    """Counts operations that compute something, and the bytes of the tensors they newly
    allocate."""

    def __init__(self):
        super().__init__()
        self.operations, self.allocated = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if not function.is_view:
            known = {
                leaf.untyped_storage().data_ptr()
                for leaf in tree_leaves((args, kwargs))
                if torch.is_tensor(leaf)
            }
            fresh = [leaf for leaf in tree_leaves(out) if torch.is_tensor(leaf)]
            self.operations += 1
            self.allocated += sum(
                leaf.untyped_storage().nbytes()
                for leaf in fresh
                if leaf.untyped_storage().data_ptr() not in known
            )
        return out


class Calls(nn.Module):
    """A linear classifier that counts its calls and the rows of each; its logits cost one
    operation."""

    def __init__(self, features, num_classes):
        super().__init__()
        self.layer, self.rows = nn.Linear(features, num_classes, bias=False), []

    def forward(self, x):
        self.rows.append(len(x))
        return self.layer(x.flatten(1))


SHAPE, CLASSES = (1, 28, 28), 10


def counted(n, batch_size=None, inputs=2, law=None):
    model = Calls(784, CLASSES)
    x = torch.rand(inputs, *SHAPE)
    meter = Meter()
    with meter:
        votes.count_votes(
            model,
            law or noise.Gaussian(0.25),
            x,
            CLASSES,
            start=0,
            stop=n,
            seed=0,
            index=torch.arange(inputs),
            batch_size=batch_size,
        )
    return model, meter


@pytest.mark.parametrize(
    ("n", "batch_size", "calls"), [(1000, 400, 5), (1000, 100, 20), (50, 100, 1), (130, 7, 38)]
)
def test_batches_are_full_and_hold_several_inputs(n, batch_size, calls):
    model, _ = counted(n, batch_size)
    assert len(model.rows) == calls
    assert sum(model.rows) == 2 * n
    assert set(model.rows[:-1]) <= {batch_size}


@pytest.mark.parametrize(
    ("shape", "rows"), [((1, 8, 8), 1000), ((1, 28, 28), 200), ((3, 32, 32), 100)]
)
def test_batches_fit_into_the_caches_of_a_processor(shape, rows):
    model = Calls(torch.Size(shape).numel(), CLASSES)
    GaussianSmoother(model, 0.25, CLASSES).votes(torch.rand(1, *shape), 2000)
    assert model.rows == [rows] * (2000 // rows)


def test_a_certificate_is_two_runs_of_forward_calls_over_all_inputs():
    model = Calls(784, CLASSES)
    smoother = GaussianSmoother(model, 0.25, CLASSES)
    smoother.certify(torch.rand(4, *SHAPE), n0=100, n=1000, batch_size=400)
    asked = [rows for rows in model.rows if rows != 400]
    assert asked == [1, 1] + [8] * 7  # once: before the first votes of a smoother
    assert model.rows == asked + [400] * 11  # all of the selection in one
    smoother.certify(torch.rand(4, *SHAPE), n0=100, n=1000, batch_size=400)
    assert model.rows == asked + [400] * 22


@pytest.mark.fast("added")
@pytest.mark.fast("together")
def test_a_block_and_a_batch_take_a_fixed_number_of_operations():
    few, many = counted(400, 400)[1], counted(4000, 400)[1]
    batches, blocks = 2 * 9, 2 * 36  # more of each
    a_batch = (many.operations - few.operations - 5 * blocks) / batches
    # a block: an empty tensor, its draws, those of its tails, the scale, the sum in the batch; a
    # batch: the product, a copy of its logits, and a third of thirteen for a tally of 1200 rows
    assert a_batch <= 2 + 13 / 3 + 0.5


@pytest.mark.fast("added")
def test_bytes_allocated_a_vote():
    few, many = counted(400, 400)[1], counted(4000, 400)[1]
    a_vote = (many.allocated - few.allocated) / 7200
    # its noise, float32, and under 24 bytes a class of bookkeeping, eight of them copies of logits
    # that wait for others; the batch itself is reused
    assert a_vote <= 4 * 784 + 24 * CLASSES


def test_no_draw_is_made_twice_when_batches_cut_blocks():
    drawn = []

    class Recording(noise.Gaussian):
        def sample(self, shape, **how):
            drawn.append(shape[0])
            return super().sample(shape, **how)

    counted(1000, 7, law=Recording(0.25))
    assert drawn == [votes.BLOCK] * 20


@pytest.mark.fast("added")
def test_a_device_is_told_to_draw_a_million_numbers_at_a_time(monkeypatch):
    elsewhere = torch.device("cuda")
    assert votes.per_key(784, elsewhere) == 1300
    assert votes.per_key(3 * 32 * 32, elsewhere) == 300
    assert votes.per_key(3 * 224 * 224, elsewhere) == votes.BLOCK
    assert votes.per_key(1, elsewhere) == 100 * votes.BLOCK  # the angle of a rotation
    of_a_cpu = counted(2600, 1000)[1].operations
    monkeypatch.setattr(votes, "per_key", lambda numel, device: 1300)
    saved = 5 * (2 * 26 - 2 * 2)  # two of 26 blocks are cut by the ends of batches, at most
    assert counted(2600, 1000)[1].operations <= of_a_cpu - saved + 2 * 6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(
    "law",
    [noise.Gaussian(0.25), noise.Uniform(0.5), noise.Laplace(0.2), noise.RoundedGaussian(0.25)],
)
def test_the_host_never_waits_for_the_device(law):
    x = torch.rand(2, *SHAPE, device="cuda").mul(255).round().div(255)
    smoother = Smoother(Calls(784, CLASSES).cuda(), law, CLASSES)
    smoother.votes(x, 1000, batch_size=300)  # tables, library handles
    index = torch.arange(2)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = votes.count_votes(
            smoother.model, law, x, CLASSES, start=0, stop=1000, seed=0, index=index, batch_size=300
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.counts.sum(dim=1).tolist() == [1000, 1000]
