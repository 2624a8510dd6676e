"""The two networks of the experiment: a wide residual network and a PyramidNet, for 32×32 images.

Both take float [n, 3, 32, 32] and return logits [n, classes].
"""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional as F

from icassp25.config import CLASSES, RunConfig

STEM_CHANNELS = 16
BOTTLENECK_EXPANSION = 4


def build_model(config: RunConfig, classes: int = CLASSES) -> nn.Module:
    """The network that `config` asks for, initialised from torch's global generator."""
    if config.model == "WRN":
        return WideResNet(config.depth, config.width_alpha, config.dropout, classes)
    return PyramidNet(config.depth, config.width_alpha, config.bottleneck, classes)


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)


class WideUnit(nn.Module):
    """Pre-activation residual unit; the first of a stage normalises before both of its branches."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float, first: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = _conv(inputs, outputs, 3, stride)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _conv(outputs, outputs, 3)
        self.shortcut = _conv(inputs, outputs, 1, stride) if first else None

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(x))
        residual = x if self.shortcut is None else self.shortcut(h)
        h = F.relu(self.norm2(self.conv1(h)))
        return residual + self.conv2(self.dropout(h))


class WideResNet(nn.Module):
    """Wide residual network (Zagoruyko and Komodakis, BMVC 2016) as the ACME publication built it.

    Each of the three stages is a unit that changes the shape, then (depth - 4)//6 units that do not. That is one
    unit more than the depth promises: "16-8" here is what the literature calls WRN-22-8, and the published
    numbers depend on it. The first unit of a stage has a 1×1 convolution as its shortcut, even in the first
    stage at width 1, where the shape stays.

    Args:
        depth: 6n + 4.
        width: factor on the stages' 16, 32 and 64 channels.
        dropout: probability, between the two convolutions of a unit.
    """

    def __init__(self, depth: int, width: int, dropout: float = 0.0, classes: int = CLASSES) -> None:
        super().__init__()
        units: list[nn.Module] = []
        channels = STEM_CHANNELS
        for stage, stride in enumerate((1, 2, 2)):
            outputs = STEM_CHANNELS * 2**stage * width
            units.append(WideUnit(channels, outputs, stride, dropout, first=True))
            units.extend(WideUnit(outputs, outputs, 1, dropout, first=False) for _ in range((depth - 4) // 6))
            channels = outputs
        self.stem = _conv(3, STEM_CHANNELS, 3)
        self.units = nn.Sequential(*units)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.units(self.stem(x))))
        return self.classifier(F.avg_pool2d(h, 8).flatten(1))


class PyramidUnit(nn.Module):
    """PyramidNet's unit: no activation before the first convolution, a norm behind the last, padded shortcut."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = width * BOTTLENECK_EXPANSION if bottleneck else width
        if bottleneck:
            convolutions = [_conv(inputs, width, 1), _conv(width, width, 3, stride), _conv(width, outputs, 1)]
        else:
            convolutions = [_conv(inputs, width, 3, stride), _conv(width, outputs, 3)]
        layers: list[nn.Module] = [nn.BatchNorm2d(inputs)]
        for number, convolution in enumerate(convolutions):
            if number:
                layers.append(nn.ReLU())
            layers += [convolution, nn.BatchNorm2d(convolution.out_channels)]
        self.residual = nn.Sequential(*layers)
        self.pool = nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Identity()
        self.padding = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x) + F.pad(self.pool(x), (0, 0, 0, 0, 0, self.padding))


class PyramidNet(nn.Module):
    """PyramidNet with additive widening (Han, Kim and Kim, *Deep Pyramidal Residual Networks*, CVPR 2017).

    Args:
        depth: 6n + 2, or 9n + 2 with `bottleneck`, for n units in each of three stages.
        alpha: channels added over all units, in equal steps (rounded to whole channels at each unit).
        bottleneck: units of 1×1, 3×3, 1×1 convolutions whose output is four times as wide.
    """

    def __init__(self, depth: int, alpha: int, bottleneck: bool = False, classes: int = CLASSES) -> None:
        super().__init__()
        count = (depth - 2) // (9 if bottleneck else 6)
        expansion = BOTTLENECK_EXPANSION if bottleneck else 1
        channels = STEM_CHANNELS
        units: list[nn.Module] = []
        for index in range(3 * count):
            width = round(STEM_CHANNELS + alpha * (index + 1) / (3 * count))
            stride = 2 if index in (count, 2 * count) else 1
            units.append(PyramidUnit(channels, width, stride, bottleneck))
            channels = width * expansion
        self.stem = nn.Sequential(_conv(3, STEM_CHANNELS, 3), nn.BatchNorm2d(STEM_CHANNELS))
        self.units = nn.Sequential(*units)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.units(self.stem(x))))
        return self.classifier(F.avg_pool2d(h, 8).flatten(1))
