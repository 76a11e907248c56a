"""Lending Club's table of loans: what was known when a loan was made, as numbers from 0 to 1, and
how it ended."""

import csv
import gzip
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Loans", "loans"]

OUTCOME, STATE = "loan_status", "addr_state"
CATEGORIES = 40  # a column of more than so many words is an identifier or a date, and left out
# What payments, collection and later looks at the borrower have written: it tells the outcome.
LATER = (
    *(
        "total_pymnt",
        "total_rec",
        "recoveries",
        "collection_recovery",
        "last_",
        "next_pymnt",
        "out_prncp",
    ),
    *(
        "debt_settlement",
        "settlement_",
        "hardship_",
        "pymnt_plan",
        "deferral",
        "payment_plan",
        "orig_projected",
    ),
)


@dataclass(frozen=True)
class Loans:
    """Training and test loans.

    Args:
        names: What each feature is.
        classes: The outcomes, by label.
        x: Training features (N, F), float64 in [0, 1].
        y: Training labels (N,).
        test_x: Test features, scaled as the training features are, so that a few lie outside of [0,
            1].
        test_y: Test labels.
        states: (N,) the state of each training loan.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor
    states: NDArray[np.str_]


def loans(folder: Path, *, seed: int, share: float = 0.2) -> Loans:
    """Read ``folder``'s one table (.csv or .csv.gz), and keep a random share of its loans for
    testing.

    Every scale and every list of words comes from the training loans alone. A missing number is 0
    and tells so in a feature of its own; a word that training has not seen is none of the known
    ones.
    """
    columns = _columns(folder)
    outcome, states = (np.array(columns.pop(name)) for name in (OUTCOME, STATE))
    classes, labels = np.unique(outcome, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    cut = round(share * len(order))
    test, train = order[:cut], order[cut:]
    features: dict[str, NDArray[np.float64]] = {}
    for name, values in columns.items():
        if not name.startswith(LATER):
            features |= _features(name, values, train)
    x = torch.from_numpy(np.stack(list(features.values()), axis=1))
    y = torch.from_numpy(labels.astype(np.int64))
    return Loans(
        tuple(features),
        tuple(classes.tolist()),
        x[train],
        y[train],
        x[test],
        y[test],
        states[train],
    )


def _columns(folder: Path) -> dict[str, list[str]]:
    """The table by column."""
    found = sorted([*folder.glob("*.csv"), *folder.glob("*.csv.gz")])
    if len(found) != 1:
        raise FileNotFoundError(
            f"{folder} must hold one .csv or .csv.gz, got {[path.name for path in found]!r}"
        )
    data = found[0].read_bytes()
    text = gzip.decompress(data) if found[0].suffix == ".gz" else data
    rows = [row for row in csv.reader(io.StringIO(text.decode())) if row]
    head = rows[0] if rows else []
    if missing := [name for name in (OUTCOME, STATE) if name not in head]:
        raise ValueError(
            f"{found[0]} must have the columns {OUTCOME} and {STATE}, got none named {missing!r}"
        )
    wrong = Counter(len(row) for row in rows if len(row) != len(head))
    if wrong or len(rows) < 3:
        raise ValueError(
            f"{found[0]} must hold at least two rows of {len(head)} values, got {len(rows) - 1}, "
            f"{wrong}"
        )
    return {
        name: list(column) for name, column in zip(head, zip(*rows[1:], strict=True), strict=True)
    }


def _features(
    name: str, values: Sequence[str], train: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """A column as features: a number from 0 to 1, or one for each word; nothing where training sees
    no difference."""
    try:
        raw = np.array([float(value or "nan") for value in values])
    except ValueError:
        words = np.array(values)
        known = np.unique(words[train])
        chosen = known if 1 < len(known) <= CATEGORIES else known[:0]
        return {f"{name}={word}": (words == word).astype(np.float64) for word in chosen.tolist()}
    features, absent = {}, np.isnan(raw)
    seen = raw[train][~absent[train]]
    if len(seen) and seen.min() < seen.max():
        features[name] = np.where(absent, 0.0, (raw - seen.min()) / (seen.max() - seen.min()))
    if 0 < absent[train].sum() < len(train):
        features[f"{name}: none"] = absent.astype(np.float64)
    return features
