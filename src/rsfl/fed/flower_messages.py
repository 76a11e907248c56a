"""What Flower's messages carry, and what comes of them: questions to nodes, replies as the rounds
screen them, tensors by name.

Needs the extra ``rsfl[flower]``.
"""

from __future__ import (
    annotations,  # the documentation is built without Flower, whose names then are no types
)

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from rsfl.fed.client import Remote
from rsfl.fed.training import Failure

try:
    from flwr.app import ArrayRecord, Message, MessageType, RecordDict
    from flwr.serverapp import Grid
except ImportError as error:  # pragma: no cover
    raise ImportError(
        "rsfl.fed.flower needs Flower: pip install 'rsfl[flower]' (Python 3.11 or newer)"
    ) from error

__all__ = ["answer", "answers", "ask", "record", "reply", "tensors"]


def ask(grid: Grid, nodes: Collection[int], reply_timeout: float) -> dict[int, Remote | None]:
    """Who the nodes say they are; None for an answer that makes no sense. Who is silent is not in
    it."""
    questions = {node: Message(RecordDict(), node, MessageType.QUERY) for node in sorted(nodes)}
    replies = (
        grid.send_and_receive(list(questions.values()), timeout=reply_timeout) if questions else []
    )
    heard = answers(replies)
    claims = {node: answer(question, heard) for node, question in questions.items()}
    return {node: _claim(one) for node, one in claims.items() if one is not None}


def answers(replies: Iterable[Message]) -> dict[str, list[Message]]:
    """Answers by the number of the message that they say they are to."""
    found: dict[str, list[Message]] = {}
    for one in replies:
        found.setdefault(one.metadata.reply_to_message_id, []).append(one)
    return found


def answer(sent: Message, heard: Mapping[str, Sequence[Message]]) -> Message | None:
    """The answer to a message: of the node that it was sent to, or the word of the network, which
    has the server's own number, that there is none. Nobody answers for somebody else."""
    # Flower gives a message its number when it is sent.
    candidates = heard.get(sent.metadata.message_id, [])
    node, here = sent.metadata.dst_node_id, sent.metadata.src_node_id
    own = [one for one in candidates if one.metadata.src_node_id == node]
    network = [one for one in candidates if one.metadata.src_node_id == here and one.has_error()]
    return next(iter([*own, *network]), None)


def _claim(found: Message) -> Remote | None:
    try:
        said = found.content.config_records["client"]
        return Remote(said["id"], said["size"], input_norm=said["input_norm"])
    except (KeyError, TypeError, ValueError):
        return None


def reply(found: Message | None) -> Any:
    """What a client sent, in the form that `Rounds.conclude` screens."""
    if found is None:
        return Failure("was late")
    if found.has_error():
        return Failure(f"failed: {found.error.reason}")
    if "failure" in found.content.config_records:
        return Failure(f"raised {found.content.config_records['failure'].get('raised')}")
    arrays = found.content.array_records.get("arrays")
    return None if arrays is None else tensors(arrays)


def record(named: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors by name, as a message takes them."""
    return ArrayRecord(torch_state_dict=dict(named))


def tensors(found: ArrayRecord) -> dict[str, Any]:
    """The tensors of a record by name; what cannot be read as one stays what it is, for the
    screening to name."""

    def read(array: Any) -> Any:
        try:
            return torch.from_numpy(array.numpy())
        except Exception:  # bytes from a stranger, who may have put anything in them
            return array

    return {name: read(array) for name, array in found.items()}
