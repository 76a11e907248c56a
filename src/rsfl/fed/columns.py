"""Columns of numbers and texts as JSON holds them: exact, short and quick."""

import zlib
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["packed", "unpacked"]

_KINDS = {"i": "<i8", "f": "<f8", "b": "|b1"}


def packed(column: NDArray[Any] | Sequence[str]) -> dict[str, Any]:
    """A column as a document: the bytes of numbers, compressed; of texts, each different one once.

    Example:
        >>> unpacked(packed(["sgd", "sgd", "custom"]))
        ['sgd', 'sgd', 'custom']
    """
    if not isinstance(column, np.ndarray):
        places = {text: place for place, text in enumerate(dict.fromkeys(column))}
        codes = np.array([places[text] for text in column], dtype=np.int64)
        return {"texts": list(places), "codes": packed(codes)}
    kind = _KINDS["i" if column.size == 0 and column.dtype.kind == "f" else column.dtype.kind]
    raw = np.ascontiguousarray(column, dtype=kind).tobytes()
    shape = list(column.shape)
    return {"type": kind, "shape": shape, "data": b64encode(zlib.compress(raw, 1)).decode()}


def unpacked(document: Mapping[str, Any]) -> Any:
    """The column that `packed` was given, as an array or a list of texts.

    Raises:
        KeyError, TypeError, ValueError: It is no such document.
    """
    if "texts" in document:
        codes = unpacked(document["codes"])
        if codes.size and not 0 <= codes.min() <= codes.max() < len(document["texts"]):
            raise ValueError("a code that stands for no text")
        return [document["texts"][code] for code in codes.tolist()]
    if document["type"] not in _KINDS.values():
        raise ValueError(f"a column of {document['type']!r}")
    try:
        raw = zlib.decompress(b64decode(document["data"], validate=True))
    except zlib.error as error:
        raise ValueError(str(error)) from error
    return np.frombuffer(raw, dtype=document["type"]).reshape(document["shape"])
