"""From a model to certificates: votes under noise, and what they promise."""

from rsfl._models import evaluating
from rsfl._text import floored, raised
from rsfl.smooth.ballot import Ballot
from rsfl.smooth.certificate import Certificate
from rsfl.smooth.denoised import DiffusionDenoiser
from rsfl.smooth.dual import DualSmoother, best_levels
from rsfl.smooth.dual_certificate import DualCertificate
from rsfl.smooth.exact import ExactCertificate, exact_votes, margins
from rsfl.smooth.input import Smoother
from rsfl.smooth.inputs import Inputs, stacked
from rsfl.smooth.joint import JointBallot, JointCertificate
from rsfl.smooth.judge import JointSmoother, Judge
from rsfl.smooth.measure import Measure
from rsfl.smooth.module import Normalised, SmoothedModule, structure
from rsfl.smooth.named import (
    DeformationSmoother,
    GaussianSmoother,
    LaplaceSmoother,
    UniformSmoother,
)
from rsfl.smooth.orbit_tests import OrbitTests
from rsfl.smooth.orbit_votes import OrbitPlan, orbit_ballot
from rsfl.smooth.orbits import OrbitBallot, OrbitCertificate
from rsfl.smooth.parameter import ParameterSmoother
from rsfl.smooth.preparation import largest_difference, prepared
from rsfl.smooth.reading import (
    ABSTAIN,
    AtRadius,
    ByCount,
    Confidence,
    MostVoted,
    RunnerUp,
    Sequential,
)
from rsfl.smooth.sequential import count_until
from rsfl.smooth.structured import At, Parts, Structured
from rsfl.smooth.voter import Voter
from rsfl.smooth.votes import ESTIMATION, SELECTION, Votes, draw_noise

__all__ = [
    "ABSTAIN",
    "ESTIMATION",
    "SELECTION",
    "At",
    "AtRadius",
    "Ballot",
    "ByCount",
    "Certificate",
    "Confidence",
    "DeformationSmoother",
    "DiffusionDenoiser",
    "DualCertificate",
    "DualSmoother",
    "ExactCertificate",
    "GaussianSmoother",
    "Inputs",
    "JointBallot",
    "JointCertificate",
    "JointSmoother",
    "Judge",
    "LaplaceSmoother",
    "Measure",
    "MostVoted",
    "Normalised",
    "OrbitBallot",
    "OrbitCertificate",
    "OrbitPlan",
    "OrbitTests",
    "ParameterSmoother",
    "Parts",
    "RunnerUp",
    "Sequential",
    "SmoothedModule",
    "Smoother",
    "Structured",
    "UniformSmoother",
    "Voter",
    "Votes",
    "best_levels",
    "count_until",
    "draw_noise",
    "evaluating",
    "exact_votes",
    "floored",
    "largest_difference",
    "margins",
    "orbit_ballot",
    "prepared",
    "raised",
    "stacked",
    "structure",
]
