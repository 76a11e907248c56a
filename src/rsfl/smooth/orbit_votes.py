"""Voting about an orbit: pilot votes plan, fresh votes decide."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsfl._checks import Float64, Int64, count, number, stored
from rsfl._draws import subseed
from rsfl.assumptions import GRID_INPUT
from rsfl.orbit import Cover, Mesh, Orbit
from rsfl.smooth.orbit_tests import OrbitTests, decisions, thresholds
from rsfl.smooth.orbits import OrbitBallot
from rsfl.smooth.voter import Voter
from rsfl.smooth.votes import ESTIMATION, SELECTION, Votes

__all__ = ["OrbitPlan", "orbit_ballot"]

_SHARES = (0.5, 0.25, 0.25)
"""Of alpha, for rounds of tests: a ball that could not be decided is replaced by smaller ones, with
votes and a level of their own."""

_PATIENCE = 2000  # votes for one test, unless even unanimous ones would need many
_TOGETHER = 32  # centres that are voted on at once, those that look hardest first


@dataclass(frozen=True)
class OrbitPlan:
    """How votes are spent on an orbit. What is certified holds whatever these are.

    Args:
        pilots: At about how many parameters pilot votes are cast.
        pilot_votes: Pilot votes at each of them: they choose the label and the sizes of balls.
        n_max: Votes that one input may take in all, the pilot's included.
        cells: Cells of the box along each parameter; None chooses as many as are worth it.
        batch_size: Noisy pictures per forward call; None chooses one that fits.
    """

    pilots: int = 32
    pilot_votes: int = 40
    n_max: int = 50_000
    cells: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("pilots", "pilot_votes", "n_max"):
            stored(self, **{name: count(name, getattr(self, name), 1)})
        for name in ("cells", "batch_size"):
            if getattr(self, name) is not None:
                stored(self, **{name: count(name, getattr(self, name), 1)})


def orbit_ballot(
    voter: Voter,
    x: Tensor,
    family: Orbit,
    *,
    allowance: float = 0.0,
    alpha: float = 0.001,
    plan: OrbitPlan | None = None,
    seed: int = 0,
    index: Tensor | Sequence[int] | None = None,
) -> OrbitBallot:
    """Cast votes about all pictures of an orbit, as many as a certificate needs.

    Pilot votes choose the label and plan balls that hold all pictures; fresh votes about the centre
    of each decide, one sequential test a ball, until all have passed or one cannot.

    Args:
        voter: The model and its noise, which must be measured in l2.
        x: Images (B, C, H, W).
        family: The family of pictures, such as ``orbit.Rotations(math.radians(50))``.
        allowance: l2 distance, at least 0, that the votes are planned for.
        alpha: Failure probability, for each input, that the votes are planned for.
        plan: How votes are spent.
        seed: Seed of the draws, which depend on it, on the input's index and on the centre.
        index: (B,) which inputs these are; 0 ... B - 1 by default.

    Returns:
        The votes; :meth:`OrbitBallot.certificate` reads them.

    Raises:
        ValueError: An argument is out of its range, or the noise is not measured in l2.
        TypeError: x or the logits are not tensors of numbers.
    """
    law = voter.law
    if (law.norm, law.space) != ("l2", "input") or GRID_INPUT in law.assumptions:
        raise ValueError(
            f"the law must be one of l2 on inputs of any value, such as noise.Gaussian, got {law}"
        )
    if voter.touched:
        raise ValueError(f"pictures must be the whole input, got noise on {voter.touched}")
    if not isinstance(family, Orbit):
        raise TypeError(f"family must be an orbit, such as orbit.Rotations(0.5), got {family!r}")
    allowance = number("allowance", allowance, 0, np.inf, open_high=True)
    alpha = number("alpha", alpha, 0, 1, open_low=True, open_high=True)
    family.check(x)
    x, index, seed = voter._ready(x, index, seed)
    voter._ask(x)
    plan = OrbitPlan() if plan is None else plan
    found = [
        _Search(_Goal(voter, family, allowance, alpha, plan, seed), image[None], at).run()
        for image, at in zip(x, index.tolist(), strict=True)
    ]
    chosen, pilot, tests = zip(*found, strict=True)
    columns = torch.tensor(chosen), torch.tensor(pilot), index
    told = voter.spot_checked
    return OrbitBallot(*columns, tests, tuple(x.shape[1:]), family, law, seed, spot_checked=told)


def _divergence(p: Float64, p0: Float64) -> Float64:
    """KL(p, p0) of two coins."""
    return np.asarray(p * np.log(p / p0) + (1 - p) * np.log((1 - p) / (1 - p0)))


class _Goal(NamedTuple):
    """What is asked for all inputs."""

    voter: Voter
    family: Orbit
    allowance: float
    alpha: float
    plan: OrbitPlan
    seed: int


class _Round:
    """Tests that are made together: a cover of what is still open."""

    def __init__(self, cover: Cover, share: float, first: int, *, last: bool) -> None:
        size = len(cover)
        self.centres, self.reach = cover.centres.cpu().numpy(), cover.reach.cpu().numpy()
        self.last = last
        self.share = np.full(size, share / size * (1 - 2.0**-40))  # at most ``share`` in all
        self.number = first + np.arange(size)  # of each centre, over all rounds
        self.successes, self.trials, self.invalid = np.zeros((3, size), dtype=np.int64)
        self.passed = np.zeros(size, dtype=bool)


class _Search:
    """The votes about one image's orbit."""

    def __init__(self, goal: _Goal, x: Tensor, index: int) -> None:
        self.goal, self.x = goal, x
        self.dim = x[0].numel()
        # 53 bits of the hash: what a seed may be
        keys = [subseed(goal.seed, "orbit", index, what) for what in ("pilot", "tests")]
        self.seeds = [key % 2**53 for key in keys]
        self.spent = 0
        self.at, self.seen, self.cast = np.zeros((0, goal.family.dim)), np.zeros(0), np.zeros(0)

    def run(self) -> tuple[int, int, OrbitTests]:
        """The label, how many pilot votes chose it, and the tests."""
        family = self.goal.family
        label = self._pilot()
        pilot = self.spent
        mesh = Mesh.of(family, self.x, self._cells())
        owner = np.full(len(mesh), -1, dtype=np.int64)
        left = torch.arange(len(mesh), device=self.x.device)
        rounds: list[_Round] = []
        for turn, share in enumerate(_SHARES, start=1):
            cover = mesh.cover(self._radii(mesh.nodes), left)
            first = sum(len(one.centres) for one in rounds)
            tests = _Round(cover, share, first, last=turn == len(_SHARES))
            rounds.append(tests)
            possible = self._tested(tests, label)
            of_cell = cover.owner.cpu().numpy()
            held = tests.passed[of_cell]
            owner[cover.cells.cpu().numpy()[held]] = tests.number[of_cell[held]]
            left = cover.cells[torch.from_numpy(~held).to(self.x.device)]
            if not possible or len(left) == 0:
                break
        columns = {
            name: np.concatenate([getattr(one, name) for one in rounds])
            for name in ("centres", "reach", "share", "successes", "trials", "invalid")
        }
        cells = tuple(len(axis) - 1 for axis in mesh.axes)
        return label, pilot, OrbitTests(cells=cells, owner=owner, **columns)

    def _votes(
        self, pictures: Tensor, numbers: Int64, start: int, stop: int, *, pilot: bool = False
    ) -> Votes:
        """The votes ``start`` ... ``stop - 1`` about each picture, its draws keyed by its
        number."""
        self.spent += len(pictures) * (stop - start)
        return self.goal.voter.count(
            pictures,
            torch.from_numpy(numbers),
            start,
            stop,
            seed=self.seeds[0 if pilot else 1],
            stage=SELECTION if pilot else ESTIMATION,
            batch_size=self.goal.plan.batch_size,
        )

    def _pictures(self, params: Float64) -> Tensor:
        return self.goal.family(self.x, torch.from_numpy(params).to(self.x.device))

    # -- planning: nothing here has to be right ----------------------------------------------------

    def _pilot(self) -> int:
        """Vote at parameters spread over the box; the label that got most votes."""
        family, n = self.goal.family, self.goal.plan.pilot_votes
        each = max(1, round(self.goal.plan.pilots ** (1 / family.dim)))
        steps = (np.arange(each) + 0.5) / each
        axes = np.meshgrid(*(low + steps * (high - low) for low, high in family.box), indexing="ij")
        params = np.stack(axes, axis=-1).reshape(-1, family.dim)
        votes = self._votes(self._pictures(params), np.arange(len(params)), 0, n, pilot=True)
        label = int(votes.counts.sum(dim=0).argmax())
        self._learn(params, votes.counts[:, label].cpu().numpy(), np.full(len(params), n))
        return label

    def _learn(self, params: Float64, successes: Int64, trials: Int64) -> None:
        self.at = np.concatenate([self.at, params])
        self.seen = np.concatenate([self.seen, successes])
        self.cast = np.concatenate([self.cast, trials])

    def _guess(self, params: Float64) -> Float64:
        """What the votes so far suggest for the label's probability, half a standard error
        below."""
        guess = (self.seen + 0.5) / (self.cast + 1)
        guess -= np.sqrt(guess * (1 - guess) / (self.cast + 1)) / 2
        if self.at.shape[1] == 1:
            order = np.argsort(self.at[:, 0])
            return np.interp(params[:, 0], self.at[order, 0], guess[order])
        low, high = np.array(self.goal.family.box).T
        far = (((params[:, None] - self.at) / (high - low)) ** 2).sum(axis=2)
        return np.asarray(guess[far.argmin(axis=1)], dtype=np.float64)

    def _room(self, params: Float64) -> Float64:
        """The radii of balls that cost the fewest votes for what they hold.

        A test of "above p0" at probability p takes about log(1/level) / KL(p, p0) votes, and the
        number of balls grows as the inverse of their radius, once for each parameter.
        """
        law, dim = self.goal.voter.law, self.goal.family.dim
        p = self._guess(params)[:, None].clip(0.55, 1 - 1e-6)
        p0 = np.linspace(0.51, 0.995, 98)[None]
        room = np.asarray(law.radius(p0, dim=self.dim)) - self.goal.allowance
        with np.errstate(divide="ignore", invalid="ignore"):
            cost = (math.log(400 / self.goal.alpha) / _divergence(p, p0) + 10) / room**dim
        cost = np.where((p0 < p - 0.02) & (room > 0), cost, np.inf)
        found = np.take_along_axis(room, cost.argmin(axis=1)[None], axis=1)[0]
        return np.where(np.isfinite(cost).any(axis=1), found, 0.0)

    def _radii(self, nodes: Tensor) -> Tensor:
        return torch.from_numpy(self._room(nodes.cpu().numpy())).to(nodes.device)

    def _cells(self) -> int | list[int]:
        """So many cells that a ball holds several, and no point moves by more than a quarter of a
        pixel within one."""
        plan, family = self.goal.plan, self.goal.family
        if plan.cells is not None:
            return plan.cells
        radius = max(float(np.median(self._room(self.at))), 1e-3)
        steps, most = (4, 4000) if family.dim == 1 else (2, 80)
        pictures = family.pictures(self.x, torch.from_numpy(self.at).to(self.x.device))
        cells = []
        for axis, (low, high) in enumerate(family.box):
            moved = self.at.copy()
            moved[:, axis] += (high - low) / 2**14
            away = family.pictures(self.x, torch.from_numpy(moved).to(self.x.device)) - pictures
            length = float(away.flatten(1).norm(dim=1).mean()) * 2**14
            cells.append(min(most, math.ceil(steps * length / radius)))
        least = family.resolution(self.x, 1 / 4)
        return [max(need, wanted) for need, wanted in zip(least, cells, strict=True)]

    # -- tests -------------------------------------------------------------------------------------

    def _tested(self, tests: _Round, label: int) -> bool:
        """Vote on all centres of a round; whether the label may still hold everywhere."""
        p0 = thresholds(self.goal.voter.law, tests.reach + self.goal.allowance, self.dim)
        if np.isnan(p0).any():  # no probability certifies that far
            return False
        size = len(p0)
        hardest = np.argsort(self._guess(tests.centres) - p0)
        for some in np.array_split(hardest, -(-size // _TOGETHER)):
            if not self._decided(tests, some, p0, label):
                return False
        failed = ~tests.passed
        self._learn(tests.centres[failed], tests.successes[failed], tests.trials[failed])
        return True

    def _patience(self, tests: _Round, p0: Float64) -> tuple[Float64, Float64]:
        """About how many votes each test takes if they are unanimous, and after how many smaller
        balls look better; the last round is given all that is left."""
        need = 1.5 - np.log(tests.share * self.goal.alpha)
        unanimous = np.ceil(need / -np.log(p0))
        guess = np.maximum(self._guess(tests.centres).clip(0, 1 - 1e-6), p0 + 0.01).clip(
            0, 1 - 1e-6
        )
        expected = need / _divergence(guess, np.minimum(p0, guess - 1e-3))
        most = np.maximum(8 * unanimous + 100, np.minimum(3 * expected, _PATIENCE))
        return unanimous, np.full(len(p0), np.inf) if tests.last else most

    def _decided(self, tests: _Round, some: Int64, p0: Float64, label: int) -> bool:
        """Vote on some centres until each is decided or has had its share of votes; whether the
        label may still hold."""
        level = tests.share * self.goal.alpha
        pictures = self._pictures(tests.centres[some])
        unanimous, most = (column[some] for column in self._patience(tests, p0))
        start, stop = 0, int(unanimous.min())
        waiting: NDArray[np.int64] = np.arange(len(some))
        while len(waiting):
            if self.spent + len(waiting) * (stop - start) > self.goal.plan.n_max:
                return False
            at = some[waiting]
            votes = self._votes(pictures[waiting], tests.number[at], start, stop)
            tests.successes[at] += votes.counts[:, label].cpu().numpy()
            tests.invalid[at] += votes.invalid.cpu().numpy()
            tests.trials[at] += stop - start
            k = tests.successes[at]
            decision = decisions(k, tests.trials[at], p0[at], level[at])
            tests.passed[at[decision == 1]] = True
            if ((decision == -1) & (2 * k < stop)).any():
                return False
            waiting = waiting[(decision == 0) & (stop < most[waiting])]
            start, stop = stop, stop + max(8, stop // 8)
        return True
