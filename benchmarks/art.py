"""Certification by IBM's Adversarial Robustness Toolbox, for ``benchmarks.votes`` beside it:
``python -m benchmarks.art NETWORK N THREADS`` in an environment of its own.

It votes about as many inputs as there are lines on its standard input, and writes the processor
seconds that each took.
"""

import sys
import time

import torch
from torch import nn

from benchmarks.networks import resnet, small_cnn

NETWORKS = {"resnet20": (lambda: resnet(20), (3, 32, 32)), "cnn": (small_cnn, (1, 28, 28))}


def main(name: str, n: int, threads: int) -> None:
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

    torch.set_num_threads(threads)
    build, shape = NETWORKS[name]
    classifier = PyTorchRandomizedSmoothing(
        model=build().eval(),
        loss=nn.CrossEntropyLoss(),
        input_shape=shape,
        nb_classes=10,
        device_type="cpu",
        sample_size=100,
        scale=0.25,
        alpha=0.001,
    )
    x = torch.rand(1, *shape).numpy()
    print("ready", flush=True)
    for _ in sys.stdin:
        began = time.process_time()
        classifier.certify(x, n=n - 100, batch_size=400)  # and 100 votes that select
        print(time.process_time() - began, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
