"""How fast whole training epochs are, beside what limits them and beside what one would write otherwise.

    python benchmarks/training.py [--device cuda] [--models 10-1 16-4] [--turns 2] [--images 4000]

For each model and precision, epochs of the experiment (augmentation, forward, backward, optimizer, logging) with
SGD, with ACME and with all four switches on take turns with (a) the limit: forward and backward alone, of the same
(compiled) model in the same precision, on one fixed batch, times the evaluations; and, on the CPU, with (b) the
usual: torchvision's PIL transforms in a DataLoader with two workers, float32, contiguous, torch's SGD.

Columns: `images_per_s`, the median over the turns; `of_limit`, the fraction of (a); `to_usual`, the ratio to (b) for
the optimizers of one evaluation a step; `first_epoch_s`, compilation included; `pays_after_epochs`, of 50 000
images, from which the compiled run is the faster one, compilation included; `recompiled`, graphs compiled after the
first epoch. On CUDA the compiled experiment and its limit are captured, too (icassp25/capture.py).
All four switches are measured compiled only, in bfloat16; a device that has none and would emulate it, in float32 alone.
The images are made up (`--dataset synthetic`'s): their number and size matter, not what they show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from common import medians, parser, save, show, timed
from torch import Tensor, nn

from acme import Acme
from icassp25 import data, tasks, train
from icassp25.config import RunConfig
from icassp25.models import build_model
from icassp25.vision import functional, torchvision

transforms = torchvision.transforms

OPTIMIZERS: dict[str, dict[str, Any]] = {  # from step sizes at which the loss falls, as it does in a training
    "SGD": dict(lr=1.0),
    "ACME": dict(acme=True, lr=1.0),
    "all four": dict(acme=True, adam=True, asam=True, nesterov=True, lr=0.01),
}
IMAGES = {"10-1": 2000, "16-4": 400, "16-8": 30_000}
EPOCH = 50_000


def experiment_of(config: RunConfig, images: data.CifarData, device: torch.device) -> dict[str, Any]:
    """An epoch of the experiment, and (a) its limit: as many forward and backward passes."""
    experiment = train.Experiment(config, tasks.Images(config, images), device, Acme)
    batch = torch.randn(config.batch_size, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    targets = torch.randint(0, 100, (config.batch_size,), device=device)

    def limit() -> None:
        experiment.model.train()
        evaluate = experiment.evaluation(batch, targets)
        for _ in range(config.steps_per_epoch * int(config.evaluations_per_step)):
            evaluate()

    return {"limit": limit, "epoch": lambda: experiment._train(1, train.Tally(device))}


def usual_of(config: RunConfig) -> Callable[[], Any]:
    """(b) An epoch as one would write it with torchvision's transforms, a DataLoader and torch's SGD."""
    images = data.load(config, torch.device("cpu"))
    transform = transforms.Compose([
        transforms.RandomCrop(32, padding=4),
        transforms.RandomHorizontalFlip(),
        transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10),
        transforms.ToTensor(),
        transforms.Normalize(images.mean.tolist(), images.std.tolist()),
        transforms.RandomErasing(p=0.5, scale=(0.1, 0.25), ratio=(1.0, 1.0)),
    ])  # fmt: skip

    def batch(examples: list[tuple[Any, Tensor]]) -> tasks.Examples:
        pictures, labels = zip(*examples, strict=True)
        return torch.stack([transform(picture) for picture in pictures]), torch.stack(labels)

    loader = torch.utils.data.DataLoader(
        list(zip(map(functional.to_pil_image, images.train[0]), images.train[1], strict=True)),
        batch_size=config.batch_size, shuffle=True, num_workers=2, persistent_workers=True, drop_last=True,
        collate_fn=batch, multiprocessing_context="fork",
    )  # fmt: skip
    model = build_model(config)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    criterion, losses = nn.CrossEntropyLoss(label_smoothing=0.1), []

    def epoch() -> None:
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), targets)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())

    return epoch


def graphs() -> int:
    """How many graphs torch.compile has compiled."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def measure(model: str, device: torch.device, turns: int, images: int) -> list[dict[str, Any]]:
    depth, width = map(int, model.split("-"))
    base = RunConfig(
        dataset="synthetic", train_images=images, depth=depth, width_alpha=width, epochs=10 * turns
    )
    loaded, count = data.load(base, device), base.steps_per_epoch * base.batch_size
    if train.emulates_bfloat16(device):
        ways = [("float32", False), ("float32", True)]
    else:
        ways = [("float32", False)] * (device.type == "cpu") + [("bfloat16", False), ("bfloat16", True)]
    rows: list[dict[str, Any]] = []
    usual = 0.0  # images per second
    if device.type == "cpu":
        usual = count / medians({"usual": usual_of(base)}, turns, warm_ups=1).usual
        rows.append({
            "model": f"WRN-{model}", "precision": "float32", "compiled": False, "optimizer": "the usual",
            "evaluations": 1, "images_per_s": usual, "of_limit": None, "to_usual": 1.0,
        })  # fmt: skip
    plain: dict[str, float] = {}  # seconds of an epoch that is not compiled
    for precision, compiled in ways:
        torch.compiler.reset()
        for name, switches in OPTIMIZERS.items():
            if name == "all four" and (precision, compiled) != ways[-1]:
                continue  # minutes, for what the last of the ways tells as well
            config = replace(base, precision=precision, compile=compiled, **switches)
            turn = experiment_of(config, loaded, device)
            first, compiled_then = timed(turn["epoch"]), graphs()
            seconds = medians(turn, turns)
            rate, evaluations = count / seconds.epoch, int(config.evaluations_per_step)
            saved = (plain.setdefault(name, seconds.epoch) - seconds.epoch) / count * EPOCH
            rows.append({
                "model": f"WRN-{model}", "precision": precision, "compiled": compiled, "optimizer": name,
                "evaluations": evaluations, "images_per_s": rate, "of_limit": seconds.limit / seconds.epoch,
                "to_usual": rate / usual if usual and evaluations == 1 else None, "first_epoch_s": first,
                "pays_after_epochs": (first - seconds.epoch) / saved if compiled and saved > 0 else None,
                "recompiled": graphs() - compiled_then if compiled else None,
            })  # fmt: skip
            show(f"WRN-{model}", rows[-1:])
    return rows


def main() -> None:
    arguments = parser(__doc__, device=True)
    arguments.add_argument("--models", nargs="+", choices=IMAGES, help="10-1 and 16-4; on a GPU 16-8")
    arguments.add_argument("--turns", type=int, default=2, help="timed epochs of each (2)")
    arguments.add_argument("--images", type=int, help="images an epoch, a multiple of 100")
    options = arguments.parse_args()
    device = torch.device(options.device)
    torch.backends.cudnn.benchmark = device.type == "cuda"
    torch.set_num_threads(2)
    rows = []
    for model in options.models or (["16-8"] if device.type == "cuda" else ["10-1", "16-4"]):
        measured = measure(model, device, options.turns, options.images or IMAGES[model])
        show(f"WRN-{model}", measured)
        rows += measured
        save(f"training-{device.type}", rows, device, turns=options.turns)


if __name__ == "__main__":
    main()
