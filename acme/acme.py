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

import functools
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import chain, repeat
from numbers import Integral, Real
from operator import is_
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Acme", "Adaptation", "Decision", "Measured", "Move", "Report", "adapt", "search"]

# Published constants.
GROWTH_LIMIT = 2.0  # F: one gradient may at most double the squared norm of the gradient average
CLEAR_DIFFERENCE = 1e-4  # relative difference above which two losses count as different
ASAM_FLOOR = 1e-16  # added to ASAM's norm
CLIP_FLOOR = 1e-6  # added to the gradient's norm in clipping, torch's own
FINAL_ANNEALING = 0.01  # the annealing factor once `total_steps` steps are done
SEARCH_FACTOR = 10.0  # by which one look-ahead of `search_steps` may change the step size; not published

PIECE = 1 << 17  # elements that a CPU works on at once: the operands of a stage stay in its cache
ALONE = 1 << 15  # elements from which a parameter on the CPU is a block of its own, worked on where it lies
ROWS = 1 << 10  # partial sums on a GPU, of whose blocks the length is a multiple
LARGE_BUFFER = 1 << 16  # elements from which a buffer that evaluations do not change is not copied

_LARGEST = sys.float_info.max


# Decisions: section 5 of the specification -------------------------------------------------------------------


class Decision(IntEnum):
    """How the step size of a step was found, from the two losses and slopes; see `adapt`."""

    NON_FINITE = -1  #: a loss or gradient is not finite: the step is not taken
    UNCLEAR = 0  #: the two losses are too close to tell
    CUBIC = 1  #: minimiser of the cubic; the look-ahead is better than the start
    CUBIC_WORSE = 2  #: minimiser of the cubic; the look-ahead is worse than the start
    PARABOLA_AHEAD = 3  #: vertex of the parabola with the slope of the look-ahead
    PARABOLA_START = 4  #: vertex of the parabola with the slope of the start
    GROW = 5  #: downhill at both ends and better: a longer step, by the ratio of the slopes
    SHRINK = 6  #: uphill at both ends and worse: a shorter step, by the ratio of the slopes
    KEEP = 7  #: the slopes contradict the losses: keep the step if it was better, else none


class Adaptation(NamedTuple):
    """What `adapt` makes of two evaluations."""

    target: Any  #: τ, what the step size should have been
    step: Any  #: σ, the step to take where the look-ahead is worse than the start
    decision: Any  #: a `Decision`, or its code in a tensor


class Measured(NamedTuple):
    """What a look-ahead has measured, as `adapt` takes it: 0-dimensional tensors, in units of its own length.

    So `alpha` is 1, and a slope is the fall of the loss over one such step.
    """

    l0: Tensor
    l1: Tensor
    p0: Tensor
    p1: Tensor
    alpha: Tensor
    beta1: Tensor


class Move(NamedTuple):
    """What `Acme.decide` has a step do: 0-dimensional tensors, in units of the look-ahead's length."""

    length: Tensor  #: of the step, before γ damps it
    step_size: Tensor  #: α of the next step
    decision: Tensor  #: the code of a `Decision`
    worse: Tensor  #: whether Nesterov's term takes the gradient at the start, and not the second one
    again: Tensor  #: whether the averages are updated with the second gradient, too


@dataclass(frozen=True)
class Report:
    """The last step, in numbers. Of several groups, step sizes are the first's that took part.

    Slopes are directional derivatives along the step, positive meaning downhill, per unit of `step_size`. What a
    step did not evaluate or decide is None.
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


def adapt(l0: Any, l1: Any, p0: Any, p1: Any, alpha: Any, beta1: Any) -> Adaptation:
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

    The cubic has value l0 and slope -p0 at 0, value l1 and slope -p1 at `alpha`; the parabolas go through l0 and
    l1. The bounds are those with which ``beta1·alpha + (1 - beta1)·τ`` lies between half and double `alpha`.

    Args:
        l0, l1: finite losses at the start and at the look-ahead point: numbers, or 0-dimensional tensors.
        p0, p1: finite slopes there, in units of loss per unit of `alpha`; positive means downhill.
        alpha: the step size between the two points, at least 0.
        beta1: decay rate of the step size's memory, in [0, 1).

    Returns:
        Finite numbers (tensors, of tensors); the minimiser of the cubic lies strictly inside (0, alpha).
    """
    if isinstance(l0, Tensor):
        return Adaptation(*_table(l0, l1, p0, p1, alpha, beta1))
    target, step, code = _table(*torch.tensor([l0, l1, p0, p1, alpha, beta1], dtype=torch.float64).unbind())
    return Adaptation(target.item(), step.item(), Decision(int(code)))


def _table(l0: Tensor, l1: Tensor, p0: Tensor, p1: Tensor, alpha: Tensor, beta1: Tensor) -> list[Tensor]:
    """The table of `adapt`: every row computed, the first whose condition holds chosen."""
    better, worse = l1 <= l0, l1 > l0
    down, up, ahead_down, ahead_up = p0 > 0, p0 < 0, p1 > 0, p1 < 0
    clear = (l0 - l1).abs() > torch.maximum(l0, l1) * CLEAR_DIFFERENCE
    none = torch.zeros_like(alpha)
    stay = torch.where(better, alpha, none)
    # The rise of the loss in units of a slope, bounded so that its square is finite.
    scale = torch.maximum(p0.abs(), p1.abs())
    rise, rise0, rise1 = (
        ((l1 - l0) / alpha / torch.stack([scale, p0, -p1])).nan_to_num(0.0).clamp(-1e100, 1e100)
    )
    inside = torch.nextafter(alpha, none)
    minimum = torch.minimum(alpha * _cubic_minimiser(rise, p0 / scale, p1 / scale), inside)
    ahead = alpha * ((1 - 2 * rise1) / (2 - 2 * rise1))
    start = alpha * (0.5 / (1 + rise0))
    ratio = (p1 / p0).clamp(max=_LARGEST)
    grow = torch.minimum(alpha * (1 + ratio), alpha * (2 - beta1) / (1 - beta1))
    shrink = torch.maximum(-alpha * ratio, alpha * (0.5 - beta1) / (1 - beta1))
    cubic = torch.where(better, none + Decision.CUBIC, none + Decision.CUBIC_WORSE)
    rows: list[tuple[Tensor, Tensor, Tensor, Any]] = [
        # condition, target τ, step σ, code
        (~clear, torch.where(better, 2 * alpha, alpha), stay, Decision.UNCLEAR),
        (down & ahead_up, minimum, minimum, cubic),
        (better & ahead_up, ahead, ahead, Decision.PARABOLA_AHEAD),
        (worse & down, start, start, Decision.PARABOLA_START),
        (better & down & ahead_down, grow, alpha, Decision.GROW),
        (worse & up & ahead_up, shrink, none, Decision.SHRINK),
    ]
    chosen = torch.stack([stay, stay, none + Decision.KEEP])
    for condition, target, step, code in reversed(rows):
        chosen = torch.where(condition, torch.stack([target, step, none + code]), chosen)
    return list(chosen.clamp(-_LARGEST, _LARGEST).unbind())


def _cubic_minimiser(rise: Tensor, p0: Tensor, p1: Tensor) -> Tensor:
    """Minimiser in [0, 1] of the cubic with values 0, `rise` and slopes -p0 < 0, -p1 > 0 at 0 and 1.

    In a form whose terms are all positive (Nocedal and Wright, *Numerical Optimization*, eq. 3.59,
    rationalised), so that nothing cancels and a vanishing leading coefficient needs no case of its own.
    """
    theta = -p0 - p1 - 3 * rise
    root = torch.hypot(theta, p0.sqrt() * (-p1).sqrt())
    total = torch.where(theta >= 0, theta + root, p0 * -p1 / (root - theta))
    return ((p0 + total) / (p0 - p1 + 2 * root)).clamp(min=sys.float_info.min)


def search(l0: float, l1: float, p0: float, p1: float, alpha: float, latest: int = 0) -> tuple[float, bool]:
    """The step size to try next, from what a step of `alpha` told, while nothing moves (`search_steps`).

    A step is too short where the slope at its end is still more than half of that at the start and the loss
    not higher, else too long. The search ends at a step size that is too short where ten times as much is too
    long. If the direction is not downhill at the start, the batch says nothing: `alpha`, as it is.

    Args:
        l0, l1, p0, p1, alpha: as in `adapt`; only `l0` has to be finite.
        latest: 1 if the search has made the step size larger, -1 if smaller, 0 if neither.

    Returns:
        The next step size, and whether the search is over. Weights move only in a step that ends it at its `alpha`.
    """
    if not (math.isfinite(l1) and math.isfinite(p0) and math.isfinite(p1)):
        return alpha / SEARCH_FACTOR, False
    if p0 <= 0:
        return alpha, False
    higher = l1 > l0 and l1 - l0 > max(l0, l1) * CLEAR_DIFFERENCE
    if p1 > p0 / 2 and not higher:
        return (alpha, True) if latest < 0 else (min(SEARCH_FACTOR * alpha, _LARGEST), False)
    return alpha / SEARCH_FACTOR, latest > 0


# Arithmetic on one-dimensional tensors: section 3 --------------------------------------------------------------


class _Numbers(NamedTuple):
    """A group's numbers for the stages, 0-dimensional, in the averages' precision; None for what has no effect."""

    beta1: Any
    rate1: Any  #: 1 - β1, times what limits the gradient
    beta2: Any
    root2: Any  #: sqrt(1 - β2), times the same
    scale: Any  #: bc1 / sqrt(bc2)
    epsilon: Any  #: ε·bc1, positive
    correction: Any  #: bc1
    eta: Any
    size: Any = None  #: the length of the move
    keep: Any = None  #: 1 - size·weight_decay
    nesterov: Any = None  #: 1 - β1, times what clips the gradient of Nesterov's term
    again: Any = None  #: β1 of the second update; the other three follow
    again_rate1: Any = None
    again_beta2: Any = None
    again_root2: Any = None
    fine: Any = None  #: not 0 where the start is finite; None: the host has read that, and decided
    fine_ahead: Any = None  #: not 0 where the look-ahead is finite
    worse: Any = None  #: not 0 where that is worse than the start


def _denominator(c: _Numbers, v: Tensor | None) -> Any:
    """D: with `adam` a tensor, else a number, or None for 1."""
    return c.correction if v is None else v.sqrt().mul_(c.scale).add_(c.epsilon)


def _over(x: Tensor, divisor: Any) -> Tensor:
    return x if divisor is None else x / divisor


def _updated(
    m: Tensor, v: Any, g: Tensor, rates: tuple[Any, ...], *, there: bool = False
) -> tuple[Tensor, Any]:
    """β1·m + (1 - β1)·g' and, with `adam`, β2·v + (1 - β2)·g'²: the rates limit g. `there`: in place."""
    beta1, rate1, beta2, root2 = rates
    m = (m.mul_(beta1) if there else m * beta1).addcmul_(g, rate1)
    if v is not None:
        root = g * root2
        v = (v.mul_(beta2) if there else v * beta2).addcmul_(root, root)
    return m, v


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ a·b: of a piece on the CPU in its own precision, else widened to float64 product by product."""
    if a.device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.dot(a, b)
    product, dtype = a * b, _sum_dtype(a.device)
    if a.device.type != "cpu":  # one long sum would be one block of threads
        product = product.view(ROWS, -1).sum(1, dtype=dtype)
    return product.sum(dtype=dtype)


def _place(c: _Numbers, w: Tensor, w0: Tensor, direction: Tensor, bounded: bool = False) -> None:
    """w ← (w0 - size·direction)·keep; w0 where the size is 0."""
    there = w if c.fine is None and w.dtype == direction.dtype else None
    moved = torch.addcmul(w0.to(direction.dtype), direction, -c.size, out=there)
    if c.keep is not None:
        moved.mul_(c.keep)
    if bounded:
        moved.clamp_(-torch.finfo(w.dtype).max, torch.finfo(w.dtype).max)
    if there is None:
        w.copy_(moved if c.fine is None else torch.where(c.size != 0, moved, w0.to(moved.dtype)))


def _limit(beta1: Tensor, sums: Tensor, max_norm: float | None) -> Tensor:
    """Two factors on a gradient: what clips it, and min(k, 1).

    k is the one for which the average's squared norm, in the metric 1/D, grows `GROWTH_LIMIT` times by the clipped
    gradient: the positive root of a·k² + 2b·k - c = 0. `sums` [groups, 4] are those of `_sums`.
    """
    pg, pp, gg, square = sums.unbind(1)
    clip = _clip(square.sum(), max_norm)
    a = (gg * (clip * (1 - beta1)).square()).sum()
    b = (pg * (clip * beta1 * (1 - beta1))).sum()
    c = (pp * (GROWTH_LIMIT - beta1.square())).sum()
    root = torch.hypot(b, a.sqrt() * c.sqrt())
    factor = torch.where(b > 0, c / (b + root), (root - b) / a)
    # No gradient, or no average to compare it with: no limit.
    return torch.stack([clip, torch.where((a == 0) | (c == 0), 1.0, factor).clamp(max=1.0)])


def _clip(square: Tensor, max_norm: float | None) -> Tensor:
    """The factor that clips a gradient of that squared norm, as `torch.nn.utils.clip_grad_norm_` does."""
    if max_norm is None:
        return torch.ones_like(square)
    return (max_norm / (square.sqrt() + CLIP_FLOOR)).clamp(max=1.0)


# The stages of a step: section 4 -------------------------------------------------------------------------------
#
# Each takes tensors of one dimension and one length, of which it changes w (`_leap` m and v, too) in place. It is called
# for pieces of a block that stay in a CPU's cache, or compiled for the whole block. None leaves out what a mode does
# not have, or what the host knows to be without effect.


def _sums(
    c: _Numbers, m: Tensor, v: Any, g: Tensor, ahead: Any, kept: Any, *, norm: bool
) -> tuple[Tensor, ...]:
    """Σ m·g/D, Σ m·m/D, Σ g·g/D and Σ g·g (with `norm`, else 0); kept ← g.

    With a gradient `ahead`, they are its own sums, and those of the averages as updated with `g`.
    """
    if kept is not None:
        kept.copy_(g)
    g = g.to(m.dtype)
    if ahead is not None:
        m, v = _updated(m, v, g, c[:4])
        g = ahead.to(m.dtype)
    divisor = _denominator(c, v)
    m_over, g_over = _over(m, divisor), _over(g, divisor)
    gg = _dot(g_over, g)
    square = torch.zeros_like(gg) if not norm else gg if divisor is None else _dot(g, g)
    return _dot(m_over, g), _dot(m_over, m), gg, square


def _ascent(c: _Numbers, v: Any, g: Tensor, w: Tensor, *, weight: bool) -> tuple[Tensor, ...]:
    """ASAM's Σ (T·s)², and Σ g·g."""
    g = _wide(g)
    s = _over(g, _denominator(c, v))
    s = s * (_wide(w).abs() + c.eta) if weight else s
    return _dot(s, s), _dot(g, g)


def _climb(c: _Numbers, w: Tensor, w0: Tensor, v: Any, g: Tensor, *, weight: bool) -> tuple[Tensor, ...]:
    """w ← w0 - size·T²·s, ASAM's point, with a negative size."""
    s = _over(_wide(g), _denominator(c, v))
    _place(c, w, w0, s * (_wide(w0).abs() + c.eta).square_() if weight else s)
    return ()


def _look(c: _Numbers, w: Tensor, w0: Tensor, m: Tensor, v: Any, g: Tensor, g0: Tensor) -> tuple[Tensor, ...]:
    """w ← w0 - α·d; Σ d·g0."""
    m, v = _updated(m, v, g.to(m.dtype), c[:4])
    direction = _over(m, _denominator(c, v))
    slope = _dot(direction, g0.to(m.dtype))
    _place(c, w, w0, direction)
    return (slope,)


def _leap(
    c: _Numbers,
    w: Tensor,
    w0: Any,
    m: Tensor,
    v: Any,
    g: Any,
    g0: Any,
    g1: Any,
    *,
    nesterov: bool,
    bounded: bool,
) -> tuple[Tensor, ...]:
    """The averages updated with g and with the second gradient g1; w ← (w0 - size·d)·keep, the next weights.

    w0 of None is w. Nesterov's term takes g0 or g1: the one that is there, of both by `worse`.
    """
    w0 = w if w0 is None else w0
    if c.fine is not None:
        pairs = (g, c.fine), (g0, c.fine), (g1, c.fine_ahead)
        g, g0, g1 = (None if x is None else torch.where(fine != 0, x, 0) for x, fine in pairs)
    _updated(m, v, g.to(m.dtype), c[:4], there=True)
    if c.size is not None:
        direction = m
        if nesterov:
            other = g1 if g0 is None else g0 if g1 is None else torch.where(c.worse != 0, g0, g1)
            direction = (m * c.beta1).addcmul_(other.to(m.dtype), c.nesterov)
        _place(c, w, w0, _over(direction, _denominator(c, v)), bounded)
    elif w0 is not w:
        w.copy_(w0)
    if g1 is not None:
        _updated(m, v, g1.to(m.dtype), c[11:15], there=True)
    return ()


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A stage, or a function of a few numbers, compiled for tensors of any length."""
    options: dict[str, Any] = {"dynamic": True, "fullgraph": True}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options["recompile_limit"] = 64  # each mode and dtype is a compilation of its own
    compiled: Callable[..., Any] = torch.compile(function, **options)
    return compiled


# Blocks --------------------------------------------------------------------------------------------------------


class _Block:
    """Parameters that are alike, as one dimension: their averages, and room for their weights and gradients.

    `state[param]["exp_avg"]` and `["exp_avg_sq"]` are views of the averages. Elements are in the order of the
    parameters' memory where that is dense. On the CPU a large parameter is a block by itself, whose weights and
    gradient are worked on where they lie; others are gathered and written back.
    """

    def __init__(
        self, place: int, group: dict[str, Any], params: list[Tensor], weight: bool, share: float
    ) -> None:
        self.place, self.group, self.params, self.weight, self.share = place, group, params, weight, share
        self.locals = list(map(_local, params))
        self.forms = [(local.shape, local.stride()) for local in self.locals]
        self.device, self.dtype = self.locals[0].device, _state_dtype(params[0].dtype)
        self.strides = [torch.empty_like(local, device="meta").stride() for local in self.locals]
        self.sizes = [local.numel() for local in self.locals]
        self.alone, self.length, self.piece = _lies_alone(self.locals[0]), sum(self.sizes), PIECE
        if self.device.type != "cpu":
            self.length = self.piece = max(-(-self.length // ROWS), 1) * ROWS
        self.rooms: dict[str, Tensor] = {}
        self.views: dict[str, list[Tensor]] = {}  # of each room, the parameters' parts in their shapes
        self.entries: dict[str, list[Any]] = {}  # what `state` holds of the averages
        self.fresh: list[tuple[str, int]] = []  # averages that have not begun
        self.waits = False  # whether some squared average has only seen zeros (`unbiased_squares`)
        self.g0 = self.g = self.g1 = torch.empty(0)  # gradients: at the start, of the first update, ahead

    def room(self, name: str, dtype: torch.dtype) -> Tensor:
        """Memory of this block's length that is kept from step to step."""
        if name not in self.rooms or self.rooms[name].dtype != dtype:
            flat = self.rooms[name] = torch.zeros(self.length, dtype=dtype, device=self.device)
            forms = zip(
                torch.split(flat[: sum(self.sizes)], self.sizes), self.forms, self.strides, strict=True
            )
            self.views[name] = [part.as_strided(shape, strides) for part, (shape, _), strides in forms]
        return self.rooms[name]

    def load(self, key: str, state: dict[Tensor, dict[str, Any]], begun: bool) -> None:
        """Make room for the averages `key`, and copy what `state` has of them."""
        self.room(key, self.dtype)
        self.entries[key] = list(map(_like, self.views[key], self.params))
        for i, param in enumerate(self.params):
            if not begun or key not in state.get(param, ()):
                self.fresh.append((key, i))
                continue
            self.views[key][i].copy_(_local(state[param][key]))

    def each(self) -> Iterator[tuple[Tensor, str, Any]]:
        """Each parameter, and the name and the entry of each of its averages."""
        for key, entries in self.entries.items():
            yield from zip(self.params, repeat(key), entries, strict=False)

    def fits(self, state: dict[Tensor, dict[str, Any]]) -> bool:
        """Whether parameters and averages are still those that it was made of."""
        self.locals = list(map(_local, self.params)) if _is_dtensor(self.params[0]) else self.params
        first, none = self.locals[0], dict[str, Any]()
        same = [(local.shape, local.stride()) for local in self.locals] == self.forms and (
            not self.waits or self.group["capturable"]
        )
        same = same and (first.device, _state_dtype(first.dtype)) == (self.device, self.dtype)
        return same and all(state.get(param, none).get(key) is entry for param, key, entry in self.each())

    def gather(self, name: str, tensors: list[Tensor]) -> Tensor:
        """Copies of one tensor for each parameter, in the room `name`."""
        flat = self.room(name, tensors[0].dtype)
        torch._foreach_copy_(self.views[name], tensors)
        return flat

    def gradient(self, keep: str | None) -> tuple[Tensor, Tensor | None]:
        """The gradient as it is now, and where a stage has to copy it, so that in the room `keep` it outlives the next."""
        found = self.gradients()
        if self.alone and found[0].stride() == self.strides[0]:
            return _flat(found[0]), self.room(keep, found[0].dtype) if keep else None
        return self.gather(keep or "latest", found), None

    def gradients(self) -> list[Tensor]:
        pairs = zip(self.params, self.locals, strict=True)
        found = [torch.zeros_like(local) if p.grad is None else _local(p.grad) for p, local in pairs]
        if any(gradient.layout is not torch.strided for gradient in found):
            raise TypeError(
                "Invalid gradient: sparse (expected a dense one; for an embedding, pass sparse=False)"
            )
        return found

    def averages(self) -> tuple[Tensor, Tensor | None]:
        return self.rooms["exp_avg"], self.rooms.get("exp_avg_sq")

    def target(self, room: str) -> Tensor:
        """Where a stage puts weights: where they lie, or a room from which `write` puts them back."""
        return _flat(self.locals[0]) if self.alone else self.room(room, self.locals[0].dtype)

    def write(self, room: str, back: bool = False) -> None:
        if back or not self.alone:
            torch._foreach_copy_([local.detach() for local in self.locals], self.views[room])


def _lies_alone(local: Tensor) -> bool:
    """Whether a parameter is large enough for a block of its own, and dense."""
    large = local.device.type == "cpu" and local.numel() >= ALONE
    return large and torch.empty_like(local, device="meta").stride() == local.stride()


def _flat(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor, where they lie."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


# What surrounds an evaluation ------------------------------------------------------------------------------------


class _Surroundings:
    """The random generators, and the buffers of some modules, at two moments; in a CUDA graph, the caller's.

    Large buffers that evaluations leave as they are are not copied again. What cannot be written in place (expanded,
    sparse, nested, made in inference mode, not yet initialised) is put back if it was replaced.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules
        self.saved: dict[str, Any] = {}
        self.constant: Any = (
            WeakTensorKeyDictionary()
        )  # versions of large buffers that an evaluation has left alone

    def save(self, moment: str, devices: list[torch.device]) -> None:
        if _is_capturing(devices):
            return
        states = [_rng(device).get_rng_state(*_index(device)) for device in devices]
        modules = dict.fromkeys(module for root in self.modules for module in root.modules())
        owners = [(m._buffers, name, buffer) for m in modules for name, buffer in m._buffers.items()]
        buffers = [buffer for *_, buffer in owners if buffer is not None and _is_writable(buffer)]
        changing = [b for b in buffers if b.numel() < LARGE_BUFFER or self.constant.get(b) != b._version]
        copies = [(buffer, buffer.clone(), buffer._version) for buffer in changing]
        self.saved[moment] = [torch.get_rng_state(), devices, states, owners, copies]

    def learn(self) -> None:
        """After the first evaluation: the large buffers that it has left as they were need no copies."""
        if "before" in self.saved:
            copies = self.saved["before"][-1]
            same = [
                (b, version)
                for b, _, version in copies
                if b.numel() >= LARGE_BUFFER and b._version == version
            ]
            self.constant.update(same)
            self.saved["before"][-1] = [entry for entry in copies if self.constant.get(entry[0]) != entry[2]]

    def restore(self, moment: str) -> None:
        if moment not in self.saved or _is_capturing(self.saved[moment][1]):
            return
        state, devices, states, owners, copies = self.saved[moment]
        torch.set_rng_state(state)
        for device, state in zip(devices, states, strict=True):
            _rng(device).set_rng_state(state, *_index(device))
        for table, name, buffer in owners:
            table[name] = buffer
        if copies:
            torch._foreach_copy_([buffer for buffer, *_ in copies], [copy for _, copy, _ in copies])


def _is_capturing(devices: list[torch.device]) -> bool:
    return any(device.type == "cuda" for device in devices) and torch.cuda.is_current_stream_capturing()


def _rng(device: torch.device) -> Any:
    return torch.get_device_module(device)


def _index(device: torch.device) -> tuple[torch.device, ...]:
    """The argument of a device module's random state functions; mps has one generator and takes none."""
    return () if device.type == "mps" else (device,)


def _is_writable(buffer: Tensor) -> bool:
    if isinstance(buffer, UninitializedTensorMixin) or buffer.is_inference() or buffer.is_nested:
        return False
    dense = buffer.layout is torch.strided
    return dense and all(s > 0 or n < 2 for n, s in zip(buffer.shape, buffer.stride(), strict=True))


@dataclass
class _Trial:
    """A step in progress: its evaluations, all on the same random numbers and buffers, undone if one fails."""

    parts: list[str]  # still to come
    scaler: torch.amp.GradScaler | None
    ranks: dist.ProcessGroup | None
    device: torch.device  # where sums come together
    devices: list[torch.device]  # whose generators count
    looks: bool = False
    evaluations: int = 0
    loss: Any = None  # at the start
    blocks: list[_Block] = field(default_factory=list)  # of the parameters that take part
    params: list[Tensor] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)  # for each group, the first one that is equal
    n: dict[str, Tensor] = field(default_factory=dict)  # the groups' numbers: on the host, where it may read
    here: dict[str, Tensor] = field(default_factory=dict)  # those of the stages, on `device`
    read: dict[str, Tensor] = field(default_factory=dict)  # what is to be read: of all ranks
    slopes: list[Tensor] = field(default_factory=list)  # Σ d·g0 of each block
    gradients: list[Any] = field(default_factory=list)  # at the start, and their versions
    searched: bool | None = None  # whether a search is over; None: none was going on
    moved: bool = False  # the weights are kept, and not where they were
    idle: bool = False  # nothing to do, or skipped
    skipped: bool = False  # for an overflow of scaled gradients
    done: bool = False


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
        model: an `nn.Module`, or its parameters: tensors, ``(name, tensor)`` pairs or group dicts. `asam` needs names.
        lr: initial step size; the first `lr` that is not 0 counts. With `acme` the adapted one is
            ``param_groups[i]["step_size"]``, and moving `lr` to c times its start, as a scheduler does, scales the
            applied step by c. Without, the step size.
        betas: decay rates (β1, β2) of the gradient average (and of the step size) and of the squared one.
        epsilon: added to the root of the squared average (`adam`).
        weight_decay: decoupled; each step scales the weights by 1 - (applied step size)·weight_decay.
        acme: adapt the step size, at the cost of one more evaluation a step.
        adam: divide the gradient average by the root of the squared one, element by element.
        asam: take the gradient at ASAM's adversarial point, at the cost of one more evaluation a step.
        rho, eta: radius of ASAM's neighbourhood; what is added to the weights' magnitudes in its normalisation.
        nesterov: Nesterov momentum.
        bias_correction: divide the averages by 1 - β^t, as Adam does.
        differentiable: refused; here because `torch.optim` has it.
        total_steps: steps over which γ falls to a hundredth along half a cosine, to stay there; None: not at all.
        max_grad_norm: clip the gradient that enters the averages (and Nesterov's term) to this Euclidean norm, as
            `torch.nn.utils.clip_grad_norm_` does; slopes are the true gradient's. In the closure it falsifies them.
        process_group: ranks of a data-parallel training, over which losses are averaged, so that all decide alike.
            None: a DistributedDataParallel `model`'s, those of the parameters' device mesh, or all.
        compile: compile what is between the evaluations with `torch.compile`, in some seconds; needs a C++ compiler
            on the CPU. Results differ by rounding. Not saved with the state.
        capturable: read nothing from the device, so that CUDA graphs may hold any part of a step. What is not finite
            then raises nothing: the step changes nothing, and `report` says so. (If it is a parameter's very first
            gradient, its averages begin at 0.)
        buffers_of: modules whose buffers (BatchNorm's statistics) are to count one evaluation a step; None: `model`.
        gain: factor on every step with `acme`. Not published, nor are the others below.
        adapt_steps: adapt the step size in the first so many steps; then it stays, and a step takes one evaluation
            less. None: throughout, as published.
        search_steps: at most so many first steps only look ahead for the step size to start from: the weights stay,
            and each look-ahead changes the step size tenfold (see `search`).
        unbiased_squares: with `adam` and `bias_correction`, begin the squared average at (1 - β2^t)·mean(g²) of the
            first gradient that is not all zero; published is mean(g²) of the first, so that what starts at zero (a
            head, LoRA's B) leaps by a gradient over ε with `adam`, `nesterov` and `acme`.

    Raises:
        ValueError, TypeError: an argument out of its range or of a wrong type.

    Parameters may be real tensors of any floating dtype, and DTensors (`fully_shard`); without a gradient they take no
    part. Averages are float32 for 16-bit parameters; sums of many elements float64 (on mps, float32). Groups search
    along their joint direction: each keeps its ratio of step sizes, its betas and its weight decay.

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

    watchers: ClassVar[list[Callable[[Acme, Report, dict[str, Tensor]], None]]] = []
    """Called with what a step has read, before it changes anything: `acme.watch` warns."""

    _step_supports_amp_scaling = True  # GradScaler.step() leaves its scale here, and `step` can refuse

    def __init__(
        self, model: nn.Module | Iterable[Any], lr: float | Tensor = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        epsilon: float = 1e-8, weight_decay: float = 0.0, *, acme: bool = False, adam: bool = False,
        asam: bool = False, rho: float = 1.0, eta: float = 0.0, nesterov: bool = False, bias_correction: bool = False,
        differentiable: bool = False, total_steps: int | None = 50_000, max_grad_norm: float | None = None,
        process_group: dist.ProcessGroup | None = None, compile: bool = False, capturable: bool = False,
        buffers_of: nn.Module | Iterable[nn.Module] | None = None, gain: float = 1.0,
        adapt_steps: int | None = None, search_steps: int = 0, unbiased_squares: bool = False,
    ) -> None:  # fmt: skip
        given = locals()
        if not isinstance(compile, bool):
            raise TypeError(f"Invalid compile: {compile!r} (expected True or False)")
        self._model = model if isinstance(model, nn.Module) else None
        self._process_group, self._compile = process_group, compile
        if buffers_of is None:
            buffers_of = [] if self._model is None else [self._model]
        self._modules = [buffers_of] if isinstance(buffers_of, nn.Module) else list(buffers_of)
        self._forget()
        self._report: Report | None = None
        defaults = _checked({name: given[name] for name in (*_GROUP_OPTIONS, *_SHARED_OPTIONS)})
        super().__init__(model.named_parameters() if isinstance(model, nn.Module) else model, defaults)

    def _forget(self, whole: bool = True) -> None:
        """Begin what is remembered from step to step, but not in a state dict; or only what is about the state."""
        self._blocks: list[
            _Block
        ] = []  # of the last step, and the parameters and groups that they were made of
        self._kinds: tuple[list[Tensor], list[int]] = ([], [])
        self._outcome: tuple[Tensor, bool, int] | None = None  # with `capturable`, what `report` reads
        if whole:
            self._trial: _Trial | None = None
            self._around = _Surroundings(self._modules)
            self._scaled: list[Any] = [
                SimpleNamespace() for _ in range(3)
            ]  # what a GradScaler unscales, each once
            self._warned: set[str] = set()

    @property
    def report(self) -> Report | None:
        """The last step in numbers; None before the first. With `capturable`, reading it waits for the device."""
        if self._outcome is not None:
            self._report = _report(*self._outcome)
        return self._report

    @property
    def outcome(self) -> Tensor | None:
        """With `capturable`, the last step's decision on the device: its code, NaN without look-ahead; memory that stays."""
        return None if self._outcome is None else self._outcome[0][4]

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
        _refuse_foreign(param_group, "a parameter group")
        group = dict(param_group)  # the caller's dict stays as it is, usable for another optimizer
        group.update(_checked({**self.defaults, **group}))
        for name in _SHARED_OPTIONS:
            if group[name] != self.defaults[name]:
                raise ValueError(
                    f"Invalid {name} in a parameter group: {group[name]!r} (expected {self.defaults[name]!r} as for "
                    "the whole optimizer: pass it to Acme(...) instead)"
                )
        params = group["params"]
        if not isinstance(params, set):  # which torch refuses
            group["params"] = [params] if isinstance(params, Tensor) else list(params)
        self._match_names(group)
        super().add_param_group(group)
        try:
            for param in group["params"]:
                _check_parameter(param)
        except TypeError:
            self.param_groups.pop()
            raise
        _complete(group, self.param_groups[0])

    def _match_names(self, group: dict[str, Any]) -> None:
        """Bring a new group's names in line with the others' (torch wants all groups named, or none)."""
        params = group["params"]
        named = len(params) > 0 and all(isinstance(param, tuple) for param in params)
        if self.defaults["asam"] and not named and params:
            raise ValueError(_NO_NAMES)
        if not self.param_groups or named == ("param_names" in self.param_groups[0]):
            return
        if not named:
            number = len(self.param_groups)
            group["params"] = [(f"group{number}.{i}", param) for i, param in enumerate(params)]
            group.update({} if params else {"param_names": []})
        elif any(other["params"] for other in self.param_groups):
            group["params"] = [param for _, param in params]
        else:  # groups without parameters are neither
            for other in self.param_groups:
                other["param_names"] = []

    def set_total_steps(self, total_steps: int | None) -> None:
        """Change the length of the training, as to go on for longer from a checkpoint; γ goes on from the steps done.

        Raises:
            ValueError, TypeError: neither a whole number of at least 1 nor None.
        """
        for options in (self.defaults, *self.param_groups):
            options.update(_checked({**options, "total_steps": total_steps}))

    # The step -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Any = None, scaler: torch.amp.GradScaler | None = None) -> Any:
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
            while True:
                getattr(self, trial.parts[0])(loss)
                if trial.idle and not trial.done:
                    self._finish(trial)
                if trial.done:
                    return first
                loss = evaluate()

    @contextmanager
    def step_in_parts(self, scaler: torch.amp.GradScaler | None = None) -> Iterator[None]:
        """One step as separate calls, for loops that cannot hand over a closure; `step` is made of the same.

        Within the block, evaluate the batch (zero the gradients, forward, backward) and hand the loss of that
        evaluation to the part that is due, `next_part`: ``ascend`` with `asam`, then ``look`` with `acme` where the
        step looks ahead, then ``leap``. Each but the last is followed by another evaluation of the same batch::

            with optimizer.step_in_parts():
                loss = evaluate()
                optimizer.look(loss)             # to the look-ahead point
                optimizer.leap(evaluate())       # to the next weights

        Raises:
            RuntimeError: parts called out of order, or the block left before ``leap``.

        `scaler` is that of `step`. An exception within the block undoes the step.
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

    def looks(self) -> bool:
        """Whether the next step looks ahead; a variant may decide otherwise."""
        most = self.param_groups[0]["adapt_steps"]
        return self.param_groups[0]["acme"] and (most is None or self.param_groups[0]["steps"] < most)

    def decide(self, seen: Measured) -> Move:
        """What a step does after a finite look-ahead (sections 5 and 4.7 to 4.9); a variant may decide otherwise.

        The tensors are float64; with `capturable` they are on the parameters' device, and may not be read.
        """
        target, step, decision = self._call(_table, *seen)
        worse, step_size = seen.l1 > seen.l0, seen.beta1 * seen.alpha + (1 - seen.beta1) * target
        return Move(torch.where(worse, step, seen.alpha), step_size, decision, worse, seen.l1 < seen.l0)

    @torch.no_grad()
    def ascend(self, loss: Tensor | float) -> None:
        """Go to ASAM's adversarial point; `loss` is that of the evaluation at the start. See `step_in_parts`."""
        trial = self._next("ascend")
        self._start(trial, loss)
        if not trial.idle:
            self._ascend(trial)
        self._depart()

    @torch.no_grad()
    def look(self, loss: Tensor | float) -> None:
        """Go one full step ahead; `loss` is that of the latest evaluation. See `step_in_parts`."""
        trial = self._next("look")
        self._take(trial, loss)
        if not trial.idle:
            self._look(trial)
        self._depart()

    @torch.no_grad()
    def leap(self, loss: Tensor | float) -> None:
        """Go to the next weights; `loss` is that of the latest evaluation. See `step_in_parts`."""
        trial = self._next("leap")
        (self._take_ahead if trial.looks else self._take)(trial, loss)
        if not trial.idle:
            self._leap(trial)
        self._finish(trial)

    @contextmanager
    def _in_progress(self, scaler: torch.amp.GradScaler | None) -> Iterator[_Trial]:
        """The evaluations of a step, which an exception undoes."""
        if self._trial is not None:
            raise RuntimeError("A step of this optimizer is in progress: finish it with leap() first")
        params = [param for group in self.param_groups for param in group["params"]]
        devices = sorted({p.device for p in params if p.device.type not in ("cpu", "meta")}, key=str)
        parts = ["ascend"] * self.param_groups[0]["asam"] + ["look"] * self.looks() + ["leap"]
        ranks, device = (
            _ranks(self._model, params, self._process_group),
            params[0].device if params else "cpu",
        )
        trial = self._trial = _Trial(parts, scaler, ranks, torch.device(device), devices, "look" in parts)
        self._around.save("before", devices)
        torch.clear_autocast_cache()  # of casted weights that have changed
        try:
            yield trial
            if not trial.done:
                raise RuntimeError(f"The step was left before {trial.parts[0]}(): it is undone")
        except BaseException:
            if not trial.done:
                self._go_back(trial)
                self._around.restore("before")
                if scaler is not None:  # whose books have the old ones until its next update, under their ids
                    self._scaled = [SimpleNamespace() for _ in range(3)]
            raise
        finally:
            self._trial = None
            torch.clear_autocast_cache()

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

    def _arrive(self, trial: _Trial, loss: Tensor | float) -> Tensor:
        """After an evaluation: its loss, where the sums are; surroundings as of one evaluation."""
        trial.parts.pop(0)
        if trial.evaluations:
            self._around.restore("after")
        else:
            self._around.learn()
            if trial.parts:
                self._around.save("after", trial.devices)
        if trial.scaler is not None:
            self._scaled[trial.evaluations].param_groups = self.param_groups
            trial.scaler.unscale_(self._scaled[trial.evaluations])
        trial.evaluations += 1
        if isinstance(loss, bool) or not isinstance(loss, (Tensor, Real)):
            raise TypeError(
                f"Invalid loss: {loss!r} (expected the closure to return a scalar tensor or a number)"
            )
        value = loss.detach() if isinstance(loss, Tensor) else torch.tensor(float(loss), dtype=torch.float64)
        if value.numel() != 1 or value.is_complex():
            raise ValueError(
                f"Invalid loss: a tensor of shape {tuple(value.shape)} and dtype {value.dtype} (expected the closure "
                "to return one real number)"
            )
        there = torch.empty((), dtype=_sum_dtype(trial.device), device=trial.device)
        return there.copy_(_local(value).reshape(()))

    def _depart(self) -> None:
        """Before another evaluation: all that is random as before the first, no casts of earlier weights."""
        self._around.restore("before")
        torch.clear_autocast_cache()

    def _start(self, trial: _Trial, loss: Tensor | float) -> Tensor:
        """After the evaluation at the start: its loss; the blocks that take part, and their averages."""
        options = self.param_groups[0]
        steps = options["total_steps"]
        if options["acme"] and not options["capturable"] and options["annealing_step"] == steps:
            self.warn(
                f"Step {steps + 1} of a training with total_steps={steps}: the applied step stays at a hundredth from "
                "here on. Pass the length of the training as total_steps (set_total_steps changes it), or None."
            )
        trial.loss = self._arrive(trial, loss)
        self._divide(trial)
        trial.idle = not trial.blocks
        if trial.idle:
            self.warn("After the closure no parameter of the optimizer has a gradient: nothing is done.")
        else:
            self._tabulate(trial)
            self._begin(trial)
        return trial.loss  # type: ignore[no-any-return]

    def _divide(self, trial: _Trial) -> None:
        """The blocks of the parameters that have a gradient: those of the last step, where nothing has changed."""
        equal: dict[Any, int] = {}  # equal groups are one: dividing parameters among them changes no sum
        trial.firsts = [equal.setdefault(_settings(group), i) for i, group in enumerate(self.param_groups)]
        trial.params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        params, firsts = self._kinds
        same = trial.firsts == firsts and len(trial.params) == len(params)
        if same and all(map(is_, trial.params, params)) and all(b.fits(self.state) for b in self._blocks):
            trial.blocks = self._blocks
            return
        options = self.param_groups[0]
        ranks = 1 if trial.ranks is None else dist.get_world_size(trial.ranks)
        kinds: dict[Any, list[Tensor]] = {}
        for place, (first, group) in enumerate(zip(trial.firsts, self.param_groups, strict=True)):
            names = group.get("param_names") or [f"{i} of group {place}" for i in range(len(group["params"]))]
            for name, param in zip(names, group["params"], strict=True):
                if param.grad is not None:
                    _check_parameter(param)
                    _check_averages(name, param, self.state.get(param, {}))
                    local, weight = _local(param), options["asam"] and "weight" in name
                    alone = id(param) if _lies_alone(local) else None
                    kind = first, weight, _share(param, ranks), local.device, local.dtype, alone
                    kinds.setdefault(kind, []).append(param)
        old = {(block.place, block.weight, *map(id, block.params)): block for block in self._blocks}
        for (first, weight, share, *_), members in kinds.items():
            block = old.get((first, weight, *map(id, members)))
            if block is None or not block.fits(self.state):
                block = _Block(first, self.param_groups[first], members, weight, share)
                for key in ("exp_avg", "exp_avg_sq") if options["adam"] else ("exp_avg",):
                    block.load(key, self.state, options["steps"] > 0)
                block.waits = options["unbiased_squares"]
            trial.blocks.append(block)

    def _tabulate(self, trial: _Trial) -> None:
        """The groups' numbers, each [groups]."""
        options = self.param_groups[0]
        names = "epsilon", "eta", "rho", "weight_decay", "lr", "reference_lr", "step_size", "t"
        rows = [[*group["betas"], *(group[name] for name in names)] for group in self.param_groups]
        n = trial.n = dict(zip(("beta1", "beta2", *names), self._numbers(trial, rows).unbind(1), strict=True))
        # The first `lr` that is not 0 is the start; a group whose `lr` is 0 for now stays where it is.
        unset, still = n["reference_lr"] == 0, n["lr"] == 0
        n["reference_lr"] = torch.where(unset, n["lr"], n["reference_lr"])
        n["step_size"] = torch.where(unset, n["lr"], n["step_size"]) if options["acme"] else n["lr"]
        n["scheduled"] = torch.where(still, 0, n["lr"] / n["reference_lr"])
        n["bc2"], correction = 1 - n["beta2"] ** n["t"], torch.ones_like(n["t"])
        n["scale"] = correction
        if options["bias_correction"]:
            correction = 1 - n["beta1"] ** n["t"]
            n["scale"] = correction / n["bc2"].sqrt()
        n["epsilon"] = n["epsilon"] * correction + torch.finfo(torch.float32).tiny
        n.update(correction=correction, rate1=1 - n["beta1"], root2=(1 - n["beta2"]).sqrt())
        n["size"] = torch.where(still, 0, n["step_size"])
        trial.here = self._send(trial, {name: n[name] for name in (*_Numbers._fields[:9], "rho")})

    def _numbers(self, trial: _Trial, rows: list[list[Any]]) -> Tensor:
        """Numbers as one float64 tensor: on the host, or with `capturable` on the device."""
        if not self.param_groups[0]["capturable"]:
            return torch.tensor([list(map(float, row)) for row in rows], dtype=torch.float64)
        device, dtype = trial.device, _sum_dtype(trial.device)
        made = [
            x if isinstance(x, Tensor) else torch.full((), x, device=device, dtype=dtype)
            for x in chain(*rows)
        ]
        return torch.stack([x.to(device, dtype) for x in made]).view(len(rows), -1)

    def _send(self, trial: _Trial, numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same on the device, without waiting for it."""
        if next(iter(numbers.values())).device == trial.device:
            return numbers
        table = torch.stack(list(numbers.values()))
        table = table.pin_memory() if trial.device.type == "cuda" else table
        table = table.to(trial.device, _sum_dtype(trial.device), non_blocking=True)
        return dict(zip(numbers, table.unbind(), strict=True))

    def _begin(self, trial: _Trial) -> None:
        """Begin averages at the parameters' first gradient, be it zero or not; in memory that is not `state` yet."""
        options = self.param_groups[0]
        clip, squares = self._squares(trial, [block for block in trial.blocks if block.fresh])
        for block, found in squares.items():
            fine, gradients = torch.isfinite(found), block.gradients()
            factor = 1 - block.group["betas"][0] if options["bias_correction"] else 1.0
            for key, i in block.fresh:
                view = block.views[key][i]
                if key == "exp_avg":
                    value = gradients[i].to(view.dtype) * (clip * factor)
                elif options["unbiased_squares"]:
                    continue
                else:
                    mean = found[i] * clip**2 / block.params[i].numel()
                    value = mean.clamp(max=torch.finfo(view.dtype).max)
                view.copy_(torch.where(fine[i], value, 0) if options["capturable"] else value)

    def _begin_squares(self, trial: _Trial, ahead: bool = False) -> None:
        """With `unbiased_squares`, begin the squared averages that have not at the gradient as it is now.

        At the look-ahead, so that they are there after the first update, in which all their gradients are zero.
        """
        clip, squares = self._squares(trial, [block for block in trial.blocks if block.waits])
        for block, found in squares.items():
            _, beta2 = block.group["betas"]
            bc2 = trial.n["bc2"][block.place].to(clip.device)
            factor = clip**2 * bc2 / (beta2 if ahead and beta2 > 0 else 1.0)
            for view, param, square in zip(block.views["exp_avg_sq"], block.params, found, strict=True):
                start = torch.where(torch.isfinite(square), square * factor / max(param.numel(), 1), 0)
                view.copy_(torch.where(view > 0, view, start.to(view.device, view.dtype)))

    def _squares(self, trial: _Trial, blocks: list[_Block]) -> tuple[Tensor, dict[_Block, Tensor]]:
        """What clips the gradient as it is now, and the squared norms of each parameter's; over all ranks."""
        max_norm = self.param_groups[0]["max_grad_norm"]
        if not blocks:
            return torch.empty(0), {}
        every, norms = blocks if max_norm is None else trial.blocks, []
        for block in every:
            found = torch._foreach_norm(block.gradients(), 2, dtype=_sum_dtype(block.device))
            norms.append((torch.stack(found).square() * block.share).to(trial.device))
        vector = torch.cat(norms)
        if trial.ranks is not None:
            dist.all_reduce(vector, group=trial.ranks)
        parts = dict(zip(every, torch.split(vector, [len(block.params) for block in every]), strict=True))
        return _clip(vector.sum(), max_norm), {block: parts[block] for block in blocks}

    def _run(self, stage: Any, block: _Block, numbers: dict[str, Tensor], *flats: Any, **how: bool) -> Any:
        """A stage over one block, with its group's numbers; the sums that it returns."""
        names = [name for name in _Numbers._fields if name in numbers]
        if not block.group["bias_correction"]:
            names.remove("correction")
        column = torch.stack([numbers[name][block.place] for name in names]).to(block.device, block.dtype)
        c = _Numbers(**{"correction": None, **dict(zip(names, column.unbind(), strict=True))})
        if self._compile:
            rows = [_compiled(stage)(c, *flats, **how)]
        else:
            pieces = (repeat(None) if flat is None else flat.split(block.piece) for flat in flats)
            rows = [stage(c, *piece, **how) for piece in zip(*pieces, strict=False)]
        sums = list(chain.from_iterable(rows))
        return torch.stack(sums).view(len(rows), -1).sum(0, dtype=_sum_dtype(block.device)) if sums else None

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A function of a few numbers, which are many kernels on a device."""
        compiled = self._compile and self.param_groups[0]["capturable"]
        return (_compiled(function) if compiled else function)(*arguments)

    def _record(self, trial: _Trial, name: str, loss: Tensor, *sums: list[Tensor]) -> None:
        """Note a loss and each block's sums, added up by group, for reading: from here on those of all ranks."""
        vector = [loss.reshape(1)]
        for each in sums:
            each = [row.to(trial.device) * block.share for row, block in zip(each, trial.blocks, strict=True)]
            for i in range(len(self.param_groups)):
                mine = [row for row, block in zip(each, trial.blocks, strict=True) if block.place == i]
                vector.append(torch.stack(mine).sum(0) if mine else torch.zeros_like(each[0]))
        trial.read[name] = torch.cat(vector)
        if trial.ranks is not None:
            size = dist.get_world_size(trial.ranks)
            equal = all(block.share == 1 / size for block in trial.blocks)  # so are their sums
            check = torch.stack([s.sum() for s in sums[0]]).sum().to(trial.device) * equal
            whole = torch.cat([vector[0] / size, *vector[1:], torch.stack([check, check.square()]) / size])
            dist.all_reduce(whole, group=trial.ranks)
            trial.read[name], trial.read[f"{name} on the ranks"] = whole[:-2], whole[-2:]

    def _check(self, trial: _Trial, name: str, late: bool = False) -> None:
        """Raise, or with a scaler skip the step, where a loss or a gradient is not finite; at once if nobody waits."""
        waits = trial.device.type != "cpu" and trial.scaler is None
        if self.param_groups[0]["capturable"] or waits != late or name not in trial.read:
            return
        loss, *sums = trial.read[name].tolist()
        if math.isfinite(loss) and all(map(math.isfinite, sums)):
            return
        if trial.scaler is not None and trial.scaler.is_enabled() and math.isfinite(loss):
            self._go_back(trial)
            trial.idle = trial.skipped = True
            return
        what = f"loss ({loss})" if not math.isfinite(loss) else "gradient"
        where = "at ASAM's point" if name == "first" and "start" in trial.read else "at the start"
        raise FloatingPointError(
            f"Non-finite {what} {where} of the step. Weights, averages and step size are as before it; skip the "
            "batch, or look for what overflows."
        )

    def _keep_weights(self, trial: _Trial) -> None:
        for block in trial.blocks:
            block.gather("weights", block.locals)
        trial.moved = True

    def _go_back(self, trial: _Trial) -> None:
        """Put the weights back to where the step started."""
        for block in trial.blocks if trial.moved else ():
            with torch.no_grad():
                block.write("weights", back=True)

    def _ascend(self, trial: _Trial) -> None:
        """Move to ASAM's point, w + ρ·T²·s / (‖T·s‖ + 1e-16)."""
        self._begin_squares(trial)
        self._keep_weights(trial)
        sums = []
        for block in trial.blocks:
            g, kept = block.gradient("start" if trial.looks else None)
            block.g0 = g if kept is None else kept.copy_(g)
            flats = block.averages()[1], block.g0, block.rooms["weights"]
            sums.append(self._run(_ascent, block, trial.here, *flats, weight=block.weight))
        self._record(trial, "start", trial.loss, sums)
        self._check(trial, "start")
        norm = trial.read["start"][1::2].sum().sqrt()
        numbers = {**trial.here, "size": -trial.here["rho"] / (norm + ASAM_FLOOR)}
        for block in trial.blocks if not trial.idle else ():
            places = block.target("latest"), block.rooms["weights"]
            self._run(_climb, block, numbers, *places, block.averages()[1], block.g0, weight=block.weight)
            block.write("latest")

    def _take(self, trial: _Trial, loss: Tensor | float) -> None:
        """After the evaluation that the averages are updated with: its sums, and what limits its gradient."""
        options = self.param_groups[0]
        value = self._arrive(trial, loss) if options["asam"] else self._start(trial, loss)
        if trial.idle:
            return
        self._begin_squares(trial)
        norm = options["max_grad_norm"] is not None or bool(options["acme"] and self.watchers)
        keep, sums = ("given" if options["asam"] else "start") if trial.looks else None, []
        for block in trial.blocks:
            g, kept = block.gradient(keep)
            block.g = g if kept is None else kept
            block.g0 = block.g0 if options["asam"] else block.g
            sums.append(self._run(_sums, block, trial.here, *block.averages(), g, None, kept, norm=norm))
        self._record(trial, "first", value, sums)
        self._check(trial, "first")
        found = trial.read["first"][1:].view(-1, 4)
        trial.read["factors"] = self._call(_limit, trial.here["beta1"], found, options["max_grad_norm"])

    def _limited(self, numbers: dict[str, Tensor], factor: Tensor) -> dict[str, Tensor]:
        """Numbers with which a gradient enters the averages clipped and limited."""
        return {**numbers, "rate1": numbers["rate1"] * factor, "root2": numbers["root2"] * factor}

    def _look(self, trial: _Trial) -> None:
        """Move one full step ahead, along the averages as they will be: they change once all is known."""
        trial.here = self._limited(trial.here, trial.read["factors"].prod())
        if not trial.moved:
            self._keep_weights(trial)
        for block in trial.blocks:
            flats = block.target("latest"), block.rooms["weights"], *block.averages(), block.g, block.g0
            trial.slopes.append(self._run(_look, block, trial.here, *flats))
            block.write("latest")
        if self.param_groups[0]["steps"] < 10:  # for `_watch`
            trial.gradients = [(p.grad, p.grad._version) for p in trial.params if p.grad is not None]

    def _take_ahead(self, trial: _Trial, loss: Tensor | float) -> None:
        """After the evaluation at the look-ahead point: its sums with the averages as they will be."""
        value = self._arrive(trial, loss)
        if trial.idle:
            return
        self._begin_squares(trial, ahead=True)
        norm, sums = self.param_groups[0]["max_grad_norm"] is not None, []
        for block in trial.blocks:
            block.g1, _ = block.gradient(None)
            flats = *block.averages(), block.g, block.g1, None
            sums.append(self._run(_sums, block, trial.here, *flats, norm=norm))
        self._record(trial, "ahead", value, sums, trial.slopes)

    def _leap(self, trial: _Trial) -> None:
        """Read, decide and move: the one part that changes averages, step sizes and counters, once all is known."""
        options, n, read = self.param_groups[0], trial.n, trial.read
        if not (options["capturable"] or trial.device.type == "cpu"):  # the one wait of a step
            parts = torch.cat([vector.reshape(-1) for vector in read.values()]).cpu()
            sizes = [vector.numel() for vector in read.values()]
            read = trial.read = dict(zip(read, torch.split(parts, sizes), strict=True))
        self._check(trial, "start", late=True)
        self._check(trial, "first", late=True)
        first, (clip, limit) = trial.blocks[0].place, read["factors"].unbind()
        vectors = [read[name] for name in ("start", "first") if name in read]
        l0, fine = vectors[0][0], torch.isfinite(torch.cat([*vectors, limit[None]])).all()
        move, ahead = self._decided(trial, l0)
        gamma = self._gamma(trial) if options["acme"] else 1.0
        n["applied"] = torch.where(fine, gamma * n["step_size"] * move.length, 0)
        alpha = n["step_size"][first]
        decision = torch.where(fine, move.decision, Decision.NON_FINITE)
        unit = torch.where(alpha == 0, 1, alpha)
        shown = ahead["l1"], ahead["p0"] / unit, ahead["p1"] / unit, decision
        outcome = torch.stack([l0, *shown, alpha, n["applied"][first], limit])
        report = None if options["capturable"] else _report(outcome, trial.looks, trial.evaluations)
        if report is not None:
            for watcher in self.watchers:
                watcher(self, report, read)
            self._watch(trial, report)
        self._move(trial, move, fine, clip, clip * limit, ahead)
        self._commit(trial, move, fine)
        self._report = report
        if report is None:
            outcome = outcome if self._outcome is None else self._outcome[0].copy_(outcome)
            self._outcome = outcome, trial.looks, trial.evaluations

    def _gamma(self, trial: _Trial) -> Tensor:
        """γ of each group, times `gain` and what a scheduler made of `lr`: the factor on the step size."""
        options, beta1 = self.param_groups[0], trial.n["beta1"]
        momentum = 2 * (1 - beta1) / (1 + beta1) * (1 + 2 * beta1) / (2 - beta1)
        annealing: Any = 1.0
        if options["total_steps"] is not None:
            done = self._numbers(trial, [[options["annealing_step"]]])[0] / options["total_steps"]
            done = done.clamp(max=1.0)
            annealing = FINAL_ANNEALING + (1 - FINAL_ANNEALING) * (1 + torch.cos(math.pi * done)) / 2
        return momentum * annealing * trial.n["scheduled"] * options["gain"]  # type: ignore[no-any-return]

    def _decided(self, trial: _Trial, l0: Tensor) -> tuple[Move, dict[str, Tensor]]:
        """What to do, and what a look-ahead has shown."""
        options, weights, one = self.param_groups[0], trial.n["size"], torch.ones_like(l0)
        none, no = one * math.nan, torch.zeros_like(l0, dtype=torch.bool)
        if not trial.looks:
            return Move(one, one, none, no, no), dict(l1=none, p0=none, p1=none)
        vector, memory = trial.read["ahead"], trial.n["beta1"][trial.blocks[0].place]
        sums, slopes = vector[1 : 1 + 4 * len(weights)].view(-1, 4), vector[1 + 4 * len(weights) :]
        p0, p1 = (slopes * weights).sum(), (sums[:, 0] * weights).sum()
        clip, limit = self._call(_limit, trial.n["beta1"], sums, options["max_grad_norm"]).unbind()
        fine = torch.isfinite(vector).all() & torch.isfinite(p0 + p1)
        ahead = dict(l1=vector[0], p0=p0, p1=p1, fine=fine, clip=clip, factor=clip * limit)
        move = self.decide(Measured(l0, vector[0], p0, p1, one, memory))
        failed = Move(0 * one, memory, one * Decision.NON_FINITE, no, no)
        move = Move(*(torch.where(fine, x, y) for x, y in zip(move, failed, strict=True)))
        if options["search_left"] > 0 and weights.any():
            losses, found = (l0.item(), vector[0].item()), (p0.item(), p1.item())
            target, trial.searched = search(*losses, *found, 1.0, options["search_latest"])
            if not trial.searched or target != 1:
                move = move._replace(length=0 * one, again=no)
            move = move._replace(step_size=target * one)
        # Where nothing moves, nothing is learnt.
        return move._replace(step_size=torch.where((weights == 0).all(), one, move.step_size)), ahead

    def _move(
        self, trial: _Trial, move: Move, fine: Tensor, clip: Tensor, factor: Tensor, ahead: Any
    ) -> None:
        """Put together the numbers of `_leap`, and run it."""
        options, n, looks = self.param_groups[0], trial.n, trial.looks
        # Where the host has read what there is, it leaves out what is not needed; else one form serves all cases.
        host = not (self._compile or options["capturable"])
        again, worse = move.again & fine, move.worse
        failed = ~ahead["fine"] & fine if looks else again
        if looks:
            if "start" in trial.read:  # ASAM's is not the gradient of the start
                clip = _clip(trial.read["start"][2::2].sum(), options["max_grad_norm"])
            clip = torch.where(worse, clip, ahead["clip"])
        once, twice = self._limited(n, factor), self._limited(n, ahead["factor"] if looks else factor)
        one, where = torch.ones_like(n["beta1"]), torch.where
        numbers = {name: n[name] for name in ("scale", "epsilon", "correction")} | dict(
            beta1=where(fine, n["beta1"], 1), rate1=where(fine, once["rate1"], 0),
            beta2=where(fine, n["beta2"], 1), root2=where(fine, once["root2"], 0), eta=n["eta"],
            size=n["applied"], keep=1 - n["applied"] * n["weight_decay"], nesterov=n["rate1"] * clip,
            again=where(again, n["beta1"], where(failed, n["rate1"], 1)), again_rate1=where(again, twice["rate1"], 0),
            again_beta2=where(again, n["beta2"], 1), again_root2=where(again, twice["root2"], 0),
            fine=fine * one, fine_ahead=(ahead["fine"] if looks else fine) * one, worse=worse * one,
        )  # fmt: skip
        numbers, dropped = self._send(trial, numbers), ["fine", "fine_ahead", "worse"] if host else []
        first = options["nesterov"] and not (host and looks and not worse)
        second = looks and (not host or bool(again | failed) or (options["nesterov"] and not worse))
        for block in trial.blocks:
            still, decays = host and not n["applied"][block.place], bool(block.group["weight_decay"])
            drop = [*dropped, *["size"] * still, *["keep"] * (not decays)]
            mine = {name: number for name, number in numbers.items() if name not in drop}
            g0, g1 = block.g0 if looks else block.g, block.g1
            g1 = torch.zeros_like(g1) if host and failed else g1
            if not (trial.moved or block.alone):
                block.gather("weights", block.locals)
            kept = block.rooms["weights"] if trial.moved and block.alone else None
            # Nesterov's term takes a gradient without a limit, and 16 bits hold little.
            wild = options["nesterov"] or block.locals[0].dtype != block.dtype
            flats = block.target("weights"), kept, *block.averages(), block.g
            how = dict(nesterov=options["nesterov"], bounded=options["acme"] and wild)
            self._run(_leap, block, mine, *flats, g0 if first else None, g1 if second else None, **how)
            block.write("weights")

    def _commit(self, trial: _Trial, move: Move, fine: Tensor) -> None:
        """The averages become the optimizer's state, step sizes and counters those of the next step."""
        options, n = self.param_groups[0], trial.n
        for block in trial.blocks:
            block.fresh, block.g0, block.g, block.g1 = [], *[torch.empty(0)] * 3
            for param, key, entry in block.each():
                self.state[param][key] = entry
            if block.waits and not options["capturable"]:
                block.waits = not all(bool((view > 0).all()) for view in block.views["exp_avg_sq"])
        # A parameter that is in no block any more keeps its averages, and not the whole block's memory.
        for block in [block for block in self._blocks if block not in trial.blocks]:
            for param, key, entry in block.each():
                if self.state.get(param, {}).get(key) is entry:
                    self.state[param][key] = entry.clone()
        self._blocks, self._kinds = trial.blocks, (trial.params, trial.firsts)
        failed, step_size = move.decision == Decision.NON_FINITE, n["step_size"]
        if options["acme"]:
            step_size = (step_size * move.step_size).clamp(max=_LARGEST)
        for i, group in enumerate(self.param_groups):
            group["steps"] += 1
            if trial.searched is not None:
                factor = move.step_size.item()
                group["search_left"] = 0 if trial.searched else group["search_left"] - 1
                group["search_latest"] = (factor > 1) - (factor < 1) or group["search_latest"]
            done, t = group["annealing_step"] + 1, torch.where(failed, 1, group["t"] + 1)
            later = dict(step_size=step_size[i], reference_lr=n["reference_lr"][i], annealing_step=done, t=t)
            for name, value in later.items():
                if options["capturable"]:
                    group[name].copy_(torch.where(fine, value, group[name]))
                else:
                    group[name] = value.item() if isinstance(value, Tensor) else value

    def _finish(self, trial: _Trial) -> None:
        """The end of a step, or of one that did nothing."""
        trial.done = True
        if trial.idle:
            options, nan = self.param_groups[0], math.nan
            alpha = options["step_size"] if options["acme"] else options["lr"]
            code = Decision.NON_FINITE if trial.skipped else nan
            numbers = self._numbers(trial, [[trial.loss, nan, nan, nan, code, alpha, 0.0, 1.0]])[0]
            if options["capturable"]:
                self._outcome = numbers, False, trial.evaluations
            else:
                self._report = _report(numbers, False, trial.evaluations)

    def warn(self, message: str) -> None:
        """Once for each optimizer."""
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=3)

    def _watch(self, trial: _Trial, report: Report) -> None:
        """Warn of a closure that has not evaluated again at the look-ahead point."""
        if (report.look_ahead_loss, report.look_ahead_slope) != (report.loss, report.slope):
            return
        now = [(p.grad, p.grad._version) for p in trial.params if p.grad is not None]
        same = [a is c and b == d for (a, b), (c, d) in zip(now, trial.gradients, strict=False)]
        if same and all(same):
            self.warn(
                "The closure seems not to evaluate again: at the look-ahead point it returned the same loss and left "
                "the same gradients. It has to zero the gradients, evaluate loss and gradient, and return the loss."
            )

    # State ----------------------------------------------------------------------------------------------

    def _create_state(self) -> None:
        """Averages of zeros, which count as none, for the parameters that have a gradient: of zeros."""
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        still = params and not any(float(group["lr"]) for group in self.param_groups)
        if not still or any(bool(_local(param.grad).any()) for param in params):
            raise TypeError(_NO_CLOSURE)
        for param in params:
            for key in ("exp_avg", "exp_avg_sq") if self.param_groups[0]["adam"] else ("exp_avg",):
                self.state[param].setdefault(key, torch.zeros_like(param, dtype=_state_dtype(param.dtype)))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; the optimizer then continues bit for bit.

        The saved options replace the constructor's, as in every `torch.optim` optimizer. The tensors are copied.
        Averages keep their precision (torch would cast them to the parameters').

        Raises:
            ValueError: groups that do not match, options out of range or of other optimizers, or `asam` without names.
        """
        loaded: dict[str, Any] = {}

        def restore(_: Optimizer) -> None:
            saved = [index for group in loaded["param_groups"] for index in group["params"]]
            params = [param for group in self.param_groups for param in group["params"]]
            for index, param in zip(saved, params, strict=True):
                form = param.device, _state_dtype(param.dtype)
                averages = [
                    (k, x) for k, x in loaded["state"].get(index, {}).items() if isinstance(x, Tensor)
                ]
                if averages:
                    self.state[param] = {key: value.detach().to(*form, copy=True) for key, value in averages}

        # Behind the user's own hooks before, so as to see what is really loaded, and ahead of those after.
        before = self.register_load_state_dict_pre_hook(lambda _, final: loaded.update(final))
        after = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_model", "_modules", "_process_group", "_compile", "_report")
        return {**super().__getstate__(), **{name: vars(self)[name] for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for group in state["param_groups"]:
            _refuse_foreign(group, "the loaded state")
        super().__setstate__(state)
        self._forget(whole="_report" in state)  # a copy; otherwise `load_state_dict`
        for group in self.param_groups:
            group.setdefault("steps", group.get("annealing_step", 1))
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            group.update(_checked(group))
            _complete(group, self.param_groups[0])
        self.defaults.update({name: self.param_groups[0][name] for name in _SHARED_OPTIONS})
        if self.defaults["asam"] and "param_names" not in self.param_groups[0]:
            raise ValueError(_NO_NAMES)

    def __repr__(self) -> str:
        first = self.param_groups[0]
        lines = [
            "Acme("
            + ", ".join(f"{name}={first[name]}" for name in _SHARED_OPTIONS if name != "differentiable")
        ]
        for number, group in enumerate(self.param_groups):
            values = ", ".join(f"{name}={group[name]}" for name in (*_GROUP_OPTIONS, "step_size", "t"))
            lines.append(f"    group {number}: {len(group['params'])} tensors, {values}")
        return "\n".join(lines) + "\n)"


def _report(numbers: Tensor, looks: bool, evaluations: int) -> Report:
    l0, l1, p0, p1, code, alpha, applied, limit = numbers.tolist()
    decision = None if math.isnan(code) else Decision(int(code))
    if not looks:
        l1 = p0 = p1 = None
    return Report(l0, l1, p0, p1, decision, alpha, applied, limit, evaluations)


# Ranks and dtypes ----------------------------------------------------------------------------------------------


def _ranks(model: Any, params: list[Any], group: Any) -> dist.ProcessGroup | None:
    """The process group over which a step is taken together; None for one process alone."""
    if not dist.is_available() or not dist.is_initialized():
        return None
    if group is None and isinstance(model, nn.parallel.DistributedDataParallel):
        group = model.process_group
    if group is None:
        world, meshes = dist.get_world_size(), [param.device_mesh for param in params if _is_dtensor(param)]
        small = [mesh for mesh in meshes if mesh.ndim == 1 and mesh.size() < world]
        group = small[0].get_group() if small else dist.group.WORLD
    return group if dist.get_world_size(group) > 1 else None


def _share(param: Any, ranks: int) -> float:
    """What this rank's sum over a parameter counts for in the sum over all: 1 / (ranks that hold the same)."""
    if not _is_dtensor(param):
        return 1 / ranks
    mesh, placements = param.device_mesh, param.placements
    if mesh.size() != ranks or any(placement.is_partial() for placement in placements):
        raise ValueError(
            f"Invalid parameter: a DTensor with placements {placements} on a mesh of {mesh.size()} of {ranks} ranks "
            "(expected sharded or replicated over all that step together; pipeline stages are not supported)"
        )
    return 1.0 / math.prod(
        int(mesh.size(i)) for i, placement in enumerate(placements) if placement.is_replicate()
    )


def _is_dtensor(tensor: Any) -> bool:
    """Whether it is a `torch.distributed.tensor.DTensor`, without importing that module for the answer."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def _local(tensor: Any) -> Any:
    """The elements that this rank holds, in the same memory."""
    return tensor.to_local() if _is_dtensor(tensor) else tensor


def _like(local: Tensor, param: Any) -> Any:
    """`local` as this rank's part of a tensor that is sharded as `param` is."""
    if not _is_dtensor(param):
        return local
    form = dict(run_check=False, shape=param.shape, stride=param.stride())
    return type(param).from_local(local, param.device_mesh, param.placements, **form)


def _sum_dtype(device: torch.device) -> torch.dtype:
    """What sums are taken in: float64, or float32 on mps, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The averages' dtype: 16 bits cannot hold a sum that moves by a thousandth."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(_state_dtype(tensor.dtype))


# Options -------------------------------------------------------------------------------------------------------

_GROUP_OPTIONS = ("lr", "betas", "epsilon", "weight_decay", "rho", "eta")  # a group may have its own
_FLAGS = (
    "acme",
    "adam",
    "asam",
    "nesterov",
    "bias_correction",
    "differentiable",
    "capturable",
    "unbiased_squares",
)
_WHOLE = {
    "total_steps": (1, "None for no annealing"),
    "adapt_steps": (1, "None for throughout"),
    "search_steps": (0, "0 for none"),
}
_SHARED_OPTIONS = (*_FLAGS, *_WHOLE, "max_grad_norm", "gain")
_FOREIGN_OPTIONS = {  # of other optimizers, and what to say instead of ignoring them
    "maximize": "minimise the negative loss",
    "fused": "Acme has one implementation",
    "foreach": "Acme has one implementation, which uses foreach",
    "momentum": "Acme's is betas[0]",
    "dampening": "the gradient enters the average times 1 - betas[0]",
    "eps": "it is called epsilon here",
    "amsgrad": "Acme does not have it",
    "decoupled_weight_decay": "Acme's always is",
}

_NO_CLOSURE = """\
Call optimizer.step(closure): Acme needs a closure that zeroes the gradients, evaluates loss and gradient on one batch \
and returns the loss, since ACME and ASAM evaluate it again at other weights; loops that cannot hand one over use \
optimizer.step_in_parts(). Frameworks that call step() without one need an override; for Hugging Face's Trainer:

    class AcmeTrainer(Trainer):
        def training_step(self, model, *args, **kwargs):
            def closure():
                model.zero_grad()
                return super(AcmeTrainer, self).training_step(model, *args, **kwargs)
            self.optimizer.step = lambda: None  # the Trainer's own call, after which nothing is left to do
            return self.optimizer.optimizer.step(closure)
"""
_SCALED = (
    "torch.amp.GradScaler.step(optimizer) cannot step Acme, whose losses are not scaled as the gradients are. Return the "
    "true loss from a closure that calls scaler.scale(loss).backward(), then optimizer.step(closure, scaler=scaler) and "
    'scaler.update(). Where a framework does this (Lightning\'s "16-mixed", Accelerate\'s "fp16"), train with bfloat16 '
    '("bf16-mixed", "bf16"), or step Acme yourself.'
)
_NO_NAMES = (
    "asam=True needs the parameters' names (ASAM scales by |w| those whose name contains 'weight'): pass the "
    "model, model.named_parameters(), or groups with 'params' as (name, tensor) pairs"
)


def _check_parameter(param: Tensor) -> None:
    if getattr(param, "_fsdp_flattened", False) or type(param).__name__ == "FlatParameter":
        raise TypeError(
            "Invalid parameter: of FullyShardedDataParallel (FSDP1), which hides its elements (use fully_shard)"
        )
    if param.requires_grad and not param.is_floating_point():
        raise TypeError(
            f"Invalid parameter of dtype {param.dtype} (expected a real floating dtype, or a frozen one)"
        )


def _check_averages(name: str, param: Tensor, state: dict[str, Any]) -> None:
    form = param.shape, _state_dtype(param.dtype)
    for key, average in state.items():
        if key in ("exp_avg", "exp_avg_sq") and (average.shape, average.dtype) != form:
            raise ValueError(
                f"Invalid state {key!r} of parameter {name}, of shape {tuple(param.shape)} and dtype {param.dtype}: it "
                f"has shape {tuple(average.shape)} and dtype {average.dtype} (resize or convert the state along with "
                "the parameter, or make a new optimizer)"
            )


def _refuse_foreign(group: dict[str, Any], where: str) -> None:
    for name, instead in _FOREIGN_OPTIONS.items():
        if group.get(name):
            raise ValueError(f"Invalid option {name!r} in {where}: {instead}")
    if group.get("adapt_every", 1) != 1:
        raise ValueError(f"Invalid option 'adapt_every' in {where}: it has given way to adapt_steps")


def _complete(group: dict[str, Any], first: dict[str, Any]) -> None:
    """Fill in a group's entries that are not options; `first` is the optimizer's first group."""
    lr, device = float(group["lr"]), group["params"][0].device if group["params"] else torch.device("cpu")
    own = {"step_size": lr, "reference_lr": float(group.get("initial_lr", lr))}
    for name, value in {
        **own,
        "t": first.get("t", 1),
        "annealing_step": first.get("annealing_step", 0),
    }.items():
        value, whole = group.get(name, value), name not in own
        dtype = torch.int64 if whole else _sum_dtype(device)
        number = int(value) if whole else float(value)
        group[name] = torch.full((), number, dtype=dtype, device=device) if group["capturable"] else number
    group.setdefault("steps", first.get("steps", 0))
    # Steps that may still search, and whether the latest that changed the step size made it larger or smaller.
    group.setdefault("search_left", first.get("search_left", 0 if group["steps"] else group["search_steps"]))
    group.setdefault("search_latest", first.get("search_latest", 0))


def _settings(group: dict[str, Any]) -> Any:
    """All that a step takes from a group beside its parameters; a number in a tensor equals itself only."""
    mine = (*_GROUP_OPTIONS, "step_size", "reference_lr", "t", "annealing_step")
    return tuple(id(group[name]) if isinstance(group[name], Tensor) else group[name] for name in mine)


def _number(name: str, value: Any, upper: float = math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"Invalid {name}: {value!r} (expected a number)")
    if not 0 <= float(value) < upper:
        expected = "a finite number of at least 0" if upper == math.inf else f"a number in [0, {upper:g})"
        raise ValueError(f"Invalid {name}: {value} (expected {expected})")
    return float(value)


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """The options among `options`, checked, as plain Python numbers (which every checkpoint can hold)."""

    def need(condition: bool, name: str, expected: str, error: type[Exception] = ValueError) -> None:
        if not condition:
            raise error(f"Invalid {name}: {options[name]!r} (expected {expected})")

    checked: dict[str, Any] = {
        name: _number(name, options[name]) for name in ("epsilon", "weight_decay", "rho", "eta", "gain")
    }
    lr, betas, norm = options["lr"], options["betas"], options["max_grad_norm"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(
            f"Invalid lr: a tensor of shape {tuple(lr.shape)} (expected a number or one element)"
        )
    number = _number("lr", float(lr) if isinstance(lr, Tensor) else lr)
    need(
        isinstance(betas, (tuple, list)) and len(betas) == 2,
        "betas",
        "a pair of numbers in [0, 1)",
        TypeError,
    )
    checked["betas"] = tuple(_number(f"betas[{i}]", beta, 1.0) for i, beta in enumerate(betas))
    checked["lr"] = lr if isinstance(lr, Tensor) else number
    for name in _FLAGS:
        need(isinstance(options[name], bool), name, "True or False", TypeError)
    for name, (least, none) in _WHOLE.items():
        value = options[name]
        whole = isinstance(value, Integral) and not isinstance(value, bool)
        need(whole or (value is None and least > 0), name, "a whole number", TypeError)
        need(value is None or int(value) >= least, name, f"at least {least}, or {none}")
        checked[name] = value if value is None else int(value)
    checked["max_grad_norm"] = None if norm is None else _number("max_grad_norm", norm)
    need(norm != 0, "max_grad_norm", "a positive number, or None for no clipping")
    need(checked["gain"] > 0, "gain", "a positive number; 1 for none")
    need(not options["differentiable"], "differentiable", "False: through comparisons there is no derivative")
    for name, without in (("gain", 1), ("adapt_steps", None), ("search_steps", 0)):
        need(checked[name] == without or options["acme"], name, f"{without} without acme=True")
    need(
        not (checked["search_steps"] and options["capturable"]),
        "search_steps",
        "0 with capturable=True: it reads",
    )
    biased = options["adam"] and options["bias_correction"]
    need(
        biased or not options["unbiased_squares"],
        "unbiased_squares",
        "False without adam=True and bias_correction=True",
    )
    return {**checked, **{name: options[name] for name in _FLAGS}}
