"""Attacks against what is known in closed form, at every corner, and never out of bounds."""

import copy
import itertools
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import MODELS
from scipy import special
from torch import nn
from torch.nn import functional

from rsfl import attacks
from rsfl.attacks import PGD, OnePoint, SmoothAdvDDN, SmoothAdvPGD
from rsfl.attacks.region import Region
from rsfl.deform import Rotation, Translation
from rsfl.noise import Gaussian, Laplace, RoundedGaussian, Uniform
from rsfl.smooth import ABSTAIN, Smoother
from rsfl.train import Batches, CrossEntropy, fit

SIGMA = 0.5


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def linear(weight, bias=None, dtype=torch.float32):
    """A linear model with the given weights (K, d)."""
    weight = torch.as_tensor(weight, dtype=dtype)
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=True, dtype=dtype)
    with torch.no_grad():
        model.weight.copy_(weight)
        model.bias.copy_(
            torch.zeros(len(weight)) if bias is None else torch.as_tensor(bias, dtype=dtype)
        )
    return model


# -- the objective and its gradients ---------------------------------------------------------------


W = np.array([0.9, -1.7, 0.4, 0.0])  # class 1 over class 0
X = np.array([0.2, 0.4, 0.9, 0.5])
OFFSET = 0.3


def smoothed_sigmoid(sigma=SIGMA):
    """G_1(x) of the two-class model with margin w x + c, and its gradient, by quadrature over the
    one direction w."""
    t = np.linspace(-10, 10, 4001)
    density = np.exp(-t * t / 2) / math.sqrt(2 * math.pi) * (t[1] - t[0])
    f = special.expit(W @ X + OFFSET + sigma * np.linalg.norm(W) * t)
    return density @ f, density @ (f * (1 - f)) * W


def draws(law, m, repeats, seed):
    return law.sample((m, repeats, 4), generator=seeded(seed)).double()


def soft_votes(noise):
    return torch.sigmoid((torch.from_numpy(X) + noise) @ torch.from_numpy(W) + OFFSET)


def test_the_gradient_of_pgd_is_the_analytic_one():
    model = linear(np.stack([np.zeros(4), W]), [0, OFFSET], dtype=torch.float64)
    smoother = Smoother(model, Gaussian(SIGMA), 2)
    x = torch.from_numpy(X)[None]
    noise = draws(Gaussian(SIGMA), 200_000, 1, seed=1)
    point = x.clone().requires_grad_()
    logits = attacks.logits_at(smoother, x, point, noise)
    (gradient,) = torch.autograd.grad(
        attacks.smoothed_cross_entropy(logits, torch.tensor([1])).sum(), point
    )
    f = soft_votes(noise)
    slope = (f * (1 - f)).mean() / f.mean()
    assert gradient[0].numpy() == pytest.approx(
        -slope.item() * W, rel=1e-9
    )  # exact for these draws
    g, analytic = smoothed_sigmoid()
    ratio = f * (1 - f) - (analytic[0] / W[0]) / g * f  # the delta method, for a quotient of means
    standard_error = ratio.std().item() / math.sqrt(len(noise)) / g
    assert abs(slope.item() - analytic[0] / W[0] / g) < 4 * standard_error < 2e-3


@pytest.mark.parametrize("votes", ["soft", "hard"])
@pytest.mark.parametrize("estimator", ["plain", "baseline", "antithetic"])
def test_the_one_point_estimator_is_unbiased(estimator, votes):
    estimates = one_point_estimates(Gaussian(SIGMA), estimator, votes, m=4, repeats=100_000)
    if votes == "soft":
        _, expected = smoothed_sigmoid()
    else:  # P[w (x + delta) + c > 0] has the gradient of a normal distribution function
        spread = SIGMA * np.linalg.norm(W)
        z = (W @ X + OFFSET) / spread
        expected = math.exp(-z * z / 2) / math.sqrt(2 * math.pi) / spread * W
    standard_error = estimates.std(dim=0).numpy() / math.sqrt(len(estimates))
    assert np.all(np.abs(estimates.mean(dim=0).numpy() - expected) < 4 * standard_error)
    assert np.all(standard_error < 0.02)


def test_the_one_point_estimator_is_unbiased_for_laplace_noise():
    law = Laplace(0.3)
    estimates = one_point_estimates(law, "baseline", "soft", m=4, repeats=100_000)
    noise = draws(law, 400, 1000, seed=5)
    f = soft_votes(noise)
    slopes = (f * (1 - f)).flatten()
    standard_error = estimates.std(dim=0).numpy() / math.sqrt(
        len(estimates)
    ) + slopes.std().item() / 632 * np.abs(W)
    assert np.all(
        np.abs(estimates.mean(dim=0).numpy() - slopes.mean().item() * W) < 4 * standard_error
    )


def one_point_estimates(law, estimator, votes, m, repeats, seed=2, threshold=0.5):
    """(repeats, d) independent estimates, each from m draws."""
    if estimator == "antithetic":
        half = draws(law, m // 2, repeats, seed)
        noise = torch.cat([half, -half])
    else:
        noise = draws(law, m, repeats, seed)
    values = soft_votes(noise)
    if votes == "hard":
        values = (values > threshold).double()
    score = noise / law.sigma**2 if isinstance(law, Gaussian) else noise.sign() / law.scale
    return attacks.one_point_gradient(score, values, baseline=estimator == "baseline")


@pytest.mark.parametrize(
    ("m", "estimator"), list(itertools.product([2, 8, 32], ["baseline", "antithetic"]))
)
def test_variance_reduction_on_the_linear_model(m, estimator):
    plain, reduced = (
        one_point_estimates(Gaussian(SIGMA), e, "soft", m, 20_000) for e in ("plain", estimator)
    )
    assert reduced.var(dim=0).sum() <= 0.6 * plain.var(dim=0).sum()


def test_antithetic_pairs_never_cost_and_a_baseline_may():
    """Of a class that rarely wins a vote, two draws know less than none: the mean of the others is
    mostly noise."""
    for threshold, worse in ((0.5, False), (0.9, True)):
        plain, baseline, antithetic = (
            one_point_estimates(Gaussian(SIGMA), e, "hard", 2, 50_000, threshold=threshold)
            .var(dim=0)
            .sum()
            .item()
            for e in ("plain", "baseline", "antithetic")
        )
        assert antithetic < plain * 1.02
        assert (baseline > 1.2 * plain) == worse


@pytest.mark.parametrize("m", [2, 5])
def test_the_variances_that_the_theory_gives(m):
    law, many = Gaussian(SIGMA), 400_000
    noise = draws(law, many, 1, seed=6)[:, 0]
    f, mirrored, square = (
        soft_votes(noise),
        soft_votes(-noise),
        (noise / SIGMA**2).square().sum(dim=1),
    )
    slope = np.sum(smoothed_sigmoid()[1] ** 2)
    mean = f.mean()
    plain = ((square * f**2).mean() - slope) / m
    baseline = ((square * (f - mean) ** 2).mean() - slope) / m + (
        square.mean() * f.var() + slope
    ) / (m * (m - 1))
    antithetic = plain - ((square * f * mirrored).mean() + slope) / m
    for name, expected in (("plain", plain), ("baseline", baseline), ("antithetic", antithetic)):
        if name != "antithetic" or m % 2 == 0:
            got = one_point_estimates(law, name, "soft", m, 200_000).var(dim=0).sum()
            assert got.item() == pytest.approx(expected.item(), rel=0.02)


def test_a_baseline_that_leaves_the_pair_out_cancels_in_antithetic_pairs():
    half = draws(Gaussian(SIGMA), 4, 100, seed=3)
    noise = torch.cat([half, -half])
    f = soft_votes(noise)
    others = (f.sum(dim=0) - f - f.roll(4, dims=0)) / 6
    with_baseline = attacks.one_point_gradient(noise, f - others)
    assert torch.allclose(with_baseline, attacks.one_point_gradient(noise, f), atol=1e-12)


def test_the_objective_is_the_log_of_the_mean():
    logits = torch.randn(7, 5, 3, dtype=torch.float64, generator=seeded())
    y = torch.tensor([0, 1, 2, 1, 0])
    got = attacks.smoothed_cross_entropy(logits, y)
    mean = logits.softmax(-1).mean(0)
    assert torch.allclose(got, -mean.gather(1, y[:, None])[:, 0].log(), atol=1e-12)
    mean_of_logs = (
        functional.cross_entropy(logits.flatten(0, 1), y.repeat(7), reduction="none")
        .view(7, 5)
        .mean(0)
    )
    assert (got < mean_of_logs - 0.05).all()  # Jensen


def test_the_objective_survives_logits_that_a_softmax_would_round_to_zero():
    logits = torch.tensor([[[0.0, 200.0]], [[0.0, 220.0]]])
    got = attacks.smoothed_cross_entropy(logits, torch.tensor([0]))
    assert got.item() == pytest.approx(200 + math.log(2), abs=1e-4)
    assert attacks.smoothed_cross_entropy(logits.half(), torch.tensor([0])).dtype == torch.float32


class TwoRegimes(nn.Module):
    """Coordinate 1 helps class 0 where coordinate 0 is negative, and hurts it, weakly, where it is
    positive."""

    def forward(self, x):
        left = x[:, :1] < 0
        margin = torch.where(left, 9 * (x[:, 1:] - 1.5), 2 - x[:, 1:])
        return torch.cat([margin, torch.zeros_like(margin)], dim=1)


@pytest.mark.parametrize("attack", [SmoothAdvPGD, SmoothAdvDDN])
def test_the_attack_climbs_the_log_of_the_mean(attack):
    """One draw is lost already and steep in the logarithm, two decide the vote: they pull opposite
    ways."""
    smoother = Smoother(TwoRegimes(), Gaussian(1.0), 2)
    noise = torch.tensor([[[-1.0, 0.0]], [[1.0, 0.0]], [[2.0, 0.0]]])
    x, y = torch.tensor([[0.0, 0.5]]), torch.tensor([0])
    point = attack(epsilon=0.2, steps=1, samples=3, box=None)(smoother, x, y, noise).point
    assert point[0, 1] == pytest.approx(
        0.7
    )  # the mean of the logarithms falls with coordinate 1: it would go to 0.3
    moved = x.clone().requires_grad_()
    logits = smoother.logits(moved, noise)
    functional.cross_entropy(logits.flatten(0, 1), y.repeat(3)).backward()
    assert moved.grad[0, 1] < 0


# -- where it arrives ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack", [SmoothAdvPGD(epsilon=0.3, steps=5, samples=3), PGD(epsilon=0.3, steps=5)]
)
def test_on_a_linear_model_the_attack_finds_the_worst_point(attack):
    smoother = Smoother(linear(np.stack([np.zeros(4), W])), Gaussian(SIGMA), 2)
    x, y = torch.full((2, 4), 0.5), torch.tensor([0, 1])
    point = attack(smoother, x, y, generator=seeded()).point
    direction = torch.tensor(W / np.linalg.norm(W), dtype=torch.float32)
    assert torch.allclose(point - x, 0.3 * torch.stack([direction, -direction]), atol=1e-5)


@pytest.mark.parametrize("law", [Uniform(0.5), Laplace(0.3)])
def test_in_l1_the_budget_goes_to_the_coordinates_that_gain_most(law):
    smoother = Smoother(linear(np.stack([np.zeros(4), W])), law, 2)
    x, y = torch.tensor([[0.5, 0.1, 0.5, 0.5]]), torch.tensor([1])
    attack = SmoothAdvPGD(epsilon=0.3, steps=6, samples=2)
    # coordinate 1 weighs most, coordinate 0 next
    assert torch.allclose(
        attack(smoother, x, y).point - x, torch.tensor([[0.0, 0.3, 0.0, 0.0]]), atol=1e-6
    )
    blocked = torch.tensor([[0.5, 1.0, 0.5, 0.5]])  # and may not move here: the box stops it
    assert torch.allclose(
        attack(smoother, blocked, y).point - blocked,
        torch.tensor([[-0.3, 0.0, 0.0, 0.0]]),
        atol=1e-6,
    )


def test_ddn_finds_the_boundary():
    """The two-class vote at many antithetic draws flips at the plane w x + c = 0, whose distance is
    known."""
    smoother = Smoother(linear(np.stack([np.zeros(4), W])), Gaussian(0.3), 2)
    x = torch.tensor([[0.5, 0.1, 0.5, 0.5], [0.5, 0.3, 0.5, 0.5], [0.1, 0.9, 0.5, 0.5]])
    y = torch.tensor([1, 1, 1])
    half = smoother.noise(x, 50, generator=seeded())
    noise = torch.cat([half, -half])
    distance = (
        x.double().numpy() @ W / np.linalg.norm(W)
    )  # negative: the third is misclassified as it is
    found = SmoothAdvDDN(epsilon=1.0, steps=60, samples=100, box=None)(smoother, x, y, noise).point
    moved = (found - x).norm(dim=1).numpy()
    assert distance[2] < 0
    assert moved[2] == 0
    assert np.all(moved[:2] >= distance[:2] * (1 - 1e-5))
    assert np.all(moved[:2] <= distance[:2] * 1.06)
    pgd = SmoothAdvPGD(epsilon=1.0, steps=60, samples=100, box=None)(smoother, x, y, noise).point
    assert (pgd - x).norm(dim=1).numpy() == pytest.approx(1.0, abs=1e-5)


def test_ddn_spends_the_budget_where_nothing_fools():
    smoother = Smoother(linear(np.stack([np.zeros(4), W]), [0, 9]), Gaussian(0.3), 2)
    x, y = torch.full((1, 4), 0.5), torch.tensor([1])
    moved = SmoothAdvDDN(epsilon=0.2, steps=5, samples=4, start=0.8)(smoother, x, y).point - x
    assert moved.norm() == pytest.approx(0.2, abs=1e-5)


def test_the_same_noise_in_every_step_and_handed_back():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x.detach().clone())
            return x[:, :2]

    smoother = Smoother(Spy(), Gaussian(SIGMA), 2)
    x, y = torch.rand(3, 4, generator=seeded()), torch.tensor([0, 1, 0])
    attacked = SmoothAdvPGD(epsilon=0.1, steps=3, samples=2)(smoother, x, y, generator=seeded(1))
    assert torch.equal(attacked.noise, smoother.noise(x, 2, generator=seeded(1)))
    assert len(seen) == 3
    assert torch.equal(seen[0], (x + attacked.noise).flatten(0, 1))
    for batch in seen[1:]:
        offset = batch.view(2, 3, 4) - attacked.noise
        assert torch.allclose(offset[0], offset[1], atol=1e-6)  # the same point under both draws
    again = SmoothAdvPGD(epsilon=0.1, steps=3, samples=2)(smoother, x, y, attacked.noise)
    assert torch.equal(again.point, attacked.point)


def test_antithetic_noise_comes_in_pairs():
    smoother = Smoother(linear(np.eye(4)), Gaussian(SIGMA), 4)
    noise = OnePoint(epsilon=0.1, steps=1, samples=6).draw(smoother, torch.rand(2, 4))
    assert noise.shape == (6, 2, 4)
    assert torch.equal(noise[3:], -noise[:3])


# -- what it leaves alone --------------------------------------------------------------------------


ATTACKS = {
    "pgd": PGD(epsilon=0.25, steps=2),
    "smoothadv pgd": SmoothAdvPGD(epsilon=0.25, steps=2, samples=2),
    "smoothadv ddn": SmoothAdvDDN(epsilon=0.25, steps=2, samples=2),
    "one-point": OnePoint(epsilon=0.25, steps=2, samples=2),
    "one-point baseline": OnePoint(epsilon=0.25, steps=2, samples=2, estimator="baseline"),
    "one-point plain hard": OnePoint(
        epsilon=0.25, steps=2, samples=1, estimator="plain", votes="hard"
    ),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("enabled", [True, False])
def test_the_model_is_left_as_it_was(attack, enabled):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, 3))
    model[0].eval()  # a mode of its own
    model[3].bias.requires_grad_(False)
    model[3].weight.grad = torch.ones(3, 8)
    computed = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_hook(computed.append)
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    x = torch.rand(5, 4, requires_grad=True)
    before = x.detach().clone()
    with torch.set_grad_enabled(enabled):
        attacked = attack(Smoother(model, Gaussian(SIGMA), 3), x, torch.tensor([0, 1, 2, 0, 1]))
        assert torch.is_grad_enabled() == enabled
    assert not computed, "an attack computed gradients of parameters"
    assert [p.grad is None for p in model.parameters()] == [True, True, False, True]
    assert torch.equal(model[3].weight.grad, torch.ones(3, 8))
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, False]
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(x, before)
    assert x.grad is None
    assert not attacked.point.requires_grad
    assert not attacked.noise.requires_grad


def test_one_point_builds_no_graph():
    recorded = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x):
            logits = self.inner(x)
            recorded.append(torch.is_grad_enabled() or logits.requires_grad)
            return logits

    smoother, x, y = Smoother(Spy(), Gaussian(SIGMA), 3), torch.rand(2, 4), torch.tensor([0, 1])
    OnePoint(epsilon=0.1, steps=4, samples=2)(smoother, x, y)
    assert recorded == [False] * 4
    SmoothAdvPGD(epsilon=0.1, steps=1, samples=2)(smoother, x, y)
    assert recorded[-1]


# -- corners ---------------------------------------------------------------------------------------

LAWS = {
    "gaussian": Gaussian(0.25),
    "laplace": Laplace(0.2),
    "uniform": Uniform(0.5),
    "rounded": RoundedGaussian(0.25),
    "translation": Translation(0.2),
}


class Constant(nn.Module):
    """Zero gradients everywhere, connected to the input or not."""

    def forward(self, x):
        return torch.zeros(len(x), 3, dtype=x.dtype) + 0 * x.flatten(1)[:, :1]


class Broken(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :3] * torch.nan


class Steep(nn.Module):
    """Infinitely steep at zero."""

    def forward(self, x):
        return x.flatten(1)[:, :3].clamp(min=0).sqrt()


class Saturated(nn.Module):
    """So sure that the softmax is one-hot in any precision, and its gradient 0."""

    def forward(self, x):
        return 1e4 * x.flatten(1)[:, :3] + torch.tensor([9e4, 0, 0], dtype=torch.float64).to(
            x.dtype
        )


def small(seed, dtype):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


@st.composite
def situations(draw):
    law = draw(st.sampled_from(list(LAWS.values())))
    kinds = [SmoothAdvPGD, SmoothAdvDDN, PGD]
    if isinstance(law, Gaussian | Laplace | Translation):
        kinds.append(OnePoint)
    kind = draw(st.sampled_from(kinds))
    dtype = draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    settings = {
        "epsilon": draw(
            st.one_of(st.sampled_from([0.0, 1e-30, 1e-8, 1e-3, 0.5, 1.0, 50.0]), st.floats(0, 3))
        ),
        "steps": draw(st.sampled_from([1, 2, 5])),
        "step_size": draw(st.sampled_from([None, 1e-9, 0.01, 10.0])),
        "box": draw(st.sampled_from([(0.0, 1.0), (-0.5, 1.25), None])),
        "levels": draw(st.sampled_from([None, 2, 256])),
    }
    if kind is OnePoint:
        settings["estimator"] = draw(st.sampled_from(["plain", "baseline", "antithetic"]))
        settings["votes"] = draw(st.sampled_from(["soft", "hard"]))
        settings["samples"] = 1 if settings["estimator"] == "plain" else 2
    elif kind is not PGD:
        settings["samples"] = draw(st.sampled_from([1, 3]))
    corner = st.sampled_from([0.0, 1.0, 0.5, 1 / 255, 1 - 2**-12])
    size = draw(st.sampled_from([1, 3]))
    values = draw(st.lists(corner, min_size=6 * size, max_size=6 * size))
    x = torch.tensor(values, dtype=dtype).view(size, 1, 2, 3)
    model = draw(
        st.sampled_from(
            [Constant(), Saturated(), Broken(), Steep(), small(draw(st.integers(0, 9)), dtype)]
        )
    )
    return kind(**settings), Smoother(model, law, 3), x, draw(st.integers(0, 99))


@given(situations())
def test_budget_and_box_hold_exactly_at_every_corner(situation):
    attack, smoother, x, seed = situation
    y = torch.arange(len(x)) % 3
    point = attack(smoother, x, y, generator=seeded(seed)).point
    assert point.dtype == x.dtype
    assert point.isfinite().all()
    parametric = isinstance(smoother.law, Translation)
    if not parametric and attack.box is not None:
        assert (point >= attack.box[0]).all()
        assert (point <= attack.box[1]).all()
    centre = torch.zeros_like(point) if parametric else x
    order = int(smoother.law.norm[1])
    for offset in (point - centre, point.double() - centre.double()):
        norms = torch.linalg.vector_norm(offset.flatten(1), order, dim=1)
        assert all(norm <= attack.epsilon for norm in norms.tolist())
    if attack.epsilon == 0:
        assert torch.equal(point, centre)
    if (
        attack.levels == 256
        and not parametric
        and x.dtype == torch.float64
        and attack.box == (0, 1)
    ):
        steps = (point - x) * 255
        inside = (point > 0) & (point < 1)
        assert ((steps - steps.round()).abs()[inside] < 1e-9).all()


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=9), st.floats(0, 3))
def test_the_projection_on_the_l1_ball_is_the_nearest_point(values, radius):
    """Against soft thresholds found by bisection."""
    delta = torch.tensor([values], dtype=torch.float64)
    region = Region(torch.zeros_like(delta), "l1", radius, box=None, levels=None)
    low, high = 0.0, 2.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (low, middle) if (delta.abs() - middle).clamp(min=0).sum() <= radius else (middle, high)
        )
    expected = delta.sign() * (delta.abs() - (high if delta.abs().sum() > radius else 0)).clamp(
        min=0
    )
    got = region.projected(delta, torch.tensor([radius], dtype=torch.float64))
    assert torch.allclose(got, expected, atol=1e-12)
    assert (got.abs() <= delta.abs()).all()
    assert (got * delta >= 0).all()


def test_infinite_gradients_and_a_fallback_of_zero():
    smoother, attack = Smoother(Steep(), Gaussian(0.25), 3), PGD(epsilon=0.25, steps=2)
    assert attack(smoother, torch.zeros(2, 4), torch.tensor([0, 1])).point.isfinite().all()
    for norm in ("l1", "l2"):
        region = Region(torch.zeros(1, 4), norm, 0.1, box=None, levels=None)
        nothing = torch.zeros(1, 4)
        assert torch.equal(region.direction(nothing, nothing, nothing), nothing)


@pytest.mark.parametrize("attack", [SmoothAdvPGD, SmoothAdvDDN, OnePoint, PGD])
def test_a_zero_gradient_still_moves(attack):
    settings = {} if attack is PGD else {"samples": 2}
    attack = attack(epsilon=0.25, steps=2, box=None, **settings)
    x, y = torch.full((3, 4), 0.5), torch.tensor([0, 0, 0])
    moved = attack(Smoother(Constant(), Gaussian(0.25), 3), x, y, generator=seeded()).point - x
    assert moved.norm(dim=1).numpy() == pytest.approx(0.25, rel=1e-4)
    assert not torch.allclose(moved[0], moved[1])


def test_almost_all_of_the_budget_is_spent():
    """The exact bound costs nothing that matters."""
    smoother = Smoother(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), Gaussian(0.25), 3)
    x, y = torch.rand(50, 1, 8, 8, generator=seeded()), torch.arange(50) % 3
    point = SmoothAdvPGD(epsilon=0.3, steps=4, samples=2)(smoother, x, y).point
    size = (point - x).flatten(1).double().norm(dim=1)
    assert ((size <= 0.3) & (size > 0.3 * (1 - 1e-4))).all()


# -- deformations ----------------------------------------------------------------------------------


def test_for_a_deformation_the_point_is_its_parameter():
    """The model reads one pixel of a ramp: what it reads is a matter of the shift to the right, and
    of nothing else."""
    ramp = torch.linspace(0, 1, 9).expand(3, 1, 9, 9).contiguous()
    model = nn.Sequential(
        nn.Flatten(), linear(torch.eye(81)[[40, 0]] * torch.tensor([[8.0], [0.0]]), [-4.0, 0.0])
    )
    smoother = Smoother(model, Translation(0.1), 2)
    y = torch.tensor([0, 0, 1])
    for attack in (
        SmoothAdvPGD(epsilon=0.25, steps=4, samples=8),
        OnePoint(epsilon=0.25, steps=8, samples=2048),
    ):
        point = attack(smoother, ramp, y, generator=seeded()).point
        assert point.shape == (3, 2)
        assert point[:, 0].tolist() == pytest.approx([-0.25, -0.25, 0.25], abs=0.01)
        assert point[:, 1].abs().max() < 0.05
    shifts = torch.tensor([[0.0, 0.0], [0.25, 0.0], [0.0, 0.25]])
    logits = attacks.logits_at(smoother, ramp, shifts, torch.zeros(1, 3, 2))[0, :, 0]
    assert logits.tolist() == pytest.approx(
        [0, 1, 0], abs=1e-4
    )  # a quarter of half an image is an eighth of the ramp


# -- evaluation ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels)
    return x[:1000], y[:1000], x[1000:], y[1000:]


@pytest.fixture(scope="module")
def network(digits):
    x, y, _, _ = digits
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    fit(
        model,
        Batches(x, y),
        CrossEntropy(Gaussian(0.25)),
        torch.optim.Adam(model.parameters(), 3e-3),
        epochs=30,
    )
    return model


@pytest.mark.parametrize(
    ("m", "estimator"), list(itertools.product([2, 8], ["baseline", "antithetic"]))
)
def test_variance_reduction_on_a_trained_network(network, digits, m, estimator):
    assert variance_ratio(network, digits, m, estimator, "soft") <= 0.6


def variance_ratio(network, digits, m, estimator, votes, repeats=400, images=40):
    """Total variance over test images, of the reduced estimator over the plain one."""
    x, y = digits[2][:images], digits[3][:images]
    smoother = Smoother(network, Gaussian(0.25), 10)
    totals = []
    for kind in (estimator, "plain"):
        attack = OnePoint(epsilon=1.0, steps=1, samples=m, estimator=kind, votes=votes)
        rows, labels = x.repeat_interleave(repeats, dim=0), y.repeat_interleave(repeats)
        noise = attack.draw(smoother, rows, seeded(4))
        slope, _ = attack._gradient(smoother, rows, labels, rows, noise)
        totals.append(slope.view(images, repeats, -1).var(dim=1).sum())
    return (totals[0] / totals[1]).item()


@pytest.mark.parametrize(
    "name", [name for name in ATTACKS if name.startswith(("smoothadv", "one-point"))]
)
def test_attacks_lower_the_vote_on_a_trained_network(network, digits, name):
    x, y = digits[2][:200], digits[3][:200]
    smoother = Smoother(network, Gaussian(0.25), 10)
    attack = replace(ATTACKS[name], steps=8, samples=32, epsilon=0.5)
    point = attack(smoother, x, y, generator=seeded()).point
    fresh = smoother.noise(x, 64, generator=seeded(9))
    start = attacks.smoothed_cross_entropy(smoother.logits(x, fresh), y)
    end = attacks.smoothed_cross_entropy(smoother.logits(point, fresh), y)
    if (
        name == "smoothadv ddn"
    ):  # where it fools, it goes no farther than it must; misclassified inputs stay
        assert (end >= start - 1e-3).double().mean() > 0.95
    assert end.mean() > start.mean() + 0.1


def test_no_attack_breaks_a_certificate(network, digits):
    x, y = digits[2][:150], digits[3][:150]
    smoother = Smoother(network, Gaussian(0.25), 10)
    model_modes = [m.training for m in network.modules()]
    for attack in (
        SmoothAdvPGD(epsilon=0.25, steps=10, samples=32),
        SmoothAdvDDN(epsilon=0.25, steps=10, samples=32),
        OnePoint(epsilon=0.25, steps=10, samples=64),
    ):
        result = attacks.evaluate(smoother, attack, Batches(x, y, size=64)(1), n=500)
        assert len(result.y) == len(result.attacked) == len(result.certificate) == 150
        assert not result.refuted.any()
        assert (result.distance <= 0.25).all()
        assert 0.3 < result.certified_accuracy < result.robust_accuracy < result.clean_accuracy < 1
        assert repr(result).startswith("Evaluation of 150 inputs at epsilon = 0.25")
    assert model_modes == [m.training for m in network.modules()]


def test_an_evaluation_is_printed_to_the_safe_side():
    certificate = Smoother(MODELS["threshold"], Gaussian(0.1), 2).certify(
        torch.tensor([[-1.0], [-0.5], [0.5]]), n=500
    )
    two_of_three = torch.tensor([0, 0, -1])
    result = attacks.Evaluation(
        torch.zeros(3), certificate, two_of_three, torch.zeros(3), epsilon=32 / 255
    )
    assert certificate.label.tolist() == two_of_three.tolist()
    assert repr(result) == (
        "Evaluation of 3 inputs at epsilon = 0.12549019607843137: clean 0.666, attacked 0.667, "
        "certified 0.666"
    )


def test_refutation_is_noticed(network, digits):
    """A certificate that claims too much does not survive an attack."""
    x, y = digits[2][:100], digits[3][:100]
    attack = SmoothAdvPGD(epsilon=0.6, steps=10, samples=32)
    honest = attacks.evaluate(Smoother(network, Gaussian(0.25), 10), attack, [(x, y)], n=500)
    inflated = replace(
        honest, certificate=replace(honest.certificate, radius=honest.certificate.radius * 4)
    )
    assert inflated.refuted.any()
    assert inflated.certified_accuracy > inflated.robust_accuracy


def test_batches_do_not_change_the_evaluation(network, digits):
    x, y = digits[2][:30], digits[3][:30]
    smoother, attack = (
        Smoother(network, Gaussian(0.25), 10),
        SmoothAdvPGD(epsilon=0.25, steps=3, samples=8),
    )
    whole = attacks.evaluate(smoother, attack, [(x, y)], n=200)
    parts = attacks.evaluate(smoother, attack, zip(x.split(7), y.split(7), strict=True), n=200)
    assert torch.equal(whole.attacked, parts.attacked)
    assert torch.equal(whole.certificate.radius, parts.certificate.radius)
    assert torch.equal(whole.certificate.index, torch.arange(30))


def test_steps_without_a_gradient_do_not_depend_on_the_batch_either():
    class Flat(nn.Module):
        """Votes by the sign of the first coordinate's distance from 1/2, without a slope
        anywhere."""

        def forward(self, x):
            right = (x[:, :1] > 0.5).float() + 0 * x[:, :1]
            return torch.cat([1 - right, right], dim=1)

    x, y = torch.full((30, 4), 0.5), torch.zeros(30, dtype=torch.int64)
    smoother, attack = Smoother(Flat(), Gaussian(0.01), 2), PGD(epsilon=0.3, steps=2)
    whole = attacks.evaluate(smoother, attack, [(x, y)], n=200)
    parts = attacks.evaluate(smoother, attack, zip(x.split(7), y.split(7), strict=True), n=200)
    assert torch.equal(whole.attacked, parts.attacked)
    assert set(whole.attacked.tolist()) >= {0, 1}


@pytest.mark.parametrize(
    ("deformation", "epsilon"), [(Translation(0.2), 0.3), (Rotation(0.6), 0.7)]
)
def test_evaluation_of_a_deformation(network, digits, deformation, epsilon):
    x, y = digits[2][:40], digits[3][:40]
    smoother = Smoother(network, deformation, 10)
    still = attacks.evaluate(
        smoother, SmoothAdvPGD(epsilon=0.0, steps=1, samples=1), [(x, y)], n=200
    )
    assert torch.equal(
        still.attacked, smoother.predict(x, n=200).label
    )  # the same draws, at offset zero
    moved = attacks.evaluate(
        smoother, SmoothAdvPGD(epsilon=epsilon, steps=5, samples=16), [(x, y)], n=200
    )
    assert 0.5 * epsilon < moved.distance.max() <= epsilon
    assert not moved.refuted.any()
    assert moved.certified_accuracy <= moved.robust_accuracy < still.robust_accuracy


def test_evaluation_on_the_grid(network, digits):
    """RoundedGaussian certifies 8-bit inputs only: with ``levels`` the attack stays among them."""
    x, y = (digits[2][:20] * 255).round() / 255, digits[3][:20]
    smoother = Smoother(network, RoundedGaussian(0.25), 10)
    on_grid = SmoothAdvPGD(epsilon=0.25, steps=5, samples=8, levels=256)
    result = attacks.evaluate(smoother, on_grid, [(x, y)], n=200)
    assert (result.attacked != ABSTAIN).any()
    assert result.distance.max() > 0.2
    with pytest.raises(ValueError, match="x must lie on the grid"):
        attacks.evaluate(smoother, replace(on_grid, levels=None), [(x, y)], n=200)


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PGD(epsilon=-0.1, steps=2), r"epsilon must lie in \[0, inf\), got -0.1"),
        (lambda: PGD(epsilon=math.nan, steps=2), "epsilon must lie in"),
        (lambda: PGD(epsilon=math.inf, steps=2), "epsilon must lie in"),
        (lambda: PGD(epsilon=1, steps=0), "steps must be a count of at least 1"),
        (lambda: PGD(epsilon=1, steps=2, step_size=0), r"step_size must lie in \(0, inf\)"),
        (lambda: PGD(epsilon=1, steps=2, box=(1.0, 0.0)), r"box must be \(low, high\)"),
        (lambda: PGD(epsilon=1, steps=2, levels=1), "levels must be a count of at least 2"),
        (
            lambda: SmoothAdvPGD(epsilon=1, steps=2, samples=0),
            "samples must be a count of at least 1",
        ),
        (
            lambda: SmoothAdvDDN(epsilon=1, steps=2, samples=1, gamma=1),
            r"gamma must lie in \(0, 1\)",
        ),
        (
            lambda: SmoothAdvDDN(epsilon=1, steps=2, samples=1, start=2),
            r"start must lie in \(0, 1\]",
        ),
        (lambda: OnePoint(epsilon=1, steps=2, samples=3), "samples must be even"),
        (
            lambda: OnePoint(epsilon=1, steps=2, samples=1, estimator="baseline"),
            "samples must be a count of at least",
        ),
        (
            lambda: OnePoint(epsilon=1, steps=2, samples=2, estimator="both"),
            "estimator must be one of",
        ),
        (lambda: OnePoint(epsilon=1, steps=2, samples=2, votes="firm"), "votes must be one of"),
        (lambda: PGD(epsilon=1, steps=1).scaled(1.5), r"factor must lie in \[0, 1\]"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


GOOD_X, GOOD_Y = torch.full((2, 4), 0.5), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("x", "y", "error", "message"),
    [
        (GOOD_X, torch.tensor([0, 3]), ValueError, r"y must lie in 0 ... 2, got 3 at index 1"),
        (GOOD_X, torch.tensor([-1, 0]), ValueError, "got -1 at index 0"),
        (GOOD_X, torch.tensor([0]), ValueError, "one label for each of 2 inputs"),
        (
            GOOD_X,
            torch.tensor([0.0, 1.0]),
            TypeError,
            "y must be an int64 tensor, got torch.float32",
        ),
        (GOOD_X, [0, 1], TypeError, "y must be an int64 tensor, got list"),
        (GOOD_X + 0.6, GOOD_Y, ValueError, r"x must lie in the box \[0, 1\], got 1.1"),
        (GOOD_X * math.nan, GOOD_Y, ValueError, r"x must be finite, got nan at index \(0, 0\)"),
        (GOOD_X.long(), GOOD_Y, TypeError, "floating point dtype"),
        (GOOD_X[:0], GOOD_Y[:0], ValueError, "at least one input"),
    ],
)
def test_bad_inputs(x, y, error, message):
    smoother = Smoother(linear(np.eye(4)[:3]), Gaussian(0.25), 3)
    with pytest.raises(error, match=message):
        PGD(epsilon=0.1, steps=1)(smoother, x, y)


def test_without_a_box_inputs_need_only_be_finite():
    smoother, attack = (
        Smoother(linear(np.eye(4)[:3]), Gaussian(0.25), 3),
        PGD(epsilon=0.1, steps=1, box=None),
    )
    assert attack(smoother, GOOD_X + 5, GOOD_Y).point.max() > 1
    with pytest.raises(ValueError, match="x must be finite, got inf"):
        attack(smoother, GOOD_X / 0, GOOD_Y)


@pytest.mark.parametrize("law", [Uniform(0.5), RoundedGaussian(0.25)])
def test_one_point_refuses_laws_without_a_score(law):
    smoother = Smoother(linear(np.eye(4)[:3]), law, 3)
    with pytest.raises(ValueError, match="law must be Gaussian or Laplace"):
        OnePoint(epsilon=0.1, steps=1, samples=2)(smoother, GOOD_X, GOOD_Y)


def test_a_model_is_no_smoother():
    with pytest.raises(
        TypeError, match=r"smoother must be a smooth.Smoother, such as .*, got Linear"
    ):
        PGD(epsilon=0.1, steps=1)(linear(np.eye(4)), GOOD_X, GOOD_Y)


def test_noise_of_the_wrong_shape():
    smoother = Smoother(linear(np.eye(4)[:3]), Gaussian(0.25), 3)
    with pytest.raises(ValueError, match="noise must have shape"):
        SmoothAdvPGD(epsilon=0.1, steps=1, samples=2)(smoother, GOOD_X, GOOD_Y, torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"fallback must have shape \(2, 4\), got \(4,\)"):
        PGD(epsilon=0.1, steps=1)(smoother, GOOD_X, GOOD_Y, fallback=torch.zeros(4))


@pytest.mark.parametrize("law", [Gaussian(0.25), Uniform(0.5)])
@pytest.mark.parametrize("box", [None, (0.0, 1.0)])
def test_a_step_beyond_the_dtype_stays_within_the_budget(law, box):
    """Points that are no numbers are within no budget."""
    smoother = Smoother(linear(np.eye(4)[:3]), law, 3)
    for attack in (PGD, partial(SmoothAdvDDN, samples=2)):
        point = attack(epsilon=0.3, steps=3, step_size=1e39, box=box)(
            smoother, GOOD_X, GOOD_Y
        ).point
        assert (
            torch.linalg.vector_norm((point - GOOD_X).double(), float(law.norm[1:]), dim=1) <= 0.3
        ).all()


def test_a_low_precision_model_is_attacked_at_inputs_of_float32():
    model = linear(np.eye(4)[:3]).bfloat16()
    result = attacks.evaluate(
        Smoother(model, Gaussian(0.25), 3), PGD(epsilon=0.1, steps=2), [(GOOD_X, GOOD_Y)], n=100
    )
    assert float(result.distance.max()) <= 0.1


def test_a_pair_of_tensors_is_one_batch():
    smoother, attack = Smoother(linear(np.eye(4)[:3]), Gaussian(0.25), 3), PGD(epsilon=0.1, steps=1)
    alone, listed = (
        attacks.evaluate(smoother, attack, batches, n=100)
        for batches in ((GOOD_X, GOOD_Y), [(GOOD_X, GOOD_Y)])
    )
    assert torch.equal(alone.attacked, listed.attacked)
    with pytest.raises(TypeError, match=r"loader must yield pairs \(x, y\), got Tensor"):
        attacks.evaluate(smoother, attack, [GOOD_X])


def test_an_evaluation_of_nothing():
    smoother = Smoother(linear(np.eye(4)[:3]), Gaussian(0.25), 3)
    with pytest.raises(ValueError, match="loader must yield at least one batch"):
        attacks.evaluate(smoother, PGD(epsilon=0.1, steps=1), [])
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        attacks.one_point_gradient(torch.zeros(1, 2, 3), torch.zeros(1, 2), baseline=True)
