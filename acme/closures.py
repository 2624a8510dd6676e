"""The closures of a plain training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import Tensor, nn

__all__ = ["closures"]


def closures(
    model: nn.Module, loader: Iterable[Any], criterion: Callable[..., Tensor]
) -> Iterator[Callable[[], Tensor]]:
    """A closure for each ``(inputs, targets)`` of `loader`, in pass after pass, on the device of the model's parameters.

    Each zeroes the model's gradients, evaluates ``criterion(model(inputs), targets)`` and its gradient, and returns it.
    Raises TypeError where a batch is not a pair of tensors.
    """
    device, some = next((param.device for param in model.parameters()), None), True
    while some:
        some = False
        for batch in loader:
            two = isinstance(batch, (tuple, list)) and len(batch) == 2
            if not two or not all(isinstance(part, Tensor) for part in batch):
                kind = type(batch).__name__
                raise TypeError(
                    f"Invalid batch: {kind} (expected a pair of tensors; else write the closures)"
                )
            some, pair = True, tuple(part.to(device) for part in batch)

            def closure(inputs: Tensor = pair[0], targets: Tensor = pair[1]) -> Tensor:
                model.zero_grad()
                loss = criterion(model(inputs), targets)
                loss.backward()  # type: ignore[no-untyped-call]
                return loss

            yield closure
