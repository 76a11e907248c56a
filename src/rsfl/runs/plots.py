"""The certified-accuracy curve. matplotlib is imported when a plot is drawn, not before."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from rsfl.runs.curves import Certified, certified_accuracy, comparable, one_test_set

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_certified_accuracy"]

Curve: TypeAlias = tuple[Certified, ArrayLike]

# Okabe and Ito's palette, which people with any colour vision can tell apart, and a dash for each
# besides.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", "-.", ":")


def plot_certified_accuracy(
    curves: Mapping[str, Curve | Sequence[Curve]],
    *,
    ax: "Axes | None" = None,
    radius: float | None = None,
    title: str | None = None,
    envelope: bool = False,
) -> "Axes":
    """Draw certified accuracy over the radius, one curve for each entry.

    Args:
        curves: Name of a curve -> (certificates, true labels), or a list of such pairs, one for
            each client: then the curve is their mean, in a band from the worst client to the best.
            All must share norm and unit.
        ax: Axes to draw on; new ones by default.
        radius: Right end of the axis; by default a little beyond the largest finite radius.
        title: Heading of the plot.
        envelope: Draw the best of all curves at each radius behind them.

    Returns:
        The axes.

    Raises:
        ValueError: There is no curve, or the curves differ in what they measure; with an envelope,
            in their test sets.
        TypeError: There is no mapping, or an entry is no pair, nor a list of pairs.
    """
    import matplotlib.pyplot as plt

    if not isinstance(curves, Mapping):
        raise TypeError(
            f"curves must be a mapping {{name: (certificate, labels)}}, got {type(curves).__name__}"
        )
    groups: dict[str, Sequence[Curve]] = {
        name: [entry] if isinstance(entry, tuple) else entry for name, entry in curves.items()
    }
    for name, group in groups.items():
        for pair in group:
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise TypeError(
                    f"curves must hold pairs (certificates, labels), got {type(pair).__name__} "
                    f"as {name!r}"
                )
    members = {
        f"{name} {i}": pair for name, group in groups.items() for i, pair in enumerate(group)
    }
    norm, unit = comparable(members)
    if radius is None:
        finite = [c.radius[c.radius.isfinite()].max().item() for c, _ in members.values() if len(c)]
        radius = 1.05 * max(finite, default=0.0) or 1.0
    if ax is None:
        _, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    grid = np.linspace(0, radius, 1001)
    shares = {
        name: np.array([certified_accuracy(*pair, grid) for pair in group])
        for name, group in groups.items()
    }
    if envelope:
        one_test_set(group[0] for group in groups.values() if len(group) == 1)
        best = np.max([share.mean(axis=0) for share in shares.values()], axis=0)
        ax.plot(
            grid, best, label="upper envelope", color="#BBBBBB", linewidth=6, solid_capstyle="butt"
        )
    for i, (name, share) in enumerate(shares.items()):
        colour = _COLOURS[i % len(_COLOURS)]
        if len(share) > 1:
            ax.fill_between(
                grid, share.min(axis=0), share.max(axis=0), color=colour, alpha=0.2, linewidth=0
            )
        ax.plot(
            grid,
            share.mean(axis=0),
            label=name if len(share) == 1 else f"{name} (mean and range of {len(share)} clients)",
            color=colour,
            linestyle=_DASHES[i % len(_DASHES)],
            linewidth=1.8,
        )
    ax.set(
        xlabel=f"{norm} radius ({unit})",
        ylabel="certified accuracy",
        xlim=(0, radius),
        ylim=(0, 1),
    )
    if title:
        ax.set_title(title)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return ax
