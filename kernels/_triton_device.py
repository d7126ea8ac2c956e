"""Where Triton kernels can run: asked by every `triton` backend."""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor


def refuses_device(signal: Tensor, guide: Tensor) -> str | None:
    """Why no Triton backend can take these tensors; None: device and precision are fine."""
    if importlib.util.find_spec("triton") is None:
        return "it needs the package triton"
    if signal.device != guide.device:
        return f"it needs signal and guide on one device, got {signal.device} and {guide.device}"
    if not (guide.device.type == "cuda" or (guide.device.type == "cpu" and interpreted())):
        return f"it needs tensors on a CUDA device (or TRITON_INTERPRET=1 and the CPU), got {guide.device}"
    if guide.device.type == "cuda" and torch.cuda.get_device_capability(guide.device) < (8, 0):
        return "it needs a GPU of compute capability 8.0 or more"
    if torch.version.hip is not None:
        return "it is written for CUDA, not for ROCm"
    if torch.float64 in (signal.dtype, guide.dtype):
        return "it computes in float32, got float64"
    return None


def interpreted() -> bool:
    """Whether Triton runs kernels on the CPU; as Triton itself, it looks when the kernels are first imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")
