"""The optimizers people would pick instead of ACME: which package each is, and how its authors say to use it.

What `--lr` means for each, its schedule, its weight decay, what a step costs. Nothing is implemented here, and
nothing but the standard library imported: optimizers.py uses the packages. docs/peers.md says the same in prose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ACME = "acme"  # the `--optimizer` that is not a peer
ACME_LR = 0.1  # the published default
WARMUP = 0.05  # share of the steps in which schedule-free optimizers warm up: their README names no length
STATISTICS_BATCHES = 50  # of BatchNorm at averaged weights, as schedulefree's README has it
LAZY = 4  # GeN changes its rate in every so many steps, as its README has it
FORWARD = 1 / 3  # what a forward pass alone costs, in evaluations: a backward pass is two of them


@dataclass(frozen=True)
class Peer:
    """One optimizer and its use."""

    package: str  #: what pip installs
    module: str
    class_name: str
    default: float  #: of `--lr`
    scale: str  #: what `--lr` is, in words
    how: str
    decay: str  #: what `--weight-decay` does, in words
    argument: str = "lr"  #: of the constructor, which takes `--lr`
    family: str = "sgd"  #: sgd: momentum; adam: betas and eps
    plain: bool = False  #: takes none of these
    momentum: str = "momentum"  #: the argument that takes it
    cosine: bool = True  #: the experiment's schedule without ACME: cosine per epoch to a hundredth
    evaluations: float = 1  #: gradient evaluations a step
    modes: bool = False  #: `optimizer.train()` and `.eval()`, and BatchNorm's statistics anew for testing
    averages: bool = False  #: tested at averaged weights, as with `--average-weights`
    default_without_norm: float | None = None  #: `default` for networks without BatchNorm, if another
    options: Mapping[str, Any] = field(default_factory=dict)  #: further arguments


COUPLED = "coupled: added to the gradient"
DECOUPLED = "decoupled: times the learning rate"
DISTANCE = DECOUPLED + " and the estimated distance"
PROXIMAL = "decoupled: weights divided by 1 + learning rate times it"
NO_DECAY = "none: the package has none"
RATE, FIRST_ESTIMATE = "learning rate", "first estimate d0 of the distance to the solution"
RATE_WITHIN = "learning rate of the SGD within"
COSINE = "cosine per epoch to a hundredth"
BOUND = "upper bound of the step size"
POLYAK = "no schedule; the step size follows the averaged loss, whose lower bound is taken as 0"
SCHEDULE_FREE = (
    f"no schedule, {100 * WARMUP:g} % of the steps warm-up, tested at its averaged weights, BatchNorm's statistics, "
    f"where there are any, taken anew from {STATISTICS_BATCHES} training batches"
)
FIRST_ONLY = f"{COSINE}; BatchNorm's statistics from the first evaluation of a step only"

PEERS: dict[str, Peer] = {
    "sgd": Peer(
        "torch", "torch.optim", "SGD", 0.1, RATE,
        f"momentum (torch's, a sum of gradients where ACME has an average), {COSINE}", COUPLED,
    ),
    "adamw": Peer("torch", "torch.optim", "AdamW", 0.001, RATE, COSINE, DECOUPLED, family="adam"),
    "schedulefree-sgd": Peer(
        "schedulefree", "schedulefree", "SGDScheduleFree", 1.0, RATE, SCHEDULE_FREE, COUPLED,
        cosine=False, modes=True,
    ),
    "schedulefree-adamw": Peer(
        "schedulefree", "schedulefree", "AdamWScheduleFree", 0.0025, RATE, SCHEDULE_FREE, DECOUPLED,
        family="adam", cosine=False, modes=True,
    ),
    "prodigy": Peer(
        "prodigyopt", "prodigyopt", "Prodigy", 1e-6, FIRST_ESTIMATE,
        f"learning rate 1, {COSINE}; no warm-up, so no safeguard for one", DISTANCE,
        argument="d0", family="adam", options={"lr": 1.0, "decouple": True},
    ),
    "dadapt-adam": Peer(
        "dadaptation", "dadaptation", "DAdaptAdam", 1e-6, FIRST_ESTIMATE,
        f"learning rate 1, the schedule one would use without it: {COSINE}", DISTANCE,
        argument="d0", family="adam", options={"lr": 1.0, "decouple": True},
    ),
    "dog": Peer(
        "dog-optimizer", "dog", "DoG", 1e-4, "first movement relative to the weights (reps_rel)",
        "no schedule, no momentum, tested at the polynomial-decay average of the weights; reps_rel 1e-4 for networks "
        "with BatchNorm, 1e-6 for others", COUPLED, argument="reps_rel", plain=True, cosine=False,
        averages=True, default_without_norm=1e-6,
    ),
    "sam": Peer(
        "pytorch-optimizer", "pytorch_optimizer", "SAM", 0.1, RATE_WITHIN,
        f"SGD with momentum within, rho 0.05, {FIRST_ONLY}", COUPLED,
        evaluations=2, options={"rho": 0.05, "adaptive": False},
    ),
    "asam": Peer(
        "pytorch-optimizer", "pytorch_optimizer", "SAM", 0.1, RATE_WITHIN,
        f"SGD with momentum within, rho 1.0 as its paper has for CIFAR-100, {FIRST_ONLY}", COUPLED,
        evaluations=2, options={"rho": 1.0, "adaptive": True},
    ),
    "momo": Peer("momo-opt", "momo", "Momo", 1.0, BOUND, POLYAK, PROXIMAL, momentum="beta", cosine=False),
    "momo-adam": Peer("momo-opt", "momo", "MomoAdam", 0.01, BOUND, POLYAK, PROXIMAL, family="adam", cosine=False),
    "gen": Peer(
        "gen-optim", "GeN", "lr_parabola", 1e-4, "first learning rate",
        f"torch's AdamW; in every {LAZY}th step its rate follows a parabola through three losses of another batch, times a "
        "line from 1 to 0", DECOUPLED, family="adam", cosine=False, evaluations=1 + 3 * FORWARD / LAZY,
    ),
    "salsa": Peer(
        "salsa-optimizer", "salsa.SaLSA", "SaLSA", 1.0, "first step size",
        "no schedule, Adam's scaling, a search for a decrease of the averaged loss by forward passes", NO_DECAY,
        argument="init_step_size", family="adam", plain=True, cosine=False,
    ),
}  # fmt: skip

OPTIMIZERS = (ACME, *PEERS)  # what `--optimizer` takes
MODELS_WITH_NORM = ("WRN", "Pyramid")


def default_lr(optimizer: str, model: str) -> float:
    """The value of `--lr` where none is given; Acme's for a name that is none (which `check` refuses)."""
    if optimizer not in PEERS:
        return ACME_LR
    peer = PEERS[optimizer]
    return peer.default if model in MODELS_WITH_NORM else peer.default_without_norm or peer.default
