"""A diffusion model as a denoiser: the step of a sigma, and its scales."""

import pytest
import torch
from torch import nn

from rsfl.noise import Gaussian
from rsfl.smooth import DiffusionDenoiser, Smoother

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
ALPHAS = (1 - BETAS).cumprod(0)
X = torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Oracle(nn.Module):
    """Knows the clean picture, and says what a diffusion model would say of a noisy one."""

    def __init__(self, clean, predicts, channels=3):
        super().__init__()
        self.clean, self.predicts, self.channels, self.steps = clean, predicts, channels, None

    def forward(self, z, t):
        self.steps = t
        alpha = ALPHAS[t].float().view(-1, 1, 1, 1)
        picture = 2 * self.clean - 1
        noise = (z - alpha.sqrt() * picture) / (1 - alpha).sqrt()
        found = {
            "epsilon": noise,
            "sample": picture,
            "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * picture,
        }[self.predicts]
        self.seen = noise.std()
        return torch.cat([found, found * 0 + 9], 1)[:, : self.channels]


@pytest.mark.parametrize("sigma", [0.05, 0.25, 1.0])
@pytest.mark.parametrize("predicts", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("channels", [3, 6])
def test_an_oracle_gives_the_clean_picture_and_sees_noise_of_norm_one(sigma, predicts, channels):
    oracle = Oracle(X, predicts, channels)
    denoiser = DiffusionDenoiser(oracle, ALPHAS, sigma, predicts=predicts)
    noise = torch.randn(X.shape, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(denoiser(X + sigma * noise), X, atol=1e-4)
    assert float(oracle.seen) == pytest.approx(float(noise.std()), rel=0.02)
    assert set(oracle.steps.tolist()) == {denoiser.step}
    assert oracle.steps.shape == (len(X),)


def test_the_step_is_that_of_the_sigma():
    steps = [DiffusionDenoiser(nn.Identity(), ALPHAS, s).step for s in (0.05, 0.1, 0.25, 0.5, 1.0)]
    assert steps == sorted(steps)
    noise = ((1 - ALPHAS) / ALPHAS).sqrt()
    assert [round(float(noise[t]) / 2, 2) for t in steps] == [0.05, 0.1, 0.25, 0.5, 1.0]
    assert "step=" in repr(DiffusionDenoiser(nn.Identity(), ALPHAS, 0.25))


def test_two_modules_are_one_model():
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    denoiser = DiffusionDenoiser(Oracle(X[:1], "epsilon"), ALPHAS, 0.25)
    model = nn.Sequential(denoiser, classifier)
    found = Smoother(model, Gaussian(0.25), 3, bounds=(0, 1)).certify(X[:1], n=1000)
    assert int(found.label) == int(classifier(X[:1]).argmax())
    assert int(found.counts.max()) == 1000


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((len, ALPHAS, 0.25), TypeError, "network must be a torch.nn.Module"),
        ((nn.Identity(), BETAS, 0.25), ValueError, "alphas must be falling products"),
        ((nn.Identity(), ALPHAS[:10], 0.25), ValueError, "sigma must be at most 0.0"),
        ((nn.Identity(), ALPHAS, -1.0), ValueError, "sigma must lie in"),
    ],
)
def test_what_does_not_fit_is_named(arguments, error, words):
    with pytest.raises(error, match=words):
        DiffusionDenoiser(*arguments)
    narrow = DiffusionDenoiser(Oracle(X, "epsilon", channels=1), ALPHAS, 0.25)
    with pytest.raises(ValueError, match=r"network must return \(6, 3, 4, 4\), or .* got \(6, 1,"):
        narrow(X)  # one channel would be that of all three
    with pytest.raises(ValueError, match="predicts must be one of 'epsilon'"):
        DiffusionDenoiser(nn.Identity(), ALPHAS, 0.25, predicts="noise")
