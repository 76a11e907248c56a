"""What the server reads of its clients' samples before each round: how long the inputs are, and
which cannot be trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, nextafter

import torch
from torch import Tensor, nn

from rsfl._heads import Head, linear_head
from rsfl.fed.client import Client, Member, Remote
from rsfl.fed.trainer import SGD, squared_norms, usable
from rsfl.train import CrossEntropy

__all__ = ["Survey", "survey"]

_BLOCK = 1 << 18  # numbers that are read at once


@dataclass(frozen=True)
class Survey:
    """One client's samples.

    Args:
        input_norm: Bound on the norm of (x, 1) over those that can be trained on; inf where there
            is none.
        unusable: How many cannot, and so count as zero.
    """

    input_norm: float = inf
    unusable: int = 0


def survey(members: Sequence[Member], model: nn.Module, longest: float = inf) -> dict[int, Survey]:
    """What the samples of clients are like now, by id; nothing for models that are not linear,
    whose outputs are not known. A data set that clients share is read once, or as much of it as is
    theirs.

    Behind frozen layers, x is what they make of an input. A client elsewhere has layers of its own:
    nothing is known of what they make.

    Args:
        members: Who takes part.
        model: What is trained.
        longest: Norm of (x, 1) above which a sample is unusable.
    """
    head, found = linear_head(model), dict[int, Survey]()
    if head is None:
        return found
    columns = dict(_columns([one for one in members if type(one) is Client], head, longest))
    for one in members:
        if type(one) is Remote and not head.frozen:
            found[one.id] = Survey(min(one.input_norm, longest))
        elif type(one) is Client:
            squares, good = columns[one.id]
            if type(one.trainer) is SGD and type(one.trainer.loss) is CrossEntropy:
                squares = squares[good]  # which it leaves out
                found[one.id] = Survey(_norm(squares), len(good) - len(squares))
            else:
                found[one.id] = Survey(_norm(squares))
        else:
            found[one.id] = Survey()
    return found


def _columns(
    clients: Sequence[Client], head: Head, longest: float
) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """By id the squared norm of each of a client's inputs, and whether it can be trained on."""
    sharing: dict[tuple[int, int], list[Client]] = {}
    for one in clients:
        sharing.setdefault((id(one.x), id(one.y)), []).append(one)
    for holders in sharing.values():
        try:
            columns = _shared(holders, head, longest)
        except Exception:
            # Nothing that can be read, or that the frozen layers can take: no bound for those who
            # hold it, and their training will tell. Nobody else is concerned.
            columns = [_unknown(one.size) for one in holders]
        for one, found in zip(holders, columns, strict=True):
            yield one.id, found


def _shared(holders: Sequence[Client], head: Head, longest: float) -> list[tuple[Tensor, Tensor]]:
    """The columns of each of the clients that share a data set."""
    x, y = holders[0].x, holders[0].y
    wheres = [torch.from_numpy(one.where).to(x.device) for one in holders]
    held = torch.cat(wheres)
    if len(held) < len(x):
        squares, good = _read(x[held], y[held], head, longest)
        sizes = [len(where) for where in wheres]
        return list(zip(torch.split(squares, sizes), torch.split(good, sizes), strict=True))
    squares, good = _read(x, y, head, longest)
    return [(squares[where.cpu()], good[where.cpu()]) for where in wheres]


def _unknown(size: int) -> tuple[Tensor, Tensor]:
    return torch.full((size,), inf, dtype=torch.float64), torch.ones(size, dtype=torch.bool)


def _read(x: Tensor, y: Tensor, head: Head, longest: float) -> tuple[Tensor, Tensor]:
    """The squared norm of each input, and whether the sample can be trained on."""
    block = max(1, _BLOCK // max(1, x[0].numel()))
    squares = torch.cat([squared_norms(head.features(part)) for part in torch.split(x, block)])
    return squares.cpu(), usable(squares, y, head.layer.out_features, longest).cpu()


def _norm(squares: Tensor) -> float:
    """A bound on || (x, 1) ||; inf if a number is not finite."""
    largest = float(squares.max()) if len(squares) else 0.0
    if not largest < inf:
        return inf
    # Rounding of the sum and of the root: far less than the widening.
    return nextafter((largest + 1) ** 0.5 * (1 + 1e-12), inf)
