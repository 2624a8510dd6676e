"""The optimizers people would pick instead of ACME: which package each is, and how its authors say to use it.

What `--lr` means for each, its schedule, its weight decay, what a step costs. Nothing is implemented here, and
nothing but the standard library imported: optimizers.py uses the packages. docs/peers.md says the same in prose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

ACME = "acme"
"""The `--optimizer` that is not a peer."""

ACME_LR = 0.1  # the published default

WARMUP = 0.05
"""Share of the steps over which the schedule-free optimizers warm up: their README asks for a warm-up, but names no
length."""

STATISTICS_BATCHES = 50
"""Training batches from which BatchNorm's statistics are taken at averaged weights, as schedulefree's README has it."""

LAZY = 4
"""GeN changes its rate in every so many steps, as its README has it."""

FORWARD = 1 / 3
"""What a forward pass alone costs, in evaluations of loss and gradient: a backward pass is two of them."""


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
    momentum: str = "momentum"  #: the argument that takes it
    cosine: bool = True  #: the experiment's schedule without ACME: cosine per epoch to a hundredth
    evaluations: float = 1  #: gradient evaluations a step
    modes: bool = False  #: `optimizer.train()` and `.eval()`, and BatchNorm's statistics anew for testing
    averager: str | None = None  #: a class of `module` that averages the weights to be tested
    default_without_norm: float | None = None  #: `default` for networks without BatchNorm, if another
    options: Mapping[str, Any] = field(default_factory=dict)


COUPLED = "coupled: added to the gradient"
DECOUPLED = "decoupled: times the learning rate"
DISTANCE = DECOUPLED + " and the estimated distance"
PROXIMAL = "decoupled: weights divided by 1 + learning rate times it"
NO_DECAY = "none: the package has none"
RATE, FIRST_ESTIMATE = "learning rate", "first estimate d0 of the distance to the solution"
RATE_WITHIN = "learning rate of the SGD within"
COSINE = "cosine per epoch to a hundredth"
BOUND = "upper bound of the step size"
CONSTANT = "no schedule; the step size follows the averaged loss, whose lower bound is taken as 0"
SCHEDULE_FREE = (
    f"no schedule, {100 * WARMUP:g} % of the steps warm-up, tested at its averaged weights, BatchNorm's statistics, "
    f"where there are any, taken anew from {STATISTICS_BATCHES} training batches"
)
FIRST_ONLY = f"{COSINE}; BatchNorm's statistics from the first evaluation of a step only"

PEERS: dict[str, Peer] = {
    "sgd": Peer(
        "SGD", "torch", "torch.optim", "SGD", 0.1, RATE,
        f"momentum (torch's, a sum of gradients where ACME has an average), {COSINE}", COUPLED,
        "torch.optim.SGD; the learning rate as in Zagoruyko and Komodakis, Wide Residual Networks",
    ),
    "adamw": Peer(
        "AdamW", "torch", "torch.optim", "AdamW", 0.001, RATE, COSINE, DECOUPLED,
        "torch.optim.AdamW and its default learning rate", family="adam",
    ),
    "schedulefree-sgd": Peer(
        "Schedule-free SGD", "schedulefree", "schedulefree", "SGDScheduleFree", 1.0, RATE, SCHEDULE_FREE, COUPLED,
        "https://github.com/facebookresearch/schedule_free (README), arXiv:2405.15682", cosine=False, modes=True,
    ),
    "schedulefree-adamw": Peer(
        "Schedule-free AdamW", "schedulefree", "schedulefree", "AdamWScheduleFree", 0.0025, RATE, SCHEDULE_FREE,
        DECOUPLED, "https://github.com/facebookresearch/schedule_free (README), arXiv:2405.15682",
        family="adam", cosine=False, modes=True,
    ),
    "prodigy": Peer(
        "Prodigy", "prodigyopt", "prodigyopt", "Prodigy", 1e-6, FIRST_ESTIMATE,
        f"learning rate 1, {COSINE}; no warm-up, so no safeguard for one", DISTANCE,
        "https://github.com/konstmish/prodigy (README), arXiv:2306.06101",
        argument="d0", family="adam", options={"lr": 1.0, "decouple": True},
    ),
    "dadapt-adam": Peer(
        "D-Adapt Adam", "dadaptation", "dadaptation", "DAdaptAdam", 1e-6, FIRST_ESTIMATE,
        f"learning rate 1, the schedule one would use without it: {COSINE}", DISTANCE,
        "https://github.com/facebookresearch/dadaptation (README), arXiv:2301.07733",
        argument="d0", family="adam", options={"lr": 1.0, "decouple": True},
    ),
    "dog": Peer(
        "DoG", "dog-optimizer", "dog", "DoG", 1e-4, "first movement relative to the weights (reps_rel)",
        "no schedule, no momentum, tested at the polynomial-decay average of the weights; reps_rel 1e-4 for networks "
        "with BatchNorm, 1e-6 for others", COUPLED, "https://github.com/formll/dog (README), arXiv:2302.12022",
        argument="reps_rel", family="plain", cosine=False, averager="PolynomialDecayAverager",
        default_without_norm=1e-6,
    ),
    "sam": Peer(
        "SAM", "pytorch-optimizer", "pytorch_optimizer", "SAM", 0.1, RATE_WITHIN,
        f"SGD with momentum within, rho 0.05, {FIRST_ONLY}", COUPLED,
        "pytorch-optimizer's SAM; Foret et al., arXiv:2010.01412; statistics: https://github.com/davda54/sam",
        evaluations=2, options={"rho": 0.05, "adaptive": False},
    ),
    "asam": Peer(
        "ASAM", "pytorch-optimizer", "pytorch_optimizer", "SAM", 0.1, RATE_WITHIN,
        f"SGD with momentum within, rho 1.0 as its paper has for CIFAR-100, {FIRST_ONLY}", COUPLED,
        "pytorch-optimizer's SAM(adaptive=True); Kwon et al., arXiv:2102.11600",
        evaluations=2, options={"rho": 1.0, "adaptive": True},
    ),
    "momo": Peer(
        "MoMo", "momo-opt", "momo", "Momo", 1.0, BOUND, CONSTANT, PROXIMAL,
        "https://github.com/fabian-sp/MoMo (README), arXiv:2305.07583", momentum="beta", cosine=False,
    ),
    "momo-adam": Peer(
        "MoMo-Adam", "momo-opt", "momo", "MomoAdam", 0.01, BOUND, CONSTANT, PROXIMAL,
        "https://github.com/fabian-sp/MoMo (README), arXiv:2305.07583", family="adam", cosine=False,
    ),
    "gen": Peer(
        "GeN-AdamW", "gen-optim", "GeN", "lr_parabola", 1e-4, "first learning rate",
        f"torch's AdamW, whose rate follows a parabola through the losses of three forward passes in every {LAZY}th step, on "
        "another batch, times a line from 1 to 0 over the epochs", DECOUPLED,
        "https://github.com/ShiyunXu/gen-optim (README, examples), arXiv:2407.02772", family="adam", cosine=False,
        evaluations=1 + 3 * FORWARD / LAZY,
    ),
    "salsa": Peer(
        "SaLSa", "salsa-optimizer", "salsa.SaLSA", "SaLSA", 1.0, "first step size",
        "no schedule; Adam's scaling; a search for a smoothed decrease of the loss, each try a forward pass", NO_DECAY,
        "https://github.com/TheMody/No-learning-rates-needed-Introducing-SALSA-Stable-Armijo-Line-Search-Adaptation (README), "
        "arXiv:2407.20650", argument="init_step_size", family="plain", cosine=False,
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
