"""How well does each method turn a low-resolution signal into a high-resolution one whose truth is known?

Every image has a truth for some signals: a descriptor bank, depth, labels as class probabilities, surface normals. Each
is brought to the LR grid in two ways: as its exact average ("average"), and like the output of a network ("network":
misplaced, blurred, noisy). Then every baseline, preset and variant upsamples it. Real predictions of networks come
beside them. What may be tuned on is the split "dev"; "test" is for the numbers that are reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ua
from experiments import _bench as bench
from experiments import _transfer_predictions as predictions
from experiments import _transfer_report as reports
from experiments._panels import NOT_SHOWN, signal_panels
from ua import plots
from ua.averages import averages_truth
from ua.datasets import Sample
from ua.tracking import Tracker, now


@dataclass(frozen=True)
class Config(bench.Scaled):
    """What the YAML of this experiment holds, besides `bench.Scaled`.

    Attributes:
        variants: name -> {preset: of the library ("default" where it is not given), field of `ua.FitConfig`: value}.
        predictions: whether real predictions of networks are scored, too (with the regime "network" and the data set
            "shared").
        pictures: samples that are shown, of those that are measured.
        picture_scale: HR pixels per LR cell there, >= 1.
    """

    variants: dict[str, dict[str, Any]]
    predictions: bool
    pictures: list[str]
    picture_scale: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.picture_scale < 1:
            raise ValueError(f"picture_scale must be >= 1, got {self.picture_scale}")
        bench.check_different("variants, presets and baselines", self.baseline, self.presets, self.variants)
        settings(self)


def run(config: Config, tracker: Tracker) -> dict[str, Any]:
    """Measures what metrics.csv does not hold yet, then draws and sums up all of it.

    Returns:
        The summary: the images, and the means of every regime, method and modality.

    Raises:
        TypeError, ValueError, FileNotFoundError: an unknown name or option, or no data at all.
    """
    device, samples, _ = bench.prepare(config, settings(config), tracker)
    for sample in bench.each(samples, device, tracker):
        measure(config, sample, device, tracker)
    if config.predictions and "network" in config.regimes and "shared" in config.data:
        measure_predictions(config, device, tracker)
    summary = reports.report(tracker, config.scales)
    for sample in bench.shown(samples, config.pictures, tracker):
        tracker.figure(f"panels_{sample.name}_x{config.picture_scale}", picture(config, sample, device))
    return {"images": [sample.name for sample in samples], **summary}


def settings(config: Config) -> dict[str, ua.FitConfig]:
    """The presets and variants by name."""
    return bench.settings(config.presets, config.variants)


def methods(config: Config) -> dict[str, bench.Method]:
    """Every method by name."""
    return bench.methods(config.baseline, settings(config), config.backend)


def problem_of(config: Config, sample: Sample, scale: int, device: str) -> bench.Problem:
    """The signals of the sample at this scale."""
    return bench.Problem(sample, bench.grid_of(sample.image, scale), config.regimes, config.degradation_seed, device)


def measure(config: Config, sample: Sample, device: str, tracker: Tracker) -> None:
    """Adds the rows of one image that are missing."""
    for scale in config.scales:
        problem = problem_of(config, sample, scale, device)
        guide = bench.clean(sample, device)
        bench.measure(problem, guide, methods(config), tracker, reconstruction=False, scale=scale)


def measure_predictions(config: Config, device: str, tracker: Tracker) -> None:
    """Adds the missing rows of the real predictions; says so where their files are not here."""
    try:
        found = predictions.load(config.split, config.data.get("shared", {}).get("root"), config.degradation_seed)
    except FileNotFoundError as error:
        tracker.say(f"real predictions are left out: {error}")
        return
    for prediction in found:
        start = now(device)
        low = prediction.probabilities[None].to(device)
        judged = float(averages_truth(low).all())
        for method, how in methods(config).items():
            labels: dict[str, Any] = {
                "image": prediction.name,
                "scene": prediction.name,
                "dataset": prediction.group,
                "guide": bench.CLEAN,
                "scale": prediction.scale,
                "regime": "network",
                "signal": reports.PREDICTION,
                "method": method,
            }
            if tracker.find(**labels) is None:
                image = prediction.image[None].to(device)
                result = how.prepare(image, (low.shape[-2], low.shape[-1]))(low, None)[0]
                tracker.log(predictions.score(prediction, result) | {"judged_average": judged}, **labels)
        tracker.say(f"{prediction.name}: {now(device) - start:.1f} s")


def picture(config: Config, sample: Sample, device: str) -> Any:
    """Guide, LR, bilinear and the first two presets or variants, truth and errors; a row for each signal and regime."""
    problem = problem_of(config, sample, config.picture_scale, device)
    image = sample.image[None].to(device)
    shown = ["bilinear", *settings(config)][:3]  # a figure has only so much width
    known = methods(config)
    upsamplers = {name.replace("_", " "): known[name].prepare(image, problem.grid) for name in shown}
    rows, titles = [], []
    for (regime, name), signal in problem.signals.items():
        if name == NOT_SHOWN:
            continue
        results = {title: upsample(signal.low, signal.low_valid)[0] for title, upsample in upsamplers.items()}
        guide = plots.Panel(plots.image(image[0]), "guide", f"{image.shape[-2]} x {image.shape[-1]}")
        rows.append([guide, *signal_panels(signal, results)])
        titles.append(f"{name}, {regime}")
    return plots.panels(rows, row_titles=titles, width=1.9)
