"""Argument checks: one line each at the call, errors that name the argument and quote the value."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Float64",
    "Floats",
    "Int64",
    "choice",
    "count",
    "counts",
    "level",
    "number",
    "numbers",
    "probabilities",
    "stored",
    "unwrapped",
]

Float64: TypeAlias = NDArray[np.float64]
Int64: TypeAlias = NDArray[np.int64]

# A float where every argument was a scalar, a float64 array of the broadcast shape otherwise. NumPy
# types its own ufuncs the same way: the static type is Any, so that neither kind of caller has to
# cast.
Floats: TypeAlias = Any


def _first_bad(values: NDArray[Any], bad: NDArray[np.bool_]) -> str:
    """Quote the first offending value, with its position when there are several values."""
    if values.ndim == 0:
        return repr(values.item())
    where = tuple(int(i) for i in np.argwhere(bad)[0])
    return f"{values.item(where)!r} at index {where[0] if len(where) == 1 else where}"


def _array(name: str, value: Any, what: str) -> NDArray[Any]:
    """``value`` as an array of integers, Python's own where 64 bits are too few, or of floats no
    wider than float64."""
    try:
        raw = np.asarray(value)
        large = raw.dtype == object and all(type(entry) is int for entry in raw.flat)
        if large:
            raw.astype(np.float64)  # an error if that is too small, too
    except Exception:  # ragged lists, tensors that are not on the CPU or carry a gradient, ...
        raw, large = np.empty((), dtype=object), False
    if raw.dtype.kind not in "iuf" and not large:
        raise TypeError(f"{name} must be {what} or an array of them, got {value!r}")
    if raw.dtype.itemsize > 8:
        raise TypeError(
            f"{name} must be no wider than float64, which would round it, got {raw.dtype}"
        )
    return raw


def _interval(low: float, high: float, open_low: bool, open_high: bool) -> str:
    return f"{'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"


def numbers(
    name: str,
    value: ArrayLike,
    low: float = -np.inf,
    high: float = np.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> Float64:
    """``value`` as a float64 array whose entries all lie in the interval; NaN lies in no
    interval."""
    raw = _array(name, value, "a real number")
    array = raw.astype(np.float64)
    bad = np.isnan(array)
    bad |= (array <= low) if open_low else (array < low)
    bad |= (array >= high) if open_high else (array > high)
    if bad.any():
        raise ValueError(
            f"{name} must lie in {_interval(low, high, open_low, open_high)}, got "
            f"{_first_bad(raw, bad)}"
        )
    return array


def number(
    name: str,
    value: Any,
    low: float = -np.inf,
    high: float = np.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> float:
    """``value`` as one float in the interval."""
    array = numbers(name, value, low, high, open_low=open_low, open_high=open_high)
    if array.ndim:
        raise TypeError(f"{name} must be one number, got an array of shape {array.shape}")
    return float(array)


def probabilities(name: str, value: ArrayLike) -> Float64:
    """``value`` as a float64 array of probabilities in [0, 1]."""
    return numbers(name, value, 0.0, 1.0)


def counts(name: str, value: ArrayLike, low: int = 0) -> Int64:
    """``value`` as an int64 array of counts >= low. Whole floats are taken, fractions refused:
    nothing is rounded."""
    raw = _array(name, value, "a whole number")
    if raw.dtype.kind == "f":
        raw = raw.astype(np.float64)
        bad = ~np.isfinite(raw) | (raw != np.floor(raw))
        if bad.any():
            raise ValueError(f"{name} must be whole, got {_first_bad(raw, bad)}")
    bad = np.asarray((raw < low) | (raw > 2**53), dtype=bool)
    if bad.any():
        raise ValueError(
            f"{name} must be a count of at least {low} (and at most 2**53), got "
            f"{_first_bad(raw, bad)}"
        )
    return raw.astype(np.int64)


def count(name: str, value: Any, low: int = 0) -> int:
    """``value`` as one int >= low."""
    array = counts(name, value, low)
    if array.ndim:
        raise TypeError(f"{name} must be one whole number, got an array of shape {array.shape}")
    return int(array)


def level(name: str, value: Any) -> float:
    """``value`` as a failure probability in (0, 1/2]."""
    found = number(name, value, 0, 1, open_low=True, open_high=True)
    if found > 0.5:
        raise ValueError(
            f"{name} must be at most 0.5, got {found!r}: it is the probability with which the "
            f"result may be wrong, so {1 - found:.6g} is {100 * found:.6g} % confidence"
        )
    return found


def choice(name: str, value: Any, options: Sequence[str]) -> str:
    """``value``, which must be one of ``options``."""
    if not isinstance(value, str) or value not in options:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")
    return value


def stored(record: object, **checked: Any) -> None:
    """Put what the checks returned in place of what a frozen record was given: plain numbers,
    whatever they came as."""
    for name, value in checked.items():
        object.__setattr__(record, name, value)


def unwrapped(array: NDArray[Any]) -> Any:
    """A zero-dimensional array as the Python scalar it holds, any other array as it is."""
    return array.item() if array.ndim == 0 else array
