import math

import pytest
import torch
from torch import nn

from rsfl import attacks, deform, noise
from rsfl.assumptions import ORIGINAL_INPUT, RAW_INPUT
from rsfl.smooth import ABSTAIN, DeformationSmoother
from rsfl.smooth.votes import draw_noise

C = 0.07


class Probe(nn.Module):
    """Class 0 where one pixel exceeds a threshold."""

    def __init__(self, row, column, threshold):
        super().__init__()
        self.row, self.column, self.threshold = row, column, threshold
        self.modes = []

    def forward(self, x):
        self.modes.append(self.training)
        above = x[:, 0, self.row, self.column] - self.threshold
        return torch.stack([above, -above], dim=1)


def ramp(height, width, axis):
    """An image whose value is its own coordinate along an axis, in half images; interpolation is
    exact on it."""
    at = torch.linspace(-1, 1, (height, width)[axis])
    return (at[:, None] if axis == 0 else at).expand(1, 1, height, width).clone()


# The centre reads the horizontal shift itself; the middle of the right border reads height
# sin(angle) on a square; the corner of a ramp reads 1 + s. The vote of each is decided where the
# parameter is -C: the exact radius is C.
CASES = {
    "translation": (deform.Translation(0.1, padding="border"), ramp(9, 7, 1), Probe(4, 3, -C)),
    "affine": (deform.Affine(0.1, padding="border"), ramp(9, 7, 1), Probe(4, 3, -C)),
    "dct": (deform.DCT(0.1, 1, padding="border"), ramp(9, 7, 1), Probe(4, 3, -C)),
    "rotation": (deform.Rotation(0.1 * math.pi), ramp(7, 7, 0), Probe(3, 6, -math.sin(C))),
    "scaling": (deform.Scaling(0.2), ramp(7, 9, 1), Probe(3, 6, 0.5 * (1 - C))),
}


@pytest.mark.parametrize("case", CASES)
def test_certified_radius_is_just_below_the_exact_one(case):
    law, x, model = CASES[case]
    smoother = DeformationSmoother(model, law, 2)
    certificate = smoother.certify(x, n0=100, n=20_000, alpha=1e-3, seed=1)
    assert certificate.label.tolist() == [0]
    assert 0.85 * C < float(certificate.radius) < C
    assert (certificate.norm, certificate.space, certificate.unit) == (
        law.base.norm,
        "parametric",
        law.unit,
    )
    assert ORIGINAL_INPUT in certificate.assumptions
    assert RAW_INPUT not in certificate.assumptions
    assert f"{law.norm} radius in {law.unit} (parametric space)" in repr(certificate)
    assert smoother.certify_at(x, 0.8 * C, n_max=20_000).label.tolist() == [0]
    assert smoother.certify_at(x, 1.05 * C, n_max=20_000).label.tolist() == [ABSTAIN]
    assert smoother.predict(x).label.tolist() == [0]


@pytest.mark.parametrize("shape", [(1, 1, 8, 8), (3, 3, 8, 8), (2, 1, 6, 11), (1, 3, 11, 6)])
def test_votes_do_not_depend_on_batches(shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 4))
    smoother = DeformationSmoother(model, deform.Rotation(0.5), 4)
    votes = smoother.votes(x, 250, seed=3)
    assert votes.sum(dim=1).tolist() == [250] * len(x)
    assert torch.equal(votes, smoother.votes(x, 250, seed=3, batch_size=7))
    for i in range(len(x)):
        assert torch.equal(votes[i : i + 1], smoother.votes(x[i : i + 1], 250, seed=3, index=[i]))


def test_shifted_votes_are_the_votes_of_moved_noise():
    law, x, model = CASES["translation"]
    smoother = DeformationSmoother(model, law, 2)
    model.train()
    model.modes.clear()
    fixed = draw_noise(law, x.shape[1:], 500, seed=2, index=0)[:, None]
    votes = smoother.shifted(x, fixed)
    assert torch.equal(
        votes(torch.zeros(1, 2, dtype=torch.float64)), smoother.votes(x, 500, seed=2)
    )
    moved = votes(torch.tensor([[-0.05, 3.0]], dtype=torch.float64))
    assert moved.tolist() == [
        [int((fixed[:, 0, 0] > 0.05 - C).sum()), int((fixed[:, 0, 0] <= 0.05 - C).sum())]
    ]
    assert set(model.modes) == {False}
    assert model.training

    found = attacks.grid_attack(law, x, votes, radius=0.2, points=20)
    median = fixed[:, 0, 0].double().quantile(0.5, interpolation="higher")
    assert found.distance.item() == pytest.approx(C + median.item(), abs=0.02 * C)


def test_a_vote_without_finite_logits_does_not_count_in_a_search():
    class Broken(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 2), torch.nan)

    smoother = DeformationSmoother(Broken(), deform.Rotation(0.1), 2)
    x = torch.zeros(2, 1, 4, 4)
    assert smoother.shifted(x, smoother.noise(x, 3))(torch.zeros(2, 1)).tolist() == [[0, 0], [0, 0]]


def test_probabilities_are_differentiable_in_parameters_and_model():
    torch.manual_seed(0)
    x = torch.rand(2, 1, 6, 6, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3)).double()
    smoother = DeformationSmoother(model, deform.Affine(0.2), 3)
    drawn = smoother.noise(x, 4, generator=torch.Generator().manual_seed(0)).double()
    shift = torch.full((2, 6), 0.01, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda moved: smoother.probabilities(x, drawn + moved), shift, eps=1e-7, atol=1e-6
    )
    smoother.probabilities(x, 4)[:, 0].sum().backward()
    assert model[1].weight.grad.abs().sum() > 0


def test_a_sigma_or_an_input_law_is_no_deformation():
    for wrong in (0.1, noise.Gaussian(0.1)):
        with pytest.raises(TypeError, match=r"deformation must be a deform.Deformation, got"):
            DeformationSmoother(Probe(0, 0, 0.0), wrong, 2)


@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8)])
def test_images_without_batch_or_channel_are_refused(shape):
    smoother = DeformationSmoother(Probe(0, 0, 0.0), deform.Rotation(0.1), 2)
    for use in (smoother.certify, smoother.predict, lambda x: smoother.probabilities(x, 3)):
        with pytest.raises(ValueError, match=r"x\[:, None\] for the channel"):
            use(torch.zeros(shape))
