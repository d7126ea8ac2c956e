"""Run folders for the experiment `report`: found, read, never written to."""

from __future__ import annotations

import csv
import json
import math
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ua.tracking import Row, flat, read_csv

REPORT = "report"  # runs of this experiment are no results
MARKS = ("metrics.csv", "environment.json", "summary.json")  # one of them makes a folder a run


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        name: its path below what was asked for.
        experiment: the name that the command line gave, else the module's.
        keys: dotted key -> value, everything in config.yaml.
        labels, measures: the columns of metrics.csv before and after `step`.
        score: `score` of summary.json, what sweeps and searches are about; None where it has none.
        finished: whether it ended well; the rows of one that did not are those that it had measured.
    """

    name: str
    folder: Path
    experiment: str
    keys: Mapping[str, Any]
    environment: Mapping[str, Any] = field(repr=False)
    labels: Sequence[str]
    measures: Sequence[str]
    rows: Sequence[Row] = field(repr=False)
    finished: bool
    score: float | None = None

    @property
    def commit(self) -> str:
        """The first characters of the commit, with a + where files differed from it."""
        commit = str(self.environment.get("commit") or "unknown")[:9]
        return f"{commit}+" if self.environment.get("dirty") else commit

    @property
    def device(self) -> str:
        gpu = self.environment.get("gpu")
        return str(gpu if gpu and self.keys.get("device") != "cpu" else self.environment.get("cpu") or "unknown")


@dataclass(frozen=True)
class Broken:
    """A run folder that cannot be read, and why."""

    name: str
    reason: str


def find_runs(roots: Sequence[str]) -> tuple[list[Run], list[Broken]]:
    """Every run folder that is or lies below one of `roots`, in the natural order of the names.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no run in any of them.
    """
    if not roots:
        raise ValueError("runs must name at least one folder")
    for root in roots:
        if not Path(root).is_dir():
            raise FileNotFoundError(f"runs={root}: no such folder")
    resolved = [Path(root).resolve() for root in roots]
    base = Path(os.path.commonpath([root.parent for root in resolved]))
    folders = sorted({folder for root in resolved for folder in run_folders(root)}, key=natural)
    runs: list[Run] = []
    broken: list[Broken] = []
    for folder in folders:
        name = folder.relative_to(base).as_posix()
        try:
            runs.append(read_run(folder, name))
        except (ValueError, OSError, csv.Error) as error:
            reason = str(error).replace(f"{folder}{os.sep}", "")  # pages are sent around: no path of this machine
            broken.append(Broken(name, reason.splitlines()[0]))
    runs = [run for run in runs if run.keys.get("module") != REPORT]
    if not runs and not broken:
        raise ValueError(f"runs={', '.join(map(str, roots))}: no run folder in there (one holds {', '.join(MARKS)})")
    return runs, broken


def run_folders(root: Path) -> Iterator[Path]:
    for path, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "wandb"]
        if set(MARKS) & set(files):
            yield Path(path)


def natural(path: Path) -> list[list[tuple[int, int | str]]]:
    """A sort key by which run 10 comes after run 9."""
    return [[(0, int(part)) if part.isdigit() else (1, part) for part in split(name)] for name in path.parts]


def split(name: str) -> list[str]:
    """Digits apart from what is between them."""
    parts = [""]
    for character in name:
        if parts[-1] and parts[-1].isdigit() != character.isdigit():
            parts.append("")
        parts[-1] += character
    return parts


def read_run(folder: Path, name: str) -> Run:
    """One run folder.

    Raises:
        ValueError, OSError: a file that is missing, broken or of another kind; the message begins with its name.
    """
    import yaml

    try:
        config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError("config.yaml is missing") from error
    except yaml.YAMLError as error:
        raise ValueError(f"config.yaml is no YAML ({str(error).splitlines()[0]})") from error
    if not isinstance(config, dict):
        raise ValueError("config.yaml holds no keys")
    environment = read_object(folder / "environment.json")
    labels, measures, rows = read_csv(folder / "metrics.csv")
    return Run(
        name=name,
        folder=folder,
        experiment=experiment_of(environment.get("command"), config),
        keys=dict(flat(config)),
        environment=environment,
        labels=labels,
        measures=measures,
        rows=rows,
        finished=(folder / "summary.json").exists(),
        score=read_score(folder / "summary.json"),
    )


def read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path.name} is missing") from error
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} holds no object")
    return values


def read_score(path: Path) -> float | None:
    """The finite number `score` of a summary, None where there is none."""
    score = read_object(path).get("score") if path.exists() else None
    number = isinstance(score, int | float) and not isinstance(score, bool) and math.isfinite(score)
    return float(score) if number and score is not None else None


def experiment_of(command: Any, config: Mapping[str, Any]) -> str:
    words = shlex.split(command) if isinstance(command, str) else []
    named = [word.partition("=")[2] for word in words if word.lstrip("+").startswith("experiment=")]
    return named[0] if named else str(config.get("module", "unnamed"))
