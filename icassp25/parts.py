"""The examples of an epoch, some thousands at a time; on a CUDA device the next while it trains on these."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from icassp25.tasks import Examples


class Parts:
    """What `ready` makes of each of `chosen`, in turn.

    Making them ready is hundreds of short operations, each of which the host takes longer to hand to a CUDA device
    than the device takes for it. `prepare`, called while the device has an evaluation to work on, hands it those for
    the next part, on a stream of their own; elsewhere it does nothing. The order of the calls of `ready`, and so what
    it draws, is the same.
    """

    def __init__(
        self, chosen: Iterable[Tensor], ready: Callable[[Tensor], Examples], device: torch.device
    ) -> None:
        self.chosen, self.ready = iter(chosen), ready
        self.stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)
            self.stream.wait_stream(torch.cuda.current_stream(device))  # for what is there already
        self.prepared: Examples | None = None

    def __iter__(self) -> Iterator[Examples]:
        return self

    def __next__(self) -> Examples:
        if self.prepared is None:
            return self.ready(next(self.chosen))
        examples, self.prepared = self.prepared, None
        assert self.stream is not None
        current = torch.cuda.current_stream(self.stream.device)
        current.wait_stream(self.stream)
        for tensor in examples:
            tensor.record_stream(current)  # so that its memory is not used again before
        return examples

    def prepare(self) -> None:
        """Have a CUDA device make the next part ready beside what it is doing."""
        if self.stream is None or self.prepared is not None:
            return
        with torch.cuda.stream(self.stream):
            chosen = next(self.chosen, None)
            self.prepared = None if chosen is None else self.ready(chosen)
