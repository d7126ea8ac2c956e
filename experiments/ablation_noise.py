"""What does a spoiled guide cost, and what helps? Impulses, noise, blur, JPEG and low light, with and without remedies.

The guide alone is spoiled: the LR signal and its truth stay. Reconstructions are compared with the spoiled guide, which
the fit imitates, and with the clean one ("clean PSNR"): the paper observes that the method reproduces noise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ua
from experiments import _ablation_report as reports
from experiments import _bench as bench
from experiments import _effects as effects
from experiments._effects import Effect
from experiments._panels import signal_panels
from ua import corrupt, plots
from ua.datasets import Sample
from ua.tracking import Tracker

OF_THE_GUIDE = ("PSNR", "SSIM")  # compare with the guide itself, so not between guides
SHOWN = ("depth", "features", "mIoU", "clean PSNR")  # in the figures of severity


@dataclass(frozen=True)
class Config(bench.Scaled):
    """What the YAML of this experiment holds, besides `bench.Scaled`.

    Attributes:
        guides: names of `ua.corrupt.CORRUPTIONS`; "clean" is added, since it is what the others are compared with.
        variants: name -> {preset: of the library ("default" where it is not given), field of `ua.FitConfig`: value}.
        severities: kind of corruption -> guide -> how strong, for the curves; drawn of those that are measured.
        picture: name of the sample shown at the first scale; None, or one that is not among the data: no picture.
        pictured: guides that it is shown with, those of them that are measured.
    """

    guides: list[str]
    variants: dict[str, dict[str, Any]]
    severities: dict[str, dict[str, Any]]
    picture: str | None
    pictured: list[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        bench.check_names("guides", self.guides, corrupt.CORRUPTIONS)
        for kind, named in self.severities.items():
            bench.check_names(f"severities.{kind}", list(named), corrupt.CORRUPTIONS)
            for guide, strength in named.items():
                if not isinstance(strength, int | float):
                    raise TypeError(f"severities.{kind}.{guide} must be a number, got {strength!r}")
        bench.check_names("pictured", self.pictured, corrupt.CORRUPTIONS)
        bench.check_different("variants, presets and baselines", self.baseline, self.presets, self.variants)
        settings(self)


def settings(config: Config) -> dict[str, ua.FitConfig]:
    """The presets and variants by name."""
    return bench.settings(config.presets, config.variants)


def guides(config: Config) -> list[str]:
    """All guides, the clean one first."""
    return effects.in_order([bench.CLEAN, *config.guides])


def pictured(config: Config) -> list[str]:
    """The measured guides that the picture shows."""
    return [name for name in config.pictured if name in guides(config)]


def run(config: Config, tracker: Tracker) -> dict[str, Any]:
    """Measures what metrics.csv does not hold yet, then draws and sums up all of it.

    Returns:
        The summary: the images, the means of every regime, guide, modality and method, and what each guide costs.

    Raises:
        TypeError, ValueError, FileNotFoundError: an unknown name or option, or no data at all.
    """
    device, samples, methods = bench.prepare(config, settings(config), tracker)
    for sample in bench.each(samples, device, tracker):
        for scale in config.scales:
            problem = problem_of(config, sample, scale, device)
            for name in guides(config):
                guide = bench.corrupted(sample, name, config.degradation_seed, device)
                bench.measure(problem, guide, methods, tracker, reconstruction=True, scale=scale)
    for sample in bench.shown(samples, [config.picture], tracker):
        if pictured(config):
            tracker.figure(f"panels_{sample.name}", picture(config, sample, methods, device))
    return {"images": [sample.name for sample in samples], **report(config, tracker)}


def problem_of(config: Config, sample: Sample, scale: int, device: str) -> bench.Problem:
    """The signals of the sample at this scale."""
    grid = bench.grid_of(sample.image, scale)
    return bench.Problem(sample, grid, config.regimes, config.degradation_seed, device)


def report(config: Config, tracker: Tracker) -> dict[str, Any]:
    """Tables of each regime and guide, of what each guide costs, and curves over the severity."""
    against_bilinear = effects.against(tracker.rows, apart=False)
    result: dict[str, Any] = {}
    for regime in config.regimes:
        part = effects.of_regime(against_bilinear, regime)
        for guide in guides(config):
            result.setdefault(regime, {})[guide] = reports.report(
                tracker,
                f"ablation_noise_{regime}_{guide}",
                [effect for effect in part if effect.guide == guide],
                f"Guide: {guide}; LR signal: {regime}",
            )
        for kind, named in config.severities.items():
            strengths = {
                strength: [effect for effect in part if effect.guide == guide]
                for guide, strength in sorted(named.items(), key=lambda pair: float(pair[1]))
                if guide in guides(config)
            }
            if len(strengths) < 2:
                continue
            title = f"Against bilinear; LR signal: {regime}"
            reports.lines(tracker, f"{kind}_{regime}", strengths, SHOWN, kind.replace("_", " "), title)
    held_out = [row for row in tracker.rows if row["split"] == "test"]
    for name, rows, apart in (("cost", tracker.rows, False), ("cost_held_out", held_out, True)):
        against_clean = [
            effect
            for effect in effects.against_guide(rows, bench.CLEAN, apart=apart)
            if effect.modality.name not in OF_THE_GUIDE
        ]
        for regime in config.regimes:
            part = effects.of_regime(against_clean, regime)
            result[regime][name] = cost_table(config, part, f"{name}_{regime}", tracker)
    return result


def cost_table(config: Config, part: Sequence[Effect], name: str, tracker: Tracker) -> dict[str, Any]:
    """What a spoiled guide costs each method, against the same method with the clean guide, with paired tests.

    Returns:
        guide -> modality -> method -> mean.
    """
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {}
    for guide in guides(config)[1:]:
        both = [
            dataclasses.replace(effect, guide="", method=f"{effect.method} @ {effect.guide}")
            for effect in part
            if effect.guide in (guide, bench.CLEAN)
        ]
        means = effects.intervals(both)
        for method in effects.in_order(effect.method for effect in part):
            spoiled, clean = f"{method} @ {guide}", f"{method} @ {bench.CLEAN}"
            tests = effects.compare(both, spoiled, clean)
            cells: dict[str, Any] = {}
            for modality, column in means.items():
                if spoiled not in column:
                    continue
                text = effects.cell(column[spoiled], effects.FORMATS[modality.kind])
                mark = reports.sign(tests[modality], modality) if modality in tests else ""
                cells[modality.name] = f"{text} {mark}".strip()
                result.setdefault(guide, {}).setdefault(modality.name, {})[method] = column[spoiled].mean
            rows.append({"guide": guide, "method": method, **cells})
    if rows:
        caption = (
            "What a spoiled guide costs: errors as ratios to the same method with the clean guide, the rest as "
            "differences; means over scenes and scales [95 % bootstrap interval]; + and -: significantly better and "
            f"worse, paired sign-flip p < {effects.SIGNIFICANT}. {effects.coverage(part)}."
        )
        tracker.table(name, rows, caption=caption)
    return result


def picture(config: Config, sample: Sample, methods: Mapping[str, bench.Method], device: str) -> Any:
    """Guide, LR, bilinear, the first presets or variants, truth and errors of the depth (else features), by guide."""
    problem = problem_of(config, sample, config.scales[0], device)
    shown = [bench.YARDSTICK, *settings(config)][:3]
    name_of_signal = "depth" if "depth" in bench.names_of(sample) else "features"
    signal = problem.signals[config.regimes[0], name_of_signal]
    rows = []
    for name in pictured(config):
        image = bench.corrupted(sample, name, config.degradation_seed, device).image
        upsamplers = {
            method.replace("_", " "): how.prepare(image, problem.grid)
            for method, how in methods.items()
            if method in shown
        }
        results = {title: upsample(signal.low, signal.low_valid)[0] for title, upsample in upsamplers.items()}
        guide = plots.Panel(plots.image(image[0]), "guide", name.replace("_", " "))
        rows.append([guide, *signal_panels(signal, results)])
    return plots.panels(rows, row_titles=[name_of_signal] * len(rows), width=1.9)
