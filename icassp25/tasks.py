"""What of a run depends on its data: the three tasks behind the calls that the training loop makes of each.

`load` gives the one that a configuration asks for; docs/tasks.md describes text and digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from icassp25 import augment, data, digits, text
from icassp25.config import CONTEXT, RunConfig
from icassp25.sampling import Examples, stratified_order

Share = slice | Tensor
ALL = slice(None)


class Task:
    """Examples to train and to test on, all on one device; by itself those of the digits.

    Epochs are stratified, and nothing is random in an example.
    """

    checksum: str | None = None  #: of data that may be another elsewhere
    about: Mapping[str, Any] = {}  #: for the run's JSON: `chance`, where DATASETS does not say it
    versions: Mapping[str, str] = {}  #: of the packages that hold the data, but torch

    def __init__(self, train: Examples, validation: Examples | None, test: Examples) -> None:
        self.train, self.validation, self.test = train, validation, test  # None: nothing is held out

    def order(self, generator: torch.Generator) -> Tensor:
        """One epoch's training examples in random order: int64 [n], as `training` takes them."""
        return stratified_order(self.train[1], generator)

    def training(self, chosen: Tensor, generator: torch.Generator, share: Share = ALL) -> Examples:
        """Inputs of the model and targets for a part of `order`; of these examples, those at the places of `share`.

        What is random is drawn for all of `chosen`, whatever the share.
        """
        mine = chosen[share]
        return self.train[0][mine], self.train[1][mine]

    def inputs(self, examples: Tensor) -> Tensor:
        """Inputs of the model for some of the examples to test on."""
        return examples


class Images(Task):
    """CIFAR-100 or the synthetic set: augmented images."""

    def __init__(self, config: RunConfig, images: data.CifarData) -> None:
        super().__init__(images.train, images.validation, images.test)
        self.data, self.dtype = images, dtype_of(config)

    def training(self, chosen: Tensor, generator: torch.Generator, share: Share = ALL) -> Examples:
        images, labels = self.train
        inputs = augment.augment(images[chosen], self.data.mean, self.data.std, generator, share)
        return self._ready(inputs), labels[chosen[share]]

    def inputs(self, examples: Tensor) -> Tensor:
        return self._ready(augment.normalise(examples, self.data.mean, self.data.std))

    def _ready(self, inputs: Tensor) -> Tensor:
        return inputs.to(self.dtype, memory_format=torch.channels_last)


class Windows(Task):
    """A text: windows of 64 characters, one behind the other from a random place, in random order."""

    def __init__(self, characters: text.Text) -> None:
        held_out = characters.validation
        self.train = characters.train  # in one piece
        self.validation = None if held_out is None else _inputs_and_targets(held_out)
        self.test = _inputs_and_targets(characters.test)
        self.checksum = characters.sha256
        self.about = {"text_sha256": characters.sha256, "chance": characters.chance}

    def order(self, generator: torch.Generator) -> Tensor:
        """The places at which the windows begin."""
        device = self.train.device
        count = len(self.train) // CONTEXT - 1
        first = torch.randint(CONTEXT, (), generator=generator, device=device)
        return first + CONTEXT * torch.randperm(count, generator=generator, device=device)

    def training(self, chosen: Tensor, generator: torch.Generator, share: Share = ALL) -> Examples:
        places = torch.arange(CONTEXT + 1, device=self.train.device)
        return _inputs_and_targets(self.train[chosen[share][:, None] + places])


def _inputs_and_targets(windows: Tensor) -> Examples:
    """The first and the last 64 of each window's 65 characters."""
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def load(config: RunConfig, device: torch.device) -> Task:
    """The task of `config`, its data on `device`.

    Raises:
        UsageError: data or the package that holds them are missing or damaged, or cannot be downloaded.
    """
    if config.dataset == "text":
        return Windows(text.load(config, device))
    if config.dataset == "digits":
        task = Task(*digits.load(config, device, dtype_of(config)))
        task.versions = {"scikit-learn": metadata.version("scikit-learn")}
        return task
    return Images(config, data.load(config, device))


def dtype_of(config: RunConfig) -> torch.dtype:
    """Of the model's weights, and of inputs that are not whole numbers."""
    return torch.float64 if config.precision == "float64" else torch.float32
