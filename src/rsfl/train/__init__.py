"""Robust training: losses for a loop of one's own, or for a federated client, and one plain
loop."""

from rsfl.train.batches import Batches, DatasetBatches, Source
from rsfl.train.checkpoint import CheckpointError
from rsfl.train.loop import Epoch, fit
from rsfl.train.losses import Adversarial, CrossEntropy, Loss, pseudo_labels

__all__ = [
    "Adversarial",
    "Batches",
    "CheckpointError",
    "CrossEntropy",
    "DatasetBatches",
    "Epoch",
    "Loss",
    "Source",
    "fit",
    "pseudo_labels",
]
