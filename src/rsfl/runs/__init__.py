"""What a certified test set looks like: certified accuracy, its curve and its plot."""

from rsfl.runs.curves import average_certified_radius, certified_accuracy, certified_rate
from rsfl.runs.plots import plot_certified_accuracy

__all__ = ["average_certified_radius", "certified_accuracy", "certified_rate", "plot_certified_accuracy"]
