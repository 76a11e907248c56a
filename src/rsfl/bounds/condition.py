"""What a bound on a threat rests on, in words: conditions that are checked in the ledger, and what
no ledger can show."""

__all__ = ["CONDITIONS", "TRUSTED", "ConditionError"]

CONDITIONS = {
    "consecutive-rounds": "the rounds of the ledger follow on one another",
    "plain-averaging": "the aggregator is the weighted mean: medians, Krum and RFA are not "
    "Lipschitz with constant 1",
    "linear-model": "an nn.Linear, alone or after flattening at the end of an nn.Sequential, all "
    "trained, no hooks; or at its end behind frozen float64 layers that treat each sample on its "
    "own in either mode: the loss is convex in what is trained",
    "features-named": "behind frozen layers norms are those of features, for a threat by poisoned "
    "data too: how far a moved input moves its features, nobody knows",
    "plain-loss": "local steps follow the gradient of the softmax cross-entropy: a convex loss "
    "with smoothness B^2/2",
    "plain-sgd": "no momentum, no adaptive steps: either makes a convex step expand",
    "one-decay": "every parameter has the same L2 decay: an undecayed bias would stop the "
    "contraction",
    "known-inputs": "a finite bound B on the norm of (x, 1) over each client's clean inputs",
    "step-size": "learning rate at most 2 / (decay + B^2/2), so that a local step does not expand",
    "server-weights": "the weights are set before training, by the server or at registration, "
    "and sum to 1",
    "server-step": "the server applies a fraction of the average in (0, 1]",
    "fixed-clip": "clip radii are set in advance, not from what clients send",
    "zero-for-rejected": "a rejected or absent update counts as zero and keeps its weight",
    "float64": "training and averaging in float64, so that rounding stays far below the "
    "deviations bounded here",
    "update-clip": "at the client level, the server clips each update at a finite norm, set in "
    "advance",
    "recorded-samples": "the indices of the samples drawn are in the ledger",
    "someone-left": "after the removal, each round keeps a participant of positive weight",
}
"""Every condition that is checked in the ledger, by name."""

TRUSTED = {
    "coupled-runs": "the other run is the coupled one: it shares initial weights, participants, "
    "mini-batches, server noise and absences; a run that draws anew differs by its draws besides",
    "fixed-settings": "learning rates, decays, limits, schedules and the number of rounds are set "
    "before training, the same in both runs: they depend neither on draws nor on what clients send",
    "clean-input-bound": "the recorded bound holds for the clean inputs of every client that "
    "trains honestly in either "
    "run",
    "exact-training": "exact arithmetic: float64 rounding in training is not added to the bound",
    "valid-samples": "every poisoned sample is one that a client can train on: its label is a "
    "class, its numbers are finite, and (x, 1) is no longer than the server's max_input_norm; "
    "clients check that when they register",
    "threat-respected": "poisoned samples, and how many there are, keep to the threat; attackers "
    "otherwise follow the "
    "protocol",
    "working-clip": "the server clips every update at update_clip and counts a non-finite one as "
    "zero",
    "recorded-settings": "the attackers' recorded settings are those they would have trained with",
    "others-honest": "everyone but the removed clients follows the protocol, in both runs",
    "drawn-before-removal": "the comparison run draws its participants before the clients are "
    "left out, "
    "renormalises the weights, and goes on however few are left",
    "registered-sizes": "the numbers of samples that clients gave at registration, which set the "
    "weights, are those of "
    "both runs",
}
"""Everything that no ledger can show and that a bound rests on nevertheless, by name."""

_WAY_OUT = {
    "plain-averaging": "use fed.Mean, or groups: fed.train_groups takes any rule",
    "linear-model": "freeze all layers before the last nn.Linear of an nn.Sequential in float64 "
    "(no dropout, no BatchNorm), train a linear layer on frozen features, or use groups: "
    "fed.train_groups takes any model, and smooth.JointSmoother adds a changed input",
    "features-named": "say space='features' and give norms of features; for inputs moved or "
    "replaced in any way ask bounds.ClientThreat or bounds.RemovalThreat",
    "update-clip": "give the server an update_clip, such as fed.pilot proposes",
    "recorded-samples": "give the server keep=['samples'], or state per_batch or share",
    "server-weights": "give the server sizes",
    "someone-left": "name fewer clients",
}


class ConditionError(ValueError):
    """The run breaks a condition of the certificate, so that nothing can be certified from its
    ledger.

    Attributes:
        condition: Name of the condition, one of those in ``CONDITIONS``.
    """

    def __init__(self, condition: str, where: str, found: str, instead: str = ""):
        instead = instead or _WAY_OUT.get(condition, "")
        super().__init__(
            f"{where}: condition '{condition}' fails ({CONDITIONS[condition]}), got {found}"
            + (f"; {instead}" if instead else "")
        )
        self.condition = condition
