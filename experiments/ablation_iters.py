"""How many steps of the fit are worth it, at which rate, and when should one stop? The paper's table 6, with transfer.

Every image is fitted once with the most steps and looked at on the way (the learning rate does not depend on the number
of steps, so the look is what a shorter fit would have ended with). Scored are the refitted image, which is what the fit
optimises, and what people use the Gaussians for: depth, a descriptor bank and label maps, each averaged from its true
high-resolution version to the LR grid and upsampled again. Other rates and schedules are curves of their own; stopping
rules look at the loss alone, as they would in use.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

import ua
from experiments import _bench as bench
from experiments import _effects as effects
from experiments._panels import NOT_SHOWN, signal_panels
from ua import metrics, plots, plugins
from ua.datasets import Sample
from ua.rendering import to_grid
from ua.statistics import Interval, bootstrap_mean
from ua.tracking import Row, Tracker, choose_device, now

FITTED = "fit"  # the curve of `fit` itself
RELEASED = "released"
# (signal, score) -> (how it is called in tables and plots, format, which is better); ratios are to bilinear.
COLUMNS = {
    ("colour", "loss"): ("L1 loss", ".4f", "min"),
    ("colour", "psnr"): ("PSNR (dB)", ".2f", "max"),
    ("colour", "ssim"): ("SSIM", ".3f", "max"),
    ("depth", "depth_rmse"): ("depth RMSE / bilinear", ".3f", "min"),
    ("depth", "depth_delta1"): ("depth delta1", ".3f", "max"),
    ("features", "feature_rmse"): ("feature RMSE / bilinear", ".3f", "min"),
    ("features", "feature_cosine"): ("feature cosine", ".3f", "max"),
    ("labels", "miou"): ("mIoU", ".3f", "max"),
    ("labels", "boundary_miou"): ("boundary mIoU", ".3f", "max"),
    ("normals", "normal_angle"): ("angle of normals / bilinear", ".3f", "min"),
}
RATIOS = ("depth_rmse", "feature_rmse", "normal_angle")
CURVES = ("PSNR (dB)", "depth RMSE / bilinear", "feature RMSE / bilinear", "mIoU")
TICK_RATIO = 4
SECONDS = "seconds"  # of the fit and of rendering the features


@dataclass(frozen=True)
class DataConfig:
    """A module of `ua.datasets` by its `name`, and the arguments of its `load`."""

    name: str
    options: dict[str, Any]


@dataclass(frozen=True)
class PictureConfig:
    """What the panel picture shows.

    Attributes:
        image: name of a sample; None, or one that is not among the data: no picture.
        scale: HR pixels per LR cell, >= 1.
        steps: of the fit, >= 0.
    """

    image: str | None
    scale: int
    steps: int

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise ValueError(f"picture.scale must be >= 1, got {self.scale}")
        if self.steps < 0:
            raise ValueError(f"picture.steps must be >= 0, got {self.steps}")


@dataclass(frozen=True)
class StopRule:
    """Stops when the mean loss of the last `window` steps is not lower than that of the `window` steps before by more
    than this share of it.

    Attributes:
        window: steps, >= 1.
        tolerance: >= 0.
    """

    window: int
    tolerance: float

    def __post_init__(self) -> None:
        if not isinstance(self.window, int) or self.window < 1:
            raise ValueError(f"window must be an integer >= 1, got {self.window!r}")
        if not isinstance(self.tolerance, int | float) or not self.tolerance >= 0:
            raise ValueError(f"tolerance must be a number >= 0, got {self.tolerance!r}")

    def stops(self, losses: Sequence[float]) -> bool:
        """Whether it stops after a step, given the losses before that step and all earlier ones."""
        if len(losses) < 2 * self.window:
            return False
        last, earlier = sum(losses[-self.window :]), sum(losses[-2 * self.window : -self.window])
        return last >= (1 - self.tolerance) * earlier


@dataclass(frozen=True)
class Config:
    """What the YAML of this experiment holds.

    Attributes:
        data: images with a truth.
        fit: settings, of which `steps` is not used.
        curves: name -> fields of `ua.FitConfig` that differ from `fit`; `steps` is the most that this curve has. None
            may be called "fit", the curve of `fit` itself.
        stopping: name -> {window, tolerance} of a `StopRule`, for the curve of `fit`.
        baseline: modules of `ua.baselines` with the options of each.
        presets: of the library, shown beside the baselines with their own steps.
        steps: numbers of steps to look at, each >= 0.
        scales: HR pixels per LR cell, each >= 1.
        picture: the panel picture.
        degradation_seed: of whatever is random about the signals.
        backend: as in `ua.fit`.
        device: "auto" (a GPU where there is one) or a name that torch knows.
    """

    data: DataConfig
    fit: ua.FitConfig
    curves: dict[str, dict[str, Any]]
    stopping: dict[str, dict[str, Any]]
    baseline: dict[str, dict[str, Any]]
    presets: list[str]
    steps: list[int]
    scales: list[int]
    picture: PictureConfig
    degradation_seed: int
    backend: str
    device: str

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 0:
            raise ValueError(f"steps must be numbers >= 0, at least one, got {self.steps}")
        if not self.scales or min(self.scales) < 1:
            raise ValueError(f"scales must be numbers >= 1, at least one, got {self.scales}")
        for name in self.presets:
            ua.preset(name)  # raises where there is none: before the first measurement, not after it
        taken = [bench.YARDSTICK, *self.baseline, *self.presets]
        for name in (FITTED, *self.curves):
            if name in taken:
                raise ValueError(f"curves, presets and baselines must have different names, got {name!r} twice")
            taken.append(name)
        name = settings_name(self.fit)
        if name in ua.PRESETS and self.fit.steps != ua.preset(name).steps:
            raise ValueError(f"fit.steps={self.fit.steps} is not used here: say steps=[...], the numbers to look at")
        curves(self)
        rules(self)


@dataclass(frozen=True)
class Curve:
    """One fit that is looked at: settings whose `steps` is how far it goes, and after which steps."""

    settings: ua.FitConfig
    steps: list[int]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The Gaussians after some steps, and the seconds that the fit had taken by then."""

    fit: ua.Fit
    steps: int
    seconds: float


def curves(config: Config) -> dict[str, Curve]:
    """Every curve by name, that of `fit` first.

    Raises:
        TypeError, ValueError: an unknown field, or a value out of its range.
    """
    result = {}
    for name, fields in {FITTED: {}, **config.curves}.items():
        settings = config.fit.replace(**{"steps": max(config.steps), **fields})
        steps = [step for step in sorted(set(config.steps)) if step <= settings.steps]
        result[name] = Curve(settings.replace(steps=max(steps, default=0)), steps)
    return result


def rules(config: Config) -> dict[str, StopRule]:
    """Every stopping rule by name.

    Raises:
        TypeError, ValueError: a field that a rule lacks or does not have, or a value out of its range.
    """
    result = {}
    for name, fields in config.stopping.items():
        plugins.check_options(StopRule, fields, f"stopping rule {name!r}")
        if absent := [field.name for field in dataclasses.fields(StopRule) if field.name not in fields]:
            raise ValueError(f"stopping rule {name!r} needs {' and '.join(absent)}")
        try:
            result[name] = StopRule(**fields)
        except ValueError as error:
            raise ValueError(f"stopping rule {name!r}: {error}") from error
    return result


def run(config: Config, tracker: Tracker) -> dict[str, Any]:
    """Measures what metrics.csv does not hold yet, then draws and sums up all of it.

    Returns:
        The summary, see `summary`.

    Raises:
        TypeError, ValueError, FileNotFoundError: an unknown name, or an option or a file of the data that is not there.
    """
    device = choose_device(config.device)
    samples = bench.load({config.data.name: config.data.options}, None, tracker)
    presets = {name: ua.preset(name) for name in config.presets}
    methods = bench.methods(config.baseline, presets, config.backend)
    bench.warm_up([config.fit, *presets.values()], config.backend, device)
    for sample in bench.each(samples, device, tracker):
        for scale in config.scales:
            place = place_of(config, sample, scale, device, tracker)
            bench.measure(place.problem, place.guide, methods, tracker, reconstruction=True, scale=scale)
            for name, curve in curves(config).items():
                measure_curve(config, name, curve, place)
    means = {scale: average(scores(tracker.rows, scale)) for scale in config.scales}
    for scale in config.scales:
        report(config, scale, means[scale], tracker)
    for sample in bench.shown(samples, [config.picture.image], tracker):
        tracker.figure(f"panels_{sample.name}_x{config.picture.scale}", picture(config, sample, device, tracker))
    return summary(samples, means)


def place_of(config: Config, sample: Sample, scale: int, device: str, tracker: Tracker) -> bench.Place:
    """The signals of a sample, each as its exact average, and where their rows go."""
    grid = bench.grid_of(sample.image, scale)
    problem = bench.Problem(sample, grid, ["average"], config.degradation_seed, device)
    return bench.Place(problem, bench.clean(sample, device), tracker, True, {"scale": scale})


def measure_curve(config: Config, name: str, curve: Curve, place: bench.Place) -> None:
    """Adds the missing rows of one curve and, for that of `fit`, of every stopping rule."""
    missing = {step: names for step in curve.steps if (names := place.missing(name, step))}
    stopping = rules(config) if name == FITTED else {}
    unstopped = {rule: names for rule in stopping if (names := place.missing(stopped(rule)))}
    if not missing and not unstopped:
        return
    # A rule may stop at any step: then the fit goes the whole way.
    most = curve.settings.steps if unstopped else max(missing)
    looks = snapshots(
        curve.settings.replace(steps=most),
        place.guide.image,
        place.problem.grid,
        list(missing),
        {rule: stopping[rule] for rule in unstopped},
        config.backend,
    )
    for step, names in missing.items():
        look, upsample = looks[step], bench.rendering(looks[step].fit)
        place.add(upsample, names, name, step, image_lr=curve.settings.image_lr, fit_seconds=look.seconds)
    for rule, names in unstopped.items():
        look, upsample = looks[rule], bench.rendering(looks[rule].fit)
        place.add(
            upsample,
            names,
            stopped(rule),
            image_lr=curve.settings.image_lr,
            fit_seconds=look.seconds,
            stopped_after=look.steps,
        )


def stopped(rule: str) -> str:
    """The method of rows of a stopping rule."""
    return f"{FITTED}, {rule}"


def snapshots(
    settings: ua.FitConfig,
    image: Tensor,
    grid: bench.Grid,
    steps: Sequence[int],
    stopping: Mapping[str, StopRule],
    backend: str,
) -> dict[int | str, Snapshot]:
    """One fit of `settings.steps` steps, kept after each of `steps` and where each rule stops (or at the end)."""
    device = image.device
    kept: dict[int | str, tuple[ua.Gaussians, int, float]] = {}
    losses: list[float] = []

    def keep(step: int, loss: Tensor, gaussians: ua.Gaussians) -> None:
        look = (gaussians, step, now(device) - start)
        if step in steps:
            kept[step] = look
        if stopping:
            losses.append(loss.item())
        for name, rule in stopping.items():
            if name not in kept and (rule.stops(losses) or step == settings.steps):
                kept[name] = look

    start = now(device)
    initial = ua.fit(image, grid, backend=backend, **vars(settings) | {"steps": 0})
    seconds = now(device) - start
    start = now(device)
    ua.fit(image, grid, backend=backend, callback=keep, **vars(settings))
    # A parameterisation without parameters takes no steps: every look is at the initial Gaussians.
    wanted: list[int | str] = [*sorted(steps), *stopping]
    looks = {name: kept.get(name, (initial.gaussians, 0, seconds)) for name in wanted}
    return {name: Snapshot(initial.with_gaussians(maps), step, spent) for name, (maps, step, spent) in looks.items()}


@dataclass(frozen=True)
class Score:
    """One number of one scene: `name` is a title of `COLUMNS` or `SECONDS`."""

    method: str
    step: int | None
    name: str
    scene: str
    value: float


def scores(rows: Sequence[Row], scale: int) -> list[Score]:
    """The numbers of the tables; errors in units of their own are ratios to bilinear."""
    rows = [row for row in rows if row["scale"] == scale]
    yardstick = {
        (row["image"], row["signal"]): row for row in rows if row["method"] == bench.YARDSTICK and row["step"] is None
    }
    result = []
    for row in rows:
        numbers = {}
        for (signal, name), (title, _, _) in COLUMNS.items():
            if row["signal"] == signal and name in row:
                divisor = yardstick[row["image"], signal][name] if name in RATIOS else 1.0
                if divisor > 0 and math.isfinite(row[name]):
                    numbers[title] = row[name] / divisor
        if row["signal"] == "features":
            numbers[SECONDS] = row["fit_seconds"] + row["render_seconds"]
        result += [Score(row["method"], row["step"], name, row["scene"], value) for name, value in numbers.items()]
    return result


Means = dict[tuple[str, int | None], dict[str, Interval]]


def average(found: Sequence[Score]) -> Means:
    """(method, step) -> column -> mean over the scenes with its bootstrap interval, steps in order."""
    values: dict[tuple[str, int | None], dict[str, dict[str, list[float]]]] = {}
    for score in found:
        scenes = values.setdefault((score.method, score.step), {}).setdefault(score.name, {})
        scenes.setdefault(score.scene, []).append(score.value)
    order = effects.in_order(method for method, _ in values)
    keys = sorted(values, key=lambda about: (order.index(about[0]), about[1] or 0))
    return {key: {name: over_scenes(scenes) for name, scenes in values[key].items()} for key in keys}


def over_scenes(scenes: Mapping[str, Sequence[float]]) -> Interval:
    """Views of one scene are averaged first."""
    return bootstrap_mean([sum(numbers) / len(numbers) for numbers in scenes.values()])


def report(config: Config, scale: int, means: Means, tracker: Tracker) -> None:
    """Tables of means, of intervals, of paired tests and of stopping rules, and the figure of convergence."""
    rows = [row for row in tracker.rows if row["scale"] == scale]
    over = f"{scale} pixels a cell, {coverage(rows)}"
    columns = [title for title, _, _ in COLUMNS.values()] + [SECONDS]
    formats = {title: form for title, form, _ in COLUMNS.values()} | {SECONDS: ".3f"}

    def line(about: tuple[str, int | None]) -> dict[str, Any]:
        values = means[about]
        return {"method": about[0], "steps": about[1], **{n: values[n].mean if n in values else None for n in columns}}

    def line_with_intervals(about: tuple[str, int | None]) -> dict[str, Any]:
        cells = {name: effects.cell(means[about].get(name), formats[name]) for name in columns}
        return {"method": about[0], "steps": about[1], **cells}

    tracker.table(
        f"ablation_iters_x{scale}",
        [line(about) for about in means],
        formats=formats,
        best={title: which for title, _, which in COLUMNS.values()} | {SECONDS: "min"},
        caption=f"Steps of the fit, {over}; seconds for 32 channels.",
    )
    tracker.table(
        f"intervals_x{scale}",
        [line_with_intervals(about) for about in means],
        caption=f"The same with 95 % bootstrap intervals over the scenes, {over}.",
    )
    paired_table(config, scale, rows, over, tracker)
    stopping_table(config, scale, means, rows, over, tracker)
    tracker.figure(f"convergence_x{scale}", convergence(config, means, over))


def paired_table(config: Config, scale: int, rows: Sequence[Row], over: str, tracker: Tracker) -> None:
    """Every number of steps and every curve's end against bilinear and against `released`, on the same images."""
    part = [
        dataclasses.replace(effect, method=effect.method if effect.step is None else f"{effect.method} {effect.step}")
        for effect in effects.against(rows, apart=False)
    ]
    ends = [f"{name} {curve.steps[-1]}" for name, curve in curves(config).items() if curve.steps]
    looked = [f"{FITTED} {step}" for step in curves(config)[FITTED].steps] + ends[1:]
    looked += [*map(stopped, config.stopping), *config.presets]
    references = [bench.YARDSTICK, *([RELEASED] if RELEASED in config.presets else [])]
    pairs = [(method, other) for method in looked for other in references if method != other]
    effects.paired_table(tracker, f"paired_x{scale}", part, pairs, over)


def stopping_table(config: Config, scale: int, means: Means, rows: Sequence[Row], over: str, tracker: Tracker) -> None:
    """Where each rule stops, and what that gives."""
    lines = []
    for name, rule in rules(config).items():
        about = (stopped(name), None)
        steps = [row["stopped_after"] for row in rows if row["method"] == about[0] and row["signal"] == "features"]
        values = {title: means[about][title].mean for title in (*CURVES, SECONDS) if title in means[about]}
        where = {"fewest steps": min(steps), "mean steps": sum(steps) / len(steps), "most steps": max(steps)}
        lines.append({"rule": name, "window": rule.window, "tolerance": rule.tolerance, **where, **values})
    if lines:
        formats = {title: form for title, form, _ in COLUMNS.values()} | {SECONDS: ".3f", "mean steps": ".0f"}
        formats |= {"fewest steps": ".0f", "most steps": ".0f"}
        caption = (
            "Stopping when the mean loss of the last window is not lower than that of the window before by more than "
            f"the tolerance, {over}."
        )
        tracker.table(f"stopping_x{scale}", lines, formats=formats, caption=caption)


def settings_name(fit: ua.FitConfig) -> str:
    """The preset that the settings are, whatever their steps, or "own settings"."""
    same = (name for name, preset in ua.PRESETS.items() if preset.replace(steps=fit.steps) == fit)
    return next(same, "own settings")


def coverage(rows: Sequence[Row]) -> str:
    """How many scenes the means are over; not every image has every truth."""
    counts = {name: len({row["scene"] for row in rows if row["signal"] == name}) for name in ("depth", "labels")}
    everything = len({row["scene"] for row in rows})
    scenes = "1 scene" if everything == 1 else f"{everything} scenes"
    return f"means over {scenes} (depth: {counts['depth']}, labels: {counts['labels']})"


def convergence(config: Config, means: Means, title: str) -> Any:
    """Quality against steps (above) and against seconds (below); the baselines are horizontal lines.

    The band around the curve of `fit` is its bootstrap interval.
    """
    measured = [name for name in CURVES if any(name in values for values in means.values())]
    names = curves(config)
    hidden = [*map(stopped, config.stopping), settings_name(config.fit)]  # the curve passes through its own preset
    levels = [method for method, step in means if step is None and method not in hidden]
    styles = iter(plots.baseline_styles())
    style = {
        method: {"color": plots.SKY, "linewidth": 1.6} if method in config.presets else next(styles, {})
        for method in levels
    }
    colours = dict(zip(names, (plots.BLUE, plots.VERMILION, plots.GREEN, plots.ORANGE, plots.PURPLE), strict=False))

    def lines(column: str, against_seconds: bool) -> list[plots.Curve]:
        result = []
        for name in names:
            points = [(step, values) for (method, step), values in means.items() if method == name and step is not None]
            xs = [values[SECONDS].mean if against_seconds else float(step) for step, values in points]
            intervals = [values[column] for _, values in points]
            shown = f"{name} ({settings_name(config.fit)})" if name == FITTED else name.replace("_", " ")
            strong = {"linewidth": 2.0, "zorder": 3} if name == FITTED else {"linewidth": 1.2, "markersize": 3}
            result.append(
                plots.Curve(
                    shown,
                    xs,
                    [interval.mean for interval in intervals],
                    {"color": colours.get(name, plots.GREY), **strong},
                    band=[(interval.low, interval.high) for interval in intervals] if name == FITTED else (),
                )
            )
        for method in levels:
            values = means[method, None]
            xs = [values[SECONDS].mean] if against_seconds else []
            shown = method.replace("_", " ")
            result.append(plots.Curve(shown, xs, [values[column].mean], style[method], level=True))
        return result

    arrow = {"max": "\N{UPWARDS ARROW}", "min": "\N{DOWNWARDS ARROW}"}
    better = {title: which for title, _, which in COLUMNS.values()}
    ticks = spaced(names[FITTED].steps)
    return plots.curves(
        [
            [plots.Plot(lines(n, False), f"{n} {arrow[better[n]]}", "steps", ticks=ticks) for n in measured],
            [plots.Plot(lines(n, True), "", "seconds, fit and render") for n in measured],
        ],
        title=title,
    )


def spaced(steps: Sequence[int]) -> list[int]:
    """Those whose labels have room on a logarithmic axis."""
    kept: list[int] = []
    for step in steps:
        if not kept or step >= TICK_RATIO * kept[-1]:
            kept.append(step)
    return kept


def picture(config: Config, sample: Sample, device: str, tracker: Tracker) -> Any:
    """Guide, LR, bilinear, fit, presets, truth and errors, a row for each signal of the sample."""
    scale, steps = config.picture.scale, config.picture.steps
    place = place_of(config, sample, scale, device, tracker)
    image, grid = place.guide.image, place.problem.grid
    fit = snapshots(config.fit.replace(steps=steps), image, grid, [steps], {}, config.backend)[steps].fit
    methods = {
        "bilinear": bench.of_baseline("bilinear", {}).prepare(image, grid),
        f"{settings_name(config.fit)}, {steps} steps": bench.rendering(fit),
    }
    for name in config.presets:
        if name != settings_name(config.fit):
            methods[f"preset {name}"] = bench.of_fit(ua.preset(name), config.backend).prepare(image, grid)
    signals = [signal for signal in place.problem.signals.values() if signal.name != NOT_SHOWN]
    rows = []
    for number, signal in enumerate(signals):
        results = {name: upsample(signal.low, signal.low_valid)[0] for name, upsample in methods.items()}
        rows.append([guide_panel(number, image, fit, grid), *signal_panels(signal, results)])
    return plots.panels(rows, row_titles=[signal.name for signal in signals], width=1.9)


def guide_panel(number: int, image: Tensor, fit: ua.Fit, grid: bench.Grid) -> plots.Panel:
    """The first column: the guide, then what the fit sees and makes of it."""
    if number == 0:
        return plots.Panel(plots.image(image[0]), "guide", f"{image.shape[-2]} x {image.shape[-1]}")
    if number == 1:
        low = to_grid(image, grid, fit.config.image_lr)
        return plots.Panel(plots.image(low[0]), "guide, LR", f"{low.shape[-2]} x {low.shape[-1]}")
    refitted = fit.reconstruct()
    return plots.Panel(plots.image(refitted[0]), "guide, refitted", f"PSNR {metrics.psnr(refitted, image):.1f} dB")


def summary(samples: Sequence[Sample], means: Mapping[int, Means]) -> dict[str, Any]:
    """Means by scale, method and steps, and which number of steps is best for each measure."""
    result: dict[str, Any] = {"images": [sample.name for sample in samples]}
    for scale, found in means.items():
        methods: dict[str, Any] = {}
        for (method, step), values in found.items():
            numbers = {name: interval.mean for name, interval in values.items()}
            if step is None:
                methods[method] = numbers
            else:
                methods.setdefault(method, {})[str(step)] = numbers
        fitted = {step: values for (method, step), values in found.items() if method == FITTED and step is not None}
        best = {
            title: (min if which == "min" else max)(fitted, key=lambda step: fitted[step][title].mean)
            for title, _, which in COLUMNS.values()
            if all(title in values for values in fitted.values())
        }
        result[f"x{scale}"] = {"best_steps": best, "means": methods}
    return result
