"""The networks the inference benchmark runs: plain torch, random weights, sane activations.

MobileNetV2 (Sandler et al. 2018) and ResNet18 (He et al. 2015) are the standard configurations, as
torchvision's `mobilenet_v2` and `resnet18` have them; LiteCNNPro is the example's.
"""

import torch
from torch import Tensor, nn

from examples.digits.litecnn import LiteCNNPro

# Expansion, output channels, repeats and stride of each stage: table 2 of the MobileNetV2 paper.
MOBILENET_STAGES = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
]


def convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """A convolution that keeps the size (but for the stride), and its batch norm."""
    padding = (kernel - 1) // 2
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class InvertedResidual(nn.Module):
    """Expand 1×1, depthwise 3×3, project 1×1; added to its input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [*convolution(inputs, hidden, 1), nn.ReLU6()] if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand,
            *convolution(hidden, hidden, 3, stride, hidden),
            nn.ReLU6(),
            *convolution(hidden, outputs, 1),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


def mobilenet_v2() -> nn.Module:
    """[N, 3, 224, 224] -> [N, 1000]; 3.5 M parameters."""
    layers: list[nn.Module] = [*convolution(3, 32, 3, 2), nn.ReLU6()]
    channels = 32
    for expansion, outputs, repeats, stride in MOBILENET_STAGES:
        for number in range(repeats):
            first_stride = stride if number == 0 else 1
            layers.append(InvertedResidual(channels, outputs, first_stride, expansion))
            channels = outputs
    layers += [*convolution(channels, 1280, 1), nn.ReLU6()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(1280, 1000)]
    return nn.Sequential(*layers)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions, added to the input (through a 1×1 where the shapes differ)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *convolution(inputs, outputs, 3, stride),
            nn.ReLU(),
            *convolution(outputs, outputs, 3),
        )
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Sequential(*convolution(inputs, outputs, 1, stride) if changes else ())

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        return torch.relu(self.layers(x) + self.shortcut(x))


def resnet18() -> nn.Module:
    """[N, 3, 224, 224] -> [N, 1000]; 11.7 M parameters."""
    layers: list[nn.Module] = [*convolution(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for outputs, stride in [(64, 1), (128, 2), (256, 2), (512, 2)]:
        layers += [BasicBlock(channels, outputs, stride), BasicBlock(outputs, outputs, 1)]
        channels = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)]
    return nn.Sequential(*layers)


def litecnn_pro(width: float = 1.0) -> nn.Module:
    """[N, 3, H, W] -> [N, 130]; 1.05 M parameters at width 1."""
    return LiteCNNPro(130, width)


def images(count: int, size: int, seed: int) -> Tensor:
    """[count, 3, size, size]: smooth random fields with noise, about normalised as photographs."""
    random = torch.Generator().manual_seed(seed)
    fields = torch.randn(count, 3, 7, 7, generator=random)
    smooth = nn.functional.interpolate(fields, (size, size), mode="bilinear")
    return smooth + 0.3 * torch.randn(count, 3, size, size, generator=random)


def calibrated(network: nn.Module, size: int) -> nn.Module:
    """The network ready to answer, its batch norms holding the statistics of `images`.

    With them the activations neither vanish nor explode, and the answer depends on the input.
    """
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the plain mean over all batches
    network.train()
    with torch.no_grad():
        for seed in range(2):
            network(images(4, size, seed))
    return network.eval()
