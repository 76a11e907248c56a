"""Certificates of linear models in parameter space, without sampling: by their margins, or by the
exact votes of their noisy copies."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rsfl import _document, bounds
from rsfl._batches import checked_batch, checked_index
from rsfl._checks import Float64, Int64, count, counts, number, numbers
from rsfl._fingerprint import weights_hash
from rsfl._heads import linear_head
from rsfl._models import evaluating
from rsfl.assumptions import ONE_FUNCTION
from rsfl.smooth.certificate import Certificate
from rsfl.smooth.documents import reals_from, reals_to
from rsfl.smooth.reading import ABSTAIN

__all__ = ["ExactCertificate", "ParameterDistance", "exact_votes", "margins"]

_FORMAT = 1
_TINY, _SMALLEST = np.finfo(np.float64).tiny, 2.0**-1074
_REALS = ("radius", "p_lower", "p_upper")


@dataclass(frozen=True)
class ParameterDistance:
    """Measure of these certificates: how far all parameters together may move.

    Args:
        sigma: Standard deviation of the noise whose votes decide; None where the model decides
            itself.
        model: Hash of the weights that were certified.
        features: Hash of the frozen layers below them; ``""`` where there are none.
    """

    sigma: float | None = None
    model: str = ""
    features: str = ""
    norm = "l2"
    space = "parameters"
    unit = "parameter units"

    def __str__(self) -> str:
        return "exact margins" if self.sigma is None else f"exact votes at sigma = {self.sigma:g}"


@dataclass(frozen=True, repr=False)
class ExactCertificate(Certificate):
    """A certificate of a linear model, from no votes: nothing was sampled, and alpha is 0."""

    law: ParameterDistance

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the certificate to a JSON file, whole and with a checksum.

        Args:
            path: The file; one that is there is replaced.
        """
        _document.write(path, "exact certificate", _FORMAT, self.content())

    def content(self) -> dict[str, Any]:
        """What a file says of the certificate, as JSON takes it."""
        return {
            "sigma": None if self.law.sigma is None else repr(self.law.sigma),
            "model": self.law.model,
            "features": self.law.features,
            "classes": self.counts.shape[1],
            "label": self.label.tolist(),
            "index": self.index.tolist(),
            **{name: reals_to(getattr(self, name)) for name in _REALS},
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "ExactCertificate":
        """Read a certificate back, to the CPU.

        Only the model itself could tell its margins. Of votes it is checked that the radii follow
        from their probabilities.

        Args:
            path: A file that :meth:`save` wrote.

        Raises:
            ValueError: The file is not as it was written, or a radius does not follow.
            OSError: The file cannot be read.
        """
        found = _document.read(path, "exact certificate", _FORMAT)
        try:
            return cls.of_content(found)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as an exact certificate: {error}") from error

    @classmethod
    def of_content(cls, found: Mapping[str, Any]) -> "ExactCertificate":
        """The certificate whose :meth:`content` this is.

        Raises:
            KeyError, TypeError, ValueError: Something is missing, or does not follow.
        """
        sigma = None if found["sigma"] is None else float(found["sigma"])
        reals = {name: np.array(reals_from(found[name])) for name in _REALS}
        label = counts("label", np.array(found["label"]) + 1) - 1  # ABSTAIN is -1
        if any(column.shape != label.shape for column in reals.values()):
            raise ValueError(f"every column must hold {len(label)} entries, one for each input")
        radius = numbers("radius", reals["radius"], 0.0)
        if sigma is not None:
            allowed = bounds.cohen_radius(reals["p_lower"], reals["p_upper"], sigma=sigma)
            if (radius > np.asarray(allowed)).any():
                raise ValueError("a radius is larger than the probabilities of its votes allow")
        if ((label == ABSTAIN) != (radius == 0)).any():
            raise ValueError("a label must have a radius, and a radius a label")
        return _without_votes(
            label,
            (radius, reals["p_lower"], reals["p_upper"]),
            ParameterDistance(sigma, str(found["model"]), str(found.get("features", ""))),
            checked_index(found["index"], len(label)),
            count("classes", found["classes"], 1),
        )


def _without_votes(
    label: Int64,
    reals: tuple[Float64, Float64, Float64],
    law: ParameterDistance,
    index: Tensor,
    classes: int,
    device: torch.device | str = "cpu",
) -> ExactCertificate:
    """The certificate of these radii and bounds on probabilities."""
    radius, p_lower, p_upper = (torch.as_tensor(column, device=device) for column in reals)
    none = torch.zeros(len(label), dtype=torch.int64, device=device)
    no_votes = torch.zeros((len(label), classes), dtype=torch.int64, device=device)
    return ExactCertificate(
        label=torch.as_tensor(label, device=device),
        radius=radius,
        p_lower=p_lower,
        p_upper=p_upper,
        selection_counts=no_votes,
        counts=no_votes,
        invalid=none,
        n0=none,
        n=none,
        index=index.to(device),
        alpha=0.0,
        law=law,
        seed=0,
        assumptions=(ONE_FUNCTION,),
    )


@dataclass(frozen=True, eq=False)
class _Logits:
    """What a linear model says of each input, and how far that is from exact arithmetic.

    Attributes:
        values: (B, K) float64.
        norms: (B,) || (x, 1) ||.
        rounded: (B,) distance to the closest parameters of which these are the exact logits.
        features: Hash of the frozen layers that make x of an input.
    """

    values: Float64
    norms: Float64
    rounded: Float64
    features: str


def margins(
    model: nn.Module, x: Tensor, index: Tensor | Sequence[int] | None = None
) -> ExactCertificate:
    r"""How far the parameters of a linear model must move to change its labels.

    .. math:: \min_B (\mu_A - \mu_B) / (\sqrt2 \|(x, 1)\|)

    in l2 over all trained parameters together; exact, up to rounding, which is taken off. Behind
    frozen layers x is what they make of an input, as this batch of inputs comes out: another model
    with the same layers sees the same, bit for bit, in batches of the same shape.

    Args:
        model: One affine map of the flattened input, in float64: an ``nn.Linear``, alone or after
            flattening, or the trained last layer of an ``nn.Sequential`` whose other layers are
            frozen, treat each sample on its own, and have no modes.
        x: Inputs (B, ...), finite, float64.
        index: (B,) which inputs these are; 0 ... B - 1 by default.

    Returns:
        The certificate, with alpha = 0: nothing was sampled. Radii are never above the exact ones.

    Raises:
        ValueError: The model is not affine, or not in float64; x is no batch of finite inputs.
        TypeError: An argument is of another kind.

    Example:
        >>> model = nn.Linear(2, 2).double()
        >>> margins(model, torch.rand(3, 2, dtype=torch.float64)).alpha
        0.0

    References:
        "Exact votes of linear models", in the documentation.
    """
    x, logits = _logits(model, x)
    reach = np.asarray(bounds.margin_radius(logits.values, logits.norms * (1 + 1e-13)))
    p_a, p_b = np.ones(len(x)), np.zeros(len(x))
    return _certificate(model, x, logits, reach, p_a, p_b, None, index)


def exact_votes(
    model: nn.Module, x: Tensor, sigma: float, index: Tensor | Sequence[int] | None = None
) -> ExactCertificate:
    """The label that noisy copies of a linear model vote for, and how far its parameters may move.

    The votes are computed, not sampled (:func:`rsfl.bounds.linear_vote_bounds`). Their classifier
    is the model's own, so that a radius is never above that of :func:`margins`.

    Args:
        model: As for :func:`margins`.
        x: Inputs (B, ...), finite, float64.
        sigma: Standard deviation of the noise on each parameter, positive.
        index: (B,) which inputs these are; 0 ... B - 1 by default.

    Returns:
        The certificate, with alpha = 0.

    Raises:
        ValueError, TypeError: As for :func:`margins`; sigma is out of its range.

    Example:
        >>> model = nn.Linear(2, 2).double()
        >>> str(exact_votes(model, torch.rand(3, 2, dtype=torch.float64), sigma=0.1).law)
        'exact votes at sigma = 0.1'
    """
    sigma = number("sigma", sigma, 0, inf, open_low=True, open_high=True)
    x, logits = _logits(model, x)
    rows, chosen = np.arange(len(x)), logits.values.argmax(axis=1)
    lower, upper = bounds.linear_vote_bounds(logits.values, logits.norms, sigma=sigma)
    upper[rows, chosen] = 0.0
    # A probability changes by at most the density at 0 a unit of distance.
    drift = 0.4 * logits.rounded / sigma
    p_a = np.maximum(lower[rows, chosen] - drift, 0.0)
    p_b = np.minimum(upper.max(axis=1) + drift, 1.0)
    # Both classifiers coincide, so the votes can never reach beyond the margin.
    reach = np.minimum(
        np.asarray(bounds.margin_radius(logits.values, logits.norms * (1 + 1e-13))),
        bounds.cohen_radius(p_a, p_b, sigma=sigma),
    )
    return _certificate(model, x, logits, reach, p_a, p_b, sigma, index)


def _logits(model: nn.Module, x: Tensor) -> tuple[Tensor, _Logits]:
    """The inputs, checked, and what the model says of them."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a Module, got {type(model).__name__}")
    x, head = checked_batch(x), linear_head(model)
    if head is None:
        raise ValueError(
            "model must be one affine map, an nn.Linear alone, after flattening, or trained behind "
            "frozen float64 layers of torch without modes, got "
            f"{type(model).__name__}; smooth.ParameterSmoother samples the votes of any model"
        )
    linear = head.layer
    if x.dtype != torch.float64 or linear.weight.dtype != torch.float64:
        raise ValueError(
            f"x and the model must be float64, got {x.dtype} and {linear.weight.dtype}"
        )
    with evaluating(model):
        flat, weight = head.features(x), linear.weight.detach()
        logits: Float64 = linear(flat).cpu().numpy()
        size = flat.abs() @ weight.abs().T + (
            0 if linear.bias is None else linear.bias.detach().abs()
        )
    if not bool(flat.isfinite().all()):
        raise ValueError("x must have finite features, got frozen layers that make others of it")
    norms = np.maximum(_norms(flat.cpu().numpy(), 0.0 if linear.bias is None else 1.0), _TINY)
    # Rounded logits are the exact ones of parameters that lie this far away: radii are distances
    # between parameters, so it comes off them. The bound is that of a dot product in any order of
    # summation.
    # What underflows is wrong by no more than the smallest float.
    terms = (flat.shape[1] + 2) * (2.0**-52 * size.cpu().numpy() + _SMALLEST)
    rounded = np.linalg.norm(terms, axis=1) / norms * (1 + 1e-9)
    return x, _Logits(logits, norms, rounded, head.fingerprint)


def _norms(x: Float64, biased: float) -> Float64:
    """The norm of each (x, 1), or of each x. Squares stay in float64: a power of two, which rounds
    nothing, is taken out of each row and put back."""
    _, exponent = np.frexp(np.maximum(np.abs(x).max(axis=1), biased))
    squares = (np.ldexp(x, -exponent[:, None]) ** 2).sum(axis=1)
    squares = squares + np.ldexp(np.full(len(x), biased), -exponent) ** 2
    norms: Float64 = np.ldexp(np.sqrt(squares), exponent)
    return norms


def _certificate(
    model: nn.Module,
    x: Tensor,
    logits: _Logits,
    reach: Float64,
    p_a: Float64,
    p_b: Float64,
    sigma: float | None,
    index: Tensor | Sequence[int] | None,
) -> ExactCertificate:
    """The certificate of these reaches, less what rounding may have added."""
    reach = np.maximum(reach - logits.rounded, 0.0)
    label = np.where(reach > 0, logits.values.argmax(axis=1), ABSTAIN)
    return _without_votes(
        label,
        (reach, p_a, p_b),
        ParameterDistance(sigma, weights_hash(model), logits.features),
        checked_index(index, len(label)),
        logits.values.shape[1],
        x.device,
    )
