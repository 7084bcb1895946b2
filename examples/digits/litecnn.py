"""LiteCNNPro: depthwise-separable convolutions with squeeze-and-excitation, about 1 M parameters.

MobileNet (Howard et al. 2017) blocks with the gate of Hu et al. 2018; at width 1 and 130 classes
it has 1,048,770 parameters.
"""

import torch
from torch import Tensor, nn

# Output channels and stride of each block at width 1; the stem makes STEM channels.
STEM = 32
BLOCKS = [(64, 2), (128, 1), (128, 2), (256, 1), (256, 2), (512, 1), (512, 2)]
HIDDEN = 256


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate computed from the mean of all channels."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(
            nn.Linear(channels, channels // reduction, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(channels // reduction, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        batch, channels, _, _ = x.shape
        gate: Tensor = self.gate(self.pool(x).view(batch, channels))
        return x * gate.view(batch, channels, 1, 1)


class Block(nn.Module):
    """Depthwise 3×3, ReLU6, pointwise 1×1, squeeze-and-excitation, ReLU6."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.pointwise_norm = nn.BatchNorm2d(outputs)
        self.excitation = SqueezeExcitation(outputs)
        self.activation = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]."""
        x = self.activation(self.depthwise_norm(self.depthwise(x)))
        x = self.excitation(self.pointwise_norm(self.pointwise(x)))
        y: Tensor = self.activation(x)
        return y


class LiteCNNPro(nn.Module):
    """RGB images [N, 3, H, W] -> logits [N, num_classes].

    `width` scales the channels of the stem, of every block and of the head's hidden layer; the
    three input channels and the classes stay.
    """

    def __init__(self, num_classes: int, width: float = 1.0, dropout: float = 0.2) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(8, int(channels * width))

        self.stem = nn.Sequential(
            nn.Conv2d(3, scaled(STEM), 3, 2, 1, bias=False),
            nn.BatchNorm2d(scaled(STEM)),
            nn.ReLU6(inplace=True),
        )
        channels = [scaled(STEM), *(scaled(outputs) for outputs, _ in BLOCKS)]
        self.blocks = nn.Sequential(
            *(Block(channels[i], channels[i + 1], stride) for i, (_, stride) in enumerate(BLOCKS))
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(
            nn.Linear(channels[-1], scaled(HIDDEN)),
            nn.ReLU6(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(scaled(HIDDEN), num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        x = self.pool(self.blocks(self.stem(x)))
        logits: Tensor = self.head(torch.flatten(x, 1))
        return logits
