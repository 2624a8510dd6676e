"""Waiting for a CUDA device, counted."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch


def waits(function: Callable[[], Any]) -> int:
    """How often `function` makes the host wait for the CUDA device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)
