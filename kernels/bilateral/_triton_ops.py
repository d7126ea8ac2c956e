"""The Triton render and loss as PyTorch operators, so that compilers see one call where there are several launches.

`torch.compile` and `torch.export` keep them whole, `torch.func.vmap` folds its dimension into the batch, autograd goes
once (a second derivative raises). Annotations stay evaluated: PyTorch reads the operators' schemas from them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kernels.bilateral import _triton_launch as launch
from kernels.geometry import Factors, Support

# Arguments of `render` by position that autograd may ask for: signal, guide, guide_lr, five maps.
DIFFERENTIABLE = 8


@torch.library.custom_op("upsample_anything::render", mutates_args=())
def render(
    signal: Tensor,
    guide: Tensor,
    guide_lr: Tensor,
    ux: Tensor,
    uy: Tensor,
    vx: Tensor,
    vy: Tensor,
    r: Tensor,
    radius: Tensor | None,
    valid: Tensor | None,
    max_radius: int,
    border: str,
) -> tuple[Tensor, Tensor]:
    """The render (B, C, H, W) and its log-sum-exp (B, H, W), base 2."""
    with torch.cuda.device_of(guide):
        grid = launch.Grid.of(signal, guide, Support(max_radius, border), radius is not None)
        inputs = launch.prepare(guide, guide_lr, Factors(ux, uy, vx, vy, r), radius, valid)
        return launch.forward(signal, inputs, grid)


@render.register_fake
def _(signal: Tensor, guide: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    size = guide.shape[-2:]
    lse = guide.new_empty(guide.shape[0], *size, dtype=torch.float32)
    return signal.new_empty(*signal.shape[:2], *size), lse


@torch.library.custom_op("upsample_anything::render_backward", mutates_args=())
def render_backward(
    d_out: Tensor,
    lse: Tensor,
    signal: Tensor,
    guide: Tensor,
    guide_lr: Tensor,
    ux: Tensor,
    uy: Tensor,
    vx: Tensor,
    vy: Tensor,
    r: Tensor,
    radius: Tensor | None,
    valid: Tensor | None,
    max_radius: int,
    border: str,
    of_signal: bool,
    of_maps: bool,
    of_guide: bool,
) -> list[Tensor]:
    """Gradients of signal, guide, guide_lr and the five maps; empty where not asked for."""
    factors = Factors(ux, uy, vx, vy, r)
    with torch.cuda.device_of(guide):
        found = launch.backward(
            d_out,
            lse,
            signal,
            launch.prepare(guide, guide_lr, factors, radius, valid),
            factors,
            launch.Grid.of(signal, guide, Support(max_radius, border), radius is not None),
            of_signal=of_signal,
            of_maps=of_maps,
            of_guide=of_guide,
        )
    maps: Sequence[Tensor | None] = found.factors if of_maps and found.factors is not None else [None] * 5
    gradients = (found.signal, found.guide, found.guide_lr, *maps)
    inputs = (signal, guide, guide_lr, *factors)
    return [
        tensor.new_empty(0) if gradient is None else gradient.to(tensor.dtype).contiguous()
        for gradient, tensor in zip(gradients, inputs, strict=True)
    ]


@render_backward.register_fake
def _(d_out: Tensor, lse: Tensor, *rest: Any) -> list[Tensor]:
    inputs, (of_signal, of_maps, of_guide) = rest[:DIFFERENTIABLE], rest[-3:]
    asked = (of_signal, of_guide, of_guide, *[of_maps] * 5)
    # Not `empty_like`: gradients are contiguous whatever the inputs' strides.
    return [
        tensor.new_empty(tensor.shape) if wanted else tensor.new_empty(0)
        for wanted, tensor in zip(asked, inputs, strict=True)
    ]


def _save_render(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.max_radius, ctx.border = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*tensors, output[1])


def _differentiate_render(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    *tensors, lse = ctx.saved_tensors
    needed = ctx.needs_input_grad[:DIFFERENTIABLE]
    of_signal, of_guide, of_maps = needed[0], any(needed[1:3]), any(needed[3:])
    gradients = render_backward(d_out, lse, *tensors, ctx.max_radius, ctx.border, of_signal, of_maps, of_guide)
    asked = [gradient if wanted else None for gradient, wanted in zip(gradients, needed, strict=True)]
    return (*asked, None, None, None, None)


render.register_autograd(_differentiate_render, setup_context=_save_render)


@torch.library.custom_op("upsample_anything::reconstruction_l1", mutates_args=())
def reconstruction_l1(
    source: Tensor,
    guide: Tensor,
    guide_lr: Tensor,
    ux: Tensor,
    uy: Tensor,
    vx: Tensor,
    vy: Tensor,
    r: Tensor,
    radius: Tensor | None,
    max_radius: int,
    border: str,
) -> list[Tensor]:
    """The loss (B,) and, from the same weights, its gradients with respect to the five maps, each (B, h, w)."""
    factors = Factors(ux, uy, vx, vy, r)
    with torch.cuda.device_of(guide):
        inputs = launch.prepare(guide, guide_lr, factors, radius, None)
        grid = launch.Grid.of(source, guide, Support(max_radius, border), radius is not None)
        loss, gradients = launch.loss_and_gradients(source, inputs, factors, grid)
    return [loss.to(guide.dtype), *(gradient.contiguous() for gradient in gradients)]


@reconstruction_l1.register_fake
def _(source: Tensor, guide: Tensor, guide_lr: Tensor, *rest: Any) -> list[Tensor]:
    return [guide.new_empty(guide.shape[0]), *(lr_map.new_empty(lr_map.shape) for lr_map in rest[:5])]


def _save_loss(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[1:])


def _differentiate_loss(ctx: Any, d_outputs: list[Tensor]) -> tuple[Tensor | None, ...]:
    gradients = scale(d_outputs[0], list(ctx.saved_tensors))
    return (None, None, None, *gradients, None, None, None)


@torch.library.custom_op("upsample_anything::scale", mutates_args=())
def scale(d_loss: Tensor, gradients: list[Tensor]) -> list[Tensor]:
    """Gradients of a weighted sum of the images' losses. An operator so that a second derivative, which these gradients
    do not know, raises.
    """
    return [d_loss[:, None, None] * gradient for gradient in gradients]


@scale.register_fake
def _(d_loss: Tensor, gradients: list[Tensor]) -> list[Tensor]:
    return [torch.empty_like(gradient) for gradient in gradients]


reconstruction_l1.register_autograd(_differentiate_loss, setup_context=_save_loss)


def _into_batch(size: int, dims: Sequence[int | None], arguments: Sequence[Any]) -> list[Any]:
    """Arguments of a `vmap` over `size` items, with that dimension folded into the batch of every tensor."""

    def fold(argument: Any, dim: int | None) -> Any:
        if not isinstance(argument, Tensor):
            return argument
        items = argument.expand(size, *argument.shape) if dim is None else argument.movedim(dim, 0)
        return items.flatten(0, 1)

    return [fold(argument, dim) for argument, dim in zip(arguments, dims, strict=True)]


def _out_of_batch(tensor: Tensor, size: int) -> Tensor:
    return tensor.unflatten(0, (size, -1))


@render.register_vmap
def _(info: Any, dims: tuple[int | None, ...], *arguments: Any) -> Any:
    out, lse = render(*_into_batch(info.batch_size, dims, arguments))
    return (_out_of_batch(out, info.batch_size), _out_of_batch(lse, info.batch_size)), (0, 0)


@render_backward.register_vmap
def _(info: Any, dims: tuple[int | None, ...], *arguments: Any) -> Any:
    gradients = render_backward(*_into_batch(info.batch_size, dims, arguments))
    empty = [gradient.numel() == 0 for gradient in gradients]
    return (
        [
            gradient if none else _out_of_batch(gradient, info.batch_size)
            for gradient, none in zip(gradients, empty, strict=True)
        ],
        [None if none else 0 for none in empty],
    )


@reconstruction_l1.register_vmap
def _(info: Any, dims: tuple[int | None, ...], *arguments: Any) -> Any:
    results = reconstruction_l1(*_into_batch(info.batch_size, dims, arguments))
    return [_out_of_batch(result, info.batch_size) for result in results], [0] * len(results)
