"""What server and clients must agree on: the model and how it is trained. And the data, which they
must not share."""

import numpy as np
import torch
from flwr.app import Context
from sklearn.datasets import load_digits
from torch import Tensor, nn

from rsfl import fed


def model(seed: int) -> nn.Module:
    """A linear classifier of 8 x 8 digits, in the float64 that the certificates ask for."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()


def trainer(context: Context) -> fed.SGD:
    """Plain gradient steps with L2 decay: what the certificates of poisoning know."""
    config = context.run_config
    return fed.SGD(lr=config["lr"], batch_size=config["batch-size"], decay=config["decay"])


def digits() -> tuple[Tensor, Tensor]:
    """All the digits, each scaled to norm 3, in an order of their own."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x = torch.tensor(x[order]).view(-1, 1, 8, 8)
    return 3 * x / x.flatten(1).norm(dim=1)[:, None, None, None], torch.tensor(y[order])


def held_out() -> tuple[Tensor, Tensor]:
    """The server's own test set."""
    x, y = digits()
    return x[1437:], y[1437:]


def client(context: Context) -> fed.Client:
    """This node's client. A real one would read its own files here, and say by itself which client
    it is."""
    number, clients = (
        int(context.node_config["partition-id"]),
        int(context.node_config["num-partitions"]),
    )
    x, y = digits()
    parts = fed.partition.equal(1437, clients, seed=0)
    return fed.Client(number, x, y, trainer(context), parts[number])
