r"""Attacks on smoothed models: nearby points at which the smoothed classifier is least sure of the
label.

The target is the smoothed soft classifier :math:`G(x) = E[\mathrm{softmax}\, f(x + \delta)]`, the
objective :math:`-\log G(x')_y` over the points within ``epsilon`` of x, in the norm and unit of the
smoother's law. One loop serves all attacks: gradient, unit step, box, budget; they differ in where
the gradient comes from and in how the budget of a step is set.

For laws of inputs the point is an input. For deformations it is an offset (B, dim) of the
parameters, around zero; :func:`grid_attack` searches these without any gradient.

References:
    Salman et al., Provably robust deep learning via adversarially trained smoothed classifiers,
    2019. Rony et al., Decoupling direction and norm for efficient gradient-based L2 adversarial
    attacks and defenses, 2019. Chen et al., Certifiably-robust federated adversarial learning via
    randomized smoothing, 2021.
"""

from rsfl.attacks.ascent import PGD, SmoothAdvDDN, SmoothAdvPGD
from rsfl.attacks.attack import Attack, Attacked
from rsfl.attacks.estimator import OnePoint
from rsfl.attacks.evaluation import Evaluation, evaluate
from rsfl.attacks.grid import Flips, grid_attack
from rsfl.attacks.objective import (
    checked_labels,
    logits_at,
    one_point_gradient,
    smoothed_cross_entropy,
)
from rsfl.attacks.verified import attacked

__all__ = [
    "PGD",
    "Attack",
    "Attacked",
    "Evaluation",
    "Flips",
    "OnePoint",
    "SmoothAdvDDN",
    "SmoothAdvPGD",
    "attacked",
    "checked_labels",
    "evaluate",
    "grid_attack",
    "logits_at",
    "one_point_gradient",
    "smoothed_cross_entropy",
]
