"""Classic files: what published logs look like is read, what is written comes back, nothing else
passes."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from callables import LABELS, X
from hypothesis import given
from hypothesis import strategies as st
from models import MODELS

from rsfl import runs
from rsfl.deform import Rotation
from rsfl.smooth import GaussianSmoother, ParameterSmoother, UniformSmoother, floored, raised

HEADER = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n"


@pytest.fixture(scope="module")
def certificate():
    return GaussianSmoother(MODELS["staircase"], 0.5, 4).certify(X, n=1000)


def test_the_forms_that_published_logs_have(tmp_path):
    path = tmp_path / "log.tsv"
    path.write_text(
        HEADER
        + "0\t3\t3\t1.47\t1\t0:00:15.132451\n"
        + "20\t7\t-1\t0.0\t0\t0:00:15\n"
        + "40\t8\t1\t0.4321\tFalse\t12.5\n"
        + "60\t1\t1\t0.0512\tTrue\t1:01:01.5\n"
        + "80\t1\t1\t1e-05\t1\t1 day, 0:00:01.25"  # no line break at the end
    )
    said, labels = runs.read_tsv(path)
    assert said.index.tolist() == [0, 20, 40, 60, 80]
    assert labels.tolist() == [3, 7, 8, 1, 1]
    assert said.label.tolist() == [3, -1, 1, 1, 1]
    assert said.radius.tolist() == [1.47, 0.0, 0.4321, 0.0512, 1e-5]
    assert said.seconds.tolist() == [15.132451, 15.0, 12.5, 3661.5, 86401.25]
    assert (said.norm, said.unit) == ("l2", "input units")
    np.testing.assert_array_equal(
        runs.certified_accuracy(said, labels, [0.0, 0.05, 1.0]), [0.6, 0.4, 0.2]
    )
    assert runs.certified_rate(said, 0.1) == 0.4
    assert runs.average_certified_radius(said, labels) == pytest.approx((1.47 + 0.0512 + 1e-5) / 5)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("0\t3\t3\t1.47\t1", "5 columns where there should be 6"),
        ("0 3 3 1.47 1 1.0", "1 columns"),
        ("", "1 columns"),
        ("a\t3\t3\t1.47\t1\t1.0", "invalid literal"),
        ("0\t3\t3\tnan\t1\t1.0", "radius 'nan' is not a number of at least 0"),
        ("0\t3\t3\t-0.1\t1\t1.0", "radius '-0.1' is not"),
        ("0\t3\t3\t1.47\t0\t1.0", "correct is '0' for label 3 and prediction 3"),
        ("0\t3\t-1\t0.0\t1\t1.0", "correct is '1' for label 3 and prediction -1"),
        ("0\t3\t3\t1.47\tyes\t1.0", "correct is 'yes'"),
        ("0\t3\t3\t1.47\t1\t0:61:00", "could not convert string to float"),
        ("0\t3\t3\t1.47\t1\t-1", "'-1' is not a finite number of at least 0"),
        ("0\t3\t3\t1.47\t1\tinf", "'inf' is not a finite number"),
        ("0\t-1\t-1\t0\t1\t1.0", "are not an index, a label and a prediction"),
        ("0\t3\t-2\t0\t0\t1.0", "are not an index, a label and a prediction"),
        ("0\t3\t3\t1.47\t1\t0:00:15.132451", "input 0 is there a second time"),
    ],
)
def test_other_lines_are_named(tmp_path, line, words):
    path = tmp_path / "log.tsv"
    path.write_text(HEADER + "0\t3\t3\t1.47\t1\t0:00:15.132451\n" + line + "\n")
    with pytest.raises(ValueError, match=rf"log\.tsv, line 3: .*{words}"):
        runs.read_tsv(path)


@pytest.mark.parametrize("text", ["", "idx label predict radius correct time\n", '{"index": 0}\n'])
def test_other_files_are_refused(tmp_path, text):
    path = tmp_path / "log.tsv"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=r"log\.tsv, line 1: the columns must be idx label predict"
    ):
        runs.read_tsv(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"log\.tsv is not a text file"):
        runs.read_tsv(path)


def test_a_certificate_survives_the_trip_and_no_radius_grows(tmp_path, certificate):
    first, second = tmp_path / "first.tsv", tmp_path / "second.tsv"
    seconds = np.linspace(0, 4000, len(X))
    runs.write_tsv(first, certificate, LABELS, seconds)
    said, labels = runs.read_tsv(first)
    assert torch.equal(said.index, certificate.index)
    assert torch.equal(said.label, certificate.label)
    assert labels.tolist() == LABELS
    assert bool((said.radius <= certificate.radius).all())
    assert bool((said.radius > certificate.radius - 1e-4).all())
    np.testing.assert_allclose(said.seconds, seconds, atol=5e-7)
    runs.write_tsv(second, said, labels, said.seconds)
    assert second.read_text() == first.read_text()


@given(st.floats(0, 1e6), st.integers(1, 6))
def test_floored_text_is_never_above_and_stays(value, digits):
    text = floored(value, digits)
    assert float(text) <= value
    assert value - float(text) < 10.0**-digits * (1 + 1e-6) + 1e-9
    assert floored(float(text), digits) == text


@given(value=st.floats(-1e6, 1e6), digits=st.integers(0, 6))
def test_raised_text_is_never_below_and_stays(value, digits):
    text = raised(value, digits)
    assert value <= float(text) <= value + 10.0**-digits * (1 + 1e-9) + 1e-9
    assert raised(float(text), digits) == text
    assert [raised(v, 3) for v in (0.0, -0.0, 0.1234, -0.1234, 1.0, np.inf)] == [
        "0.000",
        "0.000",
        "0.124",
        "-0.123",
        "1.000",
        "inf",
    ]


@given(st.floats(0, 1e7))
def test_times_stay(tmp_path_factory, seconds):
    path = tmp_path_factory.mktemp("tsv") / "log.tsv"
    said = runs.Published(*(torch.tensor([value]) for value in (0, 1, 0.5, 0.0)))
    runs.write_tsv(path, said, [1], seconds)
    (again,) = runs.read_tsv(path)[0].seconds.tolist()
    assert again == pytest.approx(seconds, abs=1e-6)
    text = path.read_text()
    runs.write_tsv(path, said, [1], again)
    assert path.read_text() == text


def test_writing_checks_what_it_is_given(tmp_path, certificate):
    with pytest.raises(ValueError, match=r"labels must have shape \(12,\)"):
        runs.write_tsv(tmp_path / "log.tsv", certificate, LABELS[:3])
    with pytest.raises(ValueError, match="seconds must lie in"):
        runs.write_tsv(tmp_path / "log.tsv", certificate, LABELS, -1.0)


def test_radii_of_another_kind_are_written_only_by_name(tmp_path):
    """The file does not say its norm: an l1 radius, or one in radians, would be read as an l2
    radius."""
    path = tmp_path / "log.tsv"
    law = UniformSmoother(MODELS["staircase"], 1.0, 4).certify(X, n=200)
    angles = replace(law, law=Rotation(0.5))
    for certificate, named in ((law, {"norm": "l1"}), (angles, {"norm": "l1", "unit": "radians"})):
        with pytest.raises(
            ValueError,
            match="norm must be 'l1', that of the certificate, got 'l2': the file does not",
        ):
            runs.write_tsv(path, certificate, LABELS)
        assert not path.exists()
        runs.write_tsv(path, certificate, LABELS, **named)
        said, _ = runs.read_tsv(path, **named)
        assert (said.norm, said.unit) == (certificate.norm, certificate.unit)
        path.unlink()
    with pytest.raises(
        ValueError, match="unit must be 'radians', that of the certificate, got 'input units'"
    ):
        runs.write_tsv(path, angles, LABELS, norm="l1")
    shared = ParameterSmoother(torch.nn.Linear(1, 4), 0.1, 4).certify(X, n=100)
    with pytest.raises(ValueError, match="noise of their own, got one in parameters space"):
        runs.write_tsv(path, shared, LABELS, unit="parameter units")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"there is no file .*nothing\.tsv, nor a directory of a run"
    ) as error:
        runs.read_tsv(tmp_path / "nothing.tsv")
    assert "Errno" not in str(error.value)


def test_a_data_frame_has_what_there_is(tmp_path, certificate, monkeypatch):
    pandas = pytest.importorskip("pandas")
    frame = runs.to_dataframe(certificate, LABELS)
    assert list(frame.columns) == [
        "label",
        "prediction",
        "radius",
        "correct",
        "p_lower",
        "p_upper",
        "n0",
        "n",
        "invalid",
    ]
    assert frame["correct"].mean() == runs.certified_accuracy(certificate, LABELS, 0.0)
    runs.write_tsv(tmp_path / "log.tsv", certificate, LABELS)
    published = runs.to_dataframe(*runs.read_tsv(tmp_path / "log.tsv"))
    pandas.testing.assert_series_equal(published["prediction"], frame["prediction"])
    assert "seconds" in published
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="to_dataframe needs pandas"):
        runs.to_dataframe(certificate, LABELS)
