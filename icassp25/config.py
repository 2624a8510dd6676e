"""One run's configuration: the same dataclass on the command line, in the JSON and in the checkpoint.

Nothing here imports torch, so tables and figures can read configurations on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args, get_type_hints

from icassp25.peers import ACME, OPTIMIZERS, PEERS, default_lr

CLASSES = 100
TRAIN_IMAGES = 50_000
DEFAULT_DEPTH = {"WRN": 16, "Pyramid": 110}
DEFAULT_WIDTH_ALPHA = {"WRN": 8, "Pyramid": 40}
MODELS = tuple(DEFAULT_DEPTH)
DATASETS = ("cifar100", "synthetic")
PRECISIONS = ("float32", "tf32", "bfloat16", "float64")


class UsageError(Exception):
    """A wrong option or an unusable input: one sentence for the user, exit code 2."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's numbers, with the published defaults.

    `depth` and `width_alpha` of None mean the model's default, `lr` of None the optimizer's. `output`, `data_dir`, `resume`, `threads`
    and `wandb` say where and how, not what; `same_run` leaves them out.
    """

    data_dir: str | None = None
    dataset: str = "cifar100"
    train_images: int | None = None
    validation: int = 0
    batch_size: int = 200
    model: str = "WRN"
    depth: int | None = None
    width_alpha: int | None = None
    bottleneck: bool = False
    dropout: float = 0.0
    epochs: int = 200
    lr: float | None = None
    label_smoothing: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    acme: bool = False
    adam: bool = False
    asam: bool = False
    nesterov: bool = False
    rho: float = 1.0
    eta: float = 0.0
    gain: float = 1.0
    adapt_every: int = 1
    search_steps: int = 0
    acme_script: str = "acme"
    optimizer: str = ACME
    seed: int = 42
    device: str = "auto"
    precision: str = "float32"
    compile: bool = False
    threads: int = 2
    output: str | None = None
    resume: bool = False
    wandb: str | None = None

    def __post_init__(self) -> None:
        if self.depth is None:
            object.__setattr__(self, "depth", DEFAULT_DEPTH.get(self.model))
        if self.width_alpha is None:
            object.__setattr__(self, "width_alpha", DEFAULT_WIDTH_ALPHA.get(self.model))
        if self.lr is None:
            object.__setattr__(self, "lr", default_lr(self.optimizer))

    @property
    def available_images(self) -> int:
        """Images to train on, before the last incomplete batch is dropped."""
        return self.train_images or TRAIN_IMAGES - self.validation

    @property
    def steps_per_epoch(self) -> int:
        return self.available_images // self.batch_size

    @property
    def evaluations_per_step(self) -> float:
        """Gradient evaluations that a step of the optimizer costs; with `adapt_every`, once the step size has settled."""
        if self.optimizer in PEERS:
            return PEERS[self.optimizer].evaluations
        return 1 + self.acme / self.adapt_every + self.asam

    @property
    def name(self) -> str:
        """A file name for the run, from the options that usually differ."""
        switches = [name for name in ("adam", "asam", "nesterov", "acme") if getattr(self, name)]
        base = "-".join(switches if self.adam else ["sgd", *switches])
        if self.gain != 1:
            base += f"-gain{self.gain:g}"
        if self.adapt_every != 1:
            base += f"-every{self.adapt_every}"
        if self.search_steps:
            base += f"-search{self.search_steps}"
        if self.optimizer != ACME:
            base = f"peer-{self.optimizer}"
        return f"{self.model}-{self.depth}-{self.width_alpha}.{base}.lr{self.lr:g}.seed{self.seed}"

    def check(self) -> None:
        """Raise `UsageError` at the first option that cannot work; touches neither data nor device."""

        def need(condition: bool, option: str, value: object, expected: str) -> None:
            if not condition:
                raise UsageError(f"--{option.replace('_', '-')} {value}: expected {expected}.")

        for name, choices in (
            ("model", MODELS),
            ("dataset", DATASETS),
            ("precision", PRECISIONS),
            ("optimizer", OPTIMIZERS),
        ):
            value = getattr(self, name)
            need(value in choices, name, value, "one of " + ", ".join(choices))
        for name in ("batch_size", "epochs", "threads", "width_alpha", "adapt_every"):
            need(getattr(self, name) >= 1, name, getattr(self, name), "a whole number of at least 1")
        need(self.search_steps >= 0, "search_steps", self.search_steps, "a whole number of at least 0")
        for name in ("lr", "weight_decay", "rho", "eta"):
            value = getattr(self, name)
            need(math.isfinite(value) and value >= 0, name, value, "a finite number of at least 0")
        for name in ("dropout", "momentum", "label_smoothing"):
            need(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number in [0, 1)")
        need(math.isfinite(self.gain) and self.gain > 0, "gain", self.gain, "a finite number above 0")
        for name, without in (("gain", 1.0), ("adapt_every", 1), ("search_steps", 0)):
            value = getattr(self, name)
            need(self.acme or value == without, name, value, f"{without:g} without --acme")
        need(0 <= self.seed < 2**63, "seed", self.seed, "a whole number of at least 0")

        if self.optimizer != ACME:
            self._check_peer(need)

        if self.model == "WRN":
            need(
                self.depth >= 4 and self.depth % 6 == 4,
                "depth",
                self.depth,
                "6n + 4 for a WRN (4, 10, 16, 22, 28, 40, …)",
            )
            need(not self.bottleneck, "bottleneck", "with --model WRN", "--model Pyramid")
        else:
            blocks = 9 if self.bottleneck else 6
            need(
                self.depth > blocks and self.depth % blocks == 2,
                "depth",
                self.depth,
                f"{blocks}n + 2 for a PyramidNet {'with' if self.bottleneck else 'without'} --bottleneck",
            )
            need(self.dropout == 0, "dropout", self.dropout, "0 with --model Pyramid (it has no dropout)")

        need(
            0 <= self.validation <= TRAIN_IMAGES - CLASSES and self.validation % CLASSES == 0,
            "validation",
            self.validation,
            f"a multiple of {CLASSES} (as many images of every class) below {TRAIN_IMAGES}",
        )
        room = TRAIN_IMAGES - self.validation
        if self.train_images is not None:
            need(
                0 < self.train_images <= room and self.train_images % CLASSES == 0,
                "train_images",
                self.train_images,
                f"a multiple of {CLASSES} (as many images of every class), at most {room}",
            )
        need(
            self.steps_per_epoch >= 1,
            "batch_size",
            self.batch_size,
            f"at most the {self.available_images} training images",
        )
        need(
            self.precision != "tf32" or self.device != "cpu",
            "precision",
            "tf32 with --device cpu",
            "a CUDA device (tf32 exists there only)",
        )

    def _check_peer(self, need: Callable[[bool, str, object, str], None]) -> None:
        """What Acme alone has is refused with another optimizer, not ignored."""
        beside = f"with --optimizer {self.optimizer}"
        for name in ("acme", "adam", "asam", "nesterov"):
            need(not getattr(self, name), name, beside, "--optimizer acme, whose switch it is")
        for field in fields(self):
            if field.name in ("rho", "eta", "acme_script"):
                value = getattr(self, field.name)
                need(
                    value == field.default,
                    field.name,
                    f"{value} {beside}",
                    "--optimizer acme, whose option it is",
                )
        need(self.lr > 0, "lr", f"{self.lr} {beside}", "a number above 0")
        need(
            self.momentum > 0 or not PEERS[self.optimizer].modes,
            "momentum",
            f"{self.momentum} {beside}",
            "a number above 0",
        )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> RunConfig:
        """The configuration in a JSON's `options`; unknown names and values of another type are a `ValueError`."""
        unknown = sorted(set(options) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown options: {', '.join(unknown)}")
        config = cls(**options)
        types = get_type_hints(cls)
        for name, value in config.to_dict().items():
            allowed = get_args(types[name]) or (types[name],)
            if type(value) not in allowed and not (type(value) is int and float in allowed):
                raise ValueError(f"{name} is {value!r}")
        return config

    def same_run(self, other: RunConfig) -> list[str]:
        """The names of the options in which the two differ and which change a run's numbers."""
        return [
            field.name
            for field in fields(self)
            if field.name not in _WHERE_AND_HOW and getattr(self, field.name) != getattr(other, field.name)
        ]


_WHERE_AND_HOW = frozenset({"data_dir", "output", "resume", "threads", "wandb"})
