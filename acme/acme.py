"""ACME: a gradient descent optimizer that finds its own step size.

Each step evaluates the loss and its gradient on the same batch twice, at the weights and one full step
ahead. A cubic through the two losses and the two slopes along the step tells how long the step should have
been. Adam, ASAM, Nesterov and the adaptation switch on and off independently: 16 optimizers, one class.

This file needs torch and the standard library only: copied alone somewhere on ``PYTHONPATH`` it works.

Source: A. Nogueiras, *Automatic Adaptation of the Step Size in Gradient Descent Training*, submitted to
ICASSP 2025. Adam: Kingma and Ba, ICLR 2015, with the weight decay of Loshchilov and Hutter, ICLR 2019.
ASAM: Kwon, Kim, Park and Choi, ICML 2021.
"""

from __future__ import annotations

import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from itertools import accumulate, chain, islice, repeat
from numbers import Integral, Real
from operator import attrgetter, contains, is_, itemgetter, methodcaller
from typing import Any, NamedTuple, TypeVar, cast, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

__all__ = ["Acme", "Adaptation", "Decision", "Report", "adapt", "get_polynomial_multi_avg_fn", "search"]

# Published constants.
GROWTH_LIMIT = 2.0  # F: one gradient may at most double the squared norm of the gradient average
CLEAR_DIFFERENCE = 1e-4  # relative difference above which two losses count as different
ASAM_FLOOR = 1e-16  # added to ASAM's norm
CLIP_FLOOR = 1e-6  # added to the gradient's norm in clipping, torch's own

# When to warn: relative differences and counts that chance does not bring about.
UNEVEN = 1e-8  # relative variance over the ranks of gradients that should be equal on all
SAME_NORM = (
    1e-5  # relative difference up to which two norms of the gradient are the same, as clipping leaves them
)
CLIPPED_FALL = 1.1  # fall of the loss, in units of what the slopes say, that they do not account for
CLIPPED_STEPS = 8
FINAL_ANNEALING = 0.01  # the annealing factor once `total_steps` steps are done

# `adapt_every`: when the step size counts as settled. Not published.
TREND_MEMORY = 0.8  # decay rate, per look-ahead, of the average of τ/α - 1
SETTLED_TREND = (
    0.5  # below it the step size has settled (while it grows from far below, the average tends to 1)
)

# `search_steps`. Not published.
SEARCH_FACTOR = 10.0  # by which one look-ahead of the search may change the step size at most

# Elements of the parameters that one pass takes at once, which bounds the temporaries: on the CPU few enough
# to stay in the cache between operations and as many as make every thread (torch's grain is 2^15) take part, more
# of large models, for fewer passes; elsewhere so many that the start of an operation does not count.
CPU_THREAD_ELEMENTS = 1 << 15
CPU_PASSES = 64  # beyond as many, six times as many elements, or four with `adam`, which has more temporaries
DEVICE_ELEMENTS = 1 << 24

# `compile` on CUDA: see `_Graphs`.
RUNS_BEFORE_CAPTURE = 2
MOST_GRAPHS = 32  # of one optimizer; parts beyond that (options that change every step) run as they are
MOST_CAPTURED_GROUPS = 64
ROW_DEVICES = ("cuda",)  # where sums are taken in ROWS first
ROWS = 1 << 10
NUMBERS = 1 << 13  # of a part at most: of each bucket, a group's at most 8, no more than 16

# Options that each parameter group may set for itself; the others belong to the whole optimizer.
_GROUP_OPTIONS = ("lr", "betas", "epsilon", "weight_decay", "rho", "eta")
_SWITCHES = ("acme", "adam", "asam", "nesterov")
_SHARED_OPTIONS = (
    *_SWITCHES, "bias_correction", "differentiable", "total_steps", "max_grad_norm", "gain", "adapt_every",
    "search_steps", "unbiased_squares",
)  # fmt: skip

# Options of torch's optimizers that a group may bring along, and what to say instead of ignoring them.
_FOREIGN_OPTIONS = {
    "maximize": "minimise the negative loss",
    "capturable": "Acme reads losses as numbers, which a graph cannot hold",
    "fused": "Acme has one implementation",
    "foreach": "Acme has one implementation, which uses foreach",
    "momentum": "Acme's is betas[0]",
    "dampening": "the gradient enters the average times 1 - betas[0]",
    "eps": "it is called epsilon here",
    "amsgrad": "Acme does not have it",
    "decoupled_weight_decay": "Acme's always is",
}

_NO_CLOSURE = """\
Acme.step() needs a closure that zeroes the gradients, evaluates loss and gradient on one batch and returns the loss: \
ACME and ASAM evaluate the same batch again at other weights. Call optimizer.step(closure), or use \
optimizer.step_in_parts() in loops that cannot hand one over. Frameworks that call step() without one (Hugging Face's \
Trainer, DeepSpeed) need an override; for the Trainer:

    class AcmeTrainer(Trainer):
        def training_step(self, model, *args, **kwargs):
            def closure():
                model.zero_grad()
                return super(AcmeTrainer, self).training_step(model, *args, **kwargs)
            self.optimizer.step = lambda: None  # the Trainer's own call, after which nothing is left to do
            return self.optimizer.optimizer.step(closure)
"""

_SCALED = (
    "torch.amp.GradScaler.step(optimizer) cannot step Acme: it would hand over gradients scaled by thousands, and "
    "losses that are not. Return the true loss from a closure that calls scaler.scale(loss).backward(), then "
    "optimizer.step(closure, scaler=scaler) and scaler.update(). Frameworks that own the scaler and run the closure "
    'themselves (Lightning\'s "16-mixed", Accelerate\'s "fp16") call it this way: train with bfloat16 there '
    '("bf16-mixed", "bf16"), or step Acme yourself.'
)

_FSDP1 = (
    "Invalid parameters: FullyShardedDataParallel (FSDP1) hides which elements of a parameter this rank holds "
    "(expected those of a model sharded by torch.distributed.fsdp.fully_shard, or not sharded)"
)

_NO_NAMES = (
    "asam=True needs the parameters' names (ASAM scales by |w| those whose name contains 'weight'): pass the "
    "model, model.named_parameters(), or groups with 'params' as (name, tensor) pairs"
)


_Loss = TypeVar("_Loss", Tensor, float)
_Result = TypeVar("_Result")


class Decision(IntEnum):
    """How the step size of a step was found, from the two losses and slopes; see `adapt`."""

    NON_FINITE = -1  #: the look-ahead point has a non-finite loss or gradient: the step is not taken
    UNCLEAR = 0  #: the two losses are too close to tell
    CUBIC = 1  #: minimiser of the cubic; the look-ahead is better than the start
    CUBIC_WORSE = 2  #: minimiser of the cubic; the look-ahead is worse than the start
    PARABOLA_AHEAD = 3  #: vertex of the parabola with the slope of the look-ahead
    PARABOLA_START = 4  #: vertex of the parabola with the slope of the start
    GROW = 5  #: downhill at both ends and better: a longer step, by the ratio of the slopes
    SHRINK = 6  #: uphill at both ends and worse: a shorter step, by the ratio of the slopes
    KEEP = 7  #: the slopes contradict the losses: keep the step if it was better, else none


class Adaptation(NamedTuple):
    """What `adapt` makes of two evaluations, in units of its `alpha`."""

    target: float  #: τ, what the step size should have been
    step: float  #: σ, the step to take where the look-ahead is worse than the start
    decision: Decision


@dataclass(frozen=True)
class Report:
    """The last step, in numbers. Of several groups, step sizes are the first's that took part.

    Slopes are directional derivatives along the direction of the step, positive meaning downhill, per unit of
    `step_size`. What a step did not evaluate or decide (`acme` off, nothing to do) is None.
    """

    loss: float  #: l0, at the weights the step started from
    look_ahead_loss: float | None  #: l1, one full step ahead
    slope: float | None  #: p0 = Σ d·g0
    look_ahead_slope: float | None  #: p1 = Σ d·g1
    decision: Decision | None
    step_size: float  #: α, the step size of the look-ahead; `lr` with `acme` off
    applied: float  #: a, the step size by which the weights moved
    limit: float  #: min(k, 1), the factor on the gradient in the first update of the averages
    evaluations: int  #: evaluations of the closure


def adapt(l0: float, l1: float, p0: float, p1: float, alpha: float, beta1: float) -> Adaptation:
    """The step size that two losses and two slopes along a step of `alpha` ask for.

    With ``better = l1 <= l0`` and ``clear = |l0 - l1| > max(l0, l1) / 10⁴``, the first row that holds:

    ====  =================================  ==================================  =================
    code  when                               target τ                            step σ
    ====  =================================  ==================================  =================
    0     not clear                          2·alpha if better, else alpha       alpha if better, else 0
    1, 2  p0 > 0, p1 < 0 (2: not better)     minimiser of the cubic              τ
    3     better, p1 < 0                     vertex, slope -p1 at alpha          τ
    4     not better, p0 > 0                 vertex, slope -p0 at 0              τ
    5     better, p0 > 0, p1 > 0             alpha·(1 + p1/p0), bounded          alpha
    6     not better, p0 < 0, p1 < 0         -alpha·p1/p0, bounded               0
    7     otherwise                          alpha if better, else 0             τ
    ====  =================================  ==================================  =================

    The cubic has value l0 and slope -p0 at 0, value l1 and slope -p1 at `alpha`; the parabolas go through l0
    and l1. The bounds of codes 5 and 6 are those with which ``beta1·alpha + (1 - beta1)·τ`` lies between half
    and double `alpha`.

    Args:
        l0, l1: finite losses at the start and at the look-ahead point.
        p0, p1: finite slopes there, in units of loss per unit of `alpha`; positive means downhill.
        alpha: the step size between the two points, at least 0.
        beta1: decay rate of the step size's memory, in [0, 1).

    Returns:
        Finite numbers; the minimiser of the cubic lies strictly inside (0, alpha).
    """
    better = l1 <= l0
    stay = alpha if better else 0.0
    if not abs(l0 - l1) > max(l0, l1) * CLEAR_DIFFERENCE:
        target = 2 * alpha if better else alpha
        return Adaptation(min(target, sys.float_info.max), stay, Decision.UNCLEAR)
    if p0 > 0 and p1 < 0:
        decision = Decision.CUBIC if better else Decision.CUBIC_WORSE
        scale = max(p0, -p1)
        minimum = _cubic_minimiser(_rise(l0, l1, alpha, scale), p0 / scale, p1 / scale)
        target = step = min(alpha * minimum, math.nextafter(alpha, 0.0))
    elif better and p1 < 0:
        decision = Decision.PARABOLA_AHEAD
        fall = -_rise(l0, l1, alpha, -p1)
        target = step = alpha * ((1 + 2 * fall) / (2 + 2 * fall))
    elif not better and p0 > 0:
        decision = Decision.PARABOLA_START
        target = step = alpha * (0.5 / (1 + _rise(l0, l1, alpha, p0)))
    elif better and p0 > 0 and p1 > 0:
        decision = Decision.GROW
        ratio = min(p1 / p0, sys.float_info.max)
        target = min(alpha * (1 + ratio), alpha * (2 - beta1) / (1 - beta1), sys.float_info.max)
        step = alpha
    elif not better and p0 < 0 and p1 < 0:
        decision = Decision.SHRINK
        ratio = min(p1 / p0, sys.float_info.max)
        target = max(-alpha * ratio, alpha * (0.5 - beta1) / (1 - beta1), -sys.float_info.max)
        step = 0.0
    else:
        decision = Decision.KEEP
        target = step = stay
    return Adaptation(target, step, decision)


def search(l0: float, l1: float, p0: float, p1: float, alpha: float, latest: int = 0) -> tuple[float, bool]:
    """The step size to try next, from what a step of `alpha` told, while nothing moves (`search_steps`).

    A step is too short where the slope at its end is still more than half of that at the start and the loss
    not higher, else too long. The search ends at a step size that is too short where ten times as much is too
    long; from there the step size grows by itself, as far as the training bears. If the direction is not
    downhill at the start, the batch says nothing: `alpha`, as it is.

    Args:
        l0, l1: losses at the start, finite, and at the look-ahead point.
        p0, p1: slopes there, in units of loss per unit of `alpha`; positive means downhill.
        alpha: the step size between the two points, above 0.
        latest: 1 if the search has made the step size larger, -1 if smaller, 0 if neither.

    Returns:
        The next step size, and whether the search is over. The weights move only in a step that ends it at
        its `alpha`.
    """
    if not (math.isfinite(l1) and math.isfinite(p0) and math.isfinite(p1)):
        return alpha / SEARCH_FACTOR, False
    if p0 <= 0:
        return alpha, False
    higher = l1 > l0 and l1 - l0 > max(l0, l1) * CLEAR_DIFFERENCE
    if p1 > p0 / 2 and not higher:
        return (alpha, True) if latest < 0 else (min(SEARCH_FACTOR * alpha, sys.float_info.max), False)
    return alpha / SEARCH_FACTOR, latest > 0


_Tensors = tuple[Tensor, ...] | list[Tensor]  # as torch's foreach operations and averages have it


def get_polynomial_multi_avg_fn(
    power: float = 8.0,
) -> Callable[[_Tensors, _Tensors, Tensor | int], None]:
    """A `multi_avg_fn` of `torch.optim.swa_utils.AveragedModel`: averaged weights, for steps annealed less.

    After t updates the average is ``a ← a + (power + 1)/(t + power)·(w - a)``: the weights that a training passes
    through, those of step s counting about as (s/t)^power, so that the last ninth counts for two thirds at a `power` of
    8. There is nothing to fit to the length of the training. Integer buffers are copied.

    Args:
        power: how fast early weights are forgotten, at least 0; 0 averages all of them alike.

    Raises:
        TypeError, ValueError: `power` is no such number.

    Source: Shamir and Zhang, *Stochastic Gradient Descent for Non-smooth Optimization*, ICML 2013 (polynomial-decay
    averaging); a power of 8 as in Ivgi, Hinder and Carmon, *DoG is SGD's Best Friend*, ICML 2023.
    """
    decay = _number({"power": power}, "power")

    @torch.no_grad()
    def update(averaged: _Tensors, current: _Tensors, updates: Tensor | int) -> None:
        if not averaged[0].is_floating_point():
            torch._foreach_copy_(averaged, current)
            return
        difference = torch._foreach_sub(current, averaged)
        torch._foreach_mul_(difference, (decay + 1) / (updates + 1 + decay))
        torch._foreach_add_(averaged, difference)

    return update


def _rise(l0: float, l1: float, alpha: float, slope: float) -> float:
    """(l1 - l0)/alpha in units of a positive `slope`, bounded so that its square is finite."""
    if alpha == 0:
        return math.copysign(1e100, l1 - l0)
    return max(-1e100, min(1e100, (l1 - l0) / alpha / slope))


def _cubic_minimiser(rise: float, p0: float, p1: float) -> float:
    """Minimiser in [0, 1) of the cubic with values 0, `rise` and slopes -p0 < 0, -p1 > 0 at 0 and 1.

    In a form whose terms are all positive (Nocedal and Wright, *Numerical Optimization*, eq. 3.59,
    rationalised), so that nothing cancels and a vanishing leading coefficient needs no case of its own.
    """
    theta = -p0 - p1 - 3 * rise
    root = math.hypot(theta, math.sqrt(p0) * math.sqrt(-p1))
    sum_ = theta + root if theta >= 0 else p0 * -p1 / (root - theta)
    return max((p0 + sum_) / (p0 - p1 + 2 * root), sys.float_info.min)


class Acme(Optimizer):
    """Gradient descent that adapts its step size, with Adam, ASAM and Nesterov momentum as switches.

    One step, with gradient average m, g' the gradient limited so that the average's squared norm at most
    doubles, and D = sqrt(v) + ε with `adam`, else 1::

        m ← β1·m + (1 - β1)·g'        v ← β2·v + (1 - β2)·g'²        d = m / D
        w ← w - α·d                                    acme=False: α is lr
        l1, g1 at w - α·d;  τ, σ = adapt(l0, l1, Σ d·g0, Σ d·g1, α, β1)
        w ← w - γ·(σ if l1 > l0 else α)·d              acme=True: γ damps and anneals, times `gain`
        α ← β1·α + (1 - β1)·τ

    Args:
        model: an `nn.Module`, or its parameters: tensors, ``(name, tensor)`` pairs or group dicts. Only a
            module lets `Acme` keep buffers (BatchNorm's statistics) at one update a step; `asam` needs names.
        lr: initial step size. With `acme` the adapted one is ``param_groups[i]["step_size"]``; moving `lr` to
            c times its initial value, as a scheduler does, scales the applied step by c. Without `acme`, the
            step size.
        betas: decay rates (β1, β2) of the gradient average (and of the step size) and of the squared one.
        epsilon: added to the root of the squared average (`adam`).
        weight_decay: decoupled; each step scales the weights by 1 - (applied step size)·weight_decay.
        acme: adapt the step size, at the cost of one more evaluation a step.
        adam: divide the gradient average by the root of the squared one, element by element.
        asam: take the gradient at ASAM's adversarial point, at the cost of one more evaluation a step.
        rho: radius of ASAM's neighbourhood.
        eta: added to the weights' magnitudes in ASAM's normalisation.
        nesterov: Nesterov momentum.
        bias_correction: divide the averages by 1 - β^t, as Adam does.
        differentiable: refused; here because `torch.optim` has it.
        total_steps: steps over which γ falls to a hundredth of its start along half a cosine, to stay there;
            None for a constant γ.
        max_grad_norm: clip the gradient that enters the averages (and Nesterov's term) to this Euclidean norm
            over all parameters, as `torch.nn.utils.clip_grad_norm_` does; the slopes are those of the true
            gradient. None for no clipping. Do not clip in the closure: that falsifies the slopes.
        process_group: the ranks of a data-parallel training, over which losses are averaged so that all take
            the same decision. None finds them: those of a DistributedDataParallel `model` or of the parameters'
            device mesh, else all ranks, where torch.distributed is in use. For independent trainings pass a
            group of one rank (``torch.distributed.new_subgroups(group_size=1)[0]``).
        compile: compile the arithmetic between the evaluations with `torch.compile`, which then goes over the
            memory as seldom as it can, and on CUDA is captured as graphs too: few launches a step, for up to five
            copies of the parameters beyond the state. Takes some seconds in the first steps, and on the CPU a C++
            compiler; pays for millions of parameters. Results differ by rounding. Not saved with the state.
        gain: factor on γ, and so on every step with `acme`. 1 is the published algorithm; larger ones pay in
            short trainings, smaller ones where the step size is still too large. Not published.
        adapt_every: look ahead, and adapt the step size, at least in every `adapt_every`-th step; the others
            take one evaluation less. The interval starts at 1, doubles while the step size has settled, and
            halves while it moves. One look-ahead after i steps counts as i of them would: the step size's memory
            is β1^i, within half and double. 1 is the published algorithm. Not published.
        search_steps: at most so many first steps only look ahead, to find the step size from which to start: the
            weights stay, and each look-ahead changes the step size tenfold (see `search`). Ends, usually after a
            few, at a step size that is too short where ten times as much is too long. 0 is the published algorithm.
            Not published.
        unbiased_squares: with `adam` and `bias_correction`, begin the squared average at (1 - β2^t)·mean(g²), which
            bias correction makes mean(g²). The published algorithm begins it at mean(g²) and corrects all the same:
            D is some 30 times too large at first and falls, alike in all elements, for about 1/(1 - β2) steps.
            Not published.

    Raises:
        ValueError, TypeError: an argument out of its range or of a wrong type.

    Parameters may be real tensors of any floating dtype, and DTensors (`fully_shard`). Averages are kept in
    float32 for 16-bit parameters, else in the parameters' dtype; every sum is taken in float64 (on mps,
    float32). A parameter whose gradient is None or zero everywhere takes no part in a step. Several groups
    search along their joint direction: each keeps its ratio of step sizes, its betas and its weight decay.

    Example:
        >>> optimizer = Acme(model, acme=True, total_steps=epochs * len(loader))
        >>> for x, y in loader:
        ...     def closure():
        ...         optimizer.zero_grad()
        ...         loss = criterion(model(x), y)
        ...         loss.backward()
        ...         return loss
        ...     loss = optimizer.step(closure)
    """

    def __init__(
        self,
        model: nn.Module | Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        acme: bool = False,
        adam: bool = False,
        asam: bool = False,
        rho: float = 1.0,
        eta: float = 0.0,
        nesterov: bool = False,
        bias_correction: bool = False,
        differentiable: bool = False,
        total_steps: int | None = 50_000,
        max_grad_norm: float | None = None,
        process_group: dist.ProcessGroup | None = None,
        compile: bool = False,
        gain: float = 1.0,
        adapt_every: int = 1,
        search_steps: int = 0,
        unbiased_squares: bool = False,
    ) -> None:
        if not isinstance(compile, bool):
            raise TypeError(f"Invalid compile: {compile!r} (expected True or False)")
        defaults = {
            "lr": lr,
            "betas": betas,
            "epsilon": epsilon,
            "weight_decay": weight_decay,
            "acme": acme,
            "adam": adam,
            "asam": asam,
            "rho": rho,
            "eta": eta,
            "nesterov": nesterov,
            "bias_correction": bias_correction,
            "differentiable": differentiable,
            "total_steps": total_steps,
            "max_grad_norm": max_grad_norm,
            "gain": gain,
            "adapt_every": adapt_every,
            "search_steps": search_steps,
            "unbiased_squares": unbiased_squares,
        }
        defaults = _checked(defaults)
        self._model = model if isinstance(model, nn.Module) else None
        self._process_group = process_group
        self._compile = compile
        self._report: Report | None = None
        self._begin()
        super().__init__(model.named_parameters() if isinstance(model, nn.Module) else model, defaults)

    def _begin(self) -> None:
        """What is remembered from step to step, but not in a state dict."""
        self._trial: _Trial | None = None
        self._unsure: set[Tensor] = (
            set()
        )  # parameters whose averages were loaded: perhaps before any gradient
        self._plan: _Plan | None = None  # how the last step was divided into passes
        self._buffers = _Buffers(self._model, self._compile)
        self._zero: Tensor | None = None
        self._zeros: set[Tensor] = set()  # parameters whose gradient was zero everywhere in the last step
        self._scaled = [_Scaled(self) for _ in range(3)]
        self._warned: set[str] = set()
        self._largest_norm = 0.0
        self._clipped_steps = 0

    def _nothing(self, device: torch.device) -> Tensor:
        """The sum of nothing, not to be changed."""
        if self._zero is None or self._zero.device != device:
            self._zero = torch.zeros((), dtype=_sum_dtype(device), device=device)
        return self._zero

    @property
    def report(self) -> Report | None:
        """The last step in numbers; None before the first."""
        return self._report

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with options of its own if wanted.

        Args:
            param_group: "params" (tensors or ``(name, tensor)`` pairs) and any of lr, betas, epsilon,
                weight_decay, rho and eta. A group that is added later starts at its own `lr`; steps are
                counted for all groups together.

        Raises:
            ValueError: an option out of range or one for the whole optimizer; with `asam`, no names.
            TypeError: a wrong type; complex parameters.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"Invalid parameter group: {param_group!r} (expected a dict with 'params')")
        for name, instead in _FOREIGN_OPTIONS.items():
            if param_group.get(name):
                raise ValueError(f"Invalid option {name!r} in a parameter group: {instead}")
        group = dict(param_group)  # the caller's dict stays as it is, usable for another optimizer
        group.update(_checked({**self.defaults, **group}))
        for name in _SHARED_OPTIONS:
            if group[name] != self.defaults[name]:
                raise ValueError(
                    f"Invalid {name} in a parameter group: {group[name]!r} (expected "
                    f"{self.defaults[name]!r} as for the whole optimizer: pass it to Acme(...) instead)"
                )
        params = group["params"]
        group["params"] = (
            [params] if isinstance(params, Tensor) else params if isinstance(params, set) else list(params)
        )
        self._match_names(group)
        super().add_param_group(group)
        for param in group["params"]:
            if getattr(param, "_fsdp_flattened", False) or type(param).__name__ == "FlatParameter":
                self.param_groups.pop()
                raise TypeError(_FSDP1)
            if not param.is_floating_point():
                self.param_groups.pop()
                raise TypeError(
                    f"Invalid parameter of dtype {param.dtype} (expected a real floating dtype; Acme does not "
                    "optimize complex or integer tensors)"
                )
        _complete(group, self.param_groups[0])

    def _match_names(self, group: dict[str, Any]) -> None:
        """Bring a new group's names in line with the others' (torch wants all groups named, or none)."""
        named = len(group["params"]) > 0 and all(isinstance(param, tuple) for param in group["params"])
        if self.defaults["asam"] and not named and group["params"]:
            raise ValueError(_NO_NAMES)
        if not self.param_groups:
            return
        if named and "param_names" not in self.param_groups[0]:
            if any(other["params"] for other in self.param_groups):
                group["params"] = [param for _, param in group["params"]]
            else:  # groups without parameters are neither
                for other in self.param_groups:
                    other["param_names"] = []
        elif not named and "param_names" in self.param_groups[0]:
            number = len(self.param_groups)
            group["params"] = [(f"group{number}.{i}", param) for i, param in enumerate(group["params"])]
            if not group["params"]:
                group["param_names"] = []

    # The step -------------------------------------------------------------------------------------------

    # With this, GradScaler.step() leaves its scale on the optimizer before it calls `step`, which can refuse.
    _step_supports_amp_scaling = True

    @overload
    def step(self, closure: None = None, scaler: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], _Loss], scaler: torch.amp.GradScaler | None = None) -> _Loss: ...
    @torch.no_grad()
    def step(
        self, closure: Callable[[], Any] | None = None, scaler: torch.amp.GradScaler | None = None
    ) -> Any:
        """One step: 1 evaluation of `closure`, +1 with `asam`, +1 with `acme` where it looks ahead.

        Args:
            closure: zeroes the gradients, evaluates loss and gradient on one batch and returns the loss, a
                scalar. Called with gradients enabled and with the same random numbers every time.
            scaler: for float16, the `GradScaler` with which the closure scales what it differentiates; it
                returns the true loss. Call ``scaler.update()`` once after each step. An overflow of the
                gradient at the start (or at ASAM's point) skips the step, as ``scaler.step`` does.

        Returns:
            The loss at the weights the step started from, detached.

        Raises:
            FloatingPointError: non-finite loss or gradient at the start (or at ASAM's point).
            TypeError, ValueError: no closure, one that does not return a scalar, a sparse gradient.
            RuntimeError: called by ``GradScaler.step``, or within a step.

        After any exception, from here or from the closure, weights, averages, step sizes, the model's buffers
        and the random generators are as before the step.

        On a GPU the step waits for the device once, at its end. If that tells of a gradient that is zero
        everywhere and was not in the step before, the step is taken anew: another evaluation each.

        Without a closure, where every `lr` and every gradient is zero, as `torch.distributed.checkpoint` calls
        it: only creates the state of parameters with a gradient.
        """
        if "grad_scale" in vars(self):
            del self.grad_scale, self.found_inf  # type: ignore[attr-defined]
            raise RuntimeError(_SCALED)
        if closure is None:
            return self._create_state()
        if not callable(closure):
            raise TypeError(f"Invalid closure: {closure!r} (expected a function that returns the loss)")

        def evaluate() -> Any:
            with torch.enable_grad():
                return closure()

        try:
            return self._step(evaluate, scaler, ahead_of_device=scaler is None)
        except _Again:
            return self._step(evaluate, scaler, ahead_of_device=False)

    def _step(
        self, evaluate: Callable[[], Any], scaler: torch.amp.GradScaler | None, ahead_of_device: bool
    ) -> Any:
        """The step; `ahead_of_device`: with one wait for the device, at the end.

        Until then no gradient is known to be zero everywhere, or not finite. If the end tells that one was zero
        that was not in the last step, the step is taken back (`_Again`).
        """
        with self._in_progress(scaler) as trial:
            trial.ahead_of_device = ahead_of_device
            loss = evaluate()
            first = (
                loss.detach().clone() if isinstance(loss, Tensor) else loss
            )  # the next may take its memory
            while trial.parts[0] != "leap":
                getattr(self, trial.parts[0])(loss)
                if trial.idle:
                    self._finish(trial)
                    return first
                loss = evaluate()
            self.leap(loss)
        return first

    @contextmanager
    def step_in_parts(self, scaler: torch.amp.GradScaler | None = None) -> Iterator[None]:
        """One step as separate calls, for loops that cannot hand over a closure; `step` is made of the same.

        Within the block, evaluate the batch (zero the gradients, forward, backward) and hand the loss of that
        evaluation to the next part: ``ascend(loss)`` with `asam`, then ``look(loss)`` with `acme`, then
        ``leap(loss)``. Each but the last is followed by another evaluation of the same batch. With `adapt_every`,
        `next_part` says whether ``look`` is due in this step::

            with optimizer.step_in_parts():
                loss = evaluate()
                optimizer.look(loss)             # to the look-ahead point
                optimizer.leap(evaluate())       # to the next weights

        Args:
            scaler: for float16, as in `step`.

        Raises:
            RuntimeError: parts called out of order, or the block left before ``leap``.

        An exception within the block undoes the step, as in `step`.
        """
        for before in chain(_global_optimizer_pre_hooks.values(), self._optimizer_step_pre_hooks.values()):
            before(self, (), {})
        with self._in_progress(scaler):
            yield
        self._opt_called = True  # what learning-rate schedulers look for
        for after in chain(self._optimizer_step_post_hooks.values(), _global_optimizer_post_hooks.values()):
            after(self, (), {})

    @property
    def next_part(self) -> str | None:
        """The part of the step in progress that is due next: "ascend", "look" or "leap"; None outside a step."""
        return self._trial.parts[0] if self._trial is not None and self._trial.parts else None

    @torch.no_grad()
    def ascend(self, loss: Tensor | float) -> None:
        """Go to ASAM's adversarial point; `loss` is that of the evaluation at the start. See `step_in_parts`."""
        trial = self._next("ascend")
        self._start(trial, loss)
        if not trial.idle:
            self._ascend(trial)
        trial.depart()

    @torch.no_grad()
    def look(self, loss: Tensor | float) -> None:
        """Go one full step ahead; `loss` is that of the latest evaluation. See `step_in_parts`."""
        trial = self._next("look")
        self._take(trial, loss)
        if not trial.idle:
            self._look(trial)
        trial.depart()

    @torch.no_grad()
    def leap(self, loss: Tensor | float) -> None:
        """Go to the next weights; `loss` is that of the latest evaluation. See `step_in_parts`."""
        trial = self._next("leap")
        if trial.ahead and not trial.idle:
            self._leap_by_two(trial, trial.arrive(loss))
        else:
            self._take(trial, loss)
            if not trial.idle:
                self._leap(trial)
        self._finish(trial)

    @contextmanager
    def _in_progress(self, scaler: torch.amp.GradScaler | None) -> Iterator[_Trial]:
        """The evaluations of a step, which an exception undoes."""
        if self._trial is not None:
            raise RuntimeError("A step of this optimizer is in progress: finish it with leap() first")
        trial = self._trial = _Trial(self, scaler)
        try:
            yield trial
            if not trial.done:
                raise RuntimeError(f"The step was left before {trial.parts[0]}(): it is undone")
        except BaseException:
            if not trial.done:
                trial.undo(self)
                if scaler is not None:  # whose books have the old ones until its next update, under their ids
                    self._scaled = [_Scaled(self, self._scaled) for _ in range(3)]
            raise
        finally:
            self._trial = None
            for bucket in trial.buckets:
                bucket.end()

    def _next(self, part: str) -> _Trial:
        """The step in progress, whose next part is `part`."""
        trial = self._trial
        if trial is None:
            raise RuntimeError(f"{part}() outside a step (call it within `with optimizer.step_in_parts():`)")
        if not trial.parts or trial.parts[0] != part:
            due = f"{trial.parts[0]}(loss)" if trial.parts else "the end of the block"
            raise RuntimeError(
                f"{part}() where {due} is due (the order is ascend with asam, look with acme, leap)"
            )
        return trial

    def _start(self, trial: _Trial, loss: Tensor | float) -> None:
        """After the evaluation at the start: the loss, and the parameters that take part, with their state.

        A parameter takes part if it has a gradient that is not zero everywhere.
        """
        options = self.param_groups[0]
        steps = options["total_steps"]
        if options["acme"] and steps is not None and options["annealing_step"] == steps:
            self._warn(
                f"Step {steps + 1} of a training with total_steps={steps}: the applied step stays at a hundredth from "
                "here on. Pass the length of the training as total_steps, or None for no annealing."
            )
        value = trial.arrive(loss)
        # Equal groups are one here, so that dividing the parameters among them changes no sum.
        equal: dict[Any, dict[str, Any]] = {}
        found = [
            (first, name, param)
            for first, group in [
                (equal.setdefault(_settings(group), group), group) for group in self.param_groups
            ]
            for name, param in zip(group.get("param_names", repeat("")), group["params"], strict=False)
            if param.grad is not None or (trial.ranks is not None and param.requires_grad)
        ]
        for _, _, param in found:
            if param.grad is not None and param.grad.layout is not torch.strided:
                raise TypeError(
                    f"Invalid gradient of a parameter of shape {tuple(param.shape)}: {param.grad.layout} (expected "
                    "a dense one; for an embedding, pass sparse=False)"
                )
        fresh = self._fresh(found)
        if fresh and not self._begin_averages(trial, value, found, fresh):
            return
        trial.ahead_of_device &= _asynchronous(value.device) and not (fresh or self._zeros)
        if trial.ahead_of_device:
            trial.ahead_of_device = {param.device for _, _, param in found} == {value.device}
        zeros = self._zeros.intersection(param for _, _, param in found) if self._zeros else set()
        while True:
            plan = trial.plan = self._planned(trial, found, zeros)
            trial.buckets = plan.buckets
            still = [param for _, _, param in found if param in zeros] if zeros else []
            reading = trial.read(
                value,
                lambda: [b.ascent() for b in trial.buckets] if options["asam"] else self._moments(trial),
                still,
                ahead=lambda: self._leap_ahead(trial),
            )
            if reading.later:
                break
            if trial.leapt:  # the device has looked
                trial.l0 = reading.loss
                break
            if not self._read_finite(trial, reading, "at the start"):
                return
            trial.l0 = reading.loss
            now_zero = plan.zeros(reading, still)
            if now_zero == zeros:
                break
            trial.restore_weights()
            zeros = now_zero
        self._zeros = zeros
        trial.idle = not plan.buckets
        self._check_ranks(reading)
        trial.start = reading

    def _moments(self, trial: _Trial) -> list[list[Tensor]]:
        """The sums of the first update, in the same pass as the look-ahead.

        That takes the limit as 1, as it nearly always is; otherwise `_look` goes there anew. Compiled, the first step
        takes each pass alone, so that all are compiled then.
        """
        options = self.param_groups[0]
        trial.looked = (
            trial.looks
            and not (trial.compile and options["t"] == 1)
            and options["max_grad_norm"] is None
            and not trial.ahead_of_device
        )
        if not trial.looked:
            return [bucket.moments() for bucket in trial.buckets]
        return [bucket.moments_and_look(bucket.group["step_size"]) for bucket in trial.buckets]

    def _fresh(self, found: list[tuple[dict[str, Any], str, Tensor]]) -> list[tuple[dict[str, Any], Tensor]]:
        """The parameters whose averages begin in this step, or perhaps do."""
        key = "exp_avg_sq" if self.param_groups[0]["adam"] else "exp_avg"
        unsure, state, plan = self._unsure, self.state, self._plan
        if (
            plan is not None
            and not unsure
            and plan.knows(found, state)
            and all(map(contains, plan.states, repeat(key)))
        ):
            return []
        return [
            (group, param)
            for group, _, param in found
            if key not in state.get(param, ()) or (unsure and param in unsure)
        ]

    def _begin_averages(
        self,
        trial: _Trial,
        loss: Tensor,
        found: list[tuple[dict[str, Any], str, Tensor]],
        fresh: list[tuple[dict[str, Any], Tensor]],
    ) -> bool:
        """Begin the averages of parameters at their first gradient; whether the step can go on."""
        max_norm = self.param_groups[0]["max_grad_norm"]
        params = [param for _, param in fresh]
        if max_norm is not None:  # which takes the norm of the whole gradient
            new = set(params)
            params += [param for _, _, param in found if param not in new]
        unsure = [param for _, param in fresh if param in self._unsure]
        squares = _squares(trial.gradients_of(params))
        squares += [sum(_squares(list(self.state[param].values())), torch.zeros(())) for param in unsure]
        l0, *numbers = trial.read_squares(loss, squares, [*params, *unsure])
        squared = numbers[: len(params)]
        if not self._finite(trial, l0, all(map(math.isfinite, squared)), "at the start"):
            return False
        clip = 1.0 if max_norm is None else min(max_norm / (math.sqrt(sum(squared)) + CLIP_FLOOR), 1.0)
        empty = {param for param, total in zip(unsure, numbers[len(params) :], strict=True) if total == 0}
        for (group, param), square in zip(fresh, squared, strict=False):
            if square > 0:
                self._init_state(group, param, clip * math.sqrt(square), clip, trial, param in empty)
                self._zeros.discard(param)
            else:
                self._zeros.add(param)
        return True

    def _init_state(
        self, group: dict[str, Any], param: Tensor, norm: float, clip: float, trial: _Trial, empty: bool
    ) -> None:
        """The averages of a parameter at its first gradient, of Euclidean norm `norm` once clipped, as published.

        `empty`: there are averages already, but of no gradient.
        """
        state = self.state[param]
        dtype = _state_dtype(param)
        trial.fresh.append((param, dict(state), param in self._unsure))
        if "exp_avg" not in state or empty:
            state["exp_avg"] = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
            average = _local(state["exp_avg"])
            if param.grad is not None:
                average.copy_(_local(param.grad))
            factor = clip * (1 - group["betas"][0] if group["bias_correction"] else 1.0)
            if factor != 1:
                average.mul_(factor)
        if group["adam"] and ("exp_avg_sq" not in state or empty):
            mean_square = min(norm / param.numel() * norm, torch.finfo(dtype).max)
            if group["unbiased_squares"]:
                mean_square *= 1 - group["betas"][1] ** group["t"]
            state["exp_avg_sq"] = torch.full_like(state["exp_avg"], mean_square)
        self._unsure.discard(param)

    def _planned(
        self, trial: _Trial, found: list[tuple[dict[str, Any], str, Tensor]], zeros: set[Tensor]
    ) -> _Plan:
        """The passes over the parameters that take part: those of the last step, if nothing has changed."""
        taking_part = [entry for entry in found if entry[2] not in zeros] if zeros else found
        if self._plan is None or not self._plan.fits(taking_part, self.state):
            self._plan = _Plan(taking_part, self.state, trial)
        self._plan.begin(trial)
        return self._plan

    def _create_state(self) -> None:
        """Averages of zeros, which count as none, for the parameters that have a gradient: of zeros.

        Raises:
            TypeError: a learning rate or a gradient is not zero, so that a step was wanted.
        """
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not params or any(float(group["lr"]) for group in self.param_groups):
            raise TypeError(_NO_CLOSURE)
        if any(_to_host(_squares([param.grad for param in params]))):
            raise TypeError(_NO_CLOSURE)
        for param in params:
            state = self.state[param]
            for key in ("exp_avg", "exp_avg_sq") if self.param_groups[0]["adam"] else ("exp_avg",):
                if key not in state:
                    state[key] = torch.zeros_like(param, dtype=_state_dtype(param))
                    self._unsure.add(param)

    def _read_finite(self, trial: _Trial, reading: _Reading, where: str) -> bool:
        """Whether what was read is finite; see `_finite`."""
        clipped = self.param_groups[0]["max_grad_norm"] is not None
        return self._finite(trial, reading.loss, reading.finite(clipped), where)

    def _finite(self, trial: _Trial, loss: float, gradient: bool, where: str) -> bool:
        """Whether the step can go on: loss and `gradient` are finite.

        With a scaler, it is skipped where only the scaled gradient overflowed.
        """
        if math.isfinite(loss) and gradient:
            return True
        if trial.scaler is not None and trial.scaler.is_enabled() and math.isfinite(loss):
            trial.restore_weights()
            trial.forget(self)
            trial.idle = trial.skipped = True
            return False
        what = f"loss ({loss})" if not math.isfinite(loss) else "gradient"
        raise FloatingPointError(
            f"Non-finite {what} {where} of the step. Weights, averages and step size are as before it; skip the "
            "batch, or look for what overflows."
        )

    def _take(self, trial: _Trial, loss: Tensor | float) -> None:
        """After the evaluation that the averages are updated with: its gradient, limited."""
        options = self.param_groups[0]
        if options["asam"]:
            value = trial.arrive(loss)
            if trial.idle:
                return
            reading = trial.read(value, lambda: self._moments(trial), ahead=lambda: self._leap_ahead(trial))
            if not reading.later:
                self._catch_up(trial)
                if not (trial.leapt or self._read_finite(trial, reading, "at ASAM's point")):
                    return
        else:
            self._start(trial, loss)
            if trial.idle:
                return
            assert trial.start is not None
            reading = trial.start
        trial.first = reading

        if reading.later:
            clipped = options["max_grad_norm"] is not None
            trial.clip, trial.limit, trial.factor = trial.part(
                "limit", lambda: trial.run(_pass_limit, trial.plan.constants, reading.totals, clipped)
            )
        else:
            trial.clip = _clip(reading.totals, options["max_grad_norm"])
            trial.limit = limit = _limit(trial.plan.beta1, reading.totals, trial.clip)
            trial.known_factor = limit * trial.clip
            trial.factor = trial.known_factor

    def _ascend(self, trial: _Trial) -> None:
        """Move to ASAM's point, w + ρ·T²·s / (‖T·s‖ + 1e-16)."""
        assert trial.start is not None
        totals = trial.start.totals

        def size(rho: float) -> Any:
            return rho / (_root_of_sum(totals, 0) + ASAM_FLOOR)

        def climb() -> None:
            for bucket in trial.buckets:
                bucket.climb(trial.do(partial(size, bucket.group["rho"])))

        trial.part("climb", climb)

    def _leap(self, trial: _Trial) -> None:
        """Update the averages and move by `lr`; with `acme`, by γ times the step size as it is."""
        first = trial.buckets[0].group
        lengths = self._lengths(trial)
        if not first["acme"]:
            for group in self.param_groups:
                group["step_size"] = float(group["lr"])

        def leap() -> None:
            for bucket in trial.buckets:
                bucket.leap(lengths[id(bucket.group)], trial.factor, trial.clip)

        if not trial.leapt:
            trial.part("leap", leap)
        alpha, applied = first["step_size"], lengths[id(first)]
        self._report = Report(
            trial.l0, None, None, None, None, alpha, applied, float(trial.limit), trial.evaluations
        )

    def _lengths(self, trial: _Trial) -> dict[int, float]:
        """The step size to apply without a look-ahead, by the id of the group."""
        if trial.buckets[0].group["acme"]:
            return {id(b.group): _damping(b.group) * b.group["step_size"] for b in trial.buckets}
        return {id(b.group): float(b.group["lr"]) for b in trial.buckets}

    def _leap_ahead(self, trial: _Trial) -> tuple[Tensor, Callable[[], None]]:
        """`_leap`, by `_move_ahead`."""
        lengths = self._lengths(trial)

        def leap(allowed: _Allowed) -> None:
            for bucket in trial.buckets:
                bucket.leap(lengths[id(bucket.group)], allowed.factor, allowed.clip, allowed.good)

        return self._move_ahead(trial, leap)

    def _move_ahead(
        self, trial: _Trial, move: Callable[[_Allowed], None]
    ) -> tuple[Tensor, Callable[[], None]]:
        """The end of a captured step, handed to the device before the step's sums are read.

        So the device works on while the host waits for them. What they do not allow does not move anything: it is
        for the host to go on from there.

        Returns:
            Whether they allow it, as 1 or 0 on the device, and the function that moves.
        """
        clipped = self.param_groups[0]["max_grad_norm"] is not None

        def allow() -> _Allowed:
            parts = [torch.split(vector, lengths) for vector, lengths in trial.pending]
            return _Allowed(*trial.run(_pass_allow, trial.plan.constants, parts, clipped, trial.ahead))

        allowed = trial.part("allow", allow)
        return allowed.good, lambda: trial.part("move ahead", lambda: move(allowed))

    def _look(self, trial: _Trial) -> None:
        """Move one full step ahead, along the direction of the averages as they will be.

        They are updated only after the evaluation there, so that an exception in it leaves them alone. What the
        update takes is kept until then, since the evaluation overwrites the gradient: the new average where that
        is all, else the gradient.
        """
        looked = trial.looked and trial.known_factor == 1

        def look() -> list[Tensor | None]:
            return [
                bucket.slope if looked else bucket.look(bucket.group["step_size"], trial.factor)
                for bucket in trial.buckets
            ]

        trial.slopes = [slope for slope in trial.part("look", look) if slope is not None]
        trial.ahead = True

    def _leap_by_two(self, trial: _Trial, loss: Tensor) -> None:
        """Decide on the step size by the look-ahead, move, and use the second gradient too (`acme`)."""
        options = self.param_groups[0]
        buckets, max_norm = trial.buckets, options["max_grad_norm"]
        reference = next((b.group for b in buckets if b.group["step_size"] > 0), buckets[0].group)
        alpha, steps = reference["step_size"], reference["look_interval"]
        memory = buckets[0].beta1 ** steps  # of the step size, since the last look-ahead

        def relative(group: dict[str, Any]) -> float:
            """A group's step size in units of the first's: exactly 1 for equal groups."""
            return group["step_size"] / alpha if alpha > 0 else 1.0

        gains = [_damping(bucket.group) * relative(bucket.group) for bucket in buckets]
        # With the leap in the same pass, for a better look-ahead, as nearly all are; without adam and nesterov also
        # with the second gradient, for a limit of 1. Otherwise it starts anew from what is kept. Not where waiting
        # for other ranks may fail.
        searching = options["search_left"] > 0 and alpha > 0
        at_once = not (options["adam"] or options["nesterov"])
        leapt = trial.looked and trial.ranks is None and not searching and (at_once or not trial.compile)

        def sums() -> list[list[Tensor]]:
            if not leapt:
                return [bucket.moments_ahead(trial.factor) for bucket in buckets]
            return [
                bucket.moments_and_leap(alpha * gain, trial.factor)
                for bucket, gain in zip(buckets, gains, strict=True)
            ]

        def leap_ahead(allowed: _Allowed) -> None:
            """The leap after a better look-ahead, which most are."""
            for bucket, gain in zip(buckets, gains, strict=True):
                bucket.leap_by_two(
                    alpha * gain,
                    trial.factor,
                    False,
                    allowed.clip,
                    allowed.factor,
                    allowed.used,
                    allowed.good,
                )

        ahead = None if searching else partial(self._move_ahead, trial, leap_ahead)
        reading = trial.read(loss, sums, slopes=trial.slopes, ahead=ahead)
        self._catch_up(trial)
        start = trial.start
        assert start is not None
        l0, l1, limit = trial.l0, reading.loss, float(trial.limit)
        p0 = p1 = 0.0
        for (group, *_), slope, (slope1, *_), (pg, _, gg, _) in zip(
            trial.plan.kinds,
            reading.slopes or repeat(None),
            reading.totals,
            trial.first.totals,
            strict=False,
        ):
            # Unless measured, by how the averages are updated: d = (β1·m + (1 - β1)·g')/D, with D as in the sums.
            if slope is None:
                slope = group["betas"][0] * pg + (1 - group["betas"][0]) * trial.known_factor * gg
            p0 += relative(group) * slope
            p1 += relative(group) * slope1

        if not (math.isfinite(l1) and math.isfinite(p0) and reading.finite(max_norm is not None)):
            trial.restore_weights()
            for bucket in buckets:
                bucket.give_up(trial.factor)
            if searching:
                self._search(alpha, *search(l0, math.nan, p0, p1, alpha))
            else:
                for group in self.param_groups:
                    group["step_size"] *= memory if steps == 1 else max(memory, 0.5)
            self._report = Report(l0, l1, p0, p1, Decision.NON_FINITE, alpha, 0.0, limit, trial.evaluations)
            return

        target, step, decision = adapt(l0, l1, p0, p1, alpha, memory)
        over = moves = True
        if searching:
            target, over = search(l0, l1, p0, p1, alpha, options["search_latest"])
            moves = over and target == alpha
        worse = l1 > l0
        clip1 = _clip(reading.totals, max_norm)
        factor1 = clip1 * _limit(trial.plan.beta1, reading.totals, clip1)
        clip = _clip(start.totals, max_norm) if worse else clip1
        length = (step if worse else alpha) if moves else 0.0
        used = l1 < l0 and moves  # the second gradient is

        def leap() -> None:
            for bucket, gain in zip(buckets, gains, strict=True):
                bucket.leap_by_two(length * gain, trial.factor, worse, clip, factor1 if used else None)

        if leapt and not (at_once or worse):  # only the second gradient is left
            for bucket in buckets if used else ():
                bucket.update_again(factor1)
        elif not (trial.leapt or (leapt and used and factor1 == 1)):
            trial.part("leap by two", leap)
        applied = _damping(reference) * length
        if searching:
            self._search(alpha, target, over)
        else:
            for group, ratio in [(group, relative(group)) for group in self.param_groups]:
                before = group["step_size"]
                group["step_size"] = memory * before + (1 - memory) * target * ratio
                if steps > 1:
                    group["step_size"] = min(max(group["step_size"], before / 2), 2 * before)
            self._settle(target / alpha - 1 if alpha > 0 else 0.0)
        self._report = Report(l0, l1, p0, p1, decision, alpha, applied, limit, trial.evaluations)
        self._watch_for_clipping(_root_of_sum(start.totals, 3), self._report)

    def _search(self, alpha: float, target: float, over: bool) -> None:
        """Take over what the search says: `target` instead of `alpha`, for all groups in proportion."""
        for group in self.param_groups:
            group["step_size"] = min(group["step_size"] * (target / alpha), sys.float_info.max)
            group["search_left"] = 0 if over else group["search_left"] - 1
            group["search_latest"] = (target > alpha) - (target < alpha) or group["search_latest"]

    def _settle(self, move: float) -> None:
        """Choose the interval to the next look-ahead; `move` is τ/α - 1, by which the step size was wrong."""
        move = max(-1.0, min(move, 1.0))
        for group in self.param_groups:
            trend = group["trend"]
            group["trend"] = trend = (
                move if trend is None else TREND_MEMORY * trend + (1 - TREND_MEMORY) * move
            )
            interval = group["look_interval"]
            interval = 2 * interval if abs(trend) < SETTLED_TREND else interval // 2
            group["look_interval"] = max(1, min(interval, group["adapt_every"]))

    def _catch_up(self, trial: _Trial) -> None:
        """What was put off to the one wait for the device: is all finite, does every parameter take part?"""
        if not trial.settled:
            return
        start = trial.start = trial.settled[0]
        trial.first = trial.settled[-1]
        if not trial.leapt:  # else the device has looked
            for reading, where in zip(trial.settled, ("at the start", "at ASAM's point"), strict=False):
                self._read_finite(trial, reading, where)
        self._check_ranks(start)
        trial.l0 = start.loss
        # Anew, from the same sums: the numbers on the device would have to be waited for. `factor` stays there,
        # so that all updates take the very same.
        clip = _clip(trial.first.totals, self.param_groups[0]["max_grad_norm"])
        trial.limit = _limit(trial.plan.beta1, trial.first.totals, clip)
        trial.known_factor = trial.limit * clip
        zeros = set() if trial.leapt else trial.plan.zeros(start, [])
        if zeros:
            self._zeros = zeros
            raise _Again

    def _finish(self, trial: _Trial) -> None:
        """Count the step, if there was one."""
        trial.done = True
        options = self.param_groups[0]
        if trial.idle:
            alpha = options["step_size"] if options["acme"] else float(options["lr"])
            decision = Decision.NON_FINITE if trial.skipped else None
            self._report = Report(trial.l0, None, None, None, decision, alpha, 0.0, 1.0, trial.evaluations)
            return
        assert self._report is not None
        failed = self._report.decision is Decision.NON_FINITE
        for group in self.param_groups:
            group["t"] = 1 if failed else group["t"] + 1
            group["annealing_step"] += 1
            if failed:
                group["look_interval"], group["trend"] = 1, None
            if trial.looks:
                group["look_in"] = group["look_interval"]
            group["look_in"] = max(group["look_in"] - 1, 0)

    # Warnings -------------------------------------------------------------------------------------------

    def _check_ranks(self, reading: _Reading) -> None:
        if reading.uneven:
            self._warn(
                "The ranks' gradients differ, so the ranks drift apart: they have to be averaged before each step "
                "(DistributedDataParallel, fully_shard; with no_sync, all but the last backward). If the ranks train "
                "independently, pass Acme a process_group of one rank."
            )

    def _warn(self, message: str) -> None:
        """Once for each optimizer."""
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=3)

    def _watch_for_clipping(self, norm: float, report: Report) -> None:
        """Warn of gradients clipped in the closure.

        A sign of it is a largest norm that is met again and again, in steps whose loss falls by more than the two
        slopes (smaller than they should be) account for: by the trapezoid rule, exact for a quadratic.
        """
        fall = report.loss - report.look_ahead_loss  # type: ignore[operator]
        p0, p1 = report.slope, report.look_ahead_slope
        assert p0 is not None and p1 is not None
        expected = report.step_size * (p0 + p1) / 2
        if norm > self._largest_norm * (1 + SAME_NORM):
            self._largest_norm, self._clipped_steps = norm, 0
        elif norm < self._largest_norm * (1 - SAME_NORM):
            return
        if not (
            min(p0, p1) > 0 and report.decision is not Decision.UNCLEAR and fall > CLIPPED_FALL * expected
        ):
            self._clipped_steps = 0
            return
        self._clipped_steps += 1
        if self._clipped_steps >= CLIPPED_STEPS:
            self._warn(
                f"Gradients seem to be clipped or normalised in the closure: their norm is {norm:.6g} again and again, "
                "and the loss falls faster than they say. That falsifies the slopes; pass max_grad_norm to Acme and "
                "leave the closure's gradient as it is."
            )

    # State ----------------------------------------------------------------------------------------------

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; the optimizer then continues bit for bit.

        The saved options replace the constructor's, as in every `torch.optim` optimizer. The tensors are
        copied: further steps leave `state_dict` as it is. Averages keep their precision (torch would cast them
        to the parameters').

        Raises:
            ValueError: groups that do not match, options out of range, or `asam` without names.
        """
        loaded: dict[str, Any] = {}

        def restore(_: Optimizer) -> None:
            saved = [index for group in loaded["param_groups"] for index in group["params"]]
            params = [param for group in self.param_groups for param in group["params"]]
            for index, param in zip(saved, params, strict=True):
                if index in loaded["state"]:
                    self.state[param] = {
                        key: value.detach().to(param.device, _state_dtype(param), copy=True)
                        for key, value in loaded["state"][index].items()
                        if isinstance(value, Tensor)
                    }
                    self._unsure.add(param)

        # Behind the user's own hooks before, so as to see the dict that is really loaded, and ahead of the
        # user's own hooks after.
        before = self.register_load_state_dict_pre_hook(lambda _, final: loaded.update(final))
        after = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def __getstate__(self) -> dict[str, Any]:
        own = {name: vars(self)[name] for name in ("_model", "_process_group", "_compile", "_report")}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_report" in state:  # a copy; otherwise `load_state_dict`
            self._begin()
        self._unsure.update(self.state)
        self._plan, self._zeros = None, set()
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            group.update(_checked(group))
            _complete(group, self.param_groups[0])
        for name in _SHARED_OPTIONS:
            self.defaults[name] = self.param_groups[0][name]
        if self.defaults["asam"] and "param_names" not in self.param_groups[0]:
            raise ValueError(_NO_NAMES)

    def __repr__(self) -> str:
        first = self.param_groups[0]
        switches = ", ".join(f"{name}={first[name]}" for name in _SHARED_OPTIONS if name != "differentiable")
        lines = [f"Acme({switches}"]
        for number, group in enumerate(self.param_groups):
            values = ", ".join(f"{name}={group[name]}" for name in (*_GROUP_OPTIONS, "step_size", "t"))
            lines.append(f"    group {number}: {len(group['params'])} tensors, {values}")
        return "\n".join(lines) + "\n)"


class _Again(Exception):
    """The step has to be taken anew, with waiting for the device."""


class _Allowed(NamedTuple):
    """What the device makes of the sums of a step by itself, for `Acme._move_ahead`: 0-dimensional."""

    good: Tensor  #: 1 if the step can be taken as the host would take it, else 0
    clip: Any  #: of the latest gradient
    factor: Any  #: the same times its limit
    used: Tensor  #: 1 if the look-ahead's gradient enters the averages


# Of each kind of parameters four sums: lists of floats, or a float64 tensor still on the device.
_Totals = Any


@dataclass
class _Reading:
    """The sums of one evaluation over all ranks, on the host; `later`: still on the device, only `totals`."""

    totals: _Totals  #: see `_Bucket.moments` (`_Bucket.ascent` at ASAM's start)
    later: bool = False
    loss: float = math.nan
    largest: Sequence[float] = ()  #: for each parameter, positive if its gradient is not zero everywhere
    squares: Sequence[float] = ()  #: of the gradients of parameters that took no part in the last step
    slopes: Sequence[float] = ()  #: Σ d·g0 by kind of parameters, where it was asked for
    uneven: bool = False  #: the ranks' gradients differ

    def finite(self, squares: bool) -> bool:
        """Whether all sums are finite; `squares`: the squared norms, too."""
        sums = chain.from_iterable(row if squares else row[:3] for row in self.totals)
        return all(map(math.isfinite, chain(sums, self.largest, self.squares)))


class _Plan:
    """How a step is divided into passes over the parameters that take part."""

    def __init__(
        self,
        entries: list[tuple[dict[str, Any], str, Tensor]],
        state: dict[Tensor, dict[str, Any]],
        trial: _Trial,
    ) -> None:
        self.entries = entries
        self.states = [state[param] for _, _, param in entries]
        self.all_states = list(state.values())  # found again without asking every parameter for its hash
        size = 1 if trial.ranks is None else dist.get_world_size(trial.ranks)
        self.graphs: _Graphs | None = None
        self.groups = [group for group, _, _ in entries]
        self.params = params = [param for _, _, param in entries]
        if (
            trial.compile
            and size == 1
            and _capturable(trial.device)
            and {param.device for param in params} == {trial.device}
            and not any(map(_is_dtensor, params))
            and len({id(group) for group, _, _ in entries}) <= MOST_CAPTURED_GROUPS
        ):
            self.graphs = _Graphs(trial.device)
        self.total = sum(_local(param).numel() for param in params)
        shares = [_share(param, size) for _, _, param in entries]
        # Kinds of parameters, alike on all ranks: by group, and by how many ranks hold the same elements.
        self.kinds: list[tuple[dict[str, Any], float, list[_Bucket]]] = []
        self.packed: list[int] = []  # places in `entries`, in the order in which the packs hold them
        self.spanned: list[int] = []  # the same of those taken alone, once for each span
        for group in {id(group): group for group, _, _ in entries}.values():
            for share in dict.fromkeys(
                share for e, share in zip(entries, shares, strict=True) if e[0] is group
            ):
                members = [i for i, e in enumerate(entries) if e[0] is group and shares[i] == share]
                self.kinds.append((group, share, self._divide(group, members, trial.compile)))
        self.buckets = [bucket for *_, buckets in self.kinds for bucket in buckets]
        if self.graphs is not None:
            self.graphs.dtypes = {state["exp_avg"].dtype for state in self.states}
        self.in_order = bool(entries) and self.packed == list(range(len(entries)))  # nothing is taken alone
        rows = [i for i, bucket in enumerate(self.buckets) if bucket.span is not None]
        self.span_rows = torch.tensor(rows, dtype=torch.int64, device=trial.device)
        self.places = torch.tensor(self.packed + self.spanned, dtype=torch.int64, device=trial.device)
        self.scratch = _Scratch(max((bucket.elements for bucket in self.buckets), default=0))
        for bucket in self.buckets:
            bucket.scratch = self.scratch

    def _divide(self, group: dict[str, Any], members: list[int], compile: bool) -> list[_Bucket]:
        captured = self.graphs is not None
        make = _CapturedBucket if captured else _CompiledBucket if compile else _Bucket
        packs: dict[Any, tuple[list[int], int]] = {}
        closed: list[tuple[list[int], bool, bool]] = []
        spans: list[_Bucket] = []
        for i in members:
            _, name, owner = self.entries[i]
            param, state = _local(owner), self.states[i]
            weight = group["asam"] and "weight" in name
            size = param.numel()
            few, most = _elements_at_once(param.device, 0 if compile else self.total, group["adam"])
            if captured:
                few = most = sys.maxsize
            averages = [_local(state["exp_avg"])] + ([_local(state["exp_avg_sq"])] if group["adam"] else [])
            dense = all(average.stride() == param.stride() for average in averages) and (
                torch.empty_like(param, device="meta").stride() == param.stride()
            )
            if dense and size >= few // 2:
                if compile:  # a span is a whole parameter however large: there are no temporaries to bound
                    length = size
                else:  # of small models as ever, whose numbers are on record bit by bit
                    length = most if most == few else _equal_lengths(size, most)
                starts = range(0, size, length)
                spans += [
                    make(group, [owner], [state], weight, (k, min(k + length, size)), True) for k in starts
                ]
                self.spanned += [i] * len(starts)
            elif size:
                ordered = dense and (captured or not param.is_contiguous())
                key = (weight, ordered, param.device, param.dtype, averages[0].dtype)
                pack, room = packs.get(key, ([], 0))
                if size > room:
                    pack, room = [], most
                    closed.append((pack, weight, ordered))
                pack.append(i)
                packs[key] = (pack, room - size)
        buckets = []
        for pack, weight, ordered in closed:
            owners, states = [self.entries[i][2] for i in pack], [self.states[i] for i in pack]
            buckets.append(make(group, owners, states, weight, None, ordered))
            self.packed += pack
        return buckets + spans

    def fits(
        self,
        entries: list[tuple[dict[str, Any], str, Tensor]],
        state: dict[Tensor, dict[str, Any]],
    ) -> bool:
        """Whether this is a plan for `entries`, too."""
        return self.knows(entries, state) and all(bucket.fits() for bucket in self.buckets)

    def knows(
        self,
        entries: list[tuple[dict[str, Any], str, Tensor]],
        state: dict[Tensor, dict[str, Any]],
    ) -> bool:
        """Whether these are the entries and the state that it was made for."""
        return (
            len(entries) == len(self.entries)
            and len(state) == len(self.all_states)
            and all(map(is_, map(itemgetter(2), entries), self.params))
            and all(map(is_, map(itemgetter(0), entries), self.groups))
            and all(map(is_, state.values(), self.all_states))
        )

    def begin(self, trial: _Trial) -> None:
        trial.graphs = self.graphs if trial.ahead_of_device else None
        self.beta1 = [group["betas"][0] for group, *_ in self.kinds]
        if trial.ahead_of_device and self.kinds:
            max_norm = self.kinds[0][0]["max_grad_norm"]
            constants = (math.inf if max_norm is None else max_norm, *self.beta1)
            self.constants = self.scratch.vector(constants, _sum_dtype(trial.device), trial.device)
        if trial.graphs is not None:
            # What the graphs hold as it was when they were captured.
            trial.graphs.constants = tuple(
                (group["betas"], group["rho"], group["max_grad_norm"]) for group, *_ in self.kinds
            )
            trial.graphs.held = self.constants
        for bucket in self.buckets:
            bucket.begin(trial)

    def largest(self, table: Tensor) -> Tensor:
        """For each parameter, positive if its gradient is not zero everywhere; `table` has each bucket's sums."""
        flags = [bucket.largest.to(table.device) for bucket in self.buckets if bucket.largest is not None]
        if self.in_order:
            return torch.cat(flags)
        flags.append(table[self.span_rows, 2])
        result = table.new_zeros(len(self.entries))
        return result.index_add_(0, self.places, torch.cat(flags))

    def zeros(self, reading: _Reading, others: list[Tensor]) -> set[Tensor]:
        """The parameters whose gradient is zero everywhere; of `others`, `reading.squares` tells."""
        zeros = {
            param for (_, _, param), most in zip(self.entries, reading.largest, strict=True) if not most > 0
        }
        return zeros | {param for param, square in zip(others, reading.squares, strict=True) if square == 0}


_STRIDES, _ADDRESS = methodcaller("stride"), methodcaller("data_ptr")


class _Bucket:
    """What one pass works on: a span of one parameter, or some small parameters packed together.

    Everything is one-dimensional here: views of a span's memory, or copies of a pack's elements.
    """

    def __init__(
        self,
        group: dict[str, Any],
        owners: list[Tensor],
        states: list[dict[str, Tensor]],
        weight: bool,
        span: tuple[int, int] | None,
        ordered: bool,
    ) -> None:
        self.group = group
        self.owners = owners  # the parameters, which carry the gradients
        self.states = states
        self.weight = weight  # named a weight, for ASAM
        self.span = span
        self.ordered = ordered  # in the order of the parameters' memory, else that of their indices
        self.sharded = any(_is_dtensor(owner) for owner in owners)
        params = self._locals(owners)
        self.strides = list(map(_STRIDES, params)) if ordered else []
        self.sizes = [param.numel() for param in params]
        self.elements = sum(self.sizes) if span is None else span[1] - span[0]
        self.vectors = all(param.ndim == 1 for param in params)
        self.views: dict[int, Tensor] = {}  # of a span, the elements of what lies at an address
        self.buffers: dict[str, Tensor] = {}  # of a span on the CPU, kept from step to step
        self.scratch: _Scratch
        self.offsets: Tensor | None = None  # where a pack's parameters begin and end
        self.params: list[Tensor] = []  # their elements on this rank

    def fits(self) -> bool:
        return not self.ordered or list(map(_STRIDES, self._locals(self.owners))) == self.strides

    def begin(self, trial: _Trial) -> None:
        """Before a step."""
        self.trial = trial
        self.params = self._locals(self.owners)
        self.m = self._locals([state["exp_avg"] for state in self.states])
        self.v = self._locals([state["exp_avg_sq"] for state in self.states]) if self.group["adam"] else []
        self.dtype = self.m[0].dtype
        self.beta1, _ = self.group["betas"]
        self.factors = _factors(self.group, self.dtype)
        self.weights: Tensor | None = None  # where the step starts, once saved
        self.packed_gradient: Tensor | None = None  # of this evaluation
        self.largest: Tensor | None = None  # of a pack, each parameter's largest magnitude in the gradient
        self.g0: Tensor | None = None  # the gradient at the start, where it is not that of the first update
        self.kept: Tensor | None = None  # the gradient of the first update, kept over the look-ahead ...
        self.pending: Tensor | None = None  # ... or the average that it makes
        self.updated = False  # the averages have taken that gradient
        self.climbing = False  # T²·s lies where the parameters are, until the climb
        self.slope: Tensor | None = None  # Σ d·g0 of a look-ahead that was taken with the sums

    def end(self) -> None:
        """After a step: nothing is kept of it."""
        self.params, self.m, self.v = [], [], []
        self.weights = self.packed_gradient = self.largest = self.g0 = self.kept = self.pending = None
        del self.trial

    # Elements -------------------------------------------------------------------------------------------

    def _locals(self, tensors: list[Tensor]) -> list[Tensor]:
        return [_local(tensor) for tensor in tensors] if self.sharded else tensors

    def read(self, tensors: list[Tensor]) -> Tensor:
        """One tensor for each parameter, as one dimension: a view of a span, a copy of a pack."""
        if self.span is not None:
            address = tensors[0].data_ptr()
            view = self.views.get(address)
            if view is None or view.dtype != tensors[0].dtype:
                start, stop = self.span
                if len(self.views) > 3:  # the memory of parameter and averages has changed
                    self.views.clear()
                view = self.views[address] = _elements(tensors[0], self.strides[0])[start:stop]
            return view
        if self.ordered:
            return torch.cat(
                [_elements(t, strides) for t, strides in zip(tensors, self.strides, strict=True)]
            )
        if len(tensors) == 1:  # of which flattening gives a view
            return tensors[0].flatten().clone()
        return torch.cat(tensors) if self.vectors else torch._C._nn.flatten_dense_tensors(tensors)

    def keep(self, name: str, tensor: Tensor) -> Tensor:
        """A copy that outlives the evaluations; of a pack, `tensor` is one already."""
        return tensor if self.span is None else self.memory(name, tensor.dtype).copy_(tensor)

    def memory(self, name: str, dtype: torch.dtype) -> Tensor:
        """Uninitialised memory that outlives the evaluations.

        On the CPU, it is kept from step to step (the system is slow to give it): what the evaluation at the
        look-ahead point has to get by with anyway, which is where the most is in use.
        """
        device = self.m[0].device
        if device.type != "cpu":
            return torch.empty(self.elements, dtype=dtype, device=device)
        if name not in self.buffers or self.buffers[name].dtype != dtype:
            self.buffers[name] = torch.empty(self.elements, dtype=dtype)
        return self.buffers[name]

    def write(self, tensors: list[Tensor], values: Tensor) -> None:
        """The inverse of `read`, into the tensors."""
        if self.span is not None:
            elements = self.read(tensors)
            if elements.data_ptr() != values.data_ptr():
                elements.copy_(values)
        elif self.ordered:
            views = [_elements(t, strides) for t, strides in zip(tensors, self.strides, strict=True)]
            torch._foreach_copy_(views, list(torch.split(values, self.sizes)))
        elif self.vectors:
            torch._foreach_copy_(tensors, list(torch.split(values, self.sizes)))
        else:
            torch._foreach_copy_(tensors, list(torch._C._nn.unflatten_dense_tensors(values, tensors)))

    def raw_gradient(self) -> Tensor:
        """The gradient as it is now, in its own precision; a missing one is zero."""
        if self.packed_gradient is not None:
            return self.packed_gradient
        if self.span is not None:
            start, stop = self.span
            return self.trial.ordered(self.owners[0], self.strides[0])[start:stop]
        result = self.read(self._locals(_gradients(self.owners)))
        if self.trial.looks:  # which reads it again
            self.packed_gradient = result
        return result

    def of_state(self, tensor: Tensor) -> Tensor:
        """In the averages' precision."""
        return tensor if tensor.dtype == self.dtype else tensor.to(self.dtype)

    def gradient(self) -> Tensor:
        """The gradient as it is now, in the averages' precision."""
        return self.of_state(self.raw_gradient())

    def start_gradient(self) -> Tensor:
        """The gradient at the start, kept over the look-ahead."""
        if self.g0 is not None:
            return self.g0
        assert self.kept is not None
        return self.of_state(self.kept)

    # Averages -------------------------------------------------------------------------------------------

    def averages(self) -> tuple[Tensor, Tensor | None]:
        """m and, with `adam`, v: of a span the very elements, of a pack copies."""
        return self.read(self.m), self.read(self.v) if self.v else None

    def averages_ahead(self, factor: float | Tensor, commit: bool = False) -> tuple[Tensor, Tensor | None]:
        """The averages after the first update; `commit`: in place, where they are free to be changed further."""
        if self.pending is not None:
            return self.pending, None
        m, v = self.averages()
        if self.updated:
            return m, v
        assert self.kept is not None
        return _updated(self.factors, m, v, self.of_state(self.kept), factor, self.room, commit)

    def keep_averages(self, m: Tensor, v: Tensor | None) -> None:
        self.write(self.m, m)
        if v is not None:
            self.write(self.v, v)

    def room_for_average(self, use: str, wide: bool = False) -> Tensor:
        """`room`, of the average that outlives the look-ahead's evaluation."""
        return self.memory("average", self.dtype) if use == "m" else self.room(use, wide)

    # Arithmetic -----------------------------------------------------------------------------------------

    def room(self, use: str, wide: bool = False) -> Tensor:
        """Uninitialised memory of this bucket's length, in the averages' precision or (`wide`) that of sums."""
        device = self.m[0].device
        return self.scratch.get(use, self.elements, _sum_dtype(device) if wide else self.dtype, device)

    def moments(self) -> list[Tensor]:
        """Σ m·g/D, Σ m·m/D, Σ g·g/D and Σ g·g of the gradient as it is now: float64, 0-dimensional.

        With `adam` the last is taken where it is used: for clipping, and roughly to watch for clipping.
        """
        g = self.gradient()
        self._note_largest(g)
        return self._moments(*self.averages(), g)

    def moments_ahead(self, factor: float | Tensor) -> list[Tensor]:
        """The same with the averages after the first update."""
        return self._moments(*self.averages_ahead(factor), self.gradient())

    def _moments(self, m: Tensor, v: Tensor | None, g: Tensor, divisor: Tensor | None = None) -> list[Tensor]:
        sums, square = _moments(self.factors, m, v, g, self.room, divisor)
        if square is None:
            if self.group["max_grad_norm"] is not None:
                square = _dot(g, g, self.room)
            elif self.group["acme"] and self.trial.start is None:
                square = torch.dot(g, g).to(sums[0].dtype)
            else:
                square = self.trial.nothing
        return [*sums, square]

    def _note_largest(self, g: Tensor) -> None:
        """Of a pack: each parameter's largest magnitude in the gradient, from which `_Plan.zeros` tells."""
        if self.span is not None or self.largest is not None or self.trial.evaluations > 1:
            return
        if g.device.type == "cpu":
            if self.offsets is None:
                ends = torch.tensor([0, *self.sizes]).cumsum(0)
                self.offsets = ends
            largest = torch.segment_reduce(g.abs(), "max", offsets=self.offsets)
        else:
            largest = torch.stack(torch._foreach_norm(self._locals(_gradients(self.owners)), math.inf))
        self.largest = largest.to(_sum_dtype(g.device))

    def scaled_ascent(self) -> tuple[Tensor, Tensor | None]:
        there = self.of_state(self.read(self.params)) if self.weight else None
        v = self.read(self.v) if self.v else None
        return _scaled_ascent(self.factors, v, self.gradient(), there, self.room)

    def ascent(self) -> list[Tensor]:
        """‖T·s‖², nothing, and Σ g·g twice: what the start of an ASAM step needs, in the places of `moments`."""
        g = self.gradient()
        self._note_largest(g)
        scaled, scales = self.scaled_ascent()
        norm, square = _dot(scaled, scaled, self.room), _dot(g, g, self.room)
        if self.span is not None and self.params[0].dtype == self.dtype:
            self._leave_start()
            there = self.read(self.params)
            if scales is None:
                there.copy_(scaled)
            else:
                torch.mul(scaled, scales, out=there)
            self.climbing = True
        return [norm, self.trial.nothing, square, square]

    def _leave_start(self) -> None:
        """Keep the weights and, for the look-ahead, the gradient where the step starts."""
        self.save_weights()
        if self.trial.looks:
            self.g0 = self.keep("start", self.gradient())

    # The parts of a step --------------------------------------------------------------------------------

    def climb(self, size: float | Tensor) -> None:
        """Move to ASAM's point, `size`·T²·s uphill, from where the step starts."""
        if self.climbing:
            self.place(self.read(self.params), -size)
            return
        self._leave_start()
        scaled, scales = self.scaled_ascent()
        self.place(scaled if scales is None else scaled.mul_(scales), -size)

    def leap(
        self, size: float, factor: float | Tensor, clip: float | Tensor, good: Tensor | None = None
    ) -> None:
        """Update the averages and move by `size` (without a look-ahead); not at all where `good` is 0."""
        assert good is None  # only captured
        gradient = self.gradient()
        m, v = _updated(self.factors, *self.averages(), gradient, factor, self.room, commit=True)
        self.move(m, v, size, gradient if self.group["nesterov"] else None, clip)
        self.keep_averages(m, v)

    def look(self, size: float, factor: float | Tensor) -> Tensor | None:
        """Move `size` ahead along the direction of the averages as they will be; Σ d·g0, where it takes a pass.

        What the update of the averages takes is kept: the new average where that is all, else the gradient.
        """
        slope = self._look(size, factor)
        if not self.group["nesterov"]:
            self.g0 = None
        return slope

    def moments_and_look(self, size: float) -> list[Tensor]:
        """`moments` and `look` at once, by the gradient itself; Σ d·g0 is left in `slope`."""
        sums = self.moments()
        self.slope = self._look(size, 1.0)
        return sums

    def _look(self, size: float, factor: float | Tensor) -> Tensor | None:
        adam, asam, nesterov = (self.group[name] for name in ("adam", "asam", "nesterov"))
        slope = None
        self.save_weights()
        gradient = self.gradient()
        kept = adam or nesterov
        room = self.room if kept else self.room_for_average
        m, v = _updated(self.factors, *self.averages(), gradient, factor, room)
        direction, scale = _direction(self.factors, m, v, self.room)
        if adam or asam:
            slope = _dot(direction, gradient if self.g0 is None else self.g0, self.room) * scale
        if kept:
            self.kept = self.keep("gradient", self.raw_gradient())
        else:
            self.pending = m
        self.place(direction, size * scale)
        return slope

    def moments_and_leap(self, size: float, factor: float | Tensor) -> list[Tensor]:
        """`moments_ahead`, and `leap_by_two` after a better look-ahead that no limit holds back.

        Where the averages cannot be told from what is kept afterwards, they take the first gradient only.
        """
        m, v = self.averages_ahead(factor, commit=True)
        gradient = self.gradient()
        divisor = None if v is None else _denominator(self.factors, v, self.room)
        sums = self._moments(m, v, gradient, divisor)
        self.move(m, v, size, gradient if self.group["nesterov"] else None, 1.0, divisor)
        if self.pending is None:
            self.updated = True
        else:
            m, v = self._updated_again(m, v, 1.0)
        self.keep_averages(m, v)
        return sums

    def update_again(self, factor: float) -> None:
        """Update the averages, which have taken the first gradient, with `factor` times that of now."""
        self.keep_averages(*self._updated_again(*self.averages(), factor))

    def _updated_again(self, m: Tensor, v: Tensor | None, factor: float) -> tuple[Tensor, Tensor | None]:
        """The averages after the second update, in place but for those that are kept."""
        gradient = self.gradient()
        if self.pending is None:
            return _updated(self.factors, m, v, gradient, factor, self.room, commit=True)
        there = None if self.span is None else self.read(self.m)
        return torch.lerp(m, _times(gradient, factor, self.room("g")), self.factors.rest1, out=there), None

    def leap_by_two(
        self,
        size: float,
        factor: float | Tensor,
        worse: bool,
        clip: float,
        factor1: float | None,
        used: Tensor | None = None,
        good: Tensor | None = None,
    ) -> None:
        """Update the averages with the first gradient, move by `size`, update them with the second (`acme`).

        Args:
            worse: the look-ahead was worse than the start, whose gradient Nesterov's term then takes.
            clip: what clips that gradient.
            factor1: the second gradient's; None leaves that update out.
            used: captured, 0 leaves it out, too.
            good: captured, 0 leaves everything out.
        """
        assert used is None and good is None
        m, v = self.averages_ahead(factor, commit=True)
        nesterov = None
        if self.group["nesterov"]:
            nesterov = self.start_gradient() if worse else self.gradient()
        self.move(m, v, size, nesterov, clip)
        if factor1 is not None:
            m, v = self._updated_again(m, v, factor1)
        self.keep_averages(m, v)

    def give_up(self, factor: float | Tensor) -> None:
        """Update the averages after a look-ahead that is not finite."""
        m, v = self.averages_ahead(factor, commit=True)
        self.keep_averages(m.mul_(1 - self.beta1), v)

    # Weights --------------------------------------------------------------------------------------------

    def save_weights(self) -> None:
        if self.weights is None:
            self.weights = self.keep("weights", self.read(self.params))

    def restore_weights(self) -> None:
        if self.weights is not None:
            self.write(self.params, self.weights)

    def undo(self) -> None:
        """After a step that cannot be taken."""
        self.restore_weights()

    def place(
        self,
        direction: Tensor,
        size: float | Tensor,
        weight_decay: float = 0.0,
        bounded: bool = False,
    ) -> None:
        """Put the parameters at (weights - size·direction)·(1 - weight_decay).

        `bounded`: what 16 bits, or with Nesterov's term any dtype, cannot hold becomes its largest number. A trial
        point may overflow: its loss says so.
        """
        start = self.read(self.params) if self.weights is None else self.weights
        if isinstance(size, Tensor):
            moved = torch.addcmul(self.of_state(start), direction, size.to(self.dtype), value=-1)
        else:
            most = torch.finfo(self.dtype).max
            size = max(-most, min(size, most))
            if self.span is not None and start.dtype == self.dtype:
                moved = torch.add(start, direction, alpha=-size, out=self.read(self.params))
            else:
                moved = torch.add(self.of_state(start), direction, alpha=-size)
        if weight_decay:
            moved.mul_(1 - weight_decay)
        # Nesterov's last term takes a gradient that no limit bounds: times the step size it may be anything.
        if bounded and (moved.dtype != start.dtype or self.group["nesterov"]):
            most = torch.finfo(start.dtype).max
            moved.clamp_(-most, most)
        self.write(self.params, moved)

    def move(
        self,
        m: Tensor,
        v: Tensor | None,
        size: float,
        nesterov: Tensor | None,
        clip: float | Tensor,
        divisor: Tensor | None = None,
    ) -> None:
        """Put the parameters `size` along d, decayed; with `nesterov`, its term takes that gradient times `clip`."""
        if nesterov is not None:
            m = _with_nesterov(self.factors, m, nesterov, clip, self.room)
        direction, scale = _direction(self.factors, m, v, self.room, divisor)
        self.place(direction, size * scale, size * self.group["weight_decay"], bounded=True)


class _Scratch:
    """Memory for a pass's intermediate results; on the CPU the same for all passes, so that it stays in the cache."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.buffers: dict[tuple[str, torch.dtype], Tensor] = {}
        self.views: dict[tuple[str, torch.dtype, int], Tensor] = {}  # of these, of the lengths asked for
        self.vectors: dict[Any, Tensor] = {}

    def vector(self, values: tuple[Any, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Numbers as a tensor, not to be changed; the latest are remembered."""
        key = (values, dtype, device)
        if key not in self.vectors:
            if len(self.vectors) >= 32:
                self.vectors.clear()
            self.vectors[key] = torch.tensor(values, dtype=dtype).to(device, non_blocking=True)
        return self.vectors[key]

    def get(self, use: str, length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        if device.type != "cpu":
            return torch.empty(length, dtype=dtype, device=device)
        view = self.views.get((use, dtype, length))
        if view is None:
            if (use, dtype) not in self.buffers:
                self.buffers[use, dtype] = torch.empty(self.longest, dtype=dtype)
            view = self.views[use, dtype, length] = self.buffers[use, dtype][:length]
        return view


class _Factors(NamedTuple):
    """The numbers of a group's arithmetic: floats, or 0-dimensional tensors where it is compiled."""

    beta1: Any
    rest1: Any  #: 1 - β1
    beta2: Any
    rest2: Any  #: 1 - β2
    correction1: Any  #: bc1
    root_scale: Any  #: bc1 / sqrt(bc2)
    epsilon: Any  #: ε·bc1, positive
    eta: Any


def _factors(group: dict[str, Any], dtype: torch.dtype) -> _Factors:
    beta1, beta2 = group["betas"]
    corrected = group["bias_correction"]
    correction1 = 1 - beta1 ** group["t"] if corrected else 1.0
    correction2 = 1 - beta2 ** group["t"] if corrected else 1.0
    epsilon = max(group["epsilon"] * correction1, torch.finfo(dtype).tiny)
    scale = correction1 / math.sqrt(correction2)
    return _Factors(beta1, 1 - beta1, beta2, 1 - beta2, correction1, scale, epsilon, group["eta"])


# The arithmetic of a pass, on one-dimensional tensors. `room(use)` gives memory for a result, or None for new
# memory: compiled, a result that only the same pass uses has no memory at all.

_Room = Callable[..., Any]


def _times(tensor: Tensor, factor: float | Tensor, room: Tensor | None) -> Tensor:
    """`factor`·`tensor`, in `room` or the tensor itself if there is nothing to do."""
    if not isinstance(factor, Tensor) and factor == 1:
        return tensor
    return torch.mul(tensor, factor, out=room)


def _updated(
    c: _Factors,
    m: Tensor,
    v: Tensor | None,
    gradient: Tensor,
    factor: float | Tensor,
    room: _Room,
    commit: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """β1·m + (1 - β1)·g' and, with `adam`, β2·v + (1 - β2)·g'²; g' is `factor`·gradient.

    `commit`: in place. Otherwise where the next call puts it, too.
    """
    gradient = _times(gradient, factor, room("g"))
    m = torch.lerp(m, gradient, c.rest1, out=m if commit else room("m"))
    if v is not None:
        v = torch.mul(v, c.beta2, out=v if commit else room("v"))
        if isinstance(c.rest2, Tensor):
            v.add_(gradient * gradient * c.rest2)
        else:
            v.addcmul_(gradient, gradient, value=c.rest2)
    return m, v


def _denominator(c: _Factors, v: Tensor, room: _Room) -> Tensor:
    """D = (sqrt(v / bc2) + ε)·bc1 (`adam`), in `room("D")`."""
    result = torch.sqrt(v, out=room("D"))
    result = _times(result, c.root_scale, result)
    return result.add_(c.epsilon)


def _direction(
    c: _Factors, m: Tensor, v: Tensor | None, room: _Room, divisor: Tensor | None = None
) -> tuple[Tensor, Any]:
    """d = m / D as a tensor, in place of `divisor`, and a factor."""
    if v is None:
        return m, 1 / c.correction1
    divisor = _denominator(c, v, room) if divisor is None else divisor
    return torch.div(m, divisor, out=divisor), 1.0


def _with_nesterov(c: _Factors, m: Tensor, gradient: Tensor, clip: float | Tensor, room: _Room) -> Tensor:
    """β1·m + (1 - β1)·g, of which the step is Nesterov's; g is `clip`·gradient."""
    return torch.lerp(_times(gradient, clip, None), m, c.beta1, out=room("nesterov"))


def _widened(tensor: Tensor, room: _Room, use: str = "wide") -> Tensor:
    """In the precision of sums."""
    dtype = _sum_dtype(tensor.device)
    if tensor.dtype == dtype:
        return tensor
    there = room(use, wide=True)
    return tensor.to(dtype) if there is None else there.copy_(tensor)


def _dot(left: Tensor, right: Tensor, room: _Room) -> Tensor:
    """Σ left·right: float64, 0-dimensional."""
    wide = _widened(left, room)
    return _wide_dot(wide, wide if right is left else _widened(right, room, "wide too"), room)


def _wide_dot(left: Tensor, right: Tensor, room: _Room) -> Tensor:
    if room is not _nowhere or left.device.type not in ROW_DEVICES or left.numel() % ROWS:
        return torch.dot(left, right)
    # Compiled for any length, one sum is one block of threads: a fraction of the GPU.
    return (left * right).view(ROWS, -1).sum(1).sum()


def _moments(
    c: _Factors, m: Tensor, v: Tensor | None, g: Tensor, room: _Room, divisor: Tensor | None = None
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Σ m·g/D, Σ m·m/D, Σ g·g/D and, where it comes without a further sum, Σ g·g: float64, 0-dimensional.

    `divisor`: D, where it is known, and is to be left.
    """
    if v is not None:
        if divisor is None:
            root = _denominator(c, v, room).rsqrt_()
        else:
            root = torch.rsqrt(divisor, out=room("root"))
        m, g = torch.mul(m, root, out=room("scaled")), torch.mul(g, root, out=root)
    wide_m, wide_g = _widened(m, room), _widened(g, room, "wide too")
    sums = tuple(_wide_dot(a, b, room) for a, b in ((wide_m, wide_g), (wide_m, wide_m), (wide_g, wide_g)))
    if v is not None:
        return sums, None
    if not isinstance(c.correction1, Tensor) and c.correction1 == 1:
        return sums, sums[2]
    return tuple(total / c.correction1 for total in sums), sums[2]


def _scaled_ascent(
    c: _Factors, v: Tensor | None, s: Tensor, weights: Tensor | None, room: _Room
) -> tuple[Tensor, Tensor | None]:
    """T·s and T: s is the gradient, divided by D with `adam`; T = |w| + η of a weight, else None for 1."""
    if v is not None:
        divisor = _denominator(c, v, room)
        s = torch.div(s, divisor, out=divisor)
    else:
        s = torch.div(s, c.correction1, out=room("D"))
    if weights is None:
        return s, None
    scales = torch.abs(weights, out=room("T"))
    if isinstance(c.eta, Tensor) or c.eta:
        scales.add_(c.eta)
    return s.mul_(scales), scales


# The passes of `_CompiledBucket`. `numbers` holds the `_Factors`, `more` what changes from step to step, in the
# averages' precision; tensors are changed in place. What is None or a bool differs between modes only, so that
# nothing is compiled again later on.


def _as_it_was(there: Tensor, numbers: Tensor) -> Tensor:
    """`there`, before the pass changes it, as a result of arithmetic: β1 is never negative.

    A plain copy would be taken too late (https://github.com/pytorch/pytorch/issues/198131).
    """
    return torch.where(numbers[0] >= 0, there, 0)


def _nowhere(use: str, wide: bool = False) -> None:
    return None


def _moved(start: Tensor, direction: Tensor, size: Tensor, keep: Tensor | None, dtype: torch.dtype) -> Tensor:
    """(start - size·direction)·keep; `keep` is 1 - weight decay, None at a trial point; see `_Bucket.place`."""
    moved = start.to(direction.dtype) - size * direction
    if keep is not None:
        most = torch.finfo(dtype).max
        moved = (moved * keep).clamp(-most, most)
    return moved.to(dtype)


def _pass_moments(numbers: Tensor, m: Tensor, v: Tensor | None, g: Tensor) -> list[Tensor]:
    c, g = _Factors(*numbers.unbind()), g.to(m.dtype)
    sums, square = _moments(c, m, v, g, _nowhere)
    return [*sums, _dot(g, g, _nowhere) if square is None else square]


def _pass_ascent(
    numbers: Tensor, v: Tensor | None, g: Tensor, there: Tensor | None, dtype: torch.dtype
) -> list[Tensor]:
    c, g = _Factors(*numbers.unbind()), g.to(dtype)
    there = None if there is None else there.to(dtype)
    scaled, _ = _scaled_ascent(c, v, g, there, _nowhere)
    return [_dot(scaled, scaled, _nowhere), _dot(g, g, _nowhere)]


def _pass_climb(
    numbers: Tensor,
    more: Tensor,
    v: Tensor | None,
    g: Tensor,
    there: Tensor,
    weights: Tensor,
    start: Tensor | None,
    weight: bool,
) -> None:
    c, [size], g = _Factors(*numbers.unbind()), more.unbind(), g.to(numbers.dtype)
    weights.copy_(_as_it_was(there, numbers))
    if start is not None:
        start.copy_(g)
    there_wide = there.to(numbers.dtype) if weight else None
    scaled, scales = _scaled_ascent(c, v, g, there_wide, _nowhere)
    there.copy_(_moved(there, scaled if scales is None else scaled * scales, -size, None, there.dtype))


def _pass_leap(
    numbers: Tensor,
    more: Tensor,
    m: Tensor,
    v: Tensor | None,
    g: Tensor,
    there: Tensor,
    weights: Tensor | None,
    nesterov: bool,
    guarded: bool,
) -> None:
    c, g = _Factors(*numbers.unbind()), g.to(m.dtype)
    factor, size, keep, clip, good = more.unbind()
    new_m, new_v = _updated(c, m, v, g, factor, _nowhere)
    along = _with_nesterov(c, new_m, g, clip, _nowhere) if nesterov else new_m
    direction, scale = _direction(c, along, new_v, _nowhere)
    start = there if weights is None else weights
    moved = _moved(start, direction, size * scale, keep, there.dtype)
    if guarded:
        moved, new_m = torch.where(good > 0, moved, start), torch.where(good > 0, new_m, m)
        new_v = None if v is None else torch.where(good > 0, cast("Tensor", new_v), v)
    there.copy_(moved)
    m.copy_(new_m)
    if v is not None:
        assert new_v is not None
        v.copy_(new_v)


def _pass_look(
    numbers: Tensor,
    more: Tensor,
    m: Tensor,
    v: Tensor | None,
    g: Tensor,
    there: Tensor,
    weights: Tensor,
    save: bool,
    kept: Tensor | None,
    pending: Tensor | None,
    g0: Tensor | None,
    slope: bool,
) -> Tensor | None:
    c, [factor, size] = _Factors(*numbers.unbind()), more.unbind()
    if kept is not None:
        kept.copy_(g)
    g = g.to(m.dtype)
    new_m, new_v = _updated(c, m, v, g, factor, _nowhere)
    direction, scale = _direction(c, new_m, new_v, _nowhere)
    result = _dot(direction, g if g0 is None else g0, _nowhere) * scale if slope else None
    start = there if save else weights
    moved = _moved(start, direction, size * scale, None, there.dtype)
    if save:
        weights.copy_(_as_it_was(there, numbers))
    if pending is not None:
        pending.copy_(new_m)
    there.copy_(moved)
    return result


def _pass_moments_and_look(
    numbers: Tensor,
    more: Tensor,
    m: Tensor,
    v: Tensor | None,
    g: Tensor,
    *rest: Any,
) -> tuple[list[Tensor], Tensor | None]:
    return _pass_moments(numbers, m, v, g), _pass_look(numbers, more, m, v, g, *rest)


def _pass_moments_ahead(
    numbers: Tensor,
    more: Tensor,
    m: Tensor,
    v: Tensor | None,
    kept: Tensor | None,
    g: Tensor,
) -> list[Tensor]:
    c, [factor], g = _Factors(*numbers.unbind()), more.unbind(), g.to(m.dtype)
    if kept is not None:
        m, v = _updated(c, m, v, kept.to(m.dtype), factor, _nowhere)
    sums, square = _moments(c, m, v, g, _nowhere)
    return [*sums, _dot(g, g, _nowhere) if square is None else square]


def _pass_leap_by_two(
    numbers: Tensor,
    more: Tensor,
    m: Tensor,
    v: Tensor | None,
    kept: Tensor | None,
    pending: Tensor | None,
    g0: Tensor | None,
    g: Tensor,
    there: Tensor,
    weights: Tensor,
    guarded: bool,
) -> None:
    c, g = _Factors(*numbers.unbind()), g.to(m.dtype)
    factor, size, keep, clip, worse, factor1, again, good = more.unbind()
    new_m, new_v = pending, None
    if new_m is None:
        assert kept is not None
        new_m, new_v = _updated(c, m, v, kept.to(m.dtype), factor, _nowhere)
    along = new_m
    if g0 is not None:
        along = _with_nesterov(c, new_m, torch.where(worse > 0, g0.to(m.dtype), g), clip, _nowhere)
    direction, scale = _direction(c, along, new_v, _nowhere)
    moved = _moved(weights, direction, size * scale, keep, there.dtype)
    last_m, last_v = _updated(c, new_m, new_v, g, factor1, _nowhere)
    last_m = torch.where(again > 0, last_m, new_m)
    if guarded:
        moved, last_m = torch.where(good > 0, moved, weights), torch.where(good > 0, last_m, m)
    there.copy_(moved)
    m.copy_(last_m)
    if v is not None:
        assert new_v is not None and last_v is not None
        last_v = torch.where(again > 0, last_v, new_v)
        v.copy_(torch.where(good > 0, last_v, v) if guarded else last_v)


# Each mode and dtype is a compilation of its own; beyond torch's limit (8) they would run as they are. From 2.12.
_COMPILE_OPTIONS: dict[str, Any] = (
    {"recompile_limit": 64} if "recompile_limit" in inspect.signature(torch.compile).parameters else {}
)


def _pass_moments_and_leap(
    numbers: Tensor, more: Tensor, m: Tensor, pending: Tensor, g: Tensor, there: Tensor, weights: Tensor
) -> list[Tensor]:
    c, [size, keep] = _Factors(*numbers.unbind()), more.unbind()
    sums = _pass_moments(numbers, pending, None, g)
    direction, scale = _direction(c, pending, None, _nowhere)
    there.copy_(_moved(weights, direction, size * scale, keep, there.dtype))
    m.copy_(torch.lerp(pending, g.to(m.dtype), c.rest1))
    return sums


_compiled: dict[Callable[..., Any], Callable[..., Any]] = {}  # of each pass, for all optimizers


def _compile(arithmetic: Callable[..., _Result]) -> Callable[..., _Result]:
    if arithmetic not in _compiled:
        _compiled[arithmetic] = torch.compile(arithmetic, dynamic=True, **_COMPILE_OPTIONS)
    return _compiled[arithmetic]


def _pass_limit(constants: Tensor, totals: Tensor, clipped: bool) -> tuple[Any, Tensor, Tensor]:
    """What clips and limits the gradient of these sums, and both; `constants` are `max_grad_norm` and each kind's β1."""
    clip = _clip(totals, constants[0] if clipped else None)
    limit = _limit(constants[1:], totals, clip)
    return clip, limit, limit * clip


def _pass_allow(
    constants: Tensor, parts: list[tuple[Tensor, ...]], clipped: bool, ahead: bool
) -> tuple[Tensor, Any, Tensor, Tensor]:
    """`_Allowed`, from what is to be read of each evaluation (`_Trial._vector`)."""
    good = constants[0] >= 0
    for loss, totals, slopes, largest, *_ in parts:
        rows = totals.view(-1, 4)
        for numbers in (loss, rows if clipped else rows[:, :3], slopes, largest):
            good = good & torch.isfinite(numbers).all()
        good = good & (largest > 0).all()
    l0, l1 = parts[0][0].reshape(()), parts[-1][0].reshape(())
    if ahead:
        good = good & (l1 <= l0)
    clip, _, factor = _pass_limit(constants, rows, clipped)
    return good.to(l0.dtype), clip, factor, (l1 < l0).to(l0.dtype)


class _CompiledBucket(_Bucket):
    """The same parts of a step with their arithmetic compiled, each in one pass over the memory."""

    def run(self, arithmetic: Callable[..., _Result], *more: Any) -> _Result:
        numbers = self.vector(*self.factors)
        return self.trial.do(lambda: _compile(arithmetic)(numbers, *more))

    def vector(self, *values: float | Tensor) -> Tensor:
        """Numbers in the averages' precision, where these are."""
        device = self.m[0].device
        numbers = tuple(0.0 if isinstance(value, Tensor) else float(value) for value in values)
        vector = self.scratch.vector(numbers, self.dtype, device)
        if any(isinstance(value, Tensor) for value in values):
            pairs = zip(values, vector.unbind(), strict=True)
            vector = torch.stack([a.to(self.dtype) if isinstance(a, Tensor) else b for a, b in pairs])
        return vector

    def bounded(self, size: float) -> float:
        most = torch.finfo(self.dtype).max
        return max(-most, min(size, most))

    def moments(self) -> list[Tensor]:
        g = self.raw_gradient()
        self._note_largest(g)
        return self.run(_pass_moments, *self.averages(), g)

    def ascent(self) -> list[Tensor]:
        g = self.raw_gradient()
        self._note_largest(g)
        _, v = self.averages() if self.v else (None, None)
        there = self.read(self.params) if self.weight else None
        scaled, square = self.run(_pass_ascent, v, g, there, self.dtype)
        return [scaled, self.trial.nothing, square, square]

    def climb(self, size: float | Tensor) -> None:
        g, there = self.raw_gradient(), self.read(self.params)
        _, v = self.averages() if self.v else (None, None)
        weights = self.memory("weights", there.dtype)
        start = self.memory("start", self.dtype) if self.trial.looks else None
        more = self.vector(size if isinstance(size, Tensor) else self.bounded(size))
        self.run(_pass_climb, more, v, g, there, weights, start, self.weight)
        self.weights, self.g0 = weights, start
        self.write(self.params, there)

    def target(self) -> Tensor:
        """Where a pass puts the moved parameters, for `write`; not to be read."""
        assert self.weights is not None
        return self.read(self.params) if self.span is not None else torch.empty_like(self.weights)

    def leap(
        self, size: float, factor: float | Tensor, clip: float | Tensor, good: Tensor | None = None
    ) -> None:
        m, v = self.averages()
        there = self.read(self.params) if self.weights is None else self.target()
        numbers = factor, self.bounded(size), 1 - size * self.group["weight_decay"], clip
        guarded, nesterov = good is not None, self.group["nesterov"]
        more = self.vector(*numbers, 1.0 if good is None else good)
        self.run(_pass_leap, more, m, v, self.raw_gradient(), there, self.weights, nesterov, guarded)
        self.write(self.params, there)
        self.keep_averages(m, v)

    def _look(self, size: float, factor: float | Tensor) -> Tensor | None:
        return self._run_look(_pass_look, size, factor)

    def moments_and_look(self, size: float) -> list[Tensor]:
        sums, self.slope = self._run_look(_pass_moments_and_look, size, 1.0)
        self._note_largest(self.raw_gradient())
        return sums

    def _run_look(self, arithmetic: Callable[..., _Result], size: float, factor: float | Tensor) -> _Result:
        adam, asam, nesterov = (self.group[name] for name in ("adam", "asam", "nesterov"))
        save = not self.group["asam"]  # which has saved them before it climbed
        if save:
            self.restore_weights()  # from a look-ahead by another factor
        g, there = self.raw_gradient(), self.read(self.params)
        m, v = self.averages()
        weights = self.memory("weights", there.dtype) if self.weights is None else self.weights
        kept = pending = copy = None
        if not adam and not nesterov:
            pending = self.memory("average", m.dtype)
        elif self.span is None:
            kept = g
        else:
            kept = copy = self.memory("gradient", g.dtype)
        more = self.vector(factor, self.bounded(size))
        result = self.run(
            arithmetic, more, m, v, g, there, weights, save, copy, pending, self.g0, adam or asam
        )
        self.weights, self.kept, self.pending = weights, kept, pending
        self.write(self.params, there)
        return result

    def moments_ahead(self, factor: float | Tensor) -> list[Tensor]:
        m, v = self.averages() if self.pending is None else (self.pending, None)
        return self.run(_pass_moments_ahead, self.vector(factor), m, v, self.kept, self.raw_gradient())

    def moments_and_leap(self, size: float, factor: float | Tensor) -> list[Tensor]:
        assert self.pending is not None
        m, _ = self.averages()
        there = self.target()
        more = self.vector(self.bounded(size), 1 - size * self.group["weight_decay"])
        gradient = self.raw_gradient()
        sums = self.run(_pass_moments_and_leap, more, m, self.pending, gradient, there, self.weights)
        self.write(self.params, there)
        self.keep_averages(m, None)
        return sums

    def leap_by_two(
        self,
        size: float,
        factor: float | Tensor,
        worse: bool,
        clip: float,
        factor1: float | None,
        used: Tensor | None = None,
        good: Tensor | None = None,
    ) -> None:
        m, v = self.averages()
        there = self.target()
        more = self.vector(
            factor,
            self.bounded(size),
            1 - size * self.group["weight_decay"],
            clip,
            float(worse),
            1.0 if factor1 is None else factor1,
            float(factor1 is not None) if used is None else used,
            1.0 if good is None else good,
        )
        start = None
        if self.group["nesterov"]:
            start = self.kept if self.g0 is None else self.g0
        self.run(
            _pass_leap_by_two,
            more,
            m,
            v,
            self.kept,
            self.pending,
            start,
            self.raw_gradient(),
            there,
            self.weights,
            good is not None,
        )
        self.write(self.params, there)
        self.keep_averages(m, v)


class _CapturedBucket(_CompiledBucket):
    """The same on a CUDA device, all parameters alike in one piece of memory that stays where it is.

    So that the work can be captured, and for few kernels: the averages live there, and the optimizer's state has
    views of them; gradients, and the parameters where they are read, are copied.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        # Behind the parameters are zeros, which stay zero in all that is computed.
        self.elements = -(-sum(self.sizes) // ROWS) * ROWS
        self.pieces: dict[Any, Tensor] = {}
        self.shapes: dict[int, list[Tensor]] = {}  # of the piece at an address, each parameter's part
        self.addresses = list(map(_ADDRESS, self.owners))
        self.averages_of: dict[str, tuple[Tensor, list[Tensor]]] = {}
        for key in ("exp_avg", "exp_avg_sq") if self.group["adam"] else ("exp_avg",):
            tensors = [state[key] for state in self.states]
            piece = self.piece(key, tensors[0].dtype)
            parts = self.shaped(piece)
            torch._foreach_copy_(parts, tensors)
            for state, part in zip(self.states, parts, strict=True):
                state[key] = part
            self.averages_of[key] = piece, parts

    def undo(self) -> None:
        super().undo()
        # Numbers that are not finite have spoiled the zeros.
        for piece in self.pieces.values():
            piece[sum(self.sizes) :].zero_()

    def fits(self) -> bool:
        return (
            super().fits()
            and self.addresses == list(map(_ADDRESS, self.owners))
            and all(
                all(map(is_, [state.get(key) for state in self.states], parts))
                for key, (_, parts) in self.averages_of.items()
            )
        )

    def piece(self, name: str, dtype: torch.dtype) -> Tensor:
        """Memory for all the parameters, one-dimensional, the same every time."""
        if (name, dtype) not in self.pieces:
            piece = torch.zeros(self.elements, dtype=dtype, device=self.owners[0].device)
            starts = chain([0], accumulate(self.sizes))
            self.pieces[name, dtype] = piece
            self.shapes[piece.data_ptr()] = [
                piece.as_strided(owner.shape, owner.stride(), start)
                if self.ordered
                else piece[start : start + size].view(owner.shape)
                for owner, start, size in zip(self.owners, starts, self.sizes, strict=False)
            ]
        return self.pieces[name, dtype]

    def shaped(self, piece: Tensor) -> list[Tensor]:
        return self.shapes[piece.data_ptr()]

    def memory(self, name: str, dtype: torch.dtype) -> Tensor:
        return self.piece(name, dtype)

    def target(self) -> Tensor:
        return self.piece("there", self.params[0].dtype)

    def read(self, tensors: list[Tensor]) -> Tensor:
        assert tensors is self.params
        there = self.target()
        self.trial.do(lambda: torch._foreach_copy_(self.shaped(there), tensors))
        return there

    def write(self, tensors: list[Tensor], values: Tensor) -> None:
        self.trial.do(lambda: torch._foreach_copy_(tensors, self.shaped(values)))

    def averages(self) -> tuple[Tensor, Tensor | None]:
        m, *v = [piece for piece, _ in self.averages_of.values()]
        return m, v[0] if v else None

    def keep_averages(self, m: Tensor, v: Tensor | None) -> None:
        for (piece, _), values in zip(self.averages_of.values(), (m, v), strict=False):
            if values is not None and values is not piece:
                self.trial.do(lambda piece=piece, values=values: piece.copy_(values))  # type: ignore[misc]

    def raw_gradient(self) -> Tensor:
        if self.packed_gradient is None:
            gradients = _gradients(self.owners)
            # In turns where the step goes on to need the one before.
            kept = self.trial.looks and any(self.group[name] for name in ("adam", "asam", "nesterov"))
            piece = self.piece(f"gradient {self.trial.evaluations % 2 if kept else 0}", gradients[0].dtype)
            torch._foreach_copy_(self.shaped(piece), gradients)
            self.packed_gradient = piece
        return self.packed_gradient

    def _note_largest(self, g: Tensor) -> None:
        if self.largest is None and self.trial.evaluations <= 1:

            def norms() -> Tensor:
                # From the end, which was written last and is in the cache; the sums, from the start, find that there.
                backwards = torch._foreach_norm(self.shaped(g)[::-1], math.inf)
                return torch.stack(backwards[::-1]).to(_sum_dtype(g.device))

            self.largest = self.trial.do(norms)

    def vector(self, *values: float | Tensor) -> Tensor:
        graphs = self.trial.graphs
        if graphs is None or graphs.current is None:
            return super().vector(*values)
        return graphs.current.vector(values, self.dtype)


class _Graph:
    """What a part of a step has the device do, captured: the numbers it takes, and the tensors it leaves."""

    def __init__(self, device: torch.device, dtypes: set[torch.dtype]) -> None:
        self.graph: Any = None
        self.held: Tensor | None = None  # what it takes from elsewhere, so that the memory stays its own
        self.results: list[Any] = []  # of `_Graphs.do`, in order
        self.place = 0  # in these, while the part is replayed
        self.values: dict[torch.dtype, list[float]] = {dtype: [] for dtype in dtypes}  # of this time
        self.sent: dict[torch.dtype, list[float]] = {}  # the latest that the device has
        self.numbers = {  # the same on the host and on the device
            dtype: (
                torch.empty(NUMBERS, dtype=dtype, pin_memory=device.type == "cuda"),
                torch.zeros(NUMBERS, dtype=dtype, device=device),
            )
            for dtype in dtypes
        }

    def begin(self) -> None:
        self.place = 0
        for values in self.values.values():
            values.clear()

    def do(self, work: Callable[[], _Result]) -> _Result:
        if self.graph is None:
            result = work()
            self.results.append(result)
            return result
        self.place += 1
        return cast("_Result", self.results[self.place - 1])

    def vector(self, values: tuple[float | Tensor, ...], dtype: torch.dtype) -> Tensor:
        """Numbers as a tensor that the captured work reads: floats anew each time, tensors from the same place."""
        mine = self.values[dtype]
        begin = len(mine)
        mine += [0.0 if isinstance(value, Tensor) else float(value) for value in values]
        mine += [0.0] * (-len(mine) % 4)  # aligned
        _, device = self.numbers[dtype]
        vector = device[begin : begin + len(values)]
        if self.graph is None and any(isinstance(value, Tensor) for value in values):
            pairs = zip(values, vector.unbind(), strict=True)
            vector = torch.stack([a.to(dtype) if isinstance(a, Tensor) else b for a, b in pairs])
        return vector

    def run(self) -> None:
        """Have the device do it, with the numbers as they are now."""
        for dtype, values in self.values.items():
            if values != self.sent.get(dtype):
                host, device = self.numbers[dtype]
                host[: len(values)] = torch.tensor(values, dtype=dtype)
                device[: len(values)].copy_(host[: len(values)], non_blocking=True)
                self.sent[dtype] = values.copy()
        self.graph.replay()


class _Graphs:
    """The parts of a step as CUDA graphs: what a part has the device do takes one call, however many kernels it is.

    A part is a function that computes numbers on the host and hands work to the device by `_Trial.do`, always the
    same but for the numbers (`_CapturedBucket.vector`). It runs as it is at first, which compiles it, then once to
    be captured; from then on it runs without the device's work, for the numbers and for what it remembers.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.dtypes: set[torch.dtype] = set()  # of the averages
        self.constants: tuple[Any, ...] = ()
        self.held: Tensor | None = None  # those of them that the device takes from memory
        self.pool: Any = None
        self.graphs: dict[Any, _Graph] = {}
        self.seen: dict[Any, int] = {}
        self.current: _Graph | None = None  # being captured or replayed
        self.losses: dict[int, Tensor] = {}
        self.host: Tensor | None = None  # where numbers from the device arrive, and the event that says so
        self.there: Any = None

    def gather(self, loss: Tensor, trial: _Trial) -> Tensor:
        """Put an evaluation's loss and gradient, which may lie anywhere, where the parts take them."""
        for bucket in trial.buckets:
            bucket.raw_gradient()
        number = trial.evaluations
        if number not in self.losses:
            self.losses[number] = torch.empty((), dtype=_sum_dtype(self.device), device=self.device)
        return self.losses[number].copy_(loss)

    def part(self, name: Any, work: Callable[[], _Result]) -> _Result:
        """Run `work`: as it is, capturing it, or replaying what was captured."""
        key = name, self.constants
        graph = self.graphs.get(key)
        if graph is None:
            if len(self.graphs) >= MOST_GRAPHS:
                return work()
            if len(self.seen) >= 4 * MOST_GRAPHS:  # options that change every step
                self.seen.clear()
            times = self.seen[key] = self.seen.get(key, 0) + 1
            if times <= RUNS_BEFORE_CAPTURE:
                return work()
            self.current = graph = _Graph(self.device, self.dtypes)
            try:
                result, captured = _capture(self.device, self.pool, work)
            finally:
                self.current = None
            graph.graph, graph.held = captured, self.held
            self.pool, self.graphs[key] = captured.pool(), graph
        else:
            graph.begin()
            self.current = graph
            try:
                result = work()
            finally:
                self.current = None
        graph.run()
        return result

    def do(self, work: Callable[[], _Result]) -> _Result:
        return work() if self.current is None else self.current.do(work)

    def fetch(self, tensor: Tensor, work: Callable[[], None]) -> list[float]:
        """The numbers of a tensor on the device, which does `work` next, while the host waits for the numbers only."""
        numbers: list[float]
        if tensor.device.type != "cuda":
            numbers = tensor.tolist()
            work()
            return numbers
        if self.host is None or len(self.host) != len(tensor):
            self.host = torch.empty(len(tensor), dtype=tensor.dtype, pin_memory=True)
            self.there = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self.host.copy_(tensor, non_blocking=True)
        self.there.record(torch.cuda.current_stream(self.device))
        work()
        self.there.synchronize()
        numbers = self.host.tolist()
        return numbers


def _asynchronous(device: torch.device) -> bool:
    """Whether the device works on while the host does, so that reading from it is waiting for it."""
    return device.type not in ("cpu", "mps")


def _capturable(device: torch.device) -> bool:
    """Whether work for the device can be captured."""
    return device.type == "cuda"


def _capture(device: torch.device, pool: Any, work: Callable[[], _Result]) -> tuple[_Result, Any]:
    """What `work` returns, and what it has the CUDA device do as a graph, not done yet."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        result = work()
    return result, graph


def _elements_at_once(device: torch.device, total: int, adam: bool) -> tuple[int, int]:
    """How many elements a pass takes of a small model, where half of them are a span, and of one of `total`."""
    if device.type != "cpu":
        return DEVICE_ELEMENTS, DEVICE_ELEMENTS
    few = CPU_THREAD_ELEMENTS * max(torch.get_num_threads(), 2)
    return few, few if total <= CPU_PASSES * few else few * (4 if adam else 6)


def _equal_lengths(size: int, most: int) -> int:
    """The length of as few equal parts of `size` elements as are no longer than `most`, but for rounding."""
    parts = -(-size // most)
    return -(-size // parts // 64) * 64  # whole cache lines, and vectors


def _elements(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    """The elements in the order that `strides`, dense ones, give them: a view, if they are the tensor's own."""
    if tensor.stride() != strides:
        ordered = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
        tensor = ordered.copy_(tensor)
    return tensor.detach().as_strided((tensor.numel(),), (1,))


class _Buffers:
    """A model's buffers and copies of them, found again in few operations while the model is the same."""

    def __init__(self, model: nn.Module | None, capture: bool) -> None:
        self.model = model
        self.capture = capture
        self.tables: list[dict[str, Any]] = []  # in which each module has its modules and buffers, by name
        self.content: list[Any] = []  # of all the tables, one after the other
        self.owners: list[tuple[nn.Module, str, Tensor | None]] = []
        self.plain = False
        self.forms: list[Any] = []
        self.copies = _Copies([], capture)

    def find(self) -> _Copies:
        """What holds copies of all that there are now; `owners` says where they are."""
        if self.model is None:
            return self.copies
        buffers = self.copies.buffers
        content = list(chain.from_iterable(map(dict.values, self.tables)))
        if not content or len(content) != len(self.content) or not all(map(is_, content, self.content)):
            buffers = self._look_up(self.model)
        elif self._forms(buffers) == self.forms:
            return self.copies
        self.forms = self._forms(buffers)
        self.copies = _Copies(buffers, self.capture)
        return self.copies

    def _look_up(self, model: nn.Module) -> list[Tensor]:
        modules = list(model.modules())
        self.tables = [table for m in modules for table in (m._modules, m._buffers)]
        self.content = list(chain.from_iterable(map(dict.values, self.tables)))
        self.owners = [(m, name, buffer) for m in modules for name, buffer in m._buffers.items()]
        buffers = [buffer for _, _, buffer in self.owners if buffer is not None]
        self.plain = all(type(buffer) is Tensor for buffer in buffers)
        return buffers

    def _forms(self, buffers: list[Tensor]) -> list[Any]:
        """What tells that a tensor has been given other memory; an address is quick to ask for."""
        if self.plain:
            return [*map(_ADDRESS, buffers), *map(_SHAPE, buffers)]
        return list(map(_FORM, buffers))


_SHAPE, _FORM = attrgetter("shape"), attrgetter("shape", "dtype", "device")


class _Copies:
    """Two copies of some buffers."""

    def __init__(self, buffers: list[Tensor], capture: bool) -> None:
        self.buffers = buffers
        kinds: dict[Any, list[Tensor]] = {}
        for buffer in buffers:
            kinds.setdefault((buffer.device, buffer.dtype), []).append(buffer)
        self.kinds = [
            (tensors, ([torch.empty_like(b) for b in tensors], [torch.empty_like(b) for b in tensors]))
            for tensors in kinds.values()
        ]
        devices = {device for device, _ in kinds}
        self.device = devices.pop() if capture and len(devices) == 1 else torch.device("cpu")
        self.graphs: dict[Any, Any] = {}  # None for what has been done once

    def save(self, place: int) -> None:
        """Copy the buffers; what was at this place (0 or 1) is overwritten."""
        self._do(place, back=False)

    def restore(self, place: int) -> None:
        """The inverse."""
        self._do(place, back=True)

    def _do(self, place: int, back: bool) -> None:
        """As it is or, where work for the device is captured, from the second time on at the cost of one call."""

        def work() -> None:
            for buffers, copies in self.kinds:
                to, from_ = (buffers, copies[place]) if back else (copies[place], buffers)
                torch._foreach_copy_(to, from_)

        graph = self.graphs.get((place, back))
        if graph is None and (place, back) in self.graphs and _capturable(self.device):
            _, graph = _capture(self.device, None, work)
        self.graphs[place, back] = graph
        if graph is None:
            work()
        else:
            graph.replay()


class _Surroundings:
    """The random generators and the model's buffers at one moment, to return to.

    `place`: in which of the copies; what was there before is overwritten.
    """

    def __init__(self, buffers: _Buffers, devices: list[torch.device], place: int) -> None:
        self.cpu = torch.get_rng_state()
        self.devices = [(device, _rng(device).get_rng_state(*_index(device))) for device in devices]
        self.copies, self.place = buffers.find(), place
        self.owners = buffers.owners
        self.copies.save(place)

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        for device, state in self.devices:
            _rng(device).set_rng_state(state, *_index(device))
        for module, name, buffer in self.owners:
            module._buffers[name] = buffer
        self.copies.restore(self.place)


class _Scaled:
    """The optimizer's gradients of one evaluation, to a `GradScaler`, which unscales an optimizer once an update."""

    def __init__(self, optimizer: Optimizer, earlier: list[_Scaled] | None = None) -> None:
        self.optimizer = optimizer
        self.earlier = earlier

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups


class _Trial:
    """A step in progress: its evaluations, all on the same random numbers and buffers, undone if one fails.

    Afterwards the generators and the buffers are as the first evaluation left them.
    """

    def __init__(self, optimizer: Acme, scaler: torch.amp.GradScaler | None) -> None:
        options = optimizer.param_groups[0]
        params = [p for group in optimizer.param_groups for p in group["params"]]
        self.looks = options["acme"] and options["look_in"] == 0
        self.parts = ["ascend"] * options["asam"] + ["look"] * self.looks + ["leap"]  # still to come
        self.done = False
        self.of_model = optimizer._buffers
        self.scaler, self.scaled = scaler, optimizer._scaled
        self.compile = optimizer._compile
        self.ranks = _ranks(optimizer._model, params, optimizer._process_group)
        devices = [d for d in {p.device for p in params} if d.type not in ("cpu", "meta")]
        self.devices = sorted(devices, key=str) if len(devices) > 1 else devices
        self.device = params[0].device if params else torch.device("cpu")
        self.before = _Surroundings(self.of_model, self.devices, 0)
        self.after: _Surroundings | None = None
        self.evaluations = 0
        self.plan: _Plan
        self.buckets: list[_Bucket] = []  # the plan's
        # Parameters whose averages began in this step: their state before it, and whether it was unsure.
        self.fresh: list[tuple[Tensor, dict[str, Any], bool]] = []
        self.nothing = optimizer._nothing(self.device)
        self.graphs: _Graphs | None = None  # of the plan, where the device's work is to be captured
        self.latest: tuple[Tensor, Tensor] | None = None  # a parameter and its gradient's elements
        self.l0 = 0.0
        self.start: _Reading | None = None  # at the start
        self.first: _Reading  # of the gradient of the first update
        self.clip: float | Tensor = 1.0  # what clips the gradient of the first update
        self.limit: float | Tensor = 1.0  # min(k, 1) of the first update
        self.factor: float | Tensor = 1.0  # both
        self.known_factor = 1.0  # the same, on the host
        self.slopes: list[Tensor] = []  # Σ d·g0 of each bucket, where it takes a pass of its own
        self.ahead_of_device = False  # put off all reading to one wait at the end
        self.pending: list[tuple[Tensor, list[int]]] = []  # what was put off
        self.settled: list[_Reading] = []  # the same, once read
        self.idle = False  # nothing to do, or skipped
        self.looked = False  # at the look-ahead point already, if the limit turns out to be 1
        self.skipped = False  # for an overflow of scaled gradients
        self.ahead = False  # at the look-ahead point
        self.leapt = False  # at the next weights already, by `Acme._move_ahead`

    def arrive(self, value: Tensor | float) -> Tensor:
        """After an evaluation: its loss as a float64 scalar, without scale; surroundings as they should be."""
        self.parts.pop(0)
        if self.evaluations > 0:
            assert self.after is not None
            self.after.restore()
        elif self.parts:
            self.after = _Surroundings(self.of_model, self.devices, 1)
        if self.scaler is not None:
            self.scaler.unscale_(self.scaled[self.evaluations])  # type: ignore[arg-type]
        self.evaluations += 1
        for bucket in self.buckets:
            bucket.packed_gradient = None
        self.latest = None
        if isinstance(value, Tensor):
            if value.numel() != 1 or value.is_complex():
                raise ValueError(
                    f"Invalid loss: a tensor of shape {tuple(value.shape)} and dtype {value.dtype} (expected "
                    "the closure to return one real number)"
                )
            return _wide(_local(value.detach())).reshape(())
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(
                f"Invalid loss: {value!r} (expected the closure to return a scalar tensor or a number)"
            )
        return torch.tensor(float(value), dtype=torch.float64)

    def part(self, name: str, work: Callable[[], _Result]) -> _Result:
        """A part of the step, whose work for the device is captured if that pays; see `_Graphs.part`."""
        return work() if self.graphs is None else self.graphs.part((name, self.looks), work)

    def do(self, work: Callable[[], _Result]) -> _Result:
        """Work for the device within a part, left out where the part is replayed."""
        return work() if self.graphs is None else self.graphs.do(work)

    def run(self, arithmetic: Callable[..., _Result], *arguments: Any) -> _Result:
        """The same of a few numbers, compiled where it is captured, which makes one kernel of dozens."""
        if self.graphs is None:
            return arithmetic(*arguments)
        return self.do(lambda: _compile(arithmetic)(*arguments))

    def depart(self) -> None:
        """Before another evaluation: everything random as before the first."""
        self.before.restore()
        self.latest = None

    def gradients_of(self, params: list[Tensor]) -> list[Tensor]:
        """The gradients' elements on this rank; a missing gradient counts as zero."""
        return _locals(_gradients(params))

    def ordered(self, owner: Tensor, strides: tuple[int, ...]) -> Tensor:
        """A gradient's elements in its parameter's memory order; the last is remembered, for all spans of it."""
        if self.latest is None or self.latest[0] is not owner:
            [gradient] = self.gradients_of([owner])
            self.latest = owner, _elements(gradient, strides)
        return self.latest[1]

    def read(
        self,
        loss: Tensor,
        sums: Callable[[], list[list[Tensor]]],
        others: Sequence[Tensor] = (),
        slopes: Sequence[Tensor] = (),
        ahead: Callable[[], tuple[Tensor, Callable[[], None]]] | None = None,
    ) -> _Reading:
        """The mean loss over the ranks and the whole sums, by kind of parameters; on the host, unless put off.

        Args:
            loss: float64, 0-dimensional.
            sums: gives four of each bucket.
            others: parameters not in the plan, of whose gradients the squared norms are read, too.
            slopes: one sum of each bucket.
            ahead: for a captured step that moves next; see `Acme._move_ahead`.
        """
        if self.graphs is not None:
            loss = self.graphs.gather(loss, self)

        def read() -> tuple[Tensor, list[int]]:
            table = sums()
            return self.do(lambda: self._vector(loss, table, others, slopes))

        vector, lengths = self.part(f"read {self.evaluations}", read)
        if self.ranks is not None:
            dist.all_reduce(vector, group=self.ranks)
        self.pending.append((vector, lengths))
        if self.ahead_of_device and self.parts:
            return _Reading(torch.split(vector, lengths)[1].view(-1, 4), later=True)
        # One wait for the device: what was put off comes along.
        vectors, self.leapt = [vector for vector, _ in self.pending], False
        if ahead is not None and self.graphs is not None and not self.parts:
            good, leap = ahead()
            numbers = iter(self.graphs.fetch(torch.cat([*vectors, good.reshape(1)]), leap))
            self.leapt = True
        else:
            numbers = iter(torch.cat(vectors).tolist())
        *self.settled, latest = [
            self._reading([list(islice(numbers, length)) for length in lengths])
            for _, lengths in self.pending
        ]
        self.pending = []
        if self.leapt:
            self.leapt = next(numbers) == 1
        return latest

    def _vector(
        self, loss: Tensor, sums: list[list[Tensor]], others: Sequence[Tensor], slopes: Sequence[Tensor]
    ) -> tuple[Tensor, list[int]]:
        """What is to be read, in one piece, this rank's share of it; and the lengths of its parts (`_reading`)."""
        plan, device = self.plan, self.device
        table = _stack([total for row in sums for total in row], device).view(-1, 4)
        ahead = _stack(list(slopes), device)
        totals, slopes_by_kind, check, begin = [], [], self.nothing, 0
        for _, share, buckets in plan.kinds:
            rows = slice(begin, begin + len(buckets))
            begin = rows.stop
            totals.append(table[rows].sum(0) if len(buckets) > 1 else table[rows][0])
            if self.ranks is not None:
                if share == 1 / dist.get_world_size(self.ranks):
                    check = check + totals[-1][2]
                totals[-1] = totals[-1] * share
            if len(ahead):
                slopes_by_kind.append(ahead[rows].sum() * share)
        first = self.evaluations == 1
        parts = [
            loss.to(device).reshape(1),
            torch.cat(totals) if totals else table.view(-1),
            _stack(slopes_by_kind, device),
            plan.largest(table) if first else table.new_zeros(0),
            _stack(_squares(self.gradients_of([*others])), device),
        ]
        if self.ranks is not None:
            size = dist.get_world_size(self.ranks)
            parts[0] = parts[0] / size
            parts.append(torch.stack([check, check.square()]) / size)
        return torch.cat(parts), [len(part) for part in parts]

    def _reading(self, parts: list[list[float]]) -> _Reading:
        """What `read` has put into a vector, from its parts on the host."""
        [loss], totals, slopes, largest, squares, *check = parts
        uneven = False
        if check:
            # To see whether gradients that ought to be averaged are: the variance of their sum over the ranks.
            mean, mean_square = check[0]
            uneven = mean_square - mean * mean > UNEVEN * mean * mean
        rows = [totals[i : i + 4] for i in range(0, len(totals), 4)]
        return _Reading(rows, False, loss, largest, squares, slopes, uneven)

    def read_squares(self, loss: Tensor, squares: list[Tensor], params: list[Tensor]) -> list[float]:
        """The mean loss, and squared norms of what belongs to `params`, over all ranks, on the host."""
        if self.ranks is None:
            return _to_host([loss, *squares])
        size = dist.get_world_size(self.ranks)
        shares = [1 / size, *(_share(param, size) for param in params)]
        vector = _stack([x * share for x, share in zip([loss, *squares], shares, strict=True)], self.device)
        dist.all_reduce(vector, group=self.ranks)
        numbers: list[float] = vector.tolist()
        return numbers

    def restore_weights(self) -> None:
        for bucket in self.buckets:
            bucket.restore_weights()

    def forget(self, optimizer: Acme) -> None:
        """Back to the averages that there were before the step."""
        for param, state, unsure in self.fresh:
            now = optimizer.state[param]
            now.clear()
            now.update(state)
            if not now:
                del optimizer.state[param]
            if unsure:
                optimizer._unsure.add(param)
        self.fresh = []

    def undo(self, optimizer: Acme) -> None:
        """Back to before the step: weights, the optimizer's state, generators, buffers."""
        with torch.no_grad():
            for bucket in self.buckets:
                bucket.undo()
            self.forget(optimizer)
            self.before.restore()


def _ranks(
    model: nn.Module | None, params: list[Tensor], group: dist.ProcessGroup | None
) -> dist.ProcessGroup | None:
    """The process group over which a step is taken together; None for one process alone."""
    if not dist.is_available() or not dist.is_initialized():
        return None
    if group is None and isinstance(model, nn.parallel.DistributedDataParallel):
        group = model.process_group
    if group is None:
        meshes = [param.device_mesh for param in params if _is_dtensor(param)]  # type: ignore[attr-defined]
        world = dist.group.WORLD
        small = next(
            (mesh for mesh in meshes if mesh.ndim == 1 and mesh.size() < dist.get_world_size()), None
        )
        group = world if small is None else small.get_group()
    return group if dist.get_world_size(group) > 1 else None


def _stack(values: list[Tensor], device: torch.device) -> Tensor:
    """0-dimensional tensors as one, on `device`."""
    if not values:
        return torch.zeros(0, dtype=_sum_dtype(device), device=device)
    return torch.stack([value.to(device) for value in values])


def _squares(tensors: list[Tensor]) -> list[Tensor]:
    """Squared Euclidean norm of each: float64, 0-dimensional; of what this rank holds."""
    if not tensors:
        return []
    tensors = _locals(tensors)
    norms = torch._foreach_norm(tensors, 2, dtype=_sum_dtype(tensors[0].device))
    return list(torch._foreach_mul(norms, norms))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(_sum_dtype(tensor.device))


def _sum_dtype(device: torch.device) -> torch.dtype:
    """What sums are taken in: float64, or float32 on mps, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _limit(beta1: Sequence[float] | Tensor, totals: _Totals, clip: Any) -> Any:
    """min(k, 1), with k the factor on the gradient for which the average's squared norm grows `GROWTH_LIMIT` times.

    The norm is that of the metric 1/D over all parameters; `totals` are theirs (`_Bucket.moments`) by kind, of
    the gradient before it was multiplied by `clip`. Each kind counts with its own `beta1`. k is the positive root
    of a·k² + 2b·k - c = 0. A float, or 0-dimensional on the device of `totals`: nothing waits for it.
    """
    a: Any = 0.0
    b: Any = 0.0
    c: Any = 0.0
    for beta, pg, pp, gg in _columns(beta1, totals):
        a = a + gg * (clip * (1 - beta)) ** 2
        b = b + pg * (clip * beta * (1 - beta))
        c = c + pp * (GROWTH_LIMIT - beta**2)
    # No gradient, or no average to compare it with: no limit.
    if isinstance(totals, Tensor):
        a, b, c = a.sum(), b.sum(), c.sum()
        root: Any = torch.hypot(b, a.sqrt() * c.sqrt())
        factor = torch.where(b > 0, c / (b + root), (root - b) / a)
        return torch.where((a == 0) | (c == 0), torch.ones_like(a), factor).clamp(max=1.0)
    if a == 0 or c == 0:
        return 1.0
    root = math.hypot(b, math.sqrt(a) * math.sqrt(c))
    return min(c / (b + root) if b > 0 else (root - b) / a, 1.0)


def _columns(beta1: Sequence[float] | Tensor, totals: _Totals) -> Iterable[tuple[Any, Any, Any, Any]]:
    """β1 and the first three sums of each kind, or once, as tensors, of all."""
    if isinstance(totals, Tensor):
        pg, pp, gg, _ = totals.unbind(1)
        return [(beta1, pg, pp, gg)]
    return [(beta, *row[:3]) for beta, row in zip(beta1, totals, strict=True)]


def _root_of_sum(totals: _Totals, place: int) -> Any:
    """The root of one of the sums over all parameters: a float, or 0-dimensional on the device of `totals`."""
    if isinstance(totals, Tensor):
        return totals[:, place].sum().sqrt()
    return math.sqrt(sum(row[place] for row in totals))


def _clip(totals: _Totals, max_norm: Any) -> Any:
    """The factor that clips a gradient of squared norm Σ `totals`[:, 3], as `clip_grad_norm_` does."""
    if max_norm is None:
        return 1.0
    factor = max_norm / (_root_of_sum(totals, 3) + CLIP_FLOOR)
    return factor.clamp(max=1.0) if isinstance(factor, Tensor) else min(factor, 1.0)


def _damping(group: dict[str, Any]) -> float:
    """γ, times `gain` and what a scheduler made of `lr`: the factor on the step size that is applied."""
    beta1, _ = group["betas"]
    annealing = 1.0
    if group["total_steps"] is not None:
        done = min(group["annealing_step"] / group["total_steps"], 1.0)
        annealing = FINAL_ANNEALING + (1 - FINAL_ANNEALING) * (1 + math.cos(math.pi * done)) / 2
    scheduled: float = float(group["lr"]) / group["reference_lr"] if group["reference_lr"] else 1.0
    momentum: float = 2 * (1 - beta1) / (1 + beta1) * (1 + 2 * beta1) / (2 - beta1)
    return momentum * annealing * scheduled * float(group["gain"])


def _to_host(values: list[Tensor]) -> list[float]:
    """0-dimensional tensors as numbers, with one wait for each device they are on."""
    result = [0.0] * len(values)
    for device in dict.fromkeys(value.device for value in values):
        here = [i for i, value in enumerate(values) if value.device == device]
        for i, number in zip(here, torch.stack([values[i] for i in here]).tolist(), strict=True):
            result[i] = number
    return result


def _state_dtype(param: Tensor) -> torch.dtype:
    """The averages' dtype: 16 bits cannot hold a sum that moves by a thousandth."""
    return torch.float32 if param.dtype in (torch.float16, torch.bfloat16) else param.dtype


def _is_dtensor(tensor: Tensor) -> bool:
    """Whether it is a `torch.distributed.tensor.DTensor`, without importing that module for the answer."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _local(tensor: Tensor) -> Tensor:
    """The elements that this rank holds, in the same memory."""
    if not _is_dtensor(tensor):
        return tensor
    local: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return local


def _gradients(params: list[Tensor]) -> list[Tensor]:
    """A missing gradient counts as zero."""
    return [torch.zeros_like(p) if (gradient := p.grad) is None else gradient for p in params]


def _locals(tensors: list[Tensor]) -> list[Tensor]:
    """`_local` of each."""
    return [_local(t) for t in tensors] if "torch.distributed.tensor" in sys.modules else tensors


def _share(param: Any, ranks: int) -> float:
    """What this rank's sum over a parameter counts for in the sum over all: 1 / (ranks that hold the same)."""
    if not _is_dtensor(param):
        return 1 / ranks
    mesh, copies = param.device_mesh, 1
    if any(placement.is_partial() for placement in param.placements):
        raise ValueError(
            f"Invalid parameter: a DTensor with placements {param.placements} (expected sharded or replicated ones)"
        )
    if mesh.size() != ranks:
        raise ValueError(
            f"Invalid process_group: {ranks} ranks, but a parameter's device mesh has {mesh.size()} (expected a "
            "mesh over all ranks that step together; pipeline stages are not supported)"
        )
    for dimension, placement in enumerate(param.placements):
        if placement.is_replicate():
            copies *= mesh.size(dimension)
    return 1 / copies


def _rng(device: torch.device) -> Any:
    return torch.get_device_module(device)


def _index(device: torch.device) -> tuple[torch.device, ...]:
    """The argument of a device module's random state functions; mps has one generator and takes none."""
    return () if device.type == "mps" else (device,)


# Options ------------------------------------------------------------------------------------------------


def _complete(group: dict[str, Any], first: dict[str, Any]) -> None:
    """Fill in a group's entries that are not options; `first` is the optimizer's first group."""
    group.setdefault("step_size", float(group["lr"]))
    group.setdefault("reference_lr", float(group.get("initial_lr", group["lr"])))
    group.setdefault("t", first.get("t", 1))
    group.setdefault("annealing_step", first.get("annealing_step", 0))
    # Steps from the last look-ahead to the next, steps still to come before that, and the average of τ/α - 1.
    group.setdefault("look_interval", first.get("look_interval", 1))
    group.setdefault("look_in", first.get("look_in", 0))
    group.setdefault("trend", first.get("trend"))
    # Steps that may still search, and whether the latest that changed the step size made it larger or smaller.
    group.setdefault(
        "search_left", first.get("search_left", 0 if group["annealing_step"] else group["search_steps"])
    )
    group.setdefault("search_latest", first.get("search_latest", 0))


def _settings(group: dict[str, Any]) -> tuple[Any, ...]:
    """All that a step takes from a group beside its parameters; a learning rate in a tensor equals itself only."""
    lr = group["lr"]
    mine = (*_GROUP_OPTIONS[1:], "step_size", "reference_lr", "t", "annealing_step")
    return (id(lr) if isinstance(lr, Tensor) else float(lr), *(group[name] for name in mine))


def _number(options: dict[str, Any], name: str, upper: float = math.inf) -> float:
    value = options[name]
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Invalid {name}: {value!r} (expected a number)")
    return _in_range(name, float(value), upper)


def _whole(options: dict[str, Any], name: str, least: int, meaning: str) -> int:
    """A whole number of at least `least`, for which `meaning` says what that is."""
    value = options[name]
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"Invalid {name}: {value!r} (expected a whole number)")
    if value < least:
        raise ValueError(f"Invalid {name}: {value} (expected at least {least}; {meaning})")
    return int(value)


def _in_range(name: str, value: float, upper: float) -> float:
    if not 0 <= value < upper:
        expected = "a finite number of at least 0" if upper == math.inf else f"a number in [0, {upper:g})"
        raise ValueError(f"Invalid {name}: {value} (expected {expected})")
    return value


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """The options among `options`, checked, as plain Python numbers (which every checkpoint can hold)."""
    checked: dict[str, Any] = {
        name: _number(options, name) for name in ("epsilon", "weight_decay", "rho", "eta")
    }
    lr = options["lr"]
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(
                f"Invalid lr: a tensor of shape {tuple(lr.shape)} (expected a number or one element)"
            )
        _in_range("lr", float(lr), math.inf)
        checked["lr"] = lr
    else:
        checked["lr"] = _number(options, "lr")
    betas = options["betas"]
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"Invalid betas: {betas!r} (expected a pair of numbers in [0, 1))")
    checked["betas"] = tuple(
        _number({f"betas[{i}]": beta}, f"betas[{i}]", 1.0) for i, beta in enumerate(betas)
    )
    for name in ("acme", "adam", "asam", "nesterov", "bias_correction", "differentiable", "unbiased_squares"):
        if not isinstance(options[name], bool):
            raise TypeError(f"Invalid {name}: {options[name]!r} (expected True or False)")
        checked[name] = options[name]
    if options["differentiable"]:
        raise ValueError(
            "Invalid differentiable: True (expected False: the step size comes from comparisons and from losses "
            "read as numbers, so there is no derivative through a step)"
        )
    steps = options["total_steps"]
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, Integral)):
        raise TypeError(f"Invalid total_steps: {steps!r} (expected a whole number, or None for no annealing)")
    if steps is not None and steps < 1:
        raise ValueError(f"Invalid total_steps: {steps} (expected at least 1, or None for no annealing)")
    checked["total_steps"] = None if steps is None else int(steps)
    norm = options["max_grad_norm"]
    checked["max_grad_norm"] = None if norm is None else _number(options, "max_grad_norm")
    if norm == 0:
        raise ValueError(
            f"Invalid max_grad_norm: {norm} (expected a positive number, or None for no clipping)"
        )
    checked["gain"] = _number(options, "gain")
    if checked["gain"] == 0:
        raise ValueError(f"Invalid gain: {options['gain']} (expected a positive number; 1 for none)")
    checked["adapt_every"] = _whole(options, "adapt_every", 1, "1 to look ahead in every step")
    checked["search_steps"] = _whole(options, "search_steps", 0, "0 for no search")
    for name, without in (("gain", 1.0), ("adapt_every", 1), ("search_steps", 0)):
        if checked[name] != without and not checked["acme"]:
            raise ValueError(f"Invalid {name}: {options[name]} (expected {without:g} without acme=True)")
    if checked["unbiased_squares"] and not (checked["adam"] and checked["bias_correction"]):
        raise ValueError(
            "Invalid unbiased_squares: True (expected False without adam=True and bias_correction=True)"
        )
    return checked
