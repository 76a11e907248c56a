"""The ServerApp: wait for clients, train, certify, write down what happened."""

from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from flower_crfl import task
from rsfl import bounds, fed
from rsfl.fed import flower

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Carry the federated run out, and say what is certified."""
    config = context.run_config
    clients = flower.register(grid, config["clients"], task.trainer(context))
    out = Path(config["out"])
    out.mkdir(parents=True, exist_ok=True)
    if config["groups"]:
        in_groups(grid, config, clients, out)
    else:
        together(grid, config, clients, out)


def together(grid: Grid, config: dict, clients: list[fed.Remote], out: Path) -> None:
    """One model: which predictions would be the same without any one of the clients?"""
    x, y = task.held_out()
    server = fed.Server(
        task.model(config["seed"]),
        clients,
        clip=config["clip"],
        noise_std=config["noise"],
        timeout=config["timeout"],
        seed=config["seed"],
    )
    strategy = flower.Strategy(
        server,
        config["rounds"],
        evaluate=lambda model: {"accuracy": fed.accuracy(model, x, y)},
        checkpoint=config["checkpoint"] or None,
    )
    result = strategy.run(grid)
    certificate = fed.certify(result.model, x, result.ledger, bounds.RemovalThreat(at_most=1))
    certified = float((certificate.label == y).double().mean())
    print(
        f"accuracy {result.metrics[-1]['accuracy']:.3f}, certified whichever client is removed "
        f"{certified:.3f}"
    )
    torch.save(result.model.state_dict(), out / "model.pt")
    result.ledger.save(out / "ledger.json")


def in_groups(grid: Grid, config: dict, clients: list[fed.Remote], out: Path) -> None:
    """A model for each group: which predictions of their vote are the same, whatever any one client
    sends?"""
    x, y = task.held_out()
    server = fed.Server(
        task.model(config["seed"]), clients, timeout=config["timeout"], seed=config["seed"]
    )
    vote = flower.Groups(
        server,
        config["groups"],
        config["rounds"],
        num_classes=10,
        roster={one.id: 0 for one in clients},  # groups of one size
        checkpoint=config["checkpoint"] or None,
    ).run(grid)
    certificate = vote.certify(x)
    right = certificate.label == y
    certified = (right & (certificate.withstands >= 1)).double().mean()
    print(
        f"accuracy {right.double().mean():.3f}, certified whatever any one client sends "
        f"{certified:.3f}"
    )
    certificate.save(out / "certificate.json")
    for group, ledger in vote.ledgers.items():
        ledger.save(out / f"ledger-{group:04d}.json")
    models = {at: model.state_dict() for at, model in enumerate(vote.models) if model is not None}
    torch.save(models, out / "models.pt")
