"""The text that the transformer learns: the documentation of torch.nn, as the installed torch has it.

A package that the experiment needs anyway holds it, and one version of torch holds the same text everywhere: what
requirements.txt pins is what the committed results were made with. Another version's text is another one; the
SHA-256 in a run's JSON says which it was. docs/tasks.md says how it is divided.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from icassp25.config import CONTEXT, DATASETS, RunConfig, UsageError

ABOUT = DATASETS["text"]
TEST_WINDOWS = 625
# The windows of an epoch begin at a random place of the first 64, hence the room for one more; a window's last
# target is the character behind it, hence the one character between the parts.
TRAINING_CHARACTERS = CONTEXT * (ABOUT.examples + 1) + 1
CHARACTERS = TRAINING_CHARACTERS + CONTEXT * TEST_WINDOWS + 1

NEWLINE, UNKNOWN = 95, 96
"""The codes behind those of printable ASCII, 0 to 94."""


@dataclass(frozen=True)
class Text:
    """The characters' codes, int64 in 0 … 96, on one device; no two of the three parts share a character.

    `train` [64 · (windows + 1)] is one piece, for windows to begin anywhere in its first 64 characters; `validation`
    and `test` [windows, 65] are windows, the first character of each being the last of the one before. `chance` is the
    error on `test` of always predicting the character most frequent in the training part.
    """

    train: Tensor
    validation: Tensor | None
    test: Tensor
    chance: float
    sha256: str


def load(config: RunConfig, device: torch.device) -> Text:
    """The text, divided as `config` asks: the first `available_images` windows to train on, the last `validation`
    windows of the training part held out, and the test part.

    Raises:
        UsageError: the installed torch has too little documentation.
    """
    whole = read()
    codes = encode(whole)
    train, test = codes[:TRAINING_CHARACTERS], codes[TRAINING_CHARACTERS:]
    end = CONTEXT * (ABOUT.examples - config.validation + 1)
    test = windows(test)
    most_frequent = train.bincount().argmax()
    return Text(
        train=train[: CONTEXT * (config.available_images + 1)].to(device),
        validation=windows(train[end:]).to(device) if config.validation else None,
        test=test.to(device),
        chance=(test[:, 1:] != most_frequent).double().mean().item(),
        sha256=hashlib.sha256(whole.encode()).hexdigest(),
    )


def windows(codes: Tensor) -> Tensor:
    """[64n + 1] in one piece as [n, 65]: each window's 64 characters and the one behind them."""
    return codes.unfold(0, CONTEXT + 1, CONTEXT).contiguous()


def encode(text: str) -> Tensor:
    """The codes of the characters, int64: printable ASCII from the space 0 to the tilde 94, newline 95, others 96."""
    known = {chr(32 + code): code for code in range(NEWLINE)} | {"\n": NEWLINE}
    return torch.tensor([known.get(character, UNKNOWN) for character in text], dtype=torch.int64)


@functools.cache
def read() -> str:
    """The first 400 066 characters of the docstrings under torch/nn: files in order of their paths, docstrings in
    order of their places, each once, with an empty line between two, lines without the spaces at their ends.

    Raises:
        UsageError: there are fewer.
    """
    root = Path(torch.__file__).parent / "nn"
    paths = sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix())
    found = dict.fromkeys(docstring for path in paths for docstring in _docstrings(path))
    text = "\n\n".join(found)
    if len(text) < CHARACTERS:
        raise UsageError(
            f"--dataset text: the docstrings in {root} have {len(text):,} characters, expected at least "
            f"{CHARACTERS:,}; install the torch of requirements.txt."
        )
    return text[:CHARACTERS]


def _docstrings(path: Path) -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of escapes that are none; they stand for themselves
        tree = ast.parse(path.read_bytes())
    documented = ast.Module | ast.ClassDef | ast.FunctionDef
    nodes = [node for node in ast.walk(tree) if isinstance(node, documented)]
    for node in sorted(nodes, key=lambda node: getattr(node, "lineno", 0)):
        docstring = ast.get_docstring(node, clean=False)
        if docstring and docstring.strip():
            yield "\n".join(line.strip() for line in docstring.strip().splitlines())
