"""Rounds of a federated run carried out again, where the clients' data are at hand."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from rsfl.bounds import Round
from rsfl.fed import Ledger, Server
from rsfl.verify.findings import Finding, Report

__all__ = ["replay"]


def replay(
    server: Server, ledger: Ledger, checkpoint: str | os.PathLike[str] | None = None
) -> Report:
    """Carry out rounds of a run again, and compare what they do with the ledger.

    Args:
        server: The server with the clients and their data, set up as for the run.
        ledger: What the run says of itself.
        checkpoint: The run's directory of checkpoints: its last round is carried out again from the
            state before, which is left as it is. Without it the whole run is.

    Returns:
        The findings: each round's record, and the hashes of its weights, to a bit.

    Raises:
        CheckpointError: The directory is of another run, or holds no state before its last.
        ValueError: The ledger holds no round.
    """
    total = len(ledger)
    if not total:
        raise ValueError("ledger must hold a round, got none")
    with tempfile.TemporaryDirectory() as folder:
        copy = None if checkpoint is None else _before(Path(checkpoint), Path(folder))
        again = server.run(total, exclude=ledger.excluded, checkpoint=copy).ledger
    first = total if checkpoint is not None else 1
    return Report(tuple(_compared(ledger, again, first)))


def _before(checkpoint: Path, folder: Path) -> Path:
    """A copy of checkpoints without the last round."""
    copy = folder / "checkpoint"
    shutil.copytree(checkpoint, copy)
    for kind in ("state", "ledger"):
        for last in sorted(copy.glob(f"{kind}-*.rsfl"))[-1:]:
            last.unlink()
    return copy


def _compared(ledger: Ledger, again: Ledger, first: int) -> Iterator[Finding]:
    for said, found in zip(ledger.rounds, again.rounds, strict=True):
        differ = [
            field.name
            for field in fields(Round)
            if getattr(said, field.name) != getattr(found, field.name)
        ]
        where = f"round {said.index}"
        how = "carried out again" if said.index >= first else "as its checkpoint has it"
        text = f"{how}: the same record and the same weights"
        if differ:
            text = f"{how}: other {', '.join(differ)} than in the ledger"
        yield Finding(where, "evidence", not differ, text)
