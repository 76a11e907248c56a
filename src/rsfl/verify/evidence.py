"""Votes that are cast again: a random sample of what a record says, with the model and the data at
hand; and whether model, data and settings are those that it names."""

import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from random import Random
from typing import Any

import torch
from scipy import special
from torch import Tensor, nn

from rsfl._draws import subseed
from rsfl._fingerprint import input_hash
from rsfl.smooth import ESTIMATION, SELECTION, OrbitBallot, Voter, Votes
from rsfl.verify.certificates import some
from rsfl.verify.findings import Finding
from rsfl.verify.rows import Row

__all__ = ["Inputs", "check_identity", "check_orbit_votes", "check_votes", "sample_size"]

Inputs = Callable[[int], Tensor]

_LEVEL = 1e-9  # of the test that compares votes which were drawn anew


def sample_size(inputs: int, forged: float, missed: float) -> int:
    """How many inputs to vote on again, so that a share of forged ones is missed with at most this
    probability.

    With g = ceil(forged * inputs) forged, m drawn without replacement miss all of them with
    probability C(inputs - g, m) / C(inputs, m).
    """
    many = math.ceil(forged * inputs)
    chance, size = 1.0, 0
    while chance > missed and size < inputs:
        chance *= max(inputs - many - size, 0) / (inputs - size)
        size += 1
    return size


class _CloseCalls(nn.Module):
    """Counts how often a model's two largest logits are closer than rounding can turn."""

    def __init__(self) -> None:
        super().__init__()
        self.found = 0

    def note(self, _: nn.Module, __: Any, answer: Any) -> None:
        """A hook for the model."""
        logits = getattr(answer, "logits", answer)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
            return
        top = logits.detach().topk(2, dim=1).values
        reach = 100 * torch.finfo(logits.dtype).eps * logits.detach().abs().amax(dim=1)
        self.found += int((top[:, 0] - top[:, 1] <= reach).sum())


@contextmanager
def _watched(voter: Voter) -> Iterator[_CloseCalls]:
    """The close calls of a model while votes are counted; none where copies of it vote."""
    calls = _CloseCalls()
    if voter.model is None or voter.law.space == "parameters":
        yield calls
        return
    handle = voter.model.register_forward_hook(calls.note)
    try:
        yield calls
    finally:
        handle.remove()


def _moved(row: Row, selection: Sequence[int], counts: Sequence[int], invalid: int) -> int:
    """How many votes differ from those of a record."""
    apart = 0
    for said, found in ((row.selection, selection), (row.counts, counts)):
        apart += sum(abs(said.get(label, 0) - votes) for label, votes in enumerate(found))
    apart += abs(row.n - sum(row.counts.values()) - invalid)
    return (apart + 1) // 2


def _unlikely(row: Row, counts: Sequence[int]) -> bool:
    """Whether votes of one probability would differ as much in fewer than one in a billion
    pairs."""
    for label, votes in enumerate(counts):
        said = row.counts.get(label, 0)
        together, low = said + votes, min(said, votes)
        if together and 2 * special.bdtr(low, together, 0.5) < _LEVEL:
            return True
    return False


def check_votes(  # noqa: PLR0913  # a run's settings
    subject: str,
    content: Mapping[str, Any],
    rows: Sequence[Row],
    voter: Voter,
    inputs: Inputs,
    *,
    forged: float,
    missed: float,
    batch_size: int | None = None,
    same_device: bool = True,
) -> Iterator[Finding]:
    """Vote again on a random sample of the inputs of a record.

    Args:
        subject: What the record is called.
        content: What it says.
        rows: Its votes.
        voter: What has cast them.
        inputs: The input of an index.
        forged: Share of forged inputs that is to be found.
        missed: Probability with which it may be missed.
        batch_size: Noisy inputs per forward call, as when the votes were cast.
        same_device: Whether the votes were cast on a device of the same kind. On another they are
            other draws, and are compared as such.
    """
    voted = [row for row in rows if row.n]
    size = sample_size(len(voted), forged, missed)
    # What is looked at must not be known to who wrote the record.
    chosen = sorted(Random(secrets.randbits(128)).sample(range(len(voted)), size))
    exact = wrong = close = 0
    texts = []
    for place in chosen:
        row = voted[place]
        x = inputs(row.index)[None]
        index = torch.tensor([row.index])
        with _watched(voter) as calls:
            selection, votes = (
                _counted(voter, x, index, many, content["seed"], stage, batch_size)
                for many, stage in ((row.n0, SELECTION), (row.n, ESTIMATION))
            )
        moved = _moved(
            row, selection.counts[0].tolist(), votes.counts[0].tolist(), int(votes.invalid[0])
        )
        if moved == 0:
            exact += 1
        elif same_device and moved <= calls.found:
            close += 1
        elif same_device or _unlikely(row, votes.counts[0].tolist()):
            wrong += 1
            texts.append(
                f"input {row.index}: {dict(row.counts)} in the record, "
                f"{_sparse(votes.counts[0].tolist())} now: {moved} votes differ, of which rounding "
                f"explains {calls.found if same_device else 0}"
            )
    text = (
        f"{size} of {len(voted)} inputs voted again, so that {forged:.1%} forged are missed with "
        f"probability {missed:g} at most: {exact} the same to a vote"
    )
    if close:
        text += f", {close} up to votes whose two largest logits are as close as rounding"
    if not same_device and size > exact:
        text += ", the rest on another kind of device, and no further apart than draws are"
    if wrong:
        text = "; ".join(texts[:5]) + (f"; and {wrong - 5} more" if wrong > 5 else "")
    yield Finding(subject, "evidence", not wrong, text)


def check_orbit_votes(
    subject: str,
    ballot: OrbitBallot,
    voter: Voter,
    inputs: Inputs,
    *,
    forged: float,
    missed: float,
    batch_size: int | None = None,
) -> Iterator[Finding]:
    """Vote again at the centres of a random sample of orbits, those that answer for a cell.

    Args:
        subject: What the record is called.
        ballot: Its votes.
        voter: What has cast them.
        inputs: The input of an index.
        forged: Share of forged inputs that is to be found.
        missed: Probability with which it may be missed.
        batch_size: Noisy inputs per forward call, as when the votes were cast.
    """
    size = sample_size(len(ballot), forged, missed)
    wrong, cast = [], 0
    for place in sorted(Random(secrets.randbits(128)).sample(range(len(ballot)), size)):
        index, label = int(ballot.index[place]), int(ballot.chosen[place])
        tests, x = ballot.tests[place], inputs(index)[None]
        seed = subseed(ballot.seed, "orbit", index, "tests") % 2**53
        for centre in sorted(set(tests.owner[tests.owner >= 0].tolist())):
            picture = ballot.orbit(x, torch.from_numpy(tests.centres[centre])[None].to(x.device))
            many, at = int(tests.trials[centre]), torch.tensor([centre])
            with _watched(voter) as calls:
                votes = _counted(voter, picture, at, many, seed, ESTIMATION, batch_size)
            said, found = int(tests.successes[centre]), int(votes.counts[0, label])
            cast += many
            if abs(said - found) > calls.found:
                wrong.append(f"input {index}, centre {centre}: {said} votes of {many}, {found} now")
    text = f"{cast} votes at the centres of {size} of {len(ballot)} inputs cast again: the same"
    yield Finding(subject, "evidence", not wrong, some(wrong) if wrong else text)


def _counted(
    voter: Voter, x: Tensor, index: Tensor, many: int, seed: int, stage: int, batch: int | None
) -> Votes:
    if many == 0:
        return Votes(torch.zeros((1, voter.num_classes), dtype=torch.int64))
    return voter.count(voter.checked(x), index, 0, many, seed=seed, stage=stage, batch_size=batch)


def _sparse(counts: Sequence[int]) -> dict[int, int]:
    return {label: votes for label, votes in enumerate(counts) if votes}


def check_identity(
    subject: str, content: Mapping[str, Any], voter: Voter, inputs: Inputs, law: Mapping[str, Any]
) -> Iterator[Finding]:
    """Whether model, inputs and law are those that a record names.

    Args:
        subject: What the record is called.
        content: What it says.
        voter: What is said to have cast its votes.
        inputs: The input of an index.
        law: The voter's law, as files say it.
    """

    def finding(holds: bool | None, text: str) -> Finding:
        return Finding(subject, "identity", holds, text)

    yield finding(content["law"] == law, f"law {content['law']}, and {law} here")
    classes = content["classes"]
    yield finding(classes == voter.num_classes, f"{classes} classes, {voter.num_classes} here")
    touched = content.get("touched", "")
    if touched != voter.touched:
        yield finding(False, f"noise on {touched!r}, and on {voter.touched!r} here")
    other, unknown, dims = [], 0, set()
    for index, told in zip(content["index"], content["input"], strict=True):
        x = inputs(index)
        dims.add(voter.dim(x[None]))
        unknown += not told
        if told and told != f"{input_hash(x):016x}":
            other.append(str(index))
    known = len(content["index"]) - unknown
    if other:
        more = f" and {len(other) - 5} more" if len(other) > 5 else ""
        yield finding(False, f"the inputs {', '.join(other[:5])}{more} are others")
    else:
        text = f"{known} inputs are those of the record" if known else "inputs have no hashes"
        yield finding(True if known else None, text)
    dim = content["dim"]
    yield finding(dims <= {dim}, f"noise of {dim} coordinates, {sorted(dims)} here")
    if not content["model"]:
        yield finding(None, "the record does not know its model")
    else:
        first = inputs(0)  # about which a run asks its model before the first votes
        fingerprint = voter.fingerprint(voter.checked(first[None])).whole
        same = fingerprint == content["model"]
        text = f"model {content['model'][:16]}" + ("" if same else f", and {fingerprint[:16]} here")
        yield finding(same, text)
