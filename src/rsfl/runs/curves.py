"""Summaries of a certified test set. A radius promises an open ball, so "at r" means perturbations
of norm below r."""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from rsfl import bounds
from rsfl._checks import Float64, Floats, Int64, level, number, numbers, unwrapped
from rsfl.smooth import ABSTAIN, Certificate, Measure

__all__ = [
    "Certified",
    "accuracy_interval",
    "average_certified_radius",
    "certified_accuracy",
    "certified_rate",
    "comparable",
    "correct",
    "envelope",
    "high_probability_accuracy",
    "independent",
    "one_test_set",
]


class Certified(Protocol):
    """A certified test set: a :class:`rsfl.smooth.Certificate`, or what a published file says of
    one."""

    def __len__(self) -> int: ...
    @property
    def label(self) -> Tensor:
        """(B,) int64, the certified class or ``ABSTAIN``."""

    @property
    def radius(self) -> Tensor:
        """(B,) float64, 0 where it abstains."""

    @property
    def index(self) -> Tensor:
        """(B,) int64, which inputs these are."""

    @property
    def norm(self) -> str:
        """The norm of the radius."""

    @property
    def unit(self) -> str:
        """The unit of the radius."""


def _radii(certificate: Certified) -> tuple[Float64, NDArray[np.bool_]]:
    if len(certificate) == 0:
        raise ValueError("certificate must hold at least one input, got 0")
    return certificate.radius.cpu().numpy(), certificate.label.cpu().numpy() != ABSTAIN


def independent(certificate: Certified) -> None:
    """Raise ValueError where the inputs are known to share their noise, and so their errors."""
    if isinstance(certificate, Certificate) and certificate.space not in ("input", "parametric"):
        raise ValueError(
            f"certificate must be of inputs with noise of their own, got one in "
            f"{certificate.space} space"
        )
    index, times = np.unique(certificate.index.cpu().numpy(), return_counts=True)
    if times.max(initial=1) > 1:
        raise ValueError(
            f"certificate must be of inputs with noise of their own, got {times.max()} with the "
            f"index "
            f"{index[times.argmax()]}: the draws follow from it, so give certify(..., index=...) "
            f"another for each input"
        )


def correct(certificate: Certified, labels: ArrayLike) -> NDArray[np.bool_]:
    """(B,) where the certified label is the true one."""
    truth = np.asarray(labels)
    if truth.shape != (len(certificate),):
        raise ValueError(
            f"labels must have shape ({len(certificate)},), got {truth.shape}: the number of a "
            f"class for each input"
        )
    if isinstance(certificate, Certificate):
        # An input that was recorded as one that cannot be certified may have any label.
        width, voted = certificate.counts.shape[1], truth[certificate.n.cpu().numpy() > 0]
        if voted.max(initial=0) >= width:
            raise ValueError(
                f"labels must be classes in [0, {width}), got {voted.max()}: labels count from 0"
            )
    label = certificate.label.cpu().numpy()
    return np.asarray((label == truth) & (label != ABSTAIN))


def _share_beyond(radius: Float64, counted: NDArray[np.bool_], radii: ArrayLike) -> Floats:
    r = numbers("radii", radii, 0)
    return unwrapped(np.asarray(((radius >= r[..., None]) & counted).mean(axis=-1)))


def certified_accuracy(certificate: Certified, labels: ArrayLike, radii: ArrayLike) -> Floats:
    """The share of inputs that are classified correctly and certified against every perturbation of
    norm below r.

    Args:
        certificate: The certificates of a test set.
        labels: (B,) its true labels.
        radii: The r asked for, at least 0; any shape.

    Returns:
        A share for each r.

    Raises:
        ValueError: labels do not fit the certificate, or a radius is negative.
    """
    radius, _ = _radii(certificate)
    return _share_beyond(radius, correct(certificate, labels), radii)


def certified_rate(certificate: Certified, radii: ArrayLike) -> Floats:
    """The share of inputs whose label, right or wrong, is certified against every perturbation of
    norm below r.

    Args:
        certificate: The certificates of a test set.
        radii: The r asked for, at least 0; any shape.

    Returns:
        A share for each r.

    Raises:
        ValueError: A radius is negative.
    """
    radius, made = _radii(certificate)
    return _share_beyond(radius, made, radii)


def average_certified_radius(certificate: Certified, labels: ArrayLike) -> float:
    """The mean radius, counting 0 where the label is wrong or the certificate abstains.

    It rewards a few very large radii; read it beside the curve.

    Args:
        certificate: The certificates of a test set.
        labels: (B,) its true labels.

    Returns:
        The mean, inf if a correct input has an infinite radius.

    Raises:
        ValueError: labels do not fit the certificate.
    """
    radius, _ = _radii(certificate)
    return float(np.where(correct(certificate, labels), radius, 0.0).mean())


def accuracy_interval(
    certificate: Certified, labels: ArrayLike, radii: ArrayLike, *, level: float = 0.95
) -> tuple[Floats, Floats]:
    r"""A confidence interval for certified accuracy on the population that the test set was drawn
    from.

    Two Clopper-Pearson bounds at :math:`(1 - \text{level}) / 2` each: it covers with at least the
    stated probability, for each r by itself.

    Assumes:
        The inputs are independent draws from the population, and each was certified with noise of
        its own. Noise that all inputs share, as in parameter smoothing, or that batches share
        because they were certified under the same ``index``, makes their certificates dependent,
        and this interval wrong. That a certificate may itself be wrong (its alpha) is left to
        :func:`high_probability_accuracy`.

    Args:
        certificate: The certificates of a test set.
        labels: (B,) its true labels.
        radii: The r asked for, at least 0; any shape.
        level: Probability in (0, 1) with which each interval covers.

    Returns:
        Lower ends (never above the exact ones) and upper ends (never below), for each r.

    Raises:
        ValueError: labels do not fit, an argument is out of its range, or inputs shared their
            noise.
    """
    spent = (1 - number("level", level, 0, 1, open_low=True, open_high=True)) / 2
    independent(certificate)
    hits = np.rint(np.asarray(certified_accuracy(certificate, labels, radii)) * len(certificate))
    return (
        bounds.clopper_pearson_lower(hits, len(certificate), spent),
        bounds.clopper_pearson_upper(hits, len(certificate), spent),
    )


def high_probability_accuracy(
    certificate: Certified,
    labels: ArrayLike,
    radii: ArrayLike,
    *,
    alpha: float | None = None,
    rho: float = 0.001,
) -> Floats:
    r"""Certified accuracy on this test set that holds for all its inputs together, with probability
    1 - rho.

    Each certificate may be wrong with probability :math:`\alpha`, so of m independent ones more
    than k are wrong with probability at most :math:`P[\mathrm{Bin}(m, \alpha) > k]`. The smallest k
    for which that is at most :math:`\rho` is taken off, at every r alike.

    Assumes:
        The draws of different inputs are independent: not those of parameter smoothing, nor those
        of batches that were certified under the same ``index``.

    Args:
        certificate: The certificates of a test set.
        labels: (B,) its true labels.
        radii: The r asked for, at least 0; any shape.
        alpha: Failure probability of each certificate, in (0, 1): by default its own, and never
            less. A published file does not say it.
        rho: Probability in (0, 1) with which the result may be too large.

    Returns:
        A lower bound on the share of inputs that the smoothed classifier gets right within r, at
        all r at once.

    Raises:
        ValueError: labels do not fit, an argument is out of its range, or inputs shared their
            noise.

    References:
        Cohen et al., "Certified adversarial robustness via randomized smoothing", ICML 2019, for
        the question. The closed form in their public code,
        :math:`\alpha + \sqrt{\alpha(1 - \alpha) \log(1/\rho) / m} + \log(1/\rho) / (3m)`, takes off
        more than this at m = 500 and too little at m = 10,000 (it then fails with probability .0016
        where .001 was asked).
    """
    independent(certificate)
    own: float | None = getattr(certificate, "alpha", None)
    if alpha is None and own is None:
        raise ValueError("alpha must be given for a published test set, which does not say it")
    alpha = level("alpha", own if alpha is None else alpha)
    if own is not None and alpha < own:
        raise ValueError(
            f"alpha must be at least {own!r}, with which the certificates were made, got {alpha!r}"
        )
    rho = level("rho", rho)
    share, m = np.asarray(certified_accuracy(certificate, labels, radii)), len(certificate)
    # P[Bin(m, alpha) > k] <= rho just where the lower bound of k + 1 successes at rho reaches alpha
    wrong = bisect_left(
        range(m), True, key=lambda k: bounds.clopper_pearson_lower(k + 1, m, rho) >= alpha
    )
    return unwrapped(np.maximum((np.rint(share * m) - wrong) / m, 0.0))


def envelope(curves: Mapping[str, tuple[Certified, ArrayLike]], radii: ArrayLike) -> Floats:
    """The best certified accuracy among several runs at each radius.

    It is what one would get by choosing the run for each radius with the test set's help; no one
    classifier has it.

    Args:
        curves: Name of a run -> (certificates, true labels).
        radii: The r asked for, at least 0; any shape.

    Returns:
        A share for each r.

    Raises:
        ValueError: There is no run, or they differ in what they measure or in their test sets.
    """
    comparable(curves)
    one_test_set(curves.values())
    return unwrapped(np.max([certified_accuracy(*pair, radii) for pair in curves.values()], axis=0))


def comparable(curves: Mapping[str, tuple[Certified, ArrayLike]]) -> tuple[str, str]:
    """The norm and the unit that the runs share; ValueError if they share none."""
    if not isinstance(curves, Mapping):
        raise TypeError(
            f"curves must be a mapping {{name: (certificate, labels)}}, got {type(curves).__name__}"
        )
    if not curves:
        raise ValueError(f"curves must not be empty, got {curves!r}")
    measures = {(certificate.norm, certificate.unit) for certificate, _ in curves.values()}
    if len(measures) > 1:
        raise ValueError(f"curves must share one norm and unit, got {sorted(measures)}")
    told = (_space(certificate) for certificate, _ in curves.values())
    spaces = {space for space in told if space}
    if len(spaces) > 1:
        raise ValueError(f"curves must share one space, got {sorted(spaces)}")
    return measures.pop()


def _space(certificate: Certified) -> str:
    """What the radii of a certificate are distances of, "" where it does not say it. The parameters
    of each deformation are a space of their own."""
    law: Measure | None = getattr(certificate, "law", None)
    if law is None:
        return ""
    return type(law).__name__ if law.space == "parametric" else law.space


def one_test_set(tests: Iterable[tuple[Certified, ArrayLike]]) -> None:
    """Raise ValueError if some of these are not of the same inputs with the same true labels.

    Where both sides know their inputs these decide, whatever their numbers and order; elsewhere
    inputs are the same that have the same number.
    """
    first, *others = [(certificate, np.asarray(labels)) for certificate, labels in tests]
    for other in others:
        known = all(_hashes(certificate) is not None for certificate, _ in (first, other))
        if _listed(*first, known) != _listed(*other, known):
            sizes = [len(certificate) for certificate, _ in (first, *others)]
            why = "whose inputs differ" if known else "whose labels differ by their index"
            raise ValueError(
                f"curves must be of one test set, got others, of {sizes} inputs, {why}"
            )


def _hashes(certificate: Certified) -> Int64 | None:
    """Hashes of the inputs, None where some are unknown."""
    found: Tensor | None = getattr(certificate, "inputs", None)
    hashes = None if found is None else found.cpu().numpy()
    return hashes if hashes is not None and bool((hashes != 0).all()) else None


def _listed(certificate: Certified, labels: Int64, known: bool) -> list[tuple[int, int]]:
    correct(certificate, labels)  # which are as many
    hashes = _hashes(certificate) if known else None
    names = certificate.index.cpu().numpy() if hashes is None else hashes
    return sorted(zip(names.tolist(), labels.tolist(), strict=True))
