"""Small networks of the shapes people train, in plain torch, each trained a little.

A random network hardly depends on its input, so that a wrong engine could agree with it; these tell
apart the five shapes that `drawings` draws. Channel counts are no multiples of 16 on purpose.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.digits.litecnn import LiteCNNPro
from tasks.models.threads import one_thread

CLASSES = 5


# --- images ----------------------------------------------------------------------------------


def drawings(count: int, size: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """(images [count, 3, height, width] with mean about 0 and deviation about 1, labels [count]):
    disc, ring, cross, and stripes down and across, in random colours, places, sizes and noise.
    """
    random = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=random) * (high - low) + low

    height, width = size
    down = torch.linspace(-1, 1, height)[None, :, None] - uniform(-0.3, 0.3, 1, 1)
    across = torch.linspace(-1, 1, width)[None, None, :] - uniform(-0.3, 0.3, 1, 1)
    scale, radius = uniform(0.4, 0.6, 1, 1), (down**2 + across**2).sqrt()
    inside = (down.abs() < scale) & (across.abs() < scale)
    arm = scale / 4
    masks = torch.stack(
        [
            radius < scale,
            (radius - scale).abs() < arm / 2,
            inside & ((down.abs() < arm) | (across.abs() < arm)),
            torch.sin(down * 8 / scale).expand(-1, -1, width) > 0,
            torch.sin(across * 8 / scale).expand(-1, height, -1) > 0,
        ],
        dim=1,
    )
    labels = torch.randint(CLASSES, (count,), generator=random)
    mask = masks[torch.arange(count), labels][:, None].float()
    paper, ink = uniform(-1, 0, 3, 1, 1), uniform(0.5, 2, 3, 1, 1)
    noise = torch.randn(count, 3, height, width, generator=random)
    return paper + mask * ink + 0.2 * noise, labels


# --- parts -----------------------------------------------------------------------------------


def convolution(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    activation: Callable[[], nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution, batch norm and, if any, the activation; the sides shrink by the stride alone."""
    layers: list[nn.Module] = [
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class SqueezeExcitation(nn.Module):
    """The gate of Hu et al. 2018, by 1x1 convolutions."""

    def __init__(self, channels: int, hidden: int, activation: nn.Module, gate: nn.Module) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.squeeze = nn.Conv2d(channels, hidden, 1)
        self.activation = activation
        self.excite = nn.Conv2d(hidden, channels, 1)
        self.gate = gate

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.gate(self.excite(self.activation(self.squeeze(self.pool(x)))))
        return scale * x


class StochasticDepth(nn.Module):
    """Leaves a whole branch out while training (Huang et al. 2016)."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = torch.rand(x.shape[0], 1, 1, 1) >= self.probability
        return x * keep / (1 - self.probability)


class Residual(nn.Module):
    """shortcut(x) + branch(x), then an activation."""

    def __init__(
        self,
        branch: nn.Module,
        shortcut: nn.Module | None = None,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut or nn.Identity()
        self.activation = activation or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.branch(x) + self.shortcut(x))
        return y


def head(channels: int, *before_last: nn.Module) -> nn.Sequential:
    """Mean over the image, then the classes."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), *before_last, nn.Linear(channels, CLASSES)
    )


# --- networks --------------------------------------------------------------------------------


def litecnn_pro() -> nn.Module:
    """Squeeze-and-excitation written with views and linear layers."""
    return LiteCNNPro(CLASSES, width=0.3)


def resnet_basic() -> nn.Module:
    """He et al. 2015: two 3x3 convolutions a block, max pooling after the stem."""

    def block(inputs: int, outputs: int, stride: int) -> nn.Module:
        branch = nn.Sequential(
            convolution(inputs, outputs, 3, stride),
            convolution(outputs, outputs, activation=None),
        )
        shortcut = None
        if stride > 1 or inputs != outputs:
            shortcut = convolution(inputs, outputs, 1, stride, activation=None)
        return Residual(branch, shortcut, nn.ReLU(inplace=True))

    return nn.Sequential(
        convolution(3, 20, 7, 2),
        nn.MaxPool2d(3, 2, 1),
        block(20, 20, 1),
        block(20, 36, 2),
        block(36, 36, 1),
        head(36),
    )


def resnet_bottleneck() -> nn.Module:
    """He et al. 2015: 1x1, 3x3, 1x1, the last four times as wide."""

    def block(inputs: int, width: int, stride: int) -> nn.Module:
        branch = nn.Sequential(
            convolution(inputs, width, 1),
            convolution(width, width, 3, stride),
            convolution(width, 4 * width, 1, activation=None),
        )
        shortcut = None
        if stride > 1 or inputs != 4 * width:
            shortcut = convolution(inputs, 4 * width, 1, stride, activation=None)
        return Residual(branch, shortcut, nn.ReLU(inplace=True))

    return nn.Sequential(
        convolution(3, 16, 3, 2), block(16, 12, 1), block(48, 12, 1), block(48, 18, 2), head(72)
    )


def mobilenet_v2() -> nn.Module:
    """Sandler et al. 2018: inverted residuals, linear at their ends, ReLU6."""

    def block(inputs: int, outputs: int, stride: int, expansion: int) -> nn.Module:
        width = inputs * expansion
        branch = nn.Sequential(
            *([convolution(inputs, width, 1, activation=nn.ReLU6)] if expansion > 1 else []),
            convolution(width, width, 3, stride, width, nn.ReLU6),
            convolution(width, outputs, 1, activation=None),
        )
        return Residual(branch) if stride == 1 and inputs == outputs else branch

    return nn.Sequential(
        convolution(3, 12, 3, 2, activation=nn.ReLU6),
        block(12, 10, 1, 1),
        block(10, 18, 2, 6),
        block(18, 18, 1, 6),
        block(18, 28, 2, 6),
        convolution(28, 120, 1, activation=nn.ReLU6),
        head(120, nn.Dropout(0.2)),
    )


def mobilenet_v3() -> nn.Module:
    """Howard et al. 2019: hardswish, and gates by hardsigmoid."""

    def block(
        inputs: int,
        width: int,
        outputs: int,
        kernel: int,
        stride: int,
        activation: Callable[[], nn.Module],
    ) -> nn.Module:
        gate = SqueezeExcitation(width, 8, nn.ReLU(), nn.Hardsigmoid())
        branch = nn.Sequential(
            convolution(inputs, width, 1, activation=activation),
            convolution(width, width, kernel, stride, width, activation),
            gate,
            convolution(width, outputs, 1, activation=None),
        )
        return Residual(branch) if stride == 1 and inputs == outputs else branch

    return nn.Sequential(
        convolution(3, 12, 3, 2, activation=nn.Hardswish),
        block(12, 20, 12, 3, 1, nn.ReLU),
        block(12, 40, 22, 5, 2, nn.Hardswish),
        block(22, 60, 22, 5, 1, nn.Hardswish),
        convolution(22, 70, 1, activation=nn.Hardswish),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(70, 90),
        nn.Hardswish(inplace=True),
        nn.Dropout(0.2),
        nn.Linear(90, CLASSES),
    )


def efficientnet() -> nn.Module:
    """Tan and Le 2019: SiLU, gates by sigmoid, stochastic depth."""

    def block(inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> nn.Module:
        width = inputs * expansion
        layers = [
            convolution(inputs, width, 1, activation=nn.SiLU),
            convolution(width, width, kernel, stride, width, nn.SiLU),
            SqueezeExcitation(width, max(1, inputs // 4), nn.SiLU(), nn.Sigmoid()),
            convolution(width, outputs, 1, activation=None),
        ]
        if stride == 1 and inputs == outputs:
            return Residual(nn.Sequential(*layers, StochasticDepth(0.1)))
        return nn.Sequential(*layers)

    return nn.Sequential(
        convolution(3, 14, 3, 2, activation=nn.SiLU),
        block(14, 14, 3, 1, 1),
        block(14, 20, 3, 2, 4),
        block(20, 20, 5, 1, 4),
        block(20, 34, 5, 2, 4),
        convolution(34, 100, 1, activation=nn.SiLU),
        head(100, nn.Dropout(0.2)),
    )


class ShuffleUnit(nn.Module):
    """Ma et al. 2018, figure 3: half of the channels pass by; then the channels are shuffled."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        half = outputs // 2
        self.stride = stride
        self.passing = nn.Sequential()
        if stride > 1:
            self.passing = nn.Sequential(
                convolution(inputs, inputs, 3, stride, inputs, None), convolution(inputs, half, 1)
            )
        branched = inputs if stride > 1 else inputs // 2
        self.branch = nn.Sequential(
            convolution(branched, half, 1),
            convolution(half, half, 3, stride, half, None),
            convolution(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            passing, branched = x.chunk(2, dim=1)
            x = torch.cat((passing, self.branch(branched)), dim=1)
        else:
            x = torch.cat((self.passing(x), self.branch(x)), dim=1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width)
        return torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)


def shufflenet_v2() -> nn.Module:
    """Ma et al. 2018."""
    return nn.Sequential(
        convolution(3, 18, 3, 2),
        nn.MaxPool2d(3, 2, 1),
        ShuffleUnit(18, 36, 2),
        ShuffleUnit(36, 36, 1),
        ShuffleUnit(36, 36, 1),
        ShuffleUnit(36, 60, 2),
        ShuffleUnit(60, 60, 1),
        convolution(60, 90, 1),
        head(90),
    )


class DenseLayer(nn.Module):
    """Huang et al. 2017: norm and ReLU before each convolution; the input stays beside."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(inputs, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth),
            nn.ReLU(inplace=True),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], 1)


def densenet() -> nn.Module:
    """Huang et al. 2017: batch norms that follow no convolution, average pooling between blocks."""

    def block(inputs: int, layers: int, growth: int) -> list[nn.Module]:
        return [DenseLayer(inputs + i * growth, growth) for i in range(layers)]

    return nn.Sequential(
        convolution(3, 20, 3, 2),
        *block(20, 3, 10),
        nn.BatchNorm2d(50),
        nn.ReLU(),
        nn.Conv2d(50, 25, 1, bias=False),
        nn.AvgPool2d(2, 2),
        *block(25, 3, 10),
        nn.BatchNorm2d(55),
        nn.ReLU(inplace=True),
        head(55),
    )


class Fire(nn.Module):
    """Iandola et al. 2016: 1x1, then 1x1 and 3x3 beside each other."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.squeeze(x))
        both = [self.activation(self.expand1x1(x)), self.activation(self.expand3x3(x))]
        return torch.cat(both, 1)


def squeezenet() -> nn.Module:
    """Iandola et al. 2016: no batch norm, pooling that rounds up, classes by a convolution."""
    network = nn.Sequential(
        nn.Conv2d(3, 24, 3, 2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(24, 10, 22),
        Fire(44, 10, 22),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        Fire(44, 14, 30),
        nn.Dropout(0.2),
        nn.Conv2d(60, CLASSES, 1),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
    )
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return network


def vgg() -> nn.Module:
    """Simonyan and Zisserman 2014: the image is flattened, not averaged."""
    return nn.Sequential(
        convolution(3, 12),
        nn.MaxPool2d(2, 2),
        convolution(12, 24),
        nn.MaxPool2d(2, 2),
        convolution(24, 40),
        convolution(40, 40),
        nn.MaxPool2d(2, 2),
        nn.AdaptiveAvgPool2d((3, 3)),
        nn.Flatten(),
        nn.Linear(360, 70),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(70, CLASSES),
    )


def regnet() -> nn.Module:
    """Radosavovic et al. 2020: grouped convolutions, and in the Y variant gates."""

    def block(inputs: int, outputs: int, stride: int, group: int) -> nn.Module:
        branch = nn.Sequential(
            convolution(inputs, outputs, 1),
            convolution(outputs, outputs, 3, stride, outputs // group),
            SqueezeExcitation(outputs, inputs // 4, nn.ReLU(), nn.Sigmoid()),
            convolution(outputs, outputs, 1, activation=None),
        )
        shortcut = None
        if stride > 1 or inputs != outputs:
            shortcut = convolution(inputs, outputs, 1, stride, activation=None)
        return Residual(branch, shortcut, nn.ReLU(inplace=True))

    return nn.Sequential(
        convolution(3, 16, 3, 2),
        block(16, 24, 2, 8),
        block(24, 24, 1, 8),
        block(24, 56, 2, 8),
        block(56, 56, 1, 8),
        head(56),
    )


class LayerNorm2d(nn.Module):
    """Over the channels of each pixel, written as in ConvNeXt's own code."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNeXtBlock(nn.Module):
    """Liu et al. 2022, figure 4: its linear layers see the channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, 4 * channels)
        self.activation = nn.GELU()
        self.reduce = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), 0.1))
        self.depth = StochasticDepth(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.reduce(self.activation(self.expand(self.norm(y))))
        y = (self.scale * y).permute(0, 3, 1, 2)
        return x + self.depth(y)


def convnext() -> nn.Module:
    """Liu et al. 2022."""
    return nn.Sequential(
        nn.Conv2d(3, 20, 4, 4),
        LayerNorm2d(20),
        ConvNeXtBlock(20),
        ConvNeXtBlock(20),
        LayerNorm2d(20),
        nn.Conv2d(20, 36, 2, 2),
        ConvNeXtBlock(36),
        head(36, nn.LayerNorm(36, eps=1e-6)),
    )


# Name -> (the network, height and width of its input).
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "LiteCNNPro": (litecnn_pro, (48, 48)),
    "ResNet, basic": (resnet_basic, (56, 56)),
    "ResNet, bottleneck": (resnet_bottleneck, (40, 40)),
    "MobileNetV2": (mobilenet_v2, (40, 40)),
    "MobileNetV3": (mobilenet_v3, (40, 40)),
    "EfficientNet": (efficientnet, (36, 36)),
    "ShuffleNetV2": (shufflenet_v2, (64, 64)),
    "DenseNet": (densenet, (32, 32)),
    "SqueezeNet": (squeezenet, (47, 53)),
    "VGG": (vgg, (32, 32)),
    "RegNet": (regnet, (48, 40)),
    "ConvNeXt": (convnext, (48, 48)),
}


def input_shape(name: str) -> tuple[int, int, int, int]:
    """What a network takes."""
    return (1, 3, *NETWORKS[name][1])


@functools.cache
def trained(name: str) -> nn.Module:
    """A network of NETWORKS in eval mode, trained a little; the same one for all who ask."""
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    network = make()
    train_a_little(network, size)
    return network


@one_thread()
@torch.enable_grad()
def train_a_little(network: nn.Module, size: tuple[int, int], steps: int = 40) -> None:
    """Train on drawings of `size`, then take batch norm's statistics of the final weights."""
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for step in range(steps):
        images, labels = drawings(24, size, step)
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all batches
    with torch.no_grad():
        for step in range(4):
            network(drawings(24, size, steps + step)[0])
    network.eval()
