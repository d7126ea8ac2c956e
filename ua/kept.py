"""Tensors that depend on sizes alone, made once and kept where they are used: on their device, in their dtype."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import torch
from torch import Tensor

MOST = 64  # results of each function


def kept(build: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`build` with its last results kept, for arguments that can be hashed; nobody may write into a result.

    They are made outside inference mode, so that gradients can flow beside them later. What is made while PyTorch
    traces with fake tensors (`torch.export`) is not kept.
    """
    cached = lru_cache(maxsize=MOST)(build)

    @wraps(build)
    def found(*sizes: Any) -> Tensor:
        real = type(torch.empty(0)) is Tensor
        with torch.inference_mode(False), torch.no_grad():
            return cached(*sizes) if real else build(*sizes)

    return found
