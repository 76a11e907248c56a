"""Who holds which samples: index arrays, one a client, drawn from a seed and never from the data's
order.

Every function returns a list of sorted int64 index arrays into the one data set that all the
clients share, so that a thousand overlapping clients cost a thousand short arrays and no copy of
the data.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rsfl._checks import Int64, count, counts, number
from rsfl._draws import rng, subseed

__all__ = ["by_column", "by_hash", "dirichlet", "equal", "major_class", "split"]


def _labels(labels: ArrayLike) -> Int64:
    array = counts("labels", labels)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"labels must be one label a sample, got an array of shape {array.shape}")
    return array


def equal(samples: int, clients: int, *, seed: int = 0) -> list[Int64]:
    """Disjoint shares of a shuffled data set, as equal as they can be.

    Args:
        samples: Number of samples in the data set.
        clients: Number of clients, at most ``samples``.
        seed: Seed of the shuffle.

    Example:
        >>> [len(part) for part in equal(10, 3)]
        [4, 3, 3]
    """
    samples, clients = count("samples", samples, 1), count("clients", clients, 1)
    if clients > samples:
        raise ValueError(f"clients must be at most the {samples} samples, got {clients!r}")
    order = rng(seed, "partition", "equal").permutation(samples)
    return [np.sort(part) for part in np.array_split(order, clients)]


def major_class(
    labels: ArrayLike, clients: int, samples: int, ratio: float, *, seed: int = 0
) -> list[Int64]:
    r"""Each client a major class: a share ``ratio`` of its samples from it, the rest uniformly from
    the other classes.

    The major class is uniform over the classes. A client holds ``round(ratio * samples)`` samples
    of it, and the rest are drawn uniformly among all the samples of the other classes. No sample
    comes twice within a client; clients overlap (1000 clients of 500 samples share 50,000).

    Args:
        labels: Class of each sample, shape (N,).
        clients: Number of clients.
        samples: Number of samples that each client holds.
        ratio: Share of the major class, in [0, 1].
        seed: Seed of the draw; client k's samples do not depend on how many clients there are.

    Raises:
        ValueError: A class, or the rest of the data, is too small for the share that a client takes
            from it.

    References:
        Chen, Kailkhura, Goldhahn and Zhou, Certifiably-robust federated adversarial learning via
        randomized smoothing, 2021, appendix A (with 10 classes, ratio .1 is its homogeneous and .5
        its heterogeneous setting).
    """
    array = _labels(labels)
    clients, samples = count("clients", clients, 1), count("samples", samples, 1)
    major = round(number("ratio", ratio, 0.0, 1.0) * samples)
    classes = np.unique(array)
    inside = {int(c): np.flatnonzero(array == c) for c in classes}
    outside = {int(c): np.flatnonzero(array != c) for c in classes}
    for c in inside:
        if len(inside[c]) < major or len(outside[c]) < samples - major:
            raise ValueError(
                f"samples must leave {major} of a client's samples to its major class and "
                f"{samples - major} to the "
                f"others, got class {c} with {len(inside[c])} samples and {len(outside[c])} others"
            )
    parts = []
    for client in range(clients):
        draw = rng(seed, "partition", "major_class", client)
        own = int(draw.choice(classes))
        chosen = [
            draw.choice(inside[own], major, replace=False),
            draw.choice(outside[own], samples - major, replace=False),
        ]
        parts.append(np.sort(np.concatenate(chosen)))
    return parts


def dirichlet(
    labels: ArrayLike, clients: int, concentration: float, *, min_samples: int = 1, seed: int = 0
) -> list[Int64]:
    """Disjoint shares in which each class is spread over the clients by a Dirichlet draw.

    The smaller the concentration, the fewer clients hold a class. A client that got fewer than
    ``min_samples`` is topped up with samples drawn from those who hold the most, which always
    succeeds, whatever the concentration.

    Args:
        labels: Class of each sample, shape (N,).
        clients: Number of clients.
        concentration: Parameter of the symmetric Dirichlet law, positive.
        min_samples: Fewest samples a client may hold; ``clients * min_samples`` must be at most N.
        seed: Seed of the draw.
    """
    array = _labels(labels)
    clients, min_samples = count("clients", clients, 1), count("min_samples", min_samples)
    concentration = number(
        "concentration", concentration, 0.0, np.inf, open_low=True, open_high=True
    )
    if clients * min_samples > len(array):
        raise ValueError(
            f"min_samples must be at most {len(array)} / {clients} clients, got {min_samples!r}"
        )
    draw = rng(seed, "partition", "dirichlet")
    parts: list[list[int]] = [[] for _ in range(clients)]
    for c in np.unique(array):
        shares = draw.dirichlet(np.full(clients, concentration))
        members = draw.permutation(np.flatnonzero(array == c))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for part, chunk in zip(parts, np.split(members, cuts), strict=True):
            part.extend(chunk.tolist())
    for part in parts:
        while len(part) < min_samples:
            largest = max(parts, key=len)
            part.append(largest.pop(int(draw.integers(len(largest)))))
    return [np.sort(np.array(part, dtype=np.int64)) for part in parts]


def by_column(values: Sequence[Any] | ArrayLike) -> list[Int64]:
    """One client per distinct value of a column (a state, a hospital, a writer), in the order of
    the sorted values.

    Example:
        >>> [part.tolist() for part in by_column(["TX", "CA", "TX"])]
        [[1], [0, 2]]
    """
    array = np.asarray(values)
    if array.ndim != 1 or not array.size:
        raise ValueError(f"values must be one value a sample, got an array of shape {array.shape}")
    return [np.flatnonzero(array == value) for value in np.unique(array)]


def by_hash(names: Sequence[int | str | bytes], shards: int, *, seed: int = 0) -> list[Int64]:
    """Shards of a data set, in which each sample is by a hash of its own name and the seed alone.

    So one sample more or less moves no other: with a shard as a client of its own, the vote of
    groups counts poisoned samples. Shards are as equal as chance makes them, and one may be empty.

    Args:
        names: What each sample is known by: a registered number or word, or its own bytes, label
            included. Samples of one name share a shard.
        shards: Number of shards.
        seed: Seed of the hash.

    References:
        Levine and Feizi, Deep partition aggregation: provable defense against general poisoning
        attacks, ICLR 2021.

    Example:
        >>> names = ["ann", "ben", "cas", "dan"]
        >>> sorted(sum((part.tolist() for part in by_hash(names, 2)), []))
        [0, 1, 2, 3]
    """
    shards, found = count("shards", shards, 1), [list[int]() for _ in range(shards)]
    for place, name in enumerate(names):
        if isinstance(name, bytes):
            key: tuple[int | str, ...] = ("bytes", name.hex())
        else:
            key = (name if isinstance(name, str) else count("names", name),)
        found[subseed(seed, "partition", "hash", *key) % shards].append(place)
    if not any(found):
        raise ValueError(f"names must be one a sample, got {names!r}")
    return [np.array(part, dtype=np.int64) for part in found]


def split(
    parts: Sequence[Int64], share: float, *, seed: int = 0
) -> tuple[list[Int64], list[Int64]]:
    """Set a share of each client's own samples aside for testing: (what is left, what was set
    aside).

    Args:
        parts: Samples of each client.
        share: Share to set aside, in (0, 1); rounded, but at least one sample stays on either side.
        seed: Seed of the draw.
    """
    share = number("share", share, 0.0, 1.0, open_low=True, open_high=True)
    kept, aside = [], []
    for client, part in enumerate(parts):
        if len(part) < 2:
            raise ValueError(
                f"parts must hold at least 2 samples each, got {len(part)} at index {client}"
            )
        cut = min(max(round(share * len(part)), 1), len(part) - 1)
        order = rng(seed, "partition", "split", client).permutation(part)
        kept.append(np.sort(order[cut:]))
        aside.append(np.sort(order[:cut]))
    return kept, aside
