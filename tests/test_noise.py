import json

import mpmath as mp
import numpy as np
import oracles
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import LAWS
from scipy import stats
from strategies import probabilities

from rsfl import bounds, deform, noise
from rsfl.assumptions import SAME_REST
from rsfl.smooth import Smoother

CLOSED = {
    "gaussian": stats.norm(scale=0.5),
    "uniform": stats.uniform(-1.0, 2.0),
    "laplace": stats.laplace(scale=0.4),
}


@pytest.mark.parametrize("name", CLOSED)
def test_draws_follow_the_law(name):
    draws = LAWS[name].sample((200_000,), generator=torch.Generator().manual_seed(1))
    assert draws.dtype == torch.float32
    assert stats.kstest(draws.double().numpy(), CLOSED[name].cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", LAWS)
def test_draws_depend_on_the_generator_alone(name):
    law = LAWS[name]
    torch.manual_seed(5)
    first = law.sample((7, 3), generator=torch.Generator().manual_seed(2))
    torch.manual_seed(6)
    assert torch.equal(first, law.sample((7, 3), generator=torch.Generator().manual_seed(2)))
    assert not torch.equal(first, law.sample((7, 3), generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("name", LAWS)
@given(st.floats(0, 0.9))
def test_probability_is_the_least_that_gives_the_radius(name, radius):
    law = LAWS[name]
    p = law.probability(radius, dim=3)
    assert law.radius(p, dim=3) >= radius
    assert p <= 0.5 + 1e-15 or law.radius(np.nextafter(p, 0), dim=3) < radius


@pytest.mark.parametrize("name", LAWS)
def test_a_radius_beyond_the_law_is_named(name):
    with pytest.raises(ValueError, match=r"radius must be one that .*, at most .*, got 1000\.0"):
        LAWS[name].probability(1000.0, dim=1)


def test_beyond_eight_sigma_float64_has_no_probability_left():
    assert noise.Gaussian(1.0).probability(8.2) < 1
    with pytest.raises(ValueError, match="radius must be one that"):
        noise.Gaussian(1.0).probability(8.3)


def test_each_law_owns_its_norm_and_radius():
    p = 0.9
    assert LAWS["gaussian"].radius(p) == bounds.cohen_radius(p, sigma=0.5)
    assert LAWS["uniform"].radius(p) == bounds.uniform_radius(p, half_width=1.0)
    assert LAWS["laplace"].radius(p) == bounds.laplace_radius(p, scale=0.4)
    assert [law.norm for law in LAWS.values()] == ["l2", "l1", "l1", "l2"]


@pytest.mark.parametrize(
    ("law", "words"),
    [
        (lambda: noise.Gaussian(0.0), r"sigma must lie in \(0, inf\), got 0.0"),
        (lambda: noise.Gaussian(np.inf), r"sigma must lie in \(0, inf\), got inf"),
        (lambda: noise.Uniform(np.inf), r"half_width must lie in \(0, inf\), got inf"),
        (lambda: noise.Laplace(np.inf), r"scale must lie in \(0, inf\), got inf"),
        (lambda: noise.Uniform(0.0), r"half_width must lie in \(0, inf\), got 0.0"),
        (lambda: noise.Laplace(0.0), r"scale must lie in \(0, inf\), got 0.0"),
        (lambda: noise.Uniform(-1.0), r"half_width must lie in \(0, inf\), got -1.0"),
        (lambda: noise.Laplace(np.nan), r"scale must lie in \(0, inf\), got nan"),
        (lambda: noise.RoundedGaussian(np.inf), r"sigma must lie in \(0, inf\), got inf"),
        (lambda: noise.RoundedGaussian(0.5, 1), "levels must be a count of at least 2.*got 1"),
    ],
)
def test_bad_values_are_named_and_quoted(law, words):
    with pytest.raises(ValueError, match=words):
        law()


@pytest.mark.parametrize(
    "given_", [np.float32(0.25), np.array(0.25), np.float64(0.25), torch.tensor(0.25), 1]
)
def test_laws_hold_plain_numbers_whatever_they_were_given(given_):
    laws_ = [
        noise.Gaussian(given_),
        noise.RoundedGaussian(given_, np.int16(16)),
        deform.Translation(given_),
    ]
    laws_ += [
        noise.Uniform(given_),
        noise.Laplace(given_),
        deform.Rotation(given_),
        deform.DCT(given_, np.int64(2)),
    ]
    for law in laws_:
        assert {type(value) for value in vars(law).values()} <= {float, int, str}
        assert json.loads(json.dumps(vars(law))) == vars(law)
    assert noise.Gaussian(given_) == noise.Gaussian(float(given_))
    assert noise.Gaussian(given_).sample((3,)).shape == (3,)


# -- rounded Gaussian ------------------------------------------------------------------------------


def exact_tail(m, sigma, levels=256):
    """P[|N(0, (sigma (levels - 1))^2)| >= m - 1/2]."""
    return mp.erfc((mp.mpf(m) - mp.mpf("0.5")) / (mp.mpf(sigma) * (levels - 1)) / mp.sqrt(2))


def test_noise_far_below_a_step_is_none():
    law = noise.RoundedGaussian(1e-6)
    assert (
        noise.rounded._magnitude_table(1e-6, 256) == ()
    )  # at once: its series would take long to vanish
    assert exact_tail(1, 1e-6) < mp.mpf(2) ** -63
    assert law.sample((100,)).abs().max() == 0
    # where the table ends by the rule of ten deviations, what is cut rounds to nothing
    for sigma in (1e-3, 2e-4, 1.9e-4):
        assert (
            exact_tail(len(noise.rounded._magnitude_table(sigma, 256)) + 1, sigma)
            < mp.mpf(2) ** -62
        )


@pytest.mark.parametrize(
    ("sigma", "levels"), [(0.25, 256), (0.12, 256), (1.0, 256), (0.5, 16), (1e-3, 256)]
)
def test_table_is_exact_to_its_last_bit_tails_included(sigma, levels):
    mp.mp.dps = oracles.DIGITS
    table = noise.rounded._magnitude_table(sigma, levels)
    assert list(table) == sorted(table, reverse=True)
    for m, entry in enumerate(table, start=1):
        assert abs(entry - exact_tail(m, sigma, levels) * 2**62) <= mp.mpf("0.500001")
    beyond = exact_tail(len(table) + 1, sigma, levels)
    assert beyond * 2**62 <= mp.mpf("0.500001")
    # the claimed distance covers all of it: half the sum of |drawn - exact| over the integers
    drawn = [mp.mpf(t) / 2**62 for t in table] + [mp.mpf(0)]
    exact = [exact_tail(m, sigma, levels) for m in range(1, len(table) + 2)]
    distance = sum(
        abs((drawn[i] - drawn[i + 1]) - (exact[i] - exact[i + 1])) for i in range(len(table))
    )
    distance = (distance + beyond + abs(drawn[0] - exact[0])) / 2
    assert distance <= noise.RoundedGaussian(sigma, levels).total_variation


def test_ten_million_draws_follow_the_exact_law():
    law = noise.RoundedGaussian(0.02)
    draws = law.sample((10_000_000,), generator=torch.Generator().manual_seed(3)).long()
    edge = int(draws.abs().max())
    observed = torch.bincount(draws + edge, minlength=2 * edge + 1).double().numpy()
    tail = np.array([float(exact_tail(m, law.sigma)) for m in range(1, edge + 2)])
    half = (tail[:-1] - tail[1:]) / 2
    expected = np.concatenate([half[::-1], [1 - tail[0]], half]) * len(draws)
    common = expected > 50
    pooled = [(observed[common], expected[common])]
    rest = (observed[~common].sum(), len(draws) - expected[common].sum())
    obs, exp = np.append(pooled[0][0], rest[0]), np.append(pooled[0][1], rest[1])
    assert stats.chisquare(obs, exp * obs.sum() / exp.sum()).pvalue > 1e-3
    assert len(obs) > 40


def test_noisy_images_stay_on_the_clamped_grid():
    law = noise.RoundedGaussian(0.5)
    x = torch.arange(256).float()[:, None] / 255
    drawn = torch.linspace(-law.clamp - 700, law.clamp + 700, 256).round()[:, None]
    noisy = law.perturb(x, drawn)
    steps = noisy.double() * 255
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
    assert steps.min() >= 255 - law.clamp - 1e-4
    assert steps.max() <= law.clamp + 1e-4
    assert torch.equal(law.perturb(x, torch.zeros(1, 1)), x)


@pytest.mark.parametrize(
    ("sigma", "levels", "clamp"), [(0.5, 256, 255 + 1020), (0.25, 5, 4 + 8), (0.1, 2, 1 + 1)]
)
def test_sums_are_clamped_eight_sigma_beyond_black_and_white(sigma, levels, clamp):
    law = noise.RoundedGaussian(sigma, levels)
    far = torch.tensor([[1e6, -1e6]])
    ends = law.perturb(torch.tensor([[0.0, 1.0]], dtype=torch.float64), far) * (levels - 1)
    assert law.clamp == clamp
    assert ends.round().tolist() == [[clamp, levels - 1 - clamp]]


def test_the_grid_point_is_two_roundings_away_at_most():
    """A radius is about the grid point; a model that a tolerance lets see another input has no such
    radius."""
    law, pixels = noise.RoundedGaussian(0.5), torch.arange(256).float()
    for x in (
        pixels / 255,
        pixels * (1 / 255),
        pixels * torch.tensor(1 / 255),
        (pixels / 255).double(),
    ):
        law.check(x[None])
    moved = (pixels / 255).double()
    moved[100] += (
        1e-3 / 255
    )  # was taken once: with 10,000 such coordinates .0004 from the grid point
    with pytest.raises(ValueError, match=r"x must lie on the grid k / 255"):
        law.check(moved[None])
    noise.RoundedGaussian(0.5, 4096).check((torch.arange(4096).float() / 4095)[None])


@pytest.mark.parametrize("levels", [2, 16, 256])
def test_an_input_that_is_taken_is_two_to_the_minus_23_from_its_grid_point_at_most(levels):
    law, point = noise.RoundedGaussian(0.5, levels), 1 / (levels - 1)
    for sign in (1, -1):
        law.check(torch.tensor([[point + sign * 0.999 * 2.0**-23]], dtype=torch.float64))
        with pytest.raises(ValueError, match="x must lie on the grid"):
            law.check(torch.tensor([[point + sign * 1.001 * 2.0**-23]], dtype=torch.float64))
        end = torch.tensor([[sign * 0.999 * 2.0**-23]], dtype=torch.float64)
        law.check(end)
        with pytest.raises(ValueError, match="x must lie on the grid"):
            law.check(end * 1.002)


def test_inputs_off_the_grid_are_refused():
    law = noise.RoundedGaussian(0.5)
    law.check(torch.arange(256).float()[None] / 255)
    for bad in (0.5, 1.5, -1 / 255):
        with pytest.raises(
            ValueError, match=r"x must lie on the grid k / 255 in \[0, 1\].*at index \(0, 1\)"
        ):
            law.check(torch.tensor([[0.0, bad]]))


def test_gradients_pass_through_the_rounding():
    x = (torch.arange(4).float() / 255).requires_grad_()
    noise.RoundedGaussian(0.5).perturb(x[None], torch.ones(3, 4)).sum().backward()
    assert torch.equal(x.grad, torch.full((4,), 3.0))


def test_a_law_that_pays_for_each_coordinate_assumes_no_number_of_them():
    law = noise.RoundedGaussian(0.25)
    assert law.radius(1.0, dim=150_528) < 0.85 * law.radius(1.0, dim=1)  # what a default would hide
    for asked in (
        lambda: law.radius(0.99),
        lambda: law.radius(0.99, 0.01),
        lambda: law.tradeoff(0.99, 0.1),
        lambda: law.probability(0.1),
    ):
        with pytest.raises(ValueError, match=r"dim must be the number of coordinates.*got None"):
            asked()


@given(probabilities(), st.none() | probabilities(), st.integers(1, 200_000))
def test_the_table_error_is_paid_at_both_ends(p_a, p_b, dim):
    law = noise.RoundedGaussian(0.25)
    value = law.radius(p_a, p_b, dim=dim)
    ideal = bounds.cohen_radius(p_a, p_b, sigma=0.25)
    assert value <= ideal
    paid = law.total_variation * dim
    if p_b is None and 0.5 + 2 * paid < p_a < 1:
        exact = mp.mpf(0.25) * (
            oracles.normal_quantile(mp.mpf(p_a) - paid)
            - oracles.normal_quantile(0.5 + mp.mpf(paid))
        )
        assert value <= exact
        assert value == pytest.approx(float(exact), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("sigma", [1e-6, 5e-324])
def test_noise_far_below_the_grid_rounds_to_none_at_once(sigma):
    law = noise.RoundedGaussian(sigma)
    assert law.sample((1000,), generator=torch.Generator().manual_seed(0)).tolist() == [0.0] * 1000
    assert law.total_variation == 2 * 2.0**-62


class SpotsTheCentre(torch.nn.Module):
    """Class 1 for numbers that float32 can hold: noise around the centre 0 is such a number, noise
    around a generic float64 number next to it is not. On real numbers this classifier is constant,
    almost everywhere."""

    def forward(self, x):
        held = x[:, 0].float().double() == x[:, 0]
        return torch.stack([(~held).double(), held.double()], dim=1)


def test_float_noise_can_be_recognised_and_rounded_noise_cannot():
    """The published attack idea in one dimension: float sampling certifies a radius that one
    neighbour refutes."""
    centre, neighbour = (
        torch.zeros(1, 1, dtype=torch.float64),
        torch.full((1, 1), 0.1234567890123, dtype=torch.float64),
    )
    floating = Smoother(SpotsTheCentre(), noise.Gaussian(0.5), 2)
    certificate = floating.certify(centre, n=10_000)
    assert int(certificate.label) == 1
    assert float(certificate.radius) > 1.0
    assert int(floating.predict(neighbour).label) == 0  # well inside

    rounded = Smoother(SpotsTheCentre(), noise.RoundedGaussian(0.5), 2)
    with pytest.raises(
        ValueError, match="x must lie on the grid"
    ):  # the neighbour is none that the statement means
        rounded.certify(neighbour)
    label = int(rounded.certify(centre, n=10_000).label)
    for k in range(256):  # and among those that it means, none is told apart
        assert (
            int(rounded.predict(torch.full((1, 1), k / 255, dtype=torch.float64), n=100).label)
            == label
        )


def test_norms_are_a_closed_set():
    with pytest.raises(
        ValueError, match=r"Sup.norm must be one of 'l1', 'l2', 'linf', 'none', got 'max'"
    ):

        class Sup(noise.Uniform):
            norm = "max"

    class Cube(noise.Uniform):
        norm = "linf"

    assert Cube(1.0).norm == "linf"


@pytest.mark.parametrize(
    ("sigma", "levels", "words"),
    [
        (0.25, 2**16 + 1, "levels must be at most 65536.*got 65537"),
        (0.25, 2**26, "levels must be at most 65536"),
        (26.0, 2**16, "sigma must be at most 25.5.* for 65536 levels.*got 26.0"),
        (1e300, 2, "sigma must be at most"),
    ],
)
def test_sums_that_float32_cannot_hold_are_refused(sigma, levels, words):
    with pytest.raises(ValueError, match=words):
        noise.RoundedGaussian(sigma, levels)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_finest_grid_is_exact(dtype):
    law = noise.RoundedGaussian(1e-4, 2**16)
    x = (torch.arange(2**16, dtype=dtype) / 65535)[None]
    law.check(x)
    law.check(torch.arange(2**16).to(dtype)[None] * (1 / 65535))
    drawn = law.sample((1, 2**16), generator=torch.Generator().manual_seed(0))
    whole = torch.arange(2**16).double() + drawn.double()
    assert torch.equal((law.perturb(x, drawn).double() * 65535).round(), whole)
    widest = noise.RoundedGaussian(25.0, 2**16)
    assert widest.clamp + widest.levels < 2**24
    assert 8 * 25.0 * 65535 > 2**23  # the limit is no looser than it must be


class Coarse(noise.RoundedGaussian):
    """One whose table errs by so much that what is paid for it stands out."""

    total_variation = 1e-3


def test_a_coarse_table_is_paid_at_both_ends_in_p_a_and_in_p_b():
    law, dim = Coarse(0.5), 7
    paid, a, b = mp.mpf(1e-3) * dim, mp.mpf(0.9), mp.mpf(0.2)

    def quantile(p):
        return oracles.normal_quantile(p)

    alone = mp.mpf(0.5) * (quantile(a - paid) - quantile(0.5 + paid))
    value = law.radius(0.9, dim=dim)
    assert value <= alone
    assert value == pytest.approx(float(alone), rel=1e-12)

    # The nearer of the ends of a level c that lies half way.
    c = mp.ncdf((quantile(a - paid) + quantile(b + paid)) / 2)
    first = law.sigma * (quantile(a - paid) - quantile(c + paid))
    second = law.sigma * (quantile(c - paid) - quantile(b + paid))
    both = law.radius(0.9, 0.2, dim=dim)
    assert both <= min(first, second) * (1 + mp.mpf("1e-14"))  # the level itself is rounded
    assert both == pytest.approx(float(min(first, second)), rel=1e-12)
    turned = law.radius(0.8, 0.1, dim=dim)  # where the other end is the nearer one
    assert turned == pytest.approx(both, rel=1e-12)

    moved = law.tradeoff(0.9, 0.3, dim=dim)
    exact = mp.ncdf(quantile(a - paid) - mp.mpf(0.3) / mp.mpf(0.5)) - paid
    assert moved <= exact
    assert moved == pytest.approx(float(exact), rel=1e-12)


def test_a_magnitude_is_the_number_of_entries_above_its_bits(monkeypatch):
    law = noise.RoundedGaussian(0.02)
    table = noise.rounded._magnitude_table(law.sigma, law.levels)
    top = 2**62
    low = [0, 1, top - 1, *(t for t in table), *(t - 1 for t in table)]
    bits = torch.tensor([*low, *(-1 - u for u in low)])  # all bits turned: the other sign
    assert bits.min() == -top
    ends = []

    def randint(low, high, shape, **_):
        ends.extend((low, high))
        return bits

    monkeypatch.setattr(torch, "randint", randint)
    above = [sum(t > u for t in table) for u in low]
    assert law.sample(bits.shape).tolist() == [*above, *(-m for m in above)]
    assert ends == [-top, top]


@pytest.mark.parametrize(("sigma", "entries"), [(1e-6, 0), (0.02, 46), (0.25, 579)])
def test_the_table_is_paid_by_its_length_and_for_its_tail(sigma, entries):
    law = noise.RoundedGaussian(sigma)
    assert len(noise.rounded._magnitude_table(sigma, 256)) == entries
    assert law.total_variation == (entries + 2) * 2.0**-62


@pytest.mark.parametrize("kind", [noise.Gaussian, noise.Uniform, noise.Laplace])
@pytest.mark.parametrize("scale", [1e-320, 1e-46, 1e-31, 1e31, 1e39])
def test_noise_that_float32_does_not_hold_is_not_drawn(kind, scale):
    """At 1e-46 it was 0, and a float64 model certified unanimously what it is not."""
    with pytest.raises(ValueError, match=r"must lie in \[1e-30, 1e\+30\] for noise that float32"):
        kind(scale).sample((2, 3))
    drawn = kind(1e30 if scale > 1 else 1e-30).sample((100,))
    assert drawn.isfinite().all()
    assert len(drawn.unique()) > 90


def test_close_votes_near_one_keep_their_digits():
    # The gap of a over b is that of 1 - b over 1 - a, and 1 - p is exact from a half on.
    law = noise.RoundedGaussian(1e-6)
    for a, b in ((1 - 2.0**-44, 1 - 2.0**-43), (0.9, 0.75), (1 - 2.0**-30, 0.5)):
        assert law.radius(a, b, dim=1) == law.radius(1 - b, 1 - a, dim=1) > 0


def test_noise_on_a_part_of_the_parameters_says_so():
    whole, part = noise.ParameterGaussian(0.1), noise.ParameterGaussian(0.1, partial=True)
    assert {*part.assumptions} - {*whole.assumptions} == {SAME_REST}


PIXELS = (noise.PixelGaussian, noise.PixelUniform, noise.PixelLaplace)


@pytest.mark.parametrize("kind", PIXELS)
def test_pixels_keep_to_their_bounds_ends_included(kind):
    for low, high in ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0)):
        law = kind(0.5, low, high)
        ends = torch.tensor([[low, high, (low + high) / 2]])
        law.check(ends)
        for beyond in (low - 0.01, high + 0.01):
            with pytest.raises(ValueError, match=r"must lie in the bounds .*at index \(0, 1\)"):
                law.check(torch.tensor([[low, beyond]]))
    assert kind(0.5).unit == "pixels"
    assert kind(0.5).radius(0.9) == kind.__mro__[2](0.5).radius(0.9)


@pytest.mark.parametrize("bounds_", [(1.0, 1.0), (1.0, 0.0), (-np.inf, 1.0), (0.0, np.inf)])
def test_bounds_of_pixels_are_finite_and_in_order(bounds_):
    with pytest.raises(ValueError, match="bounds must be"):
        noise.PixelGaussian(0.5, *bounds_)


def test_who_gives_bytes_is_told_to_divide_them():
    told = {}
    for name, law, value in (
        ("bytes", noise.PixelGaussian(0.5), 200.0),
        ("standardised", noise.PixelGaussian(0.5), 1.9),
        ("beyond bytes", noise.PixelGaussian(0.5, 0, 255), 300.0),
    ):
        with pytest.raises(ValueError, match="x must lie in the bounds") as caught:
            law.check(torch.tensor([[0.5, value]]))
        told[name] = "divide bytes by 255" in str(caught.value)
    assert told == {"bytes": True, "standardised": False, "beyond bytes": False}
