"""How fast whole training epochs are, beside what limits them and beside what one would write otherwise.

    python benchmarks/training.py [--device cuda] [--models 10-1 16-4] [--turns 2] [--images 4000]

For each model and precision, epochs of the experiment (augmentation, forward, backward, optimizer, logging) with
SGD, with ACME and with all four switches on take turns with (a) the limit: forward and backward alone, of the same
(compiled) model in the same precision, on one fixed batch, times the evaluations; and, on the CPU, with (b) the
usual: torchvision's PIL transforms in a DataLoader with two workers, float32, contiguous, torch's SGD.

Columns: `images_per_s`, the median over the turns; `of_limit`, the fraction of (a); `to_usual`, the ratio to (b) for
the optimizers of one evaluation a step; `first_epoch_s`, compilation included; `pays_after_epochs`, of 50 000
images, from which the compiled run is the faster one, compilation included; `recompiled`, graphs compiled after the
first epoch. `better` is the share of the steps of the last epoch whose look-ahead
was clearly better. On CUDA the compiled experiment and its limit are captured, too (icassp25/capture.py).
All four switches are measured compiled only, in bfloat16; a device that has none and would emulate it, in float32 alone.
The images are made up (`--dataset synthetic`'s): their number and size matter, not what they show.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from common import parser, save, show, timed
from torch import Tensor, nn

from acme import Acme
from icassp25 import data, tasks, train
from icassp25.config import RunConfig
from icassp25.models import build_model
from icassp25.vision import functional, torchvision

transforms = torchvision.transforms

OPTIMIZERS: dict[str, dict[str, Any]] = {  # from step sizes at which the loss falls, as it does in a training
    "SGD": {"lr": 1.0},
    "ACME": {"acme": True, "lr": 1.0},
    "all four": {"acme": True, "adam": True, "asam": True, "nesterov": True, "lr": 0.01},
}
IMAGES = {"10-1": 2000, "16-4": 400, "16-8": 30_000}
EPOCH = 50_000


class Epochs:
    """Epochs of the experiment, and (a) their limit."""

    def __init__(self, config: RunConfig, images: data.CifarData, device: torch.device) -> None:
        self.config, self.device = config, device
        self.experiment = train.Experiment(config, tasks.Images(config, images), device, Acme)
        self.evaluations = 1 + config.acme + config.asam
        self.number = 0
        self.batch = torch.randn(config.batch_size, 3, 32, 32, device=device).to(
            memory_format=torch.channels_last
        )
        self.targets = torch.randint(0, 100, (config.batch_size,), device=device)

    def epoch(self) -> float:
        self.number += 1
        tally = train.Tally(self.device)
        seconds = timed(lambda: self.experiment._train(self.number, tally), self.device)
        self.better = sum(tally.shares()[1:6:2])
        return seconds

    def limit(self) -> float:
        """As many forward and backward passes as an epoch takes."""
        self.experiment.model.train()
        evaluate = self.experiment.evaluation(self.batch, self.targets)
        count = self.config.steps_per_epoch * self.evaluations
        return timed(lambda: [evaluate() for _ in range(count)], self.device)


class Usual:
    """(b) An epoch as one would write it with torchvision's transforms, a DataLoader and torch's SGD."""

    def __init__(self, config: RunConfig) -> None:
        images = data.load(config, torch.device("cpu"))
        transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10),
                transforms.ToTensor(),
                transforms.Normalize(images.mean.tolist(), images.std.tolist()),
                transforms.RandomErasing(p=0.5, scale=(0.1, 0.25), ratio=(1.0, 1.0)),
            ]
        )

        def batch(examples: list[tuple[Any, Tensor]]) -> tasks.Examples:
            pictures, labels = zip(*examples, strict=True)
            return torch.stack([transform(picture) for picture in pictures]), torch.stack(labels)

        self.loader = torch.utils.data.DataLoader(
            list(zip(map(functional.to_pil_image, images.train[0]), images.train[1], strict=True)),
            batch_size=config.batch_size, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True,
            collate_fn=batch, multiprocessing_context="fork",
        )  # fmt: skip
        self.model = build_model(config)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.1)

    def epoch(self) -> float:
        self.model.train()
        begin, total = time.perf_counter(), 0.0
        for inputs, targets in self.loader:
            self.optimizer.zero_grad()
            loss = self.criterion(self.model(inputs), targets)
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        return time.perf_counter() - begin


def graphs() -> int:
    """How many graphs torch.compile has compiled."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def ways_of(device: torch.device) -> list[tuple[str, bool]]:
    """Precisions, and whether compiled."""
    if train.emulates_bfloat16(device):
        return [("float32", False), ("float32", True)]
    ways = [("bfloat16", False), ("bfloat16", True)]
    return ways if device.type == "cuda" else [("float32", False), *ways]


def measure(model: str, device: torch.device, turns: int, images: int | None) -> list[dict[str, Any]]:
    depth, width = map(int, model.split("-"))
    base = RunConfig(
        dataset="synthetic", train_images=images or IMAGES[model], depth=depth, width_alpha=width, epochs=10 * turns,
        device=device.type,
    )  # fmt: skip
    loaded, count = data.load(base, device), base.steps_per_epoch * base.batch_size
    usual = Usual(base) if device.type == "cpu" else None
    rows: list[dict[str, Any]] = []
    plain: dict[str, float] = {}  # seconds of an epoch that is not compiled
    usual_times: list[float] = []
    ways = ways_of(device)
    for precision, compiled in ways:
        torch.compiler.reset()
        for name, switches in OPTIMIZERS.items():
            if name == "all four" and (precision, compiled) != ways[-1]:
                continue  # minutes, for what the last of the ways tells as well
            epochs = Epochs(replace(base, precision=precision, compile=compiled, **switches), loaded, device)
            before, first, after = graphs(), epochs.epoch(), graphs()
            times, limits = [], []
            for _ in range(turns):
                limits.append(epochs.limit())
                times.append(epochs.epoch())
                if usual is not None and name == "SGD":
                    usual_times.append(usual.epoch())
            seconds = statistics.median(times)
            saved = (plain.get(name, seconds) - seconds) / count * EPOCH
            if not compiled:
                plain[name] = seconds
            rows.append(
                {
                    "model": f"WRN-{model}",
                    "precision": precision,
                    "compiled": compiled,
                    "optimizer": name,
                    "evaluations": epochs.evaluations,
                    "images_per_s": count / seconds,
                    "of_limit": statistics.median(limits) / seconds,
                    "to_usual": None,
                    "first_epoch_s": first,
                    "pays_after_epochs": (first - seconds) / saved if compiled and saved > 0 else None,
                    "recompiled": graphs() - after if compiled else None,
                    "better": epochs.better if switches.get("acme") else None,
                    "graphs": after - before if compiled else None,
                }
            )
            show(
                f"WRN-{model}, {precision}{', compiled' * compiled}, {name}",
                rows[-1:],
                hidden=list(rows[-1])[:4],
            )
    if usual is not None:
        rate = count / statistics.median(usual_times[1:])
        for row in rows:
            if row["evaluations"] == 1:
                row["to_usual"] = row["images_per_s"] / rate
        rows.append(
            {"model": f"WRN-{model}", "precision": "float32", "compiled": False, "optimizer": "the usual",
             "evaluations": 1, "images_per_s": rate, "to_usual": 1.0}
        )  # fmt: skip
    return rows


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--models", nargs="+", choices=IMAGES, help="10-1 and 16-4; on a GPU 16-8")
    arguments.add_argument("--turns", type=int, default=2, help="timed epochs of each (2)")
    arguments.add_argument("--images", type=int, help="images an epoch, a multiple of 100")
    options = arguments.parse_args()
    begin = time.perf_counter()
    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = device.type == "cuda"
    if device.type == "cpu":
        torch.set_num_threads(2)
    rows = []
    for model in options.models or (["16-8"] if device.type == "cuda" else ["10-1", "16-4"]):
        measured = measure(model, device, options.turns, options.images)
        show(f"WRN-{model}", measured)
        rows += measured
        save(f"training-{device.type}", rows, device, begin, turns=options.turns)


if __name__ == "__main__":
    main()
