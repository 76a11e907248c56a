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
    """Carry the federated run out, and say what the ledger certifies."""
    config = context.run_config
    x, y = task.held_out()
    clients = flower.register(grid, config["clients"], task.trainer(context))
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

    # Had any one client never taken part: which predictions would be the same?
    certificate = fed.certify(result.model, x, result.ledger, bounds.RemovalThreat(at_most=1))
    certified = float((certificate.label == y).double().mean())
    print(
        f"accuracy {result.metrics[-1]['accuracy']:.3f}, certified whichever client is removed "
        f"{certified:.3f}"
    )

    out = Path(config["out"])
    out.mkdir(parents=True, exist_ok=True)
    torch.save(result.model.state_dict(), out / "model.pt")
    result.ledger.save(out / "ledger.json")
