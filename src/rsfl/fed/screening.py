"""The door: what clients sent becomes plain numbers, or a word for what was wrong with it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor

from rsfl import _draws
from rsfl.fed.client import Member
from rsfl.fed.faults import theirs, told
from rsfl.fed.layout import Layout
from rsfl.fed.poison import Attack
from rsfl.fed.rows import Rows
from rsfl.fed.training import Failure

__all__ = ["Limits", "Verdict", "admit", "screen", "tamper"]

_REASON = 300  # characters of a reason: what a client says of itself is not to fill the ledger

Verdict = tuple[str, str]
"""What became of an update, and why: ``"used"``, ``"clipped"``, ``"rejected"``, ``"absent"``."""


@dataclass(frozen=True)
class Limits:
    """The norms of a round.

    Args:
        reject: Norm above which an update is thrown away.
        clip: Norm to which longer updates are shortened, inf if they are not.
    """

    reject: float
    clip: float = inf


def admit(
    layout: Layout, many: int, sent: Tensor, replies: Iterable[tuple[int, Any]]
) -> tuple[Rows, list[Verdict]]:
    """The submitted vectors, copied byte by byte, and what was wrong with the others.

    Args:
        layout: What was asked for.
        many: How many clients were asked.
        sent: The vector that they were sent, which stands in for what cannot be used.
        replies: (position, reply): exchanged tensors by name, a `Failure`, or anything at all.
    """
    rows = Rows(many, sent)
    verdicts: list[Verdict] = [("absent", "sent nothing")] * many
    for i, reply in replies:
        try:
            failed = type(reply) is Failure
            problem = reply if failed else layout.problem(reply)
            if not problem:
                rows[i] = layout.vector(reply).to(sent.device)
        except BaseException as error:  # a mapping or a tensor of its own making
            if not theirs(error):
                raise
            failed, problem = False, f"sent what cannot be read: {type(error).__name__}"
        why = " ".join(str(problem).split())[:_REASON]
        absent = failed or reply is None
        verdicts[i] = ("absent" if absent else "rejected" if problem else "used", why)
    return rows, verdicts


def screen(rows: Rows, verdicts: Sequence[Verdict], sent: Tensor, limits: Limits) -> list[Verdict]:
    """Throw absurd updates away and shorten long ones, in place; the new verdicts."""
    found = list(verdicts)
    for i, (outcome, _) in enumerate(verdicts):
        if outcome != "used":
            continue
        row = rows[i]
        update = row.double() - sent
        norm = float(update.norm())
        if not isfinite(norm) or norm > limits.reject:
            finite = bool(torch.isfinite(update).all())
            long = f"sent an update of norm {norm:g}"
            found[i] = ("rejected", long if finite else "sent values that are not finite")
            rows.drop(i)
        elif norm > limits.clip:
            found[i] = ("clipped", "")
            rows[i] = (sent + update * (limits.clip / norm)).to(row.dtype)
    return found


def tamper(
    rows: Rows,
    verdicts: list[Verdict],
    sent: Tensor,
    participants: Sequence[Member],
    attacks: Mapping[int, Attack],
    key: tuple[int, int],
) -> None:
    """Let simulated attackers change what they send, knowing what the honest ones sent.

    Args:
        rows: What was submitted; changed in place.
        verdicts: Who sent something; changed in place where an attacker's own code fails.
        sent: The vector that was broadcast, in float64.
        participants: Who takes part.
        attacks: What attackers do, by client id.
        key: Seed of the run, and the round.
    """
    updates: dict[int, Callable[..., Any]] = {}
    for i, one in enumerate(participants):
        attack = attacks.get(one.id)
        if attack is not None and attack.active(key[1]) and attack.update is not None:
            updates[i] = attack.update
    if not updates:
        return
    honest = [
        i
        for i, one in enumerate(participants)
        if one.id not in attacks and verdicts[i][0] == "used"
    ]
    known = rows.matrix(honest).double() - sent
    known = known[torch.isfinite(known).all(dim=1)]
    for i, update in updates.items():
        if verdicts[i][0] != "used":
            continue
        row = rows[i]
        named = (*key, participants[i].id, "attack")
        generator = _draws.generator(*named, device=row.device)
        try:
            sends = update(row.double() - sent, known.clone(), generator)
            if type(sends) is not Tensor or sends.shape != sent.shape:
                raise TypeError(f"an attack must send a tensor of shape {tuple(sent.shape)}")
            rows[i] = (sent + sends.detach()).to(row.dtype)
        except BaseException as error:
            if not theirs(error):
                raise
            verdicts[i] = ("absent", f"raised {told(error)}"[:_REASON])
            rows.drop(i)
