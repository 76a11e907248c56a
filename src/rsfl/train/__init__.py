"""Robust training: losses for a loop of one's own, or for a federated client, and one plain
loop."""

from rsfl._checkpoint import CheckpointError
from rsfl.train.batches import Batches, DatasetBatches, Source
from rsfl.train.loop import Epoch, fit
from rsfl.train.losses import Adversarial, CrossEntropy, Loss, pseudo_labels
from rsfl.train.noisy import MACER, Consistency, SmoothMix, Stability
from rsfl.train.orbits import OrbitNoise

__all__ = [
    "MACER",
    "Adversarial",
    "Batches",
    "CheckpointError",
    "Consistency",
    "CrossEntropy",
    "DatasetBatches",
    "Epoch",
    "Loss",
    "OrbitNoise",
    "SmoothMix",
    "Source",
    "Stability",
    "fit",
    "pseudo_labels",
]
