"""What the measurements of the benchmark say: ratios, scaling, targets, tables and figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Table 4 of arXiv 2511.16301v2, GPU not named: side in pixels -> (seconds, peak MB); None: out of memory.
PAPER: dict[int, tuple[float, float] | None] = {
    64: (0.0055, 359),
    128: (0.0150, 1321),
    224: (0.0419, 3970),
    448: (0.2398, 15775),
    512: (0.3211, 20590),
    896: (1.2789, 62985),
    1024: (1.8083, 82256),
    2048: None,
}
TICKS = (64, 128, 224, 448, 1024, 2048)
BASELINES = ("authors", "reference", "torch", "torch.compile")
STEPS, CHANNELS = 51, 384  # what the targets are stated for, as is table 4
STATED = {"preset": "released", "cells": [14, 16], "steps": STEPS, "channels": CHANNELS}
LINEAR_FROM, LINEAR_TO = 224, 1792  # pixels a side between which the exponent of the cost is stated
BANDWIDTH_FROM = 448  # pixels a side; smaller outputs fit into the cache of a GPU

Row = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Arguments of `ua.tables.markdown`."""

    rows: Sequence[Row]
    formats: Mapping[str, str] = field(default_factory=dict)
    caption: str = ""


@dataclass(frozen=True)
class Target:
    """A figure that a backend is to reach, on the device that an issue names. `value` is None where it was not
    measured, NaN where the measurement failed."""

    what: str
    backend: str
    limit: float
    value: Callable[[Measurements], float | None]
    at_least: bool = False


class Measurements:
    """The rows of one run, by what was measured."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows

    def get(self, column: str, backend: str, operator: str, size: int, channels: int, batch: int = 1) -> float | None:
        """The value of a column; None: not measured, NaN: the measurement failed."""
        labels = {"backend": backend, "operator": operator, "size": size, "channels": channels, "batch": batch}
        row = next((row for row in self.rows if labels.items() <= row.items()), None)
        return None if row is None else row.get(column, math.nan)

    def fit_seconds(self) -> float | None:
        per_step = self.get("seconds", "cpu", "fit_step", 224, 3)
        return None if per_step is None else STEPS * per_step

    def exponent(self, operator: str) -> float | None:
        """Of the backend "cpu", where the whole range was measured for which the target is stated."""
        rows = [row for row in self.rows if (row["backend"], row["operator"]) == ("cpu", operator)]
        rows = [row for row in at_main_settings(measured(rows)) if LINEAR_FROM <= row["size"] <= LINEAR_TO]
        return exponent(rows) if {LINEAR_FROM, LINEAR_TO} <= {row["size"] for row in rows} else None

    def least_bandwidth(self) -> float | None:
        """The smallest share of the copy bandwidth among the renders for which the target is stated."""
        rows = [row for row in measured(self.rows) if (row["backend"], row["operator"]) == ("triton", "render")]
        shares = [row["bytes_share"] for row in rows if row["channels"] >= CHANNELS and row["size"] >= BANDWIDTH_FROM]
        return min(shares, default=None)

    def times_authors(self) -> float | None:
        theirs = self.get("seconds", "authors", "end_to_end", 224, CHANNELS)
        ours = self.get("seconds", "triton", "end_to_end", 224, CHANNELS)
        return None if theirs is None or ours is None else theirs / ours


def _whole(column: str, backend: str, size: int, batch: int = 1) -> Callable[[Measurements], float | None]:
    return lambda found: found.get(column, backend, "end_to_end", size, CHANNELS, batch)


TARGETS = (
    # Issue 2, two CPU cores.
    Target("fit at 224, seconds", "cpu", 0.25, Measurements.fit_seconds),
    Target("render at 224, seconds", "cpu", 0.25, lambda found: found.get("seconds", "cpu", "render", 224, CHANNELS)),
    Target("fit at 224, peak MB", "cpu", 1024, lambda found: found.get("peak_mb", "cpu", "fit_step", 224, 3)),
    Target("end to end at 1024, seconds", "cpu", 12, _whole("seconds", "cpu", 1024)),
    Target("end to end at 1024, peak MB", "cpu", 6144, _whole("peak_mb", "cpu", 1024)),
    Target("default at 224, seconds", "cpu", 0.25, lambda found: found.get("seconds", "cpu", "default", 224, CHANNELS)),
    Target("fit, exponent in pixels from 224 to 1792", "cpu", 1.1, lambda found: found.exponent("fit_step")),
    Target("render, exponent in pixels from 224 to 1792", "cpu", 1.1, lambda found: found.exponent("render")),
    # Issue 3, one H200.
    Target("end to end at 224, seconds", "triton", 0.005, _whole("seconds", "triton", 224)),
    Target("end to end at 224, times the authors' speed", "triton", 100, Measurements.times_authors, at_least=True),
    Target("end to end at 224, images a second", "triton", 1000, _whole("images_per_second", "triton", 224, 32), True),
    Target("end to end at 1024, seconds", "triton", 0.06, _whole("seconds", "triton", 1024)),
    Target("end to end at 1024, peak / (input + output)", "triton", 1.5, _whole("peak_ratio", "triton", 1024)),
    Target("end to end at 2048, works: seconds", "triton", math.inf, _whole("seconds", "triton", 2048)),
    Target("render, share of copy bandwidth", "triton", 0.5, Measurements.least_bandwidth, at_least=True),
)


def conclusions(results: Mapping[str, Any]) -> dict[str, Any]:
    """Ratios, exponents and targets; nothing about the speed of a backend that disagrees with the reference."""
    red = red_backends(results)
    rows = [row for row in results["rows"] if row["backend"] not in red]
    return {
        "ratios": ratios(measured(rows)),
        "exponents": exponents(measured(rows)),
        "targets": targets(results["settings"], rows, red),
    }


def red_backends(results: Mapping[str, Any]) -> list[str]:
    return [row["backend"] for row in results.get("agreement", []) if not row["ok"]]


def measured(rows: Sequence[Row]) -> list[Row]:
    """Those that have a time: neither out of memory nor failed."""
    return [row for row in rows if "seconds" in row]


def at_main_settings(rows: Sequence[Row]) -> list[Row]:
    """The rows of one image and the channels of table 4 (of a fit, those of the guide)."""
    return [row for row in rows if row["batch"] == 1 and row["channels"] == main_channels(rows)]


def main_channels(rows: Sequence[Row]) -> int:
    """The number of channels measured at most sizes."""
    counts = [row["channels"] for row in rows]
    return max(counts, key=counts.count, default=0)


def highest(new: Mapping[str, Any], earlier: Mapping[str, Any]) -> dict[str, Any]:
    """The ceilings of two starts of one run together: what the device can do is the most that was seen."""
    if not earlier:
        return dict(new)
    name = "matmul_flops_per_second"
    matmul = {dtype: max(value, earlier[name].get(dtype, 0.0)) for dtype, value in new[name].items()}
    copied = max(new["copy_bytes_per_second"], earlier["copy_bytes_per_second"])
    return {"copy_bytes_per_second": copied, name: matmul}


def shares(row: Row, ceilings: Mapping[str, Any]) -> Row:
    """Bandwidth and arithmetic of a row in units of the ceilings; the fit computes in float32."""
    if "seconds" not in row:
        return {}
    dtype = "float32" if row["operator"] == "fit_step" else row["dtype"]
    return {
        "bytes_share": row["bytes_per_second"] / ceilings["copy_bytes_per_second"],
        "flops_share": row["flops_per_second"] / ceilings["matmul_flops_per_second"][dtype],
    }


def ratios(rows: Sequence[Row]) -> list[Row]:
    """How many times faster than each baseline, where both were measured on the same problem."""
    labels = ("operator", "size", "channels", "batch")
    found: list[Row] = []
    for row in rows:
        same = {other["backend"]: other for other in rows if all(other[name] == row[name] for name in labels)}
        times = {
            f"times_{name}": same[name]["seconds"] / row["seconds"]
            for name in BASELINES
            if name in same and name != row["backend"]
        }
        if times:
            found.append({"backend": row["backend"], **{name: row[name] for name in labels}, **times})
    return found


def exponents(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """p in seconds ~ pixels^p for each backend and operator, from 224 pixels a side on."""
    result: dict[str, dict[str, float]] = {}
    for backend in dict.fromkeys(row["backend"] for row in rows):
        for operator in dict.fromkeys(row["operator"] for row in rows):
            mine = [row for row in rows if (row["backend"], row["operator"]) == (backend, operator)]
            mine = [row for row in at_main_settings(mine) if row["size"] >= LINEAR_FROM]
            if len(mine) > 1:
                result.setdefault(backend, {})[operator] = exponent(mine)
    return result


def exponent(rows: Sequence[Row]) -> float:
    """p in seconds ~ pixels^p, by least squares in the logarithms."""
    sides, seconds = (np.log([row[column] for row in rows]) for column in ("size", "seconds"))
    return float(np.polyfit(2 * sides, seconds, 1)[0])


def targets(settings: Mapping[str, Any], rows: Sequence[Row], red: Sequence[str]) -> list[Row]:
    """Every target with what was measured and "met", "not met" or "not measured"."""
    as_stated = all(settings[name] == value for name, value in STATED.items())
    found = Measurements(rows if as_stated else [])
    result = []
    for target in TARGETS:
        value = target.value(found)
        sign = ">=" if target.at_least else "<="
        result.append(
            {
                "backend": target.backend,
                "what": target.what,
                "target": f"{sign} {target.limit:g}" if math.isfinite(target.limit) else "any",
                "measured": value,
                "verdict": "disagrees with the reference" if target.backend in red else verdict(target, value),
            }
        )
    return result


def verdict(target: Target, value: float | None) -> str:
    if value is None:
        return "not measured"
    met = value >= target.limit if target.at_least else value <= target.limit
    return "met" if met else "not met"


def in_words(row: Row) -> str:
    """A row for the person who waits."""
    if row.get("oom"):
        return "out of memory"
    if "error" in row:
        return f"failed: {row['error']}"
    return f"{row['seconds']:.4g} s, {row['peak_mb']:.0f} MB"


def device_name(results: Mapping[str, Any]) -> str:
    where = results["environment"]
    gpu = str(results["settings"]["device"]).startswith("cuda")
    return where["gpu"] if gpu else f"{where['cpu']}, {where['cpu_cores']} cores"


def tables_of(results: Mapping[str, Any]) -> dict[str, Table]:
    """Tables by name; those without rows are left out."""
    settings, where, ceilings = results["settings"], results["environment"], results["ceilings"]
    versions = ", ".join(f"{name} {where['versions'].get(name, 'absent')}" for name in ("torch", "triton"))
    products = ", ".join(f"{name} {value / 1e12:.3g}" for name, value in ceilings["matmul_flops_per_second"].items())
    copied = ceilings["copy_bytes_per_second"] / 1e9
    device = f"{device_name(results)}; {versions}; commit {str(where['commit'])[:12]}"
    result = {
        "benchmark": Table(
            [shown(row) for row in sorted(results["rows"], key=lambda row: row["operator"])],
            {name: ".3g" for name in ("p20", "seconds", "p80", "ratio", "GB/s", "GFLOP/s")}
            | {"peak MB": ".0f", "of copy": ".0%", "of matmul": ".0%"},
            f"Preset {settings['preset']}, signals in {settings['dtype']}, {device}. Seconds of a call, of a fit those "
            f"of a step; ratio: peak memory to input and output. Ceilings: copy {copied:.4g} GB/s, matrix product in "
            f"TFLOP/s: {products}.",
        ),
        "ratios": Table(
            results["ratios"],
            {f"times_{name}": ".3g" for name in BASELINES},
            f"How many times faster than each baseline, on {device}.",
        ),
        "targets": Table(results["targets"], {"measured": ".3g"}, f"Targets, measured on {device}."),
    }
    return {name: table for name, table in result.items() if table.rows}


def shown(row: Row) -> Row:
    """A row as the table shows it."""
    giga = {name: row[f"{name}_per_second"] / 1e9 for name in ("bytes", "flops") if "seconds" in row}
    return {
        **{name: row[name] for name in ("operator", "backend", "size", "channels", "batch")},
        "p20": row.get("seconds_p20"),
        "seconds": row.get("seconds"),
        "p80": row.get("seconds_p80"),
        "peak MB": row.get("peak_mb"),
        "ratio": row.get("peak_ratio"),
        "GB/s": giga.get("bytes"),
        "of copy": row.get("bytes_share"),
        "GFLOP/s": giga.get("flops"),
        "of matmul": row.get("flops_share"),
        "note": "" if "seconds" in row else in_words(row),
    }


def figures_of(results: Mapping[str, Any]) -> dict[str, Figure]:
    """Time and memory against size end to end, beside the paper's table 4, and time of the single operators."""
    from ua import plots

    settings = results["settings"]
    rows = measured(results["rows"])
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    styles = {backend: {"color": colour} for backend, colour in zip(backends, plots.PALETTE * 2, strict=False)}

    def of_backends(operator: str, column: str) -> list[plots.Curve]:
        curves = []
        for backend in backends:
            mine = [row for row in rows if (row["backend"], row["operator"]) == (backend, operator)]
            mine = sorted(at_main_settings(mine), key=lambda row: row["size"])
            if mine:
                sizes, values = [row["size"] for row in mine], [row[column] for row in mine]
                curves.append(plots.Curve(backend, sizes, values, styles[backend]))
        return curves

    grey = {"color": "#777777", "linestyle": "--", "marker": "s"}
    stated = {side: values for side, values in PAPER.items() if values is not None}
    x_label = "image side, pixels"
    scaling = []
    for index, (column, title) in enumerate((("seconds", "seconds, fit and render"), ("peak_mb", "peak memory, MB"))):
        values = [pair[index] for pair in stated.values()]
        paper = plots.Curve("paper, table 4 (GPU not named; 2048: out of memory)", list(stated), values, grey)
        scaling.append(plots.Plot([*of_backends("end_to_end", column), paper], title, x_label, ticks=TICKS))
    titles = {
        "fit_step": "one step of the fit, seconds",
        "render": "render, seconds",
        "render_backward": "gradients, seconds",
    }
    single = [plots.Plot(of_backends(name, "seconds"), title, x_label, ticks=TICKS) for name, title in titles.items()]
    cells = " or ".join(map(str, settings["cells"]))
    what = f"{settings['channels']} channels, {cells} pixels a cell, {device_name(results)}"
    title = f"{settings['steps']} steps, {what}"
    figures = {"scaling": plots.curves([scaling], title=title, log_y=True, width=4.4, height=3.4)}
    if any(plot.curves for plot in single):
        figures["operators"] = plots.curves([single], title=what, log_y=True, width=3.6, height=3.2)
    return figures
