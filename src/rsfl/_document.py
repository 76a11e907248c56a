"""JSON documents that are whole, of a known kind and format, and as they were written."""

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rsfl._files import replaced

__all__ = ["read", "write"]


def write(
    path: str | os.PathLike[str], kind: str, version: int, content: Mapping[str, Any]
) -> None:
    """Replace the file by a document with a checksum."""
    document = {"kind": kind, "format": version, "crc32": _checksum(content), "content": content}
    replaced(Path(path), (json.dumps(document) + "\n").encode())


def read(path: str | os.PathLike[str], kind: str, version: int) -> dict[str, Any]:
    """The content of a document that `write` wrote.

    Raises:
        ValueError: It is of another kind or format, or not as it was written.
        OSError: The file cannot be read.
    """
    try:
        document = json.loads(Path(path).read_bytes())
        if (document["kind"], document["format"]) != (kind, version):
            raise ValueError(
                f"it is a {document['kind']} of format {document['format']}, not a {kind} of "
                f"{version}"
            )
        content: dict[str, Any] = document["content"]
        if document["crc32"] != _checksum(content):
            raise ValueError("the checksum does not fit")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as a {kind}: {error}") from error
    return content


def _checksum(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(content, allow_nan=False).encode())
