"""The page about a run says what was certified, and what it says is what the run holds."""

import hashlib
import html
import re

import pytest
import torch
from torch import nn

from rsfl import runs, smooth
from rsfl.cli import main
from rsfl.noise import RoundedGaussian


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    x = (torch.rand(12, 1, 2, 2) * 255).round() / 255
    data = [(one, i % 3) for i, one in enumerate(x)]
    out = tmp_path_factory.mktemp("runs") / "a run"
    smoother = smooth.Smoother(model, RoundedGaussian(0.25), 3)
    return out, runs.certify(smoother, data, out=out, n0=20, n=200)


@pytest.mark.parametrize("kind", ["md", "html"])
def test_the_page_holds_what_an_auditor_asks_for(run, tmp_path, kind):
    out, (certificate, labels) = run
    page = tmp_path / f"page.{kind}"
    runs.evidence(out, page, radii=(0.0, 0.1), title="Digits & <others>")
    text = page.read_text()
    plain = html.unescape(text) if kind == "html" else text
    for one in certificate.assumptions:
        assert one.id in plain
        assert one.statement in plain
    for path in sorted(out.iterdir()):
        if path.suffix in (".json", ".jsonl"):
            assert hashlib.sha256(path.read_bytes()).hexdigest() in plain
    for word in (
        "RoundedGaussian(sigma=0.25, levels=256)",
        "0.001",
        "12 of 12",
        "l2 norm",
        "torch",
    ):
        assert word in plain, word
    accuracy = runs.certified_accuracy(certificate, labels, 0.1)
    assert f"{accuracy:.4f}"[:5] in plain
    assert f"rsfl verify '{out}' --model" in plain
    for heading in ("Checked while", "configured", "Trusted", "How far", "Versions"):
        assert heading in plain
    if kind == "md":
        assert (tmp_path / "page.png").read_bytes()[:4] == b"\x89PNG"
        assert "](page.png)" in text
    else:
        assert "data:image/png;base64," in text
        assert "<others>" not in re.sub(r"&lt;others&gt;", "", text)


def test_the_command_line_writes_it(run, tmp_path, capsys):
    out, _ = run
    page = tmp_path / "page.html"
    assert main(["report", str(out), "--evidence", str(page)]) == 0
    assert page.read_text().startswith("<!doctype html>")
    assert main(["report", str(out), str(out), "--evidence", str(page)]) == 2
    assert main(["report", str(out), "--evidence", str(tmp_path / "page.txt")]) == 2
    assert "must end in .md or .html" in capsys.readouterr().err


def test_votes_that_share_noise_get_no_interval(tmp_path):
    torch.manual_seed(0)
    x = torch.rand(4, 2)
    smoother = smooth.ParameterSmoother(nn.Linear(2, 3), 0.1, 3)
    runs.certify(smoother, (x, torch.zeros(4).long()), out=tmp_path / "run", n0=20, n=100)
    runs.evidence(tmp_path / "run", tmp_path / "page.md")
    assert " to 1.0000" not in (tmp_path / "page.md").read_text()
