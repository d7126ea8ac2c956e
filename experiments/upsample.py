"""One's own files: a guide and a low-resolution signal in, the high-resolution signal and pictures of it out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ua
from ua import io, plots
from ua.averages import averages_truth
from ua.rendering import kind_matters
from ua.tracking import Tracker, choose_device, now


@dataclass(frozen=True)
class Config:
    """What the YAML of this experiment holds.

    Attributes:
        image, signal, output: files; see `ua.io.load_image`, `load_signal` and `save_signal` for the formats.
        kind: of the signal, as in `ua.io.load_signal`; None to tell by the file.
        fit: settings.
        backend: as in `ua.fit`.
        device: "auto" (a GPU where there is one) or a name that torch knows.
    """

    image: str
    signal: str
    output: str
    kind: str | None
    fit: ua.FitConfig
    backend: str
    device: str


def run(config: Config, tracker: Tracker) -> dict[str, Any]:
    """Writes `output`, figures/result.png (pixel for pixel) and figures/overview.png (guide, LR, result).

    Returns:
        The summary: what was written, what "auto" took the signal for, its shape (C, H, W), the grid (h, w), seconds of
        the fit and of the render.

    Raises:
        FileNotFoundError, ValueError: a file that is missing, broken or cannot be written, before anything is computed;
            the message begins with the key that names it. TypeError, ValueError: as `ua.fit` and `Fit.render`.
    """
    device = choose_device(config.device)
    with about("image"):
        image = io.load_image(config.image).to(device)
    with about("signal"):
        signal = io.load_signal(config.signal, config.kind)
    with about("output"):
        io.check_output(config.output, like=signal)
    valid = None if signal.valid is None else signal.valid.to(device)
    rows, cols = signal.values.shape[-2:]
    tracker.say(f"{signal.kind} {tuple(signal.values.shape)} -> {len(signal.values), *image.shape[-2:]}")

    settings = config.fit.replace(signal_is=what_signal_is(signal, config.fit))
    if settings != config.fit:
        other = "prediction" if settings.signal_is == "average" else "average"
        tracker.say(f"fit.signal_is=auto: taken for {settings.signal_is}; fit.signal_is={other} says otherwise")
    start = now(device)
    fit = ua.fit(image, (rows, cols), backend=config.backend, **dataclasses.asdict(settings))
    fitted = now(device)
    result = fit.render(signal.values.to(device), valid)[0]
    rendered = now(device)

    io.save_signal(config.output, result, like=signal)
    if signal.kind == "depth" and config.output.lower().endswith(".png"):
        lost = int((result < 0.5).sum())  # NaN, which was missing before, is not below
        if lost:
            advice = "try fit.back_projections=0 fit.diffusions=0"
            tracker.say(f"{lost} pixels lie below half a unit and read as missing in a PNG: {advice}")
    for step, loss in enumerate(fit.losses[:, 0].tolist(), start=1):
        if tracker.find(step=step) is None:
            tracker.log({"loss": loss}, step=step)
    low_picture, picture = pictures(signal, result)
    path = tracker.folder / "figures" / "result.png"
    path.parent.mkdir(exist_ok=True)
    plots.save_picture(picture, path)
    height, width = image.shape[-2:]
    guide = plots.Panel(plots.image(image), "guide", f"{height} x {width}")
    low = plots.Panel(low_picture, f"{signal.kind}, LR", f"{rows} x {cols}")
    tracker.figure(
        "overview",
        plots.panels([[guide, low, plots.Panel(picture, "upsampled", f"{height} x {width}")]], width=3.4),
    )
    tracker.say(f"wrote {config.output}; pictures are in {path.parent}")
    return {
        "output": config.output,
        "kind": signal.kind,
        "signal_is": settings.signal_is,
        "shape": list(result.shape),
        "grid": [rows, cols],
        "fit_seconds": fitted - start,
        "render_seconds": rendered - fitted,
    }


def what_signal_is(signal: io.Signal, settings: ua.FitConfig) -> str:
    """`signal_is` of the settings, "auto" decided where it matters. Probabilities in a file come from a network."""
    if settings.signal_is != "auto" or not kind_matters(settings):
        return settings.signal_is
    known = None if signal.valid is None else signal.valid[None]
    average = signal.kind != "probabilities" and bool(averages_truth(signal.values[None], known))
    return "average" if average else "prediction"


@contextmanager
def about(key: str) -> Iterator[None]:
    """Within, errors about a file say which key of the configuration named it."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"{key}: {error}") from error


def pictures(signal: io.Signal, result: Tensor) -> list[plots.Picture]:
    """The signal and its upsampled version (C, H, W) in colours that they share; what is not known is grey."""
    low = signal.values
    known = torch.ones_like(low[0], dtype=torch.bool) if signal.valid is None else signal.valid
    if signal.kind in ("labels", "probabilities"):
        maps = low.argmax(0), result.argmax(0)
        colours = plots.class_colours(maps[1], len(low))
        if signal.palette is not None and signal.classes is not None:
            palette = np.zeros((256, 3))  # a file may leave out the colours that it does not use
            palette[: len(signal.palette) // 3] = np.array(signal.palette).reshape(-1, 3) / 255
            colours = palette[list(signal.classes)]
        return [plots.classes(labels, colours) for labels in maps]
    if len(low) == 1:
        near, far = (torch.quantile(low[0][known], share).item() for share in (0.01, 0.99))
        return [plots.quantity(maps[0], near, far) for maps in (low.masked_fill(~known, torch.nan), result)]
    return plots.pca(low, low, result)
