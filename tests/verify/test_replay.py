"""A round that is carried out again does what the ledger says, or it says something else."""

from dataclasses import replace

import callables
import pytest
import torch
from torch import nn

from rsfl import fed
from rsfl._checkpoint import CheckpointError
from rsfl.cli import main
from rsfl.verify import replay


def server(seed=0, data=0):
    generator = torch.Generator().manual_seed(data)
    x = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    y = (x[:, 0] > 0).long()
    model = nn.Linear(3, 2).double()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    trainer = fed.SGD(lr=0.1, batch_size=4, decay=0.01)
    clients = fed.clients(x, y, fed.partition.equal(60, 6), trainer)
    return fed.Server(model, clients, fraction=0.5, noise_std=0.01, clip=1.0, seed=seed)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "checkpoint"
    return server().run(4, checkpoint=folder).ledger, folder


def test_the_last_round_from_its_checkpoint(run):
    ledger, folder = run
    kept = sorted(path.read_bytes() for path in folder.iterdir())
    report = replay(server(), ledger, folder)
    assert report.holds
    assert "round 4: carried out again: the same record" in str(report)
    assert "round 3: as its checkpoint has it" in str(report)
    assert sorted(path.read_bytes() for path in folder.iterdir()) == kept


def test_a_whole_run(run):
    report = replay(server(), run[0])
    assert report.holds
    assert str(report).count("carried out again") == 4


def test_what_was_changed_is_named(run):
    ledger, folder = run
    last = ledger.entries[-1]
    one = replace(last.round.participants[0], update_norm=0.5)
    changed = replace(last.round, participants=(one, *last.round.participants[1:]))
    forged = replace(ledger, entries=(*ledger.entries[:-1], replace(last, round=changed)))
    (found,) = replay(server(), forged, folder).false
    assert found.text == "carried out again: other participants than in the ledger"
    assert len(replay(server(seed=1), ledger).false) == 4
    assert "model_hash" in str(replay(server(data=1), ledger))
    with pytest.raises(CheckpointError, match="another run"):
        replay(server(seed=1), ledger, folder)
    with pytest.raises(ValueError, match="must hold a round"):
        replay(server(), fed.Ledger({}))


# --- The command line ----------------------------------------------------------------------------


def test_the_command_line_carries_rounds_out_again(tmp_path, capsys):
    path, folder = str(tmp_path / "ledger.json"), str(tmp_path / "checkpoint")
    ledger = callables.server().run(3, checkpoint=folder).ledger
    ledger.save(path)
    words = ["verify", path, "--server", "callables:server"]
    assert main(words) == 0
    assert capsys.readouterr().out.count("carried out again: the same record") == 3
    assert main([*words, "--checkpoint", folder]) == 0
    said = capsys.readouterr().out
    assert said.count("carried out again: the same record") == 1
    assert said.count("as its checkpoint has it") == 2

    last = ledger.entries[-1]
    forged = replace(last, round=replace(last.round, broadcast_norm=0.125))
    replace(ledger, entries=(*ledger.entries[:-1], forged)).save(path)
    assert main(words) == 1
    assert "other broadcast_norm than in the ledger" in capsys.readouterr().out


def test_what_the_command_line_needs_to_carry_rounds_out(tmp_path, capsys):
    path = str(tmp_path / "ledger.json")
    callables.server().run(1).ledger.save(path)
    for words, said in (
        (["verify", path, "--server", "callables:linear"], "must return a fed.Server, got Linear"),
        (["verify", path, path, "--server", "callables:server"], "beside one ledger, got 2"),
        (["verify", path, "--checkpoint", str(tmp_path)], "--checkpoint must be given beside"),
    ):
        assert main(words) == 2
        assert said in capsys.readouterr().err
