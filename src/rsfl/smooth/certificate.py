"""What is promised: the certificate, and how votes become one."""

import html
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Protocol, SupportsIndex

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import Self

from rsfl import _document, bounds
from rsfl._checks import choice
from rsfl._text import floored, raised
from rsfl.assumptions import (
    FIXED_NUMBER,
    FRESH_VOTES,
    ONE_FUNCTION,
    OPTIONAL_STOPPING,
    PER_INPUT,
    Assumption,
)
from rsfl.noise import Law
from rsfl.smooth.laws import from_document, to_document
from rsfl.smooth.votes import Votes

__all__ = [
    "ABSTAIN",
    "CONFIDENCE",
    "Certificate",
    "Measure",
    "certified_by_count",
    "certified_by_test",
    "predicted",
]

ABSTAIN = -1
"""The label of an input on which the smoothed classifier makes no statement."""

_SHOWN = 10
_FORMAT = 1
_REALS = ("radius", "p_lower", "p_upper")

Bound = Callable[[Any, Any, float], Any]
CONFIDENCE: dict[str, tuple[Bound, Bound]] = {
    "clopper-pearson": (bounds.clopper_pearson_lower, bounds.clopper_pearson_upper),
    "hoeffding": (
        lambda k, n, alpha: bounds.hoeffding_lower(k / n, n, alpha),
        lambda k, n, alpha: bounds.hoeffding_upper(k / n, n, alpha),
    ),
}
"""Lower and upper bounds on a probability, from successes, trials and level."""


class Measure(Protocol):
    """What a radius is measured in; every law of noise is one."""

    @property
    def norm(self) -> str:
        """The norm, such as ``l2``."""

    @property
    def space(self) -> str:
        """What it is a distance of."""

    @property
    def unit(self) -> str:
        """The unit."""


@dataclass(frozen=True, repr=False)
class Certificate:
    """What a smoothed classifier promises about a batch of B inputs.

    With probability at least 1 - alpha for each input: where ``label`` is not ``ABSTAIN``, every
    input whose distance in ``norm`` and ``space`` is less than ``radius`` gets the same label from
    the smoothed classifier, under the named ``assumptions``.

    Attributes:
        label: (B,) int64, the certified class or ``ABSTAIN``.
        radius: (B,) float64, in units of ``unit``; 0 where it abstains.
        p_lower: (B,) float64, lower bound on the probability of the selected class.
        p_upper: (B,) float64, upper bound on the probability of every other class.
        selection_counts: (B, K) int64, the votes that selected the class.
        counts: (B, K) int64, the votes that bound its probability.
        invalid: (B,) int64, how many of the n votes had non-finite logits and so went to no class.
        n0: (B,) int64, votes spent on selection.
        n: (B,) int64, votes spent on estimation, the invalid ones included.
        alpha: Failure probability for each input.
        law: The noise, or what else the radius was measured by.
        seed: Seed of the run.
        index: (B,) int64, which inputs these are.
        assumptions: What the promise rests on.
    """

    label: Tensor
    radius: Tensor
    p_lower: Tensor
    p_upper: Tensor
    selection_counts: Tensor
    counts: Tensor
    invalid: Tensor
    n0: Tensor
    n: Tensor
    index: Tensor
    alpha: float
    law: Measure
    seed: int
    assumptions: tuple[Assumption, ...]

    @property
    def abstained(self) -> Tensor:
        """(B,) bool, where no statement is made."""
        return self.label == ABSTAIN

    @property
    def norm(self) -> str:
        """The norm of the radius."""
        return self.law.norm

    @property
    def space(self) -> str:
        """What the radius is a distance of: ``input``, ``parametric`` or ``parameters``."""
        return self.law.space

    @property
    def unit(self) -> str:
        """The unit of the radius."""
        return self.law.unit

    def __len__(self) -> int:
        return len(self.label)

    def _columns(self) -> Iterator[tuple[str, Tensor]]:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                yield field.name, value

    def _mapped(self, **columns: Tensor) -> Self:
        return replace(self, **columns)  # type: ignore[arg-type]

    def __getitem__(self, key: SupportsIndex | slice | Tensor | Sequence[int]) -> Self:
        """The certificate of some of the inputs; a single number gives a batch of one."""
        if not isinstance(key, slice):
            key = torch.as_tensor(key, device=self.label.device)
            if key.ndim == 0:
                place = operator.index(key)
                if not -len(self) <= place < len(self):
                    raise IndexError(
                        f"index {place} is out of range for a certificate of {len(self)} inputs"
                    )
                key = key[None]
        return self._mapped(**{name: value[key] for name, value in self._columns()})

    @classmethod
    def cat(cls, parts: Sequence[Self]) -> Self:
        """One certificate for the inputs of several, which must agree in everything that is not per
        input.

        Noise is a function of seed and ``index``. Batches that were certified without ``index`` all
        count from 0 and share their noise: each certificate holds as it stands, but their errors
        are not independent, and :mod:`rsfl.runs` refuses them in statements about all inputs at
        once.
        """
        if not parts:
            raise ValueError(f"parts must not be empty, got {parts!r}")
        first = parts[0]
        for part in parts[1:]:
            for name in (
                field.name for field in fields(first) if field.name not in dict(first._columns())
            ):
                if getattr(part, name) != getattr(first, name):
                    raise ValueError(
                        f"parts must agree in {name}, got {getattr(first, name)} and "
                        f"{getattr(part, name)}"
                    )
        columns = {
            name: torch.cat([getattr(part, name) for part in parts]) for name, _ in first._columns()
        }
        return first._mapped(**columns)

    def to(self, device: torch.device | str) -> Self:
        """The same certificate on another device."""
        return self._mapped(**{name: value.to(device) for name, value in self._columns()})

    def cpu(self) -> Self:
        """The same certificate on the CPU."""
        return self.to("cpu")

    def to_dict(self) -> dict[str, Any]:
        """NumPy arrays for everything per input, plain values for the rest."""
        arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in self._columns()}
        return arrays | {
            "abstained": self.abstained.cpu().numpy(),
            "alpha": self.alpha,
            "law": repr(self.law),
            "norm": self.norm,
            "space": self.space,
            "unit": self.unit,
            "seed": self.seed,
            "assumptions": [str(assumption) for assumption in self.assumptions],
        }

    def _measure(self) -> dict[str, str]:
        return {"norm": self.norm, "space": self.space, "unit": self.unit}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the certificate to a JSON file, whole and with a checksum; every number is kept
        exactly.

        Args:
            path: The file; one that is there is replaced.

        Raises:
            TypeError: The law is no law of noise that can be named, or this is a certificate of
                another kind, with more to keep.
            OSError: The file cannot be written.
        """
        if type(self) is not Certificate:
            raise TypeError(f"only a smooth.Certificate can be saved, got a {type(self).__name__}")
        columns = {name: column.tolist() for name, column in self._columns()}
        kept = {
            **columns,
            **{
                name: [str(value) for value in columns[name]] for name in _REALS
            },  # inf is no number in JSON
            "classes": self.counts.shape[1],
            "alpha": self.alpha,
            "law": to_document(self.law),
            **self._measure(),
            "seed": int(self.seed),
            "assumptions": [asdict(assumption) for assumption in self.assumptions],
        }
        _document.write(path, "certificate", _FORMAT, kept)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Certificate":
        """Read a certificate back, to the CPU: the same promise under the same law, which must be
        known here.

        Args:
            path: A file that :meth:`save` wrote.

        Returns:
            The certificate. It names at least the assumptions that it named, and those that its law
            names here.

        Raises:
            ValueError: The file is not as it was written, or no law here has that name and measures
                radii as it did.
            OSError: The file cannot be read.
        """
        found = _document.read(path, "certificate", _FORMAT)
        try:
            law = from_document(found["law"])
            named = (*(Assumption(**one) for one in found["assumptions"]), *law.assumptions)
            reals = {
                name: torch.tensor([float(text) for text in found[name]], dtype=torch.float64)
                for name in _REALS
            }
            whole = {
                name: torch.tensor(found[name], dtype=torch.int64)
                for name in ("label", "invalid", "n0", "n", "index")
            }
            votes = {
                name: torch.tensor(found[name], dtype=torch.int64).reshape(-1, found["classes"])
                for name in ("selection_counts", "counts")
            }
            certificate = Certificate(
                **reals,
                **whole,
                **votes,
                alpha=found["alpha"],
                law=law,
                seed=found["seed"],
                assumptions=tuple({assumption.id: assumption for assumption in named}.values()),
            )
            if (
                then := {name: found[name] for name in certificate._measure()}
            ) != certificate._measure():
                raise ValueError(
                    f"the law measured {then} and measures {certificate._measure()} here"
                )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as a certificate: {error}") from error
        return certificate

    def _table(self) -> tuple[str, list[list[str]], str]:
        """Heading, rows and closing line; radii and lower bounds are floored, upper bounds
        raised."""
        abstained = int(self.abstained.sum())
        heading = (
            f"Certificate of {len(self)} input{'s' * (len(self) != 1)}, {abstained} abstained: "
            f"{self.norm} radius in {self.unit} ({self.space} space), {self.law}, alpha = "
            f"{self.alpha:g} for each"
        )
        rows = [["index", "label", "radius", "p_lower", "p_upper", "n"]]
        for c in (self[i].cpu() for i in range(min(len(self), _SHOWN))):
            label = "abstain" if int(c.label) == ABSTAIN else str(int(c.label))
            low, high = floored(float(c.p_lower)), raised(float(c.p_upper))
            rows.append(
                [str(int(c.index)), label, floored(float(c.radius)), low, high, str(int(c.n))]
            )
        more = f"... and {len(self) - _SHOWN} more. " if len(self) > _SHOWN else ""
        return (
            heading,
            rows,
            f"{more}Assumes {', '.join(dict.fromkeys(map(str, self.assumptions)))}.",
        )

    def __repr__(self) -> str:
        heading, rows, closing = self._table()
        return "\n".join(
            [heading, *("".join(f"{cell:>10}" for cell in row) for row in rows), closing]
        )

    def _repr_html_(self) -> str:
        heading, rows, closing = self._table()
        head = "".join(f"<th>{cell}</th>" for cell in rows[0])
        body = "".join(
            "<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows[1:]
        )
        return (
            f"<p>{html.escape(heading)}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            f"<p>{html.escape(closing)}</p>"
        )


def _numpy(tensor: Tensor) -> NDArray[np.int64]:
    return np.asarray(tensor.cpu().numpy())


def _assembled(
    law: Law,
    index: Tensor,
    selection: Votes | None,
    votes: Votes,
    *,
    label: NDArray[np.int64],
    radius: Any,
    p_lower: Any,
    p_upper: Any,
    alpha: float,
    seed: int,
    statistics: tuple[Assumption, ...],
) -> Certificate:
    device = votes.counts.device
    size = len(label)

    def column(values: Any, dtype: torch.dtype) -> Tensor:
        return torch.tensor(np.broadcast_to(values, (size,)), dtype=dtype, device=device)

    if selection is None:
        selection = Votes(torch.zeros_like(votes.counts), torch.zeros_like(votes.invalid))
    return Certificate(
        label=column(label, torch.int64),
        radius=column(radius, torch.float64),
        p_lower=column(p_lower, torch.float64),
        p_upper=column(p_upper, torch.float64),
        selection_counts=selection.counts,
        counts=votes.counts,
        invalid=votes.invalid,
        n0=selection.counts.sum(1) + selection.invalid,
        n=votes.counts.sum(1) + votes.invalid,
        index=index.to(device),
        alpha=alpha,
        law=law,
        seed=seed,
        assumptions=(*statistics, PER_INPUT, ONE_FUNCTION, *law.assumptions),
    )


def certified_by_count(
    law: Law,
    selection: Votes,
    votes: Votes,
    *,
    alpha: float,
    index: Tensor,
    seed: int,
    dim: int = 1,
    runner_up: str = "complement",
    confidence: str = "clopper-pearson",
) -> Certificate:
    """A certificate from votes whose number was fixed beforehand.

    ``runner_up="complement"`` bounds the label's probability at alpha and gives all the rest to one
    rival. ``"bounded"`` spends half of alpha on the label and half on the largest other count,
    which bounds every rival: the upper bound grows with the count.

    Args:
        law: The noise.
        selection: Votes that select the class.
        votes: Other votes, that bound its probability.
        alpha: Failure probability for each input, in (0, 1).
        index: (B,) which inputs these are.
        seed: Seed of the run.
        dim: Number of coordinates of one input's noise.
        runner_up: ``complement`` or ``bounded``.
        confidence: ``clopper-pearson`` or ``hoeffding``, which is never tighter.

    Returns:
        The certificate; it abstains where the radius is 0.
    """
    choice("runner_up", runner_up, ("complement", "bounded"))
    lower, upper = CONFIDENCE[choice("confidence", confidence, tuple(CONFIDENCE))]
    chosen = _numpy(selection.counts.argmax(dim=1))
    counts = _numpy(votes.counts)
    n = counts.sum(axis=1) + _numpy(votes.invalid)
    rows = np.arange(len(counts))
    first = counts[rows, chosen]
    if runner_up == "complement":
        p_a = np.asarray(lower(first, n, alpha))
        p_b, radius = 1 - p_a, law.radius(p_a, dim=dim)
    else:
        p_a = np.asarray(lower(first, n, alpha / 2))
        others = counts.copy()
        others[rows, chosen] = 0
        second = others.max(axis=1)
        p_b = np.minimum(upper(second, n, alpha / 2), np.nextafter(1 - p_a, 1))
        radius = law.radius(p_a, p_b, dim=dim)
    return _assembled(
        law,
        index,
        selection,
        votes,
        label=np.where(radius > 0, chosen, ABSTAIN),
        radius=radius,
        p_lower=p_a,
        p_upper=p_b,
        alpha=alpha,
        seed=seed,
        statistics=(FRESH_VOTES, FIXED_NUMBER),
    )


def certified_by_test(
    law: Law,
    selection: Votes,
    votes: Votes,
    decided: NDArray[np.bool_],
    *,
    radius: float,
    p0: float,
    alpha: float,
    index: Tensor,
    seed: int,
) -> Certificate:
    """A certificate of exactly ``radius`` where the sequential test ``decided`` that the label is
    more probable than ``p0``, and none elsewhere."""
    chosen = _numpy(selection.counts.argmax(dim=1))
    return _assembled(
        law,
        index,
        selection,
        votes,
        label=np.where(decided, chosen, ABSTAIN),
        radius=np.where(decided, radius, 0.0),
        p_lower=np.where(decided, p0, 0.0),
        p_upper=np.where(decided, np.nextafter(1 - p0, 1), 1.0),
        alpha=alpha,
        seed=seed,
        statistics=(FRESH_VOTES, OPTIONAL_STOPPING),
    )


def predicted(law: Law, votes: Votes, *, alpha: float, index: Tensor, seed: int) -> Certificate:
    """The most voted class where it is significantly ahead of the second, without a radius."""
    top = _numpy(votes.counts.topk(min(2, votes.counts.shape[1]), dim=1).values)
    second = top[:, 1] if top.shape[1] == 2 else np.zeros_like(top[:, 0])
    ahead = np.asarray(bounds.top_two_p_value(top[:, 0], second)) <= alpha
    return _assembled(
        law,
        index,
        None,
        votes,
        label=np.where(ahead, _numpy(votes.counts.argmax(dim=1)), ABSTAIN),
        radius=0.0,
        p_lower=0.0,
        p_upper=1.0,
        alpha=alpha,
        seed=seed,
        statistics=(FIXED_NUMBER,),
    )
