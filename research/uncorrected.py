"""No bias correction: the squared average begins at the first gradient's mean square, and is forgotten by β2^t.

Beside `unbiased_squares` it tells apart what comes of steps that lengthen by themselves from what comes of one
scale a tensor.
"""

from __future__ import annotations

from typing import Any

from acme import Acme as Published


class Acme(Published):
    """`acme.Acme` that ignores `bias_correction`."""

    def __init__(self, model: Any, *arguments: Any, bias_correction: bool = False, **options: Any) -> None:
        super().__init__(model, *arguments, **options)
