"""Votes are a function of the key alone, and counting survives what models do."""

import pytest
import torch
from models import LAWS
from torch import nn

from rsfl import noise
from rsfl.smooth import GaussianSmoother, Smoother, votes


class Recorder(nn.Module):
    """Keeps every row it sees, in order; votes by a rule that looks at one row only."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.num_classes, self.seen = num_classes, []

    def forward(self, x):
        self.seen.append(x.clone())
        label = (x.flatten(1).sum(dim=1).abs() * 7).long() % self.num_classes
        return nn.functional.one_hot(label, self.num_classes).float()

    def rows(self):
        return torch.cat(self.seen)


INPUTS = torch.linspace(0, 1, 12).mul(255).round().div(255).reshape(3, 2, 2)


def recorded(law, x, index, batch_size, n=250, n0=30):
    model = Recorder()
    certificate = Smoother(model, law, 3, spot_check=False).certify(
        x, n0=n0, n=n, seed=11, index=index, batch_size=batch_size
    )
    selection, estimation = model.rows()[: n0 * len(x)], model.rows()[n0 * len(x) :]
    return selection.unflatten(0, (len(x), n0)), estimation.unflatten(0, (len(x), n)), certificate


@pytest.mark.parametrize("size", [votes.BLOCK, 700])
@pytest.mark.parametrize("name", LAWS)
def test_noise_does_not_depend_on_the_batch_nor_on_the_neighbours(name, size, monkeypatch):
    monkeypatch.setattr(votes, "per_key", lambda numel, device: size)
    law = LAWS[name]
    selection, estimation, whole = recorded(law, INPUTS, [7, 8, 9], None)
    for batch_size in (1, 7, 64, 100, 10_000):
        first, second, certificate = recorded(law, INPUTS, [7, 8, 9], batch_size)
        assert torch.equal(first, selection)
        assert torch.equal(second, estimation)
        assert torch.equal(certificate.counts, whole.counts)
    first, second, alone = recorded(law, INPUTS[1:2], [8], 7)
    assert torch.equal(first, selection[1:2])
    assert torch.equal(second, estimation[1:2])
    assert torch.equal(alone.counts, whole.counts[1:2])
    halves = [recorded(law, INPUTS[i::2], torch.tensor([7, 8, 9])[i::2], None)[2] for i in (0, 1)]
    merged = type(whole).cat(halves)[[0, 2, 1]]
    assert torch.equal(merged.index, whole.index)
    assert torch.equal(merged.counts, whole.counts)
    assert torch.equal(merged.selection_counts, whole.selection_counts)
    assert torch.equal(merged.radius, whole.radius)


def test_more_samples_begin_with_the_same_ones():
    short = votes.draw_noise(LAWS["gaussian"], torch.Size([5]), 130, seed=1, index=2)
    long = votes.draw_noise(LAWS["gaussian"], torch.Size([5]), 1000, seed=1, index=2)
    assert torch.equal(long[:130], short)


def test_draw_noise_is_what_the_model_saw():
    law = LAWS["laplace"]
    _, estimation, _ = recorded(law, INPUTS, [7, 8, 9], 64)
    drawn = votes.draw_noise(law, INPUTS.shape[1:], 250, seed=11, index=8)
    assert torch.equal(estimation[1], INPUTS[1] + drawn)


def test_draws_of_different_keys_are_uncorrelated():
    law, shape = noise.Gaussian(1.0), torch.Size([400])
    one = votes.draw_noise(law, shape, 100, seed=0, index=0).flatten()
    bound = 5 / len(one) ** 0.5
    for other in (
        votes.draw_noise(law, shape, 100, seed=0, index=1),
        votes.draw_noise(law, shape, 100, seed=1, index=0),
        votes.draw_noise(law, shape, 100, seed=0, index=0, stage=votes.SELECTION),
        votes.draw_noise(law, shape, 200, seed=0, index=0)[100:],
    ):
        assert abs(float((one * other.flatten()).mean())) < bound


class Wide(noise.Gaussian):
    """Noise of another shape than the input's, which does not fit it."""

    def noise_shape(self, shape):
        return torch.Size([2, *shape])


class Doubled(noise.Gaussian):
    """A law that perturbs in a way of its own."""

    def perturb(self, x, noise):
        return x + 2 * noise


def test_a_law_that_perturbs_in_its_own_way_is_asked_to():
    estimation = recorded(Doubled(0.5), INPUTS, [7, 8, 9], 64)[1]
    drawn = votes.draw_noise(Doubled(0.5), INPUTS.shape[1:], 250, seed=11, index=8)
    assert torch.equal(estimation[1], INPUTS[1] + 2 * drawn)
    with pytest.raises(RuntimeError):  # and noise that does not fit is not made to
        recorded(Wide(0.5), INPUTS, [7, 8, 9], 64)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("given", DTYPES)
@pytest.mark.parametrize("taken", [None, *DTYPES])
def test_the_sum_of_input_and_noise_is_rounded_once(given, taken):
    """Neither the input nor the noise is, whatever the dtypes of the data and of the model."""
    law, x = LAWS["gaussian"], INPUTS.to(given)
    model = Recorder()
    if taken is not None:
        model.weight = nn.Parameter(torch.zeros(1, dtype=taken))
    Smoother(model, law, 3).votes(x, 250, seed=11, index=[7, 8, 9])
    drawn = votes.draw_noise(law, x.shape[1:], 250, seed=11, index=7)
    exact = x[0].to(torch.promote_types(given, torch.float32)) + drawn
    seen = model.rows()[:250]
    assert seen.dtype == (taken or given)
    assert torch.equal(seen, exact.to(taken or given))
    model.seen.clear()
    Smoother(model, law, 3).probabilities(x[:1], drawn[:, None])
    assert torch.equal(model.rows(), seen)


class Reuses(nn.Module):
    """Hands out the same tensor at every call, as what was captured as a graph does."""

    def __init__(self, model):
        super().__init__()
        self.model, self.out = model, torch.empty(0)

    def forward(self, x):
        logits = self.model(x)
        if len(self.out) != len(x):
            self.out = torch.empty_like(logits)
        return self.out.copy_(logits)


@pytest.mark.parametrize("batch_size", [1, 7, 100, 10_000])
def test_a_model_may_hand_out_the_same_tensor_again(batch_size):
    plain, reusing = (GaussianSmoother(model, 0.5, 3) for model in (Recorder(), Reuses(Recorder())))
    found = [one.votes(INPUTS, 350, batch_size=batch_size) for one in (plain, reusing)]
    assert torch.equal(*found)
    assert found[0].sum(dim=1).tolist() == [350] * 3


class Whole(nn.Module):
    """Logits that differ as whole numbers, and not in float32."""

    def __init__(self, *dtypes):
        super().__init__()
        self.dtypes, self.calls = dtypes, 0

    def forward(self, x):
        self.calls += 1
        logits = torch.tensor([2**24, 2**24 + 1, 0]).expand(len(x), -1)
        return logits.to(self.dtypes[self.calls % len(self.dtypes)])


def test_logits_that_wait_keep_their_digits():
    smoother = GaussianSmoother(Whole(torch.int64), 0.5, 3, spot_check=False)
    assert smoother.votes(INPUTS, 350, batch_size=100)[:, 1].tolist() == [350] * 3


@pytest.mark.fast("together")
def test_logits_of_two_dtypes_do_not_wait_together():
    mixed = GaussianSmoother(Whole(torch.int64, torch.float32), 0.5, 3, spot_check=False)
    with pytest.raises(ValueError, match=r"of one dtype, got torch\.float32 and torch\.int64"):
        mixed.votes(INPUTS, 350, batch_size=100)


@pytest.mark.parametrize("classes", [3, 20_000])
def test_votes_that_wait_are_counted_where_memory_runs_out(classes):
    """What was counted stays counted, and nothing twice."""

    class Small(nn.Module):
        def forward(self, x):
            if len(x) > 60:
                raise RuntimeError("out of memory")
            label = (x.flatten(1).sum(dim=1).abs() * 7).long() % 3
            return nn.functional.one_hot(label, classes).float()

    found = GaussianSmoother(Small(), 0.5, classes, spot_check=False).votes(INPUTS, 333)
    plain = GaussianSmoother(Recorder(), 0.5, 3, spot_check=False).votes(INPUTS, 333)
    assert torch.equal(found[:, :3], plain)
    assert found.sum(dim=1).tolist() == [333] * 3


class Modes(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.frozen = nn.BatchNorm1d(2), nn.Dropout(0.5)
        self.frozen.eval()
        self.during = set()

    def forward(self, x):
        self.during.add(
            (self.training, self.inner.training, self.frozen.training, torch.is_grad_enabled())
        )
        return self.frozen(self.inner(x))


def test_each_module_gets_its_own_mode_back_and_statistics_stay():
    model = Modes()
    before = model.inner.running_mean.clone()
    GaussianSmoother(model, 0.5, 2).certify(torch.rand(2, 2), n=100)
    assert model.during == {(False, False, False, False)}
    assert (model.training, model.inner.training, model.frozen.training) == (True, True, False)
    assert torch.equal(model.inner.running_mean, before)
    assert torch.is_grad_enabled()


class Raises(Modes):
    def forward(self, x):
        super().forward(x)
        raise KeyError("in the middle")


def test_an_exception_of_the_model_passes_through_and_modes_come_back():
    model = Raises()
    with pytest.raises(KeyError, match="in the middle"):
        GaussianSmoother(model, 0.5, 2).certify(torch.rand(2, 2), n=100)
    assert (model.training, model.inner.training, model.frozen.training) == (True, True, False)


class Overflows(nn.Module):
    """Non-finite logits for positive inputs, of every kind."""

    def forward(self, x):
        bad = torch.tensor([[float("nan"), 1.0], [float("inf"), 0.0], [0.0, float("-inf")]])[
            : len(x)
        ]
        logits = torch.tensor([[0.0, 1.0]]).repeat(len(x), 1)
        rows = (x[:, 0] > 0).nonzero()[:, 0]
        logits[rows] = bad[torch.arange(len(rows)) % len(bad)]
        return logits


def test_non_finite_logits_are_no_vote_and_are_counted():
    certificate = GaussianSmoother(Overflows(), 0.5, 2).certify(
        torch.zeros(1, 1), n=10_000, batch_size=500
    )
    invalid = int(certificate.invalid)
    assert 4500 < invalid < 5500
    assert certificate.counts.tolist() == [[0, 10_000 - invalid]]
    assert int(certificate.n) == 10_000
    # the invalid half counts against the label: its share is a half, not one
    assert bool(certificate.abstained)


class OutOfMemory(Recorder):
    """Allocations fail above a number of rows."""

    def __init__(self, rows):
        super().__init__()
        self.limit, self.failures = rows, 0

    def forward(self, x):
        if len(x) > self.limit:
            self.failures += 1
            raise RuntimeError(
                "DefaultCPUAllocator: not enough memory: you tried to allocate memory"
            )
        return super().forward(x)


def test_the_batch_shrinks_when_memory_runs_out_and_no_vote_is_lost():
    small, free = OutOfMemory(37), Recorder()
    found = [
        Smoother(model, LAWS["gaussian"], 3).votes(INPUTS, 500, seed=3) for model in (small, free)
    ]
    assert small.failures > 0
    assert torch.equal(*found)
    assert torch.equal(small.rows(), free.rows())
    with pytest.raises(
        RuntimeError, match="not enough memory"
    ):  # a batch that was asked for is not changed
        Smoother(OutOfMemory(37), LAWS["gaussian"], 3).votes(INPUTS, 500, batch_size=100)
    with pytest.raises(RuntimeError, match="not enough memory"):
        Smoother(OutOfMemory(0), LAWS["gaussian"], 3).votes(INPUTS, 500)


def test_autocast_reaches_the_model():
    seen = []

    class Watches(nn.Linear):
        def forward(self, x):
            logits = super().forward(x)
            seen.append(logits.dtype)
            return logits

    with torch.autocast("cpu", dtype=torch.bfloat16):
        GaussianSmoother(Watches(2, 2), 0.5, 2).certify(torch.rand(2, 2), n=100)
    assert set(seen) == {torch.bfloat16}


def test_memory_does_not_grow_with_the_number_of_votes():
    largest = []

    class Watches(Recorder):
        def forward(self, x):
            largest.append(len(x))
            return nn.functional.one_hot(torch.zeros(len(x), dtype=torch.long), 3).float()

    for n in (10_000, 100_000):
        Smoother(Watches(), LAWS["gaussian"], 3).votes(torch.zeros(1, 3, 32, 32), n)
        assert max(largest) * 3 * 32 * 32 * 4 <= 8 * 2**20
