"""How well does each method turn a low-resolution signal into a high-resolution one whose truth is known?

Every image has a truth for some signals: a descriptor bank, depth, labels as class probabilities, surface normals. Each
is brought to the LR grid in two ways: as its exact average ("average"), and like the output of a network ("network":
misplaced, blurred, noisy). Then every baseline, preset and variant upsamples it. Real predictions of networks come
beside them. What may be tuned on is the split "dev"; "test" is for the numbers that are reported.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import ua
from experiments import _transfer_predictions as predictions
from experiments import _transfer_report as reports
from experiments.ablation_iters import Signal, Upsampler, baseline, grid_of, rendering, signal_panels
from ua import corrupt, datasets, metrics, plots, plugins
from ua.averages import averages_truth
from ua.datasets import Sample
from ua.degrade import area, network_like, one_hot
from ua.features import descriptor_bank
from ua.tracking import Tracker, choose_device, now

REGIMES = ("average", "network")
NOT_IN_PICTURES = "normals"
# Of rows and columns, one in so many is compared where there are 32 channels: a ninth of the time. It has no divisor in
# common with the usual scales, so that every place within a cell counts alike.
FEATURE_STRIDE = 3


@dataclass(frozen=True)
class Config:
    """What the YAML of this experiment holds.

    Attributes:
        data: modules of `ua.datasets` with the options of each; one whose files are not here is left out.
        split: "dev" or "test".
        scales: HR pixels per LR cell, each >= 1.
        regimes: how the LR signals are made, some of "average" and "network".
        guides: names of `ua.corrupt.CORRUPTIONS`: what happens to the guide, and to nothing else.
        baseline: modules of `ua.baselines` with the options of each.
        presets: of the library.
        variants: name -> {preset: of the library ("default" where it is not given), field of `ua.FitConfig`: value}.
        predictions: whether real predictions of networks are scored, too (with the regime "network" and the data set
            "shared").
        pictures: samples that are shown, of those that are measured.
        picture_scale: HR pixels per LR cell there, >= 1.
        degradation_seed: of jitter, noise and the training of networks.
        backend: as in `ua.fit`.
        device: "auto" (a GPU where there is one) or a name that torch knows.
    """

    data: dict[str, dict[str, Any]]
    split: str
    scales: list[int]
    regimes: list[str]
    guides: list[str]
    baseline: dict[str, dict[str, Any]]
    presets: list[str]
    variants: dict[str, dict[str, Any]]
    predictions: bool
    pictures: list[str]
    picture_scale: int
    degradation_seed: int
    backend: str
    device: str

    def __post_init__(self) -> None:
        if self.split not in datasets.SPLITS:
            raise ValueError(plugins.unknown("split", self.split, datasets.SPLITS))
        if not self.scales or min(self.scales) < 1:
            raise ValueError(f"scales must be numbers >= 1, at least one, got {self.scales}")
        if self.picture_scale < 1:
            raise ValueError(f"picture_scale must be >= 1, got {self.picture_scale}")
        for key, names, known in (
            ("regimes", self.regimes, REGIMES),
            ("guides", self.guides, tuple(corrupt.CORRUPTIONS)),
        ):
            if not names:
                raise ValueError(f"{key} must name at least one of {', '.join(known)}, got none")
            for name in names:
                if name not in known:
                    raise ValueError(plugins.unknown(key, name, known))
        # What is wrong with a method should be known before the first measurement, not after it.
        taken = {"bilinear", *self.baseline}
        for name in (*self.presets, *self.variants):
            if name in taken:
                raise ValueError(f"variants, presets and baselines must have different names, got {name!r} twice")
            taken.add(name)
        settings(self)


@dataclass(frozen=True, eq=False)
class Truth:
    """A signal at full resolution.

    Attributes:
        name: "features", "depth", "labels" or "normals".
        maps: (C, H, W) float32, what is brought to the LR grid; for labels one map for each class that occurs.
        target: what results are compared with: `maps`, for labels the class map (1, H, W) with -1 for void.
        valid: bool (H, W), the pixels whose truth is known; None: all.
        unit: of depth.
    """

    name: str
    maps: Tensor
    target: Tensor
    valid: Tensor | None = None
    unit: str = ""


def run(config: Config, tracker: Tracker) -> dict[str, Any]:
    """Measures what metrics.csv does not hold yet, then draws and sums up all of it.

    Returns:
        The summary: the images, and the means of every regime, guide, method and modality.

    Raises:
        TypeError, ValueError, FileNotFoundError: an unknown name or option, or no data at all.
    """
    device = choose_device(config.device)
    samples = load(config, tracker)
    warm_up(config, device)
    for number, sample in enumerate(samples, start=1):
        start = now(device)
        measure(config, sample, device, tracker)
        tracker.say(f"[{number}/{len(samples)}] {sample.name}: {now(device) - start:.1f} s")
    if config.predictions and "network" in config.regimes and "shared" in config.data:
        measure_predictions(config, device, tracker)
    summary = reports.report(tracker, config.scales)
    for sample in samples:
        if sample.name in config.pictures:
            tracker.figure(f"panels_{sample.name}_x{config.picture_scale}", picture(config, sample, device))
    return {"images": [sample.name for sample in samples], **summary}


def load(config: Config, tracker: Tracker) -> list[Sample]:
    """The samples of the split; says which data sets are not here, and which picture comes twice.

    Raises:
        FileNotFoundError: no data set is here. ValueError: none has a sample in the split.
    """
    samples: list[Sample] = []
    absent = []
    for name, options in config.data.items():
        try:
            found = datasets.load(name, **options)
        except FileNotFoundError as error:
            absent.append(f"data set {name!r} is left out: {error}")
            tracker.say(absent[-1])
            continue
        for sample in found:
            twin = next((other.name for other in samples if torch.equal(other.image, sample.image)), None)
            if sample.split == config.split and twin is None:
                samples.append(sample)
            elif sample.split == config.split:
                tracker.say(f"{sample.name} is left out: it is the same image as {twin}")
    if not samples and absent:
        raise FileNotFoundError("; ".join(absent))
    if not samples:
        raise ValueError(f"data: no sample of {', '.join(config.data) or 'no data set'} is in the split {config.split}")
    return samples


def settings(config: Config) -> dict[str, ua.FitConfig]:
    """The presets and variants by name.

    Raises:
        TypeError, ValueError: an unknown preset or field, or a value out of its range.
    """
    result = {name: ua.preset(name) for name in config.presets}
    for name, fields in config.variants.items():
        overrides = {key: value for key, value in fields.items() if key != "preset"}
        result[name] = ua.preset(fields.get("preset", "default")).replace(**overrides)
    return result


def warm_up(config: Config, device: str) -> None:
    """Compiles what is compiled on first use, so that no measurement pays for it."""
    image = torch.rand(1, 3, 64, 64, device=device)
    known = torch.ones(1, 4, 4, dtype=torch.bool, device=device)
    for fields in settings(config).values():
        fit = ua.fit(image, (4, 4), backend=config.backend, **vars(fields) | {"steps": min(2, fields.steps)})
        fit.render(torch.rand(1, 32, 4, 4, device=device))
        fit.render(torch.rand(1, 1, 4, 4, device=device), known)


def truths(sample: Sample, device: str) -> list[Truth]:
    """Every signal whose truth the sample has, the features first."""
    bank = descriptor_bank(sample.image[None].to(device))[0]
    result = [Truth("features", bank, bank)]
    if sample.depth is not None and sample.depth_valid is not None:
        depth = sample.depth.to(device)
        result.append(Truth("depth", depth, depth, sample.depth_valid.to(device), sample.depth_unit))
    if sample.labels is not None:
        # A class that does not occur has no probability anywhere, and 150 maps take their time.
        present, numbers = sample.labels.unique(return_inverse=True)
        labels = (numbers - int((present < 0).sum())).to(device)
        maps, valid = one_hot(labels, int((present >= 0).sum()))
        result.append(Truth("labels", maps, labels[None], valid))
    if sample.normals is not None and sample.normals_valid is not None:
        normals = sample.normals.to(device)
        result.append(Truth("normals", normals, normals, sample.normals_valid.to(device)))
    return result


def lower(truth: Truth, regime: str, grid: tuple[int, int], seed: int) -> Signal:
    """The signal on the LR grid; probabilities of a "network" sum to 1, and its normals have length 1."""
    if regime == "average":
        low, known = area(truth.maps, grid, truth.valid)
    else:
        low, known = network_like(truth.maps, grid, truth.valid, seed=seed)
        if truth.name == "labels":
            low = low.clamp(min=0)
            low = low / low.sum(0).clamp(min=1e-6)
        if truth.name == "normals":
            low = low / low.norm(dim=0).clamp(min=1e-6)
    classes = len(truth.maps) if truth.name == "labels" else 0
    mask = None if known.all() else known[None]
    return Signal(truth.name, low[None], mask, truth.target, truth.valid, classes, truth.unit)


def measure(config: Config, sample: Sample, device: str, tracker: Tracker) -> None:
    """Adds the rows of one image that are missing; every fit serves all of its signals and regimes."""
    known = truths(sample, device)
    for scale in config.scales:
        grid = grid_of(sample.image, scale)
        signals: list[tuple[str, Signal]] = []
        for guide in config.guides:
            labels: dict[str, Any] = {
                "image": sample.name,
                "scene": sample.scene or sample.name,
                "dataset": sample.group,
                "guide": guide,
                "scale": scale,
            }
            missing = {
                (name, regime, truth.name)
                for name in methods(config)
                for regime in config.regimes
                for truth in known
                if tracker.find(**labels, regime=regime, signal=truth.name, method=name) is None
            }
            if not missing:
                continue
            signals = signals or [
                (regime, lower(truth, regime, grid, seed_of(config, sample.name, scale, truth.name)))
                for regime in config.regimes
                for truth in known
            ]
            image = corrupted(sample.image, sample.name, guide, config, device)
            judged = {id(signal): judgement(signal) for _, signal in signals}
            for name, prepare in methods(config).items():
                wanted = [(regime, signal) for regime, signal in signals if (name, regime, signal.name) in missing]
                if wanted:
                    start = now(device)
                    upsample = prepare(image, grid)
                    fit_seconds = now(device) - start
                for regime, signal in wanted:
                    start = now(device)
                    result = upsample(signal.low, signal.low_valid)[0]
                    seconds = {"fit_seconds": fit_seconds, "render_seconds": now(device) - start}
                    values = score(signal, result) | judged[id(signal)] | seconds
                    tracker.log(values, **labels, regime=regime, signal=signal.name, method=name)


def judgement(signal: Signal) -> dict[str, float]:
    """What `signal_is="auto"` takes the signal for: 1, an average of the truth, or 0, a prediction."""
    return {"judged_average": float(averages_truth(signal.low, signal.low_valid).all())}


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
        for guide in config.guides:
            image = corrupted(prediction.image, prediction.name, guide, config, device)
            for name, prepare in methods(config).items():
                labels: dict[str, Any] = {
                    "image": prediction.name,
                    "scene": prediction.name,
                    "dataset": prediction.group,
                    "guide": guide,
                    "scale": prediction.scale,
                    "regime": "network",
                    "signal": reports.PREDICTION,
                    "method": name,
                }
                if tracker.find(**labels) is None:
                    result = prepare(image, (low.shape[-2], low.shape[-1]))(low, None)[0]
                    values = predictions.score(prediction, result) | {"judged_average": judged}
                    tracker.log(values, **labels)
        tracker.say(f"{prediction.name}: {now(device) - start:.1f} s")


def methods(config: Config) -> dict[str, Callable[[Tensor, tuple[int, int]], Upsampler]]:
    """Every method by name, as a function of the guide and the grid; bilinear is the yardstick and always there."""

    def of_baseline(name: str, options: Mapping[str, Any]) -> Callable[[Tensor, tuple[int, int]], Upsampler]:
        return lambda image, grid: baseline(name, options, image)

    def of_fit(fields: ua.FitConfig) -> Callable[[Tensor, tuple[int, int]], Upsampler]:
        return lambda image, grid: rendering(ua.fit(image, grid, backend=config.backend, **vars(fields)))

    chosen = {"bilinear": {}, **config.baseline}
    return {
        **{name: of_baseline(name, options) for name, options in chosen.items()},
        **{name: of_fit(fields) for name, fields in settings(config).items()},
    }


def corrupted(image: Tensor, name: str, guide: str, config: Config, device: str) -> Tensor:
    """The guide (1, 3, H, W)."""
    return corrupt.corrupt(image, guide, seed_of(config, name, guide))[None].to(device)


def seed_of(config: Config, *about: str | int) -> int:
    """A seed that differs between images, scales and signals and not between runs."""
    return zlib.crc32(" ".join(map(str, (config.degradation_seed, *about))).encode())


def score(signal: Signal, result: Tensor) -> dict[str, float]:
    """result: (C, H, W). A score that does not exist (no boundary in the image) is left out."""
    truth, valid = signal.truth, signal.valid
    if signal.name == "labels":
        classes = result.argmax(0)
        values = {
            "miou": metrics.miou(classes, truth[0], signal.classes),
            "boundary_miou": metrics.boundary_miou(classes, truth[0], signal.classes),
        }
        return {name: value for name, value in values.items() if math.isfinite(value)}
    if signal.name == "normals":
        return {"normal_angle": metrics.normal_angle(result, truth, valid)}
    if signal.name == "depth":
        return {"depth_rmse": metrics.depth_rmse(result, truth, valid)}
    some, same = (maps[:, 1::FEATURE_STRIDE, 1::FEATURE_STRIDE] for maps in (result, truth))
    return {"feature_rmse": metrics.feature_rmse(some, same), "feature_cosine": metrics.feature_cosine(some, same)}


def picture(config: Config, sample: Sample, device: str) -> Any:
    """Guide, LR, bilinear and the first two presets or variants, truth and errors; a row for each signal and regime."""
    grid = grid_of(sample.image, config.picture_scale)
    image = sample.image[None].to(device)
    shown = ["bilinear", *settings(config)][:3]  # a figure has only so much width
    upsamplers = {name.replace("_", " "): methods(config)[name](image, grid) for name in shown}
    rows, titles = [], []
    for regime in config.regimes:
        for truth in truths(sample, device):
            if truth.name == NOT_IN_PICTURES:
                continue
            seed = seed_of(config, sample.name, config.picture_scale, truth.name)
            signal = lower(truth, regime, grid, seed)
            results = {name: upsample(signal.low, signal.low_valid)[0] for name, upsample in upsamplers.items()}
            guide = plots.Panel(plots.image(image[0]), "guide", f"{image.shape[-2]} x {image.shape[-1]}")
            rows.append([guide, *signal_panels(signal, results)])
            titles.append(f"{truth.name}, {regime}")
    return plots.panels(rows, row_titles=titles, width=1.9)
