"""The certified-accuracy curve. matplotlib is imported when a plot is drawn, not before."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from rsfl.runs.curves import certified_accuracy
from rsfl.smooth import Certificate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_certified_accuracy"]

# Okabe and Ito's palette, which people with any colour vision can tell apart, and a dash for each besides.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", "-.", ":")


def plot_certified_accuracy(
    curves: Mapping[str, tuple[Certificate, ArrayLike]],
    *,
    ax: "Axes | None" = None,
    radius: float | None = None,
    title: str | None = None,
) -> "Axes":
    """Draw certified accuracy over the radius, one curve for each entry.

    Args:
        curves: Name of a curve -> (certificates, true labels). All must share norm and unit.
        ax: Axes to draw on; new ones by default.
        radius: Right end of the axis; by default a little beyond the largest finite radius.
        title: Heading of the plot.

    Returns:
        The axes.

    Raises:
        ValueError: There is no curve, or the curves differ in norm or unit.
    """
    import matplotlib.pyplot as plt

    if not curves:
        raise ValueError(f"curves must not be empty, got {curves!r}")
    measures = {(certificate.norm, certificate.unit) for certificate, _ in curves.values()}
    if len(measures) > 1:
        raise ValueError(f"curves must share one norm and unit, got {sorted(measures)}")
    (norm, unit) = measures.pop()
    if radius is None:
        finite = [c.radius[c.radius.isfinite()].max().item() for c, _ in curves.values() if len(c)]
        radius = 1.05 * max(finite, default=0.0) or 1.0
    if ax is None:
        _, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    grid = np.linspace(0, radius, 1001)
    for i, (name, (certificate, labels)) in enumerate(curves.items()):
        ax.plot(
            grid,
            certified_accuracy(certificate, labels, grid),
            label=name,
            color=_COLOURS[i % len(_COLOURS)],
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
