"""The register of assumptions: what a certificate rests on, and who answers for it.

Each :class:`Assumption` says on what it stands: ``checked`` at run time, implied by how the run was
``configured``, or ``trusted`` because the caller said so and the code cannot know.
"""

from dataclasses import dataclass, replace
from typing import Literal

from rsfl.bounds import CONDITIONS, TRUSTED

__all__ = ["Assumption", "register", "spot_checked"]


@dataclass(frozen=True)
class Assumption:
    """One condition of a guarantee.

    Args:
        id: Short name, as certificates print it.
        statement: What has to hold.
        basis: ``checked`` at run time, ``spot-checked`` there on a few examples, implied by the run
            as ``configured``, or ``trusted``.
        where: What answers for it: the check, the setting, or the caller.
    """

    id: str
    statement: str
    basis: Literal["checked", "spot-checked", "configured", "trusted"]
    where: str

    def __str__(self) -> str:
        return f"{self.id} ({self.basis})"


FRESH_VOTES = Assumption(
    "fresh-votes",
    "The class was selected with votes that share no draw with those that bound its probability.",
    "configured",
    "selection and estimation draw from disjoint keys",
)
FIXED_NUMBER = Assumption(
    "fixed-number",
    "The number of votes was fixed before they were seen.",
    "configured",
    "n is an argument",
)
OPTIONAL_STOPPING = Assumption(
    "optional-stopping",
    "Votes were looked at while they came in, through a test that stays valid under optional "
    "stopping.",
    "configured",
    "certify_at decides by the sequential test only",
)
PER_INPUT = Assumption(
    "per-input",
    "The failure probability alpha holds for each input by itself, not for all inputs at once.",
    "configured",
    "one test per input",
)
ONE_FUNCTION = Assumption(
    "one-function",
    "The model is one deterministic function of a single input: no randomness of its own, no "
    "influence of the batch, "
    "the same weights, dtype and device at certification and at use.",
    "trusted",
    "the caller; evaluation mode is set while votes are counted",
)


def spot_checked(assumption: Assumption) -> Assumption:
    """The same condition, looked for on a few examples before the votes: what breaks it always is
    found."""
    where = "asked twice, alone and in a batch, before the first votes; beyond that the caller"
    return replace(assumption, basis="spot-checked", where=where)


RAW_INPUT = Assumption(
    "raw-input",
    "The perturbation acts on the tensor that the smoother was given; any normalisation is part "
    "of the model.",
    "trusted",
    "the caller",
)
OTHER_PARTS = Assumption(
    "other-parts",
    "Only the part of the input that the certificate names is moved. What goes along with it is "
    "the same, and so is what a touched output was made from. A part that others make of the moved "
    "one, such as a thumbnail of the picture, does not stay the same: it is to be made inside the "
    "model, or named too.",
    "trusted",
    "the caller; smooth.Parts and smooth.At name the part, and a part that is the memory of a "
    "touched one is refused",
)
IDEAL_NOISE = Assumption(
    "ideal-noise",
    "Pseudo-random float32 noise added in floating point stands for exact noise on real numbers. "
    "How often a coordinate of it passes a threshold differs by at most 3e-8.",
    "trusted",
    "the caller; noise.RoundedGaussian does without it",
)
GRID_INPUT = Assumption(
    "grid-input",
    "Every coordinate is k / (levels - 1) for a whole k, for the input and for every perturbed "
    "input meant.",
    "checked",
    "the input is compared with the grid; for perturbed inputs the caller answers",
)
ROUNDED_TABLE = Assumption(
    "rounded-table",
    "Noise is drawn from an integer table whose distance to the exact rounded law, times the "
    "dimension, was taken off "
    "the radius; pseudo-random 63-bit integers stand for random ones.",
    "checked",
    "noise.RoundedGaussian",
)
ORIGINAL_INPUT = Assumption(
    "original-input",
    "The deformation acts once on the original input; an input that was deformed and resampled "
    "before is not covered.",
    "trusted",
    "the caller; deform.composition_gap measures the difference",
)

SPLIT_ALPHA = Assumption(
    "split-alpha",
    "All tests of an input share its failure probability; which tests are made depends on votes "
    "that none of them counts.",
    "configured",
    "each test has its share of alpha, and draws keyed by the input and its centre",
)
NAMED_LEVEL = Assumption(
    "named-level",
    "The level of noise is named by a vote that is certified, too: within the radius it is the "
    "same for every input, so that only that level's certificate matters; each of the two has half "
    "of alpha.",
    "configured",
    "smooth.DualSmoother",
)
ORBIT_COVER = Assumption(
    "orbit-cover",
    "No picture of the family is farther from the centre that answers for it than was bounded: by "
    "calculation over whole cells of parameters, not on a grid; rounding is in the bound.",
    "checked",
    "orbit.Mesh",
)
ONE_RESAMPLING = Assumption(
    "one-resampling",
    "The picture handed in is one bilinear interpolation of the original by this warp, centre and "
    "padding, or within the allowance of one. A second resampling, another interpolation, JPEG, or "
    "cropping by somebody else makes pictures of another family.",
    "trusted",
    "the caller; deform.composition_gap measures a second resampling",
)

SHARED_MODELS = Assumption(
    "shared-models",
    "All inputs are voted on by the same noisy models: alpha holds for each input, and errors of "
    "different inputs are "
    "dependent.",
    "configured",
    "draws are keyed by the number of the model",
)
INDEPENDENT_DRAWS = Assumption(
    "independent-draws",
    "The noise of the votes is independent of everything that was drawn in training.",
    "trusted",
    "the caller: the seed of the votes is not a seed of the training",
)
SAME_REST = Assumption(
    "same-rest",
    "Parameters that carry no noise, and all buffers, are identical in the models that are "
    "compared.",
    "trusted",
    "the caller; fed.certify compares what it can",
)


MARGINAL = Assumption(
    "marginal",
    "The coverage is a mean over inputs, labels, calibration sets and noise. It is no statement "
    "about one input, one class, or this calibration set.",
    "configured",
    "conformal.calibrate",
)
EXCHANGEABLE = Assumption(
    "exchangeable",
    "Inputs and labels of calibration and of use, before anybody moves the latter, come from one "
    "law in exchangeable order; the score was made without the calibration set.",
    "trusted",
    "the caller",
)
UNSEEN_DRAW = Assumption(
    "unseen-draw",
    "Whoever moves an input does not know the noise that will be added to it; calibration inputs "
    "are not moved.",
    "trusted",
    "the caller: the seed of use is secret",
)


DISJOINT_GROUPS = Assumption(
    "disjoint-groups",
    "Each client is in one group, which a hash of its id and of the seed decides: nothing that it "
    "sends, and nobody else.",
    "configured",
    "fed.train_groups",
)
DEALT_GROUPS = Assumption(
    "dealt-groups",
    "Each client is in one group, which a roster of all ids and a registered fact of each decides, "
    "with the seed. The roster was complete before the training, and malicious clients are among "
    "those on it: who registers too, or with another fact, may move others.",
    "configured",
    "fed.train_groups(..., roster=...), and whoever kept the roster",
)
SEPARATE_GROUPS = Assumption(
    "separate-groups",
    "Groups share no random stream, state, stopping rule, statistics or validation data, and no "
    "code that keeps anything; a group without an answer does not vote.",
    "configured",
    "fed.train_groups: runs of their own, in one process where all code is known, in processes of "
    "their own elsewhere",
)
APART_NODES = Assumption(
    "apart-nodes",
    "Each client trains on a node of its own, which keeps nothing of another client's, answers for "
    "no other client, and has its time whatever the others do with theirs.",
    "trusted",
    "who runs the nodes: fed.flower.Groups(..., nodes=...), with Flower's node authentication",
)
CLAIMED_CLIENTS = Assumption(
    "claimed-clients",
    "Each node said truly which client it is. One that claims another client's id takes its seat "
    "in that client's group and leaves its own empty: it is one node, and reaches two groups.",
    "trusted",
    "who runs the nodes; fed.flower.Groups(..., nodes=...) asks nobody",
)
COUNTED_IF_WITHSTOOD = Assumption(
    "counted-if-withstood",
    "A noisy copy counts for its label only where a certificate without chance says that no "
    "admissible training attack changes that label there. What that certificate rests on, which "
    "the judge names, is assumed too. What is certified, and has to be used, is the vote of noisy "
    "copies of the model; alpha is for sampling alone.",
    "configured",
    "smooth.JointSmoother",
)
FROZEN_FEATURES = Assumption(
    "frozen-features",
    "What turns inputs into features was fixed before the clients trained, and is the same in "
    "every run that is compared.",
    "trusted",
    "the caller",
)


def recorded_features() -> Assumption:
    """The same condition where the ledger has hashes of the frozen layers."""
    where = "hashes of the frozen layers that each round trained on, and of the model's"
    return replace(FROZEN_FEATURES, basis="checked", where=where)


WHOLE_LEDGER = Assumption(
    "whole-ledger",
    "The ledger is that of the run which ended with this model.",
    "trusted",
    "the caller",
)
KNOWN_MODEL = Assumption(
    "known-model",
    "The ledger is that of the run which ended with this model, from its first round on.",
    "checked",
    "hashes of the weights that each round sent, made and passed on, and of the model",
)
RETRAINING = Assumption(
    "any-retraining",
    "The other run is what any training from the same start gives: everybody takes part in every "
    "round with full batches and there is no noise, so that nothing is drawn.",
    "checked",
    "the ledger",
)
PUBLISHED_FORM = Assumption(
    "published-form",
    "CRFL's statement as published: about the distributions over training runs, against a clean "
    "run in which the "
    "attackers' updates are scaled too, for convex smooth losses and the Lipschitz constant that "
    "was given. Its known "
    "gaps are listed in the documentation; it is not a guarantee for this one model.",
    "trusted",
    "the caller",
)
WEIGHTS_OF_DATA = Assumption(
    "weights-of-data",
    "The aggregation weights are treated as constants although they depend on what the clients "
    "sent: UNSOUND, offered "
    "for comparison with the paper only.",
    "trusted",
    "nobody",
)
GIVEN_GROUPS = Assumption(
    "given-groups",
    "The models are those of groups of clients that were fixed before anything was received, and "
    "none of which could reach another.",
    "trusted",
    "the caller, who made the GroupVote",
)
REGISTERED_CLIENTS = Assumption(
    "registered-clients",
    "Clients are counted by the ids under which they registered: whoever registers twice is two.",
    "trusted",
    "whoever gives out the ids",
)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


OF_TRAINING = {
    **{
        name: Assumption(name, _sentence(text), "checked", "the ledger")
        for name, text in CONDITIONS.items()
    },
    **{
        name: Assumption(name, _sentence(text), "trusted", "the caller")
        for name, text in TRUSTED.items()
    },
}
"""What certificates against a threat in training rest on, by id: all that
:class:`rsfl.bounds.Deviation` can name."""


def register() -> tuple[Assumption, ...]:
    """All assumptions that certificates of this library can name, in the order of this module."""
    alone = (value for value in globals().values() if isinstance(value, Assumption))
    return (*alone, *OF_TRAINING.values())
