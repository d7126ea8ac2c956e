"""How many steps of the fit are worth it? The shape of the paper's table 6, with transfer beside colour.

Every image is fitted once with the most steps and looked at on the way (the learning rate does not depend on the number
of steps, so the look is what a shorter fit would have ended with). Scored are the refitted image, which is what the fit
optimises, and what people use the Gaussians for: depth, a descriptor bank and label maps, each averaged from its true
high-resolution version to the LR grid and upsampled again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import ua
from ua import datasets, metrics, plots, plugins
from ua.baselines import bilinear
from ua.datasets import Sample
from ua.degrade import area, one_hot
from ua.features import descriptor_bank
from ua.rendering import to_grid
from ua.tracking import Row, Tracker, choose_device, now

FITTED = "fit"  # the method of rows whose step counts; baselines and presets go by their names
# name -> (how it is called in tables and plots, format, which is better)
COLUMNS = {
    "loss": ("L1 loss", ".4f", "min"),
    "psnr": ("PSNR (dB)", ".2f", "max"),
    "ssim": ("SSIM", ".3f", "max"),
    "depth_rmse_ratio": ("depth RMSE / bilinear", ".3f", "min"),
    "depth_delta1": ("depth delta1", ".3f", "max"),
    "feature_rmse_ratio": ("feature RMSE / bilinear", ".3f", "min"),
    "feature_cosine": ("feature cosine", ".3f", "max"),
    "miou": ("mIoU", ".3f", "max"),
    "boundary_miou": ("boundary mIoU", ".3f", "max"),
    "seconds": ("seconds", ".3f", "min"),
}
MEASURES = {"miou": "mIoU", "depth_rmse": "RMSE", "feature_rmse": "RMSE"}  # what a panel of each signal states
CURVES = ("psnr", "depth_rmse_ratio", "feature_rmse_ratio", "miou")


@dataclass(frozen=True)
class DataConfig:
    """A module of `ua.datasets` by its `name`, and the arguments of its `load`."""

    name: str
    options: dict[str, Any]


@dataclass(frozen=True)
class PictureConfig:
    """What the panel picture shows.

    Attributes:
        image: name of a sample; one that is not among the data gives no picture.
        scale: HR pixels per LR cell, >= 1.
        steps: of the fit, >= 0.
    """

    image: str
    scale: int
    steps: int

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise ValueError(f"picture.scale must be >= 1, got {self.scale}")
        if self.steps < 0:
            raise ValueError(f"picture.steps must be >= 0, got {self.steps}")


@dataclass(frozen=True)
class Config:
    """What the YAML of this experiment holds.

    Attributes:
        data: images with a truth.
        fit: settings, of which `steps` is not used.
        baseline: modules of `ua.baselines` with the options of each.
        presets: of the library, shown beside the baselines with their own steps.
        steps: numbers of steps to look at, each >= 0.
        scales: HR pixels per LR cell, each >= 1.
        picture: the panel picture.
        backend: as in `ua.fit`.
        device: "auto" (a GPU where there is one) or a name that torch knows.
    """

    data: DataConfig
    fit: ua.FitConfig
    baseline: dict[str, dict[str, Any]]
    presets: list[str]
    steps: list[int]
    scales: list[int]
    picture: PictureConfig
    backend: str
    device: str

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 0:
            raise ValueError(f"steps must be numbers >= 0, at least one, got {self.steps}")
        if not self.scales or min(self.scales) < 1:
            raise ValueError(f"scales must be numbers >= 1, at least one, got {self.scales}")
        for name in self.presets:
            ua.preset(name)  # raises where there is none: before the first measurement, not after it


@dataclass(frozen=True, eq=False)
class Signal:
    """Something to upsample.

    Attributes:
        name: "features", "depth" or "labels".
        low: (1, C, h, w).
        low_valid: bool (1, h, w), the known cells; None: all.
        truth: (C, H, W), for labels the class map (1, H, W).
        valid: bool (H, W), the pixels whose truth is known; None: all.
        classes: number of classes of a label map, else 0.
        unit: of depth.
    """

    name: str
    low: Tensor
    low_valid: Tensor | None
    truth: Tensor
    valid: Tensor | None = None
    classes: int = 0
    unit: str = ""


FITTED_STYLE = {"color": plots.BLUE, "linewidth": 2.0, "zorder": 3}
PRESET_STYLE = {"color": plots.SKY, "linestyle": "-", "linewidth": 1.6}

# Takes (1, C, h, w) and its mask of known cells, gives (1, C, H, W).
Upsampler = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The Gaussians after some steps, and the seconds that the fit had taken by then."""

    fit: ua.Fit
    seconds: float


def run(config: Config, tracker: Tracker) -> dict[str, Any]:
    """Measures what metrics.csv does not hold yet, then draws and sums up all of it.

    Returns:
        The summary, see `summary`.

    Raises:
        TypeError, ValueError, FileNotFoundError: an unknown name, or an option or a file of the data that is not there.
    """
    device = choose_device(config.device)
    samples = datasets.load(config.data.name, **config.data.options)
    work = [(sample, scale) for sample in samples for scale in config.scales]
    warm_up(config, device)
    for number, (sample, scale) in enumerate(work, start=1):
        start = now(device)
        measure(config, sample, scale, device, tracker)
        tracker.say(f"[{number}/{len(work)}] {sample.name} x{scale}: {now(device) - start:.1f} s")
    means = average(tracker.rows)
    report(config, means, tracker)
    for sample in samples:
        if sample.name == config.picture.image:
            tracker.figure(f"panels_{sample.name}_x{config.picture.scale}", picture(config, sample, device))
    return summary(samples, means)


def warm_up(config: Config, device: str) -> None:
    """Compiles what is compiled on first use, so that no measurement pays for it."""
    image = torch.rand(1, 3, 64, 64, device=device)
    known = torch.ones(1, 4, 4, dtype=torch.bool, device=device)
    for settings in (config.fit, *map(ua.preset, config.presets)):
        steps = min(2, settings.steps) if settings is not config.fit else 2
        fit = ua.fit(image, (4, 4), backend=config.backend, **dataclasses.asdict(settings) | {"steps": steps})
        fit.render(torch.rand(1, 32, 4, 4, device=device))
        fit.render(torch.rand(1, 1, 4, 4, device=device), known)


def measure(config: Config, sample: Sample, scale: int, device: str, tracker: Tracker) -> None:
    """Adds the rows of one image and scale that are missing: of each baseline, preset and number of steps."""
    image, (features, *others) = prepare(sample, scale, device)
    low_image = to_grid(image, grid_of(image, scale), config.fit.image_lr)

    def add(upsample: Upsampler, fit_seconds: float, method: str, step: int | None) -> None:
        start = now(device)
        result = upsample(features.low, None)[0]
        seconds = fit_seconds + now(device) - start
        values = score_image(upsample(low_image, None), image) | score(features, result)
        for signal in others:
            values |= score(signal, upsample(signal.low, signal.low_valid)[0])
        tracker.log(values | {"seconds": seconds}, image=sample.name, scale=scale, method=method, step=step)

    for name, options in baselines(config).items():
        if tracker.find(image=sample.name, scale=scale, method=name) is None:
            add(baseline(name, options, image), 0.0, name, None)
    for name in config.presets:
        if tracker.find(image=sample.name, scale=scale, method=f"preset_{name}") is None:
            start = now(device)
            fit = ua.fit(image, grid_of(image, scale), preset=name, backend=config.backend)
            add(rendering(fit), now(device) - start, f"preset_{name}", None)
    missing = [
        step for step in config.steps if tracker.find(image=sample.name, scale=scale, method=FITTED, step=step) is None
    ]
    if missing:
        for step, snapshot in snapshots(config, image, scale, missing).items():
            add(rendering(snapshot.fit), snapshot.seconds, FITTED, step)


def prepare(sample: Sample, scale: int, device: str) -> tuple[Tensor, list[Signal]]:
    """The guide (1, 3, H, W) and every signal of the sample averaged to the LR grid, the features first."""
    image = sample.image[None].to(device)
    grid = grid_of(image, scale)
    bank = descriptor_bank(image)[0]
    signals = [Signal("features", area(bank, grid)[0][None], None, bank)]
    if sample.depth is not None and sample.depth_valid is not None:
        depth, valid = sample.depth.to(device), sample.depth_valid.to(device)
        low, low_valid = area(depth, grid, valid)
        signals.append(Signal("depth", low[None], low_valid[None], depth, valid, unit=sample.depth_unit))
    if sample.labels is not None:
        labels = sample.labels.to(device)
        maps, valid = one_hot(labels, sample.num_classes)
        low, low_valid = area(maps, grid, valid)
        signals.append(Signal("labels", low[None], low_valid[None], labels[None], valid, sample.num_classes))
    return image, signals


def grid_of(image: Tensor, scale: int) -> tuple[int, int]:
    """Cells (h, w) of about `scale` pixels a side."""
    return max(1, round(image.shape[-2] / scale)), max(1, round(image.shape[-1] / scale))


def snapshots(config: Config, image: Tensor, scale: int, steps: Sequence[int]) -> dict[int, Snapshot]:
    """One fit of max(steps) steps, kept after each of `steps`."""
    device, grid = image.device, grid_of(image, scale)
    settings = dataclasses.asdict(config.fit)
    kept: dict[int, tuple[ua.Gaussians, float]] = {}

    def keep(step: int, _: Tensor, gaussians: ua.Gaussians) -> None:
        if step in steps:
            kept[step] = (gaussians, now(device) - start)

    start = now(device)
    initial = ua.fit(image, grid, backend=config.backend, **settings | {"steps": 0})
    seconds = now(device) - start
    start = now(device)
    ua.fit(image, grid, backend=config.backend, callback=keep, **settings | {"steps": max(steps)})
    # A parameterisation without parameters takes no steps: every number of them gives the initial Gaussians.
    at = {step: kept.get(step, (initial.gaussians, seconds)) for step in sorted(steps)}
    return {step: Snapshot(initial.with_gaussians(gaussians), seconds) for step, (gaussians, seconds) in at.items()}


def baselines(config: Config) -> dict[str, dict[str, Any]]:
    """Those of the configuration, and bilinear in any case: it is the yardstick."""
    return {"bilinear": {}, **config.baseline}


def baseline(name: str, options: Mapping[str, Any], image: Tensor) -> Upsampler:
    """A module of `ua.baselines` as a function of the signal."""
    module = plugins.find("ua.baselines", name, needs="upsample", kind="baseline")
    plugins.check_options(module.upsample, options, f"baseline {name!r}")
    return lambda low, valid: module.upsample(image, low, valid, **options)


def rendering(fit: ua.Fit) -> Upsampler:
    """`fit.render`; a pixel that no known cell reaches takes the bilinear value."""

    def upsample(low: Tensor, valid: Tensor | None) -> Tensor:
        result = fit.render(low, valid)
        if valid is None:
            return result
        return torch.where(result.isnan(), bilinear.upsample(fit.image, low, valid), result)

    return upsample


def score_image(refitted: Tensor, image: Tensor) -> dict[str, float]:
    """What the fit optimises (the L1 loss) and the usual measures of the same thing."""
    return {
        "loss": (refitted - image).abs().mean().item(),
        "psnr": metrics.psnr(refitted, image),
        "ssim": metrics.ssim(refitted, image),
    }


def score(signal: Signal, result: Tensor) -> dict[str, float]:
    """What people use the Gaussians for. result: (C, H, W)."""
    truth, valid = signal.truth, signal.valid
    if signal.name == "labels":
        classes = result.argmax(0)
        return {
            "miou": metrics.miou(classes, truth[0], signal.classes),
            "boundary_miou": metrics.boundary_miou(classes, truth[0], signal.classes),
        }
    if signal.name == "depth":
        return {
            "depth_rmse": metrics.depth_rmse(result, truth, valid),
            "depth_delta1": metrics.depth_delta1(result, truth, valid),
        }
    return {
        "feature_rmse": metrics.feature_rmse(result, truth, valid),
        "feature_cosine": metrics.feature_cosine(result, truth, valid),
    }


def average(rows: Sequence[Row]) -> list[Row]:
    """Means over the images for each scale, method and step, RMSE also as the mean ratio to bilinear."""
    yardstick = {(row["image"], row["scale"]): row for row in rows if row["method"] == "bilinear"}
    groups: dict[tuple[int, str, int | None], list[Row]] = {}
    for row in rows:
        ratios = {
            f"{name}_ratio": row[name] / yardstick[row["image"], row["scale"]][name]
            for name in ("depth_rmse", "feature_rmse")
            if name in row
        }
        groups.setdefault((row["scale"], row["method"], row["step"]), []).append(row | ratios)
    means = []
    for (scale, method, step), members in groups.items():
        measured = {name: [member[name] for member in members if name in member] for name in COLUMNS}
        mean = {name: sum(values) / len(values) for name, values in measured.items() if values}
        means.append({"scale": scale, "method": method, "step": step, **mean})
    return sorted(means, key=lambda row: (row["scale"], row["method"] == FITTED, row["step"] or 0))


def report(config: Config, means: Sequence[Row], tracker: Tracker) -> None:
    """A table and a figure of convergence for each scale."""
    over = coverage(tracker.rows)
    for scale in config.scales:
        rows = [row for row in means if row["scale"] == scale]
        tracker.table(
            f"ablation_iters_x{scale}",
            [
                {
                    "method": row["method"],
                    "steps": row["step"],
                    **{COLUMNS[name][0]: row.get(name) for name in COLUMNS},
                }
                for row in rows
            ],
            formats={title: form for title, form, _ in COLUMNS.values()},
            best={title: which for title, _, which in COLUMNS.values()},
            caption=f"Steps of the fit, {scale} pixels a cell, {over}; seconds for 32 channels.",
        )
        name = f"fit ({settings_name(config.fit)})"
        tracker.figure(f"convergence_x{scale}", convergence(rows, name, f"{scale} pixels a cell, {over}"))


def settings_name(fit: ua.FitConfig) -> str:
    """The preset that the settings are, whatever their steps, or "own settings"."""
    same = (name for name, preset in ua.PRESETS.items() if preset.replace(steps=fit.steps) == fit)
    return next(same, "own settings")


def coverage(rows: Sequence[Row]) -> str:
    """How many images the means are over; not every image has every truth."""
    everything, depth, labels = (
        len({row["image"] for row in rows if name in row}) for name in ("feature_rmse", "depth_rmse", "miou")
    )
    return f"means over {everything} images (depth: {depth}, labels: {labels})"


def convergence(rows: Sequence[Row], fit_name: str, title: str) -> Any:
    """Quality against steps (above) and against seconds (below), the baselines as horizontal lines."""
    measured = [name for name in CURVES if any(name in row for row in rows)]
    fitted = [row for row in rows if row["method"] == FITTED]
    others = [row for row in rows if row["method"] != FITTED]

    styles = iter(plots.baseline_styles())
    style = {row["method"]: PRESET_STYLE if "preset" in row["method"] else next(styles, {}) for row in others}

    def lines(name: str, against: str) -> list[plots.Curve]:
        xs, ys = [row[against] for row in fitted], [row[name] for row in fitted]
        return [plots.Curve(fit_name, xs, ys, FITTED_STYLE)] + [
            plots.Curve(
                row["method"].replace("_", " "),
                [row["seconds"]] if against == "seconds" else [],
                [row[name]],
                style[row["method"]],
                level=True,
            )
            for row in others
        ]

    arrow = {"max": "\N{UPWARDS ARROW}", "min": "\N{DOWNWARDS ARROW}"}
    titles = {name: f"{COLUMNS[name][0]} {arrow[COLUMNS[name][2]]}" for name in measured}
    ticks = [row["step"] for row in fitted]
    return plots.curves(
        [
            [plots.Plot(lines(name, "step"), titles[name], "steps", ticks=ticks) for name in measured],
            [plots.Plot(lines(name, "seconds"), "", "seconds, fit and render") for name in measured],
        ],
        title=title,
    )


def picture(config: Config, sample: Sample, device: str) -> Any:
    """Guide, LR, bilinear, fit, presets, truth and errors, a row for each signal of the sample."""
    scale, steps = config.picture.scale, config.picture.steps
    image, signals = prepare(sample, scale, device)
    fit = snapshots(config, image, scale, [steps])[steps].fit
    methods = {
        "bilinear": baseline("bilinear", {}, image),
        f"{settings_name(config.fit)}, {steps} steps": rendering(fit),
    }
    for name in config.presets:
        methods[f"preset {name}"] = rendering(ua.fit(image, grid_of(image, scale), preset=name, backend=config.backend))
    rows = []
    for number, signal in enumerate(signals):
        results = {name: upsample(signal.low, signal.low_valid)[0] for name, upsample in methods.items()}
        rows.append([guide_panel(number, image, fit, scale), *signal_panels(signal, results)])
    return plots.panels(rows, row_titles=[signal.name for signal in signals], width=1.9)


def guide_panel(number: int, image: Tensor, fit: ua.Fit, scale: int) -> plots.Panel:
    """The first column: the guide, then what the fit sees and makes of it."""
    if number == 0:
        return plots.Panel(plots.image(image[0]), "guide", f"{image.shape[-2]} x {image.shape[-1]}")
    if number == 1:
        low = to_grid(image, grid_of(image, scale), fit.config.image_lr)
        return plots.Panel(plots.image(low[0]), "guide, LR", f"{low.shape[-2]} x {low.shape[-1]}")
    refitted = fit.reconstruct()
    return plots.Panel(plots.image(refitted[0]), "guide, refitted", f"PSNR {metrics.psnr(refitted, image):.1f} dB")


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


def summary(samples: Sequence[Sample], means: Sequence[Row]) -> dict[str, Any]:
    """Means by scale, method and steps, and which number of steps is best for each measure."""
    scales = sorted({row["scale"] for row in means})
    result: dict[str, Any] = {"images": [sample.name for sample in samples]}
    for scale in scales:
        methods: dict[str, Any] = {}
        for row in (row for row in means if row["scale"] == scale):
            values = {name: row[name] for name in COLUMNS if name in row}
            if row["method"] == FITTED:
                methods.setdefault(FITTED, {})[str(row["step"])] = values
            else:
                methods[row["method"]] = values
        fitted = [row for row in means if row["scale"] == scale and row["method"] == FITTED]
        best = {
            name: (min if which == "min" else max)(fitted, key=lambda row: row[name])["step"]
            for name, (_, _, which) in COLUMNS.items()
            if name != "seconds" and name in fitted[0]
        }
        result[f"x{scale}"] = {"best_steps": best, "means": methods}
    return result
