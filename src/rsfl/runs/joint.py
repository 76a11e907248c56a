"""Certified accuracy against two things at once: over the rungs of a ladder of threats, and over
the radius of a change of the input."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from rsfl._checks import Float64
from rsfl._text import floored
from rsfl.runs.curves import certified_accuracy
from rsfl.smooth import JointCertificate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["joint_accuracy", "joint_table", "plot_joint"]

_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def joint_accuracy(
    certificate: JointCertificate, labels: ArrayLike, radii: ArrayLike = (0.0,)
) -> Float64:
    """Share of inputs that are certified with the right label, (rungs, radii).

    Args:
        certificate: What was certified.
        labels: (B,) the true labels.
        radii: Radii, at least 0.
    """
    if not isinstance(certificate, JointCertificate):
        raise TypeError(
            f"certificate must be a smooth.JointCertificate, got {type(certificate).__name__}: "
            f"certified_accuracy is for one threat"
        )
    grid = np.atleast_1d(np.asarray(radii, dtype=np.float64))
    return np.array([certified_accuracy(step, labels, grid) for step in certificate.steps])


def joint_table(
    certificate: JointCertificate, labels: ArrayLike, radii: Sequence[float] = (0.0, 0.25, 0.5)
) -> str:
    """The same as text: a row a rung, a column a radius; shares are floored."""
    shares = joint_accuracy(certificate, labels, radii)
    width = max(map(len, certificate.ladder)) + 2
    heading = " " * width + "".join(f"{f'r = {radius:g}':>10}" for radius in radii)
    rows = [
        f"{name:<{width}}" + "".join(f"{floored(float(share), 3):>10}" for share in row)
        for name, row in zip(certificate.ladder, shares, strict=True)
    ]
    return "\n".join([heading, *rows])


def plot_joint(
    certificate: JointCertificate,
    labels: ArrayLike,
    *,
    ax: "Axes | None" = None,
    radius: float | None = None,
    title: str | None = None,
) -> "Axes":
    """Draw certified accuracy as a heat map over (rung, radius), with contour lines.

    Args:
        certificate: What was certified.
        labels: (B,) the true labels.
        ax: Axes to draw on; new ones by default.
        radius: Right end of the axis; by default a little beyond the largest finite radius.
        title: Heading of the plot.

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt

    if radius is None:
        finite = [float(r[r.isfinite()].max()) for r in (s.radius for s in certificate.steps)]
        radius = 1.02 * max(finite) or 1.0
    if ax is None:
        _, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    grid, rungs = np.linspace(0, radius, 201), np.array(certificate.rungs, dtype=float)
    shares = joint_accuracy(certificate, labels, grid)
    image = ax.pcolormesh(grid, _edges(rungs), shares[:, :-1], cmap="Blues", vmin=0, vmax=1)
    if len(rungs) > 1:
        lines = ax.contour(grid, rungs, shares, levels=_LEVELS, colors="#333333", linewidths=0.8)
        ax.clabel(lines, fmt="%g", fontsize=8)
    law = certificate.law
    ax.set(xlabel=f"{law.norm} radius ({law.unit})", ylabel="threat", xlim=(0, radius))
    ticks = _spaced(certificate.rungs)
    ax.set_yticks(ticks, [certificate.ballot.ladder[rung] for rung in ticks])
    if title:
        ax.set_title(title)
    bar = plt.colorbar(image, ax=ax)
    bar.set_label("certified accuracy")
    return ax


def _edges(rungs: Float64) -> Float64:
    """Where one row of the map ends and the next begins: half way between rungs."""
    if len(rungs) == 1:
        return np.array([rungs[0] - 0.5, rungs[0] + 0.5])
    middles = (rungs[:-1] + rungs[1:]) / 2
    return np.concatenate([rungs[:1], middles, rungs[-1:]])


def _spaced(rungs: Sequence[int]) -> list[int]:
    """At most some eight of the rungs, spread over all of them."""
    span = max(rungs[-1] - rungs[0], 1)
    kept = [rungs[0]]
    for rung in rungs[1:]:
        if rung - kept[-1] >= span / 8:
            kept.append(rung)
    return kept
