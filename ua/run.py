"""`python -m ua.run experiment=NAME [key=value ...]`: the one place where Hydra meets the library.

An experiment is a module with a dataclass `Config` and a function `run(config: Config, tracker: ua.tracking.Tracker)`
that returns the summary, and a YAML in configs/experiment/ with the values. `experiment=NAME` is the name of the YAML;
the module is experiments/NAME.py unless the YAML says `module: my_package.my_module`. Configurations of your own lie in
any folder given by `--config-dir`.

A run that ended well is not repeated: the same command in the same folder says so, and a sweep that was killed, started
again with its `hydra.sweep.dir`, runs what is missing. A job returns `score` of its summary, which searches minimise.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

import ua
from ua._command_line import CONFIGS, ERRORS, check, check_sweep, explain, job_folder, misspelt_experiment, split
from ua.tracking import Tracker, alone_in, finished, limit_threads

USAGE = """\
usage: python -m ua.run experiment=NAME [key=value ...]      one run, into outputs/NAME/<time>/
       python -m ua.run -m experiment=NAME key=a,b,c ...     a sweep, into multirun/<time>/
       python -m ua.run -m experiment=tune sweep=NAME        a ready sweep (configs/sweep/)
       python -m ua.run experiment=NAME resume=FOLDER ...    goes on with a run or a sweep (-m) that was interrupted
       python -m ua.run experiment=NAME --cfg job            shows all keys and their values
"""
# Workers of launchers import this module and nothing more, so it is registered here.
OmegaConf.register_new_resolver("job_folder", job_folder, replace=True)


class JobError(Exception):
    """What was wrong with one job of a sweep, in a line; the other jobs run on."""


def main() -> None:
    """Runs what the command line asks for.

    Wrong input ends with one line and exit status 1; HYDRA_FULL_ERROR=1 shows the traceback.
    """
    arguments = sys.argv[1:]
    if not any(argument.lstrip("+").startswith("experiment=") for argument in arguments):
        if arguments and not {"-h", "--help"} & set(arguments):
            sys.exit(f"error: {misspelt_experiment(arguments) or 'experiment=NAME is missing'}\n\n{listing()}")
        print(listing())
        return
    full_error = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing, and `explain` finds better words
    register_presets()
    try:
        sys.argv[1:] = hydra_arguments(arguments)
        if "-m" in sys.argv:
            check_sweep(sys.argv[1:])
        hydra.main(config_path=str(CONFIGS), config_name="config", version_base="1.3")(_job)()
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as stop:
        if full_error and isinstance(stop.__cause__, Exception):
            raise stop.__cause__ from None
        raise
    except (JobError, *ERRORS) as error:
        if full_error:
            raise
        sys.exit(f"error: {explain(error, arguments)}")
    finally:
        sys.argv[1:] = arguments
        if not full_error:
            del os.environ["HYDRA_FULL_ERROR"]


def listing() -> str:
    """Usage, and every ready sweep and experiment with the line of comment at the head of its YAML."""
    return f"{USAGE}\nsweeps:\n{_lines('sweep')}\n\nexperiments:\n{_lines('experiment')}"


def _lines(group: str) -> str:
    lines = {path.stem: _first_comment(path) for path in sorted((CONFIGS / group).glob("*.yaml"))}
    width = max(map(len, lines), default=0)
    return "\n".join(f"  {name:{width}}  {line}" for name, line in lines.items())


def register_presets() -> None:
    """Makes every preset of the library a choice of the group `fit`: its numbers are written in `ua.config` alone."""
    for name in ua.PRESETS:
        node = OmegaConf.structured(ua.preset(name))
        OmegaConf.set_readonly(node, False)  # a frozen dataclass comes read-only, and then nothing can override it
        ConfigStore.instance().store(group="fit", name=name, node=node)


def hydra_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line as Hydra takes it: -m first, the only place that it accepts, and `resume=FOLDER` in its words.

    A run that is resumed draws its figures again even where it was finished; the jobs of a sweep that were are skipped.

    Raises:
        ValueError: an unknown flag, or a ready sweep without -m.
        FileNotFoundError: the folder to resume holds no run.
    """
    words, _ = split(arguments)
    sweep = bool({"-m", "--multirun"} & set(arguments))
    if not sweep and any(word.lstrip("+").startswith("sweep=") for word in words) and words == list(arguments):
        raise ValueError("sweep= goes through its values with -m alone: python -m ua.run -m ...")
    result = ["-m"] if sweep else []
    for argument in arguments:
        if argument.startswith("resume="):
            folder = argument.removeprefix("resume=").strip("'\"")
            result += _resume_sweep(folder) if sweep else _resume_run(folder)
        elif argument not in ("-m", "--multirun"):
            result.append(argument.removeprefix("+") if argument.startswith("+sweep=") else argument)
    return result


def _resume_run(folder: str) -> list[str]:
    if not (Path(folder) / "config.yaml").is_file():
        raise FileNotFoundError(f"resume={folder}: no run to go on with, there is no config.yaml in that folder")
    return [f"hydra.run.dir={_quoted(folder)}", "redraw=true"]


def _resume_sweep(folder: str) -> list[str]:
    if not any(Path(folder).glob("*/config.yaml")):
        raise FileNotFoundError(f"resume={folder}: no sweep to go on with, there is no */config.yaml in that folder")
    return [f"hydra.sweep.dir={_quoted(folder)}"]


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _job(config: DictConfig) -> float | None:
    """One run of one experiment in its folder; returns its score, where it has one."""
    hydra_config = HydraConfig.get()
    in_sweep = hydra_config.mode == RunMode.MULTIRUN
    try:
        if in_sweep and (threads := threads_of_a_job(hydra_config.launcher)) is not None:
            limit_threads(threads)
        folder = Path(os.path.relpath(hydra_config.runtime.output_dir))
        group = Path(hydra_config.sweep.dir).name if in_sweep else None
        command = shlex.join(["python", "-m", "ua.run", *hydra_config.overrides.task])
        with alone_in(folder):
            return _run(config, folder, command, group).get("score")
    except ERRORS as error:
        if in_sweep:  # Hydra keeps it until the others have run. Text alone comes back from any process.
            raise JobError(explain(error)) from error
        # Hydra catches exceptions of a job to print them in its own way; this one it leaves to `main`.
        raise SystemExit(f"error: {explain(error)}") from error


def _run(config: DictConfig, folder: Path, command: str, group: str | None) -> dict[str, Any]:
    """The summary: of the run that ended well in this folder, else of one that is made or goes on."""
    checked = check(config)
    values: Any = OmegaConf.to_container(config, resolve=True)
    if not values.pop("redraw") and (summary := finished(folder, values)) is not None:
        print(f"finished already: {folder}", file=sys.stderr, flush=True)
        return summary
    logger = checked.logger if checked.logger.group else replace(checked.logger, group=group)
    with Tracker(folder, values, seed=values["seed"], logger=logger, command=command) as tracker:
        tracker.say(f"begins: {folder}")  # what is loaded and compiled before the first line may take a minute
        try:
            summary = checked.module.run(checked.experiment, tracker)
        except KeyboardInterrupt:
            tracker.say(f"interrupted; finished rows are kept, go on with resume={folder}")
            raise
        tracker.summary(summary)
    tracker.say(f"done: {folder}")
    return summary


def threads_of_a_job(launcher: DictConfig) -> int | None:
    """The share of each of the jobs that a launcher runs at a time; None: all, since there is one at a time."""
    if jobs := launcher.get("n_jobs"):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // jobs) if jobs > 0 else 1
    threads: int | None = launcher.get("cpus_per_task")
    return threads


def _first_comment(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and not line.startswith("# @"):
            return line.removeprefix("# ")
    return ""


if __name__ == "__main__":
    # Jobs are sent to other processes by the name of their module, which must be this one's own.
    from ua.run import main as started

    started()
