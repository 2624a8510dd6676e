"""torchvision, importable also where its compiled operators do not load.

A CPU build of torch beside a torchvision built for CUDA cannot load torchvision's shared library.
torchvision then registers shape functions for two operators that this library would have declared,
`torchvision::nms` and `torchvision::qnms`, and `import torchvision` fails with a `RuntimeError`. Nothing
here uses these operators, so declaring their schemas is enough. Where torchvision imports by itself this
module only imports it.

Import torchvision from here: `from icassp25.vision import functional, torchvision`.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

# The schemas as torchvision's C++ declares them (torchvision/csrc/ops/nms.cpp, quantized/…).
MISSING_OPERATORS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

# A declaration lives as long as its library object; None where none was needed.
_declarations: torch.library.Library | None = None


def _declare_operators() -> torch.library.Library:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in MISSING_OPERATORS.values():
        library.define(schema)
    return library


def _import_torchvision() -> ModuleType:
    """Import torchvision, declaring its operators first if the plain import misses them.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: the import fails for another reason than the two operators.
    """
    global _declarations
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if not any(
            f"operator torchvision::{name} does not exist" in str(error) for name in MISSING_OPERATORS
        ):
            raise
    # The failed import leaves torchvision's already imported submodules behind; a second import on top
    # of them would mix two copies of the package.
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]
    _declarations = _declare_operators()
    return importlib.import_module("torchvision")


torchvision = _import_torchvision()
functional = importlib.import_module("torchvision.transforms.functional")
autoaugment = importlib.import_module("torchvision.transforms.autoaugment")

__all__ = ["MISSING_OPERATORS", "autoaugment", "functional", "torchvision"]
