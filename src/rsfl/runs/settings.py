"""What a run certifies: everything that its votes are a function of, as ``run.json`` keeps it."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsfl import _document
from rsfl._checks import count, level, number, stored
from rsfl._files import locked, replaced
from rsfl._fingerprint import Fingerprint
from rsfl._laws import from_document, to_document
from rsfl.assumptions import Assumption
from rsfl.noise import Law
from rsfl.smooth import Sequential

__all__ = ["FILE", "OLD_BLOCK", "Settings", "autocast", "machine"]

OLD_BLOCK = 100
"""How many samples one key drew, on every device, when runs did not say so."""

FORMAT = 3
FILE = "run.json"


@dataclass(frozen=True)
class Settings:
    """What the votes of a run are a function of. Two sets of votes may share a directory only if
    these agree.

    Numbers are held as plain ones, whatever they came as.

    Attributes:
        law: The noise.
        radius: The radius of the sequential test, or None where the number of votes was fixed.
        n0: Votes for selection.
        n: Votes for estimation; at most this many in a sequential run.
        alpha: Failure probability for each input. A fixed number of votes may be read at another
            one.
        seed: Seed of the draws.
        num_classes: Width of the logits.
        input_shape: Shape of one input.
        dim: Number of coordinates of the noise that one vote sees.
        dtype: Type in which the model gets noisy inputs: the certified classifier computes in it.
        device: Type of the device; other devices draw and round differently.
        machine: The instruction set of the CPU, or the name of another device: they round, and
            may draw, in ways of their own.
        autocast: The dtype that autocast computes in, "" where it is off.
        model: Fingerprint of the model, and of what it answers about the first input.
        spot_checked: Whether the model was asked twice before it voted.
        parameters: Names of the parameters that carry noise, None where the input does.
        data: Hash of the first input, and its label.
        skip: Every ``skip``-th input is certified.
        limit: How many are certified at most.
        inputs: How many that makes, None where the data have no length.
        touched: Which part of an input carries noise, "" where all of it does, or parameters.
        condition: What a vote has to meet to count, beside its label; "" where nothing.
        judged: What the judgement rests on that says whether it does.
        block: How many samples of an input draw from one key.
    """

    law: Law
    radius: float | None
    n0: int
    n: int
    alpha: float
    seed: int
    num_classes: int
    input_shape: tuple[int, ...]
    dim: int
    dtype: str
    device: str
    machine: str
    autocast: str
    model: Fingerprint
    spot_checked: bool
    parameters: tuple[str, ...] | None
    data: str
    skip: int
    limit: int | None
    inputs: int | None
    touched: str = ""
    condition: str = ""
    judged: tuple[Assumption, ...] = ()
    block: int = OLD_BLOCK

    def __post_init__(self) -> None:
        if self.radius is not None:
            stored(self, radius=number("radius", self.radius, 0, np.inf, open_high=True))
        for name, low in (
            ("n0", 1),
            ("n", 1),
            ("num_classes", 1),
            ("dim", 1),
            ("skip", 1),
            ("seed", 0),
        ):
            stored(self, **{name: count(name, getattr(self, name), low)})
        if self.limit is not None:
            stored(self, limit=count("limit", self.limit, 1))
        stored(self, alpha=level("alpha", self.alpha))

    @cached_property
    def rule(self) -> Sequential | None:
        """What stopped the votes; None where their number was fixed."""
        return None if self.radius is None else Sequential(self.radius, self.alpha, self.n)

    @cached_property
    def identity(self) -> str:
        """A hash of all settings. Every record carries it: votes cannot pass for those of another
        run."""
        return _hashed(json.dumps(self._fields(), sort_keys=True))[:16]

    @classmethod
    def read(cls, out: Path) -> "Settings":
        """The settings of the run in a directory.

        Raises:
            ValueError: There is no run, or its settings cannot be read.
        """
        path = out / FILE
        if not path.is_file():
            raise ValueError(f"{out} holds no run: there is no {FILE}")
        try:
            found = json.loads(path.read_text())
            if found["format"] != FORMAT:
                raise ValueError(f"format is {found['format']!r}, this version reads {FORMAT}")
            found = {"touched": "", "condition": "", "judged": [], "block": OLD_BLOCK} | found
            values = {field.name: found[field.name] for field in dataclasses.fields(cls)}
            values |= {
                "law": from_document(values["law"]),
                "input_shape": tuple(values["input_shape"]),
                "model": Fingerprint(**values["model"]),
                "judged": tuple(Assumption(**one) for one in values["judged"]),
            }
            values["parameters"] = (
                None if values["parameters"] is None else tuple(values["parameters"])
            )
            return cls(**values)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} cannot be read as the settings of a run: {error}") from error

    def agree(self, out: Path) -> None:
        """Compare with the run in a directory.

        Raises:
            ValueError: They differ.
        """
        there = Settings.read(out)
        for field in dataclasses.fields(self):
            ours, theirs = getattr(self, field.name), getattr(there, field.name)
            if isinstance(ours, Fingerprint) and ours != theirs:
                raise ValueError(
                    f"{out} holds another run: model is '{theirs.whole[:16]}' there, got "
                    f"'{ours.whole[:16]}', which differs in {_listed(ours.differs(theirs))}"
                )
            if ours != theirs:
                raise ValueError(
                    f"{out} holds another run: {field.name} is {theirs!r} there, got {ours!r}"
                )

    def establish(self, out: Path) -> None:
        """Make these the settings of a directory that has none; compare where it has, of whichever
        process."""
        with locked(out / "run.lock", wait=True):
            if (out / FILE).exists():
                self.agree(out)
            else:
                replaced(out / FILE, (json.dumps(self._document(), indent=2) + "\n").encode())

    def _fields(self) -> dict[str, Any]:
        told = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        told["judged"] = [dataclasses.asdict(one) for one in self.judged]
        silent = [name for name in ("touched", "condition", "judged") if not told[name]]
        silent += ["block"] if self.block == OLD_BLOCK else []
        for name in silent:  # nothing to say
            del told[name]
        return told | {"law": to_document(self.law), "model": dataclasses.asdict(self.model)}

    def _document(self) -> dict[str, Any]:
        rule = "fixed" if self.rule is None else "sequential"
        told = {"threads": torch.get_num_threads(), "versions": _document.versions()}
        return {"format": FORMAT, "rule": rule, **self._fields(), **told}


def machine(device: torch.device) -> str:
    """What kind of device computes."""
    if device.type == "cpu":
        return str(torch.backends.cpu.get_cpu_capability())
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def autocast(device: torch.device) -> str:
    """The dtype that autocast computes in on a device, "" where it is off."""
    if not torch.is_autocast_enabled(device.type):
        return ""
    return str(torch.get_autocast_dtype(device.type)).removeprefix("torch.")


def _listed(parts: Sequence[str]) -> str:
    """Parts of a model, and what else may make its answers others."""
    if list(parts) == ["answers"]:
        return (
            f"its answers alone: code that it calls, or the number of threads, here "
            f"{torch.get_num_threads()}"
        )
    return ", ".join(parts)


def _hashed(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
