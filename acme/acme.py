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
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import IntEnum
from itertools import repeat
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["Acme", "Adaptation", "Decision", "Report", "adapt"]

# Published constants.
GROWTH_LIMIT = 2.0  # F: one gradient may at most double the squared norm of the gradient average
CLEAR_DIFFERENCE = 1e-4  # relative difference above which two losses count as different
ASAM_FLOOR = 1e-16  # added to ASAM's norm
FINAL_ANNEALING = 0.01  # the annealing factor once `total_steps` steps are done

# Elements of the parameters that one pass takes at once: bounds the temporaries, and is large enough for
# the start of an operation not to count. A larger tensor is taken alone.
BUCKET_ELEMENTS = 1 << 20

# Options that each parameter group may set for itself; the others belong to the whole optimizer.
_GROUP_OPTIONS = ("lr", "betas", "epsilon", "weight_decay", "rho", "eta")
_SHARED_OPTIONS = ("acme", "adam", "asam", "nesterov", "bias_correction", "total_steps", "differentiable")

_NO_CLOSURE = (
    "Acme.step() needs a closure that zeroes the gradients, evaluates loss and gradient on one batch and "
    "returns the loss: ACME and ASAM evaluate the same batch again at other weights. Call "
    "optimizer.step(closure). torch.amp.GradScaler.step(optimizer) and Hugging Face's Trainer call step() "
    "without one, and so may other frameworks that step for you (DeepSpeed): step Acme yourself there."
)

_NO_NAMES = (
    "asam=True needs the parameters' names (ASAM scales by |w| those whose name contains 'weight'): pass the "
    "model, model.named_parameters(), or groups with 'params' as (name, tensor) pairs"
)


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

    Raises:
        ValueError, TypeError: an argument out of its range or of a wrong type.

    Parameters may be real tensors of any floating dtype. Averages are kept in float32 for 16-bit parameters,
    else in the parameters' dtype; every sum is taken in float64 (on mps, float32). A parameter whose gradient
    is None or zero everywhere takes no part in a step. Several groups search along their joint direction: each
    keeps its ratio of step sizes, its betas and its weight decay.

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
        }
        defaults = _checked(defaults)
        self._model = model if isinstance(model, nn.Module) else None
        self._report: Report | None = None
        super().__init__(model.named_parameters() if isinstance(model, nn.Module) else model, defaults)

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

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor | float] | None = None) -> Tensor | float:  # type: ignore[override]
        """One step: 1 evaluation of `closure`, +1 with `asam`, +1 with `acme`.

        Args:
            closure: zeroes the gradients, evaluates loss and gradient on one batch and returns the loss, a
                scalar. Called with gradients enabled and with the same random numbers every time.

        Returns:
            The loss at the weights the step started from, detached.

        Raises:
            FloatingPointError: non-finite loss or gradient at the start (or at ASAM's point).
            TypeError, ValueError: no closure, one that does not return a scalar, a sparse gradient.

        After any exception, from here or from the closure, weights, averages, step sizes, the model's buffers
        and the random generators are as before the step.
        """
        if closure is None:
            raise TypeError(_NO_CLOSURE)
        if not callable(closure):
            raise TypeError(f"Invalid closure: {closure!r} (expected a function that returns the loss)")
        trial = _Trial(self._model, [p for group in self.param_groups for p in group["params"]])
        try:
            return self._step(torch.enable_grad()(closure), trial)
        except BaseException:
            trial.undo(self.state)
            raise

    def _step(self, closure: Callable[[], Any], trial: _Trial) -> Tensor | float:
        options = self.param_groups[0]
        value, loss = trial.evaluate(closure)
        buckets, l0 = self._collect(loss, trial)
        if not buckets:
            alpha = options["step_size"] if options["acme"] else float(options["lr"])
            self._report = Report(l0, None, None, None, None, alpha, 0.0, 1.0, trial.evaluations)
            return value
        where = "at the start"
        if options["asam"]:
            where = "at ASAM's point"
            for bucket in buckets:
                bucket.g0 = [g.clone() for g in bucket.gradients()]
            _ascend(buckets, trial)
            _, loss = trial.evaluate(closure)
            trial.restore_weights()

        sums = [x for bucket in buckets for x in bucket.moments(bucket.gradients())]
        latest, *moments = _to_host([loss, *sums])
        _require_finite([latest, *moments], where, latest)
        limit = min(_limit(buckets, moments), 1.0)
        if options["acme"]:
            self._report = self._look_and_leap(buckets, trial, closure, l0, limit)
        else:
            alpha = self._leap(buckets, limit)
            self._report = Report(l0, None, None, None, None, alpha, alpha, limit, trial.evaluations)

        for group in self.param_groups:
            group["t"] = 1 if self._report.decision is Decision.NON_FINITE else group["t"] + 1
            group["annealing_step"] += 1
        return value

    def _collect(self, loss: Tensor, trial: _Trial) -> tuple[list[_Bucket], float]:
        """The parameters that take part in this step, with their state, and the loss.

        A parameter takes part if it has a gradient that is not zero everywhere.
        """
        candidates = [
            (index, name, param, param.grad)
            for index, group in enumerate(self.param_groups)
            for name, param in zip(group.get("param_names", repeat("")), group["params"], strict=False)
            if param.grad is not None
        ]
        for _, _, param, grad in candidates:
            if grad.layout is not torch.strided:
                raise TypeError(
                    f"Invalid gradient of a parameter of shape {tuple(param.shape)}: {grad.layout} (expected a "
                    "dense one; for an embedding, pass sparse=False)"
                )
        l0, *sizes = _to_host([loss, *_norms([grad for *_, grad in candidates])])
        _require_finite([l0, *sizes], "at the start", l0)
        buckets: list[_Bucket] = []
        previous, room = -1, 0
        for (index, name, param, grad), size in zip(candidates, sizes, strict=True):
            if size == 0:
                continue
            group = self.param_groups[index]
            self._init_state(group, param, grad, size, trial)
            if index != previous or param.numel() > room:
                buckets.append(_Bucket(group))
                previous, room = index, BUCKET_ELEMENTS
            room -= param.numel()
            buckets[-1].add(name, param, self.state[param])
        return buckets, l0

    def _init_state(
        self, group: dict[str, Any], param: Tensor, grad: Tensor, norm: float, trial: _Trial
    ) -> None:
        """The averages of a parameter at its first gradient, of Euclidean norm `norm`, as published."""
        state = self.state[param]
        dtype = _state_dtype(param)
        if "exp_avg" not in state:
            state["exp_avg"] = torch.empty_like(param, dtype=dtype, memory_format=torch.preserve_format)
            state["exp_avg"].copy_(grad)
            if group["bias_correction"]:
                state["exp_avg"].mul_(1 - group["betas"][0])
            trial.fresh.append((param, "exp_avg"))
        if group["adam"] and "exp_avg_sq" not in state:
            mean_square = min(norm / param.numel() * norm, torch.finfo(dtype).max)
            state["exp_avg_sq"] = torch.full_like(state["exp_avg"], mean_square)
            trial.fresh.append((param, "exp_avg_sq"))

    def _leap(self, buckets: list[_Bucket], limit: float) -> float:
        """Update the averages and move by `lr`, which is returned (`acme` off)."""
        for bucket in buckets:
            gradients = bucket.gradients()
            bucket.update(gradients, limit)
            bucket.move(bucket.params, float(bucket.group["lr"]), gradients)
        for group in self.param_groups:
            group["step_size"] = float(group["lr"])
        return buckets[0].group["step_size"]

    def _look_and_leap(
        self, buckets: list[_Bucket], trial: _Trial, closure: Callable[[], Any], l0: float, limit: float
    ) -> Report:
        """Evaluate one full step ahead, decide on the step size, move, and use the second gradient too."""
        reference = next((b.group for b in buckets if b.group["step_size"] > 0), buckets[0].group)
        alpha, beta1 = reference["step_size"], buckets[0].beta1

        def relative(group: dict[str, Any]) -> float:
            """A group's step size in units of the first's: exactly 1 for equal groups."""
            return group["step_size"] / alpha if alpha > 0 else 1.0

        trial.save_weights(buckets)
        slopes: list[Tensor] = []
        for bucket in buckets:
            # The averages are updated for good only after the evaluation, so that an exception in it leaves
            # them alone; until then the gradient is kept, which the closure overwrites.
            bucket.g = [g.clone() for g in bucket.gradients()]
            ahead = bucket.copy_averages()
            ahead.update(bucket.g, limit)
            direction = ahead.direction()
            slopes += _dots(direction, bucket.g0 or bucket.g)
            _move(bucket.params, bucket.weights, direction, bucket.group["step_size"])
            if not bucket.group["nesterov"]:
                bucket.g0 = []
        del ahead, direction

        _, loss = trial.evaluate(closure)
        moments: list[Tensor] = []
        for bucket in buckets:
            bucket.update(bucket.g, limit)
            if bucket.group["nesterov"]:
                bucket.g0 = bucket.g0 or bucket.g
            bucket.g = []
            moments += bucket.moments(bucket.gradients())
        l1, *sums = _to_host([loss, *slopes, *moments])
        slopes0, sums1 = sums[: len(slopes)], sums[len(slopes) :]
        weights = [relative(bucket.group) for bucket in buckets for _ in bucket.params]
        p0 = sum(weight * slope for weight, slope in zip(weights, slopes0, strict=True))
        p1 = sum(weight * slope for weight, slope in zip(weights, sums1[0::3], strict=True))

        if not all(math.isfinite(x) for x in (l1, *sums1)):
            trial.restore_weights()
            for bucket in buckets:
                torch._foreach_mul_(bucket.m, 1 - bucket.beta1)
            for group in self.param_groups:
                group["step_size"] *= beta1
            return Report(l0, l1, p0, p1, Decision.NON_FINITE, alpha, 0.0, limit, trial.evaluations)

        target, step, decision = adapt(l0, l1, p0, p1, alpha, beta1)
        worse = l1 > l0
        limit1 = min(_limit(buckets, sums1), 1.0)
        applied = [_damping(bucket.group) * (step if worse else alpha) for bucket in buckets]
        for bucket, size in zip(buckets, applied, strict=True):
            gradients = bucket.gradients()
            ahead_gradients = bucket.g0 if worse else gradients
            bucket.move(bucket.weights, size * relative(bucket.group), ahead_gradients)
            if l1 < l0:
                bucket.update(gradients, limit1)
        applied_first = next(a for a, b in zip(applied, buckets, strict=True) if b.group is reference)
        for group, ratio in [(group, relative(group)) for group in self.param_groups]:
            group["step_size"] = beta1 * group["step_size"] + (1 - beta1) * target * ratio
        return Report(l0, l1, p0, p1, decision, alpha, applied_first, limit, trial.evaluations)

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
        # Behind the user's own hooks, so that it sees the dict that is really loaded.
        handle = self.register_load_state_dict_pre_hook(lambda _, final: loaded.update(final))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        saved = [index for group in loaded["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for index, param in zip(saved, params, strict=True):
            if index in loaded["state"]:
                self.state[param] = {
                    key: value.detach().to(param.device, _state_dtype(param), copy=True)
                    for key, value in loaded["state"][index].items()
                    if isinstance(value, Tensor)
                }

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_model": self._model, "_report": self._report}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
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
        self.params: list[Tensor] = []
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
        self.params.append(param)
        self.m.append(state["exp_avg"])
        if self.group["adam"]:
            self.v.append(state["exp_avg_sq"])

    def copy_averages(self) -> _Bucket:
        """A bucket with copies of the averages alone."""
        copy = _Bucket(self.group)
        copy.m = [m.clone() for m in self.m]
        copy.v = [v.clone() for v in self.v]
        return copy

    def gradients(self) -> list[Tensor]:
        """The gradients as they are now, in the averages' precision; a missing one counts as zero."""
        return [
            torch.zeros_like(m) if param.grad is None else param.grad.to(m.dtype)
            for param, m in zip(self.params, self.m, strict=True)
        ]

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
        _move(self.params, weights, direction, size, self.group["weight_decay"])


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


class _Trial:
    """The evaluations of one step: all on the same random numbers and buffers, and undone if one fails.

    Afterwards the generators and the buffers are as the first evaluation left them.
    """

    def __init__(self, model: nn.Module | None, params: list[Tensor]) -> None:
        self.model = model
        self.devices = sorted({p.device for p in params if p.device.type not in ("cpu", "meta")}, key=str)
        self.before = _Surroundings(model, self.devices)
        self.after: _Surroundings | None = None
        self.evaluations = 0
        self.buckets: list[_Bucket] = []
        self.fresh: list[tuple[Tensor, str]] = []  # state entries that began in this step

    def evaluate(self, closure: Callable[[], Any]) -> tuple[Tensor | float, Tensor]:
        """One evaluation: the loss as the closure returned it, but detached, and as a float64 scalar."""
        if self.evaluations == 1:
            self.after = _Surroundings(self.model, self.devices)
        if self.after is not None:
            self.before.restore()
        self.evaluations += 1
        value = closure()
        if self.after is not None:
            self.after.restore()
        if isinstance(value, Tensor):
            if value.numel() != 1 or value.is_complex():
                raise ValueError(
                    f"Invalid loss: a tensor of shape {tuple(value.shape)} and dtype {value.dtype} (expected "
                    "the closure to return one real number)"
                )
            value = value.detach().clone()  # a closure may return the same memory every time
            return value, _wide(value).reshape(())
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(
                f"Invalid loss: {value!r} (expected the closure to return a scalar tensor or a number)"
            )
        return value, torch.tensor(float(value), dtype=torch.float64)

    def save_weights(self, buckets: list[_Bucket]) -> None:
        for bucket in buckets:
            bucket.weights = bucket.weights or [param.clone() for param in bucket.params]
        self.buckets = buckets

    def restore_weights(self) -> None:
        for bucket in self.buckets:
            torch._foreach_copy_(bucket.params, bucket.weights)

    def undo(self, state: dict[Tensor, dict[str, Any]]) -> None:
        """Back to before the step: weights, new entries of the optimizer's `state`, generators, buffers."""
        self.restore_weights()
        for param, key in self.fresh:
            del state[param][key]
            if not state[param]:
                del state[param]
        self.before.restore()


def _ascend(buckets: list[_Bucket], trial: _Trial) -> None:
    """Move to ASAM's point, w + ρ·T²·s / (‖T·s‖ + 1e-16), with the gradient at the start in `g0`."""
    scaled: list[list[Tensor]] = []
    norms: list[Tensor] = []
    for bucket in buckets:
        ascent = bucket.divide(bucket.g0) if bucket.group["adam"] else bucket.g0
        scaled.append(bucket.asam_scaled(ascent))
        norms += _norms(scaled[-1])
    norm = math.hypot(*_to_host(norms))
    trial.save_weights(buckets)
    for bucket, tensors in zip(buckets, scaled, strict=True):
        size = bucket.group["rho"] / (norm + ASAM_FLOOR)
        _move(bucket.params, bucket.weights, bucket.asam_scaled(tensors), -size)


def _move(
    params: list[Tensor],
    weights: list[Tensor],
    direction: list[Tensor],
    size: float,
    weight_decay: float = 0.0,
) -> None:
    """params ← (weights - size·direction)·(1 - size·weight_decay), in the precision of `direction`."""
    moved = torch._foreach_mul(direction, -size)
    torch._foreach_add_(moved, weights)
    if weight_decay:
        torch._foreach_mul_(moved, 1 - size * weight_decay)
    torch._foreach_copy_(params, moved)


def _dots(left: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    """Σ left·right of each pair: float64, 0-dimensional."""
    return [(_wide(a) * b).sum() for a, b in zip(left, right, strict=True)]


def _norms(tensors: list[Tensor]) -> list[Tensor]:
    """Euclidean norm of each: float64, 0-dimensional."""
    if not tensors:
        return []
    return list(torch._foreach_norm(tensors, 2, dtype=_sum_dtype(tensors[0].device)))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(_sum_dtype(tensor.device))


def _sum_dtype(device: torch.device) -> torch.dtype:
    """What sums are taken in: float64, or float32 on mps, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _limit(buckets: list[_Bucket], moments: list[float]) -> float:
    """k, the factor on the gradient for which the average's squared norm grows `GROWTH_LIMIT` times.

    The norm is that of the metric 1/D over all parameters; `moments` are theirs, in `_Bucket.moments`' order.
    Each parameter counts with its group's β1. k is the positive root of a·k² + 2b·k - c = 0.
    """
    a = b = c = 0.0
    triples = iter(zip(moments[0::3], moments[1::3], moments[2::3], strict=True))
    for bucket in buckets:
        beta1 = bucket.beta1
        for _ in bucket.params:
            pg, pp, gg = next(triples)
            a += (1 - beta1) ** 2 * gg
            b += beta1 * (1 - beta1) * pg
            c += (GROWTH_LIMIT - beta1**2) * pp
    if a == 0 or c == 0:  # no gradient, or no average to compare it with
        return 1.0
    root = math.hypot(b, math.sqrt(a) * math.sqrt(c))
    return c / (b + root) if b > 0 else (root - b) / a


def _damping(group: dict[str, Any]) -> float:
    """γ, times what a scheduler made of `lr`: the factor on the step size that is applied."""
    beta1, _ = group["betas"]
    annealing = 1.0
    if group["total_steps"] is not None:
        done = min(group["annealing_step"] / group["total_steps"], 1.0)
        annealing = FINAL_ANNEALING + (1 - FINAL_ANNEALING) * (1 + math.cos(math.pi * done)) / 2
    scheduled = float(group["lr"]) / group["reference_lr"] if group["reference_lr"] else 1.0
    return 2 * (1 - beta1) / (1 + beta1) * (1 + 2 * beta1) / (2 - beta1) * annealing * scheduled


def _to_host(values: list[Tensor]) -> list[float]:
    """0-dimensional float64 tensors as numbers, with one wait for each device they are on."""
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
    checked = {name: _number(options, name) for name in ("epsilon", "weight_decay", "rho", "eta")}
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
    return checked
