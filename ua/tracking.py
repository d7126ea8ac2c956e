"""Run folders: what was run, measured and drawn, readable while it runs and after a crash.

config.yaml        the resolved configuration
environment.json   versions, device, threads, commit, seed, command, start time
metrics.csv        one row a measurement, on disk as soon as it is made
summary.json       the few numbers that matter, written last: its presence says that the run ended well
figures/  tables/  pictures (PNG), tables (Markdown, LaTeX)
wandb/             the W&B run, offline unless asked otherwise
"""

from __future__ import annotations

import csv
import io
import json
import math
import netrc
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

import numpy as np
import torch

from ua import plugins, tables
from ua.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOGGERS = ("wandb", "files")
MODES = ("offline", "online", "disabled")
PACKAGES = (
    "torch",
    "numpy",
    "numba",
    "triton",
    "scikit-image",
    "scipy",
    "pillow",
    "matplotlib",
    "hydra-core",
    "wandb",
)

Row = dict[str, Any]


@dataclass(frozen=True)
class LoggerConfig:
    """Where metrics go besides the run folder.

    name: "wandb", or "files" for the run folder alone.
    mode: of W&B: "offline" (into the run folder; `wandb sync` uploads it later), "online" or "disabled".
    project: of W&B.
    group: of W&B, under which its pages put runs together; None: the sweep's folder, none outside of sweeps.
    tags: of W&B.
    """

    name: str = "wandb"
    mode: str = "offline"
    project: str = "upsample-anything"
    group: str | None = None
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.name not in LOGGERS:
            raise ValueError(plugins.unknown("logger", self.name, LOGGERS))
        if self.mode not in MODES:
            raise ValueError(plugins.unknown("logger.mode", self.mode, MODES))


class Tracker:
    """Writes one run folder; a context manager, so that W&B is closed however the run ends.

    A folder that holds a run already is continued: its rows are kept and `find` returns them, so that an
    experiment need not measure them again.

    Args:
        folder: the run folder, made where it does not exist.
        config: everything that decides the results, in plain values.
        seed: of torch, NumPy and random, set here and recorded.
        logger: default: the run folder alone.
        command: what started the run, for the record.

    Raises:
        ValueError: `folder` cannot be made or holds a run of another configuration, a bad `seed`, or W&B is to be
            online and there is no key.
    """

    def __init__(
        self,
        folder: str | Path,
        config: Mapping[str, Any],
        *,
        seed: int = 0,
        logger: LoggerConfig | None = None,
        command: str | None = None,
    ) -> None:
        seed_everything(seed)
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"the run folder {str(folder)!r} cannot be made: {error.strerror}") from error
        _keep_config(self.folder / "config.yaml", config)
        _keep_environment(self.folder / "environment.json", {"command": command, "seed": seed, **environment()})
        (self.folder / "summary.json").unlink(missing_ok=True)  # it says that the run ended well
        self._csv = self.folder / "metrics.csv"
        _drop_cut_line(self._csv)
        self._labels, self._values, rows = read_csv(self._csv)
        self._rows = {_key(row): row for row in rows}
        self._wandb: _Wandb | None = None
        if logger is not None and logger.name == "wandb" and logger.mode != "disabled":
            self._wandb = _Wandb(self.folder, config, logger)
            for row in rows:  # W&B knows nothing of the run that is continued
                self._wandb.row(row)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._wandb is not None:
            self._wandb.close(failed=error is not None)

    @property
    def rows(self) -> list[Row]:
        """All rows: labels, "step" (None where there is none), then the measured values."""
        return list(self._rows.values())

    def log(self, values: Mapping[str, float], *, step: int | None = None, **labels: str | int | float) -> Row:
        """Adds a row and returns it: `labels` and `step` say what was measured, `values` are the measurements.

        Raises:
            ValueError: there is a row of these labels and this step already.
        """
        row: Row = {**labels, "step": step, **values}
        if (key := _key(row)) in self._rows:
            raise ValueError(f"metrics.csv has a row of {labels} at step {step} already; ask `find` before measuring")
        self._rows[key] = row
        new_labels = [name for name in labels if name not in self._labels]
        new_values = [name for name in values if name not in self._values]
        self._labels += new_labels
        self._values += new_values
        columns = [*self._labels, "step", *self._values]
        if new_labels or new_values:
            write_text(self._csv, _csv_text(columns, [dict(zip(columns, columns, strict=True)), *self.rows]))
        else:
            with self._csv.open("a", encoding="utf-8", newline="") as file:
                file.write(_csv_text(columns, [row]))
        if self._wandb is not None:
            self._wandb.row(row)
        return row

    def find(self, *, step: int | None = None, **labels: str | int | float) -> Row | None:
        """The row of these labels and this step, or None where it has not been measured."""
        return self._rows.get(_key({**labels, "step": step}))

    def table(
        self,
        name: str,
        rows: Sequence[Mapping[str, Any]],
        *,
        formats: Mapping[str, str] | None = None,
        best: Mapping[str, str] | None = None,
        caption: str = "",
    ) -> None:
        """Writes tables/`name`.md and .tex; see `ua.tables` for the arguments."""
        folder = self.folder / "tables"
        write_text(folder / f"{name}.md", tables.markdown(rows, formats=formats, best=best, caption=caption))
        label = f"tab:{name}"
        write_text(
            folder / f"{name}.tex",
            tables.latex(rows, formats=formats, best=best, caption=caption, label=label),
        )
        if self._wandb is not None:
            self._wandb.table(name, rows)

    def figure(self, name: str, figure: Figure) -> Path:
        """Writes figures/`name`.png, closes the figure and returns the path."""
        from ua import plots

        path = self.folder / "figures" / f"{name}.png"
        plots.save(figure, path)
        if self._wandb is not None:
            self._wandb.image(name, path)
        return path

    def summary(self, values: Mapping[str, Any]) -> None:
        """Writes summary.json. Values that are not finite become null, since JSON has no others."""
        write_json(self.folder / "summary.json", values)
        if self._wandb is not None:
            self._wandb.summary(values)

    def say(self, text: str) -> None:
        """Progress for the person who waits: a line on stderr, in a terminal and in a log file alike."""
        print(text, file=sys.stderr, flush=True)


class _Wandb:
    """The W&B side of a tracker. W&B's own folders lie in the run folder; it never asks for anything."""

    def __init__(self, folder: Path, config: Mapping[str, Any], logger: LoggerConfig) -> None:
        if logger.mode == "online" and not _wandb_key():
            raise ValueError(
                "logger.mode=online needs a W&B key: set WANDB_API_KEY (or run `wandb login` once), "
                "or keep logger.mode=offline and upload later with `wandb sync`"
            )
        # Tables are staged in the user's home unless told otherwise.
        names = ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ARTIFACT_DIR")
        self._staging = [name for name in names if name not in os.environ]
        os.environ.update(dict.fromkeys(self._staging, str((folder / "wandb").resolve())))
        import wandb

        self._wandb = wandb
        self._run = wandb.init(
            project=logger.project,
            name=f"{folder.parent.name}/{folder.name}",
            group=logger.group,
            tags=logger.tags,
            dir=str(folder.resolve()),  # W&B's process outlives a run, and with it the folder that it started in
            config=dict(config),
            mode="online" if logger.mode == "online" else "offline",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self._axes: set[str] = set()

    def row(self, row: Row) -> None:
        names = list(row)
        labels = names[: names.index("step")]
        prefix = "/".join(str(row[name]) for name in labels) or "run"
        if row["step"] is not None and prefix not in self._axes:
            self._axes.add(prefix)
            self._run.define_metric(f"{prefix}/*", step_metric="step")
        numbers = {f"{prefix}/{name}": row[name] for name in names[len(labels) + 1 :] if row[name] is not None}
        self._run.log(numbers if row["step"] is None else {**numbers, "step": row["step"]})

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        columns = tables.columns(rows)
        data = [[row.get(column) for column in columns] for row in rows]
        self._run.log({f"tables/{name}": self._wandb.Table(columns=[*columns], data=data)})

    def image(self, name: str, path: Path) -> None:
        self._run.log({f"figures/{name}": self._wandb.Image(str(path))})

    def summary(self, values: Mapping[str, Any]) -> None:
        # Numbers are logged as well: that is where a sweep of W&B looks for its metric.
        self._run.log({name: value for name, value in values.items() if isinstance(value, int | float)})
        self._run.summary.update(_plain(values))

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=1 if failed else 0)
        for name in self._staging:  # the next run of this process has a folder of its own
            os.environ.pop(name, None)


def finished(folder: str | Path, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The summary of the run of this configuration that ended well in `folder`; None: there is none yet.

    Raises:
        ValueError: the folder holds a run of another configuration, or one that was measured elsewhere (another commit,
            device or version), whose numbers are not those of this one.
    """
    folder = Path(folder)
    if not (folder / "summary.json").exists():
        return None
    _compare_config(folder / "config.yaml", config)
    _compare_environment(folder / "environment.json", environment())
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


@contextmanager
def alone_in(folder: str | Path) -> Iterator[None]:
    """Within, no other process is in the same block for the same folder: it waits. Death of a process ends its block.

    A job of a sweep whose parent was killed may still be writing when the sweep is started again. Where a file system
    knows no locks, there is no waiting.
    """
    try:
        import fcntl  # not on Windows
    except ImportError:
        yield
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{folder}: another process writes there, waiting for it to end", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:
            pass  # a network disk without locks
        yield
    finally:
        os.close(handle)


def limit_threads(count: int) -> None:
    """At most `count` threads for torch, and thereby for the `cpu` backend; environment.json records what it is."""
    torch.set_num_threads(max(1, min(count, torch.get_num_threads())))


def seed_everything(seed: int) -> None:
    """Seeds torch (all devices), NumPy's global generator and random.

    Raises:
        ValueError: anything but an integer from 0 to 2**32 - 1, which is what NumPy takes.
    """
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed must be an integer from 0 to 2**32 - 1, got {seed!r}")
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def choose_device(name: str) -> str:
    """A device that torch knows and this machine has; "auto": a GPU where there is one.

    Raises:
        ValueError: any other name.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, TypeError) as error:  # AssertionError: a torch that was built without CUDA
        reason = str(error).splitlines()[0]
        raise ValueError(f"device={name}: must be 'auto', 'cpu', 'cuda' or another that is here ({reason})") from error
    return name


def now(device: torch.device | str = "cpu") -> float:
    """Seconds on a clock, read after the device has done what it was asked to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def environment() -> dict[str, Any]:
    """What a number depends on besides the code: versions, device, threads, commit, time. Names no person or path."""
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        **_commit(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {name: version for name in PACKAGES if (version := _version(name)) is not None},
        "cpu": _cpu(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda,
    }


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or, when interrupted, nothing. Makes the folder where it does not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes JSON as `write_text` does. Numbers that are not finite become null, since JSON has no others."""
    write_text(path, json.dumps(_plain(values), indent=2, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _keep_config(path: Path, config: Mapping[str, Any]) -> None:
    """Writes the configuration, or compares it with that of the run to continue."""
    import yaml

    if path.exists():
        return _compare_config(path, config)
    write_text(path, yaml.safe_dump(dict(config), sort_keys=False))


def _compare_config(path: Path, config: Mapping[str, Any]) -> None:
    """Raises ValueError where the configuration is another. Where one logs to may change."""
    import yaml

    old, new = (
        {name: value for name, value in flat(values) if not name.startswith("logger.")}
        for values in (yaml.safe_load(path.read_text(encoding="utf-8")), config)
    )
    absent = "(absent)"
    if changed := [name for name in {**old, **new} if old.get(name, absent) != new.get(name, absent)]:
        changes = ", ".join(f"{name}: {old.get(name, absent)} -> {new.get(name, absent)}" for name in changed)
        raise ValueError(f"{path.parent} holds a run of another configuration ({changes}); choose another folder")


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted keys and their values; lists are values."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value


def _keep_environment(path: Path, values: dict[str, Any]) -> None:
    """Writes the environment; those of earlier starts in the same folder are kept beside it."""
    if path.exists():
        earlier = _compare_environment(path, values)
        values = {**values, "earlier_starts": [*earlier.pop("earlier_starts", []), earlier]}
    write_json(path, values)


def _compare_environment(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The environment in the file; raises ValueError where numbers of here would not be those of there."""
    earlier: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for name in ("commit", "cpu", "gpu", "threads", "versions"):
        if earlier.get(name) != values.get(name):
            raise ValueError(
                f"the rows in {str(path.parent)!r} were measured elsewhere: {name} was {earlier.get(name)}, is "
                f"{values.get(name)}; choose another folder, or delete that one"
            )
    return earlier


def _key(row: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """What a row is about: everything before and including its step. Compared as text, since a file has only text."""
    names = list(row)[: list(row).index("step") + 1]
    return frozenset((name, str(row[name])) for name in names)


def _csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in rows:
        writer.writerow(["" if row.get(name) is None else row[name] for name in columns])
    return text.getvalue()


def _drop_cut_line(path: Path) -> None:
    """Takes from a file a last line that was cut off: the next one would continue it."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if not text.endswith("\n") and text:
        write_text(path, text[: text.rfind("\n") + 1])


def read_csv(path: Path) -> tuple[list[str], list[str], list[Row]]:
    """Label columns, value columns and rows of a metrics.csv, which may be missing or still grow.

    A last line that was cut off does not count; the file stays as it is.

    Raises:
        ValueError: no column "step", or a line of another length than the first.
    """
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    if not (lines := list(csv.reader(io.StringIO(text[: text.rfind("\n") + 1])))):
        return [], [], []
    columns = lines[0]
    if "step" not in columns:
        raise ValueError(f"{path} is no metrics.csv of a run: it has no column 'step'")
    split = columns.index("step")
    rows = []
    for place, line in enumerate(lines[1:], start=2):
        if len(line) != len(columns):
            raise ValueError(f"{path} has {len(line)} cells in line {place}, {len(columns)} in its first")
        cells = {name: number(cell) for name, cell in zip(columns, line, strict=True) if cell != "" or name == "step"}
        rows.append(cells)
    return columns[:split], columns[split + 1 :], rows


def number(cell: str) -> str | int | float | None:
    """The value of a cell, None of an empty one; text that only looks like a number ("007") stays text."""
    if cell == "":
        return None
    for kind in (int, float):
        try:
            value = kind(cell)
        except ValueError:
            continue
        if str(value) == cell:
            return value
    return cell


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> dict[str, Any]:
    """Commit of the checkout that this file lies in, and whether files differ from it; nulls where it is installed."""

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else status != ""}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _wandb_key() -> bool:
    """Whether W&B can log in without asking."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
