"""The optimizer of a run: Acme, or one of its peers behind the calls that the training loop makes of Acme."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from icassp25.config import RunConfig, UsageError
from icassp25.peers import ACME, LAZY, NO_DECAY, PEERS, WARMUP

BETA2 = 0.999
EPSILON = 1e-8

AcmeClass = Callable[..., torch.optim.Optimizer]


def acme_class(package: str) -> AcmeClass:
    """The class `Acme` of `--acme-script`."""
    try:
        return importlib.import_module(package).Acme
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"--acme-script {package}: expected a package with a class Acme ({error})."
        ) from None


def make(config: RunConfig, model: nn.Module, acme: AcmeClass, captured: bool = False) -> Any:
    """The optimizer that `config` asks for: an `Adapter`, or what `acme` makes of Acme's own options.

    Options that are not set are left out where the signature of `acme` has none of the name: a class that is not
    ours need not know them. Where steps are to be `captured` Acme is made capturable; but a variant may read what
    it decides on, and a search has to.

    Raises:
        UsageError: a package is missing, or the optimizer refuses an option.
    """
    if config.optimizer != ACME:
        return Adapter(config, model)
    capturable = captured and config.acme_script == "acme" and not config.search_steps
    lr: float | Tensor = config.lr
    if capturable:  # where graphs find what a schedule makes of it
        lr = torch.tensor(lr, dtype=torch.float64, device=next(model.parameters()).device)
    options = {**config.acme_options, "compile": config.compile, "capturable": capturable}
    unset = {**RunConfig().acme_options, "compile": False, "capturable": False}
    signature = inspect.signature(acme)
    options = {k: v for k, v in options.items() if k in signature.parameters or v != unset[k]}
    options |= {
        "lr": lr,
        "betas": (config.momentum, BETA2),
        "epsilon": EPSILON,
        "weight_decay": config.weight_decay,
        "bias_correction": config.adam,
        "total_steps": config.annealing_steps,
    }
    try:
        signature.bind(model, **options)
    except TypeError as error:
        raise UsageError(f"--acme-script {config.acme_script}: its Acme {error}.") from None
    try:
        return acme(model, **options)
    except ValueError as error:
        found = re.fullmatch(r"Invalid (\w+): (.*) \(expected (.*)\)", str(error))
        said = f"--acme-script {config.acme_script}: {error}."
        if found and found[1] in config.acme_options:
            said = f"--{found[1].replace('_', '-')} {found[2]}: expected {found[3]}."
        raise UsageError(said) from None


def versions(config: RunConfig) -> dict[str, str]:
    """The peer's package and its version, for the run's JSON; Acme is what the commit says."""
    packages = [PEERS[config.optimizer].package] if config.optimizer != ACME else []
    return {package: metadata.version(package) for package in packages}


class Adapter:
    """A peer's optimizer behind the calls that the training loop makes of Acme.

    `config` names it in `optimizer`, its scale in `lr`; `momentum` is the momentum or β1. `others` gives further training
    batches, from a seed, and `forwards` are the forward passes alone of the last step.

    Raises:
        UsageError: the package is missing or refuses the options.
    """

    others: Callable[[int], Iterator[tuple[Tensor, Tensor]]]
    forwards = 0

    def __init__(self, config: RunConfig, model: nn.Module) -> None:
        name = config.optimizer
        self.config, self.model, self.steps = config, model, 0
        self.peer = peer = PEERS[name]
        try:
            package = importlib.import_module(peer.module)
        except ImportError as error:
            raise UsageError(
                f"--optimizer {name}: needs the package {peer.package}, which cannot be imported ({error}); "
                f"pip install {peer.package}, or pip install '.[peers]' for all of them."
            ) from None
        maker = getattr(package, peer.class_name)
        if name == "gen":  # not an optimizer, but what changes the rate of one
            self.lr_parabola, maker = maker, torch.optim.AdamW
        options = {**peer.options, peer.argument: config.lr}
        if peer.decay != NO_DECAY:
            options["weight_decay"] = config.weight_decay
        adams = {"betas": (config.momentum, BETA2), "eps": EPSILON}
        if not peer.plain:
            options |= adams if peer.family == "adam" else {peer.momentum: config.momentum}
        if peer.modes:
            options["warmup_steps"] = round(WARMUP * config.epochs * config.steps_per_epoch)
        if peer.class_name == "SAM":
            options["base_optimizer"] = torch.optim.SGD
        try:
            # Prodigy and D-Adaptation print in their constructors.
            with contextlib.redirect_stdout(io.StringIO()):
                self.optimizer = maker(model.parameters(), **options)
        except ValueError as error:
            raise UsageError(f"--optimizer {name}: {peer.package} refuses its options ({error}).") from None
        self.optimizer.param_groups[0].setdefault("lr", 1.0)  # SaLSa's has none

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One step; the loss of the first evaluation.

        Raises:
            FloatingPointError: that loss is not finite, or the package gives up on the numbers it gets.
        """
        loss = closure()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()}")
        self.forwards = 0
        asked = {"SAM": self._without_statistics, "SaLSA": self._loss_alone}.get(self.peer.class_name)
        try:
            if self.config.optimizer == "gen":
                self._fit()
            self.optimizer.step(partial(asked, closure, loss) if asked else lambda: loss)
        except (AssertionError, ValueError) as error:  # DoG's and SaLSa's, of what is not finite
            raise FloatingPointError(str(error)) from None
        self.steps += 1
        return loss.detach()

    def _fit(self) -> None:
        """GeN's change of the rate, in every fourth step, by another batch."""
        if (self.steps + 1) % LAZY == 0:
            criterion = nn.CrossEntropyLoss(label_smoothing=self.config.label_smoothing)
            batches, device = self.others(self.config.seed + self.steps), next(self.model.parameters()).device
            scale = 1 - self.steps // self.config.steps_per_epoch / self.config.epochs
            how = dict(tr_iter=batches, device=device, task="image_cls", scale=scale)
            self.lr_parabola(self.model, self.optimizer, criterion, **how)
            self.forwards = 3

    def _loss_alone(self, closure: Callable[[], Tensor], loss: Tensor, backwards: bool = False) -> Tensor:
        """What SaLSa asks for: the evaluation that there is, or in its search, without gradients, a loss."""
        if backwards:
            return loss
        self.forwards += 1
        return closure()

    def _without_statistics(self, closure: Callable[[], Tensor], _: Tensor) -> Tensor:
        """The second evaluation, with the package's own switch for BatchNorm's running statistics."""
        from pytorch_optimizer.optimizer.utils import disable_running_stats, enable_running_stats

        disable_running_stats(self.model)
        try:
            return closure()
        finally:
            enable_running_stats(self.model)

    def train(self) -> None:
        """Before the steps of an epoch: the weights that the gradient is evaluated at."""
        if self.peer.modes:
            self.optimizer.train()

    def eval(self) -> None:
        """Before testing and saving: the weights that are the result."""
        if self.peer.modes:
            self.optimizer.eval()

    def step_size(self, lr: float) -> float:
        """The step size that the method itself arrived at, else `lr`, the scheduled learning rate."""
        group = self.param_groups[0]
        if "d" in group:
            return float(group["d"]) * lr
        if "scheduled_lr" in group:
            return float(group["scheduled_lr"])
        if "reps_rel" in group:
            return float(group["eta"][0]) if "eta" in group else math.nan
        return float(getattr(self.optimizer, "step_size", lr if self.peer.cosine else group["lr"]))

    def state_dict(self) -> dict[str, Any]:
        # What MoMo and SaLSa keep beside their state.
        kept = {k: v for k, v in vars(self.optimizer).items() if isinstance(v, (int, float, Tensor))}
        return dict(optimizer=self.optimizer.state_dict(), kept=kept, steps=self.steps)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        device = next(self.model.parameters()).device
        for name, value in state["kept"].items():
            setattr(self.optimizer, name, value.to(device) if isinstance(value, Tensor) else value)
        self.steps = state["steps"]
