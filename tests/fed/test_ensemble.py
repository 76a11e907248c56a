"""Group voting: disjoint groups, runs of their own, and a count that attackers cannot beat."""

import os
import signal
import sys
import time
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from rsfl import fed
from rsfl.fed.groups import group_clients
from rsfl.fed.poison import LabelFlip, SignFlip
from rsfl.noise import Gaussian
from rsfl.smooth import ABSTAIN
from rsfl.train import CrossEntropy


def build(kind="linear"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "linear":
            return nn.Linear(4, 3)
        return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def server(model=None, trainer=None, clients=24, **settings):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(240, 4, generator=generator)
    y = (x[:, :3]).argmax(dim=1)
    trainer = trainer or fed.SGD(lr=0.5, batch_size=5)
    members = fed.clients(x, y, fed.partition.equal(240, clients), trainer)
    return fed.Server(model or build(), members, **settings), x


def same(one, other):
    return [
        all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
        for a, b in zip(one.models, other.models, strict=True)
    ]


def test_groups_are_disjoint_complete_and_fixed():
    groups = group_clients(range(100, 123), 5, seed=3)
    assert sorted(sum(groups, ())) == list(range(100, 123))
    assert group_clients(reversed(range(100, 123)), 5, seed=3) == groups
    assert group_clients(range(100, 123), 5, seed=4) != groups
    with pytest.raises(ValueError, match="groups"):
        group_clients(range(3), 4)
    with pytest.raises(ValueError, match="ids"):
        group_clients([1, 1], 1)


def test_one_client_more_or_under_another_id_moves_nobody_else():
    many = range(0, 2000, 2)
    before = {id_: at for at, group in enumerate(group_clients(many, 20)) for id_ in group}
    changed = [*list(many)[:-1], 999_999, 7]
    after = {id_: at for at, group in enumerate(group_clients(changed, 20)) for id_ in group}
    assert all(after[id_] == at for id_, at in before.items() if id_ in after)
    sizes = [len(group) for group in group_clients(many, 20)]
    assert min(sizes) > 25  # of 50: none is much smaller than chance makes it
    assert max(sizes) < 85


def test_a_roster_deals_every_fact_out_evenly():
    facts = {
        id_: int(fact) for id_, fact in enumerate(np.random.default_rng(0).integers(4, size=90))
    }
    groups = group_clients(range(90), 7, seed=1, roster=facts)
    assert sorted(sum(groups, ())) == list(range(90))
    for fact in range(4):
        held = [sum(facts[id_] == fact for id_ in group) for group in groups]
        assert max(held) - min(held) <= 1
    sizes = [len(group) for group in groups]
    assert max(sizes) - min(sizes) <= 1
    assert group_clients(range(90), 7, seed=2, roster=facts) != groups
    # The order in which a roster was written down decides nothing.
    again = dict(sorted(facts.items(), reverse=True))
    assert group_clients(range(90), 7, seed=1, roster=again) == groups
    with pytest.raises(ValueError, match=r"roster must name the clients 0, 1, got 0, 5"):
        group_clients(range(2), 1, roster={0: 1, 5: 1})
    with pytest.raises(TypeError, match="roster"):
        group_clients(range(2), 1, roster={0: 1, 1: "cats"})


def test_a_joiner_may_move_others_on_a_roster_and_the_certificate_says_so():
    run, x = server()
    roster = dict.fromkeys(range(24), 0)
    fewer = {id_: at for at, group in enumerate(group_clients(range(23), 5)) for id_ in group}
    hashed = {id_: at for at, group in enumerate(group_clients(range(24), 5)) for id_ in group}
    assert all(hashed[id_] == at for id_, at in fewer.items())
    moved = 0
    for seed in range(10):
        there = group_clients(range(23), 5, seed=seed, roster=dict.fromkeys(range(23), 0))
        joined = group_clients(range(24), 5, seed=seed, roster=roster)
        at = {id_: number for number, group in enumerate(joined) for id_ in group}
        moved += sum(at[id_] != number for number, group in enumerate(there) for id_ in group)
    assert moved > 50
    ids = lambda vote: {one.id for one in vote.certify(x[:2]).assumptions}  # noqa: E731
    dealt = fed.train_groups(run, 5, 1, num_classes=3, roster=roster)
    assert dealt.groups == group_clients(range(24), 5, roster=roster)
    assert {"dealt-groups", "separate-groups", "registered-clients"} < ids(dealt)
    assert "disjoint-groups" not in ids(dealt)
    assert "disjoint-groups" in ids(fed.train_groups(run, 5, 1, num_classes=3))
    # Where each client is alone nobody can move it.
    assert "disjoint-groups" in ids(fed.train_groups(run, 24, 1, num_classes=3, roster=roster))


def test_a_client_on_a_roster_reaches_its_own_group_only():
    run, _ = server()
    roster = {id_: id_ % 3 for id_ in range(24)}
    clean = fed.train_groups(run, 5, 2, num_classes=3, roster=roster)
    attacks = {clean.groups[2][0]: fed.Attack(update=SignFlip(50.0))}
    attacked = fed.train_groups(run, 5, 2, num_classes=3, roster=roster, attacks=attacks)
    assert same(clean, attacked) == [True, True, False, True, True]


def shards(x, y, names):
    """The vote of eleven shards of a data set."""
    parts = fed.partition.by_hash(names, 11)
    members = fed.clients(x, y, parts, fed.SGD(lr=0.5, batch_size=5, epochs=2))
    return fed.train_groups(fed.Server(build(), members), 11, 1, num_classes=3)


def test_poisoned_samples_change_no_prediction_that_withstands_them():
    """A client is a shard: samples are inserted, removed and changed at random."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(330, 4, generator=generator)
    y = (x[:, :3] + 0.7 * torch.randn(330, 3, generator=generator)).argmax(dim=1)
    test, names = torch.randn(60, 4, generator=generator), list(range(330))
    clean = shards(x, y, names)
    certificate = clean.certify(test)
    draws = np.random.default_rng(1)
    flips = 0
    for trial in range(12):
        m = 1 + trial % 4
        chosen = draws.choice(330, m, replace=False)
        px, py, pn = x.clone(), y.clone(), list(names)
        if trial % 3 == 0:  # changed under the same name
            px[chosen], py[chosen] = 20 * px[chosen].flip(1), (py[chosen] + 1) % 3
        elif trial % 3 == 1:  # removed
            kept = [i for i in range(330) if i not in chosen]
            px, py, pn = px[kept], py[kept], kept
        else:  # inserted before all others
            px = torch.cat([30 * torch.randn(m, 4, generator=generator), px])
            py, pn = (
                torch.cat([torch.randint(3, (m,), generator=generator), py]),
                [
                    *range(1000, 1000 + m),
                    *pn,
                ],
            )
        poisoned = shards(px, py, pn)
        assert sum(not one for one in same(clean, poisoned)) <= m
        changed = poisoned.certify(test).label != certificate.label
        assert not (changed & (certificate.withstands >= m)).any()
        flips += int(changed.sum())
    assert flips  # the poison was not nothing
    assert (certificate.withstands >= 1).double().mean() > 0.5


def test_a_vote_keeps_the_ledgers_of_its_groups():
    run, _ = server()
    vote = fed.train_groups(run, 5, 2, num_classes=3)
    for at, ledger in vote.ledgers.items():
        assert tuple(ledger.fates(1)) == vote.groups[at]
        assert len(ledger) == 2
    assert len(vote.ledgers) == 5


def test_a_client_reaches_its_own_group_only():
    run, _ = server(fraction=0.7, noise_std=0.1)
    clean = fed.train_groups(run, 5, 3, num_classes=3, progress=False)
    victim = clean.groups[2][0]
    attacks = {victim: fed.Attack(update=SignFlip(50.0))}
    attacked = fed.train_groups(run, 5, 3, num_classes=3, attacks=attacks, progress=False)
    assert same(clean, attacked) == [True, True, False, True, True]


def test_as_many_groups_as_clients_are_one_client_each():
    run, _ = server()
    assert group_clients([5, 2, 9], 3) == ((2,), (5,), (9,))
    whole = fed.train_groups(run, 24, 1, num_classes=3)
    fewer = fed.train_groups(replace(run, clients=run.clients[1:]), 23, 1, num_classes=3)
    assert all(same(replace(whole, models=whole.models[1:], groups=whole.groups[1:]), fewer))


class Momentum:
    """A rule that keeps something, in itself, its class and its module."""

    kept: ClassVar = []

    def __call__(self, models, weights):
        value = fed.Mean()(models, weights).value
        self.kept.append(value)
        return fed.Aggregate(torch.stack(self.kept).mean(dim=0), None)


SEEN = []


def buffering(model, x, y, task):
    SEEN.append(float(x.sum()))
    with torch.no_grad():
        model.weight += sum(SEEN) * 1e-3


class Median:
    """A clip that follows the norms that it has seen."""

    def __init__(self):
        self.seen = []

    def __call__(self, models, weights):
        self.seen.append(float(models.double().norm(dim=1).median()))
        value = fed.Mean()(models, weights).value
        return fed.Aggregate(value * min(1.0, min(self.seen) / float(value.norm())), None)


@pytest.mark.parametrize(
    "settings",
    [{"aggregate": Momentum()}, {"aggregate": Median()}, {"trainer": buffering}],
    ids=["velocity of a class", "running median", "buffer of a module"],
)
def test_what_a_rule_or_a_trainer_keeps_does_not_leak(settings):
    """One client changes its own group, though rule and trainer are the same objects for all."""
    run, x = server(**settings)
    clean = fed.train_groups(run, 6, 2, num_classes=3)
    attacks = {clean.groups[0][0]: fed.Attack(update=SignFlip(50.0))}
    attacked = fed.train_groups(run, 6, 2, num_classes=3, attacks=attacks)
    assert same(clean, attacked) == [False, True, True, True, True, True]
    one, two = clean.certify(x), attacked.certify(x)
    held = one.withstands >= 1
    assert torch.equal(one.label[held], two.label[held])
    with pytest.raises(TypeError, match=r"processes must be at least 1 .* not rsfl's or torch's"):
        fed.train_groups(run, 6, 2, num_classes=3, processes=0)


PEAKS = []


def peaked(z):
    """An activation that scales by the largest number that it has seen."""
    PEAKS.append(float(z.detach().abs().max()))
    return torch.relu(z) / max(PEAKS)


def test_what_an_activation_keeps_does_not_leak():
    """The layer is torch's own; what it calls is not."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, 0.0, activation=peaked, batch_first=True)
    model = nn.Sequential(nn.Unflatten(1, (1, 4)), layer, nn.Flatten(), nn.Linear(4, 3))
    run, _ = server(model)
    PEAKS.clear()
    clean = fed.train_groups(run, 4, 1, num_classes=3)
    attacks = {clean.groups[0][0]: fed.Attack(update=SignFlip(1e6))}
    PEAKS.clear()
    attacked = fed.train_groups(run, 4, 1, num_classes=3, attacks=attacks)
    assert same(clean, attacked) == [False, True, True, True]
    with pytest.raises(TypeError, match="not rsfl's or torch's"):
        fed.train_groups(run, 4, 1, num_classes=3, processes=0)


class Seen(nn.Parameter):
    """A parameter whose class sees every call."""


def _patched(name, where=nn.Conv2d):
    def change(monkeypatch, conv):
        monkeypatch.setattr(where, name, lambda *_: torch.zeros(1))

    return change


CHANGES = {
    "its class": _patched("forward"),
    "a base of it": _patched("extra_repr", nn.modules.conv._ConvNd),
    "the function that it calls": _patched("conv2d", nn.functional),
    "a method of the object": lambda _, conv: setattr(conv, "_conv_forward", torch.add.__call__),
    "the call of the object": lambda _, conv: setattr(conv, "_call_impl", lambda x: x),
    "a parameter": lambda _, conv: setattr(conv, "weight", Seen(conv.weight.detach())),
    "a gradient": lambda _, conv: conv.weight.register_hook(lambda g: g),
    "a gradient's end": lambda _, conv: conv.bias.register_post_accumulate_grad_hook(lambda p: p),
    "its state": lambda _, conv: conv.register_load_state_dict_post_hook(lambda *_: None),
    "what comes back": lambda _, conv: conv.register_full_backward_pre_hook(lambda *_: None),
    "a field": lambda _, conv: setattr(conv, "stride", type("Two", (int,), {})(2)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_layer_that_somebody_changed_is_not_torch_s_own(monkeypatch, change):
    model = nn.Sequential(nn.Conv2d(1, 1, 2, padding="same"), nn.ReLU(), nn.LSTM(2, 2))
    assert fed.ours.of_torch_alone(model)
    change(monkeypatch, model[0])
    assert not fed.ours.of_torch_alone(model)


@pytest.mark.parametrize("activation", [nn.functional.gelu, torch.tanh, "relu"])
def test_layers_that_hold_a_function_of_torch_are_its_own(activation):
    layer = nn.TransformerEncoderLayer(4, 2, 8, activation=activation)
    assert fed.ours.of_torch_alone(layer, nn.BatchNorm1d(2), nn.LSTM(2, 2, 2))
    assert not fed.ours.of_torch_alone(nn.TransformerEncoderLayer(4, 2, 8, activation=abs))


def test_data_that_run_code_have_a_process_of_their_own():
    """A tensor of a class of its own, which somebody has put in place of a client's plain one."""

    class Kept(torch.Tensor):
        seen: ClassVar[list[int]] = []

        @classmethod
        def __torch_function__(cls, function, types, arguments=(), named=None):
            cls.seen.append(1)
            return super().__torch_function__(function, types, arguments, named or {})

    run, _ = server(clients=12)
    for name in ("x", "y"):
        victim = replace(run.clients[3])
        object.__setattr__(victim, name, getattr(victim, name).clone().as_subclass(Kept))
        clients = [*run.clients[:3], victim, *run.clients[4:]]
        with pytest.raises(TypeError, match="processes must be at least 1"):
            fed.train_groups(replace(run, clients=clients), 4, 1, num_classes=3, processes=0)
        Kept.seen.clear()
        fed.train_groups(replace(run, clients=clients), 4, 1, num_classes=3)
        assert not Kept.seen


def test_groups_are_the_same_together_and_in_processes():
    run, _ = server(stacked=False)
    torch.set_num_threads(1)
    together = fed.train_groups(run, 4, 2, num_classes=3)
    apart = fed.train_groups(run, 4, 2, num_classes=3, processes=2)
    alone = [
        replace(
            run,
            clients=[one for one in run.clients if one.id in members],
            seed=fed.groups._part(run, members, ("group", at)).seed,
        )
        .run(2)
        .model
        for at, members in enumerate(together.groups)
    ]
    assert all(same(together, apart))
    assert all(same(together, replace(together, models=tuple(alone))))


@pytest.mark.fast("stacked")
def test_each_group_trains_in_a_stack_of_its_own(monkeypatch):
    run, x = server(clients=40)
    monkeypatch.setattr(fed.abreast.Abreast, "_key", lambda *_: None)
    stacks = []
    fit = fed.training.fit_stacked
    monkeypatch.setattr(
        fed.training,
        "fit_stacked",
        lambda *arguments: stacks.append(len(arguments[2])) or fit(*arguments),
    )
    stacked = fed.train_groups(run, 5, 2, num_classes=3)
    assert stacks == [len(group) for group in stacked.groups] * 2  # round by round
    plain = fed.train_groups(replace(run, stacked=False), 5, 2, num_classes=3)
    for a, b in zip(stacked.models, plain.models, strict=True):
        torch.testing.assert_close(a.weight, b.weight, rtol=1e-5, atol=1e-6)
    assert torch.equal(stacked.votes(x), plain.votes(x))


def test_a_label_that_is_none_changes_no_other_group_by_a_bit():
    """A client with samples that cannot be trained on trains by itself. Who else is in a stack
    decides how its sums are rounded: they are of one group alone."""
    run, _ = server(clients=40)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 3))
    run = replace(run, model=network)
    clean = fed.train_groups(run, 5, 3, num_classes=3)
    victim = clean.groups[2][0]
    labels = run.clients[0].y.clone()
    labels[next(one for one in run.clients if one.id == victim).where[0]] = 7
    bad = [replace(one, y=labels) if one.id == victim else one for one in run.clients]
    spoiled = fed.train_groups(replace(run, clients=bad), 5, 3, num_classes=3)
    assert same(clean, spoiled) == [True, True, False, True, True]


def test_a_group_reads_the_samples_of_its_own_clients(monkeypatch):
    """And not the whole data set that all of them share, for each group and round anew."""
    module, read = sys.modules["rsfl.fed.survey"], []
    inner = module._read
    monkeypatch.setattr(module, "_read", lambda x, *rest: read.append(len(x)) or inner(x, *rest))
    run, _ = server()
    vote = fed.train_groups(run, 5, 2, num_classes=3)
    sizes = sorted(sum(run.registry[id_] for id_ in group) for group in vote.groups)
    assert sorted(read) == sorted(3 * sizes)  # at registration and in each round
    whole = replace(run).run(2).ledger
    assert read[-3:] == [240] * 3
    norms = {one.client: one.input_norm for one in whole.rounds[0].participants}
    for ledger in vote.ledgers.values():
        for one in ledger.rounds[0].participants:
            assert one.input_norm == norms[one.client]


# -- clients of all groups abreast ---------------------------------------------------------------

NETWORKS = {
    "linear": lambda: nn.Linear(4, 3),
    "network": lambda: nn.Sequential(nn.Linear(4, 17), nn.ReLU(), nn.Linear(17, 3)),
    "tanh": lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3)),
}
TRAINERS = {
    "batches": fed.SGD(lr=0.5, batch_size=5, epochs=2, momentum=0.9),
    "whole": fed.SGD(lr=0.5, batch_size=None, epochs=3, decay=0.01),
    "noise": fed.SGD(lr=0.5, batch_size=4, loss=CrossEntropy(Gaussian(0.3))),
}


def abreast(monkeypatch):
    """How many stacks of all groups are trained, from here on."""
    stacks, fit = [], fed.abreast.Abreast._stack
    monkeypatch.setattr(
        fed.abreast.Abreast,
        "_stack",
        lambda self, seats, width: stacks.append(len(seats)) or fit(self, seats, width),
    )
    return stacks


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("kind", NETWORKS)
def test_groups_abreast_are_those_one_by_one(monkeypatch, kind, trainer):
    torch.manual_seed(0)
    run, x = server(NETWORKS[kind](), TRAINERS[trainer], clients=37)
    stacks = abreast(monkeypatch)
    stacked = fed.train_groups(run, 5, 2, num_classes=3)
    assert sum(stacks) >= 2 * 37  # all of them, in both rounds
    plain = fed.train_groups(replace(run, stacked=False), 5, 2, num_classes=3)
    for a, b in zip(stacked.models, plain.models, strict=True):
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    assert (stacked.votes(x) == plain.votes(x)).double().mean() > 0.99


def other(client, change):
    """A client that is not what it was."""
    x, y = client.x.clone(), client.y.clone()
    if change == "huge":
        x *= 1e30
    elif change == "denormal":
        x *= 1e-42
    elif change == "not a number":
        x[:] = torch.nan
    elif change == "labels":
        y = (y + 1) % 3
    elif change == "no label":
        y[:] = 9
    elif change == "two labels a sample":
        y = y[:, None].repeat(1, 2)
    elif change == "no plain numbers":
        x = x.to_sparse()
    elif change == "no numbers at all":
        x, y = x.to("meta"), y.to("meta")
    elif change == "fewer samples":
        return replace(client, indices=client.where[:2])
    elif change == "more samples":
        return replace(client, indices=np.arange(60))
    elif change == "another trainer":
        return replace(client, trainer=fed.SGD(lr=0.1, batch_size=3))
    elif change == "another shape":
        x = torch.cat([x, x], dim=1)
    elif change == "diverges":
        return replace(client, trainer=replace(client.trainer, lr=1e30))
    return replace(client, x=x, y=y)


CHANGES = (
    *("huge", "denormal", "not a number", "labels", "no label", "fewer samples", "more samples"),
    *("another trainer", "another shape", "diverges"),
    *("two labels a sample", "no plain numbers", "no numbers at all"),
)


@pytest.mark.parametrize("change", [*CHANGES, "joins", "leaves", "attacks"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_whatever_one_client_is_changes_no_other_group_by_a_bit(monkeypatch, trainer, change):
    torch.manual_seed(0)
    run, _ = server(NETWORKS["network"](), TRAINERS[trainer], clients=37)
    stacks, attacks, everybody = abreast(monkeypatch), {}, list(run.clients)
    clean = fed.train_groups(run, 5, 2, num_classes=3)
    assert stacks
    victim = clean.groups[2][1]
    if change == "joins":
        newcomer = next(i for i in range(100, 200) if i in group_clients([*range(37), i], 5)[2])
        everybody.append(replace(other(run.clients[victim], "huge"), id=newcomer))
    elif change == "leaves":
        everybody.pop(victim)
    elif change == "attacks":
        attacks = {victim: fed.Attack(data=LabelFlip({0: 1}), update=SignFlip(1e5))}
    else:
        everybody[victim] = other(run.clients[victim], change)
    spoiled = fed.train_groups(
        replace(run, clients=everybody), 5, 2, num_classes=3, attacks=attacks
    )
    assert same(clean, spoiled) == [at != 2 for at in range(5)]


def test_a_stack_that_fails_costs_nobody_else_a_bit(monkeypatch):
    """What no look at a client's samples has foreseen: its stack raises."""
    run, _ = server(NETWORKS["network"](), TRAINERS["batches"], clients=37)
    clean, fit = fed.train_groups(run, 5, 2, num_classes=3), fed.abreast.fit_stacked
    victim, alone = max(clean.groups[2]), []

    def failing(model, layout, clients, *rest):
        if victim in [one.id for one in clients]:
            alone.append({one.id for one in clients})
            raise MemoryError
        return fit(model, layout, clients, *rest)

    monkeypatch.setattr(fed.abreast, "fit_stacked", failing)
    spoiled = fed.train_groups(run, 5, 2, num_classes=3)
    others = [at for at in range(5) if at != 2]
    assert [same(clean, spoiled)[at] for at in others] == [True] * 4
    assert {victim} in alone
    assert not spoiled.failed


def test_garbage_in_one_place_of_a_stack_reaches_no_other():
    """What is looked at before such stacks are used; here a kernel that mixes places is found."""
    run, _ = server(NETWORKS["network"](), clients=37)
    client = run.clients[0]
    task = fed.trainer.Task(1, 0, 0, {}, None, 0.5)
    for width in (1, 5, 64):
        assert fed.abreast.Abreast(run.model, 7)._seen(client, task, width)

    class Mixing(fed.abreast.Abreast):
        pass

    fit = fed.abreast.fit_stacked

    def mixed(*arguments):
        rows = fit(*arguments)
        return rows + 1e-7 * rows[0].nan_to_num(0, 0, 0)

    patched = pytest.MonkeyPatch()
    with patched.context() as patch:
        patch.setattr(fed.abreast, "fit_stacked", mixed)
        assert not fed.abreast.Abreast(run.model, 7)._seen(client, task, 5)


def test_where_places_mix_groups_train_in_stacks_of_their_own(monkeypatch):
    run, _ = server(NETWORKS["network"](), clients=37)
    monkeypatch.setattr(fed.abreast.Abreast, "_seen", lambda *_: False)
    stacks = abreast(monkeypatch)
    vote = fed.train_groups(run, 5, 1, num_classes=3)
    assert not stacks
    assert not vote.failed


class Bad:
    """A client that does something terrible in its first round."""

    def __init__(self, client, deed):
        self.id, self.size, self.trainer = client.id, client.size, client.trainer
        self.client, self.deed = client, deed

    def fit(self, model, task):
        if self.deed == "hang":
            time.sleep(60)
        elif self.deed == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.deed == "exit":
            os._exit(3)
        elif self.deed is not None:
            raise self.deed
        return self.client.fit(model, task)


@pytest.mark.parametrize("deed", ["hang", "kill", "exit"])
def test_what_ends_a_process_ends_one_group(deed):
    run, _ = server()
    victim = group_clients(range(24), 5)[1][0]
    members = [Bad(one, deed if one.id == victim else None) for one in run.clients]
    vote = fed.train_groups(
        replace(run, clients=members), 5, 1, num_classes=3, processes=2, timeout=6.0
    )
    assert list(vote.failed) == [1]
    why = "was not done after 6 s" if deed == "hang" else "ended without a word"
    assert vote.failed[1] == why
    assert [model is None for model in vote.models] == [False, True, False, False, False]
    assert f"Group 1 has no model: {why}" in repr(vote.certify(torch.zeros(2, 4)))


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), GeneratorExit(), SystemExit(3), MemoryError(), BaseException()]
)
def test_whatever_a_client_raises_is_its_own_absence(error):
    run, _ = server()
    members = [Bad(one, error if one.id == 2 else None) for one in run.clients]
    fates = replace(run, clients=members).run(1).ledger.fates(1)
    assert fates.pop(2).startswith(f"absent: raised {type(error).__name__}")
    assert set(fates.values()) == {"used"}
    vote = fed.train_groups(replace(run, clients=members), 4, 1, num_classes=3)
    assert not vote.failed


def test_a_rule_that_raises_ends_its_own_group():
    class Breaks:
        def __call__(self, models, weights):
            if len(models) == len(group_clients(range(24), 5)[3]):
                raise KeyboardInterrupt
            return fed.Mean()(models, weights)

    run, _ = server(aggregate=Breaks())
    vote = fed.train_groups(run, 5, 1, num_classes=3)
    sizes = [len(group) for group in vote.groups]
    assert set(vote.failed) == {at for at, size in enumerate(sizes) if size == sizes[3]}
    assert vote.failed[3] == "KeyboardInterrupt: "


def test_too_few_groups_are_an_error():
    run, _ = server(reject_norm=1e-12)
    with pytest.raises(RuntimeError, match=r"more than half .* 0 of 4: group 0 .*round 1: 0"):
        fed.train_groups(run, 4, 1, num_classes=3)
    with pytest.raises(ValueError, match="more than half of the groups, got 1 of 2"):
        fed.GroupVote((build(), None), ((0,), (1,)), 3)


def test_groups_share_no_draws(tmp_path):
    def tells(model, x, y, task):
        (tmp_path / str(task.client)).write_text(str(task.seed))

    run, _ = server(trainer=tells)
    vote = fed.train_groups(run, 4, 1, num_classes=3, progress=False)
    assert vote.groups == group_clients(range(24), 4, seed=run.seed)
    seeds = {int(path.name): path.read_text() for path in tmp_path.iterdir()}
    by_group = [{seeds[client] for client in group} for group in vote.groups]
    assert [len(found) for found in by_group] == [1] * 4
    assert len(set().union(*by_group, {str(run.seed)})) == 5


def test_progress_counts_the_rounds_before_it_stopped(tmp_path, capsys):
    run, _ = server()
    for rounds, shown in ((1, "groups: 1/1"), (3, "groups: 3/3"), (3, "")):
        fed.train_groups(run, 4, rounds, num_classes=3, checkpoint=tmp_path, progress=True)
        assert capsys.readouterr().err.partition(" (")[0] == shown


def test_groups_go_on_from_their_checkpoints(tmp_path):
    for kind in ("here", "processes"):
        run, _ = server()
        many = {"processes": 0 if kind == "here" else 2, "checkpoint": tmp_path / kind}
        fed.train_groups(run, 4, 1, num_classes=3, **many)
        resumed = fed.train_groups(run, 4, 3, num_classes=3, **many)
        whole = fed.train_groups(run, 4, 3, num_classes=3, processes=many["processes"])
        assert all(same(resumed, whole))
        assert sorted(path.name for path in (tmp_path / kind).iterdir()) == [
            f"group-{at:04d}" for at in range(4)
        ]


def test_no_attack_by_as_many_clients_as_certified_changes_a_label():
    run, x = server()
    vote = fed.train_groups(run, 6, 4, num_classes=3, progress=False)
    certificate = vote.certify(x)
    assert (certificate.votes.sum(dim=1) == 6).all()
    assert torch.equal(certificate.label, certificate.votes.argmax(dim=1))
    assert set(certificate.withstands.tolist()) >= {0, 1, 2}
    for count in (1, 2):
        attacks = {group[0]: fed.Attack(update=SignFlip(30.0)) for group in vote.groups[:count]}
        attacked = fed.train_groups(run, 6, 4, num_classes=3, attacks=attacks, progress=False)
        changed = attacked.certify(x).label != certificate.label
        assert not changed[certificate.withstands >= count].any()
        assert changed.any()


def test_a_group_without_an_answer_does_not_vote():
    run, x = server()
    vote = fed.train_groups(run, 4, 1, num_classes=3, progress=False)
    broken = build()
    nn.init.constant_(broken.weight, float("nan"))
    after = replace(vote, models=(*vote.models[:2], broken, vote.models[3])).certify(x)
    others = replace(
        vote,
        models=(*vote.models[:2], vote.models[3]),
        groups=(*vote.groups[:2], vote.groups[3]),
    )
    assert torch.equal(after.votes, others.votes(x))
    assert (after.silent == 1).all()
    mute = fed.GroupVote((broken,), ((0,),), 3).certify(x[:2])
    assert mute.label.tolist() == [ABSTAIN] * 2
    assert mute.withstands.tolist() == [0, 0]


def test_a_certificate_is_a_record(tmp_path):
    run, x = server()
    certificate = fed.train_groups(run, 6, 2, num_classes=3).certify(x, index=range(5, 245))
    assert "by the vote of 6 groups of clients" in repr(certificate)
    assert "separate-groups (configured)" in repr(certificate)
    assert "<table>" in certificate._repr_html_()
    parts = fed.GroupCertificate.cat([certificate[:7], certificate[7:]])
    assert torch.equal(parts.withstands, certificate.withstands)
    assert certificate[3].index.tolist() == [8]
    certificate.save(tmp_path / "votes.json")
    loaded = fed.GroupCertificate.load(tmp_path / "votes.json")
    assert repr(loaded) == repr(certificate)
    assert torch.equal(loaded.votes, certificate.votes)
    assert torch.equal(loaded.index, certificate.index)
    replace(certificate, withstands=certificate.withstands + 1).save(tmp_path / "more.json")
    with pytest.raises(ValueError, match="withstands is not what the votes give"):
        fed.GroupCertificate.load(tmp_path / "more.json")
    forged = certificate.votes.clone()
    forged[0] = torch.tensor([9, -3, 0])  # six groups, and a lead of twelve
    lead = replace(certificate[:1], votes=forged[:1])
    lead = replace(lead, label=lead.label * 0, withstands=lead.withstands * 0 + 4)
    lead.save(tmp_path / "forged.json")
    with pytest.raises(ValueError, match="not those of 6 groups"):
        fed.GroupCertificate.load(tmp_path / "forged.json")
    given = fed.GroupVote((build(),), ((0,),), 3).certify(x[:1])
    assert "given-groups (trusted)" in repr(given)


@pytest.mark.parametrize("bias", [True, False])
def test_votes_of_one_wide_layer_are_those_one_by_one(bias, monkeypatch):
    x = torch.randn(3000, 4, generator=torch.Generator().manual_seed(1))
    models = []
    for seed in range(20):
        torch.manual_seed(seed)
        model = nn.Linear(4, 3, bias=bias)
        for p in model.parameters():
            nn.init.normal_(p)
        models.append(model)
    with torch.no_grad():
        for p in models[3].parameters():
            p.zero_()  # all outputs tie
        models[5].weight[1] = models[5].weight[0] * (1 + 1e-7)  # some do, but for rounding
        models[7].weight[2, 2] = torch.nan
        models[9].weight *= 1e38
    asked, alone = [], fed.GroupVote._alone
    monkeypatch.setattr(
        fed.GroupVote, "_alone", lambda *these: asked.append(these[1]) or alone(*these)
    )
    vote = fed.GroupVote(tuple(models), tuple((i,) for i in range(20)), 3)
    wide = vote.votes(x)
    assert {3, 7, 9} <= {models.index(model) for model in asked} < set(range(20))
    monkeypatch.setattr(fed.ensemble, "_layers", lambda models: False)
    assert torch.equal(wide, vote.votes(x))
    assert (wide.sum(dim=1) < 20).all()  # not a number: no vote
    # A layer with a hook, or of a class of its own, is asked alone.
    monkeypatch.undo()
    models[0].register_forward_hook(lambda *_: torch.ones(len(x), 3) * torch.tensor([0, 9.0, 0]))
    assert not torch.equal(vote.votes(x), wide)


class Says(nn.Module):
    """The same outputs whatever it is given."""

    def __init__(self, *outputs, dtype=torch.float32):
        super().__init__()
        self.outputs = torch.tensor(outputs, dtype=dtype)

    def forward(self, x):
        return self.outputs.expand(len(x), -1)


def test_outputs_that_are_not_finite_are_no_vote(monkeypatch):
    inf, nan, large = torch.inf, torch.nan, 3e38
    none = [(inf, 0, 0), (0, -inf, 0), (nan, 0, 0), (inf, -inf, 0), (inf, inf, nan)]
    some = [(large, large, 0), (-large, -large, large), (0, 1e-45, 0), (1, 1, 1)]
    models = [Says(*outputs) for outputs in none + some]
    models.append(Says(0, 1e300, 0, dtype=torch.float64))
    vote = fed.GroupVote(tuple(models), tuple((i,) for i in range(len(models))), 3)
    assert vote.votes(torch.zeros(4, 2)).tolist() == [[2, 2, 1]] * 4
    assert vote.votes(torch.zeros(0, 2)).shape == (0, 3)
    monkeypatch.setattr(fed.ensemble, "_COUNTED", 1)  # model after model
    assert vote.votes(torch.zeros(4, 2)).tolist() == [[2, 2, 1]] * 4


def voted(*models):
    return fed.GroupVote(models, tuple((i,) for i in range(len(models))), 3)


def test_a_vote_does_not_depend_on_the_dtype_of_another_s():
    whole = Says(0, 70_000, 1, dtype=torch.int64)  # is infinite as a half
    close = Says(16_777_216, 16_777_217, 0, dtype=torch.int64)  # ties as a float32
    for other in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        vote = voted(whole, Says(1, 0, 0, dtype=other), close)
        assert vote.votes(torch.zeros(2, 2)).tolist() == [[1, 2, 0]] * 2
    for none in (torch.bool, torch.complex64):
        with pytest.raises(TypeError, match=f"models must give real numbers .* got {none}"):
            voted(close, Says(1, 0, 0, dtype=none)).votes(torch.zeros(2, 2))


class Writes(nn.Module):
    """Answers in a buffer that it shares with others."""

    def __init__(self, label, buffer):
        super().__init__()
        self.label, self.buffer = label, buffer

    def forward(self, x):
        self.buffer.zero_()[:, self.label] = 1
        return self.buffer


def test_models_that_answer_in_one_buffer_have_a_vote_each():
    buffer = torch.zeros(2, 3)
    vote = voted(*(Writes(label, buffer) for label in (0, 2, 2)))
    assert vote.votes(torch.zeros(2, 2)).tolist() == [[1, 0, 2]] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("what", ["inputs", "weights"])
def test_a_wide_layer_knows_what_is_too_small_to_be_squared(monkeypatch, dtype, what):
    generator, models = torch.Generator().manual_seed(0), []
    small, close = (1e-25, 2e-7) if dtype == torch.float32 else (1e-170, 4e-16)
    row = torch.randn(64, generator=generator, dtype=dtype)
    for _ in range(40):
        model = nn.Linear(64, 3, bias=False, dtype=dtype)
        with torch.no_grad():
            apart = torch.randint(-1, 2, (3, 64), generator=generator).to(dtype)
            model.weight[:] = row * (1 + close * apart)
            model.weight *= small if what == "weights" else 1
        models.append(model)
    x = torch.randn(20, 64, generator=generator, dtype=dtype) * (small if what == "inputs" else 1)
    vote = voted(*models)
    wide = vote.votes(x)
    monkeypatch.setattr(fed.ensemble, "_layers", lambda models: False)
    assert torch.equal(wide, vote.votes(x))


def test_linear_models_vote_on_no_inputs_at_all():
    assert voted(nn.Linear(4, 3), nn.Linear(4, 3)).votes(torch.zeros(0, 4)).shape == (0, 3)


def test_linear_models_are_asked_alone_where_torch_does_not_say_how_it_rounds(monkeypatch):
    def refuses():
        raise RuntimeError("mix of the legacy and new APIs")

    models, asked, alone = [nn.Linear(4, 3) for _ in range(3)], [], fed.GroupVote._alone
    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuses)
    monkeypatch.setattr(
        fed.GroupVote, "_alone", lambda *these: asked.append(these[1]) or alone(*these)
    )
    assert voted(*models).votes(torch.rand(2, 4)).sum() == 6
    assert asked == models
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    asked.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        voted(*models).votes(torch.rand(2, 4))
    assert asked == models


def test_a_wide_layer_knows_what_cancels(monkeypatch):
    """Weights that are large and cancel: outputs are rounded by more than they are apart."""
    generator, models = torch.Generator().manual_seed(1), []
    x = torch.randn(64, 128, generator=generator)
    x[:, 1] = x[:, 0] + 1e-6 * torch.randn(64, generator=generator)
    for power in (0, 3, 4, 5, 6):
        model = nn.Linear(128, 10)
        with torch.no_grad():
            model.weight.normal_(std=0.1, generator=generator)
            model.bias.normal_(std=0.1, generator=generator)
            model.weight[:, 0] += 10**power
            model.weight[:, 1] -= 10**power
        models.append(model)
    vote = fed.GroupVote(tuple(models), tuple((i,) for i in range(5)), 10)
    wide = vote.votes(x)
    monkeypatch.setattr(fed.ensemble, "_layers", lambda models: False)
    assert torch.equal(wide, vote.votes(x))


def _encoder(heads, first):
    layer = nn.TransformerEncoderLayer(8, heads, 8, norm_first=first, batch_first=True)
    return nn.Sequential(nn.Unflatten(1, (2, 8)), layer, nn.Flatten(), nn.Linear(16, 3))


def _few_digits(_):
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 3)).bfloat16()


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [(lambda i: _encoder(2 ** (i % 3), i % 2 == 0), None), (_few_digits, torch.bfloat16)],
    ids=["settings that no text shows", "dtypes of few digits"],
)
def test_models_vote_as_they_do_by_themselves(kind, dtype):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 16, generator=generator).to(dtype or torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        models = tuple(kind(i).eval() for i in range(40))
    vote = fed.GroupVote(models, tuple((i,) for i in range(40)), 3)
    with torch.no_grad():
        alone = torch.stack([nn.functional.one_hot(m(x).argmax(dim=1), 3) for m in models])
    assert torch.equal(vote.votes(x), alone.sum(dim=0))


def test_outputs_of_another_number_of_labels_are_an_error():
    run, x = server()
    vote = fed.train_groups(run, 4, 1, num_classes=5, progress=False)
    with pytest.raises(ValueError, match=r"outputs \(240, 5\), got \(240, 3\)"):
        vote.votes(x)


def test_what_would_make_groups_dependent_is_refused():
    run, _ = server()
    vote = fed.train_groups(run, 2, 1, num_classes=3, progress=False)
    with pytest.raises(ValueError, match=r"groups must be disjoint, got \(\(0,\), \(0, 1\)\)"):
        fed.GroupVote(vote.models, ((0,), (0, 1)), 3)
    with pytest.raises(ValueError, match="models must be one a group, got 1 for 2 groups"):
        replace(vote, models=vote.models[:1])
    for groups in (((1,), ("1",)), (("1",), ("2",)), ((1,), (True,)), ((0.5,), (1,))):
        with pytest.raises((TypeError, ValueError), match="groups must be"):
            fed.GroupVote(vote.models, groups, 3)
    with pytest.raises(ValueError, match=r"groups must be disjoint, got \(\(1,\), \(1,\)\)"):
        fed.GroupVote(vote.models, ((1,), (1.0,)), 3)
    with pytest.raises(ValueError, match="models must be different objects, got one in several"):
        fed.GroupVote((vote.models[0],) * 2, ((0,), (1,)), 3)
    with pytest.raises(TypeError, match=r"models must be torch\.nn\.Module or None, got str"):
        fed.GroupVote(("a model", vote.models[0]), ((0,), (1,)), 3)
    with pytest.raises(ValueError, match="num_classes must be a count of at least 2"):
        replace(vote, num_classes=1)
    with pytest.raises(ValueError, match=r"failed must name groups without a model, got \[0, 7\]"):
        replace(vote, failed={0: "was late", 7: "was late"})
    with pytest.raises(ValueError, match=r"roster must name the clients 1, 2, got '1', '2'"):
        group_clients([1, 2], 1, roster={"1": 0, "2": 0})
    with pytest.raises(ValueError, match=r"roster must name the clients 1, 2, got '2', 1"):
        group_clients([1, 2], 1, roster={1: 0, "2": 0})
    with pytest.raises(ValueError, match=r"server must have no timeout, .* got 0\.5"):
        fed.train_groups(replace(run, timeout=0.5), 2, 1, num_classes=3, progress=False)
    with pytest.raises(ValueError, match=r"timeout needs processes of at least 1, got timeout=2"):
        fed.train_groups(run, 2, 1, num_classes=3, timeout=2)
    with pytest.raises(ValueError, match=r"attacks must name clients of the server, got \[99\]"):
        fed.train_groups(run, 2, 1, num_classes=3, attacks={99: fed.Attack()}, progress=False)


def test_groups_vote_in_evaluation_mode():
    network = nn.Sequential(nn.Dropout(1.0), nn.Linear(4, 3)).train()
    x = torch.rand(20, 4, generator=torch.Generator().manual_seed(3))
    votes = fed.GroupVote((network,), ((0,),), 3).votes(x)
    assert torch.equal(votes.argmax(dim=1), network[1](x).argmax(dim=1))
    assert network.training


def test_members_that_write_into_their_input_see_what_the_others_do():
    class Centred(nn.Module):
        def forward(self, x):
            return x.sub_(0.5)

    members, x = (Centred(), Centred(), Centred()), torch.tensor([[0.6, 0.2], [0.1, 0.3]])
    votes = fed.GroupVote(members, ((0,), (1,), (2,)), 2).votes(before := x.clone())
    assert votes.tolist() == [[3, 0], [0, 3]]
    assert before.equal(x)


def test_a_stack_that_writes_into_its_input_leaves_it_as_it_was():
    members = [nn.Sequential(nn.CELU(inplace=True), build()) for _ in range(3)]
    vote = fed.GroupVote(tuple(members), ((0,), (1,), (2,)), 3)
    x = torch.randn(10, 4, dtype=next(members[0].parameters()).dtype)
    before = x.clone()
    votes = vote.votes(x)
    assert x.equal(before)
    assert vote.votes(x).equal(votes)
