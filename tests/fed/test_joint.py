"""Clients and inputs at once: no attack by as many clients as certified, and no perturbation inside
the radius, changes a label, separately or together."""

import itertools
import json

import numpy as np
import pytest
import torch
from scipy import special
from torch import nn
from torch.utils.data import TensorDataset

from rsfl import _document, bounds, fed, noise, runs
from rsfl.fed.ensemble import elected
from rsfl.fed.poison import LabelFlip, Noise, Scale, SignFlip
from rsfl.smooth import (
    ABSTAIN,
    Ballot,
    Certificate,
    JointBallot,
    JointCertificate,
    JointSmoother,
    Judge,
    Smoother,
    Votes,
)
from rsfl.verify import verify

SIGMA = 0.5
LAW = noise.Gaussian(SIGMA)


# -- exactly integrated ensembles on the line ----------------------------------------------------


class Line:
    """Groups on the line: between ``edges`` each of them has one label, ``labels`` (pieces, G)."""

    def __init__(self, generator, groups=5, classes=3, pieces=6):
        self.edges = np.sort(generator.normal(scale=1.2, size=pieces - 1))
        leaning = generator.integers(classes, size=(pieces, 1))
        strays = generator.random((pieces, groups)) < generator.uniform(0.05, 0.5)
        other = generator.integers(classes, size=(pieces, groups))
        self.labels = np.where(strays, other, leaning)
        self.classes = classes

    def mass(self, x):
        """(N, pieces): the probability of each piece under the noise."""
        cdf = special.ndtr((self.edges - np.atleast_1d(x)[:, None]) / SIGMA)
        ends = np.zeros((len(cdf), 1)), np.ones((len(cdf), 1))
        return np.diff(np.hstack([ends[0], cdf, ends[1]]), axis=1)

    def counts(self, labels):
        return (labels[..., None] == np.arange(self.classes)).sum(axis=-2)

    def winners(self, labels):
        return self.counts(labels).argmax(axis=-1)  # the first of equals

    def smoothed(self, labels, x):
        """(N, K): the probability of each label of a vote."""
        chosen = self.winners(labels)[:, None] == np.arange(self.classes)
        return self.mass(x) @ chosen


def certified(line, x, m):
    """Label and exact radius at x against m clients."""
    label, withstood = bounds.group_votes(line.counts(line.labels))
    p = [float(line.mass(x)[0] @ ((label == c) & (withstood >= m))) for c in range(line.classes)]
    best = int(np.argmax(p))
    return best, float(LAW.radius(p[best] * (1 - 1e-12)))


def strongest(line, captured, label):
    """Every constant capture of some groups, and the one that fights the label piece by piece with
    the rival that leads there."""
    for rival in set(range(line.classes)) - {label}:
        attacked = line.labels.copy()
        attacked[:, captured] = rival
        yield attacked
    counts = line.counts(np.delete(line.labels, captured, axis=1))
    counts[:, label] = -1
    attacked = line.labels.copy()
    attacked[:, captured] = counts.argmax(axis=1)[:, None]
    yield attacked


def nearest_flip(line, x, label, m, radius):
    """Distance, in radii, of the nearest point at which some capture of m groups changes the
    label, looked for up to one and a half radii away."""
    steps = np.concatenate([np.linspace(0, 0.999, 12), np.linspace(1.001, 1.5, 12)])
    points = np.concatenate([x + steps * radius, x - steps * radius])
    worst = np.inf
    for captured in itertools.combinations(range(line.labels.shape[1]), m):
        for attacked in strongest(line, list(captured), label):
            flipped = line.smoothed(attacked, points).argmax(axis=1) != label
            if flipped.any():
                worst = min(worst, float(np.tile(steps, 2)[flipped].min()))
    return worst


def explored(cases, seed):
    generator = np.random.default_rng(seed)
    found = []
    while len(found) < cases:
        line, x = Line(generator), generator.normal()
        for m in (0, 1, 2):
            label, radius = certified(line, x, m)
            if 0 < radius < np.inf:
                found.append((m, nearest_flip(line, x, label, m, radius)))
    return found


def test_no_capture_of_groups_and_no_shift_inside_the_radius_changes_a_label():
    found = explored(2000, seed=0)
    nearest = {m: [d for n, d in found if n == m] for m in (0, 1, 2)}
    assert min(map(min, nearest.values())) > 1  # nothing within a radius
    for m, distances in nearest.items():
        assert len(distances) > 200
        # Tight: somewhere the label changes just outside.
        assert min(distances) < 1.02, m


@pytest.mark.slow
def test_no_capture_of_groups_changes_a_label_long():
    assert min(distance for _, distance in explored(20_000, seed=1)) > 1


# -- the vote as tensors -------------------------------------------------------------------------


def test_a_vote_on_a_device_is_that_of_the_bounds():
    generator = np.random.default_rng(0)
    votes = generator.integers(0, 5, size=(3000, 4))
    votes[votes.sum(axis=1) == 0] = 1
    label, withstood = elected(torch.from_numpy(votes))
    expected = bounds.group_votes(votes)
    assert label.tolist() == expected[0].tolist()
    assert withstood.tolist() == expected[1].tolist()
    nobody, none = elected(torch.zeros(1, 4, dtype=torch.int64))
    assert (nobody.item(), none.item()) == (ABSTAIN, 0)


class Steps(Judge):
    """Label 1 to the right of 0, on a rung that grows with the distance; no statement below -2."""

    def judged(self, x):
        rung = x[:, 0].abs().floor().long().clamp(max=len(self.ladder) - 1)
        return (x[:, 0] > 0).long(), torch.where(x[:, 0] < -2, -1, rung)


LADDER = ("nobody", "one", "two")
SMOOTHER = JointSmoother(Steps(2, LADDER), LAW)
X = torch.tensor([[1.4], [-1.2], [0.05], [-2.5]])


def test_a_ballot_counts_pairs_and_reads_rung_by_rung():
    ballot = SMOOTHER.ballot(X, n=2000, seed=3)
    counts = ballot.pairs.votes.counts.view(4, 2, 3)
    assert ballot.pairs.votes.n.tolist() == [2000] * 4
    assert ballot.pairs.votes.invalid[3] > 1500  # no statement is no vote
    for rung in range(3):
        there = ballot.at(rung)
        assert torch.equal(there.votes.counts, counts[:, :, rung:].sum(dim=2))
        assert there.votes.n.tolist() == [2000] * 4
        assert LADDER[rung] in there.condition
        exact = special.ndtr((1.4 - max(rung, 0)) / SIGMA)
        assert abs(float(there.votes.counts[0, 1]) / 2000 - exact) < 0.05


def test_the_votes_of_one_rung_are_those_of_the_ballot():
    ballot = SMOOTHER.ballot(X, n=500, seed=3)
    for rung in range(3):
        alone = SMOOTHER.at(rung).ballot(X, n=500, seed=3)
        assert torch.equal(alone.votes.counts, ballot.at(rung).votes.counts)
        assert alone.condition == ballot.at(rung).condition


def test_radii_are_nested_and_those_of_each_rung():
    certificate = SMOOTHER.certify(X, n=5000)
    radii = torch.stack([certificate.radius(rung) for rung in range(3)])
    assert (radii[:-1] >= radii[1:]).all()
    assert radii[0, 0] > radii[1, 0] > 0 == radii[2, 0]
    assert certificate.reach().tolist()[0] == 1
    assert certificate.reach(float(radii[1, 0]) + 0.01).tolist()[0] == 0
    assert certificate.label(1)[2] == ABSTAIN == certificate.label(0)[3]
    ids = {assumption.id for assumption in certificate.assumptions}
    assert {"counted-if-withstood", "fresh-votes", "raw-input"} <= ids


def test_together_shares_alpha():
    ballot = SMOOTHER.ballot(X, n=5000)
    each, union = ballot.certificate(0.003), ballot.certificate(0.003, together=True)
    assert torch.equal(union.radius(0), ballot.certificate(0.001).radius(0))
    assert union.radius(0)[0] < each.radius(0)[0]
    assert "at once" in repr(union)
    assert "and each threat" in repr(each)


def test_only_the_complement_bounds_the_rest():
    at = SMOOTHER.at(1)
    with pytest.raises(ValueError, match="runner_up must be 'complement'"):
        at.certify(X, n=1000, runner_up="bounded")
    with pytest.raises(ValueError, match="prediction"):
        at.predict(X)


def test_certificates_of_one_rung_name_what_the_judgement_rests_on(tmp_path):
    models = tuple(nn.Linear(2, 2) for _ in range(5))
    vote = fed.GroupVote(models, tuple((k,) for k in range(5)), 2)
    smoother, x = JointSmoother(fed.GroupJudge(vote), LAW), torch.randn(3, 2)
    at, data = smoother.at(1), TensorDataset(x, torch.zeros(3).long())
    joint = smoother.certify(x, n=200).at(1)
    found = [joint, at.certify(x, n=200), at.certify_at(x, 0.01, n_max=500)]
    found.append(runs.certify(at, data, out=tmp_path / "run", n=200)[0])
    found.append(runs.load(tmp_path / "run")[0])
    at.certify(x, n=200).save(tmp_path / "c.json")
    found.append(Certificate.load(tmp_path / "c.json"))
    for certificate in found:
        ids = [one.id for one in certificate.assumptions]
        assert {"counted-if-withstood", "given-groups", "registered-clients"} <= set(ids)
        assert len(set(ids)) == len(ids)
        assert (
            "for each, counting votes certified against any 1 client"
            in repr(certificate).splitlines()[0]
        )


def test_a_run_of_one_rung_knows_its_condition(tmp_path):
    """Inputs that cannot be certified are recorded beside the others; a line without its condition
    is none of the run."""
    at = SMOOTHER.at(1)
    x = torch.cat([X, torch.full((1, 1), torch.nan)])
    data = TensorDataset(x, torch.ones(5).long())
    out = tmp_path / "run"
    certificate, _ = runs.certify(at, data, out=out, n=200, on_bad="record")
    assert certificate.n.tolist() == [200] * 4 + [0]
    assert verify(out).false == ()
    (log,) = out.glob("votes-*.jsonl")
    lines = log.read_bytes().splitlines()
    content = json.loads(lines[0])["content"] | {"condition": ""}
    log.write_bytes(_document.line("ballot", 1, content) + b"\n".join(lines[1:]) + b"\n")
    with pytest.raises(ValueError, match="votes of condition '' in a run of 'certified ag"):
        runs.load(out)
    assert "condition is ''" in str(verify(out).false)


def test_ballots_of_two_judges_are_not_one(tmp_path):
    def smoother(seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            models = tuple(nn.Linear(2, 2) for _ in range(3))
        judge = fed.GroupJudge(fed.GroupVote(models, ((0,), (1,), (2,)), 2))
        return JointSmoother(judge, LAW)

    x = torch.randn(2, 2)
    one, again = (smoother(0).ballot(x, n=100, index=[k, k + 1]) for k in (0, 2))
    path = tmp_path / "joint.json"
    JointBallot.cat([one, again]).certificate(0.01).save(path)
    assert len(JointCertificate.load(path)) == 4
    loaded = JointCertificate.load(path).ballot
    with pytest.raises(ValueError, match="parts must agree in judge"):
        JointBallot.cat([loaded, smoother(1).ballot(x, n=100, index=[4, 5])])


def test_the_reach_ends_at_the_first_rung_that_fails():
    """Of several rungs that were read, the highest that holds has had several chances to: in their
    order each has its own."""
    chosen, cast = [[0, 0, 0, 40, 60, 0]], [[0, 0, 0, 0, 1000, 0]]  # two labels, three rungs
    pairs = Ballot(LAW, Votes(torch.tensor(chosen)), Votes(torch.tensor(cast)))
    rungs = JointBallot(pairs, LADDER).certificate(0.001)
    assert rungs.reach().tolist() == [1]
    odd = Ballot(LAW, Votes(torch.tensor([[40, 0, 0, 0, 30, 0]])), Votes(torch.tensor(cast)))
    certificate = JointBallot(odd, LADDER).certificate(0.001)
    assert certificate.at(0).abstained.tolist() == [True]
    assert certificate.at(1).abstained.tolist() == [False]
    assert certificate.reach().tolist() == [-1]


def test_one_radius_at_one_rung_takes_few_votes():
    found = SMOOTHER.at(1).certify_at(X, 0.1, n_max=20_000)
    assert found.label.tolist()[0] == 1
    assert found.n[0] < 3000
    with pytest.raises(ValueError, match=r"rung must be from 0 to 2, got 3"):
        SMOOTHER.at(3)


def test_the_exact_radius_is_never_exceeded_more_often_than_alpha():
    """Two hundred seeds at the boundary: the share of radii above the exact one stays near
    alpha."""
    exact = float(LAW.radius(special.ndtr((1.4 - 1) / SIGMA)))
    x = torch.full((400, 1), 1.4)
    certificate = SMOOTHER.certify(x, n=400, alpha=0.05, rungs=[1])
    above = (certificate.radius(1) > exact).double().mean()
    assert above < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert above > 0


def test_slices_and_files(tmp_path):
    certificate = SMOOTHER.certify(X, n=1000, rungs=[0, 2], together=True)
    one = certificate[0]
    assert len(one) == 1
    assert float(one.radius(0)) == float(certificate.radius(0)[0])
    path = tmp_path / "joint.json"
    certificate.save(path)
    again = JointCertificate.load(path)
    assert repr(again) == repr(certificate)
    assert torch.equal(again.radius(0), certificate.radius(0))
    assert again.assumptions == certificate.assumptions
    assert "<table>" in again._repr_html_()
    with pytest.raises(ValueError, match=r"rung must be one of \[0, 2\], got 1"):
        certificate.radius(1)

    document = json.loads(path.read_text())
    document["content"]["radius"][0][0] = "3.5"
    from rsfl._document import write

    write(path, "joint certificate", 1, document["content"])
    with pytest.raises(ValueError, match=r"radius of input 0 at rung 0 is 3.5 there"):
        JointCertificate.load(path)


def test_errors_name_the_right_call():
    with pytest.raises(TypeError, match=r"judge must be a smooth.Judge, such as fed.GroupJudge"):
        JointSmoother(nn.Linear(2, 2), LAW)
    with pytest.raises(TypeError, match=r"vote must be a fed.GroupVote"):
        fed.GroupJudge(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="threats must be at least one"):
        fed.LinearJudge(nn.Linear(2, 2).double(), [], [])
    with pytest.raises(ValueError, match="rungs must be at least one, ascending"):
        SMOOTHER.ballot(X, n=100).certificate(rungs=[2, 0])


# -- end to end ----------------------------------------------------------------------------------


def federation(seed, clients=15):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[1.5, 0.0], [-1.0, 1.3], [-1.0, -1.3]])
    y = torch.randint(3, (20 * clients,), generator=generator)
    x = centres[y] + 0.5 * torch.randn(len(y), 2, generator=generator)
    members = fed.clients(
        x, y, fed.partition.equal(len(x), clients), fed.SGD(lr=0.5, batch_size=None, epochs=3)
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Linear(2, 3)
    test = centres[y[:12]] + 0.5 * torch.randn(12, 2, generator=generator)
    return fed.Server(model, members, seed=seed), test


class Vote(nn.Module):
    """The group vote as logits."""

    def __init__(self, vote):
        super().__init__()
        self.vote = vote

    def forward(self, x):
        votes = self.vote.votes(x)
        return (votes * votes.shape[1] - torch.arange(votes.shape[1])).float()


ATTACKS = {
    "replacement": fed.Attack(data=LabelFlip({0: 1, 1: 2, 2: 0}), update=Scale(20.0)),
    "flipped labels": fed.Attack(data=LabelFlip({0: 2, 1: 0, 2: 1})),
    "sign": fed.Attack(update=SignFlip(10.0)),
    "anything": fed.Attack(update=Noise(30.0)),
    "nothing that is a number": fed.Attack(update=lambda own, honest, draws: own * torch.nan),
}


def changed(seed, attack, m):
    """Certified predictions, and how many of them an attack by m clients and a perturbation of
    .98 radii in the worst of twelve directions changes."""
    server, x = federation(seed)
    groups = 7
    vote = fed.train_groups(server, groups, 3, num_classes=3)
    law = noise.Gaussian(0.3)
    certificate = JointSmoother(fed.GroupJudge(vote), law).certify(x, n=1000, rungs=[m])
    held = ~certificate.at(m).abstained
    attackers = [group[0] for group in vote.groups if group][:m]
    attacked = fed.train_groups(
        server, groups, 3, num_classes=3, attacks=dict.fromkeys(attackers, attack)
    )
    smoother = Smoother(Vote(attacked), law, 3)
    angles = torch.linspace(0, 2 * torch.pi, 13)[:-1]
    directions = torch.stack([angles.cos(), angles.sin()], dim=1)
    wrong = 0
    for row in held.nonzero()[:, 0]:
        moved = x[row] + 0.98 * float(certificate.radius(m)[row]) * directions
        found = smoother.predict(moved, n=2000, seed=9).label
        wrong += int(((found != certificate.label(m)[row]) & (found != ABSTAIN)).sum())
    return int(held.sum()), wrong


@pytest.mark.parametrize("attack", ATTACKS)
def test_attackers_and_perturbations_change_no_certified_prediction(attack):
    held, wrong = changed(3, ATTACKS[attack], 2)
    assert held >= 4
    assert wrong == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(40))
def test_attackers_and_perturbations_long(seed):
    for attack in ATTACKS.values():
        assert changed(seed, attack, 1 + seed % 3)[1] == 0


# -- one linear model ----------------------------------------------------------------------------


def linear_run(batch_size=None):
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (300,), generator=generator)
    centres = 3 * torch.eye(3, 4, dtype=torch.float64)
    x = centres[y] + 0.3 * torch.randn(300, 4, generator=generator, dtype=torch.float64)
    trainer = fed.SGD(lr=0.05, batch_size=batch_size, decay=0.05)
    model = nn.Linear(4, 3).double()
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    clients = fed.clients(x, y, fed.partition.equal(300, 30), trainer)
    return fed.Server(model, clients).run(20), x[:6], y[:6]


def test_a_linear_judge_counts_margins_above_the_deviation():
    run, x, y = linear_run()
    threats = [bounds.RemovalThreat(at_most=m) for m in (3, 1)]
    judge = fed.LinearJudge(run.model, run.ledger, threats)
    assert judge.ladder[1] == str(threats[1])
    assert (judge.thresholds[1:] >= judge.thresholds[:-1]).all()
    label, rung = judge.judged(x)
    for place, threat in enumerate(sorted(threats, key=lambda one: one.at_most), start=1):
        held = ~fed.certify(run.model, x, run.ledger, threat).abstained
        assert ((rung >= place) == held).all()
    certificate = JointSmoother(judge, noise.Gaussian(0.2)).certify(x, n=1000)
    assert certificate.label(0).tolist() == label.tolist() == y.tolist()
    assert (certificate.radius(1) > 0).any()
    assert (certificate.radius(1) <= certificate.radius(0)).all()
    assert "someone-left" in {one.id for one in certificate.assumptions} or any(
        one.id == "others-honest" for one in certificate.assumptions
    )


def test_a_linear_judge_says_whether_the_run_had_anything_to_draw():
    for batch_size, there, not_there in (
        (None, "any-retraining", "coupled-runs"),
        (5, "coupled-runs", "any-retraining"),
    ):
        run, x, _ = linear_run(batch_size=batch_size)
        threats = [bounds.RemovalThreat(at_most=m) for m in (1, 2)]
        judge = fed.LinearJudge(run.model, run.ledger, threats)
        alone = fed.certify(run.model, x, run.ledger, threats[0])
        for named in (judge.assumptions, alone.assumptions):
            ids = {one.id for one in named}
            assert ids & {there, not_there} == {there}


def test_features_come_before_the_model_and_are_named():
    run, x, _ = linear_run()
    judge = fed.LinearJudge(
        run.model, run.ledger, [bounds.RemovalThreat(at_most=1)], features=lambda z: z * 1.0
    )
    certificate = JointSmoother(judge, noise.Gaussian(0.2)).certify(x, n=500)
    assert "frozen-features" in {one.id for one in certificate.assumptions}


# -- tables and plots ----------------------------------------------------------------------------


def test_accuracy_over_rungs_and_radii(tmp_path):
    certificate = SMOOTHER.certify(X, n=2000)
    labels = [1, 0, 1, 0]
    shares = runs.joint_accuracy(certificate, labels, [0.0, 0.3])
    assert shares.shape == (3, 2)
    assert (np.diff(shares, axis=0) <= 0).all()
    assert (np.diff(shares, axis=1) <= 0).all()
    table = runs.joint_table(certificate, labels, [0.0, 0.3])
    assert table.splitlines()[1].split()[:2] == ["nobody", f"{shares[0, 0]:.3f}"]
    with pytest.raises(TypeError, match=r"certificate must be a smooth.JointCertificate"):
        runs.joint_accuracy(certificate.at(0), labels)
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    axes = runs.plot_joint(certificate, labels, title="both")
    assert [label.get_text() for label in axes.get_yticklabels()] == list(LADDER)
    drawn = axes.collections[0].get_array().reshape(3, -1)
    grid = np.linspace(0, axes.get_xlim()[1], 201)
    assert (drawn == runs.joint_accuracy(certificate, labels, grid)[:, 1:]).all()
    axes.figure.savefig(tmp_path / "joint.png")
    assert (tmp_path / "joint.png").stat().st_size > 5000
