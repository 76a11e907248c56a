"""JSON documents that are whole, of a known kind and format, and as they were written."""

import json
import os
import platform
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rsfl._files import replaced
from rsfl._version import __version__

__all__ = ["line", "parsed", "read", "versions", "write"]


def versions() -> dict[str, str]:
    """What wrote a document."""
    return {
        "rsfl": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def line(kind: str, version: int, content: Mapping[str, Any]) -> bytes:
    """A document as one line, with a checksum of its content as it stands there."""
    document = {"kind": kind, "format": version, "crc32": _checksum(content), "content": content}
    return (json.dumps(document) + "\n").encode()


def parsed(data: bytes, kind: str, version: int) -> dict[str, Any]:
    """The content of a document.

    Raises:
        ValueError: It is of another kind or format, or not as it was written.
        KeyError, TypeError: It is no document.
    """
    document = json.loads(data)
    if (document["kind"], document["format"]) != (kind, version):
        raise ValueError(
            f"it is a {document['kind']} of format {document['format']}, not a {kind} of {version}"
        )
    content: dict[str, Any] = document["content"]
    if document["crc32"] != _checksum(content):
        raise ValueError("the checksum does not fit")
    return content


def write(
    path: str | os.PathLike[str], kind: str, version: int, content: Mapping[str, Any]
) -> None:
    """Replace the file by a document."""
    replaced(Path(path), line(kind, version, content))


def read(path: str | os.PathLike[str], kind: str, version: int) -> dict[str, Any]:
    """The content of a document that `write` wrote.

    Raises:
        ValueError: It is of another kind or format, or not as it was written.
        OSError: The file cannot be read.
    """
    try:
        return parsed(Path(path).read_bytes(), kind, version)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a {kind}: {error}") from error


def _checksum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, allow_nan=False).encode())
