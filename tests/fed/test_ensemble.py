"""Group voting: disjoint groups, runs of their own, and a count that attackers cannot beat."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from rsfl import fed
from rsfl.fed.ensemble import group_clients
from rsfl.fed.poison import SignFlip


def server(**settings):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(240, 4, generator=generator)
    y = (x[:, :3]).argmax(dim=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
    members = fed.clients(x, y, fed.partition.equal(240, 24), fed.SGD(lr=0.5, batch_size=5))
    return fed.Server(model, members, **settings), x


def test_groups_are_disjoint_complete_equal_and_fixed():
    groups = group_clients(range(100, 123), 5, seed=3)
    assert sorted(sum(groups, ())) == list(range(100, 123))
    assert {len(group) for group in groups} == {4, 5}
    assert group_clients(reversed(range(100, 123)), 5, seed=3) == groups
    assert group_clients(range(100, 123), 5, seed=4) != groups
    with pytest.raises(ValueError, match="groups"):
        group_clients(range(3), 4)
    with pytest.raises(ValueError, match="ids"):
        group_clients([1, 1], 1)


def test_a_client_reaches_its_own_group_only():
    run, _ = server(fraction=0.7, noise_std=0.1)
    clean = fed.train_groups(run, 5, 3, num_classes=3, progress=False)
    victim = clean.groups[2][0]
    attacks = {victim: fed.Attack(update=SignFlip(50.0))}
    attacked = fed.train_groups(run, 5, 3, num_classes=3, attacks=attacks, progress=False)
    same = [
        all((p == q).all() for p, q in zip(a.parameters(), b.parameters(), strict=True))
        for a, b in zip(clean.models, attacked.models, strict=True)
    ]
    assert same == [True, True, False, True, True]


def test_groups_share_no_draws():
    run, _ = server()
    seeds = {}
    members = [
        replace(c, trainer=lambda m, x, y, task: seeds.update({task.client: task.seed}))
        for c in run.clients
    ]
    vote = fed.train_groups(replace(run, clients=members), 4, 1, num_classes=3, progress=False)
    assert vote.groups == group_clients(range(24), 4, seed=run.seed)
    by_group = [{seeds[client] for client in group} for group in vote.groups]
    assert [len(found) for found in by_group] == [1] * 4
    assert len(set().union(*by_group, {run.seed})) == 5


def test_no_attack_by_as_many_clients_as_certified_changes_a_label():
    run, x = server()
    vote = fed.train_groups(run, 6, 4, num_classes=3, progress=False)
    labels, clients = vote.certify(x)
    votes = vote.votes(x)
    assert (votes.sum(dim=1) == 6).all()
    assert labels.tolist() == votes.argmax(dim=1).tolist()
    assert set(clients.tolist()) >= {0, 1, 2}
    for count in (1, 2):
        attacks = {group[0]: fed.Attack(update=SignFlip(30.0)) for group in vote.groups[:count]}
        attacked, _ = fed.train_groups(
            run, 6, 4, num_classes=3, attacks=attacks, progress=False
        ).certify(x)
        changed = attacked != labels
        assert not changed[clients >= count].any()
        assert changed.any()


def test_a_group_without_an_answer_votes_for_label_zero():
    run, x = server()
    vote = fed.train_groups(run, 4, 1, num_classes=3, progress=False)
    broken = nn.Linear(4, 3)
    nn.init.constant_(broken.weight, float("nan"))
    before = vote.votes(x)
    after = replace(vote, models=(*vote.models[:2], broken, None)).votes(x)
    others = replace(vote, models=vote.models[:2], groups=vote.groups[:2]).votes(x)
    assert (after[:, 0] == others[:, 0] + 2).all()
    assert (after[:, 1:] == others[:, 1:]).all()
    assert (before.sum(dim=1) == after.sum(dim=1)).all()
    failing, _ = server(reject_norm=1e-12)
    assert fed.train_groups(failing, 4, 1, num_classes=3, progress=False).models == (None,) * 4


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
    with pytest.raises(ValueError, match=r"server must have no timeout, .* got 0\.5"):
        fed.train_groups(replace(run, timeout=0.5), 2, 1, num_classes=3, progress=False)
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
