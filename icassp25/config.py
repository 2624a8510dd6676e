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
DEFAULT_DEPTH = {"WRN": 16, "Pyramid": 110, "transformer": 2, "MLP": 2}
DEFAULT_WIDTH_ALPHA = {"WRN": 8, "Pyramid": 40, "transformer": 64, "MLP": 64}
MODELS = tuple(DEFAULT_DEPTH)
HEADS = 4  # of the transformer's attention, at every width
CONTEXT = 64  # characters that a text's window holds
PRECISIONS = ("float32", "tf32", "bfloat16", "float64")


class UsageError(Exception):
    """A wrong option or an unusable input: one sentence for the user, exit code 2."""


@dataclass(frozen=True)
class Dataset:
    """What is known of a data set before it is loaded."""

    title: str  #: in captions
    classes: int
    examples: int  #: to train on, with those that may be held out; the test set's are not among them
    models: tuple[str, ...]  #: that fit; the first is the default
    unit: str = "images"  #: what an example is
    predictions: int = 1  #: made, and counted in the errors, for each example
    balanced: bool = True  #: subsets hold as many examples of every class
    files: bool = True  #: `--data-dir` may say where it is
    spread: int | None = None  #: of the examples, those that hold every class alike; None: all

    @property
    def multiple(self) -> int:
        """Subsets hold a multiple of this number of examples."""
        return self.classes if self.balanced else 1

    @property
    def most_held_out(self) -> int:
        """As many of the examples can be held out that one of every class is left."""
        return (self.spread or self.examples) - self.multiple

    @property
    def chance(self) -> float:
        """The error of guessing, a fraction, where all classes are as frequent.

        A run whose classes are not (text) says in its JSON what guessing comes to.
        """
        return 1 - 1 / self.classes


DATASETS = {
    "cifar100": Dataset("CIFAR-100", CLASSES, TRAIN_IMAGES, ("WRN", "Pyramid")),
    "synthetic": Dataset("synthetic data (not CIFAR-100)", CLASSES, TRAIN_IMAGES, ("WRN", "Pyramid")),
    "text": Dataset(
        "next character of torch.nn's documentation", 97, 5_625, ("transformer",),
        unit=f"windows of {CONTEXT} characters", predictions=CONTEXT, balanced=False, files=False,
    ),
    "digits": Dataset("scikit-learn's digits (8×8)", 10, 1_197, ("MLP",), files=False, spread=1_140),
}  # fmt: skip
"""What `--dataset` takes; icassp25/tasks.py loads them, docs/tasks.md describes the last two."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's numbers, with the published defaults.

    `model` of None means the data set's default, `depth` and `width_alpha` of None the model's, `lr` of None the
    optimizer's. `output`, `data_dir`, `resume`, `threads` and `wandb` say where and how, not what; `same_run` leaves
    them out. Images (`train_images`) are windows of characters where the data set is a text.
    """

    data_dir: str | None = None
    dataset: str = "cifar100"
    train_images: int | None = None
    limit_train_batches: float = 1.0
    validation: int = 0
    batch_size: int = 200
    model: str | None = None
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
    adapt_steps: int | None = None
    search_steps: int = 0
    unbiased_squares: bool = False
    no_annealing: bool = False
    anneal_over: float = 1.0
    average_weights: bool = False
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
    adapt_every: int = 1  #: of runs made before there was `adapt_steps`; cannot be trained any more

    def __post_init__(self) -> None:
        if self.model is None:
            object.__setattr__(self, "model", DATASETS.get(self.dataset, DATASETS["cifar100"]).models[0])
        if self.depth is None:
            object.__setattr__(self, "depth", DEFAULT_DEPTH.get(self.model))
        if self.width_alpha is None:
            object.__setattr__(self, "width_alpha", DEFAULT_WIDTH_ALPHA.get(self.model))
        if self.lr is None:
            object.__setattr__(self, "lr", default_lr(self.optimizer, self.model))

    @property
    def about(self) -> Dataset:
        """What is known of the data set."""
        return DATASETS[self.dataset]

    @property
    def available_images(self) -> int:
        """Images to train on, before the last incomplete batch is dropped."""
        return self.train_images or self.about.examples - self.validation

    @property
    def batches(self) -> int:
        """Whole batches that the images to train on give."""
        return self.available_images // self.batch_size

    @property
    def steps_per_epoch(self) -> int:
        return int(self.limit_train_batches * self.batches + 1e-6)  # 0.29 of 100 are 29

    @property
    def evaluations_per_step(self) -> float:
        """Gradient evaluations that a step of the optimizer costs, on average over the training."""
        if self.optimizer in PEERS:
            return PEERS[self.optimizer].evaluations
        steps = self.epochs * self.steps_per_epoch
        looks = min(self.adapt_steps or steps, steps) / steps / self.adapt_every
        return 1 + self.acme * looks + self.asam

    @property
    def name(self) -> str:
        """A file name for the run, from the options that usually differ."""
        switches = [name for name in ("adam", "asam", "nesterov", "acme") if getattr(self, name)]
        base = "-".join(switches if self.adam else ["sgd", *switches])
        if self.gain != 1:
            base += f"-gain{self.gain:g}"
        if self.adapt_every != 1:
            base += f"-every{self.adapt_every}"
        if self.adapt_steps is not None:
            base += f"-kept{self.adapt_steps}"
        if self.search_steps:
            base += f"-search{self.search_steps}"
        if self.unbiased_squares:
            base += "-unbiased"
        if self.optimizer != ACME:
            base = f"peer-{self.optimizer}"
        if self.no_annealing:
            base += "-constant"
        if self.anneal_over != 1:
            base += f"-over{self.anneal_over:g}"
        if self.average_weights:
            base += "-averaged"
        if self.limit_train_batches != 1:
            base += f"-limit{self.limit_train_batches:g}"
        return f"{self.model}-{self.depth}-{self.width_alpha}.{base}.lr{self.lr:g}.seed{self.seed}"

    def check(self) -> None:
        """Raise `UsageError` at the first option that cannot work; touches neither data nor device."""

        def need(condition: bool, option: str, value: object, expected: str) -> None:
            if not condition:
                raise UsageError(f"--{option.replace('_', '-')} {value}: expected {expected}.")

        for name, choices in (
            ("dataset", DATASETS),
            ("model", MODELS),
            ("precision", PRECISIONS),
            ("optimizer", OPTIMIZERS),
        ):
            value = getattr(self, name)
            need(value in choices, name, value, "one of " + ", ".join(choices))
        about, with_data = self.about, f"with --dataset {self.dataset}"
        need(
            self.model in about.models,
            "model",
            f"{self.model} {with_data}",
            " or ".join(f"--model {name}" for name in about.models),
        )
        need(
            about.files or self.data_dir is None,
            "data_dir",
            f"{self.data_dir} {with_data}",
            "nothing (a package that is installed holds the data)",
        )
        for name in ("batch_size", "epochs", "threads", "width_alpha", "adapt_every"):
            need(getattr(self, name) >= 1, name, getattr(self, name), "a whole number of at least 1")
        steps = self.adapt_steps
        need(steps is None or steps >= 1, "adapt_steps", steps, "a whole number of at least 1")
        need(self.search_steps >= 0, "search_steps", self.search_steps, "a whole number of at least 0")
        for name in ("lr", "weight_decay", "rho", "eta"):
            value = getattr(self, name)
            need(math.isfinite(value) and value >= 0, name, value, "a finite number of at least 0")
        for name in ("dropout", "momentum", "label_smoothing"):
            need(0 <= getattr(self, name) < 1, name, getattr(self, name), "a number in [0, 1)")
        need(math.isfinite(self.gain) and self.gain > 0, "gain", self.gain, "a finite number above 0")
        for name, without in (("gain", 1.0), ("adapt_steps", None), ("adapt_every", 1), ("search_steps", 0)):
            value = getattr(self, name)
            need(self.acme or value == without, name, value, f"{without or 'nothing'} without --acme")
        need(self.adam or not self.unbiased_squares, "unbiased_squares", "without --adam", "--adam as well")
        need(
            math.isfinite(self.anneal_over) and self.anneal_over >= 1,
            "anneal_over",
            self.anneal_over,
            "a finite number of at least 1",
        )
        need(
            self.anneal_over == 1 or not self.no_annealing,
            "anneal_over",
            f"{self.anneal_over:g} with --no-annealing",
            "one of the two",
        )
        need(0 <= self.seed < 2**63, "seed", self.seed, "a whole number of at least 0")

        if self.optimizer != ACME:
            self._check_peer(need)

        self._check_model(need)

        every, most = about.multiple, about.most_held_out
        whole = "a whole number"
        if every > 1:
            whole = f"a multiple of {every} (as many {about.unit} of every class)"
        need(
            0 <= self.validation <= most and self.validation % every == 0,
            "validation",
            self.validation,
            f"{whole} from 0 to {most}",
        )
        room = about.examples - self.validation
        if self.train_images is not None:
            need(
                0 < self.train_images <= room and self.train_images % every == 0,
                "train_images",
                self.train_images,
                f"{whole} from {every} to {room}",
            )
        need(
            self.batches >= 1,
            "batch_size",
            self.batch_size,
            f"at most the {self.available_images} training {about.unit}",
        )
        need(
            0 < self.limit_train_batches <= 1 and self.steps_per_epoch >= 1,
            "limit_train_batches",
            self.limit_train_batches,
            f"a number above 0 and at most 1 that leaves one of the {self.batches} batches of an epoch",
        )
        need(
            self.precision != "tf32" or self.device != "cpu",
            "precision",
            "tf32 with --device cpu",
            "a CUDA device (tf32 exists there only)",
        )

    def _check_model(self, need: Callable[[bool, str, object, str], None]) -> None:
        """Depth and width that the model can have, and none of the options that it would ignore."""
        with_model = f"with --model {self.model}"
        need(self.bottleneck is False or self.model == "Pyramid", "bottleneck", with_model, "--model Pyramid")
        has_dropout = self.model in ("WRN", "transformer")
        need(self.dropout == 0 or has_dropout, "dropout", self.dropout, f"0 {with_model} (it has no dropout)")
        if self.model == "WRN":
            need(
                self.depth >= 4 and self.depth % 6 == 4,
                "depth",
                self.depth,
                "6n + 4 for a WRN (4, 10, 16, 22, 28, 40, …)",
            )
        elif self.model == "Pyramid":
            blocks = 9 if self.bottleneck else 6
            need(
                self.depth > blocks and self.depth % blocks == 2,
                "depth",
                self.depth,
                f"{blocks}n + 2 for a PyramidNet {'with' if self.bottleneck else 'without'} --bottleneck",
            )
        else:
            need(self.depth >= 1, "depth", self.depth, "a whole number of at least 1")
            need(
                self.model != "transformer" or self.width_alpha % HEADS == 0,
                "width_alpha",
                self.width_alpha,
                f"a multiple of {HEADS}, the heads of the transformer",
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
        peer = PEERS[self.optimizer]
        for name, without in (("no_annealing", False), ("anneal_over", 1)):
            need(peer.cosine or getattr(self, name) == without, name, beside, "nothing (it has no schedule)")
        need(
            not (self.average_weights and (peer.modes or peer.averager)),
            "average_weights",
            beside,
            "nothing (it averages them itself)",
        )
        need(self.lr > 0, "lr", f"{self.lr} {beside}", "a number above 0")
        need(
            self.momentum > 0 or not peer.modes,
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
            if field.name not in WHERE_AND_HOW and getattr(self, field.name) != getattr(other, field.name)
        ]


WHERE_AND_HOW = frozenset({"data_dir", "output", "resume", "threads", "wandb"})
"""Options that do not change a run's numbers."""
