"""Thousands of random histories of an optimizer: no error but a documented one, weights finite or untouched.

But in a step without look-ahead, which too large a step size can take to infinity as it does any optimizer's.
What Hypothesis draws depends on the fixed seed, and on which of the project's modules are imported (it tries their
constants): not the same for this file alone.

`ACME_FUZZ_EXAMPLES` sets another number of histories (`make test-long`: ten thousand), `ACME_FUZZ_SEED` another seed than the fixed one.
"""

import copy
import io
import math
import os
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from acme import Acme, Decision

EXAMPLES = int(os.environ.get("ACME_FUZZ_EXAMPLES", "3000"))
SEED = int(os.environ.get("ACME_FUZZ_SEED", "0"))
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(), (0,), (1,), (3,), (2, 3), (3, 2)]
TAME = ["bowl", "valley", "plane", "abs"]  # gradients that a fixed step size cannot blow up
WILD = ["hill", "quartic", "exp", "constant"]

# Spread, since Hypothesis likes small numbers and the project's constants, whose bits are much alike.
numbers = st.integers(0, 2**31 - 1).map(lambda number: number * 2654435761 % 2**31)
flags = st.booleans()
seen: Counter = Counter()


def make_params(count: int, draw: int) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(draw)
    params = []
    for i in range(count):
        shape = SHAPES[(draw >> (3 * i)) % len(SHAPES)]
        dtype = DTYPES[(draw >> (2 * i)) % len(DTYPES)] if draw % 3 == 0 else DTYPES[draw % len(DTYPES)]
        tensor = torch.randn(shape, generator=generator).to(dtype)
        if len(shape) == 2 and draw % 2:
            tensor = tensor.t()  # not contiguous
        params.append(torch.nn.Parameter(tensor))
        seen[str(dtype)] += 1
    return params


class Landscape:
    """A loss with its gradient written by hand; `lie` scales the gradient, and `missing` has none."""

    def __init__(self, kind: str, draw: int, lie: float, missing: int, zero: int) -> None:
        self.kind, self.lie, self.missing, self.zero = kind, lie, missing, zero
        self.scale = 0.1 + (draw % 97) / 30
        self.centre = (draw % 13 - 6) / 6

    def evaluate(self, params: list[torch.Tensor], in_place: bool) -> float:
        loss = float(torch.rand(()))  # the same at every evaluation of a step
        for i, param in enumerate(params):
            x = param.detach().double() - self.centre
            if self.kind == "bowl":
                value, slope = x * x / 2, x
            elif self.kind == "valley":
                value, slope = x * x / 2 * (i + 1) / 3, x * (i + 1) / 3
            elif self.kind == "plane":
                value, slope = x, torch.ones_like(x)
            elif self.kind == "abs":
                value, slope = x.abs(), x.sign()
            elif self.kind == "hill":
                value, slope = -x * x / 2, -x
            elif self.kind == "quartic":
                value, slope = x**4, 4 * x**3
            elif self.kind == "exp":
                value, slope = x.exp(), x.exp()
            else:
                value, slope = torch.zeros_like(x), torch.zeros_like(x)
            loss += self.scale * float(value.sum())
            if self.missing >> i & 1:
                param.grad = None
                continue
            gradient = (self.scale * self.lie * slope * (0 if self.zero >> i & 1 else 1)).to(param.dtype)
            if in_place and param.grad is not None:
                param.grad.copy_(gradient)
            else:
                param.grad = gradient
        return loss


class History(RuleBasedStateMachine):
    """The rules; `acme` is set by the two classes below."""

    acme = False
    steps = 7

    @initialize(bits=st.integers(0, 31), draw=numbers, lr=st.integers(-6, 6), how=st.integers(0, 3))
    def begin(self, bits: int, draw: int, lr: int, how: int) -> None:
        seen["histories"] += 1
        if not self.acme:
            lr = min(lr, -1)
        self.options = dict(
            acme=self.acme, adam=bool(bits & 1), asam=bool(bits & 2), nesterov=bool(bits & 4),
            bias_correction=bool(bits & 8), total_steps=None if bits & 16 else 1 + draw % 5,
            lr=0.0 if draw % 29 == 0 else 10.0**lr * ([1, 2, 5][draw // 37 % 3] if self.acme else 1),
            betas=[(0.9, 0.999), (0.0, 0.9), (0.5, 0.0), (0.99, 0.99)][draw % 4],
            epsilon=[1e-8, 0.0, 1e-3][draw % 3], weight_decay=[0.0, 0.01][draw // 5 % 2], rho=[1.0, 0.05][draw // 7 % 2],
            eta=[0.0, 0.1][draw // 11 % 2], max_grad_norm=[None, None, 0.5][draw // 13 % 3],
        )  # fmt: skip
        self.options["unbiased_squares"] = bool(
            self.options["adam"] and self.options["bias_correction"] and draw // 31 % 2
        )
        if self.acme:
            self.options.update(
                gain=[1.0, 3.0][draw // 17 % 2],
                adapt_steps=[None, None, 3][draw // 19 % 3],
                search_steps=[0, 4][draw // 23 % 2],
            )
        if self.options["adam"] and not self.acme:  # a tiny denominator would make any step size a large one
            self.options.update(epsilon=1e-8, lr=min(self.options["lr"], 1e-3))
        seen[tuple(self.options[name] for name in ("acme", "adam", "asam", "nesterov"))] += 1
        torch.manual_seed(draw)
        self.params = make_params(1 + draw % 4, draw)
        named = [(f"{i}.weight" if i % 2 else f"{i}.bias", p) for i, p in enumerate(self.params)]
        if how == 0 and not self.options["asam"]:
            self.optimizer = Acme(self.params, **self.options)
        elif how == 1:
            groups = [{"params": named[::2]}, {"params": named[1::2], "lr": self.options["lr"] / 3}]
            self.optimizer = Acme([g for g in groups if g["params"] or draw % 2], **self.options)
        elif how == 2:
            module = torch.nn.ParameterDict({name.replace(".", "_"): p for name, p in named})
            self.optimizer = Acme(module, **self.options)
        else:
            self.optimizer = Acme(named, **self.options)
        self.twin: tuple | None = None

    def diverges(self, before: list[torch.Tensor]) -> bool:
        """Whether the step was without look-ahead, and too long for its numbers to stay within their dtype."""
        report = self.optimizer.report
        if not self.acme or report.decision is not None:
            return False
        for old, param in zip(before, self.params, strict=True):
            state = {key: value.double() for key, value in self.optimizer.state.get(param, {}).items()}
            if not state or not param.numel():
                continue
            length = state["exp_avg"].abs()
            if "exp_avg_sq" in state:
                length /= state["exp_avg_sq"].sqrt() + self.options["epsilon"]
                largest = torch.finfo(self.optimizer.state[param]["exp_avg_sq"].dtype).max
                overflows = param.grad is not None and float(param.grad.double().abs().max()) ** 2 > largest
                if overflows and not state["exp_avg_sq"].isfinite().all():
                    return True
            decay = max(group["weight_decay"] for group in self.optimizer.param_groups)
            reach = (old.double().abs() + report.applied * length) * max(1.0, report.applied * decay)
            if not param.isfinite().all() and reach.max() > torch.finfo(param.dtype).max / 2:
                return True
        return False

    # What must hold ---------------------------------------------------------------------------------------

    def photograph(self, params=None, optimizer=None) -> list:
        params, optimizer = params or self.params, optimizer or self.optimizer
        state = [
            {key: value.clone() for key, value in optimizer.state[p].items()}
            if p in optimizer.state
            else None
            for p in params
        ]
        groups = [
            {k: v for k, v in g.items() if k not in ("params", "param_names")} for g in optimizer.param_groups
        ]
        return [[p.detach().clone() for p in params], state, copy.deepcopy(groups), torch.get_rng_state()]

    @staticmethod
    def same(left: list, right: list, rng: bool = True) -> bool:
        if not all(map(torch.equal, left[0], right[0])) or left[2] != right[2]:
            return False
        for a, b in zip(left[1], right[1], strict=True):
            if (a is None) != (b is None) or (a or {}).keys() != (b or {}).keys():
                return False
            if any(not torch.equal(a[key], b[key]) for key in a or {}):
                return False
        return not rng or torch.equal(left[3], right[3])

    def check(self) -> None:
        for param in self.params:
            assert param.isfinite().all(), "weights finite"
        for state in self.optimizer.state.values():
            assert all(value.isfinite().all() for value in state.values()), "averages finite"
        for group in self.optimizer.param_groups:
            assert 0 <= group["step_size"] < math.inf and group["t"] >= 1
        report = self.optimizer.report
        if report is not None:
            assert math.isfinite(report.applied) and 0 <= report.limit <= 1

    # Rules ------------------------------------------------------------------------------------------------

    def run(self, params, optimizer, landscape, parts: bool, spoil, in_place: bool, as_float: bool) -> float:
        calls = 0

        def closure():
            nonlocal calls
            calls += 1
            loss = landscape.evaluate(params, in_place)
            loss = spoil(calls, loss, params) if spoil else loss
            return loss if as_float else torch.tensor(loss, dtype=torch.float64)

        if not parts:
            loss = optimizer.step(closure)
        else:
            with optimizer.step_in_parts():
                first = loss = closure()
                if self.options["asam"]:
                    optimizer.ascend(loss)
                    loss = closure()
                if optimizer.next_part == "look":
                    optimizer.look(loss)
                    loss = closure()
                optimizer.leap(loss)
            loss = first
        assert calls == optimizer.report.evaluations
        assert float(loss) == optimizer.report.loss
        return loss

    @rule(draw=numbers, missing=st.integers(0, 15), kind=st.sampled_from(TAME + WILD))
    def good_step(self, draw: int, missing: int, kind: str) -> None:
        self.step(kind, draw, missing, None, 0)

    @rule(
        draw=numbers, kind=st.sampled_from(TAME + WILD), call=st.integers(1, 3),
        spoiled=st.sampled_from(["loss", "gradient", "error", "interrupt"]),
    )  # fmt: skip
    def spoiled_step(self, draw: int, kind: str, call: int, spoiled: str) -> None:
        self.step(kind, draw, 0, spoiled, call)

    def step(self, kind: str, draw: int, missing: int, spoiled: str | None, call: int) -> None:
        parts = bool(draw >> 5 & 1)
        if not self.acme and kind in WILD:
            kind = TAME[draw % len(TAME)]
        lie = 1.0 if draw % 4 or not self.acme else [-1.0, 100.0, 1e-3, -1e-6][draw // 4 % 4]
        missing = missing if draw % 5 == 0 else 0
        zero = (draw >> 9) % 16 if draw % 7 == 0 else 0
        landscape = Landscape(kind, draw, lie, missing, zero)

        def spoil(number, loss, params):
            if number != call:
                return loss
            seen[f"{spoiled} at evaluation {call}"] += 1
            if spoiled == "loss":
                return [math.nan, math.inf, -math.inf][draw % 3]
            if spoiled == "gradient":
                for param in params:
                    if param.grad is not None and param.numel():
                        param.grad[(0,) * param.dim()] = [math.nan, math.inf, -math.inf][draw % 3]
                return loss
            raise RuntimeError("out of memory") if spoiled == "error" else KeyboardInterrupt

        arguments = (landscape, parts, spoil if spoiled else None, draw % 2 == 0, draw % 3 == 0)
        before = self.photograph()
        twin, self.twin = self.twin, None
        try:
            self.run(self.params, self.optimizer, *arguments)
        except (FloatingPointError, RuntimeError, KeyboardInterrupt) as error:
            seen[type(error).__name__] += 1
            assert isinstance(error, FloatingPointError) or spoiled in ("error", "interrupt")
            assert self.same(before, self.photograph()), "an exception leaves everything as it was"
            return
        if self.diverges(before[0]):
            seen["diverged"] += 1
            self.begin(bits=draw % 32, draw=draw, lr=-3, how=draw % 4)  # another history
            return
        after = self.photograph()
        seen[self.optimizer.report.decision] += 1
        if self.optimizer.report.decision is Decision.NON_FINITE:
            assert all(map(torch.equal, before[0], after[0]))
        elif spoiled is None:
            for i, (old, new) in enumerate(zip(before[0], after[0], strict=True)):
                assert not missing >> i & 1 or torch.equal(old, new), "no gradient, no movement"
        if twin is not None:
            torch.set_rng_state(before[3])
            self.run(*twin, *arguments)
            assert self.same(after, self.photograph(*twin)), "a loaded optimizer goes on bit for bit"
            seen["continued after loading"] += 1
        self.check()

    @rule(way=st.integers(0, 3))
    def save_and_load(self, way: int) -> None:
        """Into a fresh optimizer that goes on; a copy goes on beside it for one step."""
        before = self.photograph()
        self.twin = copy.deepcopy((self.params, self.optimizer))
        state = self.optimizer.state_dict()
        if way:
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        if way < 3:
            groups = [
                {
                    "params": list(zip(g["param_names"], g["params"], strict=True))
                    if "param_names" in g
                    else g["params"]
                }
                for g in self.optimizer.param_groups
            ]
            fresh = Acme(groups, **{**self.options, "lr": 0.123})
            fresh.load_state_dict(state)
            self.optimizer = fresh
        else:
            self.optimizer.load_state_dict(state)
        assert self.same(before, self.photograph())

    @rule(draw=numbers)
    def add_group(self, draw: int) -> None:
        if len(self.params) > 6:
            return
        new = make_params(draw % 3, draw)
        names = [f"later{len(self.params) + i}.weight" for i in range(len(new))]
        self.optimizer.add_param_group({"params": list(zip(names, new, strict=True)), "weight_decay": 0.1})
        self.params += new
        self.twin = None

    @rule(factor=st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    def schedule(self, factor: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["reference_lr"] * factor
        self.twin = None

    @rule(
        value=st.sampled_from([None, True, "0.5", 1j, torch.ones(2), torch.ones((), dtype=torch.complex64)])
    )
    def wrong_loss(self, value) -> None:
        before = self.photograph()
        with pytest.raises((TypeError, ValueError)):
            self.optimizer.step(lambda: value)
        assert self.same(before, self.photograph())
        seen["wrong loss"] += 1

    @rule(order=st.lists(st.sampled_from(["ascend", "look", "leap"]), max_size=4), draw=numbers)
    def wrong_order(self, order: list[str], draw: int) -> None:
        right = ["ascend"] * self.options["asam"] + ["look"] * self.optimizer.looks() + ["leap"]
        if order[: len(right)] == right:
            return
        landscape = Landscape("bowl", draw, 1.0, 0, 0)
        before = self.photograph()
        # A gradient that overflows may come first.
        with pytest.raises((RuntimeError, FloatingPointError)), self.optimizer.step_in_parts():
            for part in order:
                getattr(self.optimizer, part)(landscape.evaluate(self.params, False))
        assert self.same(before, self.photograph())
        seen["wrong order"] += 1


class WithAcme(History):
    acme = True


class WithoutAcme(History):
    acme = False


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("machine", [WithAcme, WithoutAcme])
def test_histories(machine) -> None:
    """Half of the histories each; afterwards every kind of event has really been there."""
    seen.clear()
    run = seed(SEED)(machine) if SEED else machine
    run_state_machine_as_test(
        run,
        settings=settings(
            max_examples=EXAMPLES // 2, stateful_step_count=machine.steps, deadline=None, derandomize=not SEED,
            database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
        ),
    )  # fmt: skip
    enough = EXAMPLES // 1000
    assert seen["histories"] >= EXAMPLES // 2
    wanted: list = [(machine.acme, bool(b & 1), bool(b & 2), bool(b & 4)) for b in range(8)]
    wanted += [str(dtype) for dtype in DTYPES]
    wanted += [
        "FloatingPointError",
        "RuntimeError",
        "KeyboardInterrupt",
        "wrong loss",
        "wrong order",
        "continued after loading",
    ]
    wanted += [
        f"{what} at evaluation {call}"
        for what in ("loss", "gradient", "error", "interrupt")
        for call in range(1, 3 + machine.acme)
    ]
    wanted += [decision for decision in Decision if machine.acme]
    missing = [event for event in wanted if seen[event] < enough]
    assert not missing, (missing, seen)
