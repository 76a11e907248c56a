"""Aggregation rules against brute force and a high-precision solver, and on planted outliers."""

from itertools import combinations

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rsfl import fed

RULES = [
    fed.Mean(),
    fed.GeometricMedian(),
    fed.CoordinateMedian(),
    fed.TrimmedMean(2),
    fed.Krum(2),
    fed.Krum(2, 3),
]


def rows_and_weights(seed, n, d, equal=False):
    draw = np.random.default_rng(seed)
    sizes = np.ones(n) if equal else draw.integers(1, 20, n)
    return torch.from_numpy(draw.normal(size=(n, d))), torch.from_numpy(sizes / sizes.sum())


cases = given(seed=st.integers(0, 10**6), n=st.integers(5, 9), d=st.integers(1, 6))


@cases
def test_mean(seed, n, d):
    models, weights = rows_and_weights(seed, n, d)
    value, final = fed.Mean()(models, weights)
    np.testing.assert_allclose(
        value, np.average(models.numpy(), axis=0, weights=weights.numpy()), atol=1e-14
    )
    assert final == tuple(weights.tolist())


@cases
def test_coordinate_median_minimises_the_weighted_distance(seed, n, d):
    models, weights = rows_and_weights(seed, n, d)
    value = fed.CoordinateMedian()(models, weights).value

    def cost(z):
        return (weights[:, None] * (models - z).abs()).sum(dim=0)

    best = (
        torch.stack([cost(row) for row in models]).min(dim=0).values
    )  # the minimum is at one of the points
    assert (cost(value) <= best + 1e-12).all()


@cases
def test_coordinate_median_is_the_ordinary_one_for_equal_weights(seed, n, d):
    models, weights = rows_and_weights(seed, n, d, equal=True)
    np.testing.assert_allclose(
        fed.CoordinateMedian()(models, weights).value, np.median(models, axis=0), atol=1e-15
    )


@given(seed=st.integers(0, 10**6), n=st.integers(5, 9), trim=st.integers(0, 2))
def test_trimmed_mean(seed, n, trim):
    models, weights = rows_and_weights(seed, n, 4)
    value = fed.TrimmedMean(trim)(models, weights).value
    for j in range(4):
        kept = sorted(range(n), key=lambda i: float(models[i, j]))[trim : n - trim]
        assert float(value[j]) == pytest.approx(
            np.average(models[kept, j], weights=weights[kept]), abs=1e-12
        )


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(5, 9),
    attackers=st.integers(0, 2),
    select=st.integers(1, 4),
)
def test_krum(seed, n, attackers, select):
    models, weights = rows_and_weights(seed, n, 3)
    value, final = fed.Krum(attackers, select)(models, weights)
    scores = []
    for i in range(n):
        others = [j for j in range(n) if j != i]
        near = combinations(others, n - attackers - 2)
        scores.append(
            min(sum(float((models[i] - models[j]).square().sum()) for j in group) for group in near)
        )
    chosen = sorted(np.argsort(scores)[:select])
    np.testing.assert_allclose(
        value, np.average(models[chosen], axis=0, weights=weights[chosen]), atol=1e-12
    )
    assert [i for i, w in enumerate(final) if w > 0] == chosen


def exact_geometric_median(models, weights):
    """A row that satisfies the optimality condition, else Newton's method at 40 digits; with which
    of them it was."""
    with mpmath.workdps(40):
        points = [mpmath.matrix(row) for row in models.tolist()]
        for k, point in enumerate(points):
            pull = mpmath.zeros(len(point), 1)
            for other, weight in zip(points, weights.tolist(), strict=True):
                if other is not point:
                    pull += weight * (point - other) / mpmath.norm(point - other)
            if mpmath.norm(pull) <= float(weights[k]):
                return models[k].numpy(), True
        z = mpmath.matrix(fed.GeometricMedian(iterations=20)(models, weights).value.tolist())
        for _ in range(60):
            gradient, hessian = mpmath.zeros(len(z), 1), mpmath.zeros(len(z))
            for point, weight in zip(points, weights.tolist(), strict=True):
                away = z - point
                r = mpmath.norm(away)
                gradient += weight * away / r
                hessian += weight * (mpmath.eye(len(z)) / r - away * away.T / r**3)
            step = mpmath.lu_solve(hessian, gradient)
            z -= step / (1 + mpmath.norm(step))
            if mpmath.norm(step) < mpmath.mpf(10) ** -30:
                return np.array([float(v) for v in z]), False
    raise AssertionError("Newton's method did not converge")


@pytest.mark.parametrize("seed", range(12))
def test_geometric_median_against_a_high_precision_solver(seed):
    models, weights = rows_and_weights(seed, 8, 3)
    value, final = fed.GeometricMedian(iterations=2000, tolerance=1e-14)(models, weights)
    exact, at_a_row = exact_geometric_median(models, weights)
    np.testing.assert_allclose(value, exact, atol=1e-6 if at_a_row else 1e-9)
    np.testing.assert_allclose(value, torch.tensor(final, dtype=torch.float64) @ models, atol=1e-12)
    np.testing.assert_allclose(fed.GeometricMedian()(models, weights).value, exact, atol=1e-5)


def test_geometric_median_of_a_majority_is_its_point():
    models = torch.tensor([[1.0, 2.0], [5.0, 5.0], [9.0, -3.0]], dtype=torch.float64)
    value, final = fed.GeometricMedian()(models, torch.tensor([0.6, 0.2, 0.2], dtype=torch.float64))
    np.testing.assert_allclose(value, [1.0, 2.0], atol=1e-6)
    assert final[0] > 1 - 1e-6


def test_equal_sizes_do_not_collapse_in_the_geometric_median():
    models = torch.arange(1.0, 6.0, dtype=torch.float64)[:, None]
    value = fed.GeometricMedian()(models, torch.full((5,), 0.2, dtype=torch.float64)).value
    assert float(value) == pytest.approx(3.0, abs=1e-6)


@pytest.mark.parametrize("rule", RULES[1:], ids=repr)
@pytest.mark.parametrize("where", [1e6, -1e3, 1e150])
def test_planted_outliers_do_not_carry_robust_rules_away(rule, where):
    honest = torch.randn(8, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    models = torch.cat([honest[:4], torch.full((2, 5), where, dtype=torch.float64), honest[4:]])
    weights = torch.full((10,), 0.1, dtype=torch.float64)
    assert float((rule(models, weights).value - honest.mean(dim=0)).norm()) < 3
    assert float(fed.Mean()(models, weights).value.norm()) > 100


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_every_rule_is_pure_exact_on_agreement_and_moves_with_its_rows(rule):
    models, weights = rows_and_weights(3, 9, 4)
    kept = models.clone(), weights.clone()
    value = rule(models, weights).value
    assert (models == kept[0]).all()
    assert (weights == kept[1]).all()
    assert (rule(models, weights).value == value).all()
    np.testing.assert_allclose(rule(2 * models + 3, weights).value, 2 * value + 3, atol=1e-6)
    same = models[:1].repeat(9, 1)
    np.testing.assert_allclose(rule(same, weights).value, same[0], atol=1e-15)
    assert rule(models.float(), weights).value.dtype == torch.float64


def test_sums_run_in_float64_over_float32_rows():
    models = torch.tensor([[1e8], [1.0], [-1e8]], dtype=torch.float32)
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    assert float(fed.Mean()(models, third).value) == pytest.approx(1 / 3, abs=1e-7)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda m, w: fed.Mean()(m[0], w), "models"),
        (lambda m, w: fed.Mean()(m, w[:2]), "weights"),
        (lambda m, w: fed.Mean()(m, 2 * w), "weights"),
        (lambda m, w: fed.TrimmedMean(3)(m, w), "trim"),
        (lambda m, w: fed.Krum(3)(m, w), "Krum"),
        (lambda m, w: fed.Krum(1, 6)(m, w), "select"),
        (lambda m, w: fed.GeometricMedian(smoothing=0.0), "smoothing"),
    ],
)
def test_bad_arguments_are_named(call, named):
    models, weights = rows_and_weights(0, 5, 2)
    with pytest.raises(ValueError, match=named):
        call(models, weights)
