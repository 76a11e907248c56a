"""A reader of the files that knows the page on the format and nothing of this library."""

import json
import math
import zlib
from statistics import NormalDist

import pytest
import torch
from callables import data
from models import MODELS

from rsfl import runs
from rsfl.smooth import GaussianSmoother, UniformSmoother

# What a stranger wrote, from docs/format.md alone. ------------------------------------------------


def read(line: bytes, kind: str, version: int) -> dict:
    start = line.index(b'"content": ') + len(b'"content": ')
    document, content = json.loads(line), line[start : line.rindex(b"}")]
    if (document["kind"], document["format"]) != (kind, version):
        raise ValueError("another kind of document")
    if document["crc32"] != zlib.crc32(content):
        raise ValueError("damaged")
    return document["content"]


def tail(n: int, p: float, k: int) -> float:
    """P[Bin(n, p) >= k]."""
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1)
        + i * math.log(p) + (n - i) * math.log1p(-p)
        for i in range(k, n + 1)
    ]  # fmt: skip
    return math.fsum(map(math.exp, logs))


def lower(k: int, n: int, alpha: float) -> float:
    low, high = 0.0, 1.0
    while k and high - low > 1e-14:
        middle = (low + high) / 2
        low, high = (low, middle) if tail(n, middle, k) > alpha else (middle, high)
    return low


def derived(c: dict, i: int) -> tuple[int, float]:
    """Label and radius of a certificate by count."""
    chosen = int(max(c["selection"][i].items(), key=lambda vote: (vote[1], -int(vote[0])))[0])
    others = [votes for label, votes in c["counts"][i].items() if int(label) != chosen]
    k, n = c["counts"][i].get(str(chosen), 0), c["n"][i]
    if c["reading"]["runner_up"] == "complement":
        p = lower(k, n, c["alpha"])
        q = 1 - p
    else:
        p = lower(k, n, c["alpha"] / 2)
        q = min(1 - lower(n - max(others, default=0), n, c["alpha"] / 2), 1 - p)
    if p <= q:
        return -1, 0.0
    if c["law"]["name"] == "Gaussian":
        quantile = NormalDist().inv_cdf
        return chosen, c["law"]["sigma"] / 2 * (quantile(p) - quantile(q))
    return chosen, c["law"]["half_width"] * (p - q)


# --------------------------------------------------------------------------------------------------

X = torch.linspace(-0.9, 1.7, 12)[:, None]


@pytest.mark.parametrize("runner_up", ["complement", "bounded"])
@pytest.mark.parametrize(
    "smoother",
    [
        GaussianSmoother(MODELS["staircase"], 0.1, 4),
        UniformSmoother(MODELS["staircase"], 0.3, 4),
    ],
    ids=repr,
)
def test_a_stranger_derives_every_radius(tmp_path, smoother, runner_up):
    path = tmp_path / "certificate.json"
    smoother.certify(X, n=300, runner_up=runner_up).save(path)
    content = read(path.read_bytes(), "certificate", 2)
    assert len(set(content["label"])) > 2
    for i, (label, radius) in enumerate(zip(content["label"], content["radius"], strict=True)):
        found = derived(content, i)
        assert found[0] == label
        assert float(radius) == pytest.approx(found[1], rel=1e-9, abs=1e-12)
    damaged = path.read_bytes().replace(b'"seed": 0', b'"seed": 1')
    with pytest.raises(ValueError, match="damaged"):
        read(damaged, "certificate", 2)


def test_a_stranger_reads_a_vote_log_and_a_ballot(tmp_path):
    smoother = GaussianSmoother(MODELS["staircase"], 0.1, 4)
    certificate, labels = runs.certify(smoother, data(), out=tmp_path, n=300)
    lines = (tmp_path / "votes-00000.jsonl").read_bytes().splitlines(keepends=True)
    contents = [read(line, "ballot", 1) for line in lines]
    assert [content["index"] for content in contents] == [[i] for i in range(12)]
    assert [content["label"] for content in contents] == labels.tolist()
    reading = {"alpha": 0.001, "reading": {"runner_up": "complement"}}
    for i, content in enumerate(contents):
        label, radius = derived({**content, **reading}, 0)
        assert label == int(certificate.label[i])
        assert radius == pytest.approx(float(certificate.radius[i]), rel=1e-9, abs=1e-12)
    smoother.ballot(X, n=300).save(tmp_path / "ballot.json")
    ballot = read((tmp_path / "ballot.json").read_bytes(), "ballot", 1)
    assert ballot["counts"] == [content["counts"][0] for content in contents]
    assert ballot["input"] == [content["input"][0] for content in contents]


def test_every_member_is_on_the_page(tmp_path):
    from pathlib import Path

    page = (Path(__file__).parents[1] / "docs/format.md").read_text()
    smoother = GaussianSmoother(MODELS["staircase"], 0.1, 4)
    runs.certify(smoother, data(), out=tmp_path, n=50)
    smoother.certify(X, n=50).save(tmp_path / "certificate.json")
    log = (tmp_path / "votes-00000.jsonl").read_bytes().splitlines(keepends=True)[0]
    members = {*read(log, "ballot", 1)}
    members |= {*read((tmp_path / "certificate.json").read_bytes(), "certificate", 2)}
    assert [name for name in sorted(members) if f"`{name}`" not in page] == []
