"""The measuring bench that experiments share: signals whose truth is known, methods that upsample them, and rows.

A row of metrics.csv is one signal of one image, brought to one LR grid in one way, upsampled by one method along one
guide. Signals are "features", "depth", "labels" and "normals" (transfer), and "colour", the guide itself from its own
LR image: what the method optimises (reconstruction). The LR image is the one that the method fits (bicubic for methods
that fit none); bilinear interpolation of the same one is logged beside it.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import ua
from ua import corrupt, datasets, metrics, plugins
from ua.averages import averages_truth
from ua.baselines import bilinear
from ua.datasets import Sample
from ua.degrade import area, network_like, one_hot
from ua.features import descriptor_bank
from ua.rendering import to_grid
from ua.tracking import Tracker, choose_device, now

REGIMES = ("average", "network")  # exact area average | misplaced, blurred and noisy like a network's output
COLOUR = "colour"
IMAGE = "image"  # the regime of colours
YARDSTICK = "bilinear"
PREDICTION = "prediction"  # the signal of real predictions
CLEAN = "clean"
# Of rows and columns, one in so many is compared where there are 32 channels: a ninth of the time. It has no divisor in
# common with the usual scales, so that every place within a cell counts alike.
FEATURE_STRIDE = 3

Grid = tuple[int, int]
# Takes (1, C, h, w) and its mask of known cells, gives (1, C, H, W).
Upsampler = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Common:
    """What the configurations of all experiments on the bench hold.

    Attributes:
        data: modules of `ua.datasets` with the options of each; one whose files are not here is left out.
        split: "dev", "test" or None for both. Whatever is chosen by what one sees must be chosen on "dev".
        regimes: how the LR signals are made, some of `REGIMES`.
        baseline: modules of `ua.baselines` with the options of each.
        presets: of the library.
        degradation_seed: of jitter and noise.
        backend: as in `ua.fit`.
        device: "auto" (a GPU where there is one) or a name that torch knows.
    """

    data: dict[str, dict[str, Any]]
    split: str | None
    regimes: list[str]
    baseline: dict[str, dict[str, Any]]
    presets: list[str]
    degradation_seed: int
    backend: str
    device: str

    def __post_init__(self) -> None:
        """What is wrong should be known before the first measurement, not after it."""
        if self.split is not None and self.split not in datasets.SPLITS:
            raise ValueError(plugins.unknown("split", self.split, datasets.SPLITS))
        check_names("regimes", self.regimes, REGIMES)
        for name, options in self.baseline.items():
            of_baseline(name, options)
        for name in self.presets:
            ua.preset(name)


@dataclass(frozen=True)
class Scaled(Common):
    """Those of experiments whose grids follow from a scale.

    Attributes:
        scales: HR pixels per LR cell, each >= 1.
    """

    scales: list[int]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.scales or min(self.scales) < 1:
            raise ValueError(f"scales must be numbers >= 1, at least one, got {self.scales}")


def check_names(key: str, names: Sequence[str], known: Iterable[str]) -> None:
    """Raises ValueError where there is no name, one that is none of `known`, or one twice."""
    known = list(known)
    if not names:
        raise ValueError(f"{key} must name at least one of {', '.join(known)}, got none")
    for number, name in enumerate(names):
        if name not in known:
            raise ValueError(plugins.unknown(key, name, known))
        if name in names[:number]:
            raise ValueError(f"{key} must name each once, got {name!r} twice")


def check_different(what: str, baseline: Iterable[str], *others: Iterable[str]) -> None:
    """Raises ValueError where methods share a name (bilinear is one of the baselines), or a name is a number."""
    taken = {YARDSTICK, *baseline}
    for name in (name for group in others for name in group):
        if name in taken:
            raise ValueError(f"{what} must have different names, got {name!r} twice")
        if name.replace(".", "", 1).isdigit():
            raise ValueError(f"{what} must have names that are no numbers, got {name!r}")
        taken.add(name)


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


@dataclass(frozen=True, eq=False)
class Signal:
    """Something to upsample.

    Attributes:
        name: that of its truth, or `COLOUR`.
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


@dataclass(frozen=True)
class Method:
    """A way to upsample.

    Attributes:
        prepare: takes the guide (1, G, H, W) and the grid (h, w), fits what is to be fitted, and gives the upsampler.
        image_lr: how the LR image is made that it reconstructs the guide from, as in `ua.FitConfig`.
    """

    prepare: Callable[[Tensor, Grid], Upsampler]
    image_lr: str = "bicubic"


@dataclass(frozen=True, eq=False)
class Problem:
    """The signals of one sample on one LR grid; nothing is computed before it is asked for.

    Attributes:
        sample: the image and its truth.
        grid: cells (h, w).
        regimes: how the LR signals are made, some of `REGIMES`.
        seed: of jitter and noise.
        device: where it is measured.
    """

    sample: Sample
    grid: Grid
    regimes: Sequence[str]
    seed: int
    device: str

    @cached_property
    def truths(self) -> list[Truth]:
        return truths(self.sample, self.device)

    @property
    def names(self) -> list[tuple[str, str]]:
        """(regime, signal) of everything there is to upsample but the colours."""
        return [(regime, name) for regime in self.regimes for name in names_of(self.sample)]

    @cached_property
    def signals(self) -> dict[tuple[str, str], Signal]:
        return {
            (regime, truth.name): lower(truth, regime, self.grid, self._seed(truth.name))
            for regime in self.regimes
            for truth in self.truths
        }

    @cached_property
    def judged(self) -> dict[tuple[str, str], dict[str, float]]:
        """What `signal_is="auto"` takes each signal for: 1, an average of the truth, or 0, a prediction."""
        return {name: judgement(signal) for name, signal in self.signals.items()}

    def _seed(self, signal: str) -> int:
        scale = round(self.sample.image.shape[-2] / self.grid[0])
        return seed_of(self.seed, self.sample.name, scale, signal)


@dataclass(frozen=True, eq=False)
class Guide:
    """What the methods see of the image, made when it is asked for.

    Attributes:
        name: of the row.
        make: gives (1, G, H, W).
        clean: the image (1, G, H, W) that a corrupted guide was, where reconstructions are compared with it, too.
    """

    name: str
    make: Callable[[], Tensor]
    clean: Tensor | None = None

    @cached_property
    def image(self) -> Tensor:
        return self.make()


def load(data: Mapping[str, Mapping[str, Any]], split: str | None, tracker: Tracker) -> list[Sample]:
    """The samples of the split (None: of both); says which data sets are not here, and which picture comes twice.

    Args:
        data: modules of `ua.datasets` with the options of each.

    Raises:
        FileNotFoundError: no data set is here, or not the one whose `root` is given. ValueError: none has a sample in
            the split, two different samples share a name, or the tracker has rows of samples that are not here.
    """
    samples: list[Sample] = []
    absent = []
    for name, options in data.items():
        try:
            found = datasets.load(name, **options)
        except FileNotFoundError as error:
            if options.get("root") is not None:
                raise
            absent.append(f"data set {name!r} is left out: {error}")
            tracker.say(absent[-1])
            continue
        for sample in found:
            if split is not None and sample.split != split:
                if options.get("names"):
                    tracker.say(f"{sample.name} is left out: it is in the split {sample.split or 'of no name'}")
                continue
            twin = next((other.name for other in samples if torch.equal(other.image, sample.image)), None)
            if twin is not None:
                tracker.say(f"{sample.name} is left out: it is the same image as {twin}")
            elif any(other.name == sample.name for other in samples):
                raise ValueError(f"data: two samples are called {sample.name!r}, the second one in {name!r}")
            else:
                samples.append(sample)
    if not samples and absent:
        raise FileNotFoundError("; ".join(absent))
    if not samples:
        raise ValueError(f"data: no sample of {', '.join(data) or 'no data set'} is in the split {split}")
    scenes = {sample.scene or sample.name for sample in samples}
    if gone := sorted({row["scene"] for row in tracker.rows if row["signal"] != PREDICTION} - scenes):
        raise ValueError(
            f"the rows in {str(tracker.folder)!r} are of samples that are not here now ({', '.join(gone)}); "
            "bring the data back, or choose another folder"
        )
    return samples


def prepare(
    config: Common, fits: Mapping[str, ua.FitConfig], tracker: Tracker
) -> tuple[str, list[Sample], dict[str, Method]]:
    """What every experiment on the bench begins with: the device, the samples, and the methods, compiled.

    Raises:
        TypeError, ValueError, FileNotFoundError: see `choose_device`, `load` and `methods`.
    """
    device = choose_device(config.device)
    samples = load(config.data, config.split, tracker)
    warm_up(fits.values(), config.backend, device)
    return device, samples, methods(config.baseline, fits, config.backend)


def each(samples: Sequence[Sample], device: str, tracker: Tracker) -> Iterator[Sample]:
    """The samples one by one; says what each took."""
    for number, sample in enumerate(samples, start=1):
        start = now(device)
        yield sample
        tracker.say(f"[{number}/{len(samples)}] {sample.name}: {now(device) - start:.1f} s")


def shown(samples: Sequence[Sample], names: Iterable[str | None], tracker: Tracker) -> list[Sample]:
    """Those of the samples that a picture is asked of, by name; says which are not here. None asks for none."""
    wanted = [name for name in names if name is not None]
    for name in wanted:
        if all(sample.name != name for sample in samples):
            tracker.say(f"no picture of {name!r}: it is not among the data")
    return [sample for sample in samples if sample.name in wanted]


def grid_of(image: Tensor, scale: int) -> Grid:
    """Cells (h, w) of about `scale` pixels a side."""
    return max(1, round(image.shape[-2] / scale)), max(1, round(image.shape[-1] / scale))


def names_of(sample: Sample) -> list[str]:
    """The signals whose truth the sample has, the features first; what is known nowhere is no truth."""
    known = {
        "features": True,
        "depth": sample.depth_valid is not None and bool(sample.depth_valid.any()),
        "labels": sample.labels is not None and bool((sample.labels >= 0).any()),
        "normals": sample.normals_valid is not None and bool(sample.normals_valid.any()),
    }
    return [name for name, there in known.items() if there]


def truths(sample: Sample, device: str) -> list[Truth]:
    """Every signal of `names_of`."""
    bank = descriptor_bank(sample.image[None].to(device))[0]
    result = [Truth("features", bank, bank)]
    names = names_of(sample)
    if "depth" in names and sample.depth is not None and sample.depth_valid is not None:
        depth = sample.depth.to(device)
        result.append(Truth("depth", depth, depth, sample.depth_valid.to(device), sample.depth_unit))
    if "labels" in names and sample.labels is not None:
        # A class that does not occur has no probability anywhere, and 150 maps take their time.
        present, numbers = sample.labels.unique(return_inverse=True)
        labels = (numbers - int((present < 0).sum())).to(device)
        maps, valid = one_hot(labels, int((present >= 0).sum()))
        result.append(Truth("labels", maps, labels[None], valid))
    if "normals" in names and sample.normals is not None and sample.normals_valid is not None:
        normals = sample.normals.to(device)
        result.append(Truth("normals", normals, normals, sample.normals_valid.to(device)))
    return result


def lower(truth: Truth, regime: str, grid: Grid, seed: int) -> Signal:
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


def colour(guide: Tensor, grid: Grid, image_lr: str) -> Signal:
    """The guide (1, G, H, W) as a signal: what a fit reconstructs."""
    return Signal(COLOUR, to_grid(guide, grid, image_lr), None, guide[0])


def settings(presets: Sequence[str], variants: Mapping[str, Mapping[str, Any]]) -> dict[str, ua.FitConfig]:
    """The presets and variants by name; a variant is {preset: "default" where it is not given, field: value}.

    Raises:
        TypeError, ValueError: an unknown preset or field, or a value out of its range.
    """
    result = {name: ua.preset(name) for name in presets}
    for name, fields in variants.items():
        overrides = {key: value for key, value in fields.items() if key != "preset"}
        result[name] = ua.preset(fields.get("preset", "default")).replace(**overrides)
    return result


def methods(
    baseline: Mapping[str, Mapping[str, Any]], fits: Mapping[str, ua.FitConfig], backend: str
) -> dict[str, Method]:
    """Every method by name; bilinear is the yardstick and always there.

    Raises:
        ValueError, TypeError: an unknown baseline or option.
    """
    chosen: dict[str, Mapping[str, Any]] = {YARDSTICK: {}, **baseline}
    return {
        **{name: of_baseline(name, options) for name, options in chosen.items()},
        **{name: of_fit(fields, backend) for name, fields in fits.items()},
    }


def of_baseline(name: str, options: Mapping[str, Any]) -> Method:
    """A module of `ua.baselines`."""
    module = plugins.find("ua.baselines", name, needs="upsample", kind="baseline")
    plugins.check_options(module.upsample, options, f"baseline {name!r}")
    return Method(lambda image, grid: lambda low, valid: module.upsample(image, low, valid, **options))


def of_fit(fields: ua.FitConfig, backend: str) -> Method:
    """The method of this project with some settings."""
    return Method(
        lambda image, grid: rendering(ua.fit(image, grid, backend=backend, **vars(fields))), image_lr=fields.image_lr
    )


def rendering(fit: ua.Fit) -> Upsampler:
    """`fit.render`; a pixel that no known cell reaches takes the bilinear value."""

    def upsample(low: Tensor, valid: Tensor | None) -> Tensor:
        result = fit.render(low, valid)
        if valid is None:
            return result
        return torch.where(result.isnan(), bilinear.upsample(fit.image, low, valid), result)

    return upsample


def warm_up(fits: Iterable[ua.FitConfig], backend: str, device: str) -> None:
    """Compiles what is compiled on first use, so that no measurement pays for it: of every kind of signal."""
    image = torch.rand(1, 3, 64, 64, device=device)
    known = torch.ones(1, 4, 4, dtype=torch.bool, device=device)
    ramp = torch.linspace(0, 1, 4, device=device).expand(1, 1, 4, 4)
    share = torch.tensor([1, 1, 0.5, 0], device=device).expand(1, 1, 4, 4)
    features = torch.rand(1, 32, 4, 4, device=device)
    signals = (
        features,
        features.cumsum(3),
        features[:, :1],
        ramp,
        torch.cat([share, 1 - share], 1),
        features.softmax(1),
    )
    for fields in fits:
        fit = ua.fit(image, (4, 4), backend=backend, **vars(fields) | {"steps": min(2, fields.steps)})
        for signal in signals:
            fit.render(signal)
            fit.render(signal, known)


def measure(
    problem: Problem,
    guide: Guide,
    methods: Mapping[str, Method],
    tracker: Tracker,
    *,
    reconstruction: bool,
    only: Sequence[str] | None = None,
    **labels: str | int,
) -> None:
    """Adds the rows that are missing; every fit serves all signals and regimes.

    Args:
        problem: what is upsampled.
        guide: along what.
        methods: by what, by name.
        tracker: where the rows go.
        reconstruction: whether the colours of the guide are reconstructed, too, beside all signals.
        only: names of signals; None: every one that the sample has.
        labels: of the rows, besides those of `Place`.
    """
    place = Place(problem, guide, tracker, reconstruction, labels, only)
    for name, how in methods.items():
        if missing := place.missing(name):
            guide.image  # noqa: B018  made before the clock starts
            start = now(problem.device)
            upsample = how.prepare(guide.image, problem.grid)
            place.add(upsample, missing, name, image_lr=how.image_lr, fit_seconds=now(problem.device) - start)


@dataclass(frozen=True, eq=False)
class Place:
    """Where rows of one problem and guide go.

    Their labels: image, scene, dataset, split, guide, those in `labels`, regime, signal, method.
    """

    problem: Problem
    guide: Guide
    tracker: Tracker
    reconstruction: bool
    labels: Mapping[str, str | int]
    only: Sequence[str] | None = None

    @property
    def about(self) -> dict[str, str | int]:
        sample = self.problem.sample
        return {
            "image": sample.name,
            "scene": sample.scene or sample.name,
            "dataset": sample.group or sample.name,
            "split": sample.split or "unstated",
            "guide": self.guide.name,
            **self.labels,
        }

    def missing(self, method: str, step: int | None = None) -> list[tuple[str, str]]:
        """(regime, signal) of the rows that the tracker lacks."""
        names = [*self.problem.names, *([(IMAGE, COLOUR)] if self.reconstruction else [])]
        return [
            (regime, name)
            for regime, name in names
            if (self.only is None or name in (*self.only, COLOUR))
            and self.tracker.find(**self.about, regime=regime, signal=name, method=method, step=step) is None
        ]

    def add(
        self,
        upsample: Upsampler,
        names: Iterable[tuple[str, str]],
        method: str,
        step: int | None = None,
        *,
        image_lr: str,
        fit_seconds: float,
        **values: float,
    ) -> None:
        """Upsamples and scores each (regime, signal); `values` are those of the method, whatever the signal."""
        problem, guide = self.problem, self.guide
        for regime, name in names:
            is_colour = name == COLOUR
            signal = colour(guide.image, problem.grid, image_lr) if is_colour else problem.signals[regime, name]
            start = now(problem.device)
            result = upsample(signal.low, signal.low_valid)[0]
            seconds = {"fit_seconds": fit_seconds, "render_seconds": now(problem.device) - start}
            scores = score_colour(signal, result, guide) if is_colour else score(signal, result)
            if not is_colour:
                scores |= problem.judged[regime, name]
            labels = {**self.about, "regime": regime, "signal": name, "method": method}
            self.tracker.log(scores | seconds | values, step=step, **labels)


def judgement(signal: Signal) -> dict[str, float]:
    return {"judged_average": float(averages_truth(signal.low, signal.low_valid).all())}


def score_colour(signal: Signal, result: Tensor, guide: Guide) -> dict[str, float]:
    """How well the guide is reconstructed, result: (G, H, W), and how well bilinear does it from the same LR image."""
    plain = bilinear.upsample(guide.image, signal.low)[0]
    values = {"loss": (result - signal.truth).abs().mean().item()}
    for ending, picture in (("", result), (f"_{YARDSTICK}", plain)):
        values[f"psnr{ending}"] = metrics.psnr(picture[None], signal.truth[None])
        values[f"ssim{ending}"] = metrics.ssim(picture[None], signal.truth[None])
        if guide.clean is not None:
            values[f"psnr_clean{ending}"] = metrics.psnr(picture[None], guide.clean)
    return values


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
        return {
            "depth_rmse": metrics.depth_rmse(result, truth, valid),
            "depth_delta1": metrics.depth_delta1(result, truth, valid),
        }
    some, same = (maps[:, 1::FEATURE_STRIDE, 1::FEATURE_STRIDE] for maps in (result, truth))
    return {"feature_rmse": metrics.feature_rmse(some, same), "feature_cosine": metrics.feature_cosine(some, same)}


def clean(sample: Sample, device: str) -> Guide:
    """The sample's image as it is."""
    return Guide(CLEAN, lambda: sample.image[None].to(device))


def corrupted(sample: Sample, name: str, seed: int, device: str) -> Guide:
    """The sample's image under one of `ua.corrupt.CORRUPTIONS`."""
    return Guide(
        name,
        lambda: corrupt.corrupt(sample.image, name, seed_of(seed, sample.name, name))[None].to(device),
        sample.image[None].to(device),
    )


def seed_of(seed: int, *about: str | int) -> int:
    """A seed that differs between images, scales and signals and not between runs."""
    return zlib.crc32(" ".join(map(str, (seed, *about))).encode())
