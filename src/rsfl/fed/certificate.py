"""From a certificate in parameter space, a ledger and a threat to predictions that the threat did
not change."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from rsfl import _document, bounds
from rsfl._checks import number
from rsfl._text import floored, raised
from rsfl.assumptions import (
    FROZEN_FEATURES,
    KNOWN_MODEL,
    OF_TRAINING,
    RETRAINING,
    WHOLE_LEDGER,
    Assumption,
)
from rsfl.fed.provenance import Rounds, checked, of_the_model, of_the_training
from rsfl.smooth import ABSTAIN, Certificate, ExactCertificate, margins

__all__ = ["PoisoningCertificate", "certify", "withstood"]

_FORMAT = 1


@dataclass(frozen=True, repr=False)
class PoisoningCertificate(Certificate):
    """Predictions that a threat against the training did not change.

    Where ``label`` is not ``ABSTAIN``, the model of the other run (honest, or without the removed
    clients) gives the same label. ``reach`` is per input and does not depend on the threat: give it
    to :func:`rsfl.bounds.largest_norm`, :func:`rsfl.bounds.most_attackers` or
    :func:`rsfl.bounds.latest_round`.

    Attributes:
        threat: What was withstood.
        unconditional: (B,) int64, the predictions whether or not they withstand the threat;
            ``ABSTAIN`` where there are none.
        reach: (B,) float64, how far the parameters may move, or for :func:`rsfl.fed.published` how
            large the backdoor may be, before the prediction can change. ``radius`` is the same, and
            0 where it abstains.
        deviation: How far apart the threat can have driven the two models; for
            :func:`rsfl.fed.published`, its backdoor norm.
        bound: In words, which bound on the deviation decided.
    """

    threat: bounds.Threat
    unconditional: Tensor
    reach: Tensor
    deviation: float
    bound: str

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the certificate to a JSON file, whole and with a checksum: the certificate that
        the threat was held against, the threat, and the deviation.

        Args:
            path: The file; one that is there is replaced.

        Raises:
            TypeError: Its radius is a backdoor norm, which no file can derive: save the certificate
                that :func:`rsfl.fed.published` or :func:`rsfl.fed.largest_backdoors` was given.
            OSError: The file cannot be written.
        """
        if self.space != "parameters":
            raise TypeError(
                f"only a certificate over parameters can be saved, got one over {self.space}: save "
                f"the certificate that it was made of"
            )
        base = self._base()
        own = {one.id for one in base.assumptions}
        content = {
            "kind": "exact" if isinstance(base, ExactCertificate) else "votes",
            "certificate": base.content(),
            "threat": self.threat.to_dict(),
            "deviation": repr(self.deviation),
            "bound": self.bound,
            "assumptions": [asdict(one) for one in self.assumptions if one.id not in own],
        }
        _document.write(path, "poisoning certificate", _FORMAT, content)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], ledger: Rounds | None = None
    ) -> "PoisoningCertificate":
        """Read a certificate back, to the CPU.

        Its numbers are derived: reaches from the votes, where there are any, and what is withstood
        from reach and deviation.

        Args:
            path: A file that :meth:`save` wrote.
            ledger: The run's ledger; with it the deviation is computed anew as well.

        Raises:
            ValueError: The file is not as it was written, its numbers do not follow from one
                another, or the ledger gives a larger deviation.
            OSError: The file cannot be read.
        """
        found = _document.read(path, "poisoning certificate", _FORMAT)
        try:
            kind = {"exact": ExactCertificate, "votes": Certificate}[found["kind"]]
            base = kind.of_content(found["certificate"])
            threat = bounds.Threat.from_dict(found["threat"])
            deviation = number("deviation", float(found["deviation"]), 0.0)
            said = tuple(Assumption(**one) for one in found["assumptions"])
            bound = str(found["bound"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} cannot be read as a poisoning certificate: {error}"
            ) from error
        if ledger is not None:
            again = withstood(base, ledger, threat)
            if again.deviation > deviation:
                raise ValueError(
                    f"{path} must be about this ledger, whose deviation is {again.deviation!r}, "
                    f"got {deviation!r}"
                )
            return again
        return joined(
            base,
            threat=threat,
            reach=base.radius,
            held=base.radius > deviation,
            deviation=deviation,
            bound=bound,
            assumptions=(*base.assumptions, *said),
        )

    def _base(self) -> Certificate:
        """The certificate that the threat was held against."""
        kind = Certificate if self.reading is not None else ExactCertificate
        values = {one.name: getattr(self, one.name) for one in fields(kind)}
        values |= {"label": self.unconditional, "radius": self.reach}
        ours = {*OF_TRAINING, KNOWN_MODEL.id, WHOLE_LEDGER.id, FROZEN_FEATURES.id, RETRAINING.id}
        values["assumptions"] = tuple(one for one in self.assumptions if one.id not in ours)
        return kind(**values)

    def _table(self) -> tuple[str, list[list[str]], str]:
        """Against what, how far each prediction reaches, and how far it has to."""
        _, rows, closing = super()._table()
        sampled = bool(self.n.any())
        heading = (
            f"Certificate of {len(self)} prediction{'s' * (len(self) != 1)}, "
            f"{int(self.abstained.sum())} abstained, against {self.threat}: {self.law}"
            + (f", alpha = {self.alpha:g} for each" if sampled else ", without sampling")
        )
        reaches = ["reach", *(floored(float(reach)) for reach in self.reach[: len(rows) - 1])]
        rows = [
            [*row[:2], reach, *(row[3:] if sampled else [])]
            for row, reach in zip(rows, reaches, strict=True)
        ]
        need = f"Reach in {self.unit}: more than {raised(self.deviation)} is certified"
        return heading, rows, f"{need} ({self.bound}). {closing}"


def certify(
    model: nn.Module, x: Tensor, ledger: Rounds, threat: bounds.Threat, **old: Any
) -> PoisoningCertificate:
    """Which predictions of a federated linear model a threat against its training did not change.

    The same as ``withstood(smooth.margins(model, x), ledger, threat)``: exact, without sampling.
    For other certificates of the model, such as the votes of its noisy copies that
    ``smooth.ParameterSmoother`` samples, call :func:`withstood`.

    Args:
        model: The final model of the run.
        x: Inputs (B, ...), finite.
        ledger: What the run did.
        threat: Who attacks, when and how.
        old: Nothing: what once chose a method says here which call it has become.

    Returns:
        The certificate.

    Raises:
        ConditionError: The run breaks a condition; the message names it and quotes the value.
        ValueError: An argument is out of its range; the ledger is that of another run; the threat
            names clients that the ledger does not know, or samples that were never drawn.
        TypeError: An argument is of another kind.
    """
    if old:
        _moved(old)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a Module, got {type(model).__name__}")
    # What the run was is said before what the model is: a run that breaks a condition is refused by
    # the condition's name.
    rounds = checked(ledger, threat)
    found = bounds.deviation(rounds, threat)
    return _held(margins(model, x), ledger, threat, found, of_the_model(rounds, model))


def withstood(
    certificate: Certificate,
    ledger: Rounds,
    threat: bounds.Threat,
    model: nn.Module | None = None,
) -> PoisoningCertificate:
    """Hold a threat against a certificate in parameter space: which of its predictions stay.

    Strictly where the deviation that the threat can have caused (:func:`rsfl.bounds.deviation`) is
    below the radius.

    Args:
        certificate: Of the final model of the run, in the space of its parameters and in l2: from
            :func:`rsfl.smooth.margins`, :func:`rsfl.smooth.exact_votes` or
            :class:`rsfl.smooth.ParameterSmoother`, sequential ones included.
        ledger: What the run did.
        threat: Who attacks, when and how.
        model: The model that was certified. With it, or with a certificate that knows it, the
            ledger is checked to be that of the run which ended with this model.

    Returns:
        The certificate.

    Raises:
        ConditionError, ValueError, TypeError: As for :func:`certify`; also for a certificate in
            another space.
    """
    if not isinstance(certificate, Certificate):
        raise TypeError(
            f"certificate must be a smooth.Certificate, got {type(certificate).__name__}"
        )
    if (certificate.space, certificate.norm) != ("parameters", "l2"):
        raise ValueError(
            "certificate must be in l2 over parameters, as those of smooth.margins or "
            f"smooth.ParameterSmoother are, got {certificate.norm} over {certificate.space}"
        )
    if isinstance(certificate, PoisoningCertificate):
        raise TypeError(
            "certificate must be one that no threat was held against, got a PoisoningCertificate"
        )
    rounds = checked(ledger, threat)
    found = bounds.deviation(rounds, threat)
    told = (getattr(certificate.law, name, "") for name in ("model", "features"))
    known = of_the_model(rounds, *told) if model is None else of_the_model(rounds, model)
    return _held(certificate, ledger, threat, found, known)


def _held(
    base: Certificate,
    ledger: Rounds,
    threat: bounds.Threat,
    found: bounds.Deviation,
    known: tuple[Assumption, ...],
) -> PoisoningCertificate:
    """The base certificate where its radius is above the deviation."""
    bound = f"the other run is {found.comparison}"
    if found.touched:
        bound += f"; clients {list(found.touched)!r} counted by the clip of their updates"
    return joined(
        base,
        threat=threat,
        reach=base.radius,
        held=base.radius > found.value,  # strictly: the ball is open
        deviation=found.value,
        bound=bound,
        assumptions=(*base.assumptions, *known, *of_the_training(ledger, [found])),
    )


def joined(
    base: Certificate, *, held: Tensor, assumptions: tuple[Assumption, ...], **extra: Any
) -> PoisoningCertificate:
    """The base certificate where the threat is withstood, abstention elsewhere."""
    values = {one.name: getattr(base, one.name) for one in fields(base)} | extra
    values["unconditional"] = base.label
    values["label"] = torch.where(held, base.label, ABSTAIN)
    values["radius"] = torch.where(held, extra["reach"], 0.0)
    return PoisoningCertificate(**values | {"assumptions": assumptions})


_NOW = {
    "margin": "fed.certify(model, x, ledger, threat)",
    "votes": "fed.withstood(smooth.exact_votes(model, x, sigma), ledger, threat)",
    "sampled": "fed.withstood(smooth.ParameterSmoother(model, sigma, num_classes)"
    ".certify(x, n=n), ledger, threat)",
    "published": "fed.published(smooth.ParameterSmoother(model, sigma, num_classes)"
    ".certify(x, n=n), ledger, threat)",
    "index": "fed.withstood(smooth.margins(model, x, index), ledger, threat)",
}


def _moved(old: Mapping[str, Any]) -> NoReturn:
    """The error of who uses arguments that `certify` once had, with the call to make instead."""
    method = old.get("method", "index" if set(old) == {"index"} else "votes")
    if method == "votes" and old.get("n") is not None:
        method = "sampled"
    now = _NOW.get(method if isinstance(method, str) else "", _NOW["margin"])
    raise TypeError(
        f"certify takes a model, inputs, a ledger and a threat; instead of {', '.join(old)} write "
        f"{now}"
    )
