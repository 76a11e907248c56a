"""The numbers of a certificate a second time, in ball arithmetic: every result is enclosed, and no
code is shared with :mod:`rsfl.bounds`.

A :class:`Number` is an exact real that can be enclosed as tightly as is asked. So the question
whether a claimed float lies below or above it has one answer, which no rounding can turn: the
precision grows until the two are told apart.

Needs python-flint: ``pip install 'rsfl[verify]'``.
"""

try:
    import flint  # noqa: F401  before the first module that needs it
except ImportError as error:
    raise ImportError("rsfl.verify needs python-flint: pip install 'rsfl[verify]'") from error

from rsfl.verify.arithmetic.counts import (
    Confidence,
    binomial_tail,
    decides,
    log_wealth,
    lower_probability,
    top_two_p_value,
    upper_probability,
)
from rsfl.verify.arithmetic.crfl import crfl_divergence, crfl_radius, kl_budget
from rsfl.verify.arithmetic.groups import group_votes
from rsfl.verify.arithmetic.linear import affine, length, linear_votes, margin_radius
from rsfl.verify.arithmetic.number import Number, Real, complement, exact
from rsfl.verify.arithmetic.older import lecuyer_radius, li_radius
from rsfl.verify.arithmetic.radii import (
    linf_radius,
    normal_cdf,
    normal_quantile,
    probability,
    radius,
    total_variation,
)

__all__ = [
    "Confidence",
    "Number",
    "Real",
    "affine",
    "binomial_tail",
    "complement",
    "crfl_divergence",
    "crfl_radius",
    "decides",
    "exact",
    "group_votes",
    "kl_budget",
    "lecuyer_radius",
    "length",
    "li_radius",
    "linear_votes",
    "linf_radius",
    "log_wealth",
    "lower_probability",
    "margin_radius",
    "normal_cdf",
    "normal_quantile",
    "probability",
    "radius",
    "top_two_p_value",
    "total_variation",
    "upper_probability",
]
