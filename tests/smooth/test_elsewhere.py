"""Draws off the CPU, as far as a CPU can tell: their keys, what they are a function of, and what a
run records of it."""

import json

import pytest
import torch
from models import LAWS
from torch import nn

from rsfl import _draws, noise, runs
from rsfl.noise import Gaussian
from rsfl.orbit import Rotations
from rsfl.runs import OrbitRun
from rsfl.runs.settings import Settings
from rsfl.smooth import GaussianSmoother, OrbitPlan, ParameterSmoother, Smoother, votes
from rsfl.verify import Witness, verify

ELSEWHERE = torch.device("cuda")
FAR = torch.device("meta")  # holds no numbers: nobody can look at one


class Counter(torch.Generator):
    """A generator that says that it is another device's; it keeps the seeds that it was given."""

    def __new__(cls, device="cpu"):
        self = super().__new__(cls, "cpu")
        self.seeds = []
        return self

    device = ELSEWHERE

    def manual_seed(self, seed):
        self.seeds.append(seed)
        return super().manual_seed(seed)


@pytest.fixture
def elsewhere(monkeypatch):
    """Draws are made as off the CPU, by a CPU."""
    scheme = votes.per_key
    drawn_by(monkeypatch, lambda numel, device: scheme(numel, ELSEWHERE))
    monkeypatch.setattr(torch, "Generator", Counter)


def drawn_by(monkeypatch, scheme):
    for owner in ("rsfl.smooth.votes", "rsfl.smooth.input"):
        monkeypatch.setattr(f"{owner}.per_key", scheme)


def drawn_as_before(monkeypatch):
    """As on every device before a key was for a million numbers."""
    drawn_by(monkeypatch, lambda numel, device: 100)


def test_a_key_is_64_bits_that_depend_on_each_part_of_it():
    generator, keys = Counter(), [(5, 6, 7, 8)]
    for place in range(4):
        for bit in (0, 1, 31, 32, 33, 52):
            keys.append(tuple(part ^ (1 << bit) * (i == place) for i, part in enumerate(keys[0])))
    keys += [
        (0, index, stage, block) for index in range(300) for stage in (0, 1) for block in (0, 1)
    ]
    for key in keys:
        _draws.rekey(generator, *key)
    assert len(set(generator.seeds)) == len(keys)
    for bit in range(64):  # each is as often 0 as 1, nearly
        ones = sum(seed >> bit & 1 for seed in generator.seeds)
        assert abs(ones - len(keys) / 2) < 5 * len(keys) ** 0.5 / 2
    again = Counter()
    for key in keys:
        _draws.rekey(again, *key)
    assert again.seeds == generator.seeds


@pytest.mark.parametrize("name", LAWS)
def test_noise_is_a_function_of_the_number_of_its_sample(name, elsewhere):
    """However the samples are cut into calls and batches, and whoever stands beside an input."""
    law, shape = LAWS[name], torch.Size([1, 4, 4])
    size = votes.per_key(law.noise_shape(shape).numel(), ELSEWHERE)
    assert size > votes.BLOCK
    n = size + 150  # across the end of a block
    drawn = votes.draw_noise(law, shape, n, seed=3, index=5)
    x = torch.linspace(0, 1, 16).mul(255).round().div(255).reshape(1, 1, 4, 4)

    def seen(x, index, start, stop, batch_size):
        model = Keeping()
        votes.count_votes(
            model, law, x, 2, start=start, stop=stop, seed=3, index=index, batch_size=batch_size
        )
        return torch.cat(model.seen).view(len(x), stop - start, 1, 4, 4)

    expected = torch.cat([law.perturb(x, part) for part in torch.split(drawn, 500)])
    index = torch.tensor([5])
    assert torch.equal(seen(x, index, 0, n, None)[0], expected)
    for start, stop in ((0, 1), (99, 101), (size - 1, size + 1), (size - 20, n)):
        for batch_size in (7, 1000):
            rows = seen(x, index, start, stop, batch_size)[0]
            assert torch.equal(rows, expected[start:stop])
    beside = seen(x.expand(3, -1, -1, -1), torch.tensor([4, 5, 6]), size - 20, n, 64)
    assert torch.equal(beside[1], expected[size - 20 :])
    assert not torch.equal(beside[0], beside[1])


class Keeping(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.clone())
        return torch.stack([x.flatten(1).sum(dim=1), x[:, 0, 0, 0]], 1)


def test_no_two_blocks_share_a_key_and_each_is_drawn_once(elsewhere, monkeypatch):
    made = []
    monkeypatch.setattr(torch, "Generator", lambda device: made.append(Counter()) or made[-1])
    x = torch.rand(3, 1, 28, 28)
    smoother = GaussianSmoother(Keeping(), 0.25, 2, spot_check=False)
    smoother.certify(x, n0=100, n=3000, batch_size=333)
    seeds = [seed for generator in made for seed in generator.seeds]
    assert len(seeds) == len(set(seeds)) == 3 * (1 + 3)  # 1300 samples of 784 numbers a key


class Unseen(noise.Law):
    """A law whose draws hold no numbers."""

    norm = "l2"

    def __init__(self, law):
        self.law, self.asked = law, []

    def radius(self, p_a, p_b=None, *, dim=None):
        return self.law.radius(p_a, p_b, dim=dim)

    def perturb(self, x, noise):
        return self.law.perturb(x, noise)

    def sample(self, shape, *, generator=None, device=None):
        self.asked.append(shape)
        return self.law.sample(shape, device=device)


@pytest.mark.parametrize("name", ["gaussian", "uniform", "laplace", "rounded"])
def test_the_host_never_waits(name, monkeypatch):
    """Where a tensor holds no numbers, to look at one is an error."""
    monkeypatch.setattr(torch, "Generator", Counter)
    x, model = torch.empty(2, 1, 28, 28, device=FAR), nn.Sequential(nn.Flatten(), nn.Linear(784, 3))
    law = Unseen(LAWS[name])
    found = votes.count_votes(
        model.to(FAR), law, x, 3, start=0, stop=2000, seed=0, index=torch.arange(2)
    )
    assert found.counts.device == FAR
    assert law.asked == [(1300, 1, 28, 28)] * 4
    with pytest.raises(RuntimeError):
        int(found.counts[0, 0])


# -- what a run records of it ----------------------------------------------------------------------

X, Y = torch.rand(6, 1, 4, 4), torch.tensor([1, 0, 1, 1, 0, 1])


def small():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


SMOOTHER = GaussianSmoother(small(), 0.3, 3)


def certified(out, **changes):
    return runs.certify(SMOOTHER, (X, Y), out=out, **{"n0": 20, "n": 300} | changes)[0]


def test_a_run_on_a_cpu_says_nothing_of_it(tmp_path):
    certified(tmp_path)
    assert "block" not in json.loads((tmp_path / "run.json").read_text())
    assert Settings.read(tmp_path).block == votes.BLOCK == 100


def test_a_log_of_one_scheme_is_not_continued_by_another(tmp_path, elsewhere, monkeypatch):
    whole = certified(tmp_path / "whole")
    certified(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "run.json").read_text())["block"] == 10_000
    with monkeypatch.context() as patch:
        drawn_as_before(patch)
        before = certified(tmp_path / "old")
        assert not torch.equal(before.counts, whole.counts)
        with pytest.raises(ValueError, match="block is 10000 there, got 100"):
            certified(tmp_path / "new")
    with pytest.raises(ValueError, match="block is 100 there, got 10000"):
        certified(tmp_path / "old")
    # read they may be, wherever they were cast
    assert torch.equal(runs.load(tmp_path / "old")[0].counts, before.counts)
    assert torch.equal(runs.load(tmp_path / "new")[0].counts, whole.counts)


def test_shards_batches_and_a_torn_log_change_no_vote(tmp_path, elsewhere):
    whole = certified(tmp_path / "whole", radius=0.1, n=1000)
    for rank in (1, 0):
        certified(tmp_path / "shards", radius=0.1, n=1000, rank=rank, world_size=2, batch_size=7)
    parts, _ = runs.load(tmp_path / "shards")
    assert torch.equal(parts.counts, whole.counts)
    log = tmp_path / "whole" / "votes-00000.jsonl"
    log.write_bytes(log.read_bytes()[:-200])
    assert torch.equal(certified(tmp_path / "whole", radius=0.1, n=1000).counts, whole.counts)


def test_orbits_record_it_as_well(tmp_path, elsewhere, monkeypatch):
    run = OrbitRun(Rotations(0.1), plan=OrbitPlan(8, n_max=2000))
    runs.certify_orbits(SMOOTHER, (X, Y), run, out=tmp_path / "new", limit=1)
    assert json.loads((tmp_path / "new" / "orbits.json").read_text())["block"] == 10_000
    drawn_as_before(monkeypatch)
    with pytest.raises(ValueError, match="block is 10000 there, got None"):
        runs.certify_orbits(SMOOTHER, (X, Y), run, out=tmp_path / "new", limit=2)


def test_noisy_models_have_a_key_each_on_every_device(elsewhere):
    smoother = ParameterSmoother(small(), 0.1, 3)
    assert smoother.block(X) == votes.BLOCK
    assert Smoother(small(), Gaussian(0.1), 3).block(X) == 10_000


def test_votes_of_another_scheme_are_compared_as_draws(tmp_path, elsewhere, monkeypatch):
    certified(tmp_path)
    pairs = list(zip(X, Y.tolist(), strict=True))
    told = verify(tmp_path, witness=Witness(SMOOTHER, pairs))
    assert "6 the same to a vote" in str(told)
    drawn_as_before(monkeypatch)
    told = verify(tmp_path, witness=Witness(SMOOTHER, pairs))
    assert told.holds is not False
    assert "the rest on another kind of device" in str(told)
