from dataclasses import replace

import matplotlib
import numpy as np
import pytest
import torch
from models import MODELS
from scipy import stats

from rsfl import deform, noise, runs
from rsfl.smooth import Certificate, GaussianSmoother

matplotlib.use("Agg")

MODEL = MODELS["threshold"]
X = torch.tensor([[-0.4], [0.1], [0.5], [0.8], [1.6]])
LABELS = [0, 0, 0, 0, 1]  # the fourth is wrong, the third abstains


@pytest.fixture(scope="module")
def certificate():
    return GaussianSmoother(MODEL, 0.5, 2).certify(X, n=1000)


def test_accuracy_counts_correct_radii_of_at_least_r(certificate):
    radius = certificate.radius.tolist()
    assert certificate.label.tolist() == [0, 0, -1, 1, 1]
    assert runs.certified_accuracy(certificate, LABELS, 0.0) == 0.6
    assert runs.certified_accuracy(certificate, LABELS, radius[1]) == 0.6
    np.testing.assert_array_equal(
        runs.certified_accuracy(certificate, LABELS, [np.nextafter(radius[1], 1), 100.0]),
        [0.4, 0.0],
    )
    assert runs.certified_rate(certificate, 0.0) == 0.8
    at = GaussianSmoother(MODEL, 0.5, 2).certify_at(X, 0.3)
    assert runs.certified_rate(at, 0.3) == 0.6  # what was decided at a radius counts at that radius
    assert runs.average_certified_radius(certificate, LABELS) == pytest.approx(
        (radius[0] + radius[1] + radius[4]) / 5
    )


def test_curves_fall(certificate):
    grid = np.linspace(0, 3, 50)
    for curve in (
        runs.certified_accuracy(certificate, LABELS, grid),
        runs.certified_rate(certificate, grid),
    ):
        assert (np.diff(curve) <= 0).all()
        assert curve[-1] == 0


def test_plot_draws_what_the_table_says(certificate):
    axes = runs.plot_certified_accuracy(
        {"a": (certificate, LABELS), "b": (certificate[:2], LABELS[:2])}, title="t"
    )
    line = axes.get_lines()[0]
    np.testing.assert_array_equal(
        line.get_ydata(), runs.certified_accuracy(certificate, LABELS, line.get_xdata())
    )
    assert axes.get_xlabel() == "l2 radius (input units)"
    assert axes.get_ylabel() == "certified accuracy"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert line.get_linestyle() != axes.get_lines()[1].get_linestyle()
    matplotlib.pyplot.close("all")


def published(hits, size):
    """A test set of which the first ``hits`` are right, at radius 1."""
    label = torch.tensor([1] * hits + [-1] * (size - hits))
    radius = torch.where(label == 1, 1.0, 0.0).double()
    return runs.Published(torch.arange(size), label, radius, torch.zeros(size)), [1] * size


def test_an_abstention_is_never_right():
    said, _ = published(2, 3)
    assert runs.certified_accuracy(said, [1, 1, -1], 0.0) == 2 / 3


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_the_interval_covers(level):
    size = 40
    low, high = np.transpose(
        [runs.accuracy_interval(*published(k, size), 0.5, level=level) for k in range(size + 1)]
    )
    for p in np.linspace(0, 1, 101):
        weight = stats.binom.pmf(np.arange(size + 1), size, p)
        assert weight[(low <= p) & (p <= high)].sum() >= level - 1e-12
    assert high[0] < 0.2
    assert low[-1] > 0.8
    np.testing.assert_array_equal(runs.accuracy_interval(*published(20, 40), [2.0])[0], [0.0])


@pytest.mark.parametrize("size", [1, 10, 500, 10_000])
@pytest.mark.parametrize("rho", [0.001, 0.05])
@pytest.mark.parametrize("alpha", [0.001, 0.1])
def test_high_probability_accuracy_takes_off_the_binomial_quantile(size, rho, alpha):
    said = published(size, size)
    wrong = round((1 - runs.high_probability_accuracy(*said, 0.5, alpha=alpha, rho=rho)) * size)
    assert stats.binom.sf(wrong, size, alpha) <= rho
    assert wrong == 0 or stats.binom.sf(wrong - 1, size, alpha) >= rho * (1 - 1e-9)
    assert runs.high_probability_accuracy(*published(0, size), 0.5, alpha=alpha, rho=rho) == 0
    np.testing.assert_array_equal(
        runs.high_probability_accuracy(*said, [2.0, 3.0], alpha=alpha, rho=rho), [0.0, 0.0]
    )


def test_the_closed_form_in_use_takes_off_too_little():
    def published_form(m, alpha, rho):
        log = np.log(1 / rho)
        return alpha + np.sqrt(alpha * (1 - alpha) * log / m) + log / (3 * m)

    for m, wrong in ((500, False), (10_000, True), (1_000_000, True)):
        fails = stats.binom.sf(np.floor(m * published_form(m, 0.001, 0.001)), m, 0.001)
        assert (fails > 0.001) == wrong


def test_shared_noise_has_no_interval(certificate):
    class Shared(noise.Gaussian):
        space = "parameters"

    shared = replace(certificate, law=Shared(0.5))
    for call in (
        runs.accuracy_interval,
        lambda *a: runs.high_probability_accuracy(*a, alpha=0.001),
    ):
        with pytest.raises(ValueError, match="noise of their own"):
            call(shared, LABELS, 0.0)


def test_batches_that_share_their_noise_make_no_joint_statement(tmp_path):
    """A loop over a loader without index= gives every batch the draws of the first one."""
    smoother = GaussianSmoother(MODEL, 0.5, 2)
    alike = Certificate.cat([smoother.certify(x[None], n=500) for x in X])
    apart = Certificate.cat([smoother.certify(x[None], n=500, index=[i]) for i, x in enumerate(X)])
    assert torch.equal(apart.counts, smoother.certify(X, n=500).counts)
    for call in (
        runs.accuracy_interval,
        runs.high_probability_accuracy,
        lambda *pair: runs.write_tsv(tmp_path / "log.tsv", *pair[:2]),
    ):
        call(apart, LABELS, 0.0)
        with pytest.raises(
            ValueError,
            match=r"noise of their own, got 5 with the index 0: .* certify\(..., index=...\)",
        ):
            call(alike, LABELS, 0.0)
    assert runs.certified_accuracy(alike, LABELS, 0.0) >= 0  # no statement about all of them
    published = runs.Published(
        torch.tensor([3, 4, 4]), torch.ones(3), torch.ones(3), torch.zeros(3)
    )
    with pytest.raises(ValueError, match="got 2 with the index 4"):
        runs.accuracy_interval(published, [1, 1, 1], 0.0)


def test_shared_draws_would_break_the_joint_bound():
    """Why: one input, twenty times. Its radius is exactly 1, so every larger one is an error of a
    certificate."""
    smoother, x = GaussianSmoother(MODELS["threshold"], 1.0, 2), torch.tensor([[-0.5]])
    beyond = {"shared": 0, "own": 0}
    for seed in range(100):
        same = smoother.certify(x, n=100, alpha=0.05, seed=seed)
        own = smoother.certify(x.expand(20, 1), n=100, alpha=0.05, seed=seed)
        # 20 certificates at .05 of which more than seven are wrong: a chance of 3e-5 if they are
        # independent
        beyond["shared"] += 20 * int((same.radius > 1).sum()) > 7
        beyond["own"] += int((own.radius > 1).sum()) > 7
    assert beyond["shared"] > 0 == beyond["own"]


def test_alpha_is_that_of_the_certificate_and_never_less():
    made = GaussianSmoother(MODEL, 0.5, 2).certify(X, n=1000, alpha=0.2)
    share = runs.high_probability_accuracy(made, LABELS, 0.0)
    assert share == runs.high_probability_accuracy(made, LABELS, 0.0, alpha=0.2)
    assert share < runs.certified_accuracy(made, LABELS, 0.0)
    assert runs.high_probability_accuracy(made, LABELS, 0.0, alpha=0.5) <= share
    with pytest.raises(
        ValueError,
        match=r"alpha must be at least 0.2, with which the certificates were made, got 0.001",
    ):
        runs.high_probability_accuracy(made, LABELS, 0.0, alpha=0.001)
    with pytest.raises(ValueError, match="alpha must be given for a published test set"):
        runs.high_probability_accuracy(*published(3, 3), 0.5)
    assert runs.high_probability_accuracy(*published(3, 3), 0.5, alpha=1e-9) == 1


def test_what_differs_in_kind_has_no_envelope(certificate):
    def under(law):
        return replace(certificate, law=law), LABELS

    pair = under(noise.Gaussian(0.5))
    assert runs.envelope(
        {"a": pair, "b": under(noise.RoundedGaussian(0.5)), "c": (published(5, 5)[0], LABELS)}, 0.0
    )
    for other, words in (
        (under(noise.Laplace(0.5)), "one norm and unit"),
        (under(deform.Translation(0.5)), "one norm and unit"),
        ((pair[0][:4], LABELS[:4]), r"one test set, got others, of \[5, 4\] inputs"),
        ((pair[0], [1, 1, 1, 1, 1]), r"one test set, got others, of \[5, 5\] inputs"),
    ):
        with pytest.raises(ValueError, match=f"curves must .*{words}"):
            runs.envelope({"a": pair, "b": other}, 0.0)
    shifts = {"a": under(deform.Translation(0.5)), "b": under(deform.PixelFlow(0.5))}
    assert shifts["a"][0].unit == shifts["b"][0].unit
    for call in (lambda curves: runs.envelope(curves, 0.0), runs.plot_certified_accuracy):
        with pytest.raises(
            ValueError, match=r"curves must share one space, got \['PixelFlow', 'Translation'\]"
        ):
            call(shifts)
    with pytest.raises(ValueError, match="one test set"):
        runs.plot_certified_accuracy({"a": pair, "b": (pair[0][:4], LABELS[:4])}, envelope=True)
    matplotlib.pyplot.close("all")


def test_the_envelope_is_the_best_of_all(certificate):
    other = GaussianSmoother(MODEL, 0.25, 2).certify(X, n=1000)
    curves = {"a": (certificate, LABELS), "b": (other, LABELS)}
    grid = np.linspace(0, 2, 40)
    both = [runs.certified_accuracy(*pair, grid) for pair in curves.values()]
    np.testing.assert_array_equal(runs.envelope(curves, grid), np.max(both, axis=0))
    axes = runs.plot_certified_accuracy(curves, envelope=True, radius=2.0)
    line = axes.get_lines()[0]
    assert line.get_label() == "upper envelope"
    np.testing.assert_array_equal(line.get_ydata(), runs.envelope(curves, line.get_xdata()))
    matplotlib.pyplot.close("all")


def test_clients_make_a_mean_and_a_band(certificate):
    clients = [(certificate, LABELS), (certificate, [1] * 5), (certificate, [0] * 5)]
    axes = runs.plot_certified_accuracy({"personal": clients, "global": (certificate, LABELS)})
    mean = axes.get_lines()[0]
    grid = mean.get_xdata()
    shares = [runs.certified_accuracy(*pair, grid) for pair in clients]
    np.testing.assert_allclose(mean.get_ydata(), np.mean(shares, axis=0))
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    for x, low, high in zip(
        grid[1:-1:50], np.min(shares, 0)[1:-1:50], np.max(shares, 0)[1:-1:50], strict=True
    ):
        there = corners[np.isclose(corners[:, 0], x), 1]
        assert (there.min(), there.max()) == pytest.approx((low, high))
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["personal (mean and range of 3 clients)", "global"]
    matplotlib.pyplot.close("all")


def test_bad_arguments(certificate):
    with pytest.raises(ValueError, match=r"labels must have shape \(5,\), got \(4,\)"):
        runs.certified_accuracy(certificate, LABELS[:4], 0.0)
    with pytest.raises(ValueError, match=r"radii must lie in \[0, inf\], got -1.0"):
        runs.certified_rate(certificate, -1.0)
    with pytest.raises(ValueError, match="curves must not be empty"):
        runs.plot_certified_accuracy({})
    for entry in (certificate, [certificate, LABELS], [[certificate, LABELS]]):
        with pytest.raises(
            TypeError, match=r"curves must hold pairs \(certificates, labels\), got .* as 'a'"
        ):
            runs.plot_certified_accuracy({"a": entry})
    with pytest.raises(ValueError, match="at least one input"):
        runs.certified_rate(certificate[:0], 0.0)
