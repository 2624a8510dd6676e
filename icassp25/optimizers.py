"""The optimizer of a run: Acme, or one of its peers behind the calls that the training loop makes of Acme."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import math
import re
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from icassp25.config import RunConfig, UsageError
from icassp25.peers import ACME, PEERS, WARMUP

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

    `config` names it in `optimizer`, its scale in `lr`; `momentum` is the momentum or β1.

    Raises:
        UsageError: the package is missing or refuses the options.
    """

    def __init__(self, config: RunConfig, model: nn.Module) -> None:
        name = config.optimizer
        self.peer = peer = PEERS[name]
        self.model = model
        try:
            package = importlib.import_module(peer.module)
        except ImportError as error:
            raise UsageError(
                f"--optimizer {name}: needs the package {peer.package}, which cannot be imported ({error}); "
                f"pip install {peer.package}, or pip install '.[peers]' for all of them."
            ) from None
        options = {**peer.options, peer.argument: config.lr, "weight_decay": config.weight_decay}
        if peer.family == "adam":
            options |= {"betas": (config.momentum, BETA2), "eps": EPSILON}
        elif peer.family == "sgd":
            options["momentum"] = config.momentum
        if peer.modes:
            options["warmup_steps"] = round(WARMUP * config.epochs * config.steps_per_epoch)
        if peer.class_name == "SAM":
            options["base_optimizer"] = torch.optim.SGD
        try:
            # Prodigy and D-Adaptation print in their constructors.
            with contextlib.redirect_stdout(io.StringIO()):
                self.optimizer = getattr(package, peer.class_name)(model.parameters(), **options)
        except ValueError as error:
            raise UsageError(f"--optimizer {name}: {peer.package} refuses its options ({error}).") from None
        self.averager = getattr(package, peer.averager)(model) if peer.averager else None

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @property
    def tested_model(self) -> nn.Module:
        """The model to test: the averaged one where the method averages beside the training."""
        return self.model if self.averager is None else self.averager.averaged_model

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One step; the loss of the first evaluation.

        Raises:
            FloatingPointError: that loss is not finite, or the package gives up on the numbers it gets.
        """
        loss = closure()
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()}")
        another = self.peer.evaluations == 2
        try:
            self.optimizer.step(lambda: self._without_statistics(closure) if another else loss)
        except AssertionError as error:  # DoG's, of a gradient that is not finite
            raise FloatingPointError(str(error)) from None
        if self.averager is not None:
            self.averager.step()
        return loss.detach()

    def _without_statistics(self, closure: Callable[[], Tensor]) -> Tensor:
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
        return lr

    def state_dict(self) -> dict[str, Any]:
        averager = None if self.averager is None else self.averager.state_dict()
        return {"optimizer": self.optimizer.state_dict(), "averager": averager}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if self.averager is not None:
            self.averager.load_state_dict(state["averager"])
