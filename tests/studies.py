"""Runs of federated softmax regression that are really trained twice, many at once, and attacks on
them: what the deviation bound is held against."""

from dataclasses import dataclass

import numpy as np
from ledgers import PLAIN, participant
from ledgers import threat as threat_of

from rsfl.bounds import ConditionError, Round, deviation


@dataclass
class Study:
    """Runs of one shape. Axes: R runs, T rounds, n clients, m samples, D inputs (with bias), K
    classes, L draws."""

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
    update_clip: np.ndarray  # (R, T)
    input_norm: np.ndarray  # (R, n)
    reject_norm: np.ndarray  # (R,)
    odd: np.ndarray  # (R, n), who does not train as the ledger's conditions have it

    def __post_init__(self):
        runs, rounds, clients, _ = self.draws.shape
        at = np.repeat(np.arange(len(self.sizes)), self.sizes)
        self.share = np.zeros((runs, rounds, clients, len(self.sizes), self.x.shape[2]))
        index = (*(axis[..., None] for axis in np.ogrid[:runs, :rounds, :clients]), at, self.draws)
        np.add.at(self.share, index, 1 / np.array(self.sizes)[at])

    def repeat(self, times):
        """Each run that many times in a row."""
        arrays = {
            k: np.repeat(v, times, axis=0)
            for k, v in vars(self).items()
            if k not in ("sizes", "share")
        }
        return Study(**arrays, sizes=self.sizes)


@dataclass
class Log:
    after: np.ndarray  # (R, T, K, D), the clipped model after each round
    sent: np.ndarray  # (R, T), norm of the broadcast
    updates: np.ndarray  # (R, T, n), norms
    gaps: np.ndarray  # (R, T, n)
    outcomes: np.ndarray  # (R, T, n), as OUTCOMES


OUTCOMES = np.array(["used", "clipped", "rejected", "absent"])


def norms(w):
    return np.sqrt((w * w).sum(axis=(-2, -1)))


def shorten(w, longest):
    return w * np.minimum(1, longest / np.maximum(norms(w), 1e-300))[..., None, None]


def train(s, *, attacked=None, x=None, y=None, scale=1.0, updates=None, left_out=None, wild=None):
    """Train all runs. Where attacked (R, T, n): on x and y, scaled, or with these updates (R, T, n,
    K, D) instead; the odd ones send ``wild`` (R, T, n, K, D)."""
    runs, rounds, clients = s.weight.shape
    attacked = np.zeros(s.weight.shape, bool) if attacked is None else attacked
    x, y = (s.x if x is None else x), (s.y if y is None else y)
    weight = s.weight if left_out is None else s.weight * ~left_out[:, None]
    weight = weight / weight.sum(-1, keepdims=True)
    w, after, sent, lengths, gaps, outcomes = s.start, [], [], [], [], []
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
        u = (v - w[:, None]) * np.where(
            on, np.broadcast_to(scale, (runs,))[:, None, None, None], 1.0
        )
        if updates is not None:
            u = np.where(on, updates[:, t], u)
        if wild is not None:
            u = np.where(s.odd[:, :, None, None] & ~on, wild[:, t], u)
        lost = norms(u) > s.reject_norm[:, None]
        long = norms(u) > s.update_clip[:, t, None]
        u = shorten(np.where(lost[..., None, None], 0.0, u), s.update_clip[:, t, None])
        u = np.where(s.absent[:, t, :, None, None], 0.0, u)
        outcome = np.where(lost, 2, np.where(long, 1, 0))
        outcomes.append(OUTCOMES[np.where(s.absent[:, t], 3, outcome)])
        mean = np.einsum("rn,rnkd->rkd", weight[:, t], u)
        sent.append(norms(w))
        lengths.append(norms(u))
        gaps.append(weight[:, t] * norms(u - mean[:, None]))
        w = shorten(w + s.step[:, None, None] * mean, s.clip[:, t])
        after.append(w)
        if t < rounds - 1:
            w = w + s.noise[:, t]
    return Log(*(np.stack(part, axis=1) for part in (after, sent, lengths, gaps, outcomes)))


def ledger(s, log, r):
    """What the server writes down about run r."""
    ends = np.cumsum(s.sizes)
    return [
        Round(
            index=t + 1,
            participants=[
                participant(
                    client=i,
                    weight=s.weight[r, t, i],
                    lr=s.rate[r, i],
                    decay=(s.decay[r, i], s.decay[r, i]),
                    input_norm=s.input_norm[r, i],
                    batch_sizes=s.sizes,
                    samples=s.draws[r, t, i, : ends[-1]],
                    update_norm=log.updates[r, t, i],
                    gap=log.gaps[r, t, i],
                    outcome=str(log.outcomes[r, t, i]),
                    momentum=0.9 if s.odd[r, i] else 0.0,
                )
                for i in np.flatnonzero(s.weight[r, t])
            ],
            broadcast_norm=log.sent[r, t],
            noise_norm=norms(s.noise[r, t]),
            clip=s.clip[r, t],
            update_clip=s.update_clip[r, t],
            reject_norm=s.reject_norm[r],
            server_step=s.step[r],
            **PLAIN,
        )
        for t in range(s.weight.shape[1])
    ]


def draw_study(rng, runs, *, clients=None, samples=None, rounds=None, largest=5.0):
    """Random sizes (one draw a study), and random data, rates, decays, noise, clips and weights
    (one draw a run)."""
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
        rate=2
        / (decay + input_norm**2 / 2)
        * rng.choice([0.05, 0.5, 1.0], (runs, n))
        * (1 - 1e-12),
        decay=decay,
        step=rng.choice([0.3, 1.0], runs),
        clip=rng.choice([0.5, 3.0, np.inf], (runs, 1)) * rng.uniform(1, 2, (runs, rounds)),
        noise=noise,
        update_clip=np.full((runs, rounds), np.inf),
        input_norm=input_norm,
        reject_norm=np.full(runs, np.inf),
        odd=np.zeros((runs, n), bool),
    )


def set_update_clip(rng, s):
    """An update clip that no honest update can reach, from the clean run's norms with room for the
    attacked one."""
    log = train(s)
    largest = np.where(np.isfinite(s.clip), s.clip + norms(s.noise), np.inf).max(1)
    travel = np.sqrt(2) * s.rate * s.input_norm * len(s.sizes)
    weights = np.minimum(largest, log.sent.max(1) + 20 * travel.max(1))
    weights = np.maximum(weights, norms(s.start))
    pull = np.abs(1 - (1 - s.rate * s.decay) ** len(s.sizes))
    longest = (pull * weights[:, None] + travel).max(1) * rng.choice([1.01, 1.5], len(s.step))
    s.update_clip = np.repeat(longest[:, None], s.weight.shape[1], axis=1)


# --- Attacks --------------------------------------------------------------------------------------


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
    return (
        who,
        who[:, None, :] & (when[..., None] if rounds_too else np.ones_like(when)[..., None]),
        when,
    )


def of(rng, who, when, r, unknown):
    ids = np.flatnonzero(who[r])
    named = len(ids)
    if unknown:  # all of them, or all but some that are named
        named = int(rng.integers(len(ids) + 1)) if rng.random() < 0.3 else 0
    everyone = {"clients": rng.permuted(ids)[:named], "at_most": len(ids) - named}
    if not who[r].any():
        everyone = {"clients": [99]}  # who never took part
    if when is None:
        return everyone
    return everyone | {"rounds": None if when[r].all() else 1 + np.flatnonzero(when[r])}


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
            {"share": min(1.0, share[r].max() * (1 + 1e-12) + 1e-12)},
            {"per_batch": max(1, round((drawn[r].sum(-1) * np.array(s.sizes)).max()))},
        ][max(way, 1) if unknown else way]
        power = (
            {"norm": norm[r] * (1 + 1e-12), "flips": bool(flips[r])} if level == "feature" else {}
        )
        power |= {"input_norm": bound[r] * (1 + 1e-12)} if level == "sample" else {}
        gamma = (scale[r] * 0.5, scale[r] * 1.5) if rng.random() < 0.2 else scale[r]
        threats.append(
            threat_of(
                level,
                **of(rng, who, when, r, unknown),
                **power,
                **how_many,
                scale=gamma,
                comparator=comparator,
            )
        )
    done = {"attacked": attacked, "x": x, "y": y, "scale": scale}
    return Attack(
        threats, done, {"attacked": attacked, "scale": scale} if comparator == "scaled" else {}
    )


def send(rng, s, level):
    """Arbitrary updates, at the client, forensic or removal level."""
    runs = len(s.weight)
    who, attacked, when = choose(rng, s, rounds_too=level != "removal")
    if level == "removal":
        when = None
        # Someone must be left in every round.
        who &= ((s.weight > 0) & ~who[:, None]).any(-1).all(-1)[:, None]
        attacked = np.broadcast_to(who[:, None], s.weight.shape)
    updates = rng.normal(size=(*s.weight.shape, *s.start.shape[1:]))
    updates = shorten(1e6 * updates, 10 ** rng.uniform(-2, 1, s.weight.shape))
    threats = [
        threat_of(
            level, **of(rng, who, when, r, unknown=level != "forensic" and rng.random() < 0.3)
        )
        for r in range(runs)
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


def ratios(rng, s, attack, level, wild=(None, None)):
    """measured / bound after each round, (runs, T); NaN where refused."""
    attacked = train(s, **attack.done, wild=wild[0])
    honest = train(s, **attack.compared, wild=wild[1])
    measured = norms(attacked.after - honest.after)
    bounds = np.full(measured.shape, np.nan)
    for r, threat in enumerate(attack.threats):
        observed = attacked if level in ("forensic", "removal") or rng.random() < 0.5 else honest
        try:
            bounds[r] = deviation(ledger(s, observed, r), threat).trace
        except ConditionError as error:
            # Only for an unknown set so large that it may be everyone.
            assert error.condition == "someone-left"  # noqa: PT017
    # The bound is for exact arithmetic: 1e-12 is what float64 may add to these runs.
    return (measured - 1e-12) / np.maximum(bounds * (1 + 1e-12), 1e-300)


def tighten(rng, s):
    """Update clips around what honest clients send, which touch some of them; limits beyond which
    an update is rejected; and clients that do not keep to the protocol, whoever attacks."""
    runs, _, n = s.weight.shape
    longest = train(s).updates.max(-1) + 1e-9
    s.update_clip = longest * rng.choice([0.5, 0.9, 1.05, 2.0], (runs, 1))
    beyond = rng.choice([0.8, 1.1, 3.0, np.inf, np.inf, np.inf], runs)
    s.reject_norm = s.update_clip.max(-1) * beyond
    s.odd = (rng.random((runs, n)) < 0.2) & (rng.random((runs, 1)) < 0.5)


def wildly(rng, s):
    """What the odd clients send in one run and in the other: anything, in opposite directions."""
    u = rng.normal(size=(*s.weight.shape, *s.start.shape[1:]))
    u = shorten(1e6 * u, s.update_clip[:, :, None] * rng.choice([0.3, 1.0, 2.0], s.weight.shape))
    return u, -u


def tight_runs(seed, studies, runs):
    """The largest measured / bound by level, and how many runs were bounded, where limits bind."""
    worst, bounded = dict.fromkeys(LEVELS, 0.0), dict.fromkeys(LEVELS, 0)
    for number in range(studies):
        rng = np.random.default_rng([seed, number])
        level = LEVELS[number % len(LEVELS)]
        s = draw_study(rng, runs)
        attack = draw_attack(rng, s, level)
        tighten(rng, s)
        found = ratios(rng, s, attack, level, wildly(rng, s))
        run = np.nanargmax(found) // found.shape[1]
        assert not (found > 1).any(), f"{level}, study {number}: {np.nanmax(found)} in run {run}"
        worst[level] = max(worst[level], np.nanmax(found, initial=0))
        bounded[level] += int(np.isfinite(found[:, -1]).sum())
    return worst, bounded
