"""From plain tensors to launches of the Triton kernels: two a step."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.geometry import neighbour_offsets
from kernels.leave_one_out import BETA_1, BETA_2, EPSILON, PRIOR, RATE, ROUNDING
from kernels.leave_one_out import _triton_kernels as kernels

CELLS = 4  # of a program, for one warp


def fit(
    values: Tensor,
    colours: Tensor,
    known: Tensor,
    raw: Tensor,
    *,
    scale: tuple[float, float],
    radius: int,
    steps: int,
) -> Tensor:
    """See `kernels.leave_one_out.triton.fit`."""
    batch, rows, cols = known.shape
    offsets, opposite = neighbour_offsets(radius)
    offsets, opposite = (table.to(raw.device, torch.int32) for table in (offsets.T.contiguous(), opposite))
    values, colours, initial = (lr_map.detach().float().contiguous() for lr_map in (values, colours, raw))
    now, first, second = initial.clone(), torch.zeros_like(initial), torch.zeros_like(initial)
    factors = initial.new_empty(batch, 5, rows, cols)
    by_score = initial.new_empty(batch, rows * cols, len(opposite))
    grid = (-(-rows * cols // CELLS), batch)
    sizes = {"n_rows": rows, "n_cols": cols, "n_candidates": len(opposite), "scale_y": scale[0], "scale_x": scale[1]}
    shape = {"G": colours.shape[1], "BP": CELLS, "BK": 1 << (len(opposite) - 1).bit_length(), "num_warps": 1}
    mask = known.to(torch.uint8).contiguous()

    def launch_step(number: int) -> None:
        kernels.step_kernel[grid](
            colours,
            offsets,
            opposite,
            by_score,
            now,
            initial,
            first,
            second,
            factors,
            n_batch=batch,
            rate=RATE / (1 - BETA_1 ** max(number, 1)),
            so_far_2=1 - BETA_2 ** max(number, 1),
            BETA_1=BETA_1,
            BETA_2=BETA_2,
            EPSILON=EPSILON,
            PULL=2 * PRIOR / 3,
            UPDATE=number > 0,
            **sizes,
            **shape,
        )

    launch_step(0)
    for number in range(1, steps + 1):
        kernels.predict_kernel[grid](
            values,
            colours,
            mask,
            offsets,
            factors,
            by_score,
            n_channels=values.shape[1],
            ROUNDING=ROUNDING,
            **sizes,
            **shape,
        )
        launch_step(number)
    return now.to(raw.dtype)
