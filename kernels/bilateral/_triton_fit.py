"""Whole fit steps on the GPU: three launches a step, all steps in one CUDA graph that the next image replays.

Parameters, Adam's averages and the key table stay in the memory of a `FitSteps`; one is kept for every shape and
setting of late, since capturing costs as much as some fits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from kernels.bilateral import _triton_kernels as kernels
from kernels.bilateral import _triton_launch as launch
from kernels.geometry import Support

# One fit at a time fills and replays the memory that is kept.
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Settings:
    """All that a captured fit depends on; see `kernels.bilateral.triton.fit_anisotropic`. size: (B, G, H, W)."""

    size: tuple[int, int, int, int]
    grid: tuple[int, int]
    device: torch.device
    support: Support
    cells_per_pixel: float
    floor: float
    epsilon: float
    lr: float
    lr_decay: float
    steps: int


class FitSteps:
    """Static memory of one fit, and the launches that work on it."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        batch, channels, height, width = settings.size
        varies = settings.cells_per_pixel > 0

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float32, device=settings.device)

        cells = settings.grid[0] * settings.grid[1]
        self.guide, self.source = zeros(*settings.size), zeros(batch, cells, channels)
        self.raw, self.first, self.second = (zeros(4, batch, *settings.grid) for _ in range(3))
        self.reach = zeros(batch, *settings.grid) if varies else None
        radius = torch.zeros(batch, height, width, dtype=torch.int32, device=settings.device) if varies else None
        self.inputs = launch.Inputs(self.guide, zeros(batch, cells, 5 + channels), radius, None)
        self.grid = launch.Grid.of(self.raw, self.guide, settings.support, varies)
        self.buffers = launch.loss_buffers(self.inputs, self.grid)
        # Rows of whole 16 bytes: Triton compiles anew for a pointer of another alignment, which a capture may not do.
        self.losses = zeros(settings.steps, -(-self.buffers.losses.numel() // 4) * 4)
        self.done = torch.cuda.Event() if settings.device.type == "cuda" else None
        self.graph: torch.cuda.CUDAGraph | None = None

    def load(self, source: Tensor, guide: Tensor, guide_lr: Tensor, raw: Tensor) -> None:
        """Another image, and where its parameters start."""
        self.guide.copy_(guide)
        self.source.copy_(launch.channels_last(source))
        self.inputs.table[:, :, 5:].copy_(launch.channels_last(guide_lr))
        self.raw.copy_(raw)
        self.first.zero_()
        self.second.zero_()
        self._launch_step(update=False, rate=0.0, correction=1.0)

    def step(self, number: int) -> None:
        """Step `number`, counted from 1: loss and moments, then Adam."""
        launch.launch_loss(self.source, self.inputs, self.grid, self.buffers, self.losses[number - 1], self.reach)
        rate = self.settings.lr * self.settings.lr_decay ** (number - 1) / (1 - 0.9**number)
        self._launch_step(update=True, rate=rate, correction=(1 - 0.999**number) ** 0.5)

    def _launch_step(self, *, update: bool, rate: float, correction: float) -> None:
        grid, settings = self.grid, self.settings
        kernels.step_kernel[(grid.cells, grid.batch)](
            self.buffers.partial,
            grid.tables.offsets,
            self.raw,
            self.first,
            self.second,
            self.inputs.table,
            self.reach,
            n_rows=grid.rows,
            n_cols=grid.cols,
            n_slots=grid.slots,
            n_batch=grid.batch,
            n_values=self.guide[0].numel(),
            rate=rate,
            correction=correction,
            floor=settings.floor,
            epsilon=settings.epsilon,
            cells_per_pixel=settings.cells_per_pixel,
            G=grid.guide_channels,
            BS=launch.SLOTS_PER_BLOCK,
            UPDATE=update,
            num_warps=2,
        )

    def all_steps(self) -> None:
        """Every step from the state that `load` left: one graph on a GPU, plain launches under the interpreter."""
        if self.settings.device.type != "cuda":
            self._launch_all()
            return
        if self.graph is None:
            self.graph = self._capture()
        self.graph.replay()

    def _launch_all(self) -> None:
        for number in range(1, self.settings.steps + 1):
            self.step(number)

    def _capture(self) -> torch.cuda.CUDAGraph:
        state = (self.raw, self.first, self.second, self.inputs.table)
        kept = [tensor.clone() for tensor in state]
        self.step(1)  # compiles what is not compiled yet, which a capture may not do
        for tensor, values in zip(state, kept, strict=True):
            tensor.copy_(values)
        if self.reach is not None:
            self._launch_step(update=False, rate=0.0, correction=1.0)
        graph = torch.cuda.CUDAGraph()
        # A stream of this device (the default one belongs to the first device that ever captured); other threads may
        # allocate meanwhile.
        stream = torch.cuda.Stream(self.settings.device)
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            self._launch_all()
        return graph

    def mean_losses(self) -> Tensor:
        """Mean absolute error of every image before every step, (steps, B)."""
        batch, tiles = self.buffers.losses.shape
        return self.losses[:, : batch * tiles].unflatten(1, (batch, tiles)).sum(2) / self.guide[0].numel()

    def wait(self) -> None:
        """Wait, on the current stream, for the last fit in this memory, which may have gone on another."""
        if self.done is not None:
            self.done.wait()

    def release(self) -> None:
        """Tell the next fit when this one has left."""
        if self.done is not None:
            self.done.record()


@lru_cache(maxsize=4)
def steps_for(settings: Settings) -> FitSteps:
    """The memory and the graph for these settings, made at their first use; `steps_for.cache_clear()` frees them."""
    return FitSteps(settings)


def fit(
    source: Tensor,
    guide: Tensor,
    guide_lr: Tensor,
    raw: Tensor,
    settings: Settings,
    each: Callable[[int, Tensor], None] | None,
) -> Tensor:
    """See `kernels.bilateral.triton.fit_anisotropic`."""
    if each is not None:
        return _fit_watched(source, guide, guide_lr, raw, settings, each)
    with _LOCK, torch.no_grad(), torch.cuda.device_of(guide):
        # Ordinary tensors, whatever mode the caller is in: they outlive this call.
        with torch.inference_mode(False):
            fitted = steps_for(settings)
            fitted.wait()
            fitted.load(source, guide, guide_lr, raw)
            fitted.all_steps()
        raw.copy_(fitted.raw)
        losses = fitted.mean_losses()
        fitted.release()
        return losses


def _fit_watched(
    source: Tensor,
    guide: Tensor,
    guide_lr: Tensor,
    raw: Tensor,
    settings: Settings,
    each: Callable[[int, Tensor], None],
) -> Tensor:
    """Step by step, in memory of its own: the callback may fit other images meanwhile, and differentiate."""
    with torch.no_grad(), torch.cuda.device_of(guide):
        fitted = FitSteps(settings)
        fitted.load(source, guide, guide_lr, raw)
    for number in range(1, settings.steps + 1):
        with torch.no_grad(), torch.cuda.device_of(guide):
            fitted.step(number)
            raw.copy_(fitted.raw)
            loss = fitted.mean_losses()[number - 1]
        each(number, loss)
    return fitted.mean_losses()
