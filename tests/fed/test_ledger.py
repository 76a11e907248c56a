"""The ledger on disk: every number as it was, or an error."""

import json
from dataclasses import replace
from math import inf

import pytest
import torch
from torch import nn

from rsfl import fed
from rsfl.bounds import RemovalThreat

TEST = torch.randn(50, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def run(broken=True, **settings):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(60, 5, generator=generator, dtype=torch.float64), torch.arange(60) % 3
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(5, 3).double()
    members = fed.clients(
        x, y, fed.partition.equal(60, 6), fed.SGD(lr=0.5, batch_size=4, decay=0.1)
    )
    if broken:
        members[4] = replace(members[4], x=x * torch.nan)
    evaluate = {"evaluate": lambda model: {"bias": model.bias[0].detach()}}
    return fed.Server(model, members, **settings).run(3, exclude=[5], **evaluate)


@pytest.mark.parametrize(
    ("certifies", "settings"),
    [
        (True, {}),
        (
            False,
            {
                "aggregate": fed.GeometricMedian(),
                "clip": 2.0,
                "noise_std": 0.01,
                "keep": ["samples"],
                "fraction": 0.7,
            },
        ),
    ],
    ids=["plain", "all"],
)
def test_a_ledger_comes_back_and_certifies_the_same(tmp_path, certifies, settings):
    result = run(broken=not certifies, **settings)
    result.ledger.save(tmp_path / "ledger.json")
    ledger = fed.Ledger.load(tmp_path / "ledger.json")
    assert ledger == result.ledger
    assert ledger.rounds[0].update_clip == inf
    assert ledger.fates(1) == result.ledger.fates(1)
    json.loads(
        (tmp_path / "ledger.json").read_text(), parse_constant=pytest.fail
    )  # JSON as others read it
    if certifies:
        threat = RemovalThreat(at_most=1)
        again, once = (
            fed.certify(result.model, TEST, one, threat) for one in (ledger, result.ledger)
        )
        assert again.deviation == once.deviation
        assert torch.equal(again.label, once.label)
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.json"]


def test_updates_stay_with_the_checkpoint(tmp_path):
    result = run(keep=["updates"])
    assert result.ledger.entries[0].updates is not None
    result.ledger.save(tmp_path / "ledger.json")
    assert fed.Ledger.load(tmp_path / "ledger.json").entries[0].updates is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda document: document["content"]["rounds"].pop(), "the checksum does not fit"),
        (
            lambda document: document.update(kind="certificate"),
            "it is a certificate of format 2, not a ledger of 2",
        ),
        (
            lambda document: document.update(format=9),
            "it is a ledger of format 9, not a ledger of 2",
        ),
        (lambda document: document.clear(), "'kind'"),
    ],
    ids=["edited", "kind", "format", "empty"],
)
def test_what_is_no_ledger_is_refused(tmp_path, change, words):
    path = tmp_path / "ledger.json"
    run().ledger.save(path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match=rf"ledger\.json cannot be read as a ledger: {words}"):
        fed.Ledger.load(path)
    path.write_bytes(b"{")
    with pytest.raises(ValueError, match="cannot be read as a ledger"):
        fed.Ledger.load(path)
    with pytest.raises(OSError, match="nothing"):
        fed.Ledger.load(tmp_path / "nothing")
