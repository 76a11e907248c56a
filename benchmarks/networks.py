"""Networks of the benchmarks, in plain PyTorch. They take images in [0, 1]: normalisation is their
first layer."""

import torch
from torch import Tensor, nn
from torch.nn import functional

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Normalise(nn.Module):
    """Channels shifted and scaled by constants, which follow the module to its device."""

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Block(nn.Module):
    """Two 3 x 3 convolutions around a shortcut, which pads with zero channels where the size
    halves."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        shortcut = functional.pad(
            x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra)
        )
        return functional.relu(
            self.norm2(self.second(functional.relu(self.norm1(self.first(x))))) + shortcut
        )


def resnet(depth: int, num_classes: int = 10) -> nn.Sequential:
    """The CIFAR residual network of He et al. (2016) for 3 x 32 x 32 images: depth 6 k + 2, such as
    8, 20 or 110."""
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"depth must be 6 k + 2 and at least 8, got {depth!r}")
    layers: list[nn.Module] = [
        Normalise(CIFAR_MEAN, CIFAR_STD),
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
    ]
    width = 16
    for stage, outputs in enumerate((16, 32, 64)):
        for number in range((depth - 2) // 6):
            layers.append(Block(width, outputs, 2 if stage and not number else 1))
            width = outputs
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)
    )


def small_cnn(channels: int = 1, size: int = 28, num_classes: int = 10) -> nn.Sequential:
    """Two strided convolutions and a linear layer, for images such as those of MNIST."""
    side = (size + 3) // 4
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * side * side, num_classes),
    )


def lenet(num_classes: int = 10) -> nn.Sequential:
    """LeNet as the papers on certified training use it on MNIST, for 1 x 28 x 28 images in [0, 1]:
    no normalisation."""
    return nn.Sequential(
        nn.Conv2d(1, 20, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(20, 50, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(800, 500),
        nn.ReLU(),
        nn.Linear(500, num_classes),
    )


def alexnet(num_classes: int = 10) -> nn.Sequential:
    """AlexNet's five convolutions at the widths that 3 x 32 x 32 images leave room for, and one
    linear layer."""
    return nn.Sequential(
        Normalise(CIFAR_MEAN, CIFAR_STD),
        nn.Conv2d(3, 64, 11, stride=4, padding=5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 192, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(256, 256, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(256, num_classes),
    )


class Projected(nn.Module):
    """Two 3 x 3 convolutions around a shortcut, which is a 1 x 1 convolution where the shape
    changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.path(x) + self.shortcut(x))


def resnet18(channels: int = 3, num_classes: int = 10) -> nn.Sequential:
    """ResNet-18 with a 3 x 3 stem, for images of about 32 x 32 in [0, 1]; ``channels`` 1 for
    MNIST."""
    mean, std = (CIFAR_MEAN, CIFAR_STD) if channels == 3 else ((0.1307,), (0.3081,))
    layers: list[nn.Module] = [
        Normalise(mean, std),
        nn.Conv2d(channels, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
    ]
    width = 64
    for stage, outputs in enumerate((64, 128, 256, 512)):
        for number in range(2):
            layers.append(Projected(width, outputs, 2 if stage and not number else 1))
            width = outputs
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)
    )
