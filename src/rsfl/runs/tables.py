"""Certified test sets as tables: the tab-separated files that published runs come in, and data
frames.

The classic file has the columns ``idx label predict radius correct time``, one input a line.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from rsfl._checks import Float64, Int64, numbers
from rsfl._text import floored
from rsfl.runs.curves import Certified, correct, independent
from rsfl.smooth import ABSTAIN, Certificate

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Published", "read_tsv", "to_dataframe", "write_tsv"]

COLUMNS = ("idx", "label", "predict", "radius", "correct", "time")


@dataclass(frozen=True)
class Published:
    """What a classic file says of a test set. There are no votes to verify it with, and a radius
    that was printed rounded may be above the certified one.

    Attributes:
        index: (B,) int64, which inputs.
        label: (B,) int64, the predicted class or ``ABSTAIN``.
        radius: (B,) float64, as printed.
        seconds: (B,) float64, what each input took.
        norm: Norm of the radius.
        unit: Unit of the radius.
    """

    index: Tensor
    label: Tensor
    radius: Tensor
    seconds: Tensor
    norm: str = "l2"
    unit: str = "input units"

    def __len__(self) -> int:
        return len(self.label)


def _time(text: str) -> float:
    """Seconds, from seconds or [D day(s), ]H:MM:SS[.ffffff]."""
    clock = re.fullmatch(r"(?:(\d+) days?, )?(\d+):([0-5]\d):([0-5]\d(?:\.\d+)?)", text)
    if clock is None:
        return _finite(text)
    days, hours, minutes, seconds = clock.groups(default="0")
    whole = (int(days) * 24 + int(hours)) * 3600 + int(minutes) * 60
    return float(whole + Fraction(seconds))


def _finite(text: str) -> float:
    value = float(text)
    if not (value >= 0 and value < np.inf):
        raise ValueError(f"{text!r} is not a finite number of at least 0")
    return value


def _clock(seconds: float) -> str:
    micro = round(seconds * 1_000_000)
    whole, micro = divmod(micro, 1_000_000)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}.{micro:06d}"


def _row(line: str) -> tuple[int, int, int, float, float]:
    """index, label, predict, radius and seconds of a line."""
    cells = line.split("\t")
    if len(cells) != len(COLUMNS):
        raise ValueError(f"{len(cells)} columns where there should be {len(COLUMNS)}")
    index, label, predict = (int(cell) for cell in cells[:3])
    if index < 0 or label < 0 or predict < ABSTAIN:
        raise ValueError(f"{cells[:3]} are not an index, a label and a prediction")
    radius = float(cells[3])
    if not radius >= 0:
        raise ValueError(f"radius {cells[3]!r} is not a number of at least 0")
    stated = {"0": False, "1": True, "False": False, "True": True}.get(cells[4])
    if stated is None or stated != (label == predict):
        raise ValueError(f"correct is {cells[4]!r} for label {label} and prediction {predict}")
    return index, label, predict, radius, _time(cells[5])


def read_tsv(
    path: str | os.PathLike[str], *, norm: str = "l2", unit: str = "input units"
) -> tuple[Published, Int64]:
    """Read a classic file.

    Args:
        path: A file with the columns ``idx label predict radius correct time``; times in seconds or
            H:MM:SS.ffffff.
        norm: Norm of its radii, which the file does not say.
        unit: Their unit, likewise.

    Returns:
        What it says, and the true labels.

    Raises:
        ValueError: A line is not of this format, or of an input that was there before; the error
            names it.
        FileNotFoundError: There is no such file.
        OSError: The file cannot be read.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no file {path}, nor a directory of a run")
    try:
        lines = Path(path).read_text().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error}") from error
    if not lines or tuple(lines[0].split("\t")) != COLUMNS:
        raise ValueError(f"{path}, line 1: the columns must be {' '.join(COLUMNS)}, tab-separated")
    rows: dict[int, tuple[int, int, int, float, float]] = {}
    for number, line in enumerate(lines[1:], 2):
        try:
            row = _row(line)
            if rows.setdefault(row[0], row) is not row:
                raise ValueError(f"input {row[0]} is there a second time")
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
    index, label, predict, radius, seconds = zip(*rows.values(), strict=True) if rows else ((),) * 5
    said = Published(
        index=torch.tensor(index, dtype=torch.int64),
        label=torch.tensor(predict, dtype=torch.int64),
        radius=torch.tensor(radius, dtype=torch.float64),
        seconds=torch.tensor(seconds, dtype=torch.float64),
        norm=norm,
        unit=unit,
    )
    return said, np.array(label, dtype=np.int64)


def write_tsv(
    path: str | os.PathLike[str],
    certificate: Certificate | Published,
    labels: Sequence[int] | Int64,
    seconds: ArrayLike = 0.0,
    *,
    norm: str = "l2",
    unit: str = "input units",
) -> None:
    """Write a classic file, radii floored to 4 decimals.

    The file does not say what its radii measure, and its readers take them for l2 radii in units of
    the input. Name ``norm`` and ``unit`` if they are others: whoever reads the file has to.

    Args:
        path: The file.
        certificate: The certificates of a test set, or what another file said.
        labels: (B,) its true labels.
        seconds: What each input took, at least 0; one number or (B,).
        norm: Norm of the radii.
        unit: Their unit.

    Raises:
        ValueError: labels or seconds do not fit the certificate, or norm and unit are not its own.
            Nor can the file say that inputs share their noise, as in parameter smoothing, or an
            index.
        OSError: The file cannot be written.
    """
    independent(certificate)
    for name, value, own in (("norm", norm, certificate.norm), ("unit", unit, certificate.unit)):
        if value != own:
            raise ValueError(
                f"{name} must be {own!r}, that of the certificate, got {value!r}: the file does "
                f"not say it"
            )
    right = correct(certificate, labels)
    times: Float64 = np.broadcast_to(
        numbers("seconds", seconds, 0, np.inf, open_high=True), right.shape
    )
    columns = (c.tolist() for c in (certificate.index, certificate.label, certificate.radius))
    rows = ["\t".join(COLUMNS)]
    for index, predict, radius, label, hit, time in zip(
        *columns, labels, right, times, strict=True
    ):
        rows.append(f"{index}\t{label}\t{predict}\t{floored(radius)}\t{int(hit)}\t{_clock(time)}")
    Path(path).write_text("\n".join(rows) + "\n")


def to_dataframe(certificate: Certified, labels: ArrayLike) -> "DataFrame":
    """A pandas data frame, one input a row. Needs pandas, which this library does not install.

    Args:
        certificate: The certificates of a test set, or what a classic file said.
        labels: (B,) its true labels.

    Returns:
        What there is of the columns index, label, prediction, radius, correct, p_lower, p_upper,
        n0, n, invalid and seconds.

    Raises:
        ImportError: pandas is not installed.
        ValueError: labels do not fit the certificate.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise ImportError("to_dataframe needs pandas: pip install pandas") from error

    columns: dict[str, Any] = {
        "label": np.asarray(labels),
        "prediction": certificate.label.cpu().numpy(),
        "radius": certificate.radius.cpu().numpy(),
        "correct": correct(certificate, labels),
    }
    for name in ("index", "p_lower", "p_upper", "n0", "n", "invalid", "seconds"):
        if hasattr(certificate, name):
            columns[name] = getattr(certificate, name).cpu().numpy()
    return pd.DataFrame(columns).set_index("index")
