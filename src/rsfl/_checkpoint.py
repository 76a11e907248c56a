"""Checkpoints: written whole or not at all, checked before they are used, loaded without running
code."""

from collections.abc import Mapping
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from rsfl._files import replaced

__all__ = ["CheckpointError", "read", "write"]

_MAGIC = b"rsfl checkpoint 1\n"


class CheckpointError(RuntimeError):
    """A checkpoint that is not intact, or that belongs to another run."""


def write(path: Path, content: Mapping[str, Any]) -> None:
    """Write a file that a kill at any point leaves whole, the old one or the new one."""
    buffer = BytesIO()
    torch.save(dict(content), buffer)
    payload = buffer.getvalue()
    replaced(path, _MAGIC + sha256(payload).digest() + payload)


def read(path: Path) -> dict[str, Any]:
    """Read a file back; only tensors and plain values are ever unpickled.

    Raises:
        CheckpointError: It cannot be read, is truncated, corrupted, or no checkpoint at all.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    head = len(_MAGIC) + 32
    if not raw.startswith(_MAGIC) or sha256(raw[head:]).digest() != raw[len(_MAGIC) : head]:
        raise CheckpointError(
            f"{path} is truncated, corrupted or no checkpoint: its checksum does not match"
        )
    # To the CPU, wherever it was written: who takes the tensors copies them to devices of its own.
    content: dict[str, Any] = torch.load(BytesIO(raw[head:]), map_location="cpu", weights_only=True)
    return content
