"""Logs of radii without votes: what follows from some number of votes, and what was rounded up."""

import math

import numpy as np
import pytest
from scipy import stats

from rsfl import bounds
from rsfl.verify.published import published, read_lines

N, ALPHA, SIGMA = 10_000, 0.001, 0.5
LAW = {"name": "Gaussian", "sigma": SIGMA}


def radii(law="Gaussian"):
    """The radii of many counts, all of them different, the saturated one included."""
    votes = np.unique(np.r_[np.linspace(0.52 * N, N, 300).astype(int), N])
    p = np.asarray(bounds.clopper_pearson_lower(votes, N, ALPHA))
    if law == "Gaussian":
        return np.asarray(bounds.cohen_radius(p, sigma=SIGMA))
    if law == "Uniform":
        return np.asarray(bounds.uniform_radius(p, half_width=SIGMA))
    return np.asarray(bounds.laplace_radius(p, scale=SIGMA))


def write(path, texts, predictions=None):
    rows = ["idx\tlabel\tpredict\tradius\tcorrect\ttime"]
    for i, text in enumerate(texts):
        predict = 0 if predictions is None else predictions[i]
        rows.append(f"{i}\t0\t{predict}\t{text}\t{int(predict == 0)}\t0:00:01.5")
    path.write_text("\n".join(rows) + "\n")
    return path


def floored(r, digits=4):
    return f"{math.floor(r * 10**digits) / 10**digits:.{digits}f}"


@pytest.mark.parametrize("law", ["Gaussian", "Uniform", "Laplace"])
def test_floored_radii_hold(tmp_path, law):
    path = write(tmp_path / "log.tsv", [floored(r) for r in radii(law)])
    document = {
        "name": law,
        {"Gaussian": "sigma", "Uniform": "half_width"}.get(law, "scale"): SIGMA,
    }
    found = published(path, document, n=N, alpha=ALPHA)
    assert [one.holds for one in found] == [True, True, True]
    assert "each follows" in found[1].text
    assert "rounded down" in found[2].text


@pytest.mark.parametrize("text", ["{:.3}".format, "{:.4f}".format], ids=["digits", "decimals"])
def test_radii_rounded_to_nearest_are_found(tmp_path, text):
    exact = radii()
    texts = [text(float(r)) for r in exact]
    above = sum(float(one) > r for one, r in zip(texts, exact, strict=True))
    found = published(write(tmp_path / "log.tsv", texts), LAW, n=N, alpha=ALPHA)
    assert [one.holds for one in found] == [True, True, False]
    assert "about" in found[2].text
    told = int(found[2].text.split("about ")[1].split()[0])
    assert abs(told - above) < 4 * math.sqrt(len(texts) / 4)


def test_a_saturated_radius_that_was_rounded_up_is_named(tmp_path):
    most = SIGMA * stats.norm.ppf(ALPHA ** (1 / N))
    text = f"{most:.2f}" if float(f"{most:.2f}") > most else f"{most + 0.005:.2f}"
    found = published(write(tmp_path / "log.tsv", ["0.50", text]), LAW, n=N, alpha=ALPHA)
    assert found[-1].holds is False
    assert f"line 3 ({text})" in found[-1].text


def test_radii_of_no_votes_are_named(tmp_path):
    good = [floored(r, 9) for r in radii()[::30]]
    path = write(tmp_path / "log.tsv", [*good, "0.612345678", "9.000000000"])
    found = published(path, LAW, n=N, alpha=ALPHA)
    assert found[1].holds is False
    line = len(good) + 2
    assert f"line {line} (0.612345678), line {line + 1} (9.000000000): no number" in found[1].text
    most = floored(SIGMA * stats.norm.ppf(ALPHA ** (1 / N)))
    assert f"all {N} give {most}" in found[1].text
    assert found[2].holds is True


@pytest.mark.parametrize(
    ("law", "n", "alpha"),
    [({"name": "Gaussian", "sigma": 0.25}, N, ALPHA), (LAW, 1000, ALPHA), (LAW, N, 0.01)],
)
def test_another_law_number_or_level_does_not_pass(tmp_path, law, n, alpha):
    path = write(tmp_path / "log.tsv", [floored(r, 9) for r in radii()[::30]])
    assert published(path, law, n=n, alpha=alpha)[1].holds is False


def test_an_abstention_has_no_radius(tmp_path):
    path = write(tmp_path / "log.tsv", ["0.5000", "0.0000", "0.6000"], [0, -1, -1])
    assert "line 4 (0.6000): a radius without" in str(published(path, LAW, n=N, alpha=ALPHA)[0])
    empty = write(tmp_path / "empty.tsv", ["0.0"], [-1])
    assert all(one.holds for one in published(empty, LAW, n=N, alpha=ALPHA))


@pytest.mark.parametrize(
    "row", ["1\t0\t0", "1\t0\t0\tnan\t1\t0", "1\t0\t0\t-1\t1\t0", "1\t0\tx\t1\t1\t0"]
)
def test_bad_lines_are_named(tmp_path, row):
    path = write(tmp_path / "log.tsv", [])
    path.write_text(path.read_text() + row + "\n")
    with pytest.raises(ValueError, match="line 2: no prediction and radius"):
        read_lines(path)
    path.write_text("idx\tlabel\n")
    with pytest.raises(ValueError, match="line 1: the columns must be"):
        read_lines(path)
