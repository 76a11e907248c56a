"""What the clients of a round submitted, one vector each: in memory where that is little, in a file
where it is much."""

from tempfile import TemporaryFile
from typing import IO

import torch
from torch import Tensor

__all__ = ["Rows"]

_MEMORY = 1 << 28  # bytes of vectors beyond which they wait in a temporary file


class Rows:
    """Vectors by position, each written once and read one at a time.

    Args:
        many: How many there are.
        default: The vector where none was written: what the clients were sent.
    """

    def __init__(self, many: int, default: Tensor) -> None:
        self.default = default
        self._bytes = default.numel() * default.element_size()
        self._file: IO[bytes] | None = (
            TemporaryFile(prefix="rsfl-")  # noqa: SIM115 - it lives as long as the vectors do
            if many * self._bytes > _MEMORY
            else None
        )
        self._kept: list[Tensor | bool] = [False] * many

    def __len__(self) -> int:
        return len(self._kept)

    def __setitem__(self, position: int, vector: Tensor) -> None:
        if self._file is None:
            self._kept[position] = vector
            return
        self._file.seek(position * self._bytes)
        self._file.write(vector.cpu().contiguous().view(torch.uint8).numpy().data)
        self._kept[position] = True

    def __getitem__(self, position: int) -> Tensor:
        kept = self._kept[position]
        if isinstance(kept, Tensor):
            return kept
        if not kept or self._file is None:
            return self.default
        self._file.seek(position * self._bytes)
        raw = torch.frombuffer(bytearray(self._file.read(self._bytes)), dtype=self.default.dtype)
        return raw.to(self.default.device)

    def close(self) -> None:
        """Let go of the file; nothing can be read after that."""
        if self._file is not None:
            self._file.close()

    def drop(self, position: int) -> None:
        """Put the default in this place again."""
        self._kept[position] = False

    def matrix(self, positions: list[int]) -> Tensor:
        """The vectors at these positions as rows (n, d): a copy, all of it in memory."""
        rows = self.default.new_empty(len(positions), self.default.numel())
        for row, position in zip(rows, positions, strict=True):
            row.copy_(self[position])
        return rows
