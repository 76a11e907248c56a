"""Numbers in, numbers out: confidence bounds, certified radii and poisoning bounds, in float64 and without torch."""

from rsfl.bounds.confidence import (
    clopper_pearson_lower,
    clopper_pearson_upper,
    hoeffding_lower,
    hoeffding_upper,
    log_wealth,
    minimum_trials,
    sequential_decision,
    sequential_minimum_trials,
    top_two_minimum_trials,
    top_two_p_value,
)
from rsfl.bounds.crfl import Attacker, contraction, crfl_divergence, crfl_radius, kl_budget, logistic_lipschitz
from rsfl.bounds.radii import (
    cohen_radius,
    laplace_radius,
    lecuyer_radius,
    li_radius,
    linf_radius,
    uniform_radius,
)

__all__ = [
    "Attacker",
    "clopper_pearson_lower",
    "clopper_pearson_upper",
    "cohen_radius",
    "contraction",
    "crfl_divergence",
    "crfl_radius",
    "hoeffding_lower",
    "hoeffding_upper",
    "kl_budget",
    "laplace_radius",
    "lecuyer_radius",
    "li_radius",
    "linf_radius",
    "log_wealth",
    "logistic_lipschitz",
    "minimum_trials",
    "sequential_decision",
    "sequential_minimum_trials",
    "top_two_minimum_trials",
    "top_two_p_value",
    "uniform_radius",
]
