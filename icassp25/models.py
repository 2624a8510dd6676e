"""The networks: a wide residual network and a PyramidNet for 32×32 images, a transformer for text, an MLP for digits.

The first two take float [n, 3, 32, 32], the transformer int64 [n, context], the MLP float [n, 64]. All return logits
[n, classes], the transformer [n, classes, context]: the classes second, as torch's cross entropy has them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from icassp25.config import CLASSES, CONTEXT, HEADS, RunConfig

STEM_CHANNELS = 16
BOTTLENECK_EXPANSION = 4
GPT2_DEVIATION = 0.02  # of GPT-2's initial weights
DIGIT_PIXELS = 64


def build_model(config: RunConfig, classes: int | None = None) -> nn.Module:
    """The network that `config` asks for, initialised from torch's global generator."""
    classes = classes or config.about.classes
    if config.model == "WRN":
        return WideResNet(config.depth, config.width_alpha, config.dropout, classes)
    if config.model == "Pyramid":
        return PyramidNet(config.depth, config.width_alpha, config.bottleneck, classes)
    if config.model == "transformer":
        return Transformer(config.depth, config.width_alpha, config.dropout, classes)
    return mlp(config.depth, config.width_alpha, classes)


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
    stage at width 1, where the shape stays. `depth` is 6n + 4, `width` a factor on the stages' 16, 32 and 64
    channels; dropout is between the two convolutions of a unit.
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

    `depth` is 6n + 2, or 9n + 2 with `bottleneck`, for n units in each of three stages; `alpha` the channels added
    over all units, in equal steps (rounded to whole channels at each). A bottleneck's convolutions are 1×1, 3×3 and
    1×1, and its output is four times as wide.
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


class TransformerLayer(nn.Module):
    """Causal self-attention and a perceptron four times as wide, each behind its norm and beside its shortcut."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.attend = nn.Linear(width, 3 * width)
        self.project1 = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.project2 = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        heads = self.attend(self.norm1(x)).view(n, length, 3, self.heads, width // self.heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        probability = self.dropout.p if self.training else 0.0
        h = F.scaled_dot_product_attention(query, key, value, dropout_p=probability, is_causal=True)
        x = x + self.dropout(self.project1(h.transpose(1, 2).reshape(n, length, width)))
        return x + self.dropout(self.project2(F.gelu(self.widen(self.norm2(x)))))


class Transformer(nn.Module):
    """Decoder that predicts each next character, as GPT-2 (Radford et al., *Language Models are Unsupervised
    Multitask Learners*, 2019): pre-norm, learned positions, GELU, output weights tied to the embedding.

    Initialised as GPT-2: weights from N(0, 0.02²), those of the projections back into the shortcut divided by
    √(2 · depth), biases 0. `width` is a multiple of 4, the number of heads; dropout is at the embedding, in the
    attention and before each shortcut.
    """

    def __init__(self, depth: int, width: int, dropout: float, classes: int, context: int = CONTEXT) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.Sequential(*(TransformerLayer(width, HEADS, dropout) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                shortcut = "project" in name
                nn.init.normal_(module.weight, std=GPT2_DEVIATION / (math.sqrt(2 * depth) if shortcut else 1))
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, characters: Tensor) -> Tensor:
        x = self.embedding(characters) + self.positions.weight[: characters.shape[1]]
        h = self.norm(self.layers(self.dropout(x)))
        return F.linear(h, self.embedding.weight).transpose(1, 2)


def mlp(depth: int, width: int, classes: int, inputs: int = DIGIT_PIXELS) -> nn.Module:
    """`depth` hidden layers of `width` ReLUs between [n, inputs] and logits [n, classes]; torch's initialisation."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, classes))


def has_batch_norm(model: nn.Module) -> bool:
    """Whether the model has running statistics, which belong to the weights they were taken at."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def synchronised(model: nn.Module) -> nn.Module:
    """`model`, its batch norms taking their statistics over the batches of all processes together.

    On GPUs by torch's `SyncBatchNorm`, which refuses the CPU; there by `GlobalBatchNorm2d`. Parameters and buffers
    keep their names, so state dicts fit both ways.
    """
    if next(model.parameters()).is_cuda:
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                norm = GlobalBatchNorm2d(child.num_features, child.eps, child.momentum).to(child.weight)
                norm.load_state_dict(child.state_dict())
                setattr(parent, name, norm)
    return model


class GlobalBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` over the batches of all processes of the default group, as if they were one.

    The processes hold equally many images. The gradients of weight and bias are this process's part, for
    DistributedDataParallel to average. All is computed in the weights' dtype, where `x` has 16 bits too.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        size, values = dist.get_world_size(), x.to(self.weight.dtype)
        mean = _Sum.apply(values.mean((0, 2, 3), keepdim=True)) / size
        centred = values - mean
        variance = _Sum.apply(centred.square().mean((0, 2, 3), keepdim=True)) / size
        with torch.no_grad():
            count = size * x.numel() // x.shape[1]
            self.running_mean.lerp_(mean.flatten(), self.momentum)
            self.running_var.lerp_(variance.flatten() * count / (count - 1), self.momentum)
            self.num_batches_tracked += 1
        normalised = centred * (variance + self.eps).rsqrt()
        return (normalised * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)).to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes, which its gradient is as well."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)
