"""`unbiased_squares`: an option on top of the published algorithm, off by default. The oracle's is in test_step.py."""

import pytest
import torch
from torch import nn

from acme import Acme


@pytest.fixture(autouse=True)
def no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every gradient enters the averages whole, as in torch's Adam."""
    monkeypatch.setattr("acme.acme.GROWTH_LIMIT", 1e30)


def gradients(steps: int, *shape: int) -> torch.Tensor:
    return torch.randn(steps, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.5


def follow(
    optimizer: torch.optim.Optimizer, weights: nn.Parameter, gradient: torch.Tensor, set_to_none: bool = True
) -> None:
    """A step in a loss whose gradient is `gradient` everywhere."""

    def closure() -> torch.Tensor:
        optimizer.zero_grad(set_to_none)
        loss = (weights * gradient).sum()
        loss.backward()
        return loss

    optimizer.step(closure)


def test_the_first_gradient_counts_once_more_than_in_torch() -> None:
    """torch's squared average, and the first gradient's mean square as one observation before all others."""
    ours, theirs = (nn.Parameter(torch.ones(3, 4, dtype=torch.float64)) for _ in range(2))
    acme = Acme([ours], 1e-3, adam=True, bias_correction=True, unbiased_squares=True)
    adam = torch.optim.Adam([theirs], 1e-3)
    beta2 = 0.999
    for t, gradient in enumerate(gradients(300, 3, 4), 1):
        if t == 1:
            first = (gradient**2).mean()
        follow(acme, ours, gradient)
        follow(adam, theirs, gradient)
        expected = adam.state[theirs]["exp_avg_sq"] + beta2**t * (1 - beta2) * first
        torch.testing.assert_close(acme.state[ours]["exp_avg_sq"], expected, rtol=1e-12, atol=0)


def test_steps_are_those_of_torch_once_the_first_gradient_is_forgotten() -> None:
    """Of the same length to 2 % from the 50th step on, while as published they begin far too short."""
    lengths = {}
    for name in ("torch", "published", "unbiased"):
        weights = nn.Parameter(torch.ones(3, 4, dtype=torch.float64))
        if name == "torch":
            optimizer = torch.optim.Adam([weights], 1e-3, betas=(0.0, 0.999))
        else:
            optimizer = Acme(
                [weights],
                1e-3,
                (0.0, 0.999),
                adam=True,
                bias_correction=True,
                unbiased_squares=name == "unbiased",
            )
        lengths[name] = []
        for gradient in gradients(200, 3, 4):
            before = weights.detach().clone()
            follow(optimizer, weights, gradient)
            lengths[name].append((weights.detach() - before).norm())
    theirs, published, unbiased = (torch.stack(lengths[name]) for name in ("torch", "published", "unbiased"))
    torch.testing.assert_close(unbiased[49:], theirs[49:], rtol=0.02, atol=0)
    assert published[0] < 0.05 * theirs[0] and published[49] < 0.5 * theirs[49]


@pytest.mark.parametrize("late", [0, 1, 7, 2000])
@pytest.mark.parametrize("zeros", [False, True], ids=("no gradient", "zeros"))
def test_a_parameter_that_joins_late_begins_at_its_own_scale(late: int, zeros: bool) -> None:
    """v / (1 - β2^t) is the mean square of its first gradient that is not zero, in whichever step that comes."""
    always, joins = (nn.Parameter(torch.ones(4, dtype=torch.float64)) for _ in range(2))
    optimizer = Acme([always, joins], 1e-3, adam=True, bias_correction=True, unbiased_squares=True)
    for gradient in gradients(late, 4):
        joins.grad = torch.zeros_like(joins) if zeros else None
        follow(optimizer, always, gradient, set_to_none=not zeros)
    (gradient,) = gradients(1, 4)
    follow(optimizer, joins, gradient, set_to_none=True)
    t, beta2 = late + 1, 0.999
    assert optimizer.param_groups[0]["t"] == t + 1
    before = (1 - beta2**t) * (gradient**2).mean()
    expected = beta2 * before + (1 - beta2) * gradient**2
    torch.testing.assert_close(optimizer.state[joins]["exp_avg_sq"], expected, rtol=1e-12, atol=0)
