"""What is promised: the certificate, its text and its file."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, SupportsIndex

import torch
from torch import Tensor
from typing_extensions import Self

from rsfl import _document
from rsfl._batches import rows_of
from rsfl._checks import Float64, Int64, level, stored
from rsfl._text import floored, lined, raised, tabled
from rsfl.assumptions import Assumption
from rsfl.noise import Law
from rsfl.smooth.documents import (
    CONDITIONS,
    evidence_from,
    evidence_to,
    follow,
    reals_from,
    reals_to,
)
from rsfl.smooth.measure import Measure
from rsfl.smooth.reading import (
    ABSTAIN,
    Counted,
    MostVoted,
    Numbers,
    Reading,
    Sequential,
    allowed,
    assumed,
    reading_from,
    reading_to,
)
from rsfl.smooth.votes import Votes

__all__ = ["Certificate"]

_SHOWN = 10
_FORMAT = 2
_REALS = ("radius", "p_lower", "p_upper")


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
        reading: How the numbers follow from the votes; None where they come from no votes.
        rule: What stopped the votes; None where their number was fixed.
        dim: Number of coordinates of one input's noise.
        inputs: (B,) int64, hashes of the inputs; 0 where they are unknown.
        model: Fingerprint of the model, "" where it is unknown.
        spot_checked: Whether the model was asked twice, alone and in a batch.
        condition: What a vote had to meet beside its label, "" where nothing.
        touched: Which part of an input the radius is about, "" where it is all of it.
        judged: What the judgement rests on that says whether a vote met the condition.
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
    reading: Reading | None = field(default=None, kw_only=True)
    rule: Sequential | None = field(default=None, kw_only=True)
    dim: int = field(default=1, kw_only=True)
    # Filled in below.
    inputs: Tensor = field(default=None, kw_only=True)  # type: ignore[assignment]
    model: str = field(default="", kw_only=True)
    spot_checked: bool = field(default=False, kw_only=True)
    condition: str = field(default="", kw_only=True)
    touched: str = field(default="", kw_only=True)
    judged: tuple[Assumption, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        if self.inputs is None:
            stored(self, inputs=torch.zeros_like(self.label))

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
        """The unit of the radius; of a part of the input it names the part."""
        return f"{self.law.unit} of {self.touched}" if self.touched else self.law.unit

    def __len__(self) -> int:
        return len(self.label)

    def _columns(self) -> Iterator[tuple[str, Tensor]]:
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, Tensor):
                yield one.name, value

    def _mapped(self, **columns: Tensor) -> Self:
        return replace(self, **columns)  # type: ignore[arg-type]

    def __getitem__(self, key: SupportsIndex | slice | Tensor | Sequence[int]) -> Self:
        """The certificate of some of the inputs; a single number gives a batch of one."""
        rows = rows_of(key, len(self), self.label.device)
        return self._mapped(**{name: value[rows] for name, value in self._columns()})

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
                one.name for one in fields(first) if one.name not in dict(first._columns())
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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the certificate to a JSON file, whole and with a checksum; every number is kept
        exactly.

        The file says everything that its numbers follow from: see the page on the format.

        Args:
            path: The file; one that is there is replaced.

        Raises:
            TypeError: The law is no law of noise that can be named, or this is a certificate of
                another kind, with more to keep.
            OSError: The file cannot be written.
        """
        if type(self) is not Certificate:
            raise TypeError(f"only a smooth.Certificate can be saved, got a {type(self).__name__}")
        _document.write(path, "certificate", _FORMAT, self.content())

    def content(self) -> dict[str, Any]:
        """What a file says of the certificate, as JSON takes it.

        Raises:
            TypeError: As for :meth:`save`.
        """
        if self.reading is None:
            raise TypeError("only a certificate that was read from votes can be saved")
        selected = self.n0 - self.selection_counts.sum(dim=1)
        kept = evidence_to(
            law=self.law,
            rule=self.rule,
            selection=Votes(self.selection_counts, selected),
            votes=Votes(self.counts, self.invalid),
            **{name: getattr(self, name) for name in CONDITIONS},
        )
        return kept | {
            "alpha": self.alpha,
            "reading": reading_to(self.reading),
            "label": self.label.tolist(),
            **{name: reals_to(getattr(self, name)) for name in _REALS},
            "assumptions": [asdict(assumption) for assumption in self.assumptions],
            "versions": _document.versions(),
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Certificate":
        """Read a certificate back, to the CPU: the same promise under the same law, which must be
        known here.

        Its numbers are derived from its votes anew, and compared with those that the file claims.

        Args:
            path: A file that :meth:`save` wrote.

        Returns:
            The certificate. It names at least the assumptions that it named, and those that its
            reading and its law name here.

        Raises:
            ValueError: The file is not as it was written, its numbers do not follow from its
                votes, or no law here has that name and measures radii as it did.
            OSError: The file cannot be read.
        """
        found = _document.read(path, "certificate", _FORMAT)
        try:
            return Certificate.of_content(found)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as a certificate: {error}") from error

    @classmethod
    def of_content(cls, found: Mapping[str, Any]) -> "Certificate":
        """The certificate whose :meth:`content` this is, its numbers derived from its votes.

        Raises:
            KeyError, TypeError, ValueError: Something is missing, or does not follow.
        """
        evidence = evidence_from(found)
        selection, votes, law = (evidence.pop(name) for name in ("selection", "votes", "law"))
        reading, alpha = reading_from(found["reading"]), level("alpha", found["alpha"])
        allowed(reading, evidence["rule"], evidence["condition"])
        counted = Counted(selection.counts.numpy(), votes.counts.numpy(), votes.n.numpy())
        numbers = reading.numbers(counted, law, evidence["dim"], alpha)
        claims = [found["label"], *(reals_from(found[name]) for name in _REALS)]
        follow(numbers, claims, evidence["index"])
        said = (Assumption(**one) for one in found["assumptions"])
        told = ("spot_checked", "touched", "condition", "judged")
        implied = assumed(reading, law, **{name: evidence[name] for name in told})
        assumptions = tuple({one.id: one for one in (*said, *implied)}.values())
        return cls.read_from(
            numbers,
            selection,
            votes,
            law,
            alpha=alpha,
            reading=reading,
            assumptions=assumptions,
            **evidence,
        )

    @classmethod
    def read_from(
        cls, numbers: Numbers, selection: Votes, votes: Votes, law: Law, **rest: Any
    ) -> "Certificate":
        """The certificate of these numbers, on the device of the votes that they were read from."""
        device = votes.counts.device

        def column(values: Int64 | Float64, dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        return Certificate(
            label=column(numbers.label, torch.int64),
            radius=column(numbers.radius, torch.float64),
            p_lower=column(numbers.p_lower, torch.float64),
            p_upper=column(numbers.p_upper, torch.float64),
            selection_counts=selection.counts,
            counts=votes.counts,
            invalid=votes.invalid,
            n0=selection.n,
            n=votes.n,
            law=law,
            **rest,
        )

    def _table(self) -> tuple[str, list[list[str]], str]:
        """Heading, rows and closing line; radii and lower bounds are floored, upper bounds raised.
        Of a prediction there are none."""
        abstained, size = int(self.abstained.sum()), f"{len(self)} input{'s' * (len(self) != 1)}"
        plain = isinstance(self.reading, MostVoted)
        what = "" if plain else f"{self.norm} radius in {self.unit} ({self.space} space), "
        heading = (
            f"{'Prediction' if plain else 'Certificate'} of {size}, {abstained} abstained: {what}"
            f"{self.law}, alpha = {self.alpha:g} for each"
            + (f", counting votes {self.condition}" if self.condition else "")
        )
        rows = [["index", "label", *([] if plain else ["radius", "p_lower", "p_upper"]), "n"]]
        for c in (self[i].cpu() for i in range(min(len(self), _SHOWN))):
            label = "abstain" if int(c.label) == ABSTAIN else str(int(c.label))
            low, high = floored(float(c.p_lower)), raised(float(c.p_upper))
            figures = [] if plain else [floored(float(c.radius)), low, high]
            rows.append([str(int(c.index)), label, *figures, str(int(c.n))])
        more = f"... and {len(self) - _SHOWN} more. " if len(self) > _SHOWN else ""
        return (
            heading,
            rows,
            f"{more}Assumes {', '.join(dict.fromkeys(map(str, self.assumptions)))}.",
        )

    def __repr__(self) -> str:
        return lined(*self._table())

    def _repr_html_(self) -> str:
        return tabled(*self._table())
