import math

import pytest
import torch

from rsfl import attacks, deform


def images(count):
    return torch.rand(
        count, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )


def half_line(threshold):
    """Two classes whose probabilities cross, for image i, where the first parameter is
    threshold[i]."""

    def probabilities(shift):
        rival = torch.sigmoid(
            10 * (shift[:, 0] - threshold).sign() * (shift[:, 0] - threshold).abs()
        )
        return torch.stack([1 - rival, rival], dim=1)

    return probabilities


def test_grid_attack_finds_the_crossing_of_one_parameter():
    threshold = torch.tensor([0.1234, 0.3, 0.9], dtype=torch.float64)
    x = images(3)
    found = attacks.grid_attack(
        deform.Rotation(1.0), x, half_line(threshold), radius=0.5, points=10
    )
    assert found.label.tolist() == [0, 0, 0]
    assert found.other.tolist() == [1, 1, 0]
    assert found.distance[:2].tolist() == pytest.approx([0.1234, 0.3], abs=1e-6)
    assert (found.distance[:2] >= threshold[:2]).all()
    torch.testing.assert_close(found.parameters[:2, 0], found.distance[:2])
    assert found.distance[2] == math.inf
    assert found.parameters[2].isnan().all()


def test_grid_attack_looks_to_both_sides_and_as_far_as_asked_for_each_image():
    threshold = torch.tensor([-0.2, -0.2], dtype=torch.float64)  # both start beyond the crossing
    radius = torch.tensor([0.19, 0.21])
    found = attacks.grid_attack(deform.Scaling(0.5), images(2), half_line(threshold), radius=radius)
    assert found.label.tolist() == [1, 1]
    assert found.distance[0] == math.inf
    assert found.distance[1].item() == pytest.approx(0.2, abs=1e-6)
    assert found.parameters[1].item() == pytest.approx(-0.2, abs=1e-6)


@pytest.mark.parametrize("law", [deform.Translation(0.1), deform.Affine(0.1)])
def test_grid_attack_in_more_dimensions(law):
    """The boundary is a hyperplane at a known l2 distance; rays meet it no nearer, and close to it
    in the plane."""
    x = images(2)
    (dim,) = law.noise_shape(x.shape[1:])
    normal = torch.linspace(1, 2, dim, dtype=torch.float64)
    normal /= normal.norm()

    def probabilities(shift):
        rival = 0.5 + (shift @ normal - torch.tensor([0.2, 0.4], dtype=torch.float64)).clamp(
            -0.5, 0.5
        )
        return torch.stack([1 - rival, rival], dim=1)

    generator = torch.Generator().manual_seed(0)
    found = attacks.grid_attack(law, x, probabilities, radius=2.0, points=50, generator=generator)
    torch.testing.assert_close(found.parameters.norm(dim=1), found.distance)
    assert (found.distance >= torch.tensor([0.2, 0.4])).all()
    assert (found.distance <= torch.tensor([0.2, 0.4]) * (1.2 if dim == 2 else 2.5)).all()
    assert probabilities(found.parameters).argmax(dim=1).tolist() == [1, 1]


def test_a_class_that_only_draws_level_is_no_flip():
    def probabilities(shift):
        return torch.tensor([[1, 1]]) if bool(shift.any()) else torch.tensor([[1, 2]])

    found = attacks.grid_attack(
        deform.Rotation(1.0), images(1), probabilities, radius=1.0, points=5
    )
    assert found.label.tolist() == found.other.tolist() == [1]
    assert found.distance.tolist() == [math.inf]


@pytest.mark.parametrize("radius", [0.0, -1.0, math.inf, math.nan])
def test_grid_attack_checks_its_radius(radius):
    with pytest.raises(ValueError, match="radius must be positive and finite"):
        attacks.grid_attack(
            deform.Rotation(1.0), images(1), half_line(torch.zeros(1)), radius=radius
        )
