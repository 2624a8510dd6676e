"""The optimizers people would pick instead of ACME: which package each is, and how its authors say to use it.

Nothing is implemented here. `PEERS` is the table: what `--lr` means for each, its schedule, its weight decay, what a
step costs; importing it needs the standard library only. `Adapter` gives the packages' optimizers the calls that the
training loop makes of Acme. docs/peers.md says the same in prose.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from icassp25.config import RunConfig

ACME = "acme"
"""The `--optimizer` that is not a peer."""

ACME_LR = 0.1  # the published default

WARMUP = 0.05
"""Share of the steps over which the schedule-free optimizers warm up: their README asks for a warm-up, but names no
length."""

STATISTICS_BATCHES = 50
"""Training batches from which BatchNorm's statistics are taken at averaged weights, as schedulefree's README has it."""


@dataclass(frozen=True)
class Peer:
    """One optimizer and its use.

    `default` is the value of `--lr` if none is given, and `argument` the constructor's argument that takes it.
    `options` are further arguments; `betas`, `momentum` and `eps` are added by the `family`.
    """

    title: str
    package: str  #: what pip installs
    module: str
    class_name: str
    default: float
    scale: str  #: what `--lr` is, in words
    how: str
    decay: str  #: what `--weight-decay` does, in words
    source: str
    argument: str = "lr"
    family: str = "sgd"  #: sgd: momentum; adam: betas and eps; plain: neither
    cosine: bool = True  #: the experiment's schedule without ACME: cosine per epoch to a hundredth
    evaluations: int = 1  #: gradient evaluations a step
    modes: bool = False  #: `optimizer.train()` and `.eval()`, and BatchNorm's statistics anew for testing
    averager: str | None = None  #: a class of `module` that averages the weights to be tested
    default_without_norm: float | None = (
        None  #: `default` for networks without BatchNorm, where it is another
    )
    options: Mapping[str, Any] = field(default_factory=dict)


COUPLED = "coupled: added to the gradient"
DECOUPLED = "decoupled: times the learning rate"

PEERS: dict[str, Peer] = {
    "sgd": Peer(
        "SGD",
        "torch", "torch.optim", "SGD",
        default=0.1,
        scale="learning rate",
        how="momentum (torch's, a sum of gradients where ACME has an average), cosine per epoch to a hundredth",
        decay=COUPLED,
        source="torch.optim.SGD; the learning rate as in Zagoruyko and Komodakis, Wide Residual Networks",
    ),
    "adamw": Peer(
        "AdamW",
        "torch", "torch.optim", "AdamW",
        default=0.001,
        scale="learning rate",
        how="cosine per epoch to a hundredth",
        decay=DECOUPLED,
        source="torch.optim.AdamW and its default learning rate",
        family="adam",
    ),
    "schedulefree-sgd": Peer(
        "Schedule-free SGD",
        "schedulefree", "schedulefree", "SGDScheduleFree",
        default=1.0,
        scale="learning rate",
        how=f"no schedule, {100 * WARMUP:g} % of the steps warm-up, tested at its averaged weights, BatchNorm's "
        f"statistics, where there are any, taken anew from {STATISTICS_BATCHES} training batches",
        decay=COUPLED,
        source="https://github.com/facebookresearch/schedule_free (README), arXiv:2405.15682",
        cosine=False,
        modes=True,
    ),
    "schedulefree-adamw": Peer(
        "Schedule-free AdamW",
        "schedulefree", "schedulefree", "AdamWScheduleFree",
        default=0.0025,
        scale="learning rate",
        how=f"no schedule, {100 * WARMUP:g} % of the steps warm-up, tested at its averaged weights, BatchNorm's "
        f"statistics, where there are any, taken anew from {STATISTICS_BATCHES} training batches",
        decay=DECOUPLED,
        source="https://github.com/facebookresearch/schedule_free (README), arXiv:2405.15682",
        family="adam",
        cosine=False,
        modes=True,
    ),
    "prodigy": Peer(
        "Prodigy",
        "prodigyopt", "prodigyopt", "Prodigy",
        default=1e-6,
        scale="first estimate d0 of the distance to the solution",
        how="learning rate 1, cosine per epoch to a hundredth; no warm-up, so no safeguard for one",
        decay=DECOUPLED + " and the estimated distance",
        source="https://github.com/konstmish/prodigy (README), arXiv:2306.06101",
        argument="d0",
        family="adam",
        options={"lr": 1.0, "decouple": True},
    ),
    "dadapt-adam": Peer(
        "D-Adapt Adam",
        "dadaptation", "dadaptation", "DAdaptAdam",
        default=1e-6,
        scale="first estimate d0 of the distance to the solution",
        how="learning rate 1, the schedule one would use without it: cosine per epoch to a hundredth",
        decay=DECOUPLED + " and the estimated distance",
        source="https://github.com/facebookresearch/dadaptation (README), arXiv:2301.07733",
        argument="d0",
        family="adam",
        options={"lr": 1.0, "decouple": True},
    ),
    "dog": Peer(
        "DoG",
        "dog-optimizer", "dog", "DoG",
        default=1e-4,
        scale="first movement relative to the weights (reps_rel)",
        how="no schedule, no momentum, tested at the polynomial-decay average of the weights; reps_rel 1e-4 for "
        "networks with BatchNorm, 1e-6 for others",
        decay=COUPLED,
        source="https://github.com/formll/dog (README), arXiv:2302.12022",
        argument="reps_rel",
        family="plain",
        cosine=False,
        averager="PolynomialDecayAverager",
        default_without_norm=1e-6,
    ),
    "sam": Peer(
        "SAM",
        "pytorch-optimizer", "pytorch_optimizer", "SAM",
        default=0.1,
        scale="learning rate of the SGD within",
        how="SGD with momentum within, rho 0.05, cosine per epoch to a hundredth; BatchNorm's statistics from the first "
        "evaluation of a step only",
        decay=COUPLED,
        source="pytorch-optimizer's SAM; Foret et al., arXiv:2010.01412; statistics: https://github.com/davda54/sam",
        evaluations=2,
        options={"rho": 0.05, "adaptive": False},
    ),
    "asam": Peer(
        "ASAM",
        "pytorch-optimizer", "pytorch_optimizer", "SAM",
        default=0.1,
        scale="learning rate of the SGD within",
        how="SGD with momentum within, rho 1.0 as its paper has for CIFAR-100, cosine per epoch to a hundredth; "
        "BatchNorm's statistics from the first evaluation of a step only",
        decay=COUPLED,
        source="pytorch-optimizer's SAM(adaptive=True); Kwon et al., arXiv:2102.11600",
        evaluations=2,
        options={"rho": 1.0, "adaptive": True},
    ),
}  # fmt: skip

OPTIMIZERS = (ACME, *PEERS)
"""What `--optimizer` takes."""


MODELS_WITH_NORM = ("WRN", "Pyramid")
"""The networks with BatchNorm."""


def default_lr(optimizer: str, model: str) -> float:
    """The value of `--lr` where none is given; Acme's for a name that is none (which `check` refuses)."""
    if optimizer not in PEERS:
        return ACME_LR
    peer = PEERS[optimizer]
    other = peer.default_without_norm
    return peer.default if other is None or model in MODELS_WITH_NORM else other


def load(name: str) -> Any:
    """The module of a peer's package.

    Raises:
        UsageError: the package is not installed.
    """
    from icassp25.config import UsageError

    peer = PEERS[name]
    try:
        return importlib.import_module(peer.module)
    except ImportError as error:
        raise UsageError(
            f"--optimizer {name}: needs the package {peer.package}, which cannot be imported ({error}); "
            f"pip install {peer.package}, or pip install '.[peers]' for all of them."
        ) from None


def version(name: str) -> dict[str, str]:
    """The peer's package and its version, for the run's JSON."""
    from importlib import metadata

    package = PEERS[name].package
    return {package: metadata.version(package)}


class Adapter:
    """A peer's optimizer behind the calls that the training loop makes of Acme.

    Args:
        config: names the peer in `optimizer`, its scale in `lr`; `momentum` is the momentum or β1.
        model: what it trains.
        beta2, epsilon: of the Adam-like ones.

    Raises:
        UsageError: the package is missing or refuses the options.
    """

    def __init__(self, config: RunConfig, model: nn.Module, beta2: float, epsilon: float) -> None:
        from icassp25.config import UsageError

        self.peer = peer = PEERS[config.optimizer]
        self.model = model
        self._module = load(config.optimizer)
        options = {**peer.options, peer.argument: config.lr, "weight_decay": config.weight_decay}
        if peer.family == "adam":
            options |= {"betas": (config.momentum, beta2), "eps": epsilon}
        elif peer.family == "sgd":
            options["momentum"] = config.momentum
        if peer.modes:
            options["warmup_steps"] = round(WARMUP * config.epochs * config.steps_per_epoch)
        if peer.class_name == "SAM":
            import torch

            options["base_optimizer"] = torch.optim.SGD
        make = getattr(self._module, peer.class_name)
        try:
            # Prodigy and D-Adaptation print in their constructors.
            with contextlib.redirect_stdout(io.StringIO()):
                self.optimizer = make(model.parameters(), **options)
        except ValueError as error:
            raise UsageError(
                f"--optimizer {config.optimizer}: {peer.package} refuses its options ({error})."
            ) from None
        self.averager = getattr(self._module, peer.averager)(model) if peer.averager else None

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    @property
    def tested_model(self) -> nn.Module:
        """The model to test: the averaged one where the method averages beside the training."""
        return self.model if self.averager is None else self.averager.averaged_model

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One step; the loss of the first evaluation.

        Raises:
            FloatingPointError: that loss is not finite, or the package gives up on the numbers it gets.
        """
        if self.peer.evaluations == 2:
            loss = self._finite(closure())
            self.optimizer.step(lambda: self._without_statistics(closure))
        else:
            losses: list[Tensor] = []

            def watched() -> Tensor:
                losses.append(self._finite(closure()))
                return losses[-1]

            try:
                self.optimizer.step(watched)
            except AssertionError as error:  # DoG's, of a gradient that is not finite
                raise FloatingPointError(str(error)) from None
            loss = losses[0]
        if self.averager is not None:
            self.averager.step()
        return loss.detach()

    @staticmethod
    def _finite(loss: Tensor) -> Tensor:
        if not math.isfinite(loss.item()):
            raise FloatingPointError(f"the loss is {loss.item()}")
        return loss

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
        """The step size that the method itself arrived at, else the scheduled learning rate, which is `lr`."""
        group = self.param_groups[0]
        if "d" in group:
            return float(group["d"]) * lr
        if "scheduled_lr" in group:
            return float(group["scheduled_lr"])
        if "reps_rel" in group:
            return float(group["eta"][0]) if "eta" in group else math.nan
        return lr

    def state_dict(self) -> dict[str, Any]:
        return {
            "optimizer": self.optimizer.state_dict(),
            "averager": None if self.averager is None else self.averager.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        if self.averager is not None:
            self.averager.load_state_dict(state["averager"])
