"""Waiting for a CUDA device, counted."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

_synchronize = torch.cuda.Event.synchronize


def waits(function: Callable[[], Any]) -> int:
    """How often `function` makes the host wait for the CUDA device, or for an event on it."""
    torch.cuda.synchronize()
    events = mock.patch.object(torch.cuda.Event, "synchronize", autospec=True, side_effect=_synchronize)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught, events as for_events:
            warnings.simplefilter("always")
            function()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    others = sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)
    return others + for_events.call_count
