"""From a model to certificates: votes under noise, and what they promise."""

from rsfl._models import evaluating
from rsfl._text import floored, raised
from rsfl.smooth.ballot import Ballot
from rsfl.smooth.certificate import Certificate
from rsfl.smooth.exact import exact_votes, margins
from rsfl.smooth.input import (
    DeformationSmoother,
    GaussianSmoother,
    LaplaceSmoother,
    Smoother,
    UniformSmoother,
)
from rsfl.smooth.joint import JointBallot, JointCertificate, JointSmoother, Judge
from rsfl.smooth.orbit_votes import OrbitPlan, orbit_ballot
from rsfl.smooth.orbits import OrbitBallot, OrbitCertificate, OrbitTests
from rsfl.smooth.parameter import ParameterSmoother
from rsfl.smooth.reading import ABSTAIN, Confidence, RunnerUp, Sequential
from rsfl.smooth.voter import Voter
from rsfl.smooth.votes import Votes

__all__ = [
    "ABSTAIN",
    "Ballot",
    "Certificate",
    "Confidence",
    "DeformationSmoother",
    "GaussianSmoother",
    "JointBallot",
    "JointCertificate",
    "JointSmoother",
    "Judge",
    "LaplaceSmoother",
    "OrbitBallot",
    "OrbitCertificate",
    "OrbitPlan",
    "OrbitTests",
    "ParameterSmoother",
    "RunnerUp",
    "Sequential",
    "Smoother",
    "UniformSmoother",
    "Voter",
    "Votes",
    "evaluating",
    "exact_votes",
    "floored",
    "margins",
    "orbit_ballot",
    "raised",
]
