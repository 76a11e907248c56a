"""Every bound against enclosures of the exact value, over the whole space of its arguments.

A case is drawn from where rounding hurts: all magnitudes, both ends, neighbours, cancellation. The
quick form runs some hundreds a bound, the slow one a hundred thousand.
"""

# ruff: noqa: B023  (what binds a loop variable here is called within its turn)
import numpy as np
import pytest

pytest.importorskip("flint", reason="needs python-flint")

import balls
from balls import at_most, exact
from flint import arb

from rsfl import bounds, noise
from rsfl.bounds import _normal

QUICK, SLOW = 300, 100_000


# What arguments are drawn from -----------------------------------------------------------------


def magnitudes(rng, many, low, high):
    return 10.0 ** rng.uniform(low, high, many)


def mixed(rng, *kinds):
    """Entry by entry one of several arrays of equal length."""
    kinds = np.stack(kinds)
    return kinds[rng.integers(len(kinds), size=kinds.shape[1]), np.arange(kinds.shape[1])]


def probabilities(rng, many):
    """[0, 1] with its ends, the middle and their neighbours, down to the smallest floats."""
    steps = rng.integers(-4, 5, many)
    middle = 0.5 + steps * 2.0 ** -rng.integers(2, 54, many).astype(float)
    return np.clip(
        mixed(
            rng,
            rng.uniform(0, 1, many),
            magnitudes(rng, many, -17, 0),
            magnitudes(rng, many, -323.3, 0),
            1 - magnitudes(rng, many, -17, 0),
            middle,
            rng.choice([0.0, 5e-324, 2.0**-1022, 0.5, 1 - 2.0**-53, 1.0], many),
            rng.integers(0, 1001, many) / 1000,
        ),
        0,
        1,
    )


def pairs(rng, many):
    """Two probabilities: unrelated, close, or complementary."""
    a = probabilities(rng, many)
    near = np.clip(a * (1 - magnitudes(rng, many, -16.5, 0)), 0, 1)
    below = np.clip(np.nextafter(a, 0), 0, 1)
    b = mixed(rng, probabilities(rng, many), near, below, 1 - a)
    return np.maximum(a, b), np.minimum(a, b)


def scales(rng, many):
    return mixed(rng, magnitudes(rng, many, -3, 3), magnitudes(rng, many, -150, 150))


def votes(rng, many, largest=9.0):
    """(k, n): every part of the range, at every size."""
    n = np.maximum(1, 10.0 ** rng.uniform(0, largest, many)).astype(np.int64)
    few = (10.0 ** rng.uniform(0, 2.5, many)).astype(np.int64) - 1
    k = mixed(
        rng,
        (n * rng.random(many)).astype(np.int64),
        np.minimum(few, n),
        np.maximum(n - few, 0),
        n,
        np.zeros(many, dtype=np.int64),
    )
    return k, n


def levels(rng, many):
    return mixed(
        rng,
        magnitudes(rng, many, -12, -0.01),
        magnitudes(rng, many, -200, -0.01),
        1 - magnitudes(rng, many, -16, -0.3),
    )


def listed(*arrays):
    return zip(*(np.asarray(array).tolist() for array in arrays), strict=True)


# One check a bound: draw, compute at once, compare one by one ------------------------------------


def spread(p, relative=1e-9):
    """What a bound may be off: so much of the smaller of p and 1 - p, and four floats."""
    return relative * min(p, 1 - p) + 4 * np.spacing(p)


def check_clopper_pearson_lower(rng, many):
    k, n = votes(rng, many)
    alpha = levels(rng, many)
    for i, m, level, p in listed(k, n, alpha, bounds.clopper_pearson_lower(k, n, alpha)):
        case = (i, m, level, p)
        if i == 0:
            assert p == 0, case
            continue
        assert at_most(lambda: balls.binomial_at_least(i, m, arb(p)), lambda: arb(level)), case
        above = p + spread(p)
        if above < 1 and level <= 0.5:
            assert not at_most(
                lambda: balls.binomial_at_least(i, m, arb(above)), lambda: arb(level)
            ), case


def check_clopper_pearson_upper(rng, many):
    k, n = votes(rng, many)
    alpha = levels(rng, many)
    for i, m, level, p in listed(k, n, alpha, bounds.clopper_pearson_upper(k, n, alpha)):
        case = (i, m, level, p)
        if i == m:
            assert p == 1, case
            continue
        assert at_most(lambda: balls.binomial_at_most(i, m, arb(p)), lambda: arb(level)), case
        below = p - spread(p)
        if below > 0 and level <= 0.5:
            assert not at_most(
                lambda: balls.binomial_at_most(i, m, arb(below)), lambda: arb(level)
            ), case


def check_hoeffding(rng, many):
    mean, alpha = probabilities(rng, many), levels(rng, many)
    _, n = votes(rng, many, 15)
    low, high = bounds.hoeffding_lower(mean, n, alpha), bounds.hoeffding_upper(mean, n, alpha)
    for p, m, level, lo, hi in listed(mean, n, alpha, low, high):
        case = (p, m, level, lo, hi)

        def width():
            return (-arb(level).log() / (2 * m)).sqrt()

        assert lo == 0 or at_most(lambda: arb(lo), lambda: arb(p) - width()), case
        assert hi == 1 or at_most(lambda: arb(p) + width(), lambda: arb(hi)), case
        assert at_most(lambda: arb(p) - width() - 1e-14, lambda: arb(lo)), case
        assert at_most(lambda: arb(hi), lambda: arb(p) + width() + 1e-14), case


def thresholds(rng, many):
    p = probabilities(rng, many)
    return np.clip(p, 1e-300, 1 - 2.0**-53)


def check_log_wealth(rng, many):
    k, n = votes(rng, many, 7)
    p0 = mixed(rng, thresholds(rng, many), np.clip(k / n, 1e-12, 1 - 2.0**-53))
    for i, m, p, value in listed(k, n, p0, bounds.log_wealth(k, n, p0)):
        case = (i, m, p, value)
        if value > -np.inf:
            assert at_most(lambda: arb(value), lambda: balls.log_wealth(i, m, arb(p))), case
        if i > m * p:  # where it can decide it is close; elsewhere a tail may be cut
            assert at_most(
                lambda: balls.log_wealth(i, m, arb(p)), lambda: arb(value) + 1e-6 * (1 + abs(value))
            ), case


def check_sequential_decision(rng, many):
    k, n = votes(rng, many, 5)
    p0 = np.clip(k / n + rng.normal(0, 4, many) / np.sqrt(n), 1e-9, 1 - 1e-9)
    for i, m, p in listed(k, n, p0):
        level = float(levels(rng, 1)[0])
        decision = bounds.sequential_decision(i, m, p, level)
        case = (i, m, p, level, decision)
        if decision == 1:
            assert at_most(lambda: -arb(level).log(), lambda: balls.log_wealth(i, m, arb(p))), case
        if decision == -1:
            assert at_most(
                lambda: -arb(level).log(), lambda: balls.log_wealth(m - i, m, 1 - arb(p))
            ), case


def check_top_two(rng, many):
    k, n = votes(rng, many, 9)
    near = n // 2 + np.rint(rng.uniform(0, 12, many) * np.sqrt(n)).astype(np.int64)
    a = np.minimum(mixed(rng, k, near), n)
    b = n - a
    for one, two, value in listed(a, b, bounds.top_two_p_value(a, b)):
        case = (one, two, value)
        high, m = max(one, two), one + two
        if one == two or high == m:
            assert value == (1 if one == two else max(2.0 ** (1 - m), 5e-324)), case
            continue

        def p_value():
            return 2 * balls.binomial_at_least(high, m, arb(0.5))

        assert value == 1 or at_most(p_value, lambda: arb(value)), case
        assert value < 1e-190 or at_most(lambda: arb(value), lambda: p_value() * (1 + 1e-6)), case


def check_quantiles(rng, many):
    p = probabilities(rng, many)
    for q, low, high in listed(p, _normal.quantile_below(p), _normal.quantile_above(p)):
        if q in (0, 1):
            assert low == high == (np.inf if q else -np.inf)
            continue
        case = (q, low, high)
        assert at_most(lambda: arb(low), lambda: balls.quantile(arb(q))), case
        assert at_most(lambda: balls.quantile(arb(q)), lambda: arb(high)), case
        if q >= 1e-300:
            assert high - low <= 1e-12 * max(abs(low), 1e-300), case


def gaussian(a, b):
    return (balls.quantile(a) - balls.quantile(b)) / 2


def laplace(a, b):
    one, two = (a / b).log() / 2, -(1 - a + b).log()
    return one.max(two)


RADII = {
    "cohen": (bounds.cohen_radius, "sigma", gaussian),
    "uniform": (bounds.uniform_radius, "half_width", lambda a, b: a - b),
    "laplace": (bounds.laplace_radius, "scale", laplace),
}


def check_radius(name, rng, many):
    function, scale, formula = RADII[name]
    a, b = pairs(rng, many)
    s = scales(rng, many)
    one_sided = 1 - a
    both = function(a, b, **{scale: s})
    alone = function(a, **{scale: s})
    for p, q, width, value, single in listed(a, b, s, both, alone):
        for other, r in ((arb(q), value), (1 - arb(p), single)):
            case = (p, other, width, r)
            assert r >= 0
            if arb(p) <= other:
                assert r == 0, case
            elif np.isinf(r):
                assert name != "uniform", case
                assert other == 0 or (p == 1 and name == "cohen"), case
            elif other > 0 and p < 1:
                assert at_most(lambda: arb(r), lambda: arb(width) * formula(arb(p), other)), case
    assert one_sided.shape == a.shape


def check_tightness(name, rng, many):
    """Within 1e-9 where nothing is smaller than 1e-290."""
    function, scale, formula = RADII[name]
    a, b = pairs(rng, many)
    keep = (a > b) & (b > 1e-290) & (a < 1)
    a, b = a[keep], b[keep]
    for p, q, value in listed(a, b, function(a, b, **{scale: 1.0})):
        assert at_most(lambda: formula(arb(p), arb(q)) * (1 - 1e-9), lambda: arb(value) + 1e-300), (
            p,
            q,
            value,
        )


def check_linf(rng, many):
    r, d = scales(rng, many), (10.0 ** rng.uniform(0, 9, many)).astype(np.int64)
    for radius, dim, value in listed(r, d, bounds.linf_radius(r, d)):
        assert at_most(lambda: arb(value), lambda: arb(radius) / arb(dim).sqrt()), (radius, dim)
        assert value >= radius / dim**0.5 * (1 - 1e-14)


def lecuyer(a, b, beta):
    room = a - (2 * beta).exp() * b
    return beta / (2 * (arb(1.25) * (1 + beta.exp()) / room).log()).sqrt()


def li(a, b, log_order):
    c = log_order.exp()
    mean = ((a**-c + b**-c) / 2) ** (-1 / c)
    return (-2 / (1 + c) * (1 - a - b + 2 * mean).log()).sqrt()


def check_older(name, rng, many):
    """Below the supremum: below the formula at one point, which a search in balls finds."""
    function = {"lecuyer": bounds.lecuyer_radius, "li": bounds.li_radius}[name]
    formula = {"lecuyer": lecuyer, "li": li}[name]
    a, b = pairs(rng, many)
    for p, q, value in listed(a, b, function(a, b, sigma=1.0)):
        case = (p, q, value)
        if p <= q:
            assert value == 0, case
        if not 0 < value < np.inf or q == 0:
            continue
        with balls.precision(1200):
            # An upper end is no point of the interval; inside it the formula is defined.
            high = arb(1).min((arb(p) / arb(q)).log() / 2) if name == "lecuyer" else arb(12.0)
            low = arb(0) if name == "lecuyer" else arb(-30.0)

            def at(t, low=low, high=high, p=p, q=q):
                height = formula(arb(p), arb(q), low + (high - low) * arb(t))
                return height if height.is_finite() else arb(0)

            assert beaten(at, value), case


def beaten(at, value):
    """Whether the function is at least ``value`` somewhere in (0, 1): ternary search from a
    grid."""
    grid = np.linspace(0, 1, 66)[1:-1]
    heights = [at(t) for t in grid]
    best = max(range(len(grid)), key=lambda i: float(heights[i].mid()))
    if heights[best] >= arb(value):
        return True
    low = grid[best - 1] if best else 0.0
    high = grid[best + 1] if best + 1 < len(grid) else 1.0
    for _ in range(90):
        one, two = low + (high - low) / 3, high - (high - low) / 3
        at_one, at_two = at(one), at(two)
        if at_one >= arb(value) or at_two >= arb(value):
            return True
        low, high = (one, high) if float(at_one.mid()) < float(at_two.mid()) else (low, two)
    return False


def kl(a, b):
    return -(1 - (a.sqrt() - b.sqrt()) ** 2).log()


def check_kl_budget(rng, many):
    a, b = pairs(rng, many)
    for p, q, both, alone in listed(a, b, bounds.kl_budget(a, b), bounds.kl_budget(a)):
        for other, value in ((arb(q), both), (1 - arb(p), alone)):
            case = (p, other, value)
            if arb(p) <= other:
                assert value == 0, case
            elif np.isinf(value):
                assert p == 1, case
                assert other == 0, case
            elif p < 1 or other > 0:
                assert at_most(lambda: arb(value), lambda: kl(arb(p), other)), case
                assert p < 1e-290 or at_most(
                    lambda: kl(arb(p), other) * (1 - 1e-9), lambda: arb(value) + 1e-300
                ), case


def shrinking(rho, sigma):
    return (arb(rho) / arb(sigma) / arb(2).sqrt()).erf() if np.isfinite(rho) else arb(1)


def check_contraction(rng, many):
    rho = mixed(rng, scales(rng, many), magnitudes(rng, many, -323.3, 308), np.zeros(many))
    sigma = mixed(rng, scales(rng, many), magnitudes(rng, many, -307, 308))
    for r, s, value in listed(rho, sigma, bounds.contraction(rho, sigma)):
        assert value <= 1
        assert value == 1 or at_most(lambda: shrinking(r, s), lambda: arb(value)), (r, s, value)
        assert value <= 1e-280 or value <= float(shrinking(r, s).mid()) * (1 + 1e-12), (r, s, value)
    for r, value in listed(rho, bounds.logistic_lipschitz(rho)):
        with balls.precision(2500):
            assert (1 + (1 + arb(r)) ** 2).sqrt() <= exact(value), (r, value)


def attackers(rng):
    """One to three, of sizes that cancel in the product of their factors."""
    far = rng.uniform(0, 250) * rng.integers(2)
    return [
        bounds.Attacker(
            weight=float(10 ** -(far + rng.uniform(0, 3))),
            scale=float(10 ** (far + rng.uniform(-2, 3))),
            steps=int(10 ** rng.uniform(0, 3)),
            lr=float(10 ** rng.uniform(-4, 1)),
            poison_fraction=float(10 ** -rng.uniform(0, 3)),
        )
        for _ in range(rng.integers(1, 4))
    ]


def divergence(norms, who, lipschitz, sigma, later):
    total = arb(0)
    for norm, one in zip(norms, who, strict=True):
        factors = (one.weight, one.scale, float(one.steps), one.lr, one.poison_fraction)
        reach = arb(lipschitz) * arb(norm)
        for factor in factors:
            reach *= arb(factor)
        total += reach**2
    total = 2 * len(who) * total / arb(sigma) ** 2
    for rho, s in later:
        total *= shrinking(rho, s)
    return total


def check_crfl(rng, many):
    for _ in range(many):
        who = attackers(rng)
        lipschitz, sigma = float(scales(rng, 1)[0]), float(scales(rng, 1)[0])
        later = [
            (float(10 ** rng.uniform(-3, 1)), float(10 ** rng.uniform(-3, 1)))
            for _ in range(rng.integers(0, 6))
        ]
        norms = magnitudes(rng, len(who), -5, 5).tolist()
        settings = {"attackers": who, "lipschitz": lipschitz, "sigma": sigma, "later": later}
        case = (norms, settings)
        value = bounds.crfl_divergence(norms, **settings)
        assert at_most(
            lambda: divergence(norms, who, lipschitz, sigma, later), lambda: exact(value)
        ), (case, value)
        a, b = (float(p[0]) for p in pairs(rng, 1))
        radius = bounds.crfl_radius(a, b, **settings)
        if a <= b:
            assert radius == 0, (case, a, b)
        elif a == 1 and b == 0:
            assert radius == np.inf
        else:
            ones = [1.0] * len(who)
            assert radius < np.inf
            assert at_most(
                lambda: arb(radius) ** 2 * divergence(ones, who, lipschitz, sigma, later),
                lambda: kl(arb(a), arb(b)),
            ), (case, a, b, radius)


def check_linear(rng, many):
    for _ in range(many):
        classes = int(rng.choice([2, 3, 10]))
        sigma, norm = (float(10 ** rng.uniform(-2, 2)) for _ in range(2))
        logits = rng.normal(0, 10 ** rng.uniform(-3, 1.5), classes) * sigma * norm
        logits = np.where(rng.random(classes) < 0.1, logits[0], logits)
        lower, upper = bounds.linear_vote_bounds([logits], [norm], sigma=sigma)
        chances = linear_chances(logits, sigma, norm)
        best = arb(logits.max())
        for mu, low, high, chance in zip(logits, lower[0], upper[0], chances, strict=True):
            case = (logits, sigma, norm, mu, low, high, chance)
            assert low == 0 or arb(low) <= chance, case
            # Below the digits of the enclosure: nobody wins more often than the duel with the best.
            duel = balls.normal_above((best - arb(float(mu))) / (sigma * arb(norm)) / arb(2).sqrt())
            assert chance <= arb(high) or duel <= arb(high), case
        radius = bounds.margin_radius([logits], [norm])[0]
        first, second = sorted(logits.tolist())[::-1][:2]
        margin = (arb(first) - arb(second)) / arb(norm) / arb(2).sqrt()
        assert arb(radius) <= margin, (logits, norm, radius)


def linear_chances(logits, sigma, norm):
    """Enclosures of P[class c is largest], by the trapezoid rule with an error bound of its own.

    The integrand is entire: on the line of height y it is at most exp(y^2 / 2) pdf(u) times
    (1 + y exp(y^2/2))^(K-1) in absolute value.
    """
    with balls.precision(100):
        step, height, reach = arb(1) / 6, arb(2.5), 10
        scores = [arb(float(mu)) / (arb(sigma) * arb(norm)) for mu in logits]
        most = (1 + height * (height**2 / 2).exp()) ** (len(logits) - 1)
        error = 2 * (height**2 / 2).exp() * most / ((2 * arb.pi() * height / step).exp() - 1)
        error += 2 * balls.normal_above(arb(reach - step))  # of the nodes that are left out
        shared = {}  # by node: the chance that all are below it
        chances = []
        for own in scores:
            middle, total = round(6 * float(own.mid())), arb(0)
            for i in range(middle - 6 * reach - 1, middle + 6 * reach + 2):
                if i not in shared:
                    shared[i] = arb(1)
                    for other in scores:
                        shared[i] *= balls.normal_above(other - i * step)
                z = i * step - own
                total += (-z * z / 2).exp() * shared[i] / balls.normal_above(-z)
            total *= step / (2 * arb.pi()).sqrt()
            chances.append(total + error.upper() * arb(0, 1))
        return chances


def check_voting(rng, many):
    for _ in range(many):
        votes_ = rng.integers(0, 2 + rng.integers(60), rng.integers(2, 7)) + 1
        label, clients = bounds.group_votes(votes_)
        assert label == votes_.tolist().index(votes_.max())
        n = votes_.tolist()
        most = min((n[label] - n[b] - (b < label)) // 2 for b in range(len(n)) if b != label)
        assert clients == most


def check_rounded(rng, many):
    """Its radius is below the exact one for laws that are ``total_variation`` apart."""
    laws = [noise.RoundedGaussian(s, levels) for s in (0.002, 0.25, 2.0) for levels in (2, 256)]
    for i in range(many):
        law = laws[i % len(laws)]
        dim = int(10 ** rng.uniform(0, 7))
        a, b = (float(p[0]) for p in pairs(rng, 1))
        paid = arb(law.total_variation) * dim

        def alone(a=a, law=law, paid=paid):
            p, q = arb(a) - paid, arb(0.5) + paid
            return arb(law.sigma) * (balls.quantile(p) - balls.quantile(q))

        value = law.radius(a, dim=dim)
        case = (law, dim, a, b, value)
        if value > 0:
            assert at_most(lambda: arb(value), alone), case
        both = law.radius(a, b, dim=dim)
        if both > 0:
            # The best level between the two: both distances shrink or grow with it.
            assert at_most(lambda: arb(both), lambda: best_split(a, b, law, paid)), (case, both)


def best_split(a, b, law, paid):
    """sup over c of min(ppf(a - t) - ppf(c + t), ppf(c - t) - ppf(b + t)) sigma, from above."""
    top, bottom = balls.quantile(arb(a) - paid), balls.quantile(arb(b) + paid)
    low, high = arb(b), arb(a)
    for _ in range(200):
        c = (low + high) / 2
        c = c.mid()
        first, second = top - balls.quantile(c + paid), balls.quantile(c - paid) - bottom
        low, high = (c, high) if second < first else (low, c)
    return arb(law.sigma) * first.max(second)


CHECKS = {
    "clopper_pearson_lower": check_clopper_pearson_lower,
    "clopper_pearson_upper": check_clopper_pearson_upper,
    "hoeffding": check_hoeffding,
    "log_wealth": check_log_wealth,
    "sequential_decision": check_sequential_decision,
    "top_two_p_value": check_top_two,
    "quantiles": check_quantiles,
    "linf_radius": check_linf,
    "kl_budget": check_kl_budget,
    "contraction": check_contraction,
    "crfl": check_crfl,
    "voting": check_voting,
    "linear": check_linear,
    "rounded": check_rounded,
    **{f"{name}_radius": lambda r, m, n=name: check_radius(n, r, m) for name in RADII},
    **{f"{name}_tightness": lambda r, m, n=name: check_tightness(n, r, m) for name in RADII},
    "lecuyer_radius": lambda rng, many: check_older("lecuyer", rng, many),
    "li_radius": lambda rng, many: check_older("li", rng, many),
}
QUICKER = {"linear": 40}  # cases of the quick form where one takes long


@pytest.mark.parametrize("name", CHECKS)
def test_on_the_safe_side_of_the_enclosure(name):
    CHECKS[name](np.random.default_rng(1), QUICKER.get(name, QUICK))


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_on_the_safe_side_of_a_hundred_thousand_enclosures(name):
    for seed in range(100, 100 + SLOW // 1000):
        CHECKS[name](np.random.default_rng(seed), 1000)
