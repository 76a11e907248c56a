"""Who attacks a federated run, when, and with what power."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from math import inf
from typing import Any, cast

import numpy as np

from rsfl._checks import choice, count, counts, number, numbers

__all__ = ["LEVELS", "Threat"]

LEVELS = ("feature", "sample", "client", "forensic", "removal")


@dataclass(frozen=True, repr=False)
class Threat:
    """Who attacks, when, and with what power, in one line.

    The levels, from the weakest attacker to the strongest, then two questions about the past:

    - ``"feature"``: moves training inputs by at most ``norm`` each, and flips their labels if
      ``flips``.
    - ``"sample"``: replaces training samples by any others with || (x, 1) || <= ``input_norm``.
    - ``"client"``: sends any update whatever, under the server's update clip.
    - ``"forensic"``: sent what the ledger says; compared with the run in which it had been honest.
    - ``"removal"``: did whatever it did; compared with the run in which it had never taken part.

    Without any of ``samples``, ``per_batch`` and ``share``, all the samples of the attackers may be
    poisoned.

    Args:
        level: One of the above.
        clients: Ids of the attackers. Give either this or ``at_most``.
        at_most: Any unknown set of up to this many clients.
        rounds: Indices of the attacked rounds; None for all of them (the only choice for a
            removal).
        norm: Largest l2 norm of the change of one input (feature level).
        flips: Whether labels may change as well (feature level).
        samples: Which of its samples each attacker poisons, {client: numbers}, or how many of them
            at most. The numbers are those in the data set that the client was given, as the ledger
            has them.
        per_batch: Most poisoned draws in any mini-batch.
        share: Largest poisoned share of any mini-batch, the short ones included.
        scale: Factor on the attackers' updates (feature and sample level); a pair (low, high) if it
            lies in between.
        input_norm: Bound on || (x, 1) || of poisoned inputs. Required at the sample level; at the
            feature level the ledger's bound plus ``norm`` holds anyway.
        comparator: ``"clean"``: the attackers are honest. ``"scaled"``: they train on clean data
            but scale their updates all the same, as the published CRFL certificate has it.

    Raises:
        TypeError, ValueError: A number out of its range, a setting that the level does not have, or
            one that it lacks.

    Example:
        >>> Threat("feature", clients=[3], rounds=[10], norm=0.1, per_batch=5, scale=10.0).clients
        (3,)
        >>> Threat("removal", at_most=2).rounds is None
        True
    """

    level: str
    _: KW_ONLY
    clients: Sequence[int] | None = None
    at_most: int | None = None
    rounds: Sequence[int] | None = None
    norm: float | None = None
    flips: bool = True
    samples: int | Mapping[int, Sequence[int]] | None = None
    per_batch: int | None = None
    share: float | None = None
    scale: float | tuple[float, float] = 1.0
    input_norm: float | None = None
    comparator: str = "clean"

    def __post_init__(self) -> None:
        choice("level", self.level, LEVELS)
        choice("comparator", self.comparator, ("clean", "scaled"))
        checked: dict[str, Any] = {}
        for name in ("clients", "rounds"):
            if getattr(self, name) is not None:
                checked[name] = _ids(name, getattr(self, name))
        for name in ("at_most", "per_batch"):
            if getattr(self, name) is not None:
                checked[name] = count(name, getattr(self, name))
        for name, high in (("norm", inf), ("share", 1.0), ("input_norm", inf)):
            if getattr(self, name) is not None:
                checked[name] = number(name, getattr(self, name), 0.0, high, open_high=high == inf)
        if isinstance(self.samples, Mapping):
            checked["samples"] = {
                count("samples", client): _ids("samples", which)
                for client, which in self.samples.items()
            }
        elif self.samples is not None:
            checked["samples"] = count("samples", self.samples)
        if not isinstance(self.flips, bool):
            raise TypeError(f"flips must be True or False, got {self.flips!r}")
        scale = numbers("scale", self.scale, 0.0, inf, open_high=True)
        if scale.shape not in ((), (2,)) or scale.min() != scale.flat[0]:
            raise ValueError(f"scale must be one number or a pair (low, high), got {self.scale!r}")
        checked["scale"] = (float(scale.min()), float(scale.max()))
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        self._check_settings()

    def _check_settings(self) -> None:
        """Refuse settings that contradict each other or that the level does not have."""
        if (self.clients is None) == (self.at_most is None):
            raise ValueError(
                f"give either clients or at_most, got clients={self.clients!r}, "
                f"at_most={self.at_most!r}"
            )
        data = ("samples", "per_batch", "share", "input_norm")
        known = {"feature": ("rounds", "norm", *data), "sample": ("rounds", *data), "removal": ()}
        for name in ("rounds", "norm", *data):
            if getattr(self, name) is not None and name not in known.get(self.level, ("rounds",)):
                raise ValueError(
                    f"{name} does not apply at the {self.level} level; leave it out, got "
                    f"{getattr(self, name)!r}"
                )
        if self.level not in ("feature", "sample") and (
            self.scale != (1.0, 1.0) or self.comparator != "clean"
        ):
            raise ValueError(
                f"scale and comparator do not apply at the {self.level} level; leave them out, got "
                f"scale={self.scale!r}, comparator={self.comparator!r}"
            )
        needed = {"feature": "norm", "sample": "input_norm"}.get(self.level)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"{needed} must be given at the {self.level} level")
        if sum(setting is not None for setting in (self.samples, self.per_batch, self.share)) > 1:
            raise ValueError(
                "samples, per_batch and share are three ways to say one thing: give at most one"
            )
        if isinstance(self.samples, Mapping) and set(self.samples) != set(self.clients or ()):
            raise ValueError(
                f"samples must name the clients {self.clients!r}, got {sorted(self.samples)!r}"
            )
        if self.comparator == "scaled" and self.clients is None:
            raise ValueError(
                f"clients must be named for comparator='scaled', got at_most={self.at_most!r}"
            )

    def __repr__(self) -> str:
        """What is not as it is by default."""
        defaults = {field.name: field.default for field in fields(self)} | {"scale": (1.0, 1.0)}
        given = {
            name: getattr(self, name) for name in defaults if getattr(self, name) != defaults[name]
        }
        level = given.pop("level")
        settings = [repr(level), *(f"{name}={value!r}" for name, value in given.items())]
        return f"Threat({', '.join(settings)})"

    @property
    def scales(self) -> tuple[float, float]:
        """The smallest and the largest factor on the attackers' updates."""
        return cast(tuple[float, float], self.scale)  # one number has become a pair

    def attacks(self, index: int) -> bool:
        """Whether the round of this index is attacked."""
        return self.rounds is None or index in self.rounds


def _ids(name: str, value: Sequence[int]) -> tuple[int, ...]:
    ids = counts(name, value)
    if ids.ndim != 1 or len(np.unique(ids)) < ids.size:
        raise ValueError(f"{name} must be a list of different whole numbers, got {value!r}")
    return tuple(ids.tolist())
