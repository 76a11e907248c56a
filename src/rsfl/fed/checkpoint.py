"""Checkpoints that survive a kill: written whole or not at all, checked before they are used,
loaded without code.

A directory holds one small file a round for the ledger and the last two states. A file is a line of
magic, the SHA-256 of what follows, and tensors and text that ``torch.load(weights_only=True)``
reads: no arbitrary pickle is ever opened.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from rsfl._checkpoint import CheckpointError, read, write
from rsfl._fingerprint import differences
from rsfl.fed.ledger import Entry

__all__ = ["CheckpointError", "Directory", "State"]

_KEPT = 2  # states: the last one, and the one to fall back on


@dataclass(frozen=True)
class State:
    """All that the next round depends on: every draw is keyed by the round, so there is no
    generator to save.

    Args:
        round: Rounds done.
        clipped: The model of the last round, before noise (d,).
        broadcast: What the next round sends: with the noise, if there is any (d,).
        locals: The models that mixture clients keep, by id.
        plan: What the schedules of the server said for the rounds of the run, by name.
        planned: For how many rounds they had answered before the first round began.
    """

    round: int
    clipped: Tensor
    broadcast: Tensor
    locals: Mapping[int, Tensor]
    plan: Mapping[str, Sequence[float]]
    planned: int


@dataclass(frozen=True)
class Directory:
    """The checkpoints of one run.

    Args:
        path: Where they are; made if it is not there.
        run: What tells this run from others, by name: a directory of another run is refused.
    """

    path: Path
    run: Mapping[str, str]

    def __post_init__(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)

    def save(self, state: State, entry: Entry) -> None:
        """Add a round; the ledger's file goes first, so that a state never lacks its ledger."""
        write(self._entry(state.round), {"run": dict(self.run), **entry.pack()})
        content = {field.name: getattr(state, field.name) for field in fields(State)}
        content |= {"locals": dict(state.locals), "plan": dict(state.plan)}
        write(self._state(state.round), {"run": dict(self.run), **content})
        for old in sorted(self.path.glob("state-*.rsfl"))[:-_KEPT]:
            old.unlink()

    def load(self) -> tuple[State, tuple[Entry, ...]] | None:
        """The last round whose files are intact, with a warning about any later one; None in an
        empty directory.

        Raises:
            CheckpointError: There are checkpoints, but none is intact, or they belong to another
                run.
        """
        refused = []
        for path in sorted(self.path.glob("state-*.rsfl"), reverse=True):
            try:
                content = self._mine(path)
                entries = tuple(self._entries(content["round"]))
            except CheckpointError as error:
                refused.append(str(error))
                continue
            if refused:
                warnings.warn(
                    f"{'; '.join(refused)}: resuming after round {content['round']}", stacklevel=3
                )
            return State(**{field.name: content[field.name] for field in fields(State)}), entries
        if refused:
            raise CheckpointError("; ".join(refused))
        return None

    def _entries(self, rounds: int) -> Iterator[Entry]:
        for index in range(1, rounds + 1):
            yield Entry.unpack(self._mine(self._entry(index)))

    def _mine(self, path: Path) -> dict[str, Any]:
        content = read(path)
        if others := differences(self.run, content["run"]):
            raise CheckpointError(f"{path} belongs to another run: {others}")
        return content

    def _entry(self, index: int) -> Path:
        return self.path / f"ledger-{index:08d}.rsfl"

    def _state(self, index: int) -> Path:
        return self.path / f"state-{index:08d}.rsfl"
