"""What the model and the data of a record say of it, by its kind."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from rsfl._checks import number, stored
from rsfl._fingerprint import weights_hash
from rsfl._laws import from_document, to_document
from rsfl._models import affine_layer, as_given, evaluating
from rsfl.noise import ParameterGaussian
from rsfl.runs import example
from rsfl.smooth import DualSmoother, OrbitBallot, ParameterSmoother, Smoother, Voter
from rsfl.verify.arithmetic import affine, length
from rsfl.verify.composed import check_margins
from rsfl.verify.evidence import Inputs, check_identity, check_orbit_votes, check_votes
from rsfl.verify.findings import Finding
from rsfl.verify.rows import rows_of

__all__ = ["Witness", "again", "voted_again"]


@dataclass(frozen=True)
class Witness:
    """The model and the data of a record, with which votes are cast again.

    Args:
        model: The model, under the law that the record names; or a smoother around it, as it has to
            be where some of the parameters carry noise and the record does not say which. Of a dual
            certificate the dual smoother.
        data: Pairs (x, y) by index, as they were certified.
        forged: Share of forged inputs that is to be found.
        missed: Probability with which it may be missed.
        batch_size: Noisy inputs per forward call, as when the votes were cast.
    """

    model: nn.Module | Voter | DualSmoother
    data: Any
    forged: float = 0.05
    missed: float = 0.01
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("forged", "missed"):
            value = number(name, getattr(self, name), 0, 1, open_low=True)
            stored(self, **{name: value})

    @property
    def given(self) -> nn.Module | Voter:
        """The model or the smoother.

        Raises:
            TypeError: It is a dual smoother, whose selector and levels have votes of their own.
        """
        if isinstance(self.model, DualSmoother):
            raise TypeError(f"model must be a module or a smoother for this, got {self.model}")
        return self.model

    def voter(self, content: Mapping[str, Any], parameters: Sequence[str] | None) -> Voter:
        """What casts the votes of a record again."""
        if isinstance(self.given, Voter):
            return self.given
        law = from_document(content["law"])
        if isinstance(law, ParameterGaussian):
            return ParameterSmoother(
                self.given, law.sigma, content["classes"], parameters=parameters
            )
        return Smoother(self.given, law, content["classes"])

    def inputs(self, model: nn.Module | None) -> Inputs:
        """The input of an index, where the model computes."""

        @lru_cache(maxsize=64)
        def of(index: int) -> Tensor:
            x: Tensor = example(self.data[index], model)[0]
            return x

        return of


def again(
    kind: str, subject: str, content: Mapping[str, Any], witness: Witness
) -> Iterator[Finding]:
    """What model and data say of a document."""
    if kind == "poisoning certificate":
        kind = "certificate" if content["kind"] == "votes" else "exact certificate"
        content = content["certificate"]
    if kind == "orbit certificate":
        yield from _orbits(subject, content, witness)
    elif kind == "dual certificate":
        yield from _dual(subject, content, witness)
    elif kind == "exact certificate":
        yield from _margins(subject, content, witness)
    elif kind == "group certificate":
        yield Finding(subject, "evidence", None, "votes of groups are not cast again")
    elif kind != "ledger":
        votes = content["ballot"]["pairs"] if kind == "joint certificate" else content
        yield from voted_again(subject, votes, witness)


def _orbits(subject: str, content: Mapping[str, Any], witness: Witness) -> Iterator[Finding]:
    """Whether no picture of an orbit is farther from its centre than a record says, and whether
    the votes at the centres are as it says."""
    ballot = OrbitBallot.of_document(content["ballot"])
    model = witness.given.model if isinstance(witness.given, Voter) else witness.given
    inputs = witness.inputs(model)
    images = torch.stack([inputs(index) for index in ballot.index.tolist()])
    far = ballot.index[~ballot.confirmed(images)].tolist()
    text = f"pictures of the inputs {far[:5]} lie farther from their centres than is said"
    good = f"{len(images)} images: no picture lies farther from its centre than is said"
    yield Finding(subject, "evidence", not far, text if far else good)
    if isinstance(witness.given, Voter):
        voter = witness.given
    else:
        with evaluating(witness.given):
            logits = witness.given(as_given(witness.given, images[:1]).clone())
        voter = Smoother(witness.given, ballot.law, logits.shape[1])
    yield from check_orbit_votes(
        subject,
        ballot,
        voter,
        inputs,
        forged=witness.forged,
        missed=witness.missed,
        batch_size=witness.batch_size,
    )


def _dual(subject: str, content: Mapping[str, Any], witness: Witness) -> Iterator[Finding]:
    """The votes of a selector and of the levels that it named, each cast again by its own."""
    dual = witness.model
    if not isinstance(dual, DualSmoother) or len(dual.levels) != len(content["levels"]):
        text = "a smooth.DualSmoother of as many levels votes again, and no model alone"
        yield Finding(subject, "evidence", None, text)
        return
    parts = [content["selected"], *content["levels"]]
    for part, voter in zip(parts, (dual.selector, *dual.levels), strict=True):
        if part is not None:
            yield from voted_again(subject, part, replace(witness, model=voter))


def _margins(subject: str, content: Mapping[str, Any], witness: Witness) -> Iterator[Finding]:
    """Whether the radii of a linear model are within its margins, from its weights."""
    model = witness.given.model if isinstance(witness.given, Voter) else witness.given
    layer = None if model is None else affine_layer(model)
    if model is None or layer is None:
        yield Finding(subject, "evidence", None, "margins are told by linear models alone")
        return
    told = content["model"]
    if told:
        here = weights_hash(model)
        text = f"model {told[:16]}" + ("" if here == told else f", and {here[:16]} here")
        yield Finding(subject, "identity", here == told, text)
    inputs, linear = witness.inputs(model), layer[1]
    weight = linear.weight.detach().double().tolist()
    bias = [0.0] * len(weight) if linear.bias is None else linear.bias.detach().double().tolist()
    biased = 0.0 if linear.bias is None else 1.0
    logits, norms = [], []
    for index in content["index"]:
        x = inputs(index).double().flatten().tolist()
        logits.append([affine(row, x, one) for row, one in zip(weight, bias, strict=True)])
        norms.append(length([*x, biased]))
    yield from check_margins(subject, content, logits, norms)


def voted_again(
    subject: str,
    content: Mapping[str, Any],
    witness: Witness,
    parameters: Sequence[str] | None = None,
    *,
    same_device: bool = True,
) -> Iterator[Finding]:
    """What comes of voting again, and whether model and data are those of a record.

    Args:
        subject: What the record is called.
        content: What it says.
        witness: The model and the data.
        parameters: Names of the parameters that carry noise, where the record knows them.
        same_device: Whether the votes were cast on a device of the same kind.
    """
    try:
        rows, voter = rows_of(content), witness.voter(content, parameters)
        law = json.loads(json.dumps(to_document(voter.law)))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        yield Finding(subject, "identity", False, f"nothing can vote again: {error}")
        return
    elsewhere = content["law"].get("partial") and not law.get("partial")
    if elsewhere and not isinstance(witness.given, Voter):
        text = "noise on some of the parameters: give a smoother that says on which"
        yield Finding(subject, "identity", None, text)
        return
    inputs = witness.inputs(voter.model)
    try:
        yield from check_identity(subject, content, voter, inputs, law)
        yield from check_votes(
            subject,
            content,
            rows,
            voter,
            inputs,
            forged=witness.forged,
            missed=witness.missed,
            batch_size=witness.batch_size,
            same_device=same_device,
        )
    except (IndexError, KeyError) as error:
        yield Finding(subject, "identity", False, f"the data have no such input: {error!r}")
    except (ValueError, TypeError, RuntimeError) as error:
        yield Finding(subject, "identity", False, f"model and data do not fit: {error}")
