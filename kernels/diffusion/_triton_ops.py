"""The Triton diffusion as PyTorch operators, so that compilers see one call where there is a launch a step.

`torch.compile` and `torch.export` keep them whole, `torch.func.vmap` folds its dimension into the batch, autograd goes
once (a second derivative raises). Annotations stay evaluated: PyTorch reads the operators' schemas from them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.diffusion import _triton_launch as launch


@torch.library.custom_op("upsample_anything::diffuse", mutates_args=())
def diffuse(
    start: Tensor,
    signal: Tensor,
    across: Tensor,
    down: Tensor,
    valid: Tensor | None,
    steps: int,
    rate: float,
    share: float,
) -> Tensor:
    """(B, C, H, W), contiguous, in the dtype of `start`."""
    with torch.cuda.device_of(start):
        grid = (signal.shape[2], signal.shape[3])
        inputs = launch.prepare(signal, across, down, valid)
        return launch.diffuse(start, grid, inputs, launch.Settings(steps, rate, share))


@diffuse.register_fake
def _(start: Tensor, *_: Any) -> Tensor:
    return start.new_empty(start.shape)


@torch.library.custom_op("upsample_anything::diffuse_backward", mutates_args=())
def diffuse_backward(
    d_out: Tensor,
    signal: Tensor,
    across: Tensor,
    down: Tensor,
    valid: Tensor | None,
    steps: int,
    rate: float,
    share: float,
) -> tuple[Tensor, Tensor]:
    """Gradients of start and signal, in the dtypes of `d_out` and `signal`, of which only the shape is read."""
    with torch.cuda.device_of(d_out):
        grid = (signal.shape[2], signal.shape[3])
        inputs = launch.prepare(None, across, down, valid)
        found = launch.transposed(d_out, grid, inputs, launch.Settings(steps, rate, share))
    return found[0].to(d_out.dtype), found[1].to(signal.dtype)


@diffuse_backward.register_fake
def _(d_out: Tensor, signal: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return d_out.new_empty(d_out.shape), signal.new_empty(signal.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, *tensors, ctx.steps, ctx.rate, ctx.share = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
    if ctx.needs_input_grad[2] or ctx.needs_input_grad[3]:
        raise NotImplementedError("the triton backend has no gradient of the conductances: use backend='torch'")
    gradients = diffuse_backward(d_out, *ctx.saved_tensors, ctx.steps, ctx.rate, ctx.share)
    return (*gradients, *[None] * 6)


diffuse.register_autograd(_differentiate, setup_context=_save)


def _into_batch(size: int, dims: Sequence[int | None], arguments: Sequence[Any]) -> list[Any]:
    """Arguments of a `vmap` over `size` items, with that dimension folded into the batch of every tensor."""

    def fold(argument: Any, dim: int | None) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        items = argument.expand(size, *argument.shape) if dim is None else argument.movedim(dim, 0)
        return items.flatten(0, 1)

    return [fold(argument, dim) for argument, dim in zip(arguments, dims, strict=True)]


@diffuse.register_vmap
def _(info: Any, dims: tuple[int | None, ...], *arguments: Any) -> Any:
    out = diffuse(*_into_batch(info.batch_size, dims, arguments))
    return out.unflatten(0, (info.batch_size, -1)), 0


@diffuse_backward.register_vmap
def _(info: Any, dims: tuple[int | None, ...], *arguments: Any) -> Any:
    gradients = diffuse_backward(*_into_batch(info.batch_size, dims, arguments))
    return tuple(gradient.unflatten(0, (info.batch_size, -1)) for gradient in gradients), (0, 0)
