"""What an attack says of itself is measured again, gradients are at hand, and nothing of the
caller's is shared with it."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from rsfl import attacks
from rsfl.attacks import PGD, Attacked, SmoothAdvPGD
from rsfl.noise import Gaussian, Laplace
from rsfl.smooth import Smoother
from rsfl.train import Adversarial

X, Y = torch.full((3, 4), 0.5), torch.tensor([0, 1, 2])


def smoother(law=Gaussian(0.25)):  # noqa: B008
    torch.manual_seed(0)
    return Smoother(nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)), law, 3)


@dataclass(frozen=True, kw_only=True)
class Foreign(PGD):
    """An attack of somebody else's: ``how`` says what it does in place of the loop."""

    how: str = ""

    def __call__(self, smoother, x, y, noise=None, generator=None, *, fallback=None):
        point, noise = x.clone(), smoother.noise(x, 2) if noise is None else noise
        if self.how == "far":
            point[1, 0] += 10
        if self.how == "barely":
            point[1, 0] += self.epsilon * (1 + 1e-6)
        if self.how == "outside":
            point[2] = 1 + 1e-6
        if self.how == "nan":
            point[0, 0] = torch.nan
        if self.how == "shape":
            point = point[0]
        if self.how == "writes":
            x += 0.01
            y += 1
        if self.how == "trains":
            with torch.no_grad():
                smoother.model[0].weight.add_(1.0)
        if self.how == "backward":
            point.requires_grad_()
            smoother.probabilities(point, noise)[:, 0].sum().backward()
            point = (point + 1e-3 * point.grad.sign()).clamp(0, 1)
        return Attacked(point, noise)


@pytest.mark.parametrize(
    ("how", "epsilon", "words"),
    [
        (
            "far",
            0.1,
            r"Foreign must stay within epsilon=0.1 of x in l2, got distance 10.0 at index 1",
        ),
        ("barely", 0.1, r"must stay within epsilon=0.1 of x"),
        ("outside", 9.0, r"must stay in the box \[0, 1\], got 1.00000\d* at index \(2, 0\)"),
        ("nan", 0.1, r"must stay within epsilon=0.1 of x in l2, got distance nan at index 0"),
        ("shape", 0.1, r"must return points of shape \(3, 4\), got \(4,\)"),
        ("trains", 0.1, "Foreign must leave the model's weights alone"),
    ],
)
def test_an_attack_that_left_its_budget_is_not_scored(how, epsilon, words):
    attack = Foreign(epsilon=epsilon, steps=1, how=how)
    with pytest.raises(ValueError, match=words):
        attacks.evaluate(smoother(), attack, [(X, Y)], n=100)
    with pytest.raises(ValueError, match=words):
        Adversarial(attack=attack, law=Gaussian(0.25), num_classes=3)(smoother().model, X, Y)


def test_what_an_attack_writes_into_is_its_own():
    honest = attacks.evaluate(smoother(), PGD(epsilon=0, steps=1), [(X, Y)], n=100)
    x, y = X.clone(), Y.clone()
    result = attacks.evaluate(
        smoother(), Foreign(epsilon=1, steps=1, how="writes"), [(x, y)], n=100
    )
    assert torch.equal(x, X)
    assert torch.equal(y, Y)
    assert torch.equal(result.y, Y)
    assert torch.equal(result.certificate.radius, honest.certificate.radius)


def test_gradients_are_at_hand_and_leave_nothing_behind():
    attack = Foreign(epsilon=1, steps=1, how="backward")
    target = smoother()
    result = attacks.evaluate(target, attack, [(X, Y)], n=100)
    assert (result.distance > 0).all()
    assert all(parameter.grad is None for parameter in target.model.parameters())
    kept = torch.ones_like(target.model[0].weight)
    target.model[0].weight.grad = kept
    with torch.no_grad():
        attacks.evaluate(target, attack, [(X, Y)], n=100)
    assert target.model[0].weight.grad is kept
    assert torch.equal(kept, torch.ones_like(kept))
    assert target.model[2].weight.grad is None
    assert target.model.training


def test_training_sees_the_gradient_of_the_loss_alone():
    """An attack that runs ``backward`` through the model adds nothing to what training descends."""
    law, still = Gaussian(0.25), Foreign(epsilon=1, steps=1)
    model = smoother().model.eval()
    grads = []
    for how in ("", "backward"):
        loss = Adversarial(attack=replace(still, how=how), law=law, num_classes=3)
        torch.manual_seed(0)
        value = loss(model, X, Y)
        assert all(parameter.grad is None for parameter in model.parameters())
        grads.append(torch.autograd.grad(value, model[0].weight)[0])
    assert not torch.equal(*grads)  # another point


class Supremum(Gaussian):
    """A law whose radius is measured in the largest coordinate."""

    norm = "linf"


class Odd(Laplace):
    @property
    def norm(self):  # past the check of the class
        return "l0.5"


@pytest.mark.parametrize(("law", "norm"), [(Supremum(0.25), "linf"), (Odd(0.25), "l0.5")])
def test_only_balls_of_known_norms_are_attacked(law, norm):
    target, attack = smoother(law), SmoothAdvPGD(epsilon=0.1, steps=2, samples=2)
    words = rf"norm of the law must be one of 'l1', 'l2', got '{norm}'"
    with pytest.raises(ValueError, match=words):
        attack(target, X, Y)
    with pytest.raises(ValueError, match=words):
        attacks.evaluate(target, attack, [(X, Y)], n=100)
    with pytest.raises(ValueError, match=words):
        Adversarial(attack=attack, law=law, num_classes=3)(target.model, X, Y)
