"""`python -m ua.run experiment=NAME [key=value ...]`: the one place where Hydra meets the library.

An experiment is a module with a dataclass `Config` and a function `run(config: Config, tracker: ua.tracking.Tracker)`
that returns the summary, and a YAML in configs/experiment/ with the values. `experiment=NAME` is the name of the YAML;
the module is experiments/NAME.py unless the YAML says `module: my_package.my_module`. Configurations of your own lie in
any folder given by `--config-dir`.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
)

import ua
from ua import plugins
from ua.tracking import LoggerConfig, Tracker

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
USAGE = """\
usage: python -m ua.run experiment=NAME [key=value ...]      one run, into outputs/NAME/<time>/
       python -m ua.run -m experiment=NAME key=a,b,c ...     a sweep, into multirun/<time>/
       python -m ua.run experiment=NAME resume=FOLDER ...    goes on with a run that was interrupted
       python -m ua.run experiment=NAME --cfg job            shows all keys and their values
"""
RUN_KEYS = ("module", "seed", "logger")
ERRORS = (ValueError, TypeError, OSError, HydraException, OmegaConfBaseException)


def main() -> None:
    """Runs what the command line asks for.

    Wrong input ends with one line and exit status 1; HYDRA_FULL_ERROR=1 shows the traceback.
    """
    arguments = sys.argv[1:]
    if not any(argument.lstrip("+").startswith("experiment=") for argument in arguments):
        if arguments and not {"-h", "--help"} & set(arguments):
            sys.exit(f"error: experiment=NAME is missing\n\n{listing()}")
        print(listing())
        return
    full_error = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing, and `explain` finds better words
    register_presets()
    try:
        sys.argv[1:] = hydra_arguments(arguments)
        hydra.main(config_path=str(CONFIGS), config_name="config", version_base="1.3")(_job)()
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as stop:
        if full_error and isinstance(stop.__cause__, Exception):
            raise stop.__cause__ from None
        raise
    except ERRORS as error:
        if full_error:
            raise
        sys.exit(f"error: {explain(error, arguments)}")
    finally:
        sys.argv[1:] = arguments
        if not full_error:
            del os.environ["HYDRA_FULL_ERROR"]


def listing() -> str:
    """Usage and every experiment with the line of comment at the head of its YAML."""
    lines = {path.stem: _first_comment(path) for path in sorted((CONFIGS / "experiment").glob("*.yaml"))}
    width = max(map(len, lines), default=0)
    return USAGE + "\nexperiments:\n" + "\n".join(f"  {name:{width}}  {line}" for name, line in lines.items())


def register_presets() -> None:
    """Makes every preset of the library a choice of the group `fit`: its numbers are written in `ua.config` alone."""
    for name in ua.PRESETS:
        node = OmegaConf.structured(ua.preset(name))
        OmegaConf.set_readonly(node, False)  # a frozen dataclass comes read-only, and then nothing can override it
        ConfigStore.instance().store(group="fit", name=name, node=node)


def hydra_arguments(arguments: Sequence[str]) -> list[str]:
    """The command line as Hydra takes it: `resume=FOLDER` in its words, and -m first, the only place that it accepts.

    Raises:
        FileNotFoundError: the folder to resume holds no run.
    """
    sweep = [argument for argument in arguments if argument in ("-m", "--multirun")][:1]
    key, record = ("hydra.sweep.dir", "multirun.yaml") if sweep else ("hydra.run.dir", "config.yaml")
    result = sweep
    for argument in arguments:
        if argument.startswith("resume="):
            folder = argument.removeprefix("resume=").strip("'\"")
            if not (Path(folder) / record).is_file():
                raise FileNotFoundError(f"resume={folder}: no run to go on with, there is no {record} in that folder")
            quoted = folder.replace("\\", "\\\\").replace("'", "\\'")
            argument = f"{key}='{quoted}'"
        if argument not in ("-m", "--multirun"):
            result.append(argument)
    return result


def typed(kind: type, values: DictConfig) -> Any:
    """`values` as the dataclass `kind`, types checked and converted.

    Raises:
        ValueError: a key that `kind` lacks, or a value of the wrong type.
    """
    schema = OmegaConf.structured(kind)
    known = [str(key) for key in schema]
    for key in map(str, values):
        if key not in known:
            raise ValueError(plugins.unknown(f"key of {kind.__module__}.{kind.__qualname__}", key, known))
    for node in (schema, *(schema._get_node(key) for key in known)):
        if OmegaConf.is_config(node):
            OmegaConf.set_readonly(node, False)
    return OmegaConf.to_object(OmegaConf.merge(schema, values))


def _job(config: DictConfig) -> None:
    """One run of one experiment in its folder."""
    try:
        values: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        module = plugins.find("experiments", values["module"], needs="run", kind="module")
        own = OmegaConf.masked_copy(config, [str(key) for key in config if key not in RUN_KEYS])
        experiment = typed(module.Config, own)
        logger = typed(LoggerConfig, config.logger)
        hydra_config = HydraConfig.get()
        folder = Path(os.path.relpath(hydra_config.runtime.output_dir))
        command = shlex.join(["python", "-m", "ua.run", *hydra_config.overrides.task])
        with Tracker(folder, values, seed=values["seed"], logger=logger, command=command) as tracker:
            try:
                tracker.summary(module.run(experiment, tracker))
            except KeyboardInterrupt:
                tracker.say(f"interrupted; finished rows are kept, go on with resume={folder}")
                raise
        tracker.say(f"done: {folder}")
    except ERRORS as error:
        # Hydra catches exceptions of a job to print them in its own way; this one it leaves to `main`.
        raise SystemExit(f"error: {explain(error)}") from error


def explain(error: Exception, arguments: Sequence[str] = ()) -> str:
    """One line for a person: what was wrong and, for a name, which one is nearest."""
    if isinstance(error, MissingConfigException):
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        choices = error.options if error.options is not None else _choices(group)
        return f"{group}={name}: {plugins.unknown(group, name, choices)}"
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: not understood; a value with spaces, commas, brackets or '=' needs quotes of "
            "its own, like \"image='a (1).jpg'\""
        )
    if isinstance(error, OSError) and error.filename is not None:
        return f"{str(error.filename)!r} cannot be used: {error.strerror}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}= is missing: give it a value"
    reason = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
    key = getattr(reason, "full_key", None)
    if isinstance(reason, ConfigKeyError | ConfigAttributeError) and key:
        known = [name for name in _keys(arguments) if name.startswith("hydra.") == key.startswith("hydra.")]
        return plugins.unknown("key", key, known).partition(" (accepted")[0] + " (--cfg job shows all keys)"
    first_line = str(reason).splitlines()[0]
    if first_line.startswith("Ambiguous value"):
        return f"{first_line}: write [a,b] for a list, or -m for a sweep over values"
    if "is not a ListConfig" in first_line:
        first_line = "must be a list, like [a,b]"
    return f"{key}: {first_line}" if key else first_line


def _choices(group: str) -> list[str]:
    """The configurations that lie in the folder of a group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def _keys(arguments: Sequence[str]) -> list[str]:
    """The keys that the chosen experiment knows, nested ones with dots."""
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    own.add_argument("--config-dir", "-cd")
    folder = own.parse_known_args(arguments)[0].config_dir
    search = [f"hydra.searchpath=['file://{Path(folder).resolve()}']"] if folder else []
    groups = {path.parent.name for root in (CONFIGS, Path(folder or CONFIGS)) for path in root.glob("*/*.yaml")}
    chosen = [argument for argument in arguments if argument.split("=")[0] in groups and "," not in argument]
    with hydra.initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        config = hydra.compose(config_name="config", overrides=[*search, *chosen], return_hydra_config=True)
    return list(_flat(config))


def _flat(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key, value in config.items_ex(resolve=False):
        name = prefix + str(key)
        yield name
        if isinstance(value, DictConfig) and value:
            yield from _flat(value, f"{name}.")


def _first_comment(path: Path) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and not line.startswith("# @"):
            return line.removeprefix("# ")
    return ""


if __name__ == "__main__":
    main()
