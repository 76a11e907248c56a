"""The files of this library, read from the description of their format and by no other code of it.

A reader that derives what a file leaves out, or refuses what is wrong, would hide it from whoever
checks: here files are taken as they are.
"""

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Document", "read_document", "read_lines"]


_CONTENT = b'"content": '


@dataclass(frozen=True)
class Document:
    """What a file, or a line of one, holds.

    Attributes:
        subject: The file, and the line in it.
        kind: What it says it is.
        version: The format that it says it has.
        content: What is in it.
        sealed: Whether its checksum fits.
    """

    subject: str
    kind: str
    version: int
    content: Mapping[str, Any]
    sealed: bool


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The members of an object, which readers must not be able to tell apart: each once."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"members stand twice among {[name for name, _ in pairs][:9]}")
    return found


def _parsed(text: bytes, subject: str) -> Document:
    try:
        found = json.loads(text, object_pairs_hook=_members)
        content = found["content"]
        # The content is the last member: its bytes end before the brace that closes the line.
        body = text.rstrip()[text.index(_CONTENT) + len(_CONTENT) : -1]
        seal = zlib.crc32(body)
        return Document(
            subject, str(found["kind"]), int(found["format"]), content, found["crc32"] == seal
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{subject} is no document of rsfl: {error!r}") from error


def read_document(path: str | os.PathLike[str]) -> Document:
    """The document in a file.

    Raises:
        ValueError: It is none.
        OSError: The file cannot be read.
    """
    return _parsed(Path(path).read_bytes(), str(path))


def read_lines(path: str | os.PathLike[str]) -> list[Document]:
    """The documents of a file with one in each line; a last line without its end was torn off.

    Raises:
        ValueError: A line holds none.
        OSError: The file cannot be read.
    """
    lines = Path(path).read_bytes().split(b"\n")[:-1]
    return [_parsed(line, f"{path}, line {at}") for at, line in enumerate(lines, 1)]
