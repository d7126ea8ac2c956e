"""Pictures of signals for the panel figures of experiments: LR, results, truth, errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from experiments._bench import Signal, score
from ua import plots

MEASURES = {"miou": "mIoU", "depth_rmse": "RMSE", "feature_rmse": "RMSE"}  # what a panel of each signal states
NOT_SHOWN = "normals"


def signal_panels(signal: Signal, results: Mapping[str, Tensor]) -> list[plots.Panel]:
    """LR, every result, the truth, and the error of every result, in colours that they share."""
    low, truth = signal.low[0], signal.truth
    known = torch.ones_like(truth[0], dtype=torch.bool) if signal.valid is None else signal.valid
    known_low = torch.ones_like(low[0], dtype=torch.bool) if signal.low_valid is None else signal.low_valid[0]
    if signal.name == "labels":
        maps = [result.argmax(0) for result in results.values()]
        views = [plots.classes(labels) for labels in (low.argmax(0).masked_fill(~known_low, -1), *maps, truth[0])]
        errors = [(labels != truth[0]).float() for labels in maps]
        measure, worst = "miou", 1.5  # wrong pixels in a middle colour
        truth_name = f"{signal.classes} classes; grey: unknown"
        error_names = [f"wrong: {error[known].mean():.0%} of the pixels" for error in errors]
    elif signal.name == "depth":
        near, far = (torch.quantile(truth[0][known], share).item() for share in (0.01, 0.99))
        maps = [hide(low[0], known_low), *(result[0] for result in results.values()), hide(truth[0], known)]
        views = [plots.quantity(depth, near, far) for depth in maps]
        errors = [(result - truth)[0].abs() for result in results.values()]
        measure, worst = "depth_rmse", high(errors, known)
        truth_name = f"{near:.3g} to {far:.3g} {signal.unit}"
        error_names = [f"absolute error, 0 to {worst:.2g}"] * len(errors)
    else:
        views = plots.pca(low, low, *results.values(), truth)
        errors = [(result - truth).norm(dim=0) for result in results.values()]
        measure, worst = "feature_rmse", high(errors, known)
        truth_name = "colours: PCA of the LR features"
        error_names = [f"length of the error, 0 to {worst:.2g}"] * len(errors)
    captions = [f"{MEASURES[measure]} {score(signal, result)[measure]:.3f}" for result in results.values()]
    heat = [plots.quantity(hide(error, known), 0, worst, "inferno") for error in errors]
    return [
        plots.Panel(views[0], "LR", f"{low.shape[-2]} x {low.shape[-1]}"),
        *(plots.Panel(*panel) for panel in zip(views[1:-1], results, captions, strict=True)),
        plots.Panel(views[-1], "truth", truth_name),
        *(plots.Panel(*panel) for panel in zip(heat, (f"error: {name}" for name in results), error_names, strict=True)),
    ]


def hide(values: Tensor, known: Tensor) -> Tensor:
    """NaN, which pictures show in grey, where nothing is known."""
    return values.masked_fill(~known, math.nan)


def high(errors: Sequence[Tensor], known: Tensor) -> float:
    """The 99th percentile of the worst of these error maps: the end of their common colour scale."""
    return max(torch.quantile(error[known], 0.99).item() for error in errors)
