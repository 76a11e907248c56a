"""Losses over noisy copies: against formulas written out, differences, and hand-made logits."""

import math
from statistics import NormalDist

import pytest
import torch
from torch import nn
from torch.nn import functional

from rsfl import fed, train
from rsfl.deform import Rotation
from rsfl.noise import Gaussian, Laplace, RoundedGaussian, Uniform
from rsfl.orbit import Rotations
from rsfl.smooth import Smoother
from rsfl.train import (
    MACER,
    Adversarial,
    Batches,
    Consistency,
    CrossEntropy,
    OrbitNoise,
    SmoothMix,
    Stability,
)

LAW = Gaussian(0.3)
X = torch.rand(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])
LOSSES = {
    "stability": Stability(law=LAW, weight=2.0, samples=3),
    "consistency": Consistency(law=LAW, weight=5.0, entropy=0.5, samples=3),
    "macer": MACER(law=LAW, weight=3.0, samples=4, beta=2.0),
    # In l1 a step moves one coordinate, whatever the gradient's size: the point stays where it is
    # while the weights move a little.
    "smoothmix": SmoothMix(law=Laplace(0.2), num_classes=3, steps=3, step_size=0.3, samples=2),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def copies(model, law, samples, seed=0):
    """The softmax of each noisy copy of each input, one at a time."""
    noise = law.sample((samples, *X.shape), generator=seeded(seed))
    return [functional.softmax(model(X + one), dim=1) for one in noise.double()]


def cross_entropy(p):
    return -p[torch.arange(len(Y)), Y].log().mean()


# -- formulas --------------------------------------------------------------------------------------


def test_stability_written_out():
    model = network()
    plain = functional.softmax(model(X), dim=1)
    drift = sum(-(plain * p.log()).sum(1).mean() for p in copies(model, LAW, 3)) / 3
    expected = cross_entropy(plain) + 2.0 * drift
    assert LOSSES["stability"](model, X, Y, seeded()).item() == pytest.approx(expected.item())


def test_consistency_written_out():
    model = network()
    each = copies(model, LAW, 3)
    mean = sum(each) / 3
    kl = sum((mean * (mean / p).log()).sum(1).mean() for p in each) / 3
    entropy = -(mean * mean.log()).sum(1).mean()
    expected = sum(map(cross_entropy, each)) / 3 + 5.0 * kl + 0.5 * entropy
    assert LOSSES["consistency"](model, X, Y, seeded()).item() == pytest.approx(expected.item())


def test_smoothmix_written_out():
    loss, model = LOSSES["smoothmix"], network()
    draws = seeded()
    attack = train.noisy.SmoothAdvPGD(epsilon=0.9, steps=3, step_size=0.3, samples=2)
    found = attack(Smoother(model, loss.law, 3), X, Y, generator=draws)
    u = torch.rand(6, generator=draws, dtype=torch.float64)[:, None] / 2
    noise = found.noise.double()
    clean = [functional.softmax(model(X + one), dim=1) for one in noise]
    mean = sum(clean) / 2
    target = (1 - u) * mean + u / 3
    mixed = [functional.softmax(model((1 - u) * X + u * found.point + one), dim=1) for one in noise]
    right = (mean.argmax(1) == Y).double()
    assert 0 < right.sum() < 6
    kl = sum((right * (target * (target / p).log()).sum(1)).mean() for p in mixed) / 2
    expected = sum(map(cross_entropy, clean)) / 2 + 5.0 * kl
    assert loss(model, X, Y, seeded()).item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_finite_differences(name):
    loss, model = LOSSES[name], network()
    loss(model, X, Y, seeded()).backward()
    parameters = list(model.parameters())
    for seed in range(3):
        step = [torch.randn(p.shape, generator=seeded(seed), dtype=p.dtype) for p in parameters]
        slope = sum((p.grad * one).sum() for p, one in zip(parameters, step, strict=True))
        values = []
        for h in (1e-6, -2e-6):
            with torch.no_grad():
                for p, one in zip(parameters, step, strict=True):
                    p += h * one
            values.append(loss(model, X, Y, seeded()).item())
        with torch.no_grad():
            for p, one in zip(parameters, step, strict=True):
                p += 1e-6 * one
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(slope.item(), rel=1e-5)


# -- limits ----------------------------------------------------------------------------------------


def test_without_weights_they_are_cross_entropy():
    model = network()
    noisy = sum(map(cross_entropy, copies(model, LAW, 3))) / 3
    plain = CrossEntropy()(model, X, Y)
    mean = sum(copies(model, LAW, 3)) / 3
    pairs = [
        (Stability(law=LAW, weight=0), plain),
        (Consistency(law=LAW, weight=0, entropy=0, samples=3), noisy),
        (MACER(law=LAW, weight=0, samples=3), cross_entropy(mean)),
        (SmoothMix(law=LAW, num_classes=3, steps=1, weight=0, samples=3), noisy),
        (MACER(law=LAW, weight=0, samples=1), CrossEntropy(LAW)(model, X, Y, seeded())),
    ]
    for loss, expected in pairs[:3] + pairs[4:]:
        assert loss(model, X, Y, seeded()).item() == pytest.approx(expected.item())
    one = Adversarial(
        attack=train.noisy.SmoothAdvPGD(epsilon=0, steps=1, samples=3), law=LAW, num_classes=3
    )
    assert pairs[3][0](model, X, Y, seeded()).item() == pytest.approx(
        one(model, X, Y, seeded()).item()
    )


def test_copies_that_agree_are_consistent():
    """Under a model that does not see its input only the entropy is left."""
    model = nn.Linear(4, 3).double()
    nn.init.zeros_(model.weight)
    loss = Consistency(law=LAW, weight=100.0, entropy=0)
    plain = functional.cross_entropy(model(X), Y)
    assert loss(model, X, Y, seeded()).item() == pytest.approx(plain.item())
    spread = Consistency(law=LAW, weight=0, entropy=1.0)(model, X, Y, seeded()) - plain
    entropy = torch.distributions.Categorical(logits=model(X)).entropy().mean()
    assert spread.item() == pytest.approx(entropy.item())


@pytest.mark.parametrize("name", LOSSES)
def test_logits_that_a_softmax_would_round_to_zero_have_finite_losses_and_gradients(name):
    model = network().float()
    with torch.no_grad():
        model[2].weight *= 1e4
    loss = LOSSES[name](model, X.float(), Y, seeded())
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters())


# -- MACER -----------------------------------------------------------------------------------------


def test_the_hinge_on_logits_made_by_hand():
    """Two draws, four inputs: right and close, wrong, right and further apart than gamma, right and
    saturated."""
    law, quantile = Gaussian(0.5), NormalDist().inv_cdf

    def logits(*p):
        return torch.tensor(p, dtype=torch.float64).log()

    first = torch.stack(
        [logits(0.7, 0.2, 0.1), logits(0.2, 0.7, 0.1), logits(0.96, 0.02, 0.02), logits(1, 0, 0)]
    )
    second = torch.stack(
        [logits(0.5, 0.4, 0.1), logits(0.2, 0.7, 0.1), logits(0.98, 0.01, 0.01), logits(1, 0, 0)]
    )
    both = torch.stack([first, second]).clamp(min=-1e3)
    loss = MACER(law=law, weight=1.0, samples=2, beta=1.0, gamma=3.0)
    (hinge,) = loss.hinges(both, torch.tensor([0, 0, 0, 0])).tolist()
    assert hinge == pytest.approx(0.25 * (3.0 - quantile(0.6) + quantile(0.3)))
    cold = MACER(law=law, weight=1.0, samples=2, beta=2.0, gamma=9.0)
    found = cold.hinges(both, torch.tensor([0, 0, 0, 0]))
    assert len(found) == 2  # the third is within 9
    p = [(0.49 / 0.54 + 0.25 / 0.42) / 2, (0.04 / 0.54 + 0.16 / 0.42) / 2]
    assert found[0].item() == pytest.approx(0.25 * (9.0 - quantile(p[0]) + quantile(p[1])))
    assert loss.hinges(both, torch.tensor([2, 2, 2, 2])).shape == (0,)


def test_the_hinge_is_a_mean_over_the_whole_batch():
    model, loss = network(), LOSSES["macer"]
    logits = torch.stack([p.log() for p in copies(model, LAW, 4)])
    hinges = loss.hinges(logits, Y)
    assert 0 < len(hinges) < 6
    plain = MACER(law=LAW, weight=0, samples=4)(model, X, Y, seeded())
    gap = loss(model, X, Y, seeded()) - plain
    assert gap.item() == pytest.approx(3.0 * hinges.sum().item() / 6)


# -- SmoothMix -------------------------------------------------------------------------------------


class Watched(nn.Module):
    """A linear model that keeps the batches of its training passes."""

    def __init__(self, weight):
        super().__init__()
        self.linear = nn.Linear(2, 2, bias=False)
        self.linear.weight = nn.Parameter(weight)
        self.seen = []

    def forward(self, x):
        if self.training:
            self.seen.append(x.detach().clone())
        return self.linear(x)


def test_inputs_are_mixed_by_less_than_a_half_and_only_where_the_class_is_right():
    model = Watched(torch.tensor([[4.0, 0.0], [0.0, 4.0]]))
    x = torch.tensor([[0.9, 0.1]]).repeat(400, 1)
    loss = SmoothMix(law=Gaussian(0.1), num_classes=2, steps=2, step_size=0.2, samples=3)
    right, wrong = torch.zeros(400, dtype=torch.int64), torch.ones(400, dtype=torch.int64)
    loss(model, x, right, seeded())
    clean, mixed = model.seen
    along = (mixed - clean).view(3, 400, 2)
    assert torch.allclose(along[0], along[2], atol=1e-6)  # the same draws
    # Two steps of .2 along (-1, 1) / sqrt 2.
    reach = along[0].norm(dim=1) / 0.4
    assert torch.allclose(along[0, :, 0], -along[0, :, 1], atol=1e-5)
    assert 0 <= reach.min() < 0.02
    assert 0.48 < reach.max() <= 0.5 + 1e-6
    assert reach.mean() == pytest.approx(0.25, abs=0.03)
    light, heavy = (
        SmoothMix(law=Gaussian(0.1), num_classes=2, steps=2, samples=3, weight=weight)
        for weight in (0.0, 100.0)
    )
    at_wrong = [one(model, x, wrong, seeded()).item() for one in (light, heavy)]
    assert at_wrong[0] == at_wrong[1]
    at_right = [one(model, x, right, seeded()).item() for one in (light, heavy)]
    assert at_right[1] > at_right[0]


def test_the_attack_moves_neither_modes_nor_statistics_nor_gradients():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    SmoothMix(law=LAW, num_classes=3, steps=3, samples=2)(model, X.float(), Y, seeded())
    assert model.training
    assert model[1].num_batches_tracked == 2
    assert all(parameter.grad is None for parameter in model.parameters())


# -- in loops and clients --------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
def test_they_draw_from_the_generator_alone(name):
    model = network()
    values = []
    for _ in range(2):
        torch.rand(1)
        values.append(LOSSES[name](model, X, Y, seeded()).item())
    assert values[0] == values[1] != LOSSES[name](model, X, Y, seeded(1)).item()


@pytest.mark.parametrize("name", LOSSES)
def test_clients_descend_them(name):
    def trained(seed):
        clients = [
            fed.Client(i, X[i::2].float(), Y[i::2], fed.SGD(loss=LOSSES[name], lr=0.1))
            for i in range(2)
        ]
        torch.manual_seed(0)
        server = fed.Server(nn.Linear(4, 3), clients, seed=seed)
        return server.run(3, progress=False).model.weight.detach()

    first, again, other = trained(0), trained(0), trained(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(0)
    assert not torch.equal(first, nn.Linear(4, 3).weight)


def test_a_batch_is_cut_into_parts_by_a_smaller_size():
    x, y = torch.arange(24.0)[:, None], torch.arange(24)
    whole, parts = Batches(x, y, size=12, seed=3), Batches(x, y, size=12 // 4, seed=3)
    for epoch in (1, 2):
        cut = [part for batch, _ in whole(epoch) for part in batch.chunk(4)]
        assert all(map(torch.equal, cut, (batch for batch, _ in parts(epoch))))


def test_warm_ups():
    loss = LOSSES["smoothmix"]
    weights = [loss.warmed_up(epoch, 4).weight for epoch in (1, 2, 4, 9)]
    assert weights == [1.25, 2.5, 5.0, 5.0]
    assert loss.warmed_up(1, 0) is loss
    macer = LOSSES["macer"]
    assert [macer.warmed_up(epoch, 2).weight for epoch in (1, 2, 3)] == [0.0, 0.0, 3.0]
    models = []
    for warmup, then in ((2, macer), (0, MACER(law=LAW, weight=0, samples=4))):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        train.fit(model, Batches(X.float(), Y), then, optimizer, epochs=2, warmup=warmup)
        models.append(model.weight.detach())
    assert torch.equal(*models)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Stability(law=0.5), TypeError, "law must be a noise.Law, got 0.5"),
        (
            lambda: Stability(law=LAW, weight=-1),
            ValueError,
            r"weight must lie in \[0, inf\), got -1",
        ),
        (
            lambda: Consistency(law=LAW, weight=1, samples=1),
            ValueError,
            "samples must be a count of at least 2",
        ),
        (
            lambda: Consistency(law=LAW, weight=1, entropy=math.nan),
            ValueError,
            "entropy must lie in",
        ),
        (
            lambda: MACER(law=Uniform(0.5), weight=1),
            TypeError,
            r"law must be noise.Gaussian for MACER's radius, got Uniform",
        ),
        (lambda: MACER(law=RoundedGaussian(0.5), weight=1), TypeError, "must be noise.Gaussian"),
        (lambda: MACER(law=LAW, weight=1, beta=0), ValueError, r"beta must lie in \(0, inf\)"),
        (lambda: MACER(law=LAW, weight=1, gamma=0), ValueError, r"gamma must lie in \(0, inf\)"),
        (
            lambda: SmoothMix(law=Rotation(0.3), num_classes=3, steps=2),
            ValueError,
            "law must perturb inputs themselves, which SmoothMix mixes, got Rotation",
        ),
        (
            lambda: SmoothMix(
                law=OrbitNoise(Rotations(0.3), Gaussian(0.1)), num_classes=3, steps=2
            ),
            ValueError,
            "law must perturb inputs themselves, which SmoothMix mixes, got OrbitNoise",
        ),
        (lambda: SmoothMix(law=LAW, num_classes=3, steps=0), ValueError, "steps must be a count"),
        (
            lambda: SmoothMix(law=LAW, num_classes=3, steps=1, step_size=0),
            ValueError,
            r"step_size must lie in \(0, inf\)",
        ),
        (lambda: SmoothMix(law=LAW, num_classes=1, steps=1), ValueError, "num_classes must be"),
        (
            lambda: SmoothMix(law=LAW, num_classes=3, steps=1, box=(1, 0)),
            ValueError,
            r"box must be \(low, high\)",
        ),
    ],
)
def test_bad_settings(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize("name", LOSSES)
def test_bad_labels_are_named(name):
    with pytest.raises(ValueError, match=r"y must lie in 0 ... 2, got 3 at index 0"):
        LOSSES[name](network(), X, Y + 3, seeded())
