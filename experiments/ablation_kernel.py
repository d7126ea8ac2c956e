"""What should the kernel look like? One part exchanged at a time: form, size, colours, LR image, loss.

Every setting is the preset `base` with a few fields changed, grouped by the factor that it changes. Each is scored on
what the fit optimises (the reconstruction of the guide) and on transfer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ua
from experiments import _ablation_report as reports
from experiments import _bench as bench
from experiments import _effects as effects
from ua.tracking import Tracker


@dataclass(frozen=True)
class Config(bench.Scaled):
    """What the YAML of this experiment holds, besides `bench.Scaled`.

    Attributes:
        base: the preset whose fields are exchanged; it is measured, too.
        factors: factor -> value -> the fields of `ua.FitConfig` that make it.
        only: the factors that are measured; None: all.
    """

    base: str
    factors: dict[str, dict[str, dict[str, Any]]]
    only: list[str] | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.only is not None:
            bench.check_names("only", self.only, self.factors)
        bench.check_different("factors, presets and baselines", self.baseline, fits(self))


def settings(config: Config) -> dict[str, ua.FitConfig]:
    """Every setting by the name of its factor and value.

    Raises:
        TypeError, ValueError: an unknown preset or field, or a value out of its range.
    """
    base = ua.preset(config.base)
    return {
        f"{factor}: {value}": base.replace(**fields)
        for factor, values in config.factors.items()
        if config.only is None or factor in config.only
        for value, fields in values.items()
    }


def fits(config: Config) -> dict[str, ua.FitConfig]:
    """The presets, the base among them, and every setting."""
    names = [*config.presets, *([] if config.base in config.presets else [config.base])]
    return {name: ua.preset(name) for name in names} | settings(config)


def run(config: Config, tracker: Tracker) -> dict[str, Any]:
    """Measures what metrics.csv does not hold yet, then draws and sums up all of it.

    Returns:
        The summary: the images, and the means of every regime, modality and setting.

    Raises:
        TypeError, ValueError, FileNotFoundError: an unknown name or option, or no data at all.
    """
    device, samples, methods = bench.prepare(config, fits(config), tracker)
    for sample in bench.each(samples, device, tracker):
        guide = bench.clean(sample, device)
        for scale in config.scales:
            grid = bench.grid_of(sample.image, scale)
            problem = bench.Problem(sample, grid, config.regimes, config.degradation_seed, device)
            bench.measure(problem, guide, methods, tracker, reconstruction=True, scale=scale)
    return {"images": [sample.name for sample in samples], **report(config, tracker)}


def report(config: Config, tracker: Tracker) -> dict[str, Any]:
    """Tables and a figure for each regime; returns the means."""
    found = effects.against(tracker.rows, apart=False)
    result = {}
    for regime in config.regimes:
        part = effects.of_regime(found, regime)
        result[regime] = reports.report(
            tracker,
            f"ablation_kernel_{regime}",
            part,
            f"One part of {config.base} exchanged; LR signal: {regime}",
            reference=config.base,
            describe=describe,
            strong=[*config.presets, config.base],
        )
    return result


def describe(method: str) -> dict[str, str]:
    """The first columns of a row."""
    factor, _, value = method.rpartition(": ")
    return {"factor": factor or "-", "setting": value}
