"""Whoever has the page on the format, and nothing else, can read a certificate."""

import subprocess
import sys
from pathlib import Path

import pytest
from saved import ballot, edited

from rsfl import noise

READER = Path(__file__).parents[1] / "reader.py"


def rows(path):
    words = [sys.executable, "-I", str(READER), str(path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    return [[float(word) for word in line.split()] for line in done.stdout.splitlines()]


def test_fifty_lines_without_rsfl():
    text = READER.read_text()
    assert len([line for line in text.splitlines() if line.strip()]) <= 50
    assert "import rsfl" not in text
    assert "from rsfl" not in text


@pytest.mark.parametrize("law", [noise.Gaussian(0.5), noise.Uniform(0.3), noise.Laplace(0.2)])
def test_it_reads_certificates_and_ballots(tmp_path, law):
    votes = ballot(law, inputs=12, n=200)
    certificate = votes.certificate()
    votes.save(tmp_path / "b.json")
    certificate.save(tmp_path / "c.json")
    for path in ("b.json", "c.json"):
        for place, (index, label, many, n, radius) in enumerate(rows(tmp_path / path)):
            one = certificate[place]
            assert (index, n) == (int(one.index), int(one.n))
            assert many == int(one.counts[0, int(label)])
            assert radius == pytest.approx(float(one.radius), abs=1e-9)
            if radius:
                assert label == int(one.label)


def test_it_sees_a_torn_file(tmp_path):
    ballot(noise.Gaussian(0.5), inputs=2).save(tmp_path / "b.json")
    text = (tmp_path / "b.json").read_text()
    (tmp_path / "b.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(subprocess.CalledProcessError):
        rows(tmp_path / "b.json")
    assert rows(edited(tmp_path / "b.json", lambda content: None))
