"""The register is complete: no certificate names anything that is not in it."""

import re
from collections import Counter

import pytest
import torch
from ledgers import threat
from torch import nn

from rsfl import assumptions, deform, fed, noise
from rsfl.bounds import FeatureThreat
from rsfl.smooth import ParameterSmoother, Smoother, exact_votes, margins

REGISTER = {one.id: one for one in assumptions.register()}
IMAGES = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(1))
IMAGES = IMAGES.mul(255).round().div(255)


def check(certificate):
    for one in certificate.assumptions:
        checked = assumptions.spot_checked(REGISTER[one.id])
        assert one == REGISTER[one.id] or (one == checked and one.id == "one-function")
    assert set(Counter(one.id for one in certificate.assumptions).values()) == {1}


def test_ids_are_unique_and_of_one_form():
    assert len(assumptions.register()) == len(REGISTER)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", id_) for id_ in REGISTER)


LAWS = [
    noise.Gaussian(0.5),
    noise.Uniform(1.0),
    noise.Laplace(0.4),
    noise.RoundedGaussian(0.25),
    deform.Rotation(0.5),
    deform.Translation(0.1),
    deform.Scaling(0.1),
    deform.Affine(0.1),
    deform.DCT(0.1, 2),
    deform.PixelFlow(0.1),
]
PLAIN = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
NORMALISED = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36), nn.Linear(36, 3))
SMOOTHERS = [
    *(Smoother(PLAIN, law, 3) for law in LAWS),
    ParameterSmoother(PLAIN, 0.1, 3),
    ParameterSmoother(NORMALISED, 0.1, 3, parameters=["2.weight", "2.bias"]),
]


@pytest.mark.parametrize("smoother", SMOOTHERS, ids=lambda smoother: str(smoother.law))
def test_what_smoothers_assume_is_registered(smoother):
    check(smoother.certify(IMAGES, n0=5, n=20))
    check(smoother.certify_at(IMAGES, 0.01, n0=5, n_max=100))
    check(smoother.predict(IMAGES, n=20))


WHO = {"named": {"clients": [0]}, "any one": {"at_most": 1}}
LEVELS = {
    "feature": {"norm": 0.01, "per_batch": 1},
    "sample": {"input_norm": 2.0, "per_batch": 1},
    "client": {},
    "forensic": {},
    "removal": {},
}
WAYS = {
    "margin": margins,
    "votes": lambda model, x: exact_votes(model, x, sigma=0.1),
    "sampled votes": lambda model, x: ParameterSmoother(model, 0.1, 2).certify(x, n=50),
    "one radius": lambda model, x: ParameterSmoother(model, 0.1, 2).certify_at(x, 0.01, n_max=100),
}


@pytest.fixture(scope="module")
def trained():
    """A function of the aggregation rule, which gives a run and inputs."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(40, 3, generator=generator, dtype=torch.float64)
    parts = fed.partition.equal(40, 4)
    members = fed.clients(
        x, (x[:, 0] > 0.5).long(), parts, fed.SGD(lr=0.5, batch_size=5, decay=0.1)
    )

    def run(rule):
        server = fed.Server(
            nn.Linear(3, 2).double(),
            members,
            aggregate=rule,
            clip=3.0,
            update_clip=6.0,
            noise_std=0.01,
        )
        return server.run(2, progress=False), x

    return run


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("who", WHO)
@pytest.mark.parametrize("level", LEVELS)
def test_what_certificates_against_poisoning_assume_is_registered(trained, level, who, way):
    result, x = trained(fed.Mean())
    stated = threat(level, **WHO[who], **LEVELS[level])
    check(fed.withstood(WAYS[way](result.model, x), result.ledger, stated))
    check(fed.withstood(WAYS[way](result.model, x), result.ledger, stated, result.model))


def test_what_the_vote_of_groups_assumes_is_registered():
    models = (nn.Linear(3, 2), nn.Linear(3, 2))
    registered = [assumptions.DISJOINT_GROUPS, assumptions.DEALT_GROUPS]
    for apart in [
        (assumptions.GIVEN_GROUPS,),
        *((one, assumptions.SEPARATE_GROUPS) for one in registered),
        (
            assumptions.DISJOINT_GROUPS,
            assumptions.SEPARATE_GROUPS,
            assumptions.APART_NODES,
            assumptions.CLAIMED_CLIENTS,
        ),
    ]:
        vote = fed.GroupVote(models, ((0,), (1,)), 2, apart=apart)
        check(vote.certify(torch.rand(4, 3)))


@pytest.mark.parametrize(
    "rule", [fed.Mean(), fed.GeometricMedian()], ids=lambda rule: type(rule).__name__
)
def test_what_the_published_certificate_assumes_is_registered(trained, rule):
    result, x = trained(rule)
    stated = FeatureThreat(clients=[0], rounds=[1], norm=0.01, per_batch=1)
    votes = ParameterSmoother(result.model, 0.1, 2).certify(x, n=50)
    certificate = fed.published(votes, result.ledger, stated)
    check(certificate)
    check(fed.largest_backdoors(certificate, result.ledger))
