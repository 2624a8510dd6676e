"""torchvision, importable also where its compiled operators do not load.

A CPU build of torch beside a torchvision built for CUDA cannot load torchvision's shared library, and
`import torchvision` fails where it registers shape functions for two operators that the library would have
declared. Nothing here uses these operators, so declaring their schemas is enough. Where torchvision imports
by itself this module only imports it.

Import torchvision from here: `from icassp25.vision import functional, torchvision`.
"""

from __future__ import annotations

import sys

import torch

# The schemas as torchvision's C++ declares them (torchvision/csrc/ops/nms.cpp, quantized/…).
SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
declarations: torch.library.Library | None = None  # which live as long as this; None where none were needed

try:
    import torchvision
except RuntimeError as error:
    if "operator torchvision::" not in str(error):
        raise
    # Submodules that the failed import leaves behind would mix with a second one's.
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    declarations = torch.library.Library("torchvision", "FRAGMENT")
    for schema in SCHEMAS:
        declarations.define(schema)
    import torchvision
from torchvision.transforms import autoaugment, functional
from torchvision.transforms.v2.functional import equalize_image

__all__ = ["autoaugment", "declarations", "equalize_image", "functional", "torchvision"]
