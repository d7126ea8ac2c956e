"""The backend `torch` through torch.compile, for the benchmark: `ua.fit(..., backend="experiments._torch_compile")`.

What is compiled is one band of LR rows: the loop over bands around it would be unrolled into a graph that grows with
the image. What the backward pass keeps and what it computes again is left to torch.compile.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# A second instance of the module, so that the backend itself stays as it is.
_spec = importlib.util.find_spec("kernels.bilateral.torch")
assert _spec is not None and _spec.loader is not None
_module: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
# More recompilations than PyTorch allows are an error: otherwise it goes on uncompiled without a word.
torch._dynamo.config.fail_on_recompile_limit_hit = True


def _without_checkpoint(function: Callable[..., Tensor], *arguments: Any, use_reentrant: bool) -> Tensor:
    """In the place of torch.utils.checkpoint, which takes it as an error when a band compiles anew in between."""
    return function(*arguments)


_module._render_band = torch.compile(_module._render_band)
_module.checkpoint = _without_checkpoint

refuses, render, reconstruction_l1 = _module.refuses, _module.render, _module.reconstruction_l1
