"""How good is one setting of the method? One number, for sweeps and searches to compare, on development images alone.

Every modality (depth, features, labels, normals) of every regime (exact averages, a network's predictions) is compared
with bilinear: `score` is the mean over all of them of the mean logarithm of error / error of bilinear. Zero is as good
as bilinear, less is better, and exp(score) is a ratio of errors. The error of labels is 1 - mIoU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ua
from experiments import _bench as bench
from experiments import _effects as effects
from ua import datasets
from ua.tracking import Row, Tracker, choose_device, now

METHOD = "fit"
ERRORS = {"depth": "depth_rmse", "features": "feature_rmse", "labels": "miou", "normals": "normal_angle"}
LEAST_RATIO = 1e-3  # of errors: one that vanishes on one small image must not decide the mean


@dataclass(frozen=True)
class Config:
    """What the YAML of this experiment holds.

    Attributes:
        data: modules of `ua.datasets` with the options of each; only their development images are used.
        fit: the setting.
        scales: HR pixels per LR cell, each >= 1.
        regimes: how the LR signals are made, some of `bench.REGIMES`.
        degradation_seed: of jitter and noise.
        backend: as in `ua.fit`.
        device: "auto" (a GPU where there is one) or a name that torch knows.
    """

    data: dict[str, dict[str, Any]]
    fit: ua.FitConfig
    scales: list[int]
    regimes: list[str]
    degradation_seed: int
    backend: str
    device: str

    def __post_init__(self) -> None:
        for name, options in self.data.items():
            datasets.check(name, options)
        bench.check_names("regimes", self.regimes, bench.REGIMES)
        if not self.scales or min(self.scales) < 1:
            raise ValueError(f"scales must be numbers >= 1, at least one, got {self.scales}")


def run(config: Config, tracker: Tracker) -> dict[str, Any]:
    """Measures what metrics.csv does not hold yet, then sums up all of it.

    Returns:
        The summary: `score`, the images, and the means of every regime and modality against bilinear.

    Raises:
        TypeError, ValueError, FileNotFoundError: an unknown name or option, or no data at all.
    """
    device = choose_device(config.device)
    samples = bench.load(config.data, "dev", tracker)
    methods = bench.methods({}, {METHOD: config.fit}, config.backend)
    bench.warm_up([config.fit], config.backend, device)
    start = now(device)
    for sample in samples:
        for scale in config.scales:
            grid = bench.grid_of(sample.image, scale)
            problem = bench.Problem(sample, grid, config.regimes, config.degradation_seed, device)
            guide = bench.clean(sample, device)
            bench.measure(problem, guide, methods, tracker, reconstruction=False, scale=scale)
    result = score(tracker.rows)
    tracker.say(f"score {result:.4f}, {len(samples)} images, {now(device) - start:.1f} s")
    return {"score": result, "images": [sample.name for sample in samples], **report(tracker)}


def score(rows: Sequence[Row]) -> float:
    """The mean over modalities and regimes, each counting once, of `log_ratios`; less is better, 0 is bilinear.

    Raises:
        ValueError: bilinear makes no error anywhere, so that there is nothing to compare with.
    """
    logs = log_ratios(rows)
    if not logs:
        raise ValueError("score: nothing was measured that bilinear makes an error on; use other data or larger scales")
    return sum(mean(list(scenes.values())) for scenes in logs.values()) / len(logs)


def log_ratios(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, float]]:
    """(regime, modality) -> scene -> mean over its images and scales of log(error / error of bilinear)."""
    found = {effects.key(row): row for row in rows}
    lists: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        if row["method"] != METHOD or ERRORS[row["signal"]] not in row:
            continue
        reference = error(found[effects.key(row | {"method": bench.YARDSTICK})])
        if reference > 0:
            ratio = max(error(row) / reference, LEAST_RATIO)
            scenes = lists.setdefault((row["regime"], row["signal"]), {})
            scenes.setdefault(row["scene"], []).append(math.log(ratio))
    return {name: {scene: mean(logs) for scene, logs in scenes.items()} for name, scenes in lists.items()}


def error(row: Row) -> float:
    """What the modality is scored by; less is better."""
    value: float = row[ERRORS[row["signal"]]]
    return 1 - value if row["signal"] == "labels" else value


def report(tracker: Tracker) -> dict[str, Any]:
    """Writes a table for each regime; returns the means by regime and modality (ratios of errors, points of mIoU)."""
    measured = [effect for effect in effects.against(tracker.rows) if effect.method == METHOD]
    result: dict[str, Any] = {}
    for regime in effects.in_order(effect.regime for effect in measured):
        part = [effect for effect in measured if effect.regime == regime]
        means = effects.intervals(part)
        caption = f"{effects.EXPLANATION} LR signal: {regime}; {effects.coverage(part)}."
        effects.mean_table(tracker, f"tune_{regime}", means, caption)
        result[regime] = {modality.name: column[METHOD].mean for modality, column in means.items()}
    return result


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
