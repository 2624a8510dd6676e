"""CUDA graphs: of an evaluation (loss and gradient of a batch), and of all else of a step of a capturable Acme."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from icassp25.runlog import SHARES

Evaluation = tuple[Tensor, Tensor]
"""Loss, 0-dimensional, and logits of a batch; the gradients are in the parameters' `grad`."""

Evaluate = Callable[[Tensor, Tensor], Evaluation]
Replay = Callable[[], Any]

WARM_UPS = 3  # evaluations, or steps of a kind, before the capture: they compile, and choose among cuDNN's algorithms


def capture(device: torch.device, work: Callable[[], Any], pool: Any = None) -> tuple[Replay, Any]:
    """Capture `work`, which runs with its replays only: the replay, and what `work` has returned."""
    with torch.cuda.device(device):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool, capture_error_mode="thread_local"):
            result = work()
    return graph.replay, result


def warm_up(device: torch.device, work: Callable[[], Any]) -> None:
    """Run `work` on a stream of its own, as a capture: autograd runs the backward pass where the forward pass ran."""
    stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    current.wait_stream(stream)


def copy(to: list[Tensor], tensors: list[Tensor]) -> None:
    """Copy the values of `tensors` to others, as many as there are."""
    if to:
        torch._foreach_copy_(to, tensors)


class CapturedEvaluation:
    """`evaluate(inputs, targets)` for batches like these, captured on the CUDA device of the inputs.

    Called with a batch, which is copied to where the graph takes it, unless it is the latest that `load` was given.
    What an evaluation leaves (loss, logits, gradients) lies in the same memory each time: the next overwrites it.
    Dropout goes on from torch's generator, as without. Capturing changes neither the model's buffers nor the generator.
    """

    def __init__(self, model: nn.Module, evaluate: Evaluate, inputs: Tensor, targets: Tensor) -> None:
        self.loaded, self.inputs, self.targets = inputs, inputs.clone(), targets.clone()
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        buffers = list(model.buffers())
        before = [buffer.clone() for buffer in buffers]
        work = partial(self._evaluate, evaluate)
        with torch.random.fork_rng([inputs.device]):
            warm_up(inputs.device, work)
            self.replay, self.result = capture(inputs.device, work)
        copy(buffers, before)
        self.gradients = [p.grad for p in self.parameters]

    def _evaluate(self, evaluate: Evaluate) -> Evaluation:
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
        for p, gradient in zip(self.parameters, self.gradients, strict=True):
            if p.grad is not gradient:
                p.grad = gradient
        self.replay()
        return self.result


class CapturedStep:
    """Steps of a capturable Acme as replays: evaluation, `ascend`, evaluation, `look`, evaluation, `leap`, as it has them.

    The host reads nothing: losses, wrong predictions and decisions are added up on the device until `counted`. While it
    is captured Acme leaves the model's buffers and the generator alone; so it is here that all evaluations of a step
    begin with the same, and that it ends with those of the first.
    """

    def __init__(self, model: nn.Module, optimizer: Any, evaluation: CapturedEvaluation) -> None:
        self.optimizer, self.evaluation, self.device = optimizer, evaluation, evaluation.inputs.device
        self.buffers = list(model.buffers())
        self.before, self.after = ([buffer.clone() for buffer in self.buffers] for _ in range(2))
        whole = dict(dtype=torch.int64, device=self.device)
        self.wrong, self.decisions = torch.zeros((), **whole), torch.zeros(len(SHARES), **whole)
        self.loss = torch.zeros((), dtype=torch.float64, device=self.device)
        self.steps: Counter[bool] = Counter()  # by whether they look ahead
        self.graphs: dict[bool, list[Replay]] = {}
        # Not the evaluation's pool, which overwrites what a part leaves the next.
        self.pool = torch.cuda.graph_pool_handle()

    def due(self) -> bool:
        """Whether the next step can be replays: after some ordinary ones of its kind."""
        looks = self.optimizer.looks()
        self.steps[looks] += 1
        return self.steps[looks] > WARM_UPS

    def __call__(self, inputs: Tensor, targets: Tensor) -> int:
        """Take a step; how many evaluations that were."""
        looks, groups = self.optimizer.looks(), self.optimizer.param_groups
        steps = [group["steps"] for group in groups]  # the host's own count: of captures, and not of replays
        if looks not in self.graphs:
            self.graphs[looks] = self._capture(looks)
        save, *parts = self.graphs[looks]
        state = torch.cuda.get_rng_state(self.device)  # a seed and an offset, which the host has
        save()
        for part in parts:
            torch.cuda.set_rng_state(state, self.device)
            self.evaluation(inputs, targets)
            part()
        for group, before in zip(groups, steps, strict=True):
            group["steps"] = before + 1
        return len(parts)

    def _capture(self, looks: bool) -> list[Replay]:
        """Graphs of what comes before the first evaluation and after each."""
        save = partial(copy, self.before, self.buffers)
        graphs = [capture(self.device, save, self.pool)[0] if self.buffers else save]
        with torch.no_grad(), self.optimizer.step_in_parts():
            while (part := self.optimizer.next_part) is not None:
                work = partial(self._part, part, looks, first=len(graphs) == 1)
                graphs.append(capture(self.device, work, self.pool)[0])
        return graphs

    def _part(self, part: str, looks: bool, first: bool) -> None:
        loss, logits = self.evaluation.result
        if first:
            copy(self.after, self.buffers)
            self.loss += loss
            self.wrong += (logits.argmax(1) != self.evaluation.targets).sum()
        getattr(self.optimizer, part)(loss)
        if part == "leap" and looks:  # code -1, non-finite, counts in the last place
            code = self.optimizer.outcome.reshape(1).long().remainder(len(SHARES))
            self.decisions.index_add_(0, code, torch.ones_like(code))
        copy(self.buffers, self.after if part == "leap" else self.before)

    def counted(self) -> tuple[Tensor, Tensor, list[int]]:
        """Sums over the steps since the last call, which it reads: of losses, wrong predictions, and each decision."""
        sums = self.loss.clone(), self.wrong.clone(), self.decisions.tolist()
        torch._foreach_zero_([self.loss, self.wrong, self.decisions])
        return sums
