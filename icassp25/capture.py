"""An evaluation (loss and gradient of a batch) captured as a CUDA graph: one call for all its kernels."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter, is_

import torch
from torch import Tensor, nn

Evaluation = tuple[Tensor, Tensor]
"""Loss, 0-dimensional, and logits of a batch; the gradients are in the parameters' `grad`."""

GRADIENT = attrgetter("grad")
WARM_UPS = 3  # evaluations before the capture: they compile, and choose among cuDNN's algorithms


class CapturedEvaluation:
    """`evaluate(inputs, targets)` for batches like these, captured on the CUDA device of the inputs.

    Called with a batch, which is copied to where the graph takes it, unless it is the latest that `load` was given.

    What an evaluation leaves (loss, logits, gradients) lies in the same memory each time: the next overwrites it.
    Dropout goes on from torch's generator, as it would without. Capturing changes neither the model's buffers nor
    the generator.
    """

    def __init__(
        self,
        model: nn.Module,
        evaluate: Callable[[Tensor, Tensor], Evaluation],
        inputs: Tensor,
        targets: Tensor,
    ) -> None:
        self.loaded, self.inputs, self.targets = inputs, inputs.clone(), targets.clone()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        with torch.random.fork_rng([inputs.device]):
            # On a stream of its own, as the capture: autograd runs the backward pass where the forward pass ran.
            stream = torch.cuda.Stream(inputs.device)
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    self._evaluate(evaluate)
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.result = self._evaluate(evaluate)
        for buffer, before in buffers:
            buffer.copy_(before)
        self.gradients = [p.grad for p in self.parameters]

    def _evaluate(self, evaluate: Callable[[Tensor, Tensor], Evaluation]) -> Evaluation:
        for p in self.parameters:
            p.grad = None
        loss, logits = evaluate(self.inputs, self.targets)
        return loss.detach(), logits.detach()

    def load(self, inputs: Tensor, targets: Tensor) -> None:
        """Take this batch for the evaluations to come."""
        if inputs is not self.loaded:
            self.inputs.copy_(inputs)
            self.targets.copy_(targets)
            self.loaded = inputs

    def __call__(self, inputs: Tensor, targets: Tensor) -> Evaluation:
        self.load(inputs, targets)
        if not all(map(is_, map(GRADIENT, self.parameters), self.gradients)):
            for p, gradient in zip(self.parameters, self.gradients, strict=True):
                p.grad = gradient
        self.graph.replay()
        return self.result
