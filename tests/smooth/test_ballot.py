"""Evidence and reading: votes are counted once, and read as often as one likes."""

import json
import zlib
from dataclasses import replace

import pytest
import torch
from models import LAWS, MODELS
from torch import nn

from rsfl import _document, bounds, noise
from rsfl.smooth import (
    Ballot,
    Certificate,
    GaussianSmoother,
    ParameterSmoother,
    Sequential,
    Smoother,
    Voter,
    Votes,
)
from rsfl.verify import verify

MODEL = MODELS["staircase"]
X = torch.tensor([0.2, 0.4, 0.6, 1.0]).mul(255).round().div(255)[:, None]


def alike(one, other):
    for name, value in one._columns():
        assert torch.equal(value, getattr(other, name)), name
    rest = ("alpha", "law", "seed", "assumptions", "reading", "rule", "dim", "model")
    assert [getattr(one, name) for name in rest] == [getattr(other, name) for name in rest]


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_readings_are_what_the_smoother_says_and_ask_no_model(law):
    smoother = Smoother(MODEL, law, 4)
    shared = {"seed": 3, "index": [4, 5, 6, 2**40]}
    ballot, at = smoother.ballot(X, n=400, **shared), smoother.ballot_at(X, 0.05, **shared)
    expected = {
        alpha: [
            smoother.certify(X, n=400, alpha=alpha, **shared),
            smoother.certify(X, n=400, alpha=alpha, runner_up="bounded", **shared),
            smoother.predict(X, n=400, alpha=alpha, **shared),
        ]
        for alpha in (0.001, 0.05)
    }
    sequential = smoother.certify_at(X, 0.05, **shared)
    smoother.model = smoother.count = None  # nothing below asks for votes
    for alpha, (plain, bounded, predicted) in expected.items():
        alike(ballot.certificate(alpha), plain)
        alike(ballot.certificate(alpha, runner_up="bounded"), bounded)
        alike(ballot.prediction(alpha), predicted)
    alike(at.certificate_at(), sequential)
    assert sequential.rule == Sequential(0.05, 0.001, 100_000)


def test_votes_that_somebody_else_counted_are_read_in_five_lines():
    first = Votes(torch.tensor([[100, 0, 0]]))
    others = Votes(torch.tensor([[0, 990, 5], [990, 5, 0]])[1:], torch.tensor([5]))
    ballot = Ballot(noise.Gaussian(0.5), first, others)
    certificate = ballot.certificate(alpha=0.01)
    lower = bounds.clopper_pearson_lower(990, 1000, 0.01)
    assert float(certificate.radius) == bounds.cohen_radius(lower, sigma=0.5)
    assert (int(certificate.label), int(certificate.n), certificate.index.tolist()) == (
        0,
        1000,
        [0],
    )


def test_what_stopped_votes_decides_what_they_allow():
    smoother = GaussianSmoother(MODEL, 0.05, 4)
    at, fixed = smoother.ballot_at(X, 0.05, n_max=2000), smoother.ballot(X, n=500)
    for call in (at.certificate, at.prediction):
        with pytest.raises(ValueError, match="must be of votes whose number was fixed"):
            call()
    with pytest.raises(ValueError, match="radius and alpha must be given for votes whose number"):
        fixed.certificate_at()
    read = fixed.certificate_at(0.05, 0.01)
    assert set(read.radius.tolist()) == {0.0, 0.05}
    bare = smoother.ballot(X, n0=0, n=100)
    assert bare.selection is None
    with pytest.raises(ValueError, match="selection must hold votes that select the class, got No"):
        bare.certificate()
    for ballot in (fixed, at):
        with pytest.raises(
            ValueError, match=r"alpha must be at most 0.5, got 0.999: it is the prob"
        ):
            ballot.certificate_at(0.1, 0.999)


def test_the_sequential_reading_errs_no_more_than_alpha_whatever_stopped_the_votes():
    """At the boundary of what is true, read at another level and radius than it was stopped by."""
    model, law, size = MODELS["threshold"], noise.Gaussian(0.5), 4000
    x = torch.full((size, 1), 0.9)  # the exact radius is 0.4
    smoother = Smoother(model, law, 2)
    for ballot in (
        smoother.ballot_at(x, 0.2, n0=10, alpha=0.001, n_max=600),
        smoother.ballot_at(x, 0.6, n0=10, alpha=0.2, n_max=600),
        smoother.ballot(x, n0=10, n=300),
    ):
        false = int((ballot.certificate_at(0.4 + 1e-9, 0.05).label == 1).sum())
        assert false <= 0.05 * size + 4 * (0.05 * size) ** 0.5


def test_votes_that_had_to_meet_a_condition_bound_no_rival():
    votes = Votes(torch.tensor([[700, 10]]), torch.tensor([290]))
    ballot = Ballot(noise.Gaussian(0.5), votes, votes, condition="held by 3 groups")
    lower = bounds.clopper_pearson_lower(700, 1000, 0.001)
    certificate = ballot.certificate()
    assert float(certificate.p_upper) == 1 - lower
    with pytest.raises(ValueError, match="runner_up must be 'complement' for votes that had to be"):
        ballot.certificate(runner_up="bounded")
    with pytest.raises(ValueError, match="a prediction must be of all votes"):
        ballot.prediction()


def test_a_condition_of_votes_is_said_and_assumed(tmp_path):
    votes = Votes(torch.tensor([[100, 0]]))
    ballot = Ballot(noise.Gaussian(0.5), votes, votes, condition="held by 3 groups")
    certificate = ballot.certificate()
    assert "counting votes held by 3 groups" in repr(certificate)
    assert "counted-if-withstood" in {one.id for one in certificate.assumptions}
    certificate.save(tmp_path / "certificate.json")
    assert verify(tmp_path / "certificate.json").status == 0
    assert Certificate.load(tmp_path / "certificate.json").assumptions == certificate.assumptions
    bare = _document.read(tmp_path / "certificate.json", "certificate", 2)
    bare["assumptions"] = [a for a in bare["assumptions"] if a["id"] != "counted-if-withstood"]
    _document.write(tmp_path / "bare.json", "certificate", 2, bare)
    assert verify(tmp_path / "bare.json").status == 1


def ballots():
    smoother = Smoother(MODEL, LAWS["rounded"], 4)
    torch.manual_seed(0)
    parameters = ParameterSmoother(nn.Linear(1, 4), 0.1, 4, parameters=["bias"])
    return {
        "fixed": smoother.ballot(X, n=200, index=[3, 1, 2, 2**40]),
        "sequential": smoother.ballot_at(X, 0.05, n_max=1000),
        "prediction only": smoother.ballot(X, n0=0, n=200),
        "parameters": parameters.ballot(X, n=50),
        "empty": replace(
            smoother.ballot(X, n=50),
            **{
                name: Votes(torch.zeros((0, 4), dtype=torch.int64))
                for name in ("selection", "votes")
            },
            index=torch.arange(0),
            inputs=torch.arange(0),
        ),
    }


@pytest.mark.parametrize("name", ["fixed", "sequential", "prediction only", "parameters", "empty"])
def test_a_saved_ballot_is_the_same_evidence(tmp_path, name):
    ballot = ballots()[name]
    ballot.save(tmp_path / "ballot.json")
    again = Ballot.load(tmp_path / "ballot.json")
    assert again.document() == ballot.document()
    if name == "sequential":
        alike(again.certificate_at(), ballot.certificate_at())
    elif name == "prediction only":
        alike(again.prediction(), ballot.prediction())
    else:
        alike(again.certificate(), ballot.certificate())


def test_ballots_of_several_inputs_are_one():
    smoother = GaussianSmoother(MODEL, 0.5, 4)
    whole = smoother.ballot(X, n=200)
    parts = [smoother.ballot(X[i : i + 1], n=200, index=[i]) for i in range(4)]
    assert Ballot.cat(parts).document() == whole.document()
    assert Ballot.of_document(*(part.document() for part in parts)).document() == whole.document()
    for other, name in (
        (smoother.ballot(X, n=200, seed=1), "seed"),
        (GaussianSmoother(MODEL, 0.25, 4).ballot(X, n=200), "law"),
        (smoother.ballot_at(X, 0.1, n_max=200), "rule"),
    ):
        with pytest.raises(ValueError, match=f"must agree in {name}"):
            Ballot.cat([whole, other])
        with pytest.raises(ValueError, match=f"must agree in {name}"):
            Ballot.of_document(whole.document(), other.document())
    with pytest.raises(ValueError, match="parts must not be empty"):
        Ballot.cat([])


def forged(path, **changes):
    """The file with some of its content changed, and its checksum computed anew."""
    document = json.loads(path.read_text())
    document["content"] |= changes
    document["crc32"] = zlib.crc32(json.dumps(document["content"]).encode())
    path.write_text(json.dumps(document) + "\n")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"radius": ["3.5"] * 4}, r"the radius of input 0 is 3.5 in the file, and 0\.\d+ follows"),
        ({"radius": ["0.0"] * 4}, r"the radius of input 0 is 0.0 in the file, and"),
        ({"radius": ["nan"] * 4}, r"the radius of input 0 is nan in the file, and"),
        ({"radius": ["0.1"] * 3}, "radius must hold 4 numbers, got 3"),
        ({"label": [3, 3, 3, 3]}, "the label of input 0 is 3 in the file, and 1 follows"),
        ({"p_lower": ["1.0"] * 4}, "the p_lower of input 0 is 1.0 in the file, and"),
        ({"alpha": 0.01}, r"the radius of input 0 is 0\.\d+ in the file, and 0\.\d+ follows"),
        ({"alpha": 0.9}, "alpha must be at most 0.5"),
        ({"reading": {"name": "radius", "runner_up": "bounded", "confidence": "hoeffding"}}, "is"),
        ({"reading": {"name": "at", "radius": 9.0}}, "radius must be one that"),
        ({"law": {"name": "Gaussian", "sigma": 5.0}}, "the radius of input 0 is"),
        ({"counts": [{"0": 201}] * 4}, "201 votes of 200 are accounted for"),
        ({"counts": [{"7": 200}] * 4}, "a vote for 7, none of the 4 classes"),
        ({"counts": [{"0": 200}] * 4}, "input"),
        ({"n": [2000] * 4}, "the label of input 0 is 1 in the file, and -1 follows"),
    ],
)
def test_a_certificate_that_does_not_follow_from_its_votes_is_refused(tmp_path, changes, words):
    path = tmp_path / "certificate.json"
    GaussianSmoother(MODEL, 0.05, 4).certify(X, n=200).save(path)
    forged(path, alpha=0.001)
    assert len(Certificate.load(path)) == 4
    forged(path, **changes)
    with pytest.raises(ValueError, match=words):
        Certificate.load(path)


def test_a_sequential_certificate_does_not_follow_by_counting(tmp_path):
    path = tmp_path / "certificate.json"
    GaussianSmoother(MODEL, 0.5, 4).certify_at(X, 0.05, n_max=500).save(path)
    found = _document.read(path, "certificate", 2)
    assert found["rule"]["name"] == "sequential"
    assert found["reading"] == {"name": "at", "radius": 0.05}
    forged(path, reading={"name": "radius", "runner_up": "complement", "confidence": "hoeffding"})
    with pytest.raises(ValueError, match="must be of votes whose number was fixed"):
        Certificate.load(path)


class Remote(Voter):
    """Votes that come from elsewhere: here, from a coin."""

    def count(self, x, index, start, stop, *, seed, stage=1, batch_size=None):
        row = torch.tensor([0.9, 0.1, 0.0]) * (stop - start)
        return Votes(row.long().repeat(len(x), 1), torch.full((len(x),), 0))


def test_a_backend_of_ones_own_counts_votes_and_no_more(tmp_path):
    from rsfl import runs

    remote = Remote(noise.Gaussian(0.5), 3)
    assert repr(remote) == "Remote(Gaussian(sigma=0.5), num_classes=3)"
    certificate = remote.certify(X, n=1000)
    assert certificate.label.tolist() == [0] * 4
    assert {a.id: a.basis for a in certificate.assumptions}["one-function"] == "trusted"
    assert torch.equal(remote.predict(X, n=1000).label, certificate.label)
    at = remote.certify_at(X, 0.1)
    assert at.radius.tolist() == [0.1] * 4
    run, labels = runs.certify(remote, (X, torch.tensor([0, 0, 1, 0])), out=tmp_path, n=1000)
    assert torch.equal(run.radius, certificate.radius)
    assert runs.certified_accuracy(run, labels, 0.0) == 0.75


class Above(Voter):
    """A threshold in code of one's own."""

    def __init__(self, threshold, model=None):
        super().__init__(noise.Gaussian(0.5), 2, model=model)
        self.settings = {"threshold": threshold}

    def count(self, x, index, start, stop, *, seed, stage=1, batch_size=None):
        label = (x.flatten(1)[:, 0] > self.settings["threshold"]).long()
        return Votes(torch.nn.functional.one_hot(label, 2) * (stop - start))


@pytest.mark.parametrize("model", [None, torch.nn.Linear(4, 2)])
def test_a_backend_is_another_where_it_holds_other_things(tmp_path, model):
    """Its answers about the first input did not tell: votes of both were mixed."""
    from rsfl import runs

    data = torch.tensor([[9.0] * 4, [1.0] * 4]), torch.tensor([1, 1])
    runs.certify(Above(0.0, model), data, out=tmp_path, n=1000)
    runs.certify(Above(0.0, model), data, out=tmp_path, n=1000)
    with pytest.raises(ValueError, match=r"another run: model is .* differs in attributes"):
        runs.certify(Above(5.0, model), data, out=tmp_path, n=1000)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda v: Ballot(0.5, v, v), TypeError, "law must be a noise.Law, got 0.5"),
        (lambda v: Ballot(noise.Gaussian(1), v, v.counts), TypeError, "votes must be smooth.Votes"),
        (
            lambda v: Ballot(noise.Gaussian(1), Votes(torch.ones((2, 3)).long()), v),
            ValueError,
            r"selection must be of the same inputs and classes as votes, \(1, 3\), got \(2, 3\)",
        ),
        (
            lambda v: Ballot(noise.Gaussian(1), v, Votes(v.counts.float())),
            TypeError,
            "votes.counts must be int64 of 2 dimensions, got torch.float32",
        ),
        (
            lambda v: Ballot(noise.Gaussian(1), v, Votes(-v.counts)),
            ValueError,
            "votes must hold no negative number",
        ),
        (
            lambda v: Ballot(noise.Gaussian(1), v, v, [1, 2]),
            ValueError,
            "index must hold 1 whole numbers",
        ),
        (lambda v: Sequential(0.5, 0.8, 10), ValueError, "alpha must be at most 0.5, got 0.8"),
    ],
)
def test_bad_ballots_are_named(call, error, words):
    with pytest.raises(error, match=words):
        call(Votes(torch.tensor([[3, 2, 1]])))


def test_an_alpha_that_was_meant_as_confidence_is_told():
    smoother = GaussianSmoother(MODEL, 0.5, 4)
    for call in (
        lambda: smoother.certify(X, alpha=0.999),
        lambda: smoother.predict(X, alpha=0.95),
        lambda: smoother.certify_at(X, 0.1, alpha=0.99),
    ):
        with pytest.raises(ValueError, match=r"so 0.0\d+ is 9\d.* % confidence"):
            call()


def test_a_prediction_prints_no_radius():
    text = repr(GaussianSmoother(MODEL, 0.5, 4).predict(X, n=100))
    assert text.startswith("Prediction of 4 inputs")
    assert "radius" not in text
    assert "p_lower" not in text
