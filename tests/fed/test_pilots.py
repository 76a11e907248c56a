"""Clips that a pilot proposes are fixed in advance, leave honest updates alone, and say what they
assume."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from rsfl import bounds, fed
from rsfl.fed.poison import Attack, Scale

GENERATOR = torch.Generator().manual_seed(5)
LABELS = torch.randint(3, (2000,), generator=GENERATOR)
INPUTS = torch.eye(5, dtype=torch.float64)[LABELS] * 0.6
INPUTS += 0.2 * torch.randn(2000, 5, generator=GENERATOR, dtype=torch.float64)
PUBLIC = INPUTS[:400], LABELS[:400]


def settings(clients=40, **changes):
    model = nn.Linear(5, 3).double()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    trainer = changes.pop("trainer", fed.SGD(lr=0.7, batch_size=None, decay=0.01))
    parts = fed.partition.equal(1600, clients, seed=0)
    members = fed.clients(INPUTS[400:], LABELS[400:], parts, trainer)
    return fed.Server(model, members, **changes)


def test_a_pilots_clip_certifies_clients_that_lie_in_every_round():
    server = settings()
    clip = fed.pilot(server, *PUBLIC, rounds=8, slack=1.2)
    run = replace(server, update_clip=clip)
    result = run.run(8)
    threat = bounds.ClientThreat(at_most=1)
    found = bounds.deviation(result.ledger.rounds, threat)
    assert found.touched == ()
    assert [record.update_clip for record in result.ledger.rounds] == list(clip.clips)
    x = INPUTS[:400]
    certificate = fed.certify(result.model, x, result.ledger, threat)
    assert float((certificate.label == LABELS[:400]).double().mean()) > 0.6
    # Without it the clip has to lie above the longest update there can be.
    wide = replace(server, update_clip=3.0).run(8)
    empty = fed.certify(wide.model, x, wide.ledger, threat)
    assert float((empty.label == LABELS[:400]).double().mean()) < 0.2
    for factor in (-1e3, 1e3):
        attack = Attack(None, None, Scale(factor))
        attacked = run.run(8, attacks={7: attack})
        made = ~certificate.abstained
        other = attacked.model(x).argmax(dim=1)
        assert torch.equal(certificate.label[made], other[made])
        # And with the attacked run observed instead:
        seen = fed.certify(attacked.model, x, attacked.ledger, threat)
        assert torch.equal(seen.label[~seen.abstained], result.model(x).argmax(1)[~seen.abstained])


def test_a_schedule_says_what_it_assumes_and_ends_with_its_rounds():
    clip = fed.pilot(settings(), *PUBLIC, rounds=2, attackers=2, slack=1.5)
    assert "at most 1.5 times as long as those of 10 clients of 40 public samples" in clip.assumes
    assert "at most 2 of 40 clients" in clip.assumes
    assert clip(1) == pytest.approx(1.5 * clip.longest[0], rel=1e-12)
    assert clip(2) > 1.5 * clip.longest[1]
    with pytest.raises(ValueError, match="index must be a round of the pilot, 1 to 2, got 3"):
        clip(3)


def test_a_pilot_of_few_samples_is_one_client():
    clip = fed.pilot(settings(), INPUTS[:7], LABELS[:7], rounds=1)
    assert "those of 1 clients of 7 public samples" in clip.assumes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rounds": 0}, "rounds must be a count of at least 1"),
        ({"attackers": 0}, "attackers must be a count of at least 1"),
        ({"slack": 0.9}, "slack must lie in"),
        ({"trainer": lambda model, x, y, task: None}, "clients that train by one fed.SGD"),
    ],
)
def test_bad_arguments_are_named(changes, words):
    trainer = {"trainer": changes.pop("trainer")} if "trainer" in changes else {}
    with pytest.raises(ValueError, match=words):
        fed.pilot(settings(**trainer), *PUBLIC, **{"rounds": 1} | changes)
