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

import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain, repeat
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeVar, overload

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

__all__ = ["Acme", "Adaptation", "Decision", "Report", "adapt"]

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

# Elements of the parameters that one pass takes at once: bounds the temporaries, and is large enough for
# the start of an operation not to count. A larger tensor is taken alone.
BUCKET_ELEMENTS = 1 << 20

# Options that each parameter group may set for itself; the others belong to the whole optimizer.
_GROUP_OPTIONS = ("lr", "betas", "epsilon", "weight_decay", "rho", "eta")
_SWITCHES = ("acme", "adam", "asam", "nesterov")
_SHARED_OPTIONS = (*_SWITCHES, "bias_correction", "differentiable", "total_steps", "max_grad_norm")

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
        w ← w - γ·(σ if l1 > l0 else α)·d              acme=True: γ damps and anneals
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
    ) -> None:
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
        }
        defaults = _checked(defaults)
        self._model = model if isinstance(model, nn.Module) else None
        self._process_group = process_group
        self._report: Report | None = None
        self._begin()
        super().__init__(model.named_parameters() if isinstance(model, nn.Module) else model, defaults)

    def _begin(self) -> None:
        """What is remembered from step to step, but not in a state dict."""
        self._trial: _Trial | None = None
        self._unsure: set[Tensor] = (
            set()
        )  # parameters whose averages were loaded: perhaps before any gradient
        self._scaled = [_Scaled(self) for _ in range(3)]
        self._warned: set[str] = set()
        self._largest_norm = 0.0
        self._clipped_steps = 0

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
        """One step: 1 evaluation of `closure`, +1 with `asam`, +1 with `acme`.

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
        evaluate = torch.enable_grad()(closure)
        with self._in_progress(scaler) as trial:
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
        ``leap(loss)``. Each but the last is followed by another evaluation of the same batch::

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

    @torch.no_grad()
    def ascend(self, loss: Tensor | float) -> None:
        """Go to ASAM's adversarial point; `loss` is that of the evaluation at the start. See `step_in_parts`."""
        trial = self._next("ascend")
        self._start(trial, loss)
        if not trial.idle:
            for bucket in trial.buckets:
                bucket.g0 = [g.clone() for g in bucket.gradients()]
            _ascend(trial)
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
                trial.undo(self.state)
                if scaler is not None:  # whose books have the old ones until its next update, under their ids
                    self._scaled = [_Scaled(self, self._scaled) for _ in range(3)]
            raise
        finally:
            self._trial = None

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
        candidates = [
            (index, name, param)
            for index, group in enumerate(self.param_groups)
            for name, param in zip(group.get("param_names", repeat("")), group["params"], strict=False)
            if param.grad is not None or (trial.ranks is not None and param.requires_grad)
        ]
        for *_, param in candidates:
            if param.grad is not None and param.grad.layout is not torch.strided:
                raise TypeError(
                    f"Invalid gradient of a parameter of shape {tuple(param.shape)}: {param.grad.layout} (expected "
                    "a dense one; for an embedding, pass sparse=False)"
                )
        params = [param for *_, param in candidates]
        unsure = [param for param in params if param in self._unsure]
        squares = _squares([torch.zeros_like(p) if p.grad is None else p.grad for p in params])
        squares += _squares([self.state[param]["exp_avg"] for param in unsure])
        trial.l0, *sums = trial.read(value, squares, [*params, *unsure])
        squared = sums[: len(params)]
        trial.square0 = sum(squared)
        if not self._finite(trial, trial.l0, squared, "at the start"):
            return
        if trial.uneven:
            self._warn(
                "The ranks' gradients differ, so the ranks drift apart: they have to be averaged before each step "
                "(DistributedDataParallel, fully_shard; with no_sync, all but the last backward). If the ranks train "
                "independently, pass Acme a process_group of one rank."
            )
        trial.clip0 = trial.clip = _clip(trial.square0, options["max_grad_norm"])
        empty = {param for param, total in zip(unsure, sums[len(params) :], strict=True) if total == 0}
        previous, room = -1, 0
        for (index, name, param), square in zip(candidates, squared, strict=True):
            if square == 0:
                continue
            group = self.param_groups[index]
            self._init_state(group, param, math.sqrt(square), trial, param in empty)
            elements = _local(param).numel()
            if index != previous or elements > room:
                trial.buckets.append(_Bucket(group))
                previous, room = index, BUCKET_ELEMENTS
            room -= elements
            trial.buckets[-1].add(name, param, self.state[param])
        trial.idle = not trial.buckets

    def _init_state(
        self, group: dict[str, Any], param: Tensor, norm: float, trial: _Trial, empty: bool = False
    ) -> None:
        """The averages of a parameter at its first gradient, of Euclidean norm `norm`, as published.

        `empty`: there are averages already, but of no gradient.
        """
        state = self.state[param]
        dtype = _state_dtype(param)
        if "exp_avg" not in state or empty:
            state["exp_avg"] = torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)
            average = _local(state["exp_avg"])
            if param.grad is not None:
                average.copy_(_local(param.grad))
            factor = trial.clip * (1 - group["betas"][0] if group["bias_correction"] else 1.0)
            if factor != 1:
                average.mul_(factor)
            trial.fresh.append((param, "exp_avg"))
        if group["adam"] and ("exp_avg_sq" not in state or empty):
            norm *= trial.clip
            mean_square = min(norm / param.numel() * norm, torch.finfo(dtype).max)
            state["exp_avg_sq"] = torch.full_like(state["exp_avg"], mean_square)
            trial.fresh.append((param, "exp_avg_sq"))
        self._unsure.discard(param)

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

    def _finite(self, trial: _Trial, loss: float, sums: list[float], where: str) -> bool:
        """Whether the step can go on; with a scaler, it is skipped where only the scaled gradient overflowed."""
        if math.isfinite(loss) and all(map(math.isfinite, sums)):
            return True
        if trial.scaler is not None and trial.scaler.is_enabled() and math.isfinite(loss):
            trial.restore_weights()
            trial.forget(self.state)
            trial.buckets, trial.idle, trial.skipped = [], True, True
            return False
        what = f"loss ({loss})" if not math.isfinite(loss) else "gradient"
        raise FloatingPointError(
            f"Non-finite {what} {where} of the step. Weights, averages and step size are as before it; skip the "
            "batch, or look for what overflows."
        )

    def _take(self, trial: _Trial, loss: Tensor | float) -> None:
        """After the evaluation that the averages are updated with: its gradient, limited."""
        options = self.param_groups[0]
        where = "at the start"
        if options["asam"]:
            where = "at ASAM's point"
            value = trial.arrive(loss)
            trial.restore_weights()
        else:
            self._start(trial, loss)
            value = torch.tensor(trial.l0, dtype=torch.float64)
        if trial.idle:
            return
        latest, moments, square, _ = trial.read_moments(
            value, options["asam"] and options["max_grad_norm"] is not None
        )
        if self._finite(trial, latest, [*moments, square], where):
            if options["asam"]:
                trial.clip = _clip(square, options["max_grad_norm"])
            trial.limit = _limit(trial.buckets, moments, trial.clip)

    def _leap(self, trial: _Trial) -> None:
        """Update the averages and move by `lr` (`acme` off)."""
        for bucket in trial.buckets:
            gradients = bucket.gradients(trial.clip)
            bucket.update(gradients, trial.limit)
            bucket.move(bucket.params, float(bucket.group["lr"]), gradients)
        for group in self.param_groups:
            group["step_size"] = float(group["lr"])
        alpha = trial.buckets[0].group["step_size"]
        self._report = Report(trial.l0, None, None, None, None, alpha, alpha, trial.limit, trial.evaluations)

    def _look(self, trial: _Trial) -> None:
        """Move one full step ahead, along the direction of the averages as they will be.

        They are updated for good only after the evaluation there, so that an exception in it leaves them alone;
        until then the gradient is kept, which the evaluation overwrites.
        """
        trial.save_weights()
        for bucket in trial.buckets:
            gradients = bucket.gradients()
            bucket.g = bucket.gradients(trial.clip) if trial.clip < 1 else [g.clone() for g in gradients]
            ahead = bucket.copy_averages()
            ahead.update(bucket.g, trial.limit)
            direction = ahead.direction()
            trial.slopes += _dots(direction, bucket.g0 or gradients)
            _move(bucket.params, bucket.weights, direction, bucket.group["step_size"])
            if not bucket.group["nesterov"]:
                bucket.g0 = []
            elif bucket.g0 and trial.clip0 < 1:
                torch._foreach_mul_(bucket.g0, trial.clip0)
        trial.ahead = True

    def _leap_by_two(self, trial: _Trial, loss: Tensor) -> None:
        """Decide on the step size by the look-ahead, move, and use the second gradient too (`acme`)."""
        buckets, l0, max_norm = trial.buckets, trial.l0, self.param_groups[0]["max_grad_norm"]
        reference = next((b.group for b in buckets if b.group["step_size"] > 0), buckets[0].group)
        alpha, beta1 = reference["step_size"], buckets[0].beta1

        def relative(group: dict[str, Any]) -> float:
            """A group's step size in units of the first's: exactly 1 for equal groups."""
            return group["step_size"] / alpha if alpha > 0 else 1.0

        for bucket in buckets:
            bucket.update(bucket.g, trial.limit)
            if bucket.group["nesterov"]:
                bucket.g0 = bucket.g0 or bucket.g
            bucket.g = []
        l1, sums1, square, slopes0 = trial.read_moments(loss, max_norm is not None, trial.slopes)
        weights = [relative(bucket.group) for bucket in buckets for _ in bucket.params]
        p0 = sum(weight * slope for weight, slope in zip(weights, slopes0, strict=True))
        p1 = sum(weight * slope for weight, slope in zip(weights, sums1[0::3], strict=True))

        if not all(math.isfinite(x) for x in (l1, *sums1, square)):
            trial.restore_weights()
            for bucket in buckets:
                torch._foreach_mul_(bucket.m, 1 - bucket.beta1)
            for group in self.param_groups:
                group["step_size"] *= beta1
            self._report = Report(
                l0, l1, p0, p1, Decision.NON_FINITE, alpha, 0.0, trial.limit, trial.evaluations
            )
            return

        target, step, decision = adapt(l0, l1, p0, p1, alpha, beta1)
        worse = l1 > l0
        clip1 = _clip(square, max_norm)
        limit1 = _limit(buckets, sums1, clip1)
        applied = [_damping(bucket.group) * (step if worse else alpha) for bucket in buckets]
        for bucket, size in zip(buckets, applied, strict=True):
            gradients = bucket.gradients(clip1)
            ahead_gradients = bucket.g0 if worse else gradients
            bucket.move(bucket.weights, size * relative(bucket.group), ahead_gradients)
            if l1 < l0:
                bucket.update(gradients, limit1)
        applied_first = next(a for a, b in zip(applied, buckets, strict=True) if b.group is reference)
        for group, ratio in [(group, relative(group)) for group in self.param_groups]:
            group["step_size"] = beta1 * group["step_size"] + (1 - beta1) * target * ratio
        self._report = Report(l0, l1, p0, p1, decision, alpha, applied_first, trial.limit, trial.evaluations)
        self._watch_for_clipping(math.sqrt(trial.square0), self._report)

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
        for group in self.param_groups:
            group["t"] = 1 if self._report.decision is Decision.NON_FINITE else group["t"] + 1
            group["annealing_step"] += 1

    # Warnings -------------------------------------------------------------------------------------------

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
        own = {name: vars(self)[name] for name in ("_model", "_process_group", "_report")}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_report" in state:  # a copy; otherwise `load_state_dict`
            self._begin()
        self._unsure.update(self.state)
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


class _Bucket:
    """Some parameters of one group that take part in a step, with their averages: what one pass works on."""

    def __init__(self, group: dict[str, Any]) -> None:
        self.group = group
        self.names: list[str] = []
        self.owners: list[Tensor] = []  # the parameters, which carry the gradients
        self.params: list[Tensor] = []  # their elements on this rank
        self.m: list[Tensor] = []
        self.v: list[Tensor] = []
        self.weights: list[Tensor] = []  # where the step starts, once saved
        self.g: list[Tensor] = []  # the gradient of the first update, kept over the look-ahead
        self.g0: list[Tensor] = []  # the gradient at the start, kept where it differs or is needed again
        self.beta1, self.beta2 = group["betas"]
        corrected = group["bias_correction"]
        self.correction1 = 1 - self.beta1 ** group["t"] if corrected else 1.0
        self.correction2 = 1 - self.beta2 ** group["t"] if corrected else 1.0

    def add(self, name: str, param: Tensor, state: dict[str, Tensor]) -> None:
        self.names.append(name)
        self.owners.append(param)
        self.params.append(_local(param))
        self.m.append(_local(state["exp_avg"]))
        if self.group["adam"]:
            self.v.append(_local(state["exp_avg_sq"]))

    def copy_averages(self) -> _Bucket:
        """A bucket with copies of the averages alone."""
        copy = _Bucket(self.group)
        copy.m = [m.clone() for m in self.m]
        copy.v = [v.clone() for v in self.v]
        return copy

    def gradients(self, clip: float = 1.0) -> list[Tensor]:
        """`clip` times the gradients as they are now, in the averages' precision; a missing one counts as zero."""
        gradients = [
            torch.zeros_like(m) if owner.grad is None else _local(owner.grad).to(m.dtype)
            for owner, m in zip(self.owners, self.m, strict=True)
        ]
        return gradients if clip == 1 else list(torch._foreach_mul(gradients, clip))

    def denominators(self) -> list[Tensor]:
        """D = (sqrt(v / bc2) + ε)·bc1 per element with `adam`; see `divide` for D = bc1 without."""
        epsilon = max(self.group["epsilon"], torch.finfo(self.v[0].dtype).tiny)
        result = torch._foreach_div(self.v, self.correction2)
        torch._foreach_sqrt_(result)
        torch._foreach_add_(result, epsilon)
        torch._foreach_mul_(result, self.correction1)
        return list(result)

    def divide(self, tensors: list[Tensor]) -> list[Tensor]:
        """`tensors` / D."""
        divisor = self.denominators() if self.group["adam"] else self.correction1
        return list(torch._foreach_div(tensors, divisor))

    def direction(self) -> list[Tensor]:
        """d = m / D."""
        return self.divide(self.m)

    def asam_scaled(self, tensors: list[Tensor]) -> list[Tensor]:
        """T·`tensors`, where T = |w| + η for parameters named a weight and 1 for the others."""
        return [
            tensor * (param.abs().to(tensor.dtype) + self.group["eta"]) if "weight" in name else tensor
            for name, param, tensor in zip(self.names, self.params, tensors, strict=True)
        ]

    def moments(self, gradients: list[Tensor]) -> list[Tensor]:
        """Σ m·g/D, Σ m·m/D and Σ g·g/D of each parameter in turn: float64, 0-dimensional."""
        divisors = self.denominators() if self.group["adam"] else [self.correction1] * len(self.m)
        result = []
        for m, g, divisor in zip(self.m, gradients, divisors, strict=True):
            direction = m / divisor
            g, m = _wide(g), _wide(m)
            result += [(g * direction).sum(), (m * direction).sum(), (g * g / divisor).sum()]
        return result

    def update(self, gradients: list[Tensor], limit: float) -> None:
        """m ← β1·m + (1 - β1)·g' and, with `adam`, v ← β2·v + (1 - β2)·g'²; g' is `limit`·g."""
        if limit < 1:
            gradients = list(torch._foreach_mul(gradients, limit))
        torch._foreach_mul_(self.m, self.beta1)
        torch._foreach_add_(self.m, gradients, alpha=1 - self.beta1)
        if self.group["adam"]:
            torch._foreach_mul_(self.v, self.beta2)
            torch._foreach_addcmul_(self.v, gradients, gradients, value=1 - self.beta2)

    def move(self, weights: list[Tensor], size: float, gradients: list[Tensor]) -> None:
        """Put the parameters at `weights` - size·d, decayed; Nesterov's last term takes `gradients`."""
        direction = self.direction()
        if self.group["nesterov"]:
            torch._foreach_mul_(direction, self.beta1)
            torch._foreach_add_(direction, self.divide(gradients), alpha=1 - self.beta1)
        _move(self.params, weights, direction, size, self.group["weight_decay"], bounded=True)


class _Surroundings:
    """The random generators and the model's buffers at one moment, to return to."""

    def __init__(self, model: nn.Module | None, devices: list[torch.device]) -> None:
        self.cpu = torch.get_rng_state()
        self.devices = [(device, _rng(device).get_rng_state(*_index(device))) for device in devices]
        self.owners: list[tuple[nn.Module, str, Tensor | None]] = []
        if model is not None:
            self.owners = [(m, name, b) for m in model.modules() for name, b in m._buffers.items()]
        self.buffers = [buffer for _, _, buffer in self.owners if buffer is not None]
        self.copies = [buffer.clone() for buffer in self.buffers]

    def restore(self) -> None:
        torch.set_rng_state(self.cpu)
        for device, state in self.devices:
            _rng(device).set_rng_state(state, *_index(device))
        for module, name, buffer in self.owners:
            module._buffers[name] = buffer
        if self.buffers:
            torch._foreach_copy_(self.buffers, self.copies)


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
        self.parts = ["ascend"] * options["asam"] + ["look"] * options["acme"] + ["leap"]  # still to come
        self.done = False
        self.model = optimizer._model
        self.scaler, self.scaled = scaler, optimizer._scaled
        self.ranks = _ranks(optimizer._model, params, optimizer._process_group)
        self.devices = sorted({p.device for p in params if p.device.type not in ("cpu", "meta")}, key=str)
        self.device = params[0].device if params else torch.device("cpu")
        self.before = _Surroundings(self.model, self.devices)
        self.after: _Surroundings | None = None
        self.evaluations = 0
        self.buckets: list[_Bucket] = []
        self.fresh: list[tuple[Tensor, str]] = []  # state entries that began in this step
        self.l0 = 0.0
        self.square0 = 0.0  # squared norm of the gradient at the start
        self.clip0 = 1.0  # what clips that gradient
        self.clip = 1.0  # what clips the gradient of the first update
        self.limit = 1.0  # min(k, 1) of the first update
        self.slopes: list[Tensor] = []  # Σ d·g0 of each parameter
        self.idle = False  # nothing to do, or skipped
        self.skipped = False  # for an overflow of scaled gradients
        self.uneven = False  # the ranks' gradients differ
        self.ahead = False  # at the look-ahead point

    def arrive(self, value: Tensor | float) -> Tensor:
        """After an evaluation: its loss as a float64 scalar, without scale; surroundings as they should be."""
        self.parts.pop(0)
        if self.evaluations > 0:
            assert self.after is not None
            self.after.restore()
        elif self.parts:
            self.after = _Surroundings(self.model, self.devices)
        if self.scaler is not None:
            self.scaler.unscale_(self.scaled[self.evaluations])  # type: ignore[arg-type]
        self.evaluations += 1
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

    def depart(self) -> None:
        """Before another evaluation: everything random as before the first."""
        self.before.restore()

    def read(self, loss: Tensor, sums: list[Tensor], params: list[Tensor]) -> list[float]:
        """The loss and the sums over `params` as numbers: the mean loss and the whole sums over the ranks."""
        if self.ranks is None:
            return _to_host([loss, *sums])
        size = dist.get_world_size(self.ranks)
        shares = [1 / size, *(_share(param, size) for param in params)]
        # To see whether gradients that ought to be averaged are: the variance of their sum over the ranks.
        whole = [x.to(self.device) for x, share in zip(sums, shares[1:], strict=True) if share == 1 / size]
        check = torch.stack(whole).sum() if whole else torch.zeros((), dtype=torch.float64)
        values = [loss, *sums, check, check.square()]
        vector = torch.stack([value.to(self.device) for value in values])
        vector *= torch.tensor([*shares, 1 / size, 1 / size], dtype=vector.dtype, device=vector.device)
        dist.all_reduce(vector, group=self.ranks)
        *numbers, mean, mean_square = vector.tolist()
        self.uneven = size > 1 and mean_square - mean * mean > UNEVEN * mean * mean
        return numbers

    def read_moments(
        self, loss: Tensor, square: bool, more: list[Tensor] | None = None
    ) -> tuple[float, list[float], float, list[float]]:
        """The loss, the moments and the squared norm (if wanted, else 0) of the gradients, and `more` sums."""
        owners = [owner for bucket in self.buckets for owner in bucket.owners]
        moments: list[Tensor] = []
        squares: list[Tensor] = []
        for bucket in self.buckets:
            gradients = bucket.gradients()
            moments += bucket.moments(gradients)
            squares += _squares(gradients) if square else []
        more = more or []
        params = [owner for owner in owners for _ in range(3)] + owners[: len(squares)] + owners[: len(more)]
        latest, *numbers = self.read(loss, [*moments, *squares, *more], params)
        first, second = len(moments), len(moments) + len(squares)
        return latest, numbers[:first], sum(numbers[first:second]), numbers[second:]

    def save_weights(self) -> None:
        for bucket in self.buckets:
            bucket.weights = bucket.weights or [param.clone() for param in bucket.params]

    def restore_weights(self) -> None:
        for bucket in self.buckets:
            if bucket.weights:
                torch._foreach_copy_(bucket.params, bucket.weights)

    def forget(self, state: dict[Tensor, dict[str, Any]]) -> None:
        """Remove the entries of the optimizer's `state` that are new."""
        for param, key in self.fresh:
            del state[param][key]
            if not state[param]:
                del state[param]
        self.fresh = []

    def undo(self, state: dict[Tensor, dict[str, Any]]) -> None:
        """Back to before the step: weights, the optimizer's `state`, generators, buffers."""
        with torch.no_grad():
            self.restore_weights()
            self.forget(state)
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


def _ascend(trial: _Trial) -> None:
    """Move to ASAM's point, w + ρ·T²·s / (‖T·s‖ + 1e-16), with the gradient at the start in `g0`."""
    scaled: list[list[Tensor]] = []
    squares: list[Tensor] = []
    for bucket in trial.buckets:
        ascent = bucket.divide(bucket.g0) if bucket.group["adam"] else bucket.g0
        scaled.append(bucket.asam_scaled(ascent))
        squares += _squares(scaled[-1])
    owners = [owner for bucket in trial.buckets for owner in bucket.owners]
    zero = torch.zeros((), dtype=squares[0].dtype, device=squares[0].device)
    norm = math.sqrt(sum(trial.read(zero, squares, owners)))
    trial.save_weights()
    for bucket, tensors in zip(trial.buckets, scaled, strict=True):
        size = bucket.group["rho"] / (norm + ASAM_FLOOR)
        _move(bucket.params, bucket.weights, bucket.asam_scaled(tensors), -size)


def _move(
    params: list[Tensor],
    weights: list[Tensor],
    direction: list[Tensor],
    size: float,
    weight_decay: float = 0.0,
    bounded: bool = False,
) -> None:
    """params ← (weights - size·direction)·(1 - size·weight_decay), in the precision of `direction`.

    `bounded`: what 16 bits cannot hold becomes their largest number. A trial point may overflow: its loss says so.
    """
    moved = torch._foreach_mul(direction, -size)
    torch._foreach_add_(moved, weights)
    if weight_decay:
        torch._foreach_mul_(moved, 1 - size * weight_decay)
    for param, tensor in zip(params, moved, strict=True) if bounded else ():
        if tensor.dtype != param.dtype:
            largest = torch.finfo(param.dtype).max
            tensor.clamp_(-largest, largest)
    torch._foreach_copy_(params, moved)


def _dots(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    """Σ left·right of each pair: float64, 0-dimensional."""
    return [(_wide(a) * b).sum() for a, b in zip(left, right, strict=True)]


def _squares(tensors: list[Tensor]) -> list[Tensor]:
    """Squared Euclidean norm of each: float64, 0-dimensional; of what this rank holds."""
    if not tensors:
        return []
    tensors = [_local(tensor) for tensor in tensors]
    norms = torch._foreach_norm(tensors, 2, dtype=_sum_dtype(tensors[0].device))
    return list(torch._foreach_mul(norms, norms))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(_sum_dtype(tensor.device))


def _sum_dtype(device: torch.device) -> torch.dtype:
    """What sums are taken in: float64, or float32 on mps, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _limit(buckets: list[_Bucket], moments: list[float], clip: float) -> float:
    """min(k, 1), with k the factor on the gradient for which the average's squared norm grows `GROWTH_LIMIT` times.

    The norm is that of the metric 1/D over all parameters; `moments` are theirs, in `_Bucket.moments`' order,
    of the gradient before it was multiplied by `clip`. Each parameter counts with its group's β1. k is the
    positive root of a·k² + 2b·k - c = 0.
    """
    a = b = c = 0.0
    triples = iter(zip(moments[0::3], moments[1::3], moments[2::3], strict=True))
    for bucket in buckets:
        beta1 = bucket.beta1
        for _ in bucket.params:
            pg, pp, gg = next(triples)
            a += (1 - beta1) ** 2 * (gg * clip * clip)
            b += beta1 * (1 - beta1) * (pg * clip)
            c += (GROWTH_LIMIT - beta1**2) * pp
    if a == 0 or c == 0:  # no gradient, or no average to compare it with
        return 1.0
    root = math.hypot(b, math.sqrt(a) * math.sqrt(c))
    return min(c / (b + root) if b > 0 else (root - b) / a, 1.0)


def _clip(square: float, max_norm: float | None) -> float:
    """The factor that clips a gradient of squared norm `square`, as `torch.nn.utils.clip_grad_norm_` has it."""
    return 1.0 if max_norm is None else min(max_norm / (math.sqrt(square) + CLIP_FLOOR), 1.0)


def _damping(group: dict[str, Any]) -> float:
    """γ, times what a scheduler made of `lr`: the factor on the step size that is applied."""
    beta1, _ = group["betas"]
    annealing = 1.0
    if group["total_steps"] is not None:
        done = min(group["annealing_step"] / group["total_steps"], 1.0)
        annealing = FINAL_ANNEALING + (1 - FINAL_ANNEALING) * (1 + math.cos(math.pi * done)) / 2
    scheduled: float = float(group["lr"]) / group["reference_lr"] if group["reference_lr"] else 1.0
    momentum: float = 2 * (1 - beta1) / (1 + beta1) * (1 + 2 * beta1) / (2 - beta1)
    return momentum * annealing * scheduled


def _to_host(values: list[Tensor]) -> list[float]:
    """0-dimensional tensors as numbers, with one wait for each device they are on."""
    result = [0.0] * len(values)
    for device in dict.fromkeys(value.device for value in values):
        here = [i for i, value in enumerate(values) if value.device == device]
        for i, number in zip(here, torch.stack([values[i] for i in here]).tolist(), strict=True):
            result[i] = number
    return result


def _require_finite(values: list[float], where: str, loss: float | None = None) -> None:
    if all(map(math.isfinite, values)):
        return
    what = "gradient" if loss is None or math.isfinite(loss) else f"loss ({loss})"
    raise FloatingPointError(
        f"Non-finite {what} {where} of the step. Weights, averages and step size are as before it; skip the "
        "batch, or look for what overflows."
    )


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


def _number(options: dict[str, Any], name: str, upper: float = math.inf) -> float:
    value = options[name]
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Invalid {name}: {value!r} (expected a number)")
    return _in_range(name, float(value), upper)


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
    for name in ("acme", "adam", "asam", "nesterov", "bias_correction", "differentiable"):
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
    return checked
