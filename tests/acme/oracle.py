"""The specification once more, written the plain way: all parameters as one float64 vector.

Shares nothing with `acme.py` but the specification's symbols, and takes the loss as a function of the vector.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

GROWTH_LIMIT = 2.0


def plain_adapt(l0: float, l1: float, p0: float, p1: float, alpha: float, beta1: float):
    """Section 5, with the textbook solution of the quadratic equation for the cubic's minimiser."""
    better = l1 <= l0
    if not abs(l0 - l1) > max(l0, l1) / 10**4:
        return (2 * alpha if better else alpha), (alpha if better else 0.0), 0
    if p0 > 0 and p1 < 0:
        # l0 - p0 s + c s² + d s³ with value l1 and slope -p1 at alpha
        d = (-p1 - p0 - 2 * (l1 - l0) / alpha) / alpha**2
        c = ((l1 - l0) / alpha + p0) / alpha - d * alpha
        s = p0 / (2 * c) if d == 0 else (-c + math.sqrt(c * c + 3 * d * p0)) / (3 * d)
        return s, s, 1 if better else 2
    if better and p1 < 0:
        a = -p1 / alpha - (l1 - l0) / alpha**2
        b = -p1 - 2 * a * alpha
        return -b / (2 * a), -b / (2 * a), 3
    if not better and p0 > 0:
        a = ((l1 - l0) / alpha + p0) / alpha
        return p0 / (2 * a), p0 / (2 * a), 4
    if better and p0 > 0 and p1 > 0:
        return min(alpha * (1 + p1 / p0), alpha * (2 - beta1) / (1 - beta1)), alpha, 5
    if not better and p0 < 0 and p1 < 0:
        return max(-alpha * p1 / p0, alpha * (0.5 - beta1) / (1 - beta1)), 0.0, 6
    return (alpha, alpha, 7) if better else (0.0, 0.0, 7)


def plain_search(l0: float, l1: float, p0: float, p1: float, latest: int):
    """The factor on the step size that a search makes of a finite look-ahead, and whether it is over."""
    if p0 <= 0:
        return 1.0, False
    clear = abs(l0 - l1) > max(l0, l1) / 10**4
    if p1 > p0 / 2 and not (clear and l1 > l0):  # too short
        return (1.0, True) if latest == -1 else (10.0, False)
    return 0.1, latest == 1


class Oracle:
    """One optimizer of equal or unequal groups; `sizes` are the lengths of the parameters in the vector.

    `is_weight` says which parameters ASAM scales, `groups` the group of each parameter; `lr`, `betas`,
    `weight_decay`, `rho` and `eta` are lists, one value a group.
    """

    def __init__(
        self, w: Tensor, sizes: list[int], is_weight: list[bool], groups: list[int], *, lr, betas, weight_decay,
        rho, eta, epsilon=1e-8, acme=False, adam=False, asam=False, nesterov=False, bias_correction=False,
        total_steps=50_000, max_grad_norm=None, gain=1.0, adapt_steps=None, search_steps=0,
        unbiased_squares=False,
    ) -> None:  # fmt: skip
        self.w = w.clone()
        self.sizes = sizes

        def spread(values) -> Tensor:
            per_parameter = torch.tensor([float(v) for v in values], dtype=torch.float64)
            return per_parameter.repeat_interleave(torch.tensor(sizes))

        of = lambda values: spread([values[g] for g in groups])
        self.group = of(list(range(len(lr))))
        self.weight = spread(is_weight).bool()
        self.alpha, self.beta1, self.beta2 = of(lr), of([b[0] for b in betas]), of([b[1] for b in betas])
        self.decay, self.rho, self.eta = of(weight_decay), of(rho), of(eta)
        self.first_beta1 = betas[0][0]
        self.epsilon, self.total_steps, self.bias_correction = epsilon, total_steps, bias_correction
        self.acme, self.adam, self.asam, self.nesterov = acme, adam, asam, nesterov
        self.max_grad_norm = max_grad_norm
        self.gain, self.adapt_steps = gain, adapt_steps
        self.search_left, self.search_latest = search_steps, 0
        self.unbiased_squares = unbiased_squares
        self.m = self.v = None
        self.t, self.done, self.code, self.applied = 1, 0, None, None

    def D(self) -> Tensor:
        bc1 = 1 - self.beta1**self.t if self.bias_correction else torch.ones_like(self.w)
        bc2 = 1 - self.beta2**self.t if self.bias_correction else torch.ones_like(self.w)
        return ((self.v / bc2).sqrt() + self.epsilon) * bc1 if self.adam else bc1

    def clip(self, g: Tensor) -> Tensor:
        if self.max_grad_norm is None:
            return g
        return g * min(self.max_grad_norm / (g.norm().item() + 1e-6), 1.0)

    def mean_square(self, g: Tensor) -> Tensor:
        return torch.cat([(part**2).mean().expand(len(part)) for part in g.split(self.sizes)])

    def begin(self, g: Tensor) -> None:
        """With unbiased squares: v / bc2 begins at the mean square of a parameter's first gradient that is not zero."""
        if self.unbiased_squares:
            self.v = torch.where(self.v == 0, self.mean_square(g) * (1 - self.beta2**self.t), self.v)

    def update(self, g: Tensor) -> float:
        D, b = self.D(), self.beta1
        # ‖β m + (1 - β) k g‖² = F ‖m‖² in the metric 1/D, solved for k
        qa = ((1 - b) ** 2 * g * g / D).sum().item()
        qb = 2 * (b * (1 - b) * self.m * g / D).sum().item()
        qc = ((b**2 - GROWTH_LIMIT) * self.m * self.m / D).sum().item()
        k = 1.0 if qa == 0 else (-qb + math.sqrt(qb * qb - 4 * qa * qc)) / (2 * qa)
        g = min(k, 1.0) * g
        self.m = b * self.m + (1 - b) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g * g
        return min(k, 1.0)

    def step(self, f: Callable[[Tensor], tuple[float, Tensor]]) -> float:
        l0, g0 = f(self.w)
        if self.m is None:
            first = self.clip(g0)
            self.m = (1 - self.beta1) * first if self.bias_correction else first.clone()
            self.v = 0 * first if self.unbiased_squares else self.mean_square(first)
        self.begin(self.clip(g0))
        g = g0
        if self.asam:
            s = g0 / self.D() if self.adam else g0
            T = torch.where(self.weight, self.w.abs() + self.eta, 1.0)
            _, g = f(self.w + self.rho * T**2 * s / ((T * s).norm() + 1e-16))
        g = self.clip(g)
        self.begin(g)
        self.update(g)
        d = self.m / self.D()
        done = min(self.done / self.total_steps, 1.0) if self.total_steps else 0.0
        annealing = 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2
        b = self.beta1
        gamma = self.gain * 2 * (1 - b) / (1 + b) * (1 + 2 * b) / (2 - b) * annealing
        self.done += 1
        if not self.acme or (self.adapt_steps is not None and self.done > self.adapt_steps):
            size = gamma * self.alpha if self.acme else self.alpha
            direction = self.beta1 * d + (1 - self.beta1) * g / self.D() if self.nesterov else d
            self.w = (self.w - size * direction) * (1 - size * self.decay)
            self.t += 1
            self.code = None
            return l0
        l1, g1 = f(self.w - self.alpha * d)
        # The joint direction is α·d: a step of 1.
        p0, p1 = (self.alpha * d * g0).sum().item(), (self.alpha * d * g1).sum().item()
        self.begin(self.clip(g1))
        memory = self.first_beta1
        target, step, self.code = plain_adapt(l0, l1, p0, p1, 1.0, memory)
        if self.search_left > 0:
            factor, over = plain_search(l0, l1, p0, p1, self.search_latest)
            self.search_left = 0 if over else self.search_left - 1
            self.search_latest = 1 if factor > 1 else -1 if factor < 1 else self.search_latest
            if not (over and factor == 1):
                self.alpha, self.applied = self.alpha * factor, 0.0
                self.t += 1
                return l0
            memory, target = 0.0, factor
        a = gamma * (step if l1 > l0 else 1.0) * self.alpha
        self.applied = a
        direction = d
        if self.nesterov:
            direction = b * d + (1 - b) * self.clip(g0 if l1 > l0 else g1) / self.D()
        self.w = (self.w - a * direction) * (1 - a * self.decay)
        self.alpha = self.alpha * (memory + (1 - memory) * target)
        if l1 < l0:
            self.update(self.clip(g1))
        self.t += 1
        return l0
