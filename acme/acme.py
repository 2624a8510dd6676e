"""ACME: a gradient descent optimizer that finds its own step size.

Each step evaluates the loss and its gradient on the same batch twice, at the weights and one full step ahead. A cubic
through the two losses and the two slopes along the step tells how long the step should have been. Adam, ASAM, Nesterov
and the adaptation switch on and off independently: 16 optimizers, one class. This file needs torch and the standard
library only: copied alone somewhere on ``PYTHONPATH`` it works.

Source: A. Nogueiras, *Automatic Adaptation of the Step Size in Gradient Descent Training*, submitted to ICASSP 2025.
Adam: Kingma and Ba, ICLR 2015, with the weight decay of Loshchilov and Hutter, ICLR 2019. ASAM: Kwon et al., ICML 2021.
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain, repeat
from numbers import Integral, Real
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]
from torch.optim.optimizer import Optimizer, _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["Acme", "Adaptation", "Decision", "Measured", "Move", "Report", "adapt", "search"]

# Published constants.
GROWTH_LIMIT = 2.0  # F: one gradient may at most double the squared norm of the gradient average
CLEAR_DIFFERENCE = 1e-4  # relative difference above which two losses count as different
ASAM_FLOOR = 1e-16  # added to ASAM's norm
FINAL_ANNEALING = 0.01  # the annealing factor once `total_steps` steps are done
CLIP_FLOOR = 1e-6  # added to the gradient's norm in clipping, torch's own
SEARCH_FACTOR = 10.0  # by which one look-ahead of `search_steps` may change the step size; not published

PIECE = 1 << 17  # elements that a CPU works on at once: the operands of a stage stay in its cache
ALONE = 1 << 15  # elements from which a parameter on the CPU is a block of its own, worked on where it lies
ROWS = 1 << 10  # partial sums on a GPU, of whose blocks the length is a multiple
LARGE_BUFFER = 1 << 16  # elements from which a buffer that evaluations do not change is not copied

_LARGEST = sys.float_info.max
_AVERAGES = ("exp_avg", "exp_avg_sq")  # m and v in `state`


# The decision: section 5 of the specification ------------------------------------------------------------------


class Decision(IntEnum):
    """How the step size of a step was found, from the two losses and slopes: the rows of `adapt`'s table."""

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
    """What a look-ahead has measured, as `adapt` takes it: 0-dimensional tensors, in units of its own length."""

    l0: Tensor
    l1: Tensor
    p0: Tensor  #: the fall of the loss over one look-ahead, by the slope at its start
    p1: Tensor  #: the same by the slope at its end
    alpha: Tensor  #: so that this is 1
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
    """The last step, in numbers; None for what it did not evaluate or decide.

    Slopes are directional derivatives along the step, positive meaning downhill, per unit of `step_size`. Of several
    groups, step sizes are the first's that took part.
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
    """The step size that two losses and two slopes along a step of `alpha` ask for: the table of section 5.

    Args:
        l0, l1: finite losses at the start and at the look-ahead point: numbers, or 0-dimensional tensors.
        p0, p1: finite slopes there, in units of loss per unit of `alpha`; positive means downhill.
        alpha: the step size between the two points, at least 0.
        beta1: decay rate of the step size's memory, in [0, 1).

    Returns:
        Finite numbers (tensors, of tensors); the minimiser of the cubic lies strictly inside (0, alpha).
    """
    if not isinstance(l0, Tensor):
        found = adapt(*torch.tensor([l0, l1, p0, p1, alpha, beta1], dtype=torch.float64).unbind())
        return Adaptation(found.target.item(), found.step.item(), Decision(int(found.decision)))
    better, worse, zero = l1 <= l0, l1 > l0, torch.zeros_like(alpha)
    clear = (l0 - l1).abs() > torch.maximum(l0, l1) * CLEAR_DIFFERENCE
    stay, slope = torch.where(better, alpha, zero), torch.maximum(p0.abs(), p1.abs())
    # The rise of the loss in units of a slope, bounded so that its square is finite.
    rises = ((l1 - l0) / alpha / torch.stack([slope, p0, -p1])).nan_to_num(0.0).clamp(-1e100, 1e100)
    rise, rise0, rise1 = rises
    # The cubic's minimiser in a form whose terms are all positive (Nocedal and Wright, *Numerical Optimization*, eq. 3.59,
    # rationalised), so that nothing cancels and a vanishing leading coefficient needs no case of its own.
    q0, q1 = p0 / slope, -p1 / slope
    theta = q1 - q0 - 3 * rise
    root = torch.hypot(theta, q0.sqrt() * q1.sqrt())
    total = torch.where(theta >= 0, theta + root, q0 * q1 / (root - theta))
    part = ((q0 + total) / (q0 + q1 + 2 * root)).clamp(min=sys.float_info.min)
    cubic = torch.minimum(alpha * part, torch.nextafter(alpha, zero))
    ahead = alpha * ((1 - 2 * rise1) / (2 - 2 * rise1))
    start = alpha * (0.5 / (1 + rise0))
    ratio = (p1 / p0).clamp(max=_LARGEST)
    grow = torch.minimum(alpha * (1 + ratio), alpha * (2 - beta1) / (1 - beta1))
    shrink = torch.maximum(-alpha * ratio, alpha * (0.5 - beta1) / (1 - beta1))
    rows = [  # condition, target τ, step σ, in the order of the codes: the first whose condition holds is chosen
        (~clear, torch.where(better, 2 * alpha, alpha), stay),
        (better & (p0 > 0) & (p1 < 0), cubic, cubic),
        (worse & (p0 > 0) & (p1 < 0), cubic, cubic),
        (better & (p1 < 0), ahead, ahead),
        (worse & (p0 > 0), start, start),
        (better & (p0 > 0) & (p1 > 0), grow, alpha),
        (worse & (p0 < 0) & (p1 < 0), shrink, zero),
    ]
    chosen = torch.stack([stay, stay, zero + Decision.KEEP])
    for code in reversed(range(len(rows))):
        condition, target, step = rows[code]
        chosen = torch.where(condition, torch.stack([target, step, zero + code]), chosen)
    return Adaptation(*chosen.clamp(-_LARGEST, _LARGEST).unbind())


def search(l0: float, l1: float, p0: float, p1: float, alpha: float, latest: int = 0) -> tuple[float, bool]:
    """The step size to try next, from what a step of `alpha` told, while nothing moves (`search_steps`).

    A step is too short where the slope at its end is still more than half of that at the start and the loss not higher,
    else too long. The search ends at a step size that is too short where ten times as much is too long. If the direction
    is not downhill at the start, the batch says nothing: `alpha`, as it is.

    `latest` is 1 if the search has made the step size larger, -1 if smaller, 0 if neither. Returns the next step size,
    and whether the search is over. Weights move only in a step that ends it at its `alpha`.
    """
    if not (math.isfinite(l1) and math.isfinite(p0) and math.isfinite(p1)):
        return alpha / SEARCH_FACTOR, False
    if p0 <= 0:
        return alpha, False
    higher = l1 > l0 and l1 - l0 > max(l0, l1) * CLEAR_DIFFERENCE
    if p1 > p0 / 2 and not higher:
        return (alpha, True) if latest < 0 else (min(SEARCH_FACTOR * alpha, _LARGEST), False)
    return alpha / SEARCH_FACTOR, latest > 0


def damping(beta1: Any) -> Any:
    """γ before annealing: the share of a step size that the weights move by."""
    return 2 * (1 - beta1) / (1 + beta1) * (1 + 2 * beta1) / (2 - beta1)


# Arithmetic on one-dimensional tensors: section 3 --------------------------------------------------------------
#
# c holds a group's numbers, 0-dimensional, in the averages' precision; what has no effect is not there. The first update of
# the averages: beta1, rate1 = 1 - β1, beta2, root2 = sqrt(1 - β2), rate1 and root2 times what limits the gradient; the same
# for the second update, as again_… D: scale = bc1 / sqrt(bc2), epsilon = ε·bc1, correction = bc1. ASAM's eta. A move: its
# size, keep = 1 - size·weight_decay, nesterov = 1 - β1 times what clips that term's gradient. Only where the host has not
# read and decided: fine and fine_ahead, not 0 where start and look-ahead are finite; worse, where the latter is.


def _over(c: dict[str, Tensor], v: Tensor | None, *xs: Tensor) -> list[Tensor]:
    """x / D for each x; with `adam` D is a tensor, else a number or 1."""
    divisor = c.get("correction") if v is None else v.sqrt().mul_(c["scale"]).add_(c["epsilon"])
    return list(xs) if divisor is None else [x / divisor for x in xs]


def _updated(c: dict[str, Tensor], m: Tensor, v: Any, g: Tensor, which: str = "", there: bool = False) -> Any:
    """β1·m + (1 - β1)·g' and, with `adam`, β2·v + (1 - β2)·g'²: the rates limit g. `there`: in place."""
    beta1, rate1, beta2, root2 = (c[which + name] for name in ("beta1", "rate1", "beta2", "root2"))
    g = g.to(m.dtype)
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


def _place(c: dict[str, Tensor], w: Tensor, w0: Tensor, direction: Tensor, bounded: bool = False) -> None:
    """w ← (w0 - size·direction)·keep; w0 where the size is 0, be the direction infinite."""
    there = w if "fine" not in c and w.dtype == direction.dtype else None
    moved = torch.addcmul(w0.to(direction.dtype), direction, -c["size"], out=there)
    if "keep" in c:
        moved.mul_(c["keep"])
    if bounded:
        moved.clamp_(-torch.finfo(w.dtype).max, torch.finfo(w.dtype).max)
    if there is None:
        w.copy_(torch.where(c["size"] != 0, moved, w0.to(moved.dtype)) if "fine" in c else moved)


def _limit(beta1: Tensor, sums: Tensor, max_norm: float | None) -> Tensor:
    """Two factors on a gradient: what clips it, and min(k, 1).

    k lets the average's squared norm, in the metric 1/D, grow `GROWTH_LIMIT` times by the clipped gradient: the
    positive root of a·k² + 2b·k - c = 0. `sums` [groups, 4] are those of `_sums`.
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
    norm = torch.zeros_like(square) if max_norm is None else square.sqrt() + CLIP_FLOOR
    return ((max_norm or 1.0) / norm).clamp(max=1.0)


# The stages of a step: section 4 -------------------------------------------------------------------------------
#
# Each takes tensors of one dimension and one length, of which it changes w (`_leap` m and v, too) in place, and returns sums.
# It is called for pieces of a block that stay in a CPU's cache, or compiled for the whole block. None leaves out what a mode
# does not have, or what the host knows to be without effect.


def _sums(c: Any, m: Tensor, v: Any, g: Tensor, ahead: Any, *, norm: bool) -> list[Tensor]:
    """Σ m·g/D, Σ m·m/D, Σ g·g/D and Σ g·g (with `norm`, else 0).

    With a gradient `ahead`, they are its own sums, and those of the averages as updated with `g`.
    """
    if ahead is not None:
        m, v = _updated(c, m, v, g)
    g = (g if ahead is None else ahead).to(m.dtype)
    m_over, g_over = _over(c, v, m, g)
    gg = _dot(g_over, g)
    square = torch.zeros_like(gg) if not norm else gg if g_over is g else _dot(g, g)
    return [_dot(m_over, g), _dot(m_over, m), gg, square]


def _climb(c: Any, w: Any, w0: Tensor, v: Any, g: Tensor, *, weight: bool) -> Any:
    """ASAM's Σ (T·s)², and Σ g·g; given a w, instead w ← w0 - size·T²·s, its point, with a negative size."""
    g = g.to(c["scale"].dtype)
    [s], t = _over(c, v, g), w0.to(g.dtype).abs() + c["eta"] if weight else None
    if w is not None:
        return _place(c, w, w0, s if t is None else s * t.square_())
    s = s if t is None else s * t
    return [_dot(s, s), _dot(g, g)]


def _look(c: Any, w: Tensor, w0: Tensor, m: Tensor, v: Any, g: Tensor, g0: Tensor) -> list[Tensor]:
    """w ← w0 - α·d; Σ d·g0."""
    m, v = _updated(c, m, v, g)
    [direction] = _over(c, v, m)
    slope = _dot(direction, g0.to(m.dtype))
    _place(c, w, w0, direction)
    return [slope]


def _leap(c: Any, w: Tensor, w0: Any, m: Tensor, v: Any, g: Any, g0: Any, g1: Any, *, bounded: bool) -> None:
    """The averages updated with g and with the second gradient g1; w ← (w0 - size·d)·keep, the next weights.

    w0 of None is w. Nesterov's term takes g0 or g1: the one that is there, of both by `worse`.
    """
    w0 = w if w0 is None else w0
    if "fine" in c:
        pairs = (g, c["fine"]), (g0, c["fine"]), (g1, c["fine_ahead"])
        g, g0, g1 = (None if x is None else torch.where(fine != 0, x, 0) for x, fine in pairs)
    _updated(c, m, v, g, there=True)
    if "size" in c:
        direction = m
        if "nesterov" in c:
            other = g1 if g0 is None else g0 if g1 is None else torch.where(c["worse"] != 0, g0, g1)
            direction = (m * c["beta1"]).addcmul_(other.to(m.dtype), c["nesterov"])
        [direction] = _over(c, v, direction)
        _place(c, w, w0, direction, bounded)
    elif w0 is not w:
        w.copy_(w0)
    if g1 is not None:
        _updated(c, m, v, g1, "again_", there=True)


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A stage, or a function of a few numbers, compiled for tensors of any length."""
    known = inspect.signature(torch.compile).parameters
    limit: Any = {"recompile_limit": 64} if "recompile_limit" in known else {}  # one for each mode and dtype
    return torch.compile(function, dynamic=True, fullgraph=True, **limit)


# Blocks --------------------------------------------------------------------------------------------------------


class _Block:
    """Parameters that are alike, as one dimension: their averages, and room for their weights and gradients.

    `state[param]["exp_avg"]` and `["exp_avg_sq"]` are views of the averages. Elements are in the order of the
    parameters' memory where that is dense. On the CPU a large parameter is a block by itself, whose weights and
    gradient are worked on where they lie; others are gathered and written back.
    """

    def __init__(self, kind: Any, group: Any, params: list[Tensor], state: Any) -> None:
        self.place, self.weight, self.share, self.alone, self.device, _ = self.kind = kind
        self.group, self.params, self.dtype = group, params, _state_dtype(params[0].dtype)
        self.locals = list(map(_local, params))
        self.forms = [(local.shape, local.stride()) for local in self.locals]
        self.length, self.piece = sum(local.numel() for local in self.locals), PIECE
        if self.device.type != "cpu":
            self.length = self.piece = max(-(-self.length // ROWS), 1) * ROWS
        self.rooms: dict[str, Tensor] = {}
        self.views: dict[str, list[Tensor]] = {}  # of each room, the parameters' parts in their shapes
        self.entries: list[tuple[Tensor, str, Any]] = []  # what `state` holds: parameter, name, average
        self.fresh: dict[str, list[int]] = {}  # whose averages have not begun
        self.waits = group["unbiased_squares"]  # whether some squared average has only seen zeros
        for key in _AVERAGES[: 1 + group["adam"]]:
            self.room(key, self.dtype)
            for i, (param, view) in enumerate(zip(params, self.views[key], strict=True)):
                self.entries.append((param, key, _like(view, param)))
                if group["steps"] > 0 and key in state.get(param, ()):
                    view.copy_(_local(state[param][key]))
                else:
                    self.fresh.setdefault(key, []).append(i)
        self.averages: Any = self.rooms["exp_avg"], self.rooms.get("exp_avg_sq")  # m, v

    def room(self, name: str, dtype: torch.dtype) -> Tensor:
        """Memory of this block's length that is kept from step to step."""
        if name not in self.rooms or self.rooms[name].dtype != dtype:
            flat = self.rooms[name] = torch.zeros(self.length, dtype=dtype, device=self.device)
            sizes = [local.numel() for local in self.locals]
            parts = zip(torch.split(flat[: sum(sizes)], sizes), self.locals, strict=True)
            self.views[name] = [part.as_strided(local.shape, _dense_stride(local)) for part, local in parts]
        return self.rooms[name]

    def fits(self, state: dict[Tensor, dict[str, Any]]) -> bool:
        """Whether parameters and averages are still those that it was made of."""
        self.locals = list(map(_local, self.params)) if _is_dtensor(self.params[0]) else self.params
        first = self.locals[0]
        return (
            (first.device, _state_dtype(first.dtype)) == (self.device, self.dtype)
            and [(local.shape, local.stride()) for local in self.locals] == self.forms
            and (not self.waits or self.group["capturable"])
            and all(state.get(param, {}).get(key) is entry for param, key, entry in self.entries)
        )

    def gradients(self) -> list[Tensor]:
        pairs = zip(self.params, self.locals, strict=True)
        found = [torch.zeros_like(local) if p.grad is None else _local(p.grad) for p, local in pairs]
        if any(gradient.layout is not torch.strided for gradient in found):
            raise TypeError("Invalid gradient: sparse (expected a dense one; in an embedding, sparse=False)")
        return found

    def gather(self, name: str, tensors: list[Tensor]) -> Tensor:
        """Copies of one tensor for each parameter, in the room `name`."""
        flat = self.room(name, tensors[0].dtype)
        torch._foreach_copy_(self.views[name], tensors)
        return flat

    def take(self, name: str, keep: bool) -> Tensor:
        """The gradient as one dimension; with `keep` it outlives the next evaluation."""
        found = self.gradients()
        there = self.alone and not keep and found[0].stride() == self.forms[0][1]
        return _flat(found[0]) if there else self.gather(name if keep else "latest", found)

    def target(self, room: str) -> Tensor:
        """Where a stage puts weights: where they lie, or a room from which `write` puts them back."""
        return _flat(self.locals[0]) if self.alone else self.room(room, self.locals[0].dtype)

    def write(self, room: str, back: bool = False) -> None:
        if back or not self.alone:
            torch._foreach_copy_([local.detach() for local in self.locals], self.views[room])


def _dense_stride(local: Tensor) -> tuple[int, ...]:
    """The strides with which its elements, in the order of its memory, lie without gaps."""
    return torch.empty_like(local, device="meta").stride()


def _flat(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor, where they lie."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))


# What surrounds an evaluation: section 6 -----------------------------------------------------------------------


def _surroundings(modules: list[nn.Module], params: list[Tensor], versions: Any) -> Callable[[], None]:
    """Note the random generators and the modules' buffers; returns what puts them back.

    A large buffer that evaluations leave as it is is copied once: `versions` has those that were seen. What cannot be
    written in place (expanded, sparse, nested, made in inference mode, not yet initialised) is put back if it was
    replaced. While a CUDA graph is captured all this is the caller's.
    """
    devices = sorted({p.device for p in params if p.device.type not in ("cpu", "meta")}, key=str)
    if _is_capturing(devices):
        return lambda: None
    # mps has one generator, and takes no argument.
    rngs = [(torch, ()), *((torch.get_device_module(d), (d,) * (d.type != "mps")) for d in devices)]
    states = [(rng, index, rng.get_rng_state(*index)) for rng, index in rngs]
    tables = [module._buffers for root in modules for module in root.modules()]
    owners = [(table, name, buffer) for table in tables for name, buffer in table.items()]
    copies = []
    for buffer in [b for *_, b in owners if b is not None and _is_writable(b)]:
        version = buffer._version if buffer.numel() >= LARGE_BUFFER else None
        if version is None or versions.get(buffer) != version:
            copies.append((buffer, buffer.clone(), version))
        if version is not None:
            versions[buffer] = version

    def restore() -> None:
        if _is_capturing(devices):
            return
        for rng, index, state in states:
            rng.set_rng_state(state, *index)
        for table, name, buffer in owners:
            table[name] = buffer
        changed = [(buffer, copy) for buffer, copy, version in copies if buffer._version != version]
        if changed:
            torch._foreach_copy_([buffer for buffer, _ in changed], [copy for _, copy in changed])

    return restore


def _is_capturing(devices: list[torch.device]) -> bool:
    return any(device.type == "cuda" for device in devices) and torch.cuda.is_current_stream_capturing()


def _is_writable(buffer: Tensor) -> bool:
    odd = isinstance(buffer, UninitializedTensorMixin) or buffer.is_inference() or buffer.is_nested
    if odd or buffer.layout is not torch.strided:
        return False
    return all(s > 0 or n < 2 for n, s in zip(buffer.shape, buffer.stride(), strict=True))


# The step: section 4 -----------------------------------------------------------------------------------------------


class _Idle(Exception):
    """There is no gradient, or a scaled one is not finite: the step does nothing."""


class _Step:
    """A step in progress: `in_order` is section 4. All its evaluations see the same random numbers and buffers.

    Averages, step sizes and counters change at the end only, when all is known; until then an exception, here or in an
    evaluation, leaves nothing but weights, buffers and generators to be put back.
    """

    part: str | None = None  # that is due next
    idle = False  # nothing to do, or skipped
    moved = False  # the weights are kept, and not where they were
    searched: bool | None = None  # whether a search is over; None: none was going on

    def __init__(self, optimizer: Acme, scaler: torch.amp.GradScaler | None) -> None:
        self.optimizer, self.scaler, self.groups = optimizer, scaler, optimizer.param_groups
        self.options, self.looks = self.groups[0], optimizer.looks()
        params = [param for group in self.groups for param in group["params"]]
        self.device = params[0].device if params else torch.device("cpu")  # where sums come together
        self.saved = functools.partial(_surroundings, optimizer._modules, params, optimizer._versions)
        self.ranks = _ranks(optimizer._model, params, optimizer._process_group)
        self.size = 1 if self.ranks is None else dist.get_world_size(self.ranks)
        self.losses: list[Tensor] = []  # of each evaluation
        self.blocks: list[_Block] = []  # of the parameters that take part
        self.read: dict[str, Tensor] = {}  # what is to be read: losses and sums, of all ranks
        self.limit: dict[str, Tensor] = {}  # what `read` does to numbers of the first update
        self.g: list[Tensor] = []  # each block's gradient of the first update,
        self.g0: list[Tensor] = []  # that at the start (another one with `asam`),
        self.g1: list[Tensor] = []  # that at the look-ahead,
        self.slopes: list[Tensor] = []  # and its Σ d·g0
        self.gradients: list[Any] = []  # at the start, and their versions: for `watchers`
        self.work = self.in_order()

    @torch.no_grad()
    def in_order(self) -> Generator[str | None, Any, None]:
        """The step; at each `yield` of the part that is due the model is evaluated, which gives the loss."""
        asam, before = self.options["asam"], self.saved()
        parts = iter([*["ascend"] * asam, *["look"] * self.looks, "leap"])

        def again() -> Generator[str, Any, None]:
            before()
            loss = yield next(parts)
            after()
            self.evaluated(loss)

        try:
            loss = yield next(parts)
            after = self.saved() if asam or self.looks else before
            self.evaluated(loss)
            if not self.blocks:
                self.optimizer.warn("After the closure no parameter of the optimizer has a gradient: no step")
                raise _Idle
            if asam:
                self.to_asam_point()
                yield from again()
            self.take_gradient()
            if self.looks:
                self.to_look_ahead()
                yield from again()
            self.to_next_weights()
        except BaseException as error:
            for block in self.blocks if self.moved else ():
                block.write("weights", back=True)
            self.idle = isinstance(error, _Idle)
            if not self.idle:
                before()
                # A scaler's books have the old ones until its next update, under their ids.
                self.optimizer._scaled = [SimpleNamespace() for _ in range(3)]
                raise
        if self.idle:
            self.tell()
            for part in parts:  # a loop in parts evaluates all the same
                self.losses.append((yield part))
                after()
                self.tell()
        yield None

    def evaluated(self, loss: Any) -> None:
        """After an evaluation: its loss, where the sums are; after the first, who takes part, and with which numbers."""
        if self.scaler is not None:
            scaled = self.optimizer._scaled[len(self.losses)]
            scaled.param_groups = self.groups
            self.scaler.unscale_(scaled)
        if isinstance(loss, bool) or not isinstance(loss, (Tensor, Real)):
            raise TypeError(f"Invalid loss: {loss!r} (expected a scalar tensor or a number)")
        value = loss.detach() if isinstance(loss, Tensor) else torch.tensor(float(loss), dtype=torch.float64)
        if value.numel() != 1 or value.is_complex():
            raise ValueError(f"Invalid loss: {tuple(value.shape)}, {value.dtype} (expected one real number)")
        self.losses.append(_local(value).reshape(()).to(self.device, _sum_dtype(self.device), copy=True))
        if len(self.losses) == 1:
            self.divide()
            self.count()
        if any(block.waits or block.fresh for block in self.blocks):
            self.begin()

    def divide(self) -> None:
        """The blocks of the parameters that have a gradient: those of the last step, where nothing has changed."""
        last, state = self.optimizer._blocks, self.optimizer.state
        self.params = [p for group in self.groups for p in group["params"] if p.grad is not None]
        # Equal groups are one: dividing parameters among them changes no sum. (A number in a tensor equals itself only.)
        entries = [[group[name] for name in (*_GROUP_OPTIONS, *_GROUP_STATE)] for group in self.groups]
        kinds_of = [[id(x) if isinstance(x, Tensor) else x for x in row] for row in entries]
        places = list(map(kinds_of.index, kinds_of))
        self.divided = [*places, *map(id, self.params)]
        if self.divided == self.optimizer._divided and all(block.fits(state) for block in last):
            self.blocks = last
            return
        kinds: dict[Any, list[Tensor]] = {}
        for place, group in zip(places, self.groups, strict=True):
            for name, param in zip(group["param_names"], group["params"], strict=True):
                if param.grad is not None:
                    _check_parameter(param, name, state.get(param))
                    local, weight = _local(param), group["asam"] and "weight" in name
                    large = local.device.type == "cpu" and local.numel() >= ALONE
                    alone = id(param) if large and _dense_stride(local) == local.stride() else None
                    kind = place, weight, _share(param, self.size), alone, local.device, local.dtype
                    kinds.setdefault(kind, []).append(param)
        old = {(block.kind, *map(id, block.params)): block for block in last}
        for kind, members in kinds.items():
            block = old.get((kind, *map(id, members)))
            if block is None or not block.fits(state):
                block = _Block(kind, self.groups[kind[0]], members, state)
            self.blocks.append(block)

    def count(self) -> None:
        """The numbers of each group, on the host where it may read: step sizes, decay rates, bias corrections."""
        options, steps = self.options, self.options["total_steps"]
        if options["acme"] and not options["capturable"] and options["annealing_step"] == steps:
            self.optimizer.warn(f"total_steps={steps} are done: steps stay at a hundredth (set_total_steps).")
        names = [name for name in (*_GROUP_OPTIONS, *_GROUP_STATE) if name != "betas"]
        rows = [[*group["betas"], *(group[name] for name in names)] for group in self.groups]
        n = self.n = dict(zip(("beta1", "beta2", *names), self.numbers(rows).unbind(1), strict=True))
        # The first `lr` that is not 0 is the start; a group whose `lr` is 0 for now stays where it is.
        unset, still = n["reference_lr"] == 0, n["lr"] == 0
        n["reference_lr"] = torch.where(unset, n["lr"], n["reference_lr"])
        n["step_size"] = torch.where(unset, n["lr"], n["step_size"]) if options["acme"] else n["lr"]
        n["size"] = torch.where(still, 0, n["step_size"])
        bc1, n["bc2"] = 1 - n["beta1"] ** n["t"], 1 - n["beta2"] ** n["t"]
        n["scale"] = torch.ones_like(bc1)
        if options["bias_correction"]:
            n |= {"correction": bc1, "scale": bc1 / n["bc2"].sqrt(), "epsilon": n["epsilon"] * bc1}
        n["epsilon"] = n["epsilon"] + torch.finfo(torch.float32).tiny
        n["rate1"], n["root2"] = 1 - n["beta1"], (1 - n["beta2"]).sqrt()
        n["damping"] = torch.ones_like(bc1)  # γ, times `gain` and what a scheduler made of `lr`
        if options["acme"]:
            done = (n["annealing_step"] / (steps or math.inf)).clamp(max=1.0)
            annealing = FINAL_ANNEALING + (1 - FINAL_ANNEALING) * (1 + torch.cos(math.pi * done)) / 2
            scheduled = torch.where(still, 0, n["lr"] / n["reference_lr"])
            n["damping"] = damping(n["beta1"]) * annealing * scheduled * options["gain"]

    def numbers(self, rows: list[list[Any]]) -> Tensor:
        """Numbers as one float64 tensor: on the host, or with `capturable` on the device."""
        if not self.options["capturable"]:
            return torch.tensor([list(map(float, row)) for row in rows], dtype=torch.float64)
        form: Any = dict(device=self.device, dtype=_sum_dtype(self.device))
        made = [x.to(**form) if isinstance(x, Tensor) else torch.full((), x, **form) for x in chain(*rows)]
        return torch.stack(made).view(len(rows), -1)

    def begin(self) -> None:
        """Begin averages, in memory that is not `state` yet: at a parameter's first gradient, be it zero or not.

        With `unbiased_squares` the squared ones at the first that is not zero, in whichever evaluation; at the
        look-ahead so that they are there after the first update, in which all their gradients are zero.
        """
        norms, corrected = [], self.options["bias_correction"]
        for block in self.blocks:
            found = torch._foreach_norm(block.gradients(), 2, dtype=_sum_dtype(block.device))
            norms.append((torch.stack(found).square() * block.share).to(self.device))
        vector = torch.cat(norms)
        if self.ranks is not None:
            dist.all_reduce(vector, group=self.ranks)
        parts = torch.split(vector, [len(block.params) for block in self.blocks])
        clip = _clip(vector.sum(), self.options["max_grad_norm"])
        for block, squares in zip(self.blocks, parts, strict=True):
            (beta1, beta2), gradients, fine = block.group["betas"], block.gradients(), torch.isfinite(squares)
            fresh, block.fresh = block.fresh, {}
            for i in fresh.get("exp_avg", []):
                value = gradients[i].to(block.dtype) * (clip * (1 - beta1 if corrected else 1.0))
                block.views["exp_avg"][i].copy_(torch.where(fine[i], value, 0))
            factor, which = clip**2, fresh.get("exp_avg_sq", [])
            if block.waits:
                later = beta2 if self.slopes and beta2 > 0 else 1.0
                factor = factor * self.n["bc2"][block.place].to(clip.device) / later
                which = list(range(len(gradients)))
            for i in which:
                view, mean = block.views["exp_avg_sq"][i], squares[i] * factor / block.params[i].numel()
                mean = torch.where(fine[i], mean.clamp(max=torch.finfo(view.dtype).max), 0)
                view.copy_(torch.where(view > 0, view, mean.to(view.device, view.dtype)))

    def to_asam_point(self) -> None:
        """To ASAM's point, w + ρ·T²·s / (‖T·s‖ + 1e-16)."""
        n, rows = self.n | {"size": -self.n["rho"]}, []
        self.keep_weights()
        for block in self.blocks:
            self.g0.append(block.take("start", self.looks))
            flats: Any = None, block.rooms["weights"], block.averages[1], self.g0[-1]
            rows.append(self.run(_climb, block, n, *flats, weight=block.weight))
        self.record("start", rows)
        scaled = {"size": 1 / (self.sums("start")[:, 0].sum().sqrt() + ASAM_FLOOR)}
        for block, g0 in zip(self.blocks, self.g0, strict=True):
            flats = block.target("latest"), block.rooms["weights"], block.averages[1], g0
            self.run(_climb, block, n, *flats, scaled=scaled, weight=block.weight)
            block.write("latest")

    def take_gradient(self) -> None:
        """What limits the gradient in the first update of the averages, from sums that are not read yet."""
        max_norm, rows = self.options["max_grad_norm"], []
        norm = max_norm is not None or bool(self.options["acme"] and self.optimizer.watchers)
        for block in self.blocks:
            self.g.append(block.take("first", self.looks))
            rows.append(self.run(_sums, block, self.n, *block.averages, self.g[-1], None, norm=norm))
        self.g0 = self.g0 or self.g
        self.record("first", rows)
        beta1 = _sent(self.n["beta1"], self.device)
        factors = self.read["factors"] = self.optimizer._call(_limit, beta1, self.sums("first"), max_norm)
        self.limit = dict.fromkeys(("rate1", "root2"), factors.prod())

    def to_look_ahead(self) -> None:
        """To the look-ahead point, along the averages as they will be; the slope at the start."""
        self.keep_weights()
        for block, g, g0 in zip(self.blocks, self.g, self.g0, strict=True):
            flats: Any = block.target("latest"), block.rooms["weights"], *block.averages, g, g0
            self.slopes.append(self.run(_look, block, self.n, *flats, scaled=self.limit))
            block.write("latest")
        if self.options["steps"] < 10:
            self.gradients = [(p.grad, p.grad._version) for p in self.params if p.grad is not None]

    def to_next_weights(self) -> None:
        """Read, decide and move."""
        options, n = self.options, self.n
        if self.looks:
            rows, norm = [], options["max_grad_norm"] is not None
            for block, g, slope in zip(self.blocks, self.g, self.slopes, strict=True):
                self.g1.append(block.take("ahead", False))
                flats: Any = *block.averages, g, self.g1[-1]
                sums = self.run(_sums, block, n, *flats, scaled=self.limit, norm=norm)
                rows.append(torch.cat([sums, slope]))
            self.record("ahead", rows)
        if not options["capturable"] and self.device.type != "cpu":  # the one wait of a step
            parts = torch.split(torch.cat([*self.read.values()]).cpu(), [*map(len, self.read.values())])
            self.read = dict(zip(self.read, parts, strict=True))
            self.check()
        read, first, limit = self.read, self.blocks[0].place, self.read["factors"][1]
        vectors = [read[name] for name in ("start", "first") if name in read]
        l0, fine = vectors[0][0], torch.isfinite(torch.cat([*vectors, limit[None]])).all()
        move, ahead = self.decided(l0)
        n["applied"] = torch.where(fine, n["damping"] * n["step_size"] * move.length, 0)
        alpha, decision = n["step_size"][first], torch.where(fine, move.decision, Decision.NON_FINITE)
        slopes = torch.stack([ahead["p0"], ahead["p1"]]) / torch.where(alpha == 0, 1, alpha)
        outcome = torch.stack([l0, ahead["l1"], *slopes, decision, alpha, n["applied"][first], limit])
        report = None if options["capturable"] else _report(outcome, self.looks, len(self.losses))
        for watcher in self.optimizer.watchers if report is not None else ():
            watcher(self.optimizer, report, read)  # type: ignore[arg-type]
        self.move(move, fine, ahead)
        self.commit(move, fine)
        self.tell(outcome, report)

    def run(self, stage: Any, block: _Block, n: Any, *flats: Any, scaled: Any = None, **how: bool) -> Any:
        """A stage over one block, with its group's numbers, some of them times a number on the device; its sums."""
        names = [name for name, number in n.items() if number is not None]
        column = _sent(torch.stack([n[name] for name in names])[:, block.place], block.device)
        for name, factor in (scaled or {}).items():
            column[names.index(name)].mul_(factor.to(block.device))
        c = dict(zip(names, column.to(block.dtype).unbind(), strict=True))
        if self.optimizer._compile:
            rows = [_compiled(stage)(c, *flats, **how)]
        else:
            pieces = (repeat(None) if flat is None else flat.split(block.piece) for flat in flats)
            rows = [stage(c, *piece, **how) for piece in zip(*pieces, strict=False)]
        sums = [x for row in rows for x in row or ()]
        return torch.stack(sums).view(len(rows), -1).sum(0, dtype=_sum_dtype(block.device)) if sums else None

    def record(self, name: str, rows: list[Tensor]) -> None:
        """Note the loss and the blocks' sums, added up by group, for reading: from here on those of all ranks."""
        table = torch.zeros(len(self.groups), len(rows[0]), dtype=rows[0].dtype, device=self.device)
        for block, row in zip(self.blocks, rows, strict=True):
            table[block.place] += row.to(self.device) * block.share
        self.read[name] = torch.cat([self.losses[-1].reshape(1) / self.size, table.flatten()])
        if self.ranks is not None:
            dist.all_reduce(self.read[name], group=self.ranks)
        early = self.device.type == "cpu" or self.scaler is not None
        if name != "ahead" and early and not self.options["capturable"]:
            self.check()

    def sums(self, name: str) -> Tensor:
        """Those that are recorded under a name, a row for each group."""
        return self.read[name][1:].view(len(self.groups), -1)

    def check(self) -> None:
        """Raise, or with a scaler skip the step, where a loss or a gradient read so far is not finite."""
        for name in [name for name in ("start", "first") if name in self.read]:
            loss, *sums = self.read[name].tolist()
            if math.isfinite(loss) and all(map(math.isfinite, sums)):
                continue
            if self.scaler is not None and self.scaler.is_enabled() and math.isfinite(loss):
                raise _Idle
            what = "gradient" if math.isfinite(loss) else f"loss ({loss})"
            where = "at ASAM's point" if name == "first" and "start" in self.read else "at the start"
            raise FloatingPointError(f"Non-finite {what} {where} of the step: all is as before it")

    def keep_weights(self) -> None:
        for block in () if self.moved else self.blocks:
            block.gather("weights", block.locals)
        self.moved = True

    def decided(self, l0: Tensor) -> tuple[Move, dict[str, Tensor]]:
        """What to do, and what a look-ahead has shown; `clip` is of the gradient in Nesterov's term."""
        weights, one, no = self.n["size"], torch.ones_like(l0), torch.zeros_like(l0, dtype=torch.bool)
        clip, max_norm = self.read["factors"][0], self.options["max_grad_norm"]
        if not self.looks:
            nothing = dict.fromkeys(("l1", "p0", "p1"), one * math.nan)
            return Move(one, one, one * math.nan, no, no), nothing | dict(fine=~no, clip=clip, factor=one)
        vector, sums, memory = self.read["ahead"], self.sums("ahead"), self.n["beta1"][self.blocks[0].place]
        l1, p0, p1 = vector[0], (sums[:, 4] * weights).sum(), (sums[:, 0] * weights).sum()
        fine = torch.isfinite(vector).all() & torch.isfinite(p0 + p1)
        move = self.optimizer.decide(Measured(l0, l1, p0, p1, one, memory))
        failed = Move(0 * one, memory, one * Decision.NON_FINITE, no, no)
        move = Move(*(torch.where(fine, x, y) for x, y in zip(move, failed, strict=True)))
        if self.options["search_left"] > 0 and weights.any():
            latest = self.options["search_latest"]
            target, self.searched = search(l0.item(), l1.item(), p0.item(), p1.item(), 1.0, latest)
            move = move._replace(step_size=target * one)
            if not self.searched or target != 1:
                move = move._replace(length=0 * one, again=no)
        # Where nothing moves, nothing is learnt.
        move = move._replace(step_size=torch.where((weights == 0).all(), one, move.step_size))
        factors = self.optimizer._call(_limit, self.n["beta1"], sums[:, :4], max_norm)
        if "start" in self.read:  # ASAM's gradient is not that of the start
            clip = _clip(self.sums("start")[:, 1].sum(), max_norm)
        clip = torch.where(move.worse, clip, factors[0])
        return move, dict(l1=l1, p0=p0, p1=p1, fine=fine, clip=clip, factor=factors.prod())

    def move(self, move: Move, fine: Tensor, ahead: dict[str, Tensor]) -> None:
        """Put together the numbers of the last stage, and run it.

        Where the host has read that all is finite, it leaves out what is not needed; else one form serves all cases.
        """
        n, where, one, looks = self.n, torch.where, torch.ones_like(self.n["beta1"]), self.looks
        again, failed, nesterov = move.again & fine, fine & ~ahead["fine"], self.options["nesterov"]
        # Compiled, each combination would be a compilation.
        host = not (self.options["capturable"] or self.optimizer._compile or failed)
        numbers = {name: n.get(name) for name in ("scale", "epsilon", "correction", "eta")}
        numbers |= dict(size=n["applied"], keep=1 - n["applied"] * n["weight_decay"])
        numbers["nesterov"] = n["rate1"] * ahead["clip"] if nesterov else None
        first = "", fine, self.read["factors"].prod(), one
        second = "again_", again, ahead["factor"], where(failed, n["rate1"], one)
        for which, happens, factor, beta1 in (first, second):
            numbers[which + "beta1"] = where(happens, n["beta1"], beta1)
            numbers[which + "beta2"] = where(happens, n["beta2"], 1)
            numbers |= {which + name: where(happens, n[name] * factor, 0) for name in ("rate1", "root2")}
        if not host:
            numbers |= dict(fine=fine * one, fine_ahead=ahead["fine"] * one, worse=move.worse * one)
        with_g0 = nesterov and not (host and looks and not move.worse)
        with_g1 = looks and (not host or bool(again) or (nesterov and not move.worse))
        g0s: Any = (self.g0 if looks else self.g) if with_g0 else repeat(None)
        g1s: Any = self.g1 if with_g1 else repeat(None)
        for block, g, g0, g1 in zip(self.blocks, self.g, g0s, g1s, strict=False):
            mine = dict(numbers)
            if host and not n["applied"][block.place]:
                del mine["size"]
            if not block.group["weight_decay"]:
                del mine["keep"]
            if not (self.moved or block.alone):
                block.gather("weights", block.locals)
            kept = block.rooms["weights"] if self.moved and block.alone else None
            # Nesterov's term takes a gradient without a limit, and 16 bits hold little.
            bounded = self.options["acme"] and (nesterov or block.locals[0].dtype != block.dtype)
            flats: Any = block.target("weights"), kept, *block.averages, g, g0, g1
            self.run(_leap, block, mine, *flats, bounded=bounded)
            block.write("weights")

    def commit(self, move: Move, fine: Tensor) -> None:
        """The averages become the optimizer's state, step sizes and counters those of the next step."""
        optimizer, state, capturable = self.optimizer, self.optimizer.state, self.options["capturable"]
        for block in self.blocks:
            for param, key, entry in block.entries:
                state[param][key] = entry
            if block.waits and not capturable:
                block.waits = not all(bool((view > 0).all()) for view in block.views["exp_avg_sq"])
        # A parameter that is in no block any more keeps its averages, and not the whole block's memory.
        for block in [block for block in optimizer._blocks if block not in self.blocks]:
            for param, key, entry in block.entries:
                if state.get(param, {}).get(key) is entry:
                    state[param][key] = entry.clone()
        optimizer._blocks, optimizer._divided = self.blocks, self.divided
        failed, step_size = move.decision == Decision.NON_FINITE, self.n["step_size"]
        if self.options["acme"]:
            step_size = (step_size * move.step_size).clamp(max=_LARGEST)
        for i, group in enumerate(self.groups):
            group["steps"] += 1
            if self.searched is not None:
                factor = move.step_size.item()
                group["search_left"] = 0 if self.searched else group["search_left"] - 1
                group["search_latest"] = (factor > 1) - (factor < 1) or group["search_latest"]
            later = dict(step_size=step_size[i], reference_lr=self.n["reference_lr"][i])
            later["annealing_step"] = group["annealing_step"] + 1
            later["t"] = torch.where(failed, 1, group["t"] + 1)
            for name, value in later.items():
                if capturable:
                    group[name].copy_(torch.where(fine, value, group[name]))
                else:
                    group[name] = value.item() if isinstance(value, Tensor) else value

    def tell(self, outcome: Tensor | None = None, report: Report | None = None) -> None:
        """What `report` says at the end of a step; without an outcome, of one that did nothing."""
        optimizer, options, nan, looks = self.optimizer, self.options, math.nan, self.looks
        if outcome is None:
            alpha, looks = options["step_size"] if options["acme"] else options["lr"], False
            code = Decision.NON_FINITE if self.blocks else nan
            outcome = self.numbers([[self.losses[0], nan, nan, nan, code, alpha, 0.0, 1.0]])[0]
        if options["capturable"]:
            outcome = outcome if optimizer._outcome is None else optimizer._outcome[0].copy_(outcome)
            optimizer._outcome = outcome, looks, len(self.losses)
        else:
            optimizer._report = report or _report(outcome, looks, len(self.losses))


def _report(numbers: Tensor, looks: bool, evaluations: int) -> Report:
    l0, l1, p0, p1, code, alpha, applied, limit = numbers.tolist()
    if not looks:
        l1 = p0 = p1 = None
    decision = None if math.isnan(code) else Decision(int(code))
    return Report(l0, l1, p0, p1, decision, alpha, applied, limit, evaluations)


# The optimizer: section 1 ---------------------------------------------------------------------------------------


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
        lr: the step size; with `acme` the initial one (the first that is not 0): the adapted one is
            ``param_groups[i]["step_size"]``, and an `lr` that moves to c times its start scales the applied step by c.
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
        max_grad_norm: Euclidean norm to which to clip the gradient that enters the averages, and not the slopes.
        process_group: ranks over which losses are averaged; None: those of the `model`, of its device mesh, or all.
        compile: compile what is between the evaluations (on the CPU with a C++ compiler). Results differ by rounding.
        capturable: read nothing from the device, so that CUDA graphs may hold any part of a step. Where something is
            not finite the step changes nothing, `report` says so and nothing is raised.
        buffers_of: modules whose buffers (BatchNorm's statistics) are to count one evaluation a step; None: `model`.
        gain: factor on every step with `acme`. Not published, nor are the others below.
        adapt_steps: steps after which the step size stays, without look-ahead; None: adapt throughout, as published.
        search_steps: at most so many first steps only look ahead for a step size to start from; see `search`.
        unbiased_squares: with `adam` and `bias_correction`, begin the squared average at (1 - β2^t)·mean(g²) of the
            first gradient that is not all zero; published is mean(g²) of the first, so that what starts at zero (a
            head, LoRA's B) leaps by a gradient over ε with `adam`, `nesterov` and `acme`.

    Parameters may be real tensors of any floating dtype, and DTensors (`fully_shard`); without a gradient they take no
    part. Averages are float32 for 16-bit parameters; sums of many elements float64 (on mps, float32). Groups search
    along their joint direction: each keeps its ratio of step sizes, its betas and its weight decay. An argument out of
    its range is a ValueError, one of a wrong type a TypeError.

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
        defaults = _checked(locals())
        _need(isinstance(compile, bool), "compile", compile, "True or False", TypeError)
        self._model = model if isinstance(model, nn.Module) else None
        self._process_group, self._compile = process_group, compile
        buffers_of = self._model or [] if buffers_of is None else buffers_of
        self._modules = [buffers_of] if isinstance(buffers_of, nn.Module) else list(buffers_of)
        self._report: Report | None = None
        self._forget()
        super().__init__(model.named_parameters() if isinstance(model, nn.Module) else model, defaults)

    def _forget(self) -> None:
        """Begin what is remembered from step to step, but not in a state dict or a copy."""
        self._step: _Step | None = None  # in progress
        self._blocks: list[_Block] = []  # of the last step
        self._divided: list[int] = []  # which groups are equal in it, and whose gradients it had
        self._outcome: tuple[Tensor, bool, int] | None = None  # with `capturable`, what `report` reads
        self._versions: Any = WeakTensorKeyDictionary()  # of large buffers, when last seen
        self._scaled: list[Any] = [SimpleNamespace() for _ in range(3)]  # what a GradScaler unscales
        self._warned: set[str] = vars(self).get("_warned", set())

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
        """Add a group: "params" (tensors or ``(name, tensor)`` pairs) and any of lr, betas, epsilon, weight_decay, rho, eta.

        A later group starts at its own `lr`; steps are counted for all groups together. An option out of range or for the
        whole optimizer, or no names with `asam`, are a ValueError or TypeError.
        """
        fine = isinstance(param_group, dict)
        _need(fine, "parameter group", param_group, "a dict with 'params'", TypeError)
        _refuse_foreign(param_group, "a parameter group")
        group = dict(param_group)  # the caller's dict stays as it is, usable for another optimizer
        group.update(_checked({**self.defaults, **group}))
        for name in _SHARED_OPTIONS:
            same, expected = group[name] == self.defaults[name], f"{self.defaults[name]}, as passed to Acme"
            _need(same, f"{name} in a parameter group", group[name], expected)
        if not isinstance(group["params"], set):  # which torch refuses
            given = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
            if group["asam"] and not ("param_names" in group or all(isinstance(p, tuple) for p in given)):
                raise ValueError(_NO_NAMES)
            # torch wants names in all groups or in none; those that have none get theirs here.
            pairs = [p if isinstance(p, tuple) else (f"{i}{_NAMELESS}", p) for i, p in enumerate(given)]
            names, group["params"] = [name for name, _ in pairs], [param for _, param in pairs]
            group.setdefault("param_names", names)
            list(map(_check_parameter, group["params"]))
        super().add_param_group(group)
        _complete(group, self.param_groups[0])

    def set_total_steps(self, total_steps: int | None) -> None:
        """Change the length of the training, as to go on for longer from a checkpoint; γ goes on from the steps done."""
        for options in (self.defaults, *self.param_groups):
            options.update(_checked({**options, "total_steps": total_steps}))

    # The step, to whoever takes it -------------------------------------------------------------------------

    def step(self, closure: Any = None, scaler: torch.amp.GradScaler | None = None) -> Any:
        """One step: 1 evaluation of `closure`, +1 with `asam`, +1 with `acme` where it looks ahead.

        Args:
            closure: zeroes the gradients, evaluates loss and gradient on one batch and returns the loss, a scalar; called
                with gradients enabled, on the same random numbers every time. Without one, where every `lr` and
                gradient is zero (as `torch.distributed.checkpoint` does), only the state is made.
            scaler: for float16, the `GradScaler` with which the closure scales what it differentiates (it returns the
                true loss). An overflow at the start or at ASAM's point skips the step. Then call ``scaler.update()``.

        Returns:
            The loss at the weights the step started from, detached.

        Raises FloatingPointError where loss or gradient is not finite at the start (or at ASAM's point); TypeError,
        ValueError or RuntimeError for a wrong closure, loss or gradient, or a call by ``GradScaler.step``. After any
        exception, from here or from the closure, all is as before the step, the random generators included.
        """
        if "grad_scale" in vars(self):
            del self.grad_scale, self.found_inf  # type: ignore[attr-defined]
            raise RuntimeError(_SCALED)
        if closure is None:
            return self._create_state()
        _need(callable(closure), "closure", closure, "a function that returns the loss", TypeError)
        evaluate = torch.enable_grad()(closure)
        with self._in_progress(scaler) as step:
            loss = evaluate()
            # The next evaluation may take its memory.
            first = loss.detach().clone() if isinstance(loss, Tensor) else loss
            self._go_on(step.part, loss)
            while step.part is not None and not step.idle:
                self._go_on(step.part, evaluate())
        return first

    @contextmanager
    def step_in_parts(self, scaler: torch.amp.GradScaler | None = None) -> Iterator[None]:
        """One step as separate calls, for loops that cannot hand over a closure; `step` is made of the same.

        Within the block, evaluate the batch (zero the gradients, forward, backward) and hand the loss to the part that is
        due, `next_part`: ``ascend`` with `asam`, then ``look`` where the step looks ahead, then ``leap``::

            with optimizer.step_in_parts():
                optimizer.look(evaluate())       # to the look-ahead point
                optimizer.leap(evaluate())       # to the next weights, from the same batch

        An exception within undoes the step; parts out of order, or none, are a RuntimeError. `scaler`: see `step`.
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
        return None if self._step is None else self._step.part

    def ascend(self, loss: Tensor | float) -> None:
        """Go to ASAM's point; `loss` is that of the evaluation at the start. See `step_in_parts`."""
        self._go_on("ascend", loss)

    def look(self, loss: Tensor | float) -> None:
        """Go one full step ahead; `loss` is that of the latest evaluation."""
        self._go_on("look", loss)

    def leap(self, loss: Tensor | float) -> None:
        """Go to the next weights; `loss` is that of the latest evaluation."""
        self._go_on("leap", loss)

    def looks(self) -> bool:
        """Whether the next step looks ahead; a variant may decide otherwise."""
        first = self.param_groups[0]
        return first["acme"] and (first["adapt_steps"] is None or first["steps"] < first["adapt_steps"])

    def decide(self, seen: Measured) -> Move:
        """What a step does after a finite look-ahead (sections 5 and 4.7 to 4.9); a variant may decide otherwise.

        The tensors are float64; with `capturable` they are on the parameters' device, and may not be read.
        """
        target, step, decision = self._call(adapt, *seen)
        worse, step_size = seen.l1 > seen.l0, seen.beta1 * seen.alpha + (1 - seen.beta1) * target
        return Move(torch.where(worse, step, seen.alpha), step_size, decision, worse, seen.l1 < seen.l0)

    def warn(self, message: str) -> None:
        """Once for each optimizer."""
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=3)

    @contextmanager
    def _in_progress(self, scaler: torch.amp.GradScaler | None) -> Iterator[_Step]:
        """The evaluations of a step, which an exception undoes."""
        if self._step is not None:
            raise RuntimeError("A step of this optimizer is in progress: finish it with leap() first")
        torch.clear_autocast_cache()  # of casted weights that have changed
        step = self._step = _Step(self, scaler)
        try:
            step.part = next(step.work)
            yield step
            if step.part is not None and not step.idle:
                raise RuntimeError(f"The step was left before {step.part}(): it is undone")
        finally:
            step.work.close()
            self._step = None
            torch.clear_autocast_cache()

    def _go_on(self, part: str | None, loss: Any) -> None:
        """Do the part that is due, with the loss of the evaluation before it."""
        step = self._step
        if step is None:
            raise RuntimeError(f"{part}() outside a step (call it within `with optimizer.step_in_parts():`)")
        if part != step.part:
            due = f"{step.part}(loss)" if step.part else "the end of the block"
            raise RuntimeError(f"{part}() where {due} is due (ascend with asam, look with acme, then leap)")
        step.part = step.work.send(loss)
        torch.clear_autocast_cache()

    def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """A function of a few numbers, which are many kernels on a device."""
        compiled = self._compile and self.param_groups[0]["capturable"]
        return (_compiled(function) if compiled else function)(*arguments)

    # State ----------------------------------------------------------------------------------------------

    def _create_state(self) -> None:
        """Averages of zeros, which count as none, for the parameters that have a gradient: of zeros."""
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        still = params and not any(float(group["lr"]) for group in self.param_groups)
        if not still or any(bool(_local(param.grad).any()) for param in params):
            raise TypeError(_NO_CLOSURE)
        for param in params:
            for key in _AVERAGES[: 1 + self.param_groups[0]["adam"]]:
                self.state[param].setdefault(key, torch.zeros_like(param, dtype=_state_dtype(param.dtype)))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, of these or older versions; the optimizer then continues bit for bit.

        Saved options replace the constructor's, as in every torch optimizer; averages keep their precision. Raises
        ValueError where groups do not match, an option is out of range or another optimizer's, or `asam` has no names.
        """
        loaded: dict[str, Any] = {}

        def restore(_: Optimizer) -> None:
            saved = chain.from_iterable(group["params"] for group in loaded["param_groups"])
            params = chain.from_iterable(group["params"] for group in self.param_groups)
            for index, param in zip(saved, params, strict=True):
                form = dict(device=param.device, dtype=_state_dtype(param.dtype), copy=True)
                entry = loaded["state"].get(index, {}).items()
                averages = {key: x.detach().to(**form) for key, x in entry if isinstance(x, Tensor)}
                if averages:
                    self.state[param] = averages

        # Behind the user's own hooks before, so as to see what is really loaded, and ahead of those after.
        before = self.register_load_state_dict_pre_hook(lambda _, final: loaded.update(final))
        with before, self.register_load_state_dict_post_hook(restore, prepend=True):
            super().load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_model", "_modules", "_process_group", "_compile", "_report")
        return {**super().__getstate__(), **{name: vars(self)[name] for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for group in state["param_groups"]:
            _refuse_foreign(group, "the loaded state")
        super().__setstate__(state)
        self._forget()
        for group in self.param_groups:
            group.setdefault("steps", group.get("annealing_step", 1))
            group.update(_checked({**self.defaults, **group}))
            _complete(group, self.param_groups[0])
        self.defaults.update({name: self.param_groups[0][name] for name in _SHARED_OPTIONS})
        names = chain.from_iterable(group["param_names"] for group in self.param_groups)
        if self.defaults["asam"] and any(name.endswith(_NAMELESS) for name in names):
            raise ValueError(_NO_NAMES)

    def __repr__(self) -> str:
        first = self.param_groups[0]
        text = ", ".join(f"{name}={first[name]}" for name in _SHARED_OPTIONS if name != "differentiable")
        for number, group in enumerate(self.param_groups):
            values = ", ".join(f"{name}={group[name]}" for name in (*_GROUP_OPTIONS, "step_size", "t"))
            text += f"\n    group {number}: {len(group['params'])} tensors, {values}"
        return f"Acme({text}\n)"


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
        form = f"{placements} on {mesh.size()} of {ranks} ranks"
        raise ValueError(f"Invalid parameter: a DTensor {form} (expected sharded or replicated over all)")
    return 1.0 / math.prod(int(mesh.size(i)) for i, kind in enumerate(placements) if kind.is_replicate())


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


def _sent(numbers: Tensor, device: torch.device) -> Tensor:
    """Numbers from the host on the device, in the precision of sums, without waiting for it."""
    if device.type == "cuda" and numbers.device.type == "cpu":
        numbers = numbers.pin_memory()
    return numbers.to(device, _sum_dtype(device), non_blocking=True)


def _sum_dtype(device: torch.device) -> torch.dtype:
    """What sums are taken in: float64, or float32 on mps, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The averages' dtype: 16 bits cannot hold a sum that moves by a thousandth."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


# Options -------------------------------------------------------------------------------------------------------

_NAMELESS = " (no name)"  # ends what a parameter without a name is called
_GROUP_OPTIONS = ("lr", "betas", "epsilon", "weight_decay", "rho", "eta")  # a group may have its own
_GROUP_STATE = ("step_size", "reference_lr", "t", "annealing_step")  # tensors, with `capturable`
_ADAPTED = {"gain": 1, "adapt_steps": None, "search_steps": 0}  # of the adaptation, and without it
_WHOLE = {"total_steps": 1, "adapt_steps": 1, "search_steps": 0}  # whole numbers of at least so many
_FLAGS = ("acme", "adam", "asam", "nesterov", "bias_correction", "differentiable", "capturable",
          "unbiased_squares")  # fmt: skip
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
    "adapt_every": "it has given way to adapt_steps",
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
    "asam=True needs the parameters' names (ASAM scales by |w| those whose name contains 'weight'): pass the model, "
    "model.named_parameters(), or groups with 'params' as (name, tensor) pairs"
)


def _check_parameter(param: Any, name: str = "", state: Any = None) -> None:
    """Refuse a parameter of a wrong kind, or averages in its `state` of another shape or dtype than it wants."""
    if getattr(param, "_fsdp_flattened", False) or type(param).__name__ == "FlatParameter":
        raise TypeError("Invalid parameter: of FullyShardedDataParallel (FSDP1; use fully_shard)")
    if isinstance(param, Tensor) and param.requires_grad and not param.is_floating_point():
        raise TypeError(f"Invalid parameter: {param.dtype} (expected a real floating dtype, or a frozen one)")
    for key, average in (state or {}).items():
        if key in _AVERAGES and (average.shape, average.dtype) != (param.shape, _state_dtype(param.dtype)):
            raise ValueError(
                f"Invalid state {key!r} of parameter {name}, of shape {tuple(param.shape)} and dtype {param.dtype}: it "
                f"has {tuple(average.shape)} and {average.dtype} (convert it along, or make a new optimizer)"
            )


def _refuse_foreign(group: dict[str, Any], where: str) -> None:
    for name, instead in _FOREIGN_OPTIONS.items():
        if group.get(name) and not (name == "adapt_every" and group[name] == 1):
            raise ValueError(f"Invalid option {name!r} in {where}: {instead}")


def _complete(group: dict[str, Any], first: dict[str, Any]) -> None:
    """Fill in a group's entries that are not options; `first` is the optimizer's first group."""
    lr, device = float(group["lr"]), group["params"][0].device if group["params"] else torch.device("cpu")
    start = {"step_size": lr, "reference_lr": float(group.get("initial_lr", lr))}
    start |= {"t": int(first.get("t", 1)), "annealing_step": int(first.get("annealing_step", 0))}
    for name, value in start.items():
        number = type(value)(group.get(name, value))
        dtype = torch.int64 if isinstance(number, int) else _sum_dtype(device)
        group[name] = torch.full((), number, dtype=dtype, device=device) if group["capturable"] else number
    group.setdefault("steps", first.get("steps", 0))
    # Steps that may still search, and whether the latest that changed the step size made it larger or smaller.
    group.setdefault("search_left", first.get("search_left", 0 if group["steps"] else group["search_steps"]))
    group.setdefault("search_latest", first.get("search_latest", 0))


def _need(condition: Any, name: str, value: Any, expected: str, error: type[Exception] = ValueError) -> None:
    if not condition:
        raise error(f"Invalid {name}: {value!r} (expected {expected})")


def _number(name: str, value: Any, below: float = math.inf) -> float:
    _need(isinstance(value, Real) and not isinstance(value, bool), name, value, "a number", TypeError)
    expected = "a number in [0, 1)" if below == 1 else "a finite number of at least 0"
    _need(0 <= float(value) < below, name, value, expected)
    return float(value)


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    """The options among `options`, checked, as plain Python numbers (which every checkpoint can hold)."""
    checked = {name: options[name] for name in (*_GROUP_OPTIONS, *_SHARED_OPTIONS)}
    lr, betas, acme = checked["lr"], checked["betas"], checked["acme"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"Invalid lr: a tensor of shape {tuple(lr.shape)} (expected one element)")
    rate = _number("lr", float(lr) if isinstance(lr, Tensor) else lr)
    checked["lr"] = lr if isinstance(lr, Tensor) else rate
    pair = isinstance(betas, (tuple, list)) and len(betas) == 2
    _need(pair, "betas", betas, "a pair of numbers", TypeError)
    checked["betas"] = tuple(_number(f"betas[{i}]", beta, below=1.0) for i, beta in enumerate(betas))
    for name in ("epsilon", "weight_decay", "rho", "eta", "gain", "max_grad_norm"):
        if checked[name] is not None or name != "max_grad_norm":
            checked[name] = _number(name, checked[name])
    for name, least in _WHOLE.items():
        value = checked[name]
        if value is not None or not least:
            whole = isinstance(value, Integral) and not isinstance(value, bool)
            _need(whole, name, value, "a whole number", TypeError)
            _need(value >= least, name, value, f"at least {least}, or None" if least else "at least 0")
            checked[name] = int(value)
    for name in _FLAGS:
        _need(isinstance(checked[name], bool), name, checked[name], "True or False", TypeError)
    for fine, name, expected in (
        (checked["max_grad_norm"] != 0, "max_grad_norm", "a positive number, or None for no clipping"),
        (checked["gain"] > 0, "gain", "a positive number; 1 for none"),
        (not checked["differentiable"], "differentiable", "False: comparisons have no derivative"),
        *((acme or checked[name] == off, name, f"{off} without acme=True") for name, off in _ADAPTED.items()),
        (not (checked["capturable"] and checked["search_steps"]), "search_steps", "0 with capturable=True: it reads"),
        (checked["adam"] and checked["bias_correction"] or not checked["unbiased_squares"], "unbiased_squares",
         "False without adam=True and bias_correction=True"),
    ):  # fmt: skip
        _need(fine, name, options[name], expected)
    return checked
