"""How coarse may the signal be, and how fine the output? Grids of 4 to 32 cells a side; outputs of 64 to 1024 pixels.

Every image is its central square, brought to the output's size: by exact averages where it shrinks, bicubic where it
grows (truths of depth, labels and normals take the nearest pixel, so that no values are mixed across edges). A grown
image has no more detail than it had; its rows say how the methods scale, and not how sharp the world is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import ua
from experiments import _ablation_report as reports
from experiments import _bench as bench
from experiments import _effects as effects
from experiments._effects import Effect
from experiments._panels import signal_panels
from ua import metrics, plots
from ua.datasets import Sample
from ua.degrade import area
from ua.tracking import Row, Tracker

SHOWN = ("PSNR", "depth", "features", "mIoU")  # in the figures


@dataclass(frozen=True)
class Config(bench.Common):
    """What the YAML of this experiment holds, besides `bench.Common`.

    Attributes:
        cells: cells a side, each >= 1, all at the output `output`.
        output: pixels a side, >= the most cells.
        outputs: pixels a side, all with `output_cells` cells a side.
        output_cells: cells a side, >= 1.
        picture: name of the sample that is shown; None, or one that is not among the data: no picture.
    """

    cells: list[int]
    output: int
    outputs: list[int]
    output_cells: int
    picture: str | None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("cells", "outputs"):
            if not getattr(self, key) or min(getattr(self, key)) < 1:
                raise ValueError(f"{key} must be numbers >= 1, at least one, got {getattr(self, key)}")
        if min(self.output, *self.outputs) < metrics.SSIM_WINDOW:
            raise ValueError(f"output and outputs must be at least {metrics.SSIM_WINDOW}, the window of SSIM")
        if self.output < max(self.cells):
            raise ValueError(f"output must be at least the most cells, {max(self.cells)}, got {self.output}")
        if not 1 <= self.output_cells <= min(self.outputs):
            raise ValueError(f"output_cells must be 1 to {min(self.outputs)}, got {self.output_cells}")
        bench.check_different("presets and baselines", self.baseline, self.presets)


def run(config: Config, tracker: Tracker) -> dict[str, Any]:
    """Measures what metrics.csv does not hold yet, then draws and sums up all of it.

    Returns:
        The summary: the images, and the means of every regime, size, modality and method.

    Raises:
        TypeError, ValueError, FileNotFoundError: an unknown name or option, or no data at all.
    """
    fits = {name: ua.preset(name) for name in config.presets}
    device, samples, methods = bench.prepare(config, fits, tracker)
    for sample in bench.each(samples, device, tracker):
        for output, cells in sizes(config):
            problem = problem_of(config, sample, output, cells, device)
            guide = bench.clean(problem.sample, device)
            scale = max(1, round(output / cells))
            bench.measure(
                problem, guide, methods, tracker, reconstruction=True, output=output, cells=cells, scale=scale
            )
    for sample in bench.shown(samples, [config.picture], tracker):
        tracker.figure(f"panels_{sample.name}", picture(config, sample, methods, device))
    return {"images": [sample.name for sample in samples], **report(config, tracker)}


def sizes(config: Config) -> list[tuple[int, int]]:
    """(output, cells) of everything that is measured, each once."""
    grids = [(config.output, cells) for cells in config.cells]
    return effects.in_order([*grids, *((output, config.output_cells) for output in config.outputs)])


def problem_of(config: Config, sample: Sample, output: int, cells: int, device: str) -> bench.Problem:
    """The sample at the output's size, on a square grid."""
    return bench.Problem(resized(sample, output), (cells, cells), config.regimes, config.degradation_seed, device)


def resized(sample: Sample, side: int) -> Sample:
    """The central square of the sample at `side` x `side` pixels; its name says the size, its scene stays."""
    height, width = sample.image.shape[-2:]
    full = min(height, width)
    top, left = (height - full) // 2, (width - full) // 2

    def square(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[..., top : top + full, left : left + full]

    def nearest(values: Tensor | None) -> Tensor | None:
        if values is None:
            return None
        places = ((torch.arange(side) + 0.5) * full / side).long()
        return values[..., top + places[:, None], left + places].contiguous()

    image = square(sample.image)
    assert image is not None
    if side < full:
        image = area(image, (side, side))[0].clamp(0, 1)  # roundoff
    elif side > full:
        image = functional.interpolate(image[None], (side, side), mode="bicubic", align_corners=False)[0].clamp(0, 1)
    return dataclasses.replace(
        sample,
        name=f"{sample.name} {side}",
        scene=sample.scene or sample.name,
        image=image.contiguous(),
        depth=nearest(sample.depth),
        depth_valid=nearest(sample.depth_valid),
        labels=nearest(sample.labels),
        normals=nearest(sample.normals),
        normals_valid=nearest(sample.normals_valid),
        bands=None,
    )


def report(config: Config, tracker: Tracker) -> dict[str, Any]:
    """A table for each size and regime, and two figures a regime: over the cells and over the output."""
    result: dict[str, Any] = {}
    for regime in config.regimes:
        parts = {size: part_of(tracker.rows, regime, *size) for size in sizes(config)}
        for (output, cells), part in parts.items():
            result.setdefault(regime, {})[f"{output} px, {cells} cells"] = reports.report(
                tracker,
                f"ablation_resolution_{regime}_{output}px_{cells}cells",
                part,
                f"{cells} x {cells} cells to {output} x {output} pixels; LR signal: {regime}",
            )
        grids = {float(cells): parts[config.output, cells] for cells in sorted(config.cells)}
        title = f"Against bilinear, {config.output} x {config.output} pixels; LR signal: {regime}"
        reports.lines(tracker, f"cells_{regime}", grids, SHOWN, "cells a side", title)
        outputs = {float(output): parts[output, config.output_cells] for output in sorted(config.outputs)}
        title = f"Against bilinear, {config.output_cells} x {config.output_cells} cells; LR signal: {regime}"
        reports.lines(tracker, f"output_{regime}", outputs, SHOWN, "pixels a side", title)
    return result


def part_of(rows: Sequence[Row], regime: str, output: int, cells: int) -> list[Effect]:
    """The effects of one regime and size."""
    found = [row for row in rows if (row["output"], row["cells"]) == (output, cells)]
    return effects.of_regime(effects.against(found, apart=False), regime)


def picture(config: Config, sample: Sample, methods: Mapping[str, bench.Method], device: str) -> Any:
    """The features (the paper's figure 5): guide, LR, bilinear, presets and truth, a row for each grid."""
    rows, titles = [], []
    for cells in config.cells:
        problem = problem_of(config, sample, config.output, cells, device)
        image = problem.sample.image[None].to(device)
        signal = problem.signals[config.regimes[0], "features"]
        results = {
            name.replace("_", " "): methods[name].prepare(image, problem.grid)(signal.low, signal.low_valid)[0]
            for name in [bench.YARDSTICK, *config.presets][:4]
        }
        guide = plots.Panel(plots.image(image[0]), "guide", f"{config.output} x {config.output}")
        rows.append([guide, *signal_panels(signal, results)[: len(results) + 2]])  # no errors
        titles.append(f"{cells} cells")
    return plots.panels(rows, row_titles=titles, width=1.9)
