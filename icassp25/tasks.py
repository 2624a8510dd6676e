"""What of a run depends on its data: the three tasks behind the calls that the training loop makes of each.

`load` gives the one that a configuration asks for; docs/tasks.md describes text and digits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from icassp25 import augment, data, digits, text
from icassp25.config import CONTEXT, RunConfig
from icassp25.sampling import stratified_order

Examples = tuple[Tensor, Tensor]
"""Examples and their targets, int64 [n], or [n, 64] where a model predicts 64 times for each."""


class Task(Protocol):
    """Examples to train and to test on, all on one device."""

    test: Examples
    validation: Examples | None  #: None where nothing is held out
    checksum: str | None  #: of data that may be another elsewhere
    about: Mapping[str, Any]  #: for the run's JSON: `chance`, where the table of data sets does not say it
    versions: Mapping[str, str]  #: of the packages that hold the data

    def order(self, generator: torch.Generator) -> Tensor:
        """One epoch's training examples in random order: int64 [n], as `training` takes them."""

    def training(
        self, chosen: Tensor, generator: torch.Generator, share: slice | Tensor = slice(None)
    ) -> Examples:
        """Inputs of the model and targets for a part of `order`; of these examples, those at the places of `share`.

        What is random is drawn for all of `chosen`, whatever the share.
        """

    def inputs(self, examples: Tensor) -> Tensor:
        """Inputs of the model for some of the examples to test on."""


class Images:
    """CIFAR-100 or the synthetic set: stratified epochs, augmented images."""

    checksum = None
    about: Mapping[str, Any] = {}
    versions: Mapping[str, str] = {}

    def __init__(self, config: RunConfig, images: data.CifarData) -> None:
        self.data = images
        self.dtype = dtype_of(config)
        self.test = images.test_images, images.test_labels
        self.validation = None
        if images.validation_images is not None and images.validation_labels is not None:
            self.validation = images.validation_images, images.validation_labels

    def order(self, generator: torch.Generator) -> Tensor:
        return stratified_order(self.data.train_labels, generator)

    def training(
        self, chosen: Tensor, generator: torch.Generator, share: slice | Tensor = slice(None)
    ) -> Examples:
        images = self.data.train_images[chosen]
        inputs = augment.augment(images, self.data.mean, self.data.std, generator, share)
        return self._ready(inputs), self.data.train_labels[chosen[share]]

    def inputs(self, examples: Tensor) -> Tensor:
        return self._ready(augment.normalise(examples, self.data.mean, self.data.std))

    def _ready(self, inputs: Tensor) -> Tensor:
        return inputs.to(self.dtype, memory_format=torch.channels_last)


class Windows:
    """A text: windows of 64 characters, one behind the other from a random place, in random order."""

    def __init__(self, characters: text.Text) -> None:
        self.train = characters.train
        self.test = _inputs_and_targets(characters.test)
        held_out = characters.validation
        self.validation = None if held_out is None else _inputs_and_targets(held_out)
        self.checksum = characters.sha256
        self.about = {"text_sha256": characters.sha256, "chance": characters.chance}
        self.versions: Mapping[str, str] = {}  # torch's, which holds the text, is logged for every run

    def order(self, generator: torch.Generator) -> Tensor:
        """The places at which the windows begin."""
        device = self.train.device
        count = len(self.train) // CONTEXT - 1
        first = torch.randint(CONTEXT, (), generator=generator, device=device)
        return first + CONTEXT * torch.randperm(count, generator=generator, device=device)

    def training(
        self, chosen: Tensor, generator: torch.Generator, share: slice | Tensor = slice(None)
    ) -> Examples:
        places = torch.arange(CONTEXT + 1, device=self.train.device)
        return _inputs_and_targets(self.train[chosen[share][:, None] + places])

    def inputs(self, examples: Tensor) -> Tensor:
        return examples


def _inputs_and_targets(windows: Tensor) -> Examples:
    """The first and the last 64 of each window's 65 characters."""
    return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


class Vectors:
    """The digits: stratified epochs of images as vectors, without augmentation."""

    checksum = None
    about: Mapping[str, Any] = {}

    def __init__(self, config: RunConfig, images: digits.Digits, device: torch.device) -> None:
        def ready(examples: Examples) -> Examples:
            return examples[0].to(device, dtype_of(config)), examples[1].to(device)

        self.train, self.test = ready(images.train), ready(images.test)
        self.validation = None if images.validation is None else ready(images.validation)
        self.versions = digits.versions()

    def order(self, generator: torch.Generator) -> Tensor:
        return stratified_order(self.train[1], generator)

    def training(
        self, chosen: Tensor, generator: torch.Generator, share: slice | Tensor = slice(None)
    ) -> Examples:
        mine = chosen[share]
        return self.train[0][mine], self.train[1][mine]

    def inputs(self, examples: Tensor) -> Tensor:
        return examples


def _images(config: RunConfig, device: torch.device) -> Task:
    return Images(config, data.load(config, device))


_LOADERS: dict[str, Callable[[RunConfig, torch.device], Task]] = {
    "cifar100": _images,
    "synthetic": _images,
    "text": lambda config, device: Windows(text.load(config, device)),
    "digits": lambda config, device: Vectors(config, digits.load(config), device),
}


def load(config: RunConfig, device: torch.device) -> Task:
    """The task of `config`, its data on `device`.

    Raises:
        UsageError: data or the package that holds them are missing or damaged, or cannot be downloaded.
    """
    return _LOADERS[config.dataset](config, device)


def dtype_of(config: RunConfig) -> torch.dtype:
    """Of the model's weights, and of inputs that are not whole numbers."""
    return torch.float64 if config.precision == "float64" else torch.float32
