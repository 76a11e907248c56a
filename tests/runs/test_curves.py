import matplotlib
import numpy as np
import pytest
import torch
from models import MODELS

from rsfl import runs
from rsfl.smooth import GaussianSmoother

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
        runs.certified_accuracy(certificate, LABELS, [np.nextafter(radius[1], 1), 100.0]), [0.4, 0.0]
    )
    assert runs.certified_rate(certificate, 0.0) == 0.8
    at = GaussianSmoother(MODEL, 0.5, 2).certify_at(X, 0.3)
    assert runs.certified_rate(at, 0.3) == 0.6  # what was decided at a radius counts at that radius
    assert runs.average_certified_radius(certificate, LABELS) == pytest.approx((radius[0] + radius[1] + radius[4]) / 5)


def test_curves_fall(certificate):
    grid = np.linspace(0, 3, 50)
    for curve in (runs.certified_accuracy(certificate, LABELS, grid), runs.certified_rate(certificate, grid)):
        assert (np.diff(curve) <= 0).all()
        assert curve[-1] == 0


def test_plot_draws_what_the_table_says(certificate):
    axes = runs.plot_certified_accuracy({"a": (certificate, LABELS), "b": (certificate[:2], LABELS[:2])}, title="t")
    line = axes.get_lines()[0]
    np.testing.assert_array_equal(line.get_ydata(), runs.certified_accuracy(certificate, LABELS, line.get_xdata()))
    assert axes.get_xlabel() == "l2 radius (input units)"
    assert axes.get_ylabel() == "certified accuracy"
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b"]
    assert line.get_linestyle() != axes.get_lines()[1].get_linestyle()
    matplotlib.pyplot.close("all")


def test_bad_arguments(certificate):
    with pytest.raises(ValueError, match=r"labels must have shape \(5,\), got \(4,\)"):
        runs.certified_accuracy(certificate, LABELS[:4], 0.0)
    with pytest.raises(ValueError, match=r"radii must lie in \[0, inf\], got -1.0"):
        runs.certified_rate(certificate, -1.0)
    with pytest.raises(ValueError, match="curves must not be empty"):
        runs.plot_certified_accuracy({})
    with pytest.raises(ValueError, match="at least one input"):
        runs.certified_rate(certificate[:0], 0.0)
