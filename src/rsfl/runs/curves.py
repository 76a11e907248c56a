"""Summaries of a certified test set. A radius promises an open ball, so "at r" means perturbations of norm below r."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rsfl._checks import Float64, Floats, numbers, unwrapped
from rsfl.smooth import ABSTAIN, Certificate

__all__ = ["average_certified_radius", "certified_accuracy", "certified_rate"]


def _radii(certificate: Certificate) -> tuple[Float64, NDArray[np.bool_]]:
    certificate = certificate.cpu()
    if len(certificate) == 0:
        raise ValueError("certificate must hold at least one input, got 0")
    return certificate.radius.numpy(), certificate.label.numpy() != ABSTAIN


def _correct(certificate: Certificate, labels: ArrayLike) -> NDArray[np.bool_]:
    truth = np.asarray(labels)
    if truth.shape != (len(certificate),):
        raise ValueError(f"labels must have shape ({len(certificate)},), got {truth.shape}")
    return np.asarray(certificate.label.cpu().numpy() == truth)


def _share_beyond(radius: Float64, counted: NDArray[np.bool_], radii: ArrayLike) -> Floats:
    r = numbers("radii", radii, 0)
    return unwrapped(np.asarray(((radius >= r[..., None]) & counted).mean(axis=-1)))


def certified_accuracy(certificate: Certificate, labels: ArrayLike, radii: ArrayLike) -> Floats:
    """The share of inputs that are classified correctly and certified against every perturbation of norm below r.

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
    return _share_beyond(radius, _correct(certificate, labels), radii)


def certified_rate(certificate: Certificate, radii: ArrayLike) -> Floats:
    """The share of inputs whose label, right or wrong, is certified against every perturbation of norm below r.

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


def average_certified_radius(certificate: Certificate, labels: ArrayLike) -> float:
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
    return float(np.where(_correct(certificate, labels), radius, 0.0).mean())
