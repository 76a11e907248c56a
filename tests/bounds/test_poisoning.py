"""The deviation bound against runs that were really trained twice, and the published bound beside it."""

import json
from dataclasses import asdict, dataclass, replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp

from rsfl.bounds.radii import cohen_radius
from rsfl.bounds.crfl import logistic_lipschitz
from rsfl.bounds.poisoning import (
    CONDITIONS,
    ConditionError,
    Participant,
    Round,
    Threat,
    conditions,
    deviation,
    largest_norm,
    largest_number,
    latest_round,
    parameter_radius,
)

# --- Coupled runs of federated softmax regression, many at once ------------------------------------------------------


@dataclass
class Study:
    """Runs of one shape. Axes: R runs, T rounds, n clients, m samples, D inputs (with bias), K classes, L draws."""

    x: np.ndarray  # (R, n, m, D)
    y: np.ndarray  # (R, n, m, K), one-hot
    start: np.ndarray  # (R, K, D)
    draws: np.ndarray  # (R, T, n, L), sample indices
    sizes: tuple[int, ...]  # batch sizes, which add up to L
    weight: np.ndarray  # (R, T, n), 0 for who does not take part
    absent: np.ndarray  # (R, T, n)
    rate: np.ndarray  # (R, n)
    decay: np.ndarray  # (R, n)
    step: np.ndarray  # (R,)
    clip: np.ndarray  # (R, T)
    noise: np.ndarray  # (R, T, K, D)
    update_clip: np.ndarray  # (R,)
    input_norm: np.ndarray  # (R, n)

    def __post_init__(self):
        runs, rounds, clients, _ = self.draws.shape
        at = np.repeat(np.arange(len(self.sizes)), self.sizes)
        self.share = np.zeros((runs, rounds, clients, len(self.sizes), self.x.shape[2]))
        index = (*(axis[..., None] for axis in np.ogrid[:runs, :rounds, :clients]), at, self.draws)
        np.add.at(self.share, index, 1 / np.array(self.sizes)[at])

    def repeat(self, times):
        """Each run that many times in a row."""
        arrays = {k: np.repeat(v, times, axis=0) for k, v in vars(self).items() if k not in ("sizes", "share")}
        return Study(**arrays, sizes=self.sizes)


@dataclass
class Log:
    after: np.ndarray  # (R, T, K, D), the clipped model after each round
    sent: np.ndarray  # (R, T), norm of the broadcast
    updates: np.ndarray  # (R, T, n), norms
    gaps: np.ndarray  # (R, T, n)


def norms(w):
    return np.sqrt((w * w).sum(axis=(-2, -1)))


def shorten(w, longest):
    return w * np.minimum(1, longest / np.maximum(norms(w), 1e-300))[..., None, None]


def train(s, *, attacked=None, x=None, y=None, scale=1.0, updates=None, left_out=None):
    """Train all runs. Where attacked (R, T, n): on x and y, scaled, or with these updates (R, T, n, K, D) instead."""
    runs, rounds, clients = s.weight.shape
    attacked = np.zeros(s.weight.shape, bool) if attacked is None else attacked
    x, y = (s.x if x is None else x), (s.y if y is None else y)
    weight = s.weight if left_out is None else s.weight * ~left_out[:, None]
    weight = weight / weight.sum(-1, keepdims=True)
    w, after, sent, lengths, gaps = s.start, [], [], [], []
    for t in range(rounds):
        on = attacked[:, t, :, None, None]
        inputs, labels = np.where(on, x, s.x), np.where(on, y, s.y)
        v = np.repeat(w[:, None], clients, axis=1)
        for j in range(len(s.sizes)):
            logits = inputs @ np.swapaxes(v, -1, -2)
            p = np.exp(logits - logits.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            gradient = np.swapaxes((p - labels) * s.share[:, t, :, j, :, None], -1, -2) @ inputs
            v = v - s.rate[..., None, None] * (gradient + s.decay[..., None, None] * v)
        u = (v - w[:, None]) * np.where(on, np.broadcast_to(scale, (runs,))[:, None, None, None], 1.0)
        if updates is not None:
            u = np.where(on, updates[:, t], u)
        u = shorten(u, s.update_clip[:, None])
        u = np.where(s.absent[:, t, :, None, None], 0.0, u)
        mean = np.einsum("rn,rnkd->rkd", weight[:, t], u)
        sent.append(norms(w))
        lengths.append(norms(u))
        gaps.append(weight[:, t] * norms(u - mean[:, None]))
        w = shorten(w + s.step[:, None, None] * mean, s.clip[:, t])
        after.append(w)
        if t < rounds - 1:
            w = w + s.noise[:, t]
    return Log(*(np.stack(part, axis=1) for part in (after, sent, lengths, gaps)))


def ledger(s, log, r):
    """What the server writes down about run r."""
    ends = np.cumsum(s.sizes)
    return [
        Round(
            index=t + 1,
            participants=[
                Participant(
                    client=i,
                    weight=s.weight[r, t, i],
                    learning_rate=s.rate[r, i],
                    decay=(s.decay[r, i], s.decay[r, i]),
                    input_norm=s.input_norm[r, i],
                    batch_sizes=s.sizes,
                    samples=s.draws[r, t, i, : ends[-1]],
                    update_norm=log.updates[r, t, i],
                    gap=log.gaps[r, t, i],
                    outcome="absent" if s.absent[r, t, i] else "used",
                )
                for i in np.flatnonzero(s.weight[r, t])
            ],
            broadcast_norm=log.sent[r, t],
            noise_norm=norms(s.noise[r, t]),
            clip=s.clip[r, t],
            update_clip=s.update_clip[r],
            server_step=s.step[r],
            **PLAIN,
        )
        for t in range(s.weight.shape[1])
    ]


PLAIN = {
    "aggregator": "mean",
    "model": "linear",
    "loss": "softmax cross-entropy",
    "optimiser": "sgd",
    "momentum": 0.0,
    "dtype": "float64",
    "weights_from": "server",
    "seed": 0,
}


def draw_study(rng, runs, *, clients=None, samples=None, rounds=None, largest=5.0):
    """Random sizes (one draw a study), and random data, rates, decays, noise, clips and weights (one draw a run)."""
    n = clients or int(rng.integers(2, 6))
    m = samples or int(rng.integers(2, 8))
    rounds = rounds or int(rng.integers(1, 5))
    d, k = int(rng.integers(2, 5)), int(rng.integers(2, 5))
    x = rng.normal(size=(runs, n, m, d + 1)) * rng.uniform(0.1, largest / 2, (runs, 1, 1, 1))
    x[..., -1] = 1.0
    y = np.eye(k)[rng.integers(k, size=(runs, n, m))]
    batch = int(rng.integers(1, m + 1))
    if rng.random() < 0.5:  # one epoch, the last batch short
        sizes = tuple([batch] * (m // batch) + [m % batch] * (m % batch > 0))
        draws = rng.permuted(np.broadcast_to(np.arange(m), (runs, rounds, n, m)), axis=-1)
    else:  # with replacement
        sizes = (batch,) * int(rng.integers(1, 5))
        draws = rng.integers(m, size=(runs, rounds, n, sum(sizes)))
    here = rng.random((runs, rounds, n)) < rng.uniform(0.5, 1, (runs, 1, 1))
    here[..., :2] |= ~here.any(-1, keepdims=True)
    weight = rng.gamma(rng.uniform(0.5, 5), size=here.shape) * here
    input_norm = np.sqrt((x**2).sum(-1)).max(-1) * rng.choice([1, 1.1], (runs, n))
    decay = rng.choice([0.0, 0.01, 0.3, 3.0], (runs, n)) * rng.uniform(0.5, 1, (runs, n))
    noise = rng.normal(size=(runs, rounds, k, d + 1)) * rng.choice([0, 0.01, 0.3], (runs, 1, 1, 1))
    return Study(
        x=x,
        y=y,
        start=rng.normal(size=(runs, k, d + 1)) * rng.choice([0, 0.3, 3], (runs, 1, 1)),
        draws=draws,
        sizes=sizes,
        weight=weight / weight.sum(-1, keepdims=True),
        absent=rng.random(here.shape) < 0.1,
        rate=2 / (decay + input_norm**2 / 2) * rng.choice([0.05, 0.5, 1.0], (runs, n)) * (1 - 1e-12),
        decay=decay,
        step=rng.choice([0.3, 1.0], runs),
        clip=rng.choice([0.5, 3.0, np.inf], (runs, 1)) * rng.uniform(1, 2, (runs, rounds)),
        noise=noise,
        update_clip=np.full(runs, np.inf),
        input_norm=input_norm,
    )


def set_update_clip(rng, s):
    """An update clip that no honest update can reach, from the clean run's norms with room for the attacked one."""
    log = train(s)
    largest = np.where(np.isfinite(s.clip), s.clip + norms(s.noise), np.inf).max(1)
    travel = np.sqrt(2) * s.rate * s.input_norm * len(s.sizes)
    weights = np.minimum(largest, log.sent.max(1) + 20 * travel.max(1))
    weights = np.maximum(weights, norms(s.start))
    pull = np.abs(1 - (1 - s.rate * s.decay) ** len(s.sizes))
    s.update_clip = (pull * weights[:, None] + travel).max(1) * rng.choice([1.01, 1.5], len(s.step))


# --- Attacks ----------------------------------------------------------------------------------------------------------


@dataclass
class Attack:
    """What is done (arguments of train) and how it is described to the bound, one threat a run."""

    threats: list
    done: dict
    compared: dict


def choose(rng, s, rounds_too=True):
    """Attackers (R, n) and attacked (R, T, n)."""
    runs, rounds, n = s.weight.shape
    who = rng.random((runs, n)).argsort(-1) < rng.integers(1, max(2, n), (runs, 1))
    when = rng.random((runs, rounds)) < rng.choice([0.4, 1.0], (runs, 1))
    when[np.arange(runs), rng.integers(rounds, size=runs)] = True
    return who, who[:, None, :] & (when[..., None] if rounds_too else np.ones_like(when)[..., None]), when


def of(rng, who, when, r, unknown):
    everyone = {"at_most": int(who[r].sum())} if unknown else {"clients": np.flatnonzero(who[r])}
    return everyone | {"rounds": None if when is None or when[r].all() else 1 + np.flatnonzero(when[r])}


def poison(rng, s, level, *, comparator="clean"):
    """Poisoned data, at the feature or the sample level; four ways to say how much of it."""
    runs, _, n, m = *s.weight.shape, s.x.shape[2]
    who, attacked, when = choose(rng, s)
    if comparator == "scaled":
        when[:] = rng.random(when.shape) < 0.7
        when[:, 0] = True
        attacked = who[:, None, :] & when[..., None]
    most = rng.integers(1, m + 1)
    bad = rng.random((runs, n, m)).argsort(-1) < most
    direction = rng.normal(size=s.x.shape)
    direction[..., -1] = 0
    direction /= np.sqrt((direction**2).sum(-1, keepdims=True))
    if level == "feature":
        norm = 10 ** rng.uniform(-2, 1, runs)
        x = s.x + direction * norm[:, None, None, None] * bad[..., None]
        flips = rng.random(runs) < 0.5
        change_labels = bad & flips[:, None, None]
    else:
        bound = s.input_norm.max(1) * rng.choice([1.0, 3.0], runs)
        other = direction * np.sqrt(bound**2 - 1)[:, None, None, None]
        other[..., -1] = 1
        x = np.where(bad[..., None], other, s.x)
        change_labels = bad
    k = s.y.shape[-1]
    y = np.where(change_labels[..., None], np.eye(k)[rng.integers(k, size=bad.shape)], s.y)
    scale = rng.choice([1.0, 1.0, 0.3, 4.0], runs)
    drawn = s.share * bad[:, None, :, None, :]
    share = drawn.sum(-1).max(-1)  # (R, T, n)
    threats = []
    for r in range(runs):
        way, unknown = int(rng.integers(4)), comparator == "clean" and rng.random() < 0.3
        how_many = [
            {"samples": {int(i): np.flatnonzero(bad[r, i]) for i in np.flatnonzero(who[r])}},
            {"samples": int(most)},
            {"share": min(1.0, share[r].max() * (1 + 1e-12))},
            {"per_batch": round((drawn[r].sum(-1) * np.array(s.sizes)).max())},
        ][max(way, 1) if unknown else way]
        power = {"norm": norm[r] * (1 + 1e-12), "flips": bool(flips[r])} if level == "feature" else {}
        power |= {"input_norm": bound[r] * (1 + 1e-12)} if level == "sample" else {}
        gamma = (scale[r] * 0.5, scale[r] * 1.5) if rng.random() < 0.2 else scale[r]
        threats.append(
            Threat(level, **of(rng, who, when, r, unknown), **power, **how_many, scale=gamma, comparator=comparator)
        )
    done = {"attacked": attacked, "x": x, "y": y, "scale": scale}
    return Attack(threats, done, {"attacked": attacked, "scale": scale} if comparator == "scaled" else {})


def send(rng, s, level):
    """Arbitrary updates, at the client, forensic or removal level."""
    runs, _, n = s.weight.shape
    who, attacked, when = choose(rng, s, rounds_too=level != "removal")
    if level == "removal":
        when = None
        # Someone must be left in every round.
        who &= ((s.weight > 0) & ~who[:, None]).any(-1).all(-1)[:, None]
        attacked = np.broadcast_to(who[:, None], s.weight.shape)
    updates = rng.normal(size=(*s.weight.shape, *s.start.shape[1:]))
    updates = shorten(1e6 * updates, 10 ** rng.uniform(-2, 1, s.weight.shape))
    threats = [
        Threat(level, **of(rng, who, when, r, unknown=level != "forensic" and rng.random() < 0.3)) for r in range(runs)
    ]
    done = {"attacked": attacked, "updates": updates}
    return Attack(threats, done, {"left_out": who} if level == "removal" else {})


LEVELS = ("feature", "sample", "scaled", "client", "forensic", "removal")


def draw_attack(rng, s, level):
    if level in ("feature", "sample", "scaled"):
        name = level if level != "scaled" else ("feature", "sample")[int(rng.integers(2))]
        return poison(rng, s, name, comparator="scaled" if level == "scaled" else "clean")
    if level == "client":
        set_update_clip(rng, s)
    return send(rng, s, level)


def ratios(rng, s, attack, level):
    """measured / bound after each round, (runs, T); NaN where refused."""
    attacked, honest = train(s, **attack.done), train(s, **attack.compared)
    measured = norms(attacked.after - honest.after)
    bounds = np.full(measured.shape, np.nan)
    for r, threat in enumerate(attack.threats):
        observed = attacked if level in ("forensic", "removal") or rng.random() < 0.5 else honest
        try:
            bounds[r] = deviation(ledger(s, observed, r), threat).trace
        except ConditionError as error:
            # Only for an unknown set so large that it may be everyone, or a client level clip that leaves no room.
            assert error.condition in ("someone left", "honest updates intact")  # noqa: PT017
    # The bound is for exact arithmetic: 1e-12 is what float64 may add to these runs.
    return (measured - 1e-12) / np.maximum(bounds * (1 + 1e-12), 1e-300)


def random_runs(seed, studies, runs):
    worst, certified = dict.fromkeys(LEVELS, 0.0), dict.fromkeys(LEVELS, 0)
    for number in range(studies):
        rng = np.random.default_rng([seed, number])
        level = LEVELS[number % len(LEVELS)]
        s = draw_study(rng, runs)
        found = ratios(rng, s, draw_attack(rng, s, level), level)
        assert not (found > 1).any(), f"{level}, study {number}: {np.nanmax(found)} in run {np.nanargmax(found)}"
        worst[level] = max(worst[level], np.nanmax(found, initial=0))
        certified[level] += int(np.isfinite(found[:, -1]).sum())
    return worst, certified
