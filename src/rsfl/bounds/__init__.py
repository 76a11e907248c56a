"""Numbers in, numbers out: confidence bounds, certified radii and poisoning bounds, in float64 and
without torch."""

from rsfl.bounds.condition import CONDITIONS, TRUSTED, ConditionError
from rsfl.bounds.confidence import (
    clopper_pearson_lower,
    clopper_pearson_upper,
    hoeffding_lower,
    hoeffding_upper,
    minimum_trials,
)
from rsfl.bounds.crfl import (
    Attacker,
    contraction,
    crfl_divergence,
    crfl_radius,
    kl_budget,
    logistic_lipschitz,
)
from rsfl.bounds.examination import conditions
from rsfl.bounds.frame import local_factors
from rsfl.bounds.limits import largest_norm, latest_round, most_attackers
from rsfl.bounds.linear import linear_vote_bounds, linear_votes, margin_radius
from rsfl.bounds.poisoned import FeatureThreat, SampleThreat
from rsfl.bounds.poisoning import Deviation, deviation
from rsfl.bounds.radii import (
    cohen_radius,
    laplace_radius,
    lecuyer_radius,
    li_radius,
    linf_radius,
    uniform_radius,
)
from rsfl.bounds.records import Participant, Round, columns_of, participants_of
from rsfl.bounds.sequential import log_wealth, sequential_decision, sequential_minimum_trials
from rsfl.bounds.threat import ClientThreat, ForensicThreat, RemovalThreat, Threat
from rsfl.bounds.top_two import top_two_minimum_trials, top_two_p_value
from rsfl.bounds.tradeoff import gaussian_tradeoff, laplace_tradeoff, uniform_tradeoff
from rsfl.bounds.voting import group_votes

__all__ = [
    "CONDITIONS",
    "TRUSTED",
    "Attacker",
    "ClientThreat",
    "ConditionError",
    "Deviation",
    "FeatureThreat",
    "ForensicThreat",
    "Participant",
    "RemovalThreat",
    "Round",
    "SampleThreat",
    "Threat",
    "clopper_pearson_lower",
    "clopper_pearson_upper",
    "cohen_radius",
    "columns_of",
    "conditions",
    "contraction",
    "crfl_divergence",
    "crfl_radius",
    "deviation",
    "gaussian_tradeoff",
    "group_votes",
    "hoeffding_lower",
    "hoeffding_upper",
    "kl_budget",
    "laplace_radius",
    "laplace_tradeoff",
    "largest_norm",
    "latest_round",
    "lecuyer_radius",
    "li_radius",
    "linear_vote_bounds",
    "linear_votes",
    "linf_radius",
    "local_factors",
    "log_wealth",
    "logistic_lipschitz",
    "margin_radius",
    "minimum_trials",
    "most_attackers",
    "participants_of",
    "sequential_decision",
    "sequential_minimum_trials",
    "top_two_minimum_trials",
    "top_two_p_value",
    "uniform_radius",
    "uniform_tradeoff",
]
