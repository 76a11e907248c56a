"""Group voting: one model for each of several disjoint groups of clients, and a certificate that
counts clients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from rsfl import _draws
from rsfl._checks import Int64, count
from rsfl._models import evaluating
from rsfl.bounds.voting import group_votes
from rsfl.fed.poison import Attack
from rsfl.fed.rounds import RoundError
from rsfl.fed.server import Server

__all__ = ["GroupVote", "group_clients", "train_groups"]

_FIXED = 0  # what a group votes that has no answer: fixed in advance, so that nobody chooses it


def group_clients(ids: Sequence[int], groups: int, *, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    """Divide clients into disjoint groups, as equal as they can be, by the ids and the seed alone.

    Example:
        >>> sorted(sum(group_clients(range(7), 3), ()))
        [0, 1, 2, 3, 4, 5, 6]
    """
    ordered = sorted(count("ids", one) for one in ids)
    if len(set(ordered)) < len(ordered):
        raise ValueError(f"ids must be different, got {ordered!r}")
    if not 1 <= count("groups", groups) <= len(ordered):
        raise ValueError(f"groups must be from 1 to the {len(ordered)} clients, got {groups!r}")
    order = _draws.rng(seed, "groups").permutation(len(ordered))
    return tuple(tuple(sorted(ordered[i] for i in order[g::groups])) for g in range(groups))


@dataclass(frozen=True)
class GroupVote:
    """The models of disjoint groups of clients, and their vote.

    Args:
        models: One model a group; None for a group whose training failed, which votes for label 0
            always.
        groups: The clients of each group.
        num_classes: Number of labels.
    """

    models: tuple[nn.Module | None, ...] = field(repr=False)
    groups: tuple[tuple[int, ...], ...]
    num_classes: int

    def __post_init__(self) -> None:
        if len(self.models) != len(self.groups):
            raise ValueError(
                f"models must be one a group, got {len(self.models)} for {len(self.groups)} groups"
            )
        members = sorted(client for group in self.groups for client in group)
        if len(set(members)) < len(members):
            raise ValueError(f"groups must be disjoint, got {self.groups!r}")

    def votes(self, x: Tensor) -> Tensor:
        """Votes (B, K), int64: one a group and input; outputs that are not finite are a vote for
        label 0."""
        total = torch.zeros(len(x), self.num_classes, dtype=torch.int64, device=x.device)
        for model in self.models:
            label = torch.full((len(x),), _FIXED, device=x.device)
            if model is not None:
                with evaluating(model):
                    outputs = model(x.clone())  # which a member may write into
                if outputs.shape != total.shape:
                    raise ValueError(
                        f"models must give outputs {tuple(total.shape)}, got {tuple(outputs.shape)}"
                    )
                label = torch.where(
                    torch.isfinite(outputs).all(dim=1), outputs.argmax(dim=1), _FIXED
                )
            total += torch.nn.functional.one_hot(label, self.num_classes)
        return total

    def certify(self, x: Tensor) -> tuple[Int64, Int64]:
        """Label of each input, and how many malicious clients could not have changed it.

        Assumes:
            What `rsfl.bounds.voting.group_votes` does. `train_groups` provides it: the groups
            depend on ids and seed alone, and each is trained as a run of its own, on its own
            clients, with a seed of its own.
        """
        return group_votes(self.votes(x).cpu().numpy())


def train_groups(
    server: Server,
    groups: int,
    rounds: int,
    *,
    num_classes: int,
    attacks: Mapping[int, Attack] | None = None,
    progress: bool = False,
) -> GroupVote:
    """Train one model a group of clients, each as a run of its own under the settings of
    ``server``.

    Args:
        server: The settings, the initial model and the clients.
        groups: Number of groups.
        rounds: Rounds of each run.
        num_classes: Number of labels.
        attacks: Simulated attackers, by client id.
        progress: Whether to show progress bars.

    Raises:
        ValueError: The server gives up late clients: they go on in the background and draw from the
            random state of this process, so that one of them could change the models of other
            groups.
    """
    if server.timeout is not None:
        raise ValueError(
            f"server must have no timeout, or groups would not be independent, got "
            f"{server.timeout!r}"
        )
    if unknown := set(attacks or {}) - {one.id for one in server.clients}:
        raise ValueError(f"attacks must name clients of the server, got {sorted(unknown)!r}")
    divided = group_clients([one.id for one in server.clients], groups, seed=server.seed)
    models: list[nn.Module | None] = []
    for number, members in enumerate(divided):
        alone = replace(
            server,
            clients=[one for one in server.clients if one.id in members],
            sizes=None if server.sizes is None else {id_: server.sizes[id_] for id_ in members},
            seed=_draws.subseed(server.seed, "group", number) >> 11,
        )
        inside = {id_: attack for id_, attack in (attacks or {}).items() if id_ in members}
        try:
            models.append(alone.run(rounds, attacks=inside, progress=progress).model)
        except RoundError:
            models.append(None)
    return GroupVote(tuple(models), divided, count("num_classes", num_classes, 2))
