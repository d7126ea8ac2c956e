"""Seconds and memory of fit and render, each backend and size in a process of its own.

`python -m ua.run experiment=benchmark` writes a run folder with a table and a figure. The same measurement
runs where there is neither Hydra nor Matplotlib, with nothing but torch, NumPy and what the backend needs:

    python -m experiments.benchmark --backends triton torch --device cuda --output results.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import ua
from ua import plugins
from ua.tracking import Tracker, choose_device, environment, now, write_json

MB = 2**20
# Table 4 of arXiv 2511.16301v2, GPU not named: side in pixels -> (seconds, peak MB).
PAPER = {
    64: (0.0055, 359),
    128: (0.0150, 1321),
    224: (0.0419, 3970),
    448: (0.2398, 15775),
    512: (0.3211, 20590),
    896: (1.2789, 62985),
    1024: (1.8083, 82256),
}
TICKS = (64, 128, 224, 448, 896, 1792)
# What issue 2 asks of the backend "cpu" on two cores: size, column, at most.
TARGETS = (
    (224, "fit_seconds", 0.25),
    (224, "render_seconds", 0.25),
    (224, "fit_peak_mb", 1024.0),
    (1024, "seconds", 12.0),
    (1024, "peak_mb", 6144.0),
)
TARGET_EXPONENT = 1.1


@dataclass(frozen=True)
class Config:
    """What to measure; configs/experiment/benchmark.yaml holds the same values.

    backends: modules of `kernels.bilateral`. device: as torch knows it. preset: of the library. sizes: HR pixels a
    side. cells: HR pixels per LR cell, the first one that divides the size counts. steps: of the fit. channels:
    rendered. limits: backend -> its largest size, 0 for none. compare_size, compare_steps: where every backend is
    compared with the reference. repeats: at most. budget: seconds for the repeats of one measurement.
    """

    backends: list[str] = field(default_factory=lambda: ["cpu", "torch", "reference"])
    device: str = "cpu"
    preset: str = "released"
    sizes: list[int] = field(default_factory=lambda: [224, 448, 896, 1024, 1792])
    cells: list[int] = field(default_factory=lambda: [14, 16])
    steps: int = 51
    channels: int = 384
    limits: dict[str, int] = field(default_factory=lambda: {"torch": 224, "reference": 0})
    compare_size: int = 224
    compare_steps: int = 5
    repeats: int = 9
    budget: float = 5.0

    def __post_init__(self) -> None:
        choose_device(self.device)
        for size in (*self.sizes, self.compare_size):
            if size < 1 or all(size % cell for cell in self.cells):
                raise ValueError(f"sizes and compare_size must be multiples of one of cells, {self.cells}, got {size}")
        for name in ("steps", "channels", "compare_steps", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Case:
    """One measurement: an image of `size` x `size` pixels with `cells` x `cells` cells."""

    backend: str
    size: int
    cells: int
    steps: int
    channels: int


Row = dict[str, Any]


def run(config: Config, tracker: Tracker) -> dict[str, Any]:
    """Measures what metrics.csv does not hold yet; writes results.json, a table and a figure."""

    def known(case: Case) -> Row | None:
        return tracker.find(**dataclasses.asdict(case))

    def log(case: Case, values: Row) -> None:
        tracker.log(values, **dataclasses.asdict(case))

    results = results_of(config, measure_all(config, known, log))
    write_json(tracker.folder / "results.json", results)
    report(config, results, tracker)
    return {name: results[name] for name in ("targets", "exponents", "ratio_to_reference")}


def measure_all(config: Config, known: Callable[[Case], Row | None], log: Callable[[Case, Row], None]) -> list[Row]:
    """A row for every case, of those that `known` does not have a new one, given to `log`."""
    todo = cases(config)
    rows = []
    for number, case in enumerate(todo, start=1):
        row = known(case)
        if row is None:
            measured = in_new_process(case, config)
            log(case, measured)
            row = dataclasses.asdict(case) | measured
        rows.append(row)
        print(
            f"[{number}/{len(todo)}] {case.backend} {case.size} x {case.size}, {case.steps} steps: "
            f"fit {row['fit_seconds']:.4f} s, render {row['render_seconds']:.4f} s, {row['peak_mb']:.0f} MB",
            file=sys.stderr,
            flush=True,
        )
    return rows


def cases(config: Config) -> list[Case]:
    """Every backend at every size within its limit, then every backend at the size of the comparison."""

    def case(backend: str, size: int, steps: int) -> Case:
        cell = next(cell for cell in config.cells if size % cell == 0)
        return Case(backend, size, size // cell, steps, config.channels)

    scaling = [
        case(backend, size, config.steps)
        for backend in config.backends
        for size in config.sizes
        if size <= config.limits.get(backend, size)
    ]
    if "reference" not in config.backends:
        return scaling
    return scaling + [case(backend, config.compare_size, config.compare_steps) for backend in config.backends]


def in_new_process(case: Case, config: Config) -> Row:
    """`measure` in a fresh interpreter, so that its peak of memory is its own.

    Raises:
        RuntimeError: the process failed; the message holds the end of what it said.
    """
    root = Path(__file__).resolve().parents[1]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    request = json.dumps([dataclasses.asdict(case), dataclasses.asdict(config)])
    command = [sys.executable, "-m", "experiments.benchmark", "--measure", request]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{case} failed with status {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(case: Case, config: Config) -> Row:
    """Seconds (20th, 50th and 80th percentile) and peak memory of fit and render, in this process.

    Memory is that of the process above what it had after the imports, inputs and outputs included, and on a
    GPU what PyTorch allocated there.
    """
    backend = plugins.find("kernels.bilateral", case.backend)
    getattr(backend, "_loops", lambda: None)()  # Numba belongs to the imports
    device = torch.device(config.device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    imports = peak_mb()
    options: dict[str, Any] = {"preset": config.preset, "backend": case.backend}
    settings = options | {"steps": case.steps}

    # Compiles, or loads what was compiled, at the smallest price.
    tiny = ua.fit(synthetic_image(2 * case.size // case.cells).to(device), (2, 2), **options | {"steps": 2})
    tiny.render(torch.rand(1, case.channels, 2, 2, device=device))

    image = synthetic_image(case.size).to(device)
    signal = torch.rand(1, case.channels, case.cells, case.cells, generator=torch.Generator().manual_seed(0)).to(device)
    fit, fit_seconds = timed(lambda: ua.fit(image, (case.cells, case.cells), **settings), config)
    fit_peak = peak_mb() - imports
    _, render_seconds = timed(lambda: fit.render(signal), config)
    row: Row = {
        "seconds": median(fit_seconds) + median(render_seconds),
        **percentiles("fit_seconds", fit_seconds),
        **percentiles("render_seconds", render_seconds),
        "fit_peak_mb": fit_peak,
        "peak_mb": peak_mb() - imports,
        "imports_mb": imports,
    }
    if device.type == "cuda":
        row["gpu_peak_mb"] = torch.cuda.max_memory_allocated(device) / MB
    return row


def timed(work: Callable[[], Any], config: Config) -> tuple[Any, list[float]]:
    """What `work` returns, and the seconds of each time that it was called."""
    seconds: list[float] = []
    while len(seconds) < config.repeats and sum(seconds) < config.budget:
        result = None  # so that two results never lie in memory together
        start = now(config.device)
        result = work()
        seconds.append(now(config.device) - start)
    return result, seconds


def percentiles(name: str, seconds: Sequence[float]) -> Row:
    low, middle, high = np.percentile(seconds, [20, 50, 80]).tolist()
    return {name: middle, f"{name}_p20": low, f"{name}_p80": high, f"{name}_repeats": len(seconds)}


def median(seconds: Sequence[float]) -> float:
    return float(np.median(seconds))


def peak_mb() -> float:
    """The most memory that this process has held so far."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / MB
    except (OSError, StopIteration):
        # Elsewhere than on Linux; macOS counts bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / MB if sys.platform == "darwin" else peak * 1024 / MB


def synthetic_image(size: int) -> Tensor:
    """(1, 3, size, size) in [0, 1] that needs no file: regions with edges, shading and fine grain, as
    photographs have.

    A Voronoi diagram of random colours, about one region per 32 x 32 pixels, over noise whose spectrum falls
    as 1 / f.
    """
    generator = torch.Generator().manual_seed(0)
    regions = max(4, (size // 32) ** 2)
    side = math.ceil(math.sqrt(regions))
    # One point in each square of a lattice, so that the nearest point lies in the 3 x 3 squares around a
    # pixel.
    jitter = torch.rand(side, side, 2, generator=generator)
    colours = torch.rand(side, side, 3, generator=generator)
    position = (torch.arange(size) + 0.5) * side / size
    square = position.long()
    best = torch.full((size, size), math.inf)
    picture = torch.zeros(size, size, 3)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            row, column = (square + dy).clamp(0, side - 1), (square + dx).clamp(0, side - 1)
            point = jitter[row[:, None], column]
            distance = (row[:, None] + point[..., 0] - position[:, None]) ** 2 + (
                column + point[..., 1] - position
            ) ** 2
            nearer = distance < best
            best = torch.where(nearer, distance, best)
            picture[nearer] = colours[row[:, None], column][nearer]
    frequency = torch.hypot(torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)).clamp(min=1 / size)
    noise = torch.fft.irfft2(
        torch.fft.rfft2(torch.randn(3, size, size, generator=generator)) / frequency, s=(size, size)
    )
    noise = 0.1 * noise / noise.std()
    return (0.1 + 0.8 * picture.permute(2, 0, 1) + noise).clamp(0, 1)[None]


def results_of(config: Config, rows: Sequence[Row]) -> dict[str, Any]:
    """Everything worth keeping, as plain values."""
    scaling = [row for row in rows if row["steps"] == config.steps]
    return {
        "environment": environment(),
        "settings": dataclasses.asdict(config),
        "rows": list(rows),
        "exponents": {
            backend: {
                name: exponent([row for row in scaling if row["backend"] == backend], name)
                for name in ("fit_seconds", "render_seconds", "seconds")
            }
            for backend in config.backends
            if sum(row["backend"] == backend for row in scaling) > 1
        },
        "ratio_to_reference": ratios(config, rows),
        "targets": targets(config, scaling),
    }


def exponent(rows: Sequence[Row], name: str) -> float:
    """p in seconds ~ pixels^p, by least squares in the logarithms."""
    pixels, seconds = (np.log([row[column] for row in rows]) for column in ("size", name))
    return float(np.polyfit(2 * pixels, seconds, 1)[0])


def ratios(config: Config, rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """How many times faster than the reference, at the size and steps of the comparison."""
    compared = {
        row["backend"]: row
        for row in rows
        if (row["size"], row["steps"]) == (config.compare_size, config.compare_steps)
    }
    reference = compared.get("reference")
    if reference is None:
        return {}
    names = ("fit_seconds", "render_seconds")
    return {backend: {name: reference[name] / row[name] for name in names} for backend, row in compared.items()}


def targets(config: Config, rows: Sequence[Row]) -> list[Row]:
    """The figures that the backend "cpu" is to reach, where this run measures what they are stated for."""
    if (config.preset, config.cells, config.steps, config.channels) != ("released", [14, 16], 51, 384):
        return []
    rows = [row for row in rows if row["backend"] == "cpu"]
    measured: list[tuple[int | None, str, float, float]] = []
    for size, name, limit in TARGETS:
        measured += [(size, name, limit, row[name]) for row in rows if row["size"] == size]
    if {224, 1792} <= {row["size"] for row in rows}:
        linear = [row for row in rows if 224 <= row["size"] <= 1792]
        for name in ("fit_seconds", "render_seconds"):
            measured.append((None, f"exponent of {name}", TARGET_EXPONENT, exponent(linear, name)))
    return [
        {"size": size, "what": what, "at_most": limit, "measured": value, "met": value <= limit}
        for size, what, limit, value in measured
    ]


def report(config: Config, results: dict[str, Any], tracker: Tracker) -> None:
    """The table of all cases, the table of targets, and the figure with the paper's table 4 drawn in."""
    from ua import plots

    rows = results["rows"]
    names = ("fit_seconds", "render_seconds", "seconds", "fit_peak_mb", "peak_mb", "gpu_peak_mb")
    shown = [name for name in names if any(name in row for row in rows)]
    tracker.table(
        "benchmark",
        [
            {
                **{name: row[name] for name in ("backend", "size", "cells", "steps", "channels")},
                **{n: row.get(n) for n in shown},
            }
            for row in rows
        ],
        formats={name: ".0f" if name.endswith("mb") else ".4f" for name in shown},
        caption=f"Preset {config.preset} on {device_name(results)}; medians; memory above the imports.",
    )
    if results["targets"]:
        tracker.table(
            "targets",
            results["targets"],
            formats={"measured": ".3g"},
            caption="What the cpu backend is to reach.",
        )

    memory = "gpu_peak_mb" if "gpu_peak_mb" in shown else "peak_mb"
    styles = [{"color": colour} for colour in plots.PALETTE]
    figures = []
    for name, index in (("seconds", 0), (memory, 1)):
        curves = []
        for backend, style in zip(config.backends, styles, strict=False):
            mine = [row for row in rows if (row["backend"], row["steps"]) == (backend, config.steps)]
            if mine:
                curves.append(plots.Curve(backend, [row["size"] for row in mine], [row[name] for row in mine], style))
        grey = {"color": "#777777", "linestyle": "--", "marker": "s"}
        paper = plots.Curve(
            "paper, table 4 (GPU not named)", list(PAPER), [values[index] for values in PAPER.values()], grey
        )
        ticks = [side for side in TICKS if side <= max(*config.sizes, *PAPER)]
        title = "seconds, fit and render" if index == 0 else "peak memory above the imports, MB"
        figures.append(plots.Plot([*curves, paper], title, "image side, pixels", ticks=ticks))
    what = f"{config.steps} steps, {config.channels} channels, {' or '.join(map(str, config.cells))} pixels a cell"
    tracker.figure(
        "scaling",
        plots.curves([figures], title=f"{what}, {device_name(results)}", log_y=True, width=4.4, height=3.4),
    )


def device_name(results: dict[str, Any]) -> str:
    where = results["environment"]
    gpu = results["settings"]["device"].startswith("cuda")
    return where["gpu"] if gpu else f"{where['cpu']}, {where['cpu_cores']} cores"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line without Hydra; with --measure, one case in this process."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="the results, JSON")
    for name, default in dataclasses.asdict(Config()).items():
        kind: Callable[[str], Any] = json.loads if isinstance(default, dict) else type(default)
        many: dict[str, Any] = {"nargs": "+", "type": type(default[0])} if isinstance(default, list) else {"type": kind}
        parser.add_argument(f"--{name.replace('_', '-')}", default=default, help=f"default: {default}", **many)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    given = vars(parser.parse_args(arguments))
    if request := given.pop("measure"):
        case, config = json.loads(request)
        print(json.dumps(measure(Case(**case), Config(**config))))
        return
    output = given.pop("output")
    if output is None:
        parser.error("--output is missing")
    config = Config(**given)
    write_json(output, results_of(config, measure_all(config, lambda case: None, lambda case, values: None)))


if __name__ == "__main__":
    main()
