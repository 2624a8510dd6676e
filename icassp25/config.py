"""One run's configuration: the same dataclass on the command line, in the JSON and in the checkpoint.

An option has its home here: its field holds default, help, choices and bounds. The parser is made from it, and what
is Acme's own goes to Acme as it is, which checks it. Nothing here imports torch, so tables and figures can read
configurations on any machine.
"""

from __future__ import annotations

import math
from argparse import ArgumentParser
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args, get_type_hints

from icassp25.peers import ACME, NO_DECAY, OPTIMIZERS, PEERS, default_lr

CLASSES = 100
TRAIN_IMAGES = 50_000
MODELS = {"WRN": (16, 8), "Pyramid": (110, 40), "transformer": (2, 64), "MLP": (2, 64)}
"""What `--model` takes, and the defaults of `--depth` and `--width-alpha`."""
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
    def chance(self) -> float:
        """The error of guessing where all classes are as frequent; else (text) a run's JSON says it."""
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

FROM_0, FROM_1 = (0, math.inf), (1, math.inf)


def option(default: Any, help: str, **more: Any) -> Any:
    """A field that is an option of the command line.

    `choices` are the values that it can have, or `bounds` are (low, high) with low ≤ value < high. `acme` marks
    the arguments of Acme, which checks them itself. `metavar` and `also`, second names, are the parser's.
    """
    return field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run's numbers, with the published defaults.

    `model` of None means the data set's default, `depth` and `width_alpha` of None the model's, `lr` of None the
    optimizer's. Images (`train_images`) are windows of characters where the data set is a text.
    """

    data_dir: str | None = option(
        None,
        "folder that holds cifar-100-python/ (default: $CIFAR100_ROOT, else ./data, downloaded if missing)",
        metavar="DIR",
        also=("--data",),
    )
    dataset: str = option(
        "cifar100",
        "synthetic: a built-in set of 100 classes, never chosen silently; text, digits: see docs/tasks.md",
        choices=tuple(DATASETS),
    )
    train_images: int | None = option(None, "a stratified subset of N images; of a text, its first N windows")
    limit_train_batches: float = option(1.0, "end each epoch after this share of its batches, drawn anew")
    validation: int = option(0, "hold N training images out, for choosing anything")
    batch_size: int = option(200, "images a step; the last incomplete batch is dropped", bounds=FROM_1)
    model: str | None = option(None, "network (default: the data set's)", choices=tuple(MODELS))
    depth: int | None = option(None, "layers (default: 16 for WRN, 110 for Pyramid, 2 for the others)")
    width_alpha: int | None = option(
        None, "WRN's widening, PyramidNet's alpha, or the width (default: 8, 40, 64)", bounds=FROM_1
    )
    bottleneck: bool = option(False, "PyramidNet with bottleneck blocks")
    dropout: float = option(0.0, "probability inside WRN's blocks or the transformer", bounds=(0, 1))
    epochs: int = option(200, "passes over the training images", bounds=FROM_1)
    lr: float | None = option(
        None,
        "initial step size, or what scales the optimizer (default: 0.1, or the optimizer's own)",
        bounds=FROM_0,
    )
    find_lr: bool = option(
        False, "without --acme, begin with acme.find_lr, whose rate takes the place of --lr"
    )
    label_smoothing: float = option(0.1, "in the training and the test loss", bounds=(0, 1))
    momentum: float = option(0.9, "beta1; beta2 is always 0.999", bounds=(0, 1))
    weight_decay: float = option(1e-4, "decoupled weight decay, or the optimizer's own kind", bounds=FROM_0)
    acme: bool = option(False, "adapt the step size (an evaluation more, no scheduler)", acme=True)
    adam: bool = option(False, "Adam's element-wise scaling, with bias correction", acme=True)
    asam: bool = option(False, "adaptive sharpness-aware minimisation (an evaluation more)", acme=True)
    nesterov: bool = option(False, "Nesterov momentum", acme=True)
    rho: float = option(1.0, "radius of ASAM's neighbourhood", acme=True)
    eta: float = option(0.0, "added to the weights' magnitudes in ASAM", acme=True)
    gain: float = option(1.0, "factor on every step with --acme; 1 is the published algorithm", acme=True)
    adapt_steps: int | None = option(
        None, "with --acme, look ahead in the first N steps only (default: in all, as published)", acme=True
    )
    search_steps: int = option(
        0, "with --acme, at most N first steps only look for the first step size; published: 0", acme=True
    )
    unbiased_squares: bool = option(
        False, "with --adam, begin the squared average where bias correction expects it", acme=True
    )
    no_annealing: bool = option(False, "steps are not annealed: neither by ACME nor by the cosine")
    anneal_over: float = option(1.0, "annealing takes X times as long as the training", bounds=FROM_1)
    average_weights: bool = option(
        False, "test at the polynomial-decay average of the weights passed through"
    )
    acme_script: str = option("acme", "package the optimizer is imported from")
    optimizer: str = option(
        ACME, "acme, with the switches above, or a peer as its authors use it", choices=OPTIMIZERS
    )
    seed: int = option(42, "of weights, sampling, augmentation and dropout", bounds=(0, 2**63))
    device: str = option("auto", "auto, cpu, cuda, cuda:1, …")
    precision: str = option(
        "float32", "tf32 (GPU), bfloat16 autocast, or float64 for exact comparison", choices=PRECISIONS
    )
    compile: bool = option(False, "compile the network and the arithmetic of Acme with torch.compile")
    threads: int = option(2, "CPU threads for data and, on the CPU, training", bounds=FROM_1)
    output: str | None = option(
        None, "the run's CSV; its JSON stands beside it (default: results/runs/…)", metavar="FILE"
    )
    resume: bool = option(False, "go on after an interruption; do nothing if the run is finished")
    wandb: str | None = option(None, "also log to Weights & Biases under this run name")
    # Of runs made before there was `adapt_steps`: no option any more, and nothing that Acme takes.
    adapt_every: int = field(default=1, metadata={"bounds": FROM_1, "acme": True})

    def __post_init__(self) -> None:
        model = self.model or DATASETS.get(self.dataset, DATASETS["cifar100"]).models[0]
        depth, width_alpha = MODELS.get(model, (None, None))
        lr = default_lr(self.optimizer, model)
        for name, default in (("model", model), ("depth", depth), ("width_alpha", width_alpha), ("lr", lr)):
            if getattr(self, name) is None:
                object.__setattr__(self, name, default)

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
    def annealing_steps(self) -> int | None:
        """Steps over which steps are annealed; None where they are not."""
        return None if self.no_annealing else round(self.anneal_over * self.epochs * self.steps_per_epoch)

    @property
    def acme_options(self) -> dict[str, Any]:
        """Acme's own arguments, by name."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.metadata.get("acme")}

    @property
    def name(self) -> str:
        """A file name for the run: its model, and the options that are not the defaults."""
        default = RunConfig(dataset=self.dataset, model=self.model, lr=self.lr, seed=self.seed).to_dict()
        given = {k: v for k, v in self.to_dict().items() if k not in WHERE_AND_HOW and v != default[k]}
        words = [name if value is True else f"{name}-{value}" for name, value in given.items()]
        model = f"{self.model}-{self.depth}-{self.width_alpha}"
        return ".".join([model, *words, f"lr{self.lr:g}", f"seed{self.seed}"]).replace(":", "-")

    def check(self) -> None:
        """Raise `UsageError` at the first option that cannot work, but for what Acme checks."""
        for each in fields(self):
            value, choices = getattr(self, each.name), each.metadata.get("choices")
            low, high = each.metadata.get("bounds", (None, None))
            if choices is not None:
                self._need(value in choices, each.name, f"one of {', '.join(choices)}")
            elif low is not None:
                kind = "a whole number" if isinstance(value, int) else "a finite number"
                expected = f"{kind} of at least {low}" if high == math.inf else f"a number in [{low}, {high})"
                self._need(low <= value < high, each.name, expected)
        self._check_data()
        self._check_model()
        if self.optimizer != ACME:
            self._check_peer()
        fine = not self.find_lr or (self.optimizer == ACME and not self.acme)
        self._need(fine, "find_lr", "SGD or Adam without --acme")
        one_of_two = self.anneal_over == 1 or not self.no_annealing
        self._need(one_of_two, "anneal_over", "one of the two", "with --no-annealing")
        there = self.precision != "tf32" or self.device != "cpu"
        self._need(there, "precision", "a CUDA device (tf32 exists there only)", "with --device cpu")

    def _need(self, fine: bool, name: str, expected: str, beside: str = "") -> None:
        if not fine:
            value = getattr(self, name)
            words = (f"--{name.replace('_', '-')}", "" if value is True else str(value), beside)
            raise UsageError(f"{' '.join(word for word in words if word)}: expected {expected}.")

    def _check_data(self) -> None:
        about, with_data = self.about, f"with --dataset {self.dataset}"
        models = " or ".join(f"--model {name}" for name in about.models)
        self._need(self.model in about.models, "model", models, with_data)
        nothing = "nothing (a package that is installed holds the data)"
        self._need(about.files or self.data_dir is None, "data_dir", nothing, with_data)
        every, whole = 1, "a whole number"
        if about.balanced:
            every = about.classes
            whole = f"a multiple of {every} (as many {about.unit} of every class)"
        for name, least, most in (
            ("validation", 0, (about.spread or about.examples) - every),  # one of every class is left
            ("train_images", every, about.examples - self.validation),
        ):
            value = getattr(self, name)
            fine = value is None or (least <= value <= most and value % every == 0)
            self._need(fine, name, f"{whole} from {least} to {most}")
        expected = f"at most the {self.available_images} training {about.unit}"
        self._need(self.batches >= 1, "batch_size", expected)
        fine = 0 < self.limit_train_batches <= 1 and self.steps_per_epoch >= 1
        expected = f"a number above 0 and at most 1 that leaves one of the {self.batches} batches of an epoch"
        self._need(fine, "limit_train_batches", expected)

    def _check_model(self) -> None:
        """Depth and width that the model can have, and none of the options that it would ignore."""
        with_model = f"with --model {self.model}"
        self._need(
            not self.bottleneck or self.model == "Pyramid", "bottleneck", "--model Pyramid", with_model
        )
        has_dropout = self.model in ("WRN", "transformer")
        self._need(self.dropout == 0 or has_dropout, "dropout", f"0 {with_model} (it has no dropout)")
        least, every, rest, expected = 1, 1, 0, "a whole number of at least 1"
        if self.model == "WRN":
            least, every, rest, expected = 4, 6, 4, "6n + 4 for a WRN (4, 10, 16, 22, 28, 40, …)"
        elif self.model == "Pyramid":
            every, how = (9, "with") if self.bottleneck else (6, "without")
            least, rest = every + 2, 2
            expected = f"{every}n + 2 for a PyramidNet {how} --bottleneck"
        self._need(self.depth >= least and self.depth % every == rest, "depth", expected)
        divides = self.model != "transformer" or self.width_alpha % HEADS == 0
        self._need(divides, "width_alpha", f"a multiple of {HEADS}, the heads of the transformer")

    def _check_peer(self) -> None:
        """What Acme alone has is refused with another optimizer, not ignored."""
        beside, peer = f"with --optimizer {self.optimizer}", PEERS[self.optimizer]
        for each in fields(self):
            fine = getattr(self, each.name) == each.default
            if each.metadata.get("acme") or each.name == "acme_script":
                self._need(fine, each.name, "--optimizer acme, whose option it is", beside)
            if each.name in ("no_annealing", "anneal_over"):
                self._need(fine or peer.cosine, each.name, "nothing (it has no schedule)", beside)
            has_none = {"momentum": peer.plain, "weight_decay": peer.decay == NO_DECAY}
            self._need(fine or not has_none.get(each.name), each.name, "nothing (it has none)", beside)
        fine = not (self.average_weights and (peer.modes or peer.averages))
        self._need(fine, "average_weights", "nothing (it averages them itself)", beside)
        fine = not (self.compile and self.optimizer == "salsa")
        self._need(fine, "compile", "nothing (its search takes losses without gradients)", beside)
        self._need(self.lr > 0, "lr", "a number above 0", beside)
        self._need(self.momentum > 0 or not peer.modes, "momentum", "a number above 0", beside)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def types(cls) -> dict[str, tuple[type, ...]]:
        """The types that each option's value can have."""
        return {name: get_args(hint) or (hint,) for name, hint in get_type_hints(cls).items()}

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> RunConfig:
        """The configuration in a JSON's `options`; unknown names and values of another type are a `ValueError`."""
        types = cls.types()
        unknown = sorted(set(options) - set(types))
        if unknown:
            raise ValueError(f"unknown options: {', '.join(unknown)}")
        config = cls(**options)
        for name, value in config.to_dict().items():
            if type(value) not in types[name] and not (type(value) is int and float in types[name]):
                raise ValueError(f"{name} is {value!r}")
        return config

    def same_run(self, other: RunConfig) -> list[str]:
        """The names of the options in which the two differ and which change a run's numbers."""
        names = (each.name for each in fields(self) if each.name not in WHERE_AND_HOW)
        return [name for name in names if getattr(self, name) != getattr(other, name)]


WHERE_AND_HOW = frozenset({"data_dir", "output", "resume", "threads", "wandb"})
"""Options that do not change a run's numbers."""


def add_options(parser: ArgumentParser) -> None:
    """Those of the training script: what a parser makes of a command line is a configuration's fields."""
    types, metavars = RunConfig.types(), {int: "N", float: "X", str: "NAME"}
    for option in (each for each in fields(RunConfig) if "help" in each.metadata):
        about, kind = option.metadata, types[option.name][0]
        names = [f"--{option.name.replace('_', '-')}", *about.get("also", ())]
        if kind is bool:
            parser.add_argument(*names, action="store_true", help=about["help"])
            continue
        parser.add_argument(
            *names,
            type=kind,
            default=option.default,
            choices=about.get("choices"),
            metavar=about.get("metavar") or (None if "choices" in about else metavars[kind]),
            help=about["help"] + ("" if option.default is None else " (default: %(default)s)"),
        )
