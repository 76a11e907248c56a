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
    grid, rows = np.linspace(0, radius, 201), np.arange(len(certificate.rungs) + 1)
    shares = joint_accuracy(certificate, labels, grid)
    # A cell shows what holds at its right end, and a row its own rung: nothing in between is
    # interpolated, neither in the colours nor in the lines.
    image = ax.pcolormesh(grid, rows, shares[:, 1:], cmap="Blues", vmin=0, vmax=1)
    ends = np.repeat(rows, 2)[1:-1].astype(float)
    ends[1:-1:2] -= 1e-9
    lines = ax.contour(
        grid, ends, shares.repeat(2, axis=0), levels=_LEVELS, colors="#333333", linewidths=0.8
    )
    law = certificate.law
    ax.set(xlabel=f"{law.norm} radius ({law.unit})", ylabel="threat", xlim=(0, radius))
    ticks = range(0, len(certificate.rungs), 1 + len(certificate.rungs) // 12)
    ax.set_yticks([tick + 0.5 for tick in ticks], [certificate.ladder[tick] for tick in ticks])
    if title:
        ax.set_title(title)
    bar = plt.colorbar(image, ax=ax)
    bar.add_lines(lines)
    bar.set_label("certified accuracy")
    return ax
