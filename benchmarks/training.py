"""How fast whole training epochs are, beside what limits them and beside what one would write otherwise.

    python benchmarks/training.py [--device cuda] [--models 10-1 16-4] [--turns 2] [--images 4000]

For each model and precision, epochs of the experiment (augmentation, forward, backward, optimizer, logging) with
SGD, with ACME and with all four switches on take turns with (a) the limit: forward and backward alone, of the same
(compiled) model in the same precision, on one fixed batch, times the evaluations; and, on the CPU, with (b) the
usual: torchvision's PIL transforms in a DataLoader with two workers, float32, contiguous, torch's SGD.

Columns: `images_per_s`, the median over the turns; `of_limit`, the fraction of (a); `to_usual`, the ratio to (b) for
the optimizers of one evaluation a step; `first_epoch_s`, compilation included; `pays_after_epochs`, of 50 000
images, from which the compiled run is the faster one, compilation included; `recompiled`, graphs compiled after the
first epoch. On CUDA also `busy`, the fraction of the time in which a kernel runs; `convolutions`, the fraction in
which one of convolutions or matrix products does; and `matrix`, the arithmetic of these as a fraction of the rate of
a large bfloat16 matrix product on the same device. `better` is the share of the steps of the last epoch whose look-ahead
was clearly better. On CUDA the compiled experiment and its limit are captured, too (icassp25/capture.py).
All four switches are measured compiled only, in bfloat16; a device that has none and would emulate it, in float32 alone.
The images are made up (`--dataset synthetic`'s): their number and size matter, not what they show.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from dataclasses import replace
from typing import Any

import torch
from common import save, show
from torch import nn

from acme import Acme
from icassp25 import data, tasks, train
from icassp25.config import RunConfig

OPTIMIZERS: dict[str, dict[str, Any]] = {  # from step sizes at which the loss falls, as it does in a training
    "SGD": {"lr": 1.0},
    "ACME": {"acme": True, "lr": 1.0},
    "all four": {"acme": True, "adam": True, "asam": True, "nesterov": True, "lr": 0.01},
}
IMAGES = {"10-1": 2000, "16-4": 400, "16-8": 30_000}
PROFILED = 1 / 3  # of an epoch, for `busy`: it takes long to read a profile
EPOCH = 50_000
PRODUCTS = re.compile("xmma|convolve|cutlass|gemm|nvjet|cudnn")  # names of kernels


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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
        sync(self.device)
        begin = time.perf_counter()
        self.number += 1
        tally = train.Tally(self.device)
        self.experiment._train(self.number, tally)
        tally.loss.item()
        shares = tally.shares()
        self.better = shares[1] + shares[3] + shares[5]
        return time.perf_counter() - begin

    def limit(self) -> float:
        """As many forward and backward passes as an epoch takes."""
        self.experiment.model.train()
        evaluate = self.experiment.evaluation(self.batch, self.targets)
        sync(self.device)
        begin = time.perf_counter()
        for _ in range(self.config.steps_per_epoch * self.evaluations):
            evaluate()
        sync(self.device)
        return time.perf_counter() - begin


class Usual:
    """(b) An epoch as one would write it with torchvision's transforms, a DataLoader and torch's SGD."""

    def __init__(self, config: RunConfig) -> None:
        from icassp25.models import build_model
        from icassp25.vision import torchvision

        transforms = torchvision.transforms
        images = data.load(config, torch.device("cpu"))
        pictures = [transforms.functional.to_pil_image(image) for image in images.train_images]
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
        self.loader = torch.utils.data.DataLoader(
            Pictures(pictures, images.train_labels.tolist(), transform),
            batch_size=config.batch_size, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True,
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


class Pictures(torch.utils.data.Dataset):
    def __init__(self, pictures: list[Any], labels: list[int], transform: Any) -> None:
        self.pictures, self.labels, self.transform = pictures, labels, transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.pictures[index]), self.labels[index]


def graphs() -> int:
    """How many graphs torch.compile has compiled."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def busy_and_flops(epochs: Epochs, seconds: float) -> tuple[float, float, float]:
    """The fractions of an epoch in which a kernel runs, and one of products; their floating-point operations a second.

    `seconds` is what an epoch takes without the profiler.
    """
    from torch.utils.flop_counter import FlopCounterMode

    experiment = epochs.experiment
    with FlopCounterMode(display=False) as counter:  # of the model as it is written: forward and backward
        loss = experiment.criterion(experiment.model(epochs.batch), epochs.targets)
        loss.backward()
    operations = counter.get_total_flops() * epochs.config.steps_per_epoch * epochs.evaluations
    part = replace(epochs.config, limit_train_batches=PROFILED)
    experiment.config = part
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        epochs.epoch()
    spans = sorted(
        (event.time_range.start, event.time_range.end, event.name)
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
    )
    running = products = end = 0.0
    for start, stop, name in spans:
        running += max(0.0, stop - max(start, end))
        products += (stop - start) * bool(PRODUCTS.search(name))
        end = max(end, stop)
    experiment.config = epochs.config
    running, products = (
        x * epochs.config.steps_per_epoch / part.steps_per_epoch for x in (running, products)
    )
    return running * 1e-6 / seconds, products * 1e-6 / seconds, operations / seconds


def matrix_rate(device: torch.device) -> float:
    """Floating-point operations a second of a large bfloat16 matrix product."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(13):
        sync(device)
        begin = time.perf_counter()
        a @ b
        sync(device)
        times.append(time.perf_counter() - begin)
    return 2 * 8192**3 / statistics.median(times[3:])


def measure(
    model: str, device: torch.device, turns: int, images: int | None, rate: float
) -> list[dict[str, Any]]:
    depth, width = map(int, model.split("-"))
    base = RunConfig(
        dataset="synthetic", train_images=images or IMAGES[model], depth=depth, width_alpha=width, epochs=10 * turns,
        device=device.type,
    )  # fmt: skip
    loaded = data.load(base, device)
    usual = Usual(base) if device.type == "cpu" else None
    rows: list[dict[str, Any]] = []
    plain: dict[str, float] = {}
    usual_times: list[float] = []
    ways = [("bfloat16", False), ("bfloat16", True)]
    emulates = train.emulates_bfloat16(device)
    if emulates:
        ways = [("float32", False), ("float32", True)]
    elif device.type == "cpu":
        ways.insert(0, ("float32", False))
    for precision, compiled in ways:
        torch.compiler.reset()
        for name, switches in OPTIMIZERS.items():
            if name == "all four" and (precision, compiled) != ways[-1]:
                continue  # minutes, for what the last of the ways tells as well
            epochs = Epochs(replace(base, precision=precision, compile=compiled, **switches), loaded, device)
            before = graphs()
            first = epochs.epoch()
            after = graphs()
            times, limits = [], []
            for _ in range(turns):
                limits.append(epochs.limit())
                times.append(epochs.epoch())
                if usual is not None and name == "SGD":
                    usual_times.append(usual.epoch())
            seconds = statistics.median(times)
            count = base.steps_per_epoch * base.batch_size
            row: dict[str, Any] = {
                "model": f"WRN-{model}",
                "precision": precision,
                "compiled": compiled,
                "optimizer": name,
                "evaluations": epochs.evaluations,
                "images_per_s": count / seconds,
                "of_limit": statistics.median(limits) / seconds,
                "to_usual": None,
                "first_epoch_s": first,
                "pays_after_epochs": None,
                "recompiled": None,
                "better": epochs.better if switches.get("acme") else None,
            }
            if compiled:
                saved = (plain[name] - seconds) / count * EPOCH if name in plain else 0.0
                row["pays_after_epochs"] = (first - seconds) / saved if saved > 0 else None
                row["recompiled"] = graphs() - after
                row["graphs"] = after - before
            else:
                plain[name] = seconds
            if device.type == "cuda":
                row["busy"], row["convolutions"], operations = busy_and_flops(epochs, seconds)
                row["matrix"] = operations / rate
            rows.append(row)
            way = f"{row['model']}, {precision}{', compiled' * compiled}, {name}"
            print(
                f"{way}: {row['images_per_s']:.0f} images/s, {row['of_limit']:.1%} of the limit", flush=True
            )
            del epochs
    if usual is not None:
        seconds = statistics.median(usual_times[1:])
        count = base.steps_per_epoch * base.batch_size
        for row in rows:
            if row["evaluations"] == 1:
                row["to_usual"] = row["images_per_s"] / (count / seconds)
        rows.append(
            {"model": f"WRN-{model}", "precision": "float32", "compiled": False, "optimizer": "the usual",
             "evaluations": 1, "images_per_s": count / seconds, "to_usual": 1.0}
        )  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", choices=IMAGES, help="10-1 and 16-4; on a GPU 16-8")
    parser.add_argument("--turns", type=int, default=2, help="timed epochs of each (2)")
    parser.add_argument("--images", type=int, help="images an epoch, a multiple of 100")
    options = parser.parse_args()
    begin = time.perf_counter()
    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = device.type == "cuda"
    if device.type == "cpu":
        torch.set_num_threads(2)
    rate = matrix_rate(device) if device.type == "cuda" else 0.0
    rows = []
    for model in options.models or (["16-8"] if device.type == "cuda" else ["10-1", "16-4"]):
        measured = measure(model, device, options.turns, options.images, rate)
        show(f"WRN-{model}", measured)
        rows += measured
        seconds = time.perf_counter() - begin
        path = save(f"training-{device.type}", rows, device, seconds, turns=options.turns,
                    matrix_tflop_per_s=round(rate / 1e12, 1) if rate else None)  # fmt: skip
    print(f"\n{path} ({seconds:.0f} s)")


if __name__ == "__main__":
    main()
