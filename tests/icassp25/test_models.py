"""The networks against the published parameter counts and shapes, and a plain rewriting of their arithmetic."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from icassp25.config import RunConfig
from icassp25.models import PyramidNet, Transformer, WideResNet, build_model, has_batch_norm


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("depth", "width", "parameters"),
    [
        (10, 1, 181_172),
        (16, 1, 278_388),
        (16, 4, 4_322_100),
        (16, 8, 17_204_276),
        (28, 10, 46_218_164),
        (40, 8, 41_991_220),
    ],
)
def test_wide_resnet_parameters(depth: int, width: int, parameters: int) -> None:
    with torch.device("meta"):
        assert count(WideResNet(depth, width)) == parameters


@pytest.mark.parametrize(
    ("depth", "alpha", "bottleneck", "parameters", "features"),
    [
        (110, 40, False, 1_420_864, 56),
        (110, 48, False, 1_778_556, 64),
        (20, 40, False, 253_042, 56),
        (164, 48, True, 1_738_572, 256),
    ],
)
def test_pyramidnet_parameters(
    depth: int, alpha: int, bottleneck: bool, parameters: int, features: int
) -> None:
    with torch.device("meta"):
        model = PyramidNet(depth, alpha, bottleneck)
    assert count(model) == parameters
    assert model.classifier.in_features == features


def test_build_model_defaults() -> None:
    with torch.device("meta"):
        assert count(build_model(RunConfig())) == 17_204_276
        assert count(build_model(RunConfig(model="Pyramid"))) == 1_420_864
        assert (
            count(build_model(RunConfig(model="Pyramid", depth=164, width_alpha=48, bottleneck=True)))
            == 1_738_572
        )


def test_wide_resnet_initialisation() -> None:
    torch.manual_seed(0)
    model = WideResNet(10, 4)
    assert not model.classifier.weight.any() and not model.classifier.bias.any()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            fan_in = module.in_channels * module.kernel_size[0] ** 2
            if module.weight.numel() > 5000:
                assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()


def test_wide_resnet_forward_is_the_written_out_network() -> None:
    torch.manual_seed(0)
    model = WideResNet(10, 1).eval()
    nn.init.normal_(model.classifier.weight)
    x = torch.randn(2, 3, 32, 32)

    def norm_relu(norm: nn.BatchNorm2d, h: torch.Tensor) -> torch.Tensor:
        return F.relu(h / (1 + norm.eps) ** 0.5)  # statistics 0/1, weight 1, bias 0

    h = F.conv2d(x, model.stem.weight, padding=1)
    for index, unit in enumerate(model.units):
        first = index % 2 == 0
        stride = 2 if index in (2, 4) else 1
        a = norm_relu(unit.norm1, h)
        residual = F.conv2d(a, unit.shortcut.weight, stride=stride) if first else h
        b = norm_relu(unit.norm2, F.conv2d(a, unit.conv1.weight, stride=stride, padding=1))
        h = residual + F.conv2d(b, unit.conv2.weight, padding=1)
    assert h.shape == (2, 64, 8, 8)
    expected = norm_relu(model.norm, h).mean((2, 3)) @ model.classifier.weight.T
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_dropout_is_inside_the_units() -> None:
    torch.manual_seed(0)
    model = WideResNet(4, 1, dropout=0.3)
    probabilities = [m.p for m in model.modules() if isinstance(m, nn.Dropout)]
    assert probabilities == [0.3] * 3
    nn.init.normal_(model.classifier.weight)
    x = torch.randn(2, 3, 32, 32)
    assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize("bottleneck", [False, True])
def test_pyramidnet_shortcuts_pad_and_pool(bottleneck: bool) -> None:
    torch.manual_seed(0)
    model = PyramidNet(11 if bottleneck else 8, 30, bottleneck).eval()
    x = torch.randn(2, 3, 32, 32)
    h = model.stem(x)
    for index, unit in enumerate(model.units):
        padded = F.avg_pool2d(h, 2) if index else h
        padded = F.pad(padded, (0, 0, 0, 0, 0, unit.residual[-1].num_features - h.shape[1]))
        expected = unit.residual(h) + padded
        h = unit(h)
        torch.testing.assert_close(h, expected)
    widths = [26, 36, 46]
    assert [u.residual[-1].num_features for u in model.units] == [
        w * (4 if bottleneck else 1) for w in widths
    ]
    assert model(x).shape == (2, 100)


def transformer(dropout: float = 0.0) -> Transformer:
    torch.manual_seed(0)
    return Transformer(depth=2, width=64, dropout=dropout, classes=97)


def test_transformer_sees_no_later_character() -> None:
    model = transformer().double().eval()
    one = torch.randint(97, (3, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(one)
        assert before.shape == (3, 97, 64)
        for place in (0, 20, 63):
            other = one.clone()
            other[:, place] = (other[:, place] + 1) % 97
            after = model(other)
            torch.testing.assert_close(after[:, :, :place], before[:, :, :place], rtol=0, atol=1e-12)
            changed = (after - before).abs().amax((0, 1))
            assert (changed[place:] > 1e-6).all()  # the character itself and all behind it


def test_transformer_starts_at_guessing_and_learns_a_batch() -> None:
    model = transformer()
    width, layer = 64, 12 * 64**2 + 13 * 64
    assert count(model) == 97 * width + 64 * width + 2 * layer + 2 * width
    characters = torch.randint(97, (8, 65), generator=torch.Generator().manual_seed(1))
    inputs, targets = characters[:, :-1], characters[:, 1:]
    losses = []
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    for _ in range(100):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(97), abs=0.05)
    assert losses[-1] < 0.5


def test_transformer_dropout_is_for_training_only() -> None:
    model, inputs = transformer(dropout=0.5), torch.zeros(1, 64, dtype=torch.int64)
    assert not torch.equal(model(inputs), model(inputs))
    model.eval()
    assert torch.equal(model(inputs), model(inputs))


def test_mlp() -> None:
    model = build_model(RunConfig(dataset="digits"))
    assert count(model) == 2 * (64 * 64 + 64) + 64 * 10 + 10
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert model(torch.zeros(5, 64)).shape == (5, 10)


def test_which_models_have_running_statistics() -> None:
    with torch.device("meta"):
        found = {
            name: has_batch_norm(build_model(RunConfig(dataset=name)))
            for name in ("cifar100", "text", "digits")
        }
    assert found == {"cifar100": True, "text": False, "digits": False}
