"""Seconds, memory, bandwidth and arithmetic of every operator and backend, from 64 to 2048 pixels a side.

`python -m ua.run experiment=benchmark` writes a run folder with results.json, tables and figures. The same measurement
runs where there is neither Hydra nor Matplotlib, with nothing but torch, NumPy and what the backend needs:

    python -m experiments.benchmark --device cuda --output results.json

and `python -m ua.run experiment=benchmark results=results.json` draws what another machine has measured. Both go on
where a run was interrupted: results.json is written after every measurement.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

import ua
from experiments import _benchmark_report as report
from experiments._benchmark_measure import agreement, ceilings, measure, refusal
from experiments._benchmark_operators import (
    BACKEND_MODULES,
    CLASSES,
    GUIDE_CHANNELS,
    OPERATORS,
    PACKAGES,
    Case,
    authors_source,
)
from ua import plugins, tables
from ua.tracking import Tracker, choose_device, environment, write_json

Row = dict[str, Any]
BACKENDS = {"cpu": ["cpu", "reference", "torch"], "cuda": ["triton", "reference", "torch", "torch.compile"]}
RECORD = ("environment", "settings", "agreement", "ceilings", "rows", "skipped")
DTYPES = {"cpu": "float32", "cuda": "float16"}


@dataclass(frozen=True)
class Config:
    """What to measure; configs/experiment/benchmark.yaml holds the same values.

    operators: of the registry. backends: of the library, "torch.compile", or dotted names of your own; none: those that
    suit the device. device: as torch knows it. dtype: of the signals; "auto": float16 on a GPU, float32 on the CPU.
    preset: of the library. sizes: HR pixels a side. cells: HR pixels per LR cell, the first that divides the size
    counts. steps: of the fit. few_steps: of the fit in the operator "fit_step" where a backend computes every step
    alike by autograd. channels: at every size (of labels, always 21). more_channels: rendered at the size channels_at.
    batch: images at once at the size batch_at. only_sizes: backend -> the sizes where it is measured. repeats: at most.
    budget: seconds for the repeats of one measurement. longest: seconds of one call; what is expected to take more is
    skipped. minutes: of the whole run, likewise. authors: a checkout of the authors' code, to be measured beside.
    results: a results.json to draw instead of measuring.
    """

    operators: list[str] = field(default_factory=lambda: list(OPERATORS))
    backends: list[str] = field(default_factory=list)
    device: str = "auto"
    dtype: str = "auto"
    preset: str = "released"
    sizes: list[int] = field(default_factory=lambda: list(report.PAPER))
    cells: list[int] = field(default_factory=lambda: [14, 16])
    steps: int = 51
    few_steps: int = 3
    channels: int = 384
    more_channels: list[int] = field(default_factory=lambda: [1, 3, 21, 768])
    channels_at: int = 448
    batch: int = 32
    batch_at: int = 224
    only_sizes: dict[str, list[int]] = field(default_factory=lambda: {"torch.compile": [224, 1024]})
    repeats: int = 20
    budget: float = 2.0
    longest: float = 12.0
    minutes: float = 7.5
    authors: str | None = None
    results: str | None = None

    def __post_init__(self) -> None:
        choose_device(self.device)
        for name in self.operators:
            if name not in OPERATORS:
                raise ValueError(plugins.unknown("operator", name, OPERATORS))
        known = {*plugins.names("kernels.bilateral"), *BACKEND_MODULES}
        for name in self.backends:
            if name not in known and "." not in name:
                raise ValueError(plugins.unknown("backend", name, sorted(known)))
        if self.dtype not in (accepted := ("auto", "float32", "float16", "bfloat16")):
            raise ValueError(plugins.unknown("dtype", self.dtype, accepted))
        for size in (*self.sizes, self.channels_at, self.batch_at):
            if size < 1 or all(size % cell for cell in self.cells):
                raise ValueError(
                    f"sizes, channels_at and batch_at must be multiples of one of cells, {self.cells}, got {size}"
                )
        for name in ("steps", "few_steps", "channels", "batch", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.authors is not None:
            authors_source(self.authors)
        if self.results is not None and not Path(self.results).is_file():
            raise FileNotFoundError(f"results={self.results}: no such file")


def run(config: Config, tracker: Tracker) -> dict[str, Any]:
    """Measures what results.json of the run folder does not hold yet; writes it, tables and figures."""
    path = tracker.folder / "results.json"
    if config.results is not None:
        results = read_results(Path(config.results))
        results |= report.conclusions(results)
        write_json(path, results)
    else:
        results = measure_all(config, path)
        log_rows(results, tracker)
    for name, table in report.tables_of(results).items():
        tracker.table(name, table.rows, formats=table.formats, caption=table.caption)
    for name, figure in report.figures_of(results).items():
        tracker.figure(name, figure)
    return {name: results[name] for name in ("agreement", "targets", "exponents", "skipped")}


def log_rows(results: dict[str, Any], tracker: Tracker) -> None:
    """Every measured row, to metrics.csv and W&B."""
    fields = [field.name for field in dataclasses.fields(Case)]
    for row in report.measured(results["rows"]):
        labels = {name: row[name] for name in fields}
        if tracker.find(**labels) is None:
            tracker.log({name: value for name, value in row.items() if name not in labels}, **labels)


def read_results(path: Path) -> dict[str, Any]:
    """A results.json of this module.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        if missing := [name for name in RECORD if name not in results]:
            raise ValueError(f"no {', '.join(missing)}")
        return results
    except (ValueError, TypeError, OSError) as error:
        raise ValueError(f"{path.name} holds no results of experiments.benchmark ({error})") from error


def measure_all(config: Config, path: Path) -> dict[str, Any]:
    """Checks every backend, measures every case, and keeps `path` up to date with all that is known."""
    deadline = time.monotonic() + 60 * config.minutes
    device = choose_device(config.device)
    kind = torch.device(device).type
    dtype = DTYPES.get(kind, "float32") if config.dtype == "auto" else config.dtype
    results = start_of(config, device, dtype, path)

    refusals = {name: refusal(name, device, dtype) for name in config.backends or BACKENDS.get(kind, BACKENDS["cpu"])}
    for backend, reason in refusals.items():
        if reason is not None:
            skip(results, f"{backend} on {device}", reason)
    backends = [backend for backend, reason in refusals.items() if reason is None]
    like = Case("render", "reference", 224, 16, config.channels, 1, config.steps, dtype, device, config.preset)
    results["agreement"] = [checked(backend, like) for backend in backends if backend != "reference"]
    say(f"ceilings of {report.device_name(results)}")
    results["ceilings"] = report.highest(ceilings(device, dtype), results["ceilings"])

    todo = cases(config, backends, device, dtype)
    for number, case in enumerate(todo, start=1):
        row = measured_once(case, config, results, deadline)
        if row is not None:
            write_json(path, results)
            say(f"[{number}/{len(todo)}] {in_words(case)}: {report.in_words(row)}")
    # In the order of the cases, also where an interrupted run was gone on with.
    rows = [row for case in todo if (row := find(results["rows"], case)) is not None]
    results["rows"] = [row | report.shares(row, results["ceilings"]) for row in rows]
    results |= report.conclusions(results)
    write_json(path, results)
    return results


def measured_once(case: Case, config: Config, results: dict[str, Any], deadline: float) -> Row | None:
    """The row of a case: the one that is there, or a new one, added to `results`; None where it is left out."""
    row = find(results["rows"], case)
    if row is not None:
        return row
    reason = not_worth_it(case, results["rows"], config.longest, deadline, free_bytes(case.device))
    if reason is not None:
        skip(results, in_words(case), reason)
        return None
    row = asdict(case) | measure(case, config.repeats, config.budget, config.authors)
    results["rows"].append(row)
    return row


def in_words(case: Case) -> str:
    """A case for the person who waits."""
    size = f"{case.size} x {case.size}"
    return f"{case.backend} {case.operator} {size}, {case.channels} channels, batch {case.batch}"


def start_of(config: Config, device: str, dtype: str, path: Path) -> dict[str, Any]:
    """An empty record, or the rows of the record in `path`; those that failed are to be measured again.

    Raises:
        ValueError: the record is of other settings or another machine.
    """
    settings = asdict(config) | {"device": device, "dtype": dtype, "authors": config.authors is not None}
    results: dict[str, Any] = {"environment": environment(), "settings": settings, "ceilings": {}}
    results |= {"rows": [], "skipped": []}
    if not path.exists():
        return results
    earlier = read_results(path)
    for group, names in (("settings", settings), ("environment", ("commit", "cpu", "gpu", "threads", "versions"))):
        for name in names:
            was, is_now = earlier[group].get(name), results[group].get(name)
            if was != is_now:
                raise ValueError(f"{path.name} was measured with {name} {was}, now it is {is_now}; choose another file")
    results["rows"] = [row for row in earlier["rows"] if "error" not in row]
    results["ceilings"] = earlier["ceilings"]
    return results


def checked(backend: str, like: Case) -> Row:
    """`agreement`, said aloud; an error is a disagreement."""
    say(f"checking {backend} against the reference")
    try:
        row = agreement(backend, like)
    except Exception as error:  # a kernel, a compiler or a driver may raise anything, and others can be measured still
        row = {"backend": backend, "ok": False, "error": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}
    if not row["ok"]:
        say(f"DISAGREES, no ratio of {backend} is reported: {row}")
    return row


def cases(config: Config, backends: Iterable[str], device: str, dtype: str) -> list[Case]:
    """Every operator of every backend at every size; then more channels, and a batch, at one size each.

    The authors' code comes first: what others are compared with should be there when time is up.
    """

    def case(operator: str, backend: str, size: int, channels: int = config.channels, batch: int = 1) -> Case:
        steps = config.steps if operator in ("fit_step", "end_to_end") else 0
        if operator == "fit_step":
            channels = GUIDE_CHANNELS
            steps = config.steps if has_fused_fit(backend, config.preset) else config.few_steps
        if operator == "assign":
            channels = CLASSES
        cell = next(cell for cell in config.cells if size % cell == 0)
        return Case(operator, backend, size, size // cell, channels, batch, steps, dtype, device, config.preset)

    result = []
    if config.authors is not None:
        result += [case("end_to_end", "authors", size) for size in sorted(config.sizes)]
    for backend in backends:
        for operator in config.operators:
            if backend in OPERATORS[operator].not_by or not has(backend, operator):
                continue
            result += [case(operator, backend, size) for size in sorted(config.sizes)]
            if operator in ("render", "render_backward"):
                result += [case(operator, backend, config.channels_at, channels) for channels in config.more_channels]
            if operator in ("end_to_end", "default"):
                result.append(case(operator, backend, config.batch_at, batch=config.batch))
    return [case for case in dict.fromkeys(result) if case.size in config.only_sizes.get(case.backend, [case.size])]


def has(backend: str, operator: str) -> bool:
    """Some operators have fewer backends than the render, and one's own may have the render alone."""
    return operator not in PACKAGES or backend in plugins.names(PACKAGES[operator])


def has_fused_fit(backend: str, preset: str) -> bool:
    """Whether a backend has a loop of its own for the fit; of others every step costs the same."""
    module = plugins.find("kernels.bilateral", BACKEND_MODULES.get(backend, backend))
    return hasattr(module, f"fit_{ua.preset(preset).parameterisation}")


def find(rows: Sequence[Row], case: Case) -> Row | None:
    """The row of this case among `rows`."""
    return next((row for row in rows if asdict(case).items() <= row.items()), None)


def not_worth_it(case: Case, rows: Sequence[Row], longest: float, deadline: float, free: float) -> str | None:
    """Why a case is left out, judged by the rows of the same operator and backend; None: it is measured.

    longest: seconds of a call. deadline: on the clock `time.monotonic`. free: bytes of memory to be had.
    """
    alike = [(row, case_of(row)) for row in rows if (row["operator"], row["backend"]) == (case.operator, case.backend)]
    if any(row.get("oom") and other.user_bytes() <= case.user_bytes() for row, other in alike):
        return "a smaller one ran out of memory"
    if time.monotonic() > deadline:
        return "the minutes of the run are over"
    times = [(row, cost(case) / cost(other)) for row, other in alike if "seconds" in row]
    if not times:
        return None
    row, larger = min(times, key=lambda pair: abs(math.log(pair[1])))
    expected = row["seconds"] * larger * (case.steps if case.operator == "fit_step" else 1)
    if expected > longest:
        return f"a call is expected to take {expected:.0f} s, more than longest={longest:g}"
    if time.monotonic() + expected > deadline:
        return "it would end after the minutes of the run"
    if row["peak_ratio"] * case.user_bytes() > free:
        return f"it is expected to take {row['peak_ratio'] * case.user_bytes() / 2**30:.1f} GB, more than is free"
    return None


def cost(case: Case) -> float:
    """What seconds grow with, roughly: pixels, and for each the arithmetic of a candidate, 15 + 3 G + 2 C."""
    return case.batch * case.size**2 * (12 + case.channels)


def free_bytes(device: str) -> float:
    """Memory to be had. Of a GPU without bound: there, running out of memory does no harm and is a result."""
    if torch.device(device).type != "cpu" or "SC_AVPHYS_PAGES" not in os.sysconf_names:
        return math.inf
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def case_of(row: Row) -> Case:
    return Case(**{field.name: row[field.name] for field in dataclasses.fields(Case)})


def skip(results: dict[str, Any], name: str, reason: str) -> None:
    """Notes what is left out, and says so."""
    results["skipped"].append({"what": name, "reason": reason})
    say(f"skipped: {name}: {reason}")


def say(text: str) -> None:
    """Progress for the person who waits."""
    print(text, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line without Hydra; exit status 1 where a backend disagrees with the reference."""
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="the results, JSON; one that is there is continued")
    for name, default in asdict(Config()).items():
        if name != "results":
            parser.add_argument(f"--{name.replace('_', '-')}", default=default, **argument_type(default))
    given = vars(parser.parse_args(arguments))
    output = given.pop("output")
    try:
        config = Config(**given)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    results = measure_all(config, output)
    for table in report.tables_of(results).values():
        print(tables.markdown(table.rows, formats=table.formats, caption=table.caption))
    if red := report.red_backends(results):
        sys.exit(f"no ratios of {', '.join(red)}: not in agreement with the reference")


def argument_type(default: Any) -> dict[str, Any]:
    """How argparse reads a value like `default`; a dictionary comes as JSON."""
    if isinstance(default, list):
        return {"nargs": "*", "type": type(default[0]) if default else str, "help": f"default: {default}"}
    kind: Callable[[str], Any] = json.loads if isinstance(default, dict) else str if default is None else type(default)
    return {"type": kind, "help": f"default: {default}"}


if __name__ == "__main__":
    main()
