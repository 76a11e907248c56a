"""Votes of models trained on disjoint groups of clients: how many malicious clients a majority
survives."""

import numpy as np
from numpy.typing import ArrayLike

from rsfl._checks import Int64, counts

__all__ = ["group_votes"]


def group_votes(votes: ArrayLike) -> tuple[Int64, Int64]:
    r"""Label of a vote among groups, and how many malicious clients cannot change it.

    The label A has the most votes, the smaller label where votes tie. A malicious client is in one
    group and at most turns its vote from A to B, so A survives

    .. math:: \min_{B \ne A} \Bigl\lfloor \frac{n_A - n_B - [B < A]}{2} \Bigr\rfloor

    malicious clients, whatever they send in every round, and no more if they may sit in different
    groups.

    Assumes:
        Each client is in one group, fixed before anything is received; groups share no random
        stream, stopping rule, statistics or validation data; a group whose model fails has a vote
        fixed in advance.

    Args:
        votes: Votes of the groups per label, whole numbers of shape (..., K) with K >= 2; at least
            one vote a row.

    Returns:
        Labels and numbers of clients, both of shape (...). The numbers are exact.

    Raises:
        ValueError: votes has fewer than two labels, a row without votes, or an entry that is no
            count.
        TypeError: votes is not an array of numbers.

    Example:
        >>> group_votes([[7, 2, 1], [3, 3, 4], [2, 2, 0]])
        (array([0, 2, 0]), array([2, 0, 0]))

    References:
        Cao, Jia and Gong, "Provably secure federated learning against malicious clients", AAAI
        2021; Cao, Zhang, Jia and Gong, "FLCert", IEEE TIFS 2022.
    """
    n = counts("votes", votes)
    if n.ndim == 0 or n.shape[-1] < 2:
        raise ValueError(f"votes must have a last axis of at least 2 labels, got shape {n.shape}")
    if (n.sum(axis=-1) == 0).any():
        raise ValueError("votes must hold at least one vote a row, got a row without any")
    label = np.argmax(n, axis=-1)[..., None]  # the first of equals
    lead = np.take_along_axis(n, label, -1) - n - (np.arange(n.shape[-1]) < label)
    np.put_along_axis(lead, label, np.iinfo(np.int64).max, -1)
    return label[..., 0].astype(np.int64), (lead // 2).min(axis=-1)
