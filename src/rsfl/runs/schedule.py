"""Which inputs are certified together, and by which process: arithmetic that no process has to ask
another about."""

import itertools
from collections.abc import Callable, Container, Iterator
from functools import partial
from typing import Any

from rsfl._batches import indexable
from rsfl.runs.inputs import owned
from rsfl.runs.settings import Settings

__all__ = ["groups", "owner", "remaining"]

_VOTES, _INPUTS = 10_000, 16  # of a group, at most, as far as one input does not take more
_SHARING = 256  # inputs of a group whose noisy models are drawn once for all of them


def owner(group: int, world_size: int) -> int:
    """The rank that certifies a group. It depends on nothing else, so ranks that start at different
    times agree.

    Of as many consecutive groups as there are ranks, each rank has one. Its place among them jumps
    about (by multiples of the golden ratio), so that another number of ranks shares what a lost one
    has left.
    """
    turn = group // world_size * 0x9E3779B97F4A7C15 % 2**64 >> 32
    return (group + turn) % world_size


def groups(dataset: Any, settings: Settings) -> Iterator[list[tuple[int, Callable[[], Any]]]]:
    """The inputs to certify, a few at a time: their indices, and functions that load them.

    Inputs that share a batch may share its rounding errors. Who shares one is therefore a function
    of the settings alone: not of the clock, of the number of ranks, or of what has been done.
    """
    items: Iterator[tuple[int, Callable[[], Any]]]
    if indexable(dataset):
        chosen = range(0, len(dataset), settings.skip)[: settings.limit]
        items = ((index, partial(dataset.__getitem__, index)) for index in chosen)
    else:
        stop = None if settings.limit is None else (settings.limit - 1) * settings.skip + 1
        walk = itertools.islice(enumerate(dataset), 0, stop, settings.skip)
        items = ((index, partial(lambda item: item, owned(item))) for index, item in walk)
    while group := list(itertools.islice(items, _group_size(settings))):
        yield group


def _group_size(settings: Settings) -> int:
    """Enough to fill a device, few enough to do again after a kill; a sequential test begins with
    few votes each."""
    if settings.parameters is not None:
        return _SHARING
    return _INPUTS if settings.radius is not None else min(max(_VOTES // settings.n, 1), _INPUTS)


def remaining(settings: Settings, done: Container[int], rank: int, world_size: int) -> int | None:
    """How many inputs a rank has yet to certify, None where the data have no length."""
    if settings.inputs is None:
        return None
    size = _group_size(settings)
    mine = (place for place in range(settings.inputs) if owner(place // size, world_size) == rank)
    return sum(place * settings.skip not in done for place in mine)
