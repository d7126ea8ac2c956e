"""What people type for `ua.run`: their words checked before anything runs, and errors in words that help."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, get_type_hints

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

import ua
from ua import plugins
from ua.tracking import LoggerConfig

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
RUN_KEYS = ("module", "seed", "redraw", "logger")  # the others are the experiment's own
ERRORS = (ValueError, TypeError, OSError, HydraException, OmegaConfBaseException)
PLUGIN_GROUPS = ("hydra/launcher", "hydra/sweeper")  # whose choices other packages bring
LONGEST_NAME = 160  # of a job's folder, characters
ELSEWHERE = ("launcher", "logger", "sweep", "redraw")  # say where and how a job runs, and not what its results are


@dataclass(frozen=True)
class Checked:
    """A configuration that is known to fit."""

    module: ModuleType
    experiment: Any
    logger: LoggerConfig


def check(config: DictConfig) -> Checked:
    """The experiment and its own configuration, types and names checked and converted.

    Raises:
        ValueError, TypeError, OmegaConfBaseException: an unknown experiment or key, or a value that does not fit.
    """
    OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    module = plugins.find("experiments", config.module, needs="run", kind="module")
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key not in RUN_KEYS])
    if not isinstance(config.redraw, bool):
        raise ValueError(f"redraw must be true or false, got {config.redraw!r}")
    return Checked(module, typed(module.Config, own), typed(LoggerConfig, config.logger))


def typed(kind: type, values: DictConfig) -> Any:
    """`values` as the dataclass `kind`, types checked and converted.

    Raises:
        ValueError: a key that `kind` lacks, or a value of the wrong type.
    """
    check_keys(kind, values)
    schema = OmegaConf.structured(kind)
    for node in (schema, *(schema._get_node(key) for key in schema)):
        if OmegaConf.is_config(node):
            OmegaConf.set_readonly(node, False)
    return OmegaConf.to_object(OmegaConf.merge(schema, values))


def check_keys(kind: type, values: DictConfig, prefix: str = "") -> None:
    """Raises ValueError for a key that the dataclass `kind`, or one inside it, lacks, with the nearest one."""
    hints = get_type_hints(kind)
    known = [prefix + name for name in hints]
    for key, value in values.items_ex(resolve=False):
        if key not in hints:
            others = [] if prefix else [*RUN_KEYS, *_groups()]
            raise ValueError(plugins.unknown("key", prefix + str(key), dict.fromkeys([*known, *others])))
        if isinstance(value, DictConfig) and is_dataclass(inner := hints[key]) and isinstance(inner, type):
            check_keys(inner, value, f"{prefix}{key!s}.")


def check_sweep(arguments: Sequence[str]) -> None:
    """Checks every value of a sweep, so that a wrong one is an error before the first job and not between the others.

    Each value is tried once, beside the first values of all others: what grows with the sum of their numbers, not with
    the product, is cheap for large grids, too. Of ranges and intervals both ends are tried.

    Raises:
        As `check` and Hydra.
    """
    words, folder = split(arguments)
    with composing(folder) as compose:
        parse = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader()).parse_overrides
        typed_in = {override.get_key_element(): tried(override) for override in parse(words)}
        first = [values[0] for values in typed_in.values()]
        own = compose(first).hydra.sweeper.get("params") or {}
        in_files = parse([f"{key}={value}" for key, value in own.items()])
        values = {override.get_key_element(): tried(override) for override in in_files} | typed_in
        first = [each[0] for each in values.values()]
        check_composed(compose(first))
        for number, others in enumerate(values.values()):
            for value in others[1:]:
                check_composed(compose([*first[:number], value, *first[number + 1 :]]))


def check_composed(config: DictConfig) -> None:
    """`check`, for a configuration that no run of Hydra has set."""
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(config)
    try:
        check(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"]))
    finally:
        HydraConfig.instance().cfg = before


def tried(override: Override) -> list[str]:
    """The override with each value that is tried, as one types it."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [override.input_line or f"{key}={override.get_value_element_as_str()}"]
    if override.is_interval_sweep():
        interval: Any = override.value()
        return [f"{key}={interval.start}", f"{key}={interval.end}"]
    values = [f"{key}={value}" for value in override.sweep_string_iterator()]
    return [values[0], values[-1]] if override.is_range_sweep() else values


def split(arguments: Sequence[str]) -> tuple[list[str], Path | None]:
    """The overrides among the arguments, and the folder of --config-dir.

    Raises:
        ValueError: an unknown flag, or one with a value that it does not take.
    """
    parser = get_args_parser()
    parser.allow_abbrev = False

    def refuse(message: str) -> NoReturn:
        raise ValueError(message)

    # Hydra makes the parser, so there is no class of ours whose method this could be.
    parser.error = refuse  # type: ignore[method-assign]
    flags, rest = parser.parse_known_intermixed_args(list(arguments))
    for word in rest:
        if word.startswith("-"):
            known = [name for action in parser._actions for name in action.option_strings]
            raise ValueError(plugins.unknown("flag", word.partition("=")[0], known))
    return [*flags.overrides, *rest], Path(flags.config_dir) if flags.config_dir else None


def job_folder(overrides: Sequence[str]) -> str:
    """The name of the folder of a sweep's job: its overrides, whatever their order and where the job runs.

    A name that is too long or would hold characters that file systems dislike is cut short and ends in a hash.
    """
    words = {word.lstrip("+") for word in overrides}
    kept = sorted(word for word in words if re.split("[.=]", word)[0] not in ELSEWHERE)
    name = ",".join(sorted((word.removeprefix("experiment=") for word in kept), key=lambda word: "=" in word))
    safe = re.sub(r"[^\w.,=+-]+", "_", name)
    if safe == name and len(name) <= LONGEST_NAME:
        return name
    return f"{safe[:LONGEST_NAME]}-{sha256(name.encode()).hexdigest()[:8]}"


def explain(error: Exception, arguments: Sequence[str] = ()) -> str:
    """One line for a person: what was wrong and, for a name, which one is nearest."""
    if isinstance(error, MissingConfigException):
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        choices = error.options if error.options is not None else _choices(group)
        message = f"{group or '--config-name'}={name}: {plugins.unknown(group or 'configuration', name, choices)}"
        if group in PLUGIN_GROUPS:
            message += "; others come with the extra: pip install -c constraints.txt -e '.[launchers]'"
        return message
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
        return _unknown_key(key, arguments)
    first_line = re.sub("^Could not create instance of `.*?`: ", "", str(reason).splitlines()[0])
    if deleted := re.match("Could not delete from config. '(.+)' does not exist", first_line):
        return _unknown_key(deleted[1], arguments)
    if first_line.startswith("Could not append to config. An item is already at"):
        return f"{first_line[:-1]}: leave out the +"
    if first_line.startswith("Ambiguous value"):
        return f"{first_line}: write [a,b] for a list, or -m for a sweep over values"
    if "is not a ListConfig" in first_line:
        first_line = "must be a list, like [a,b]"
    return f"{key}: {first_line}" if key else first_line


def misspelt_experiment(words: Sequence[str]) -> str | None:
    """What to say where no word is `experiment=NAME`, but one nearly is."""
    for word in words:
        if difflib.get_close_matches(word.lstrip("+").partition("=")[0], ["experiment"], cutoff=0.8):
            return plugins.unknown("key", word.partition("=")[0], ["experiment"]).partition(" (accepted")[0]
    return None


def _unknown_key(key: str, arguments: Sequence[str]) -> str:
    """That the chosen experiment does not have this key, and the nearest one that it has or could be given."""
    words, folder = split(arguments)
    groups = _groups(folder)
    plain = [word.lstrip("+") for word in words]
    with composing(folder) as compose:
        config = compose([word for word in plain if word.split("=")[0] in groups and "," not in word])
    parent = key.rpartition(".")[0]
    more = [f"{parent}.{name}" for name in _more_keys(parent, config)]
    if key in more:
        return f"{key} is a key that is not set so far: write +{key}=... to add it"
    known = [*_flat(config), *groups, "experiment", "resume", *more]
    same_side = [name for name in known if name.startswith("hydra.") == key.startswith("hydra.") and name != key]
    return plugins.unknown("key", key, same_side).partition(" (accepted")[0] + " (--cfg job shows all keys)"


def _more_keys(parent: str, config: DictConfig) -> list[str]:
    """What may be added below `parent` besides what is set there: options of parts, fields of settings."""
    match parent.split("."):
        case ["baseline", name] if name in plugins.names("ua.baselines"):
            return plugins.options_of(plugins.find("ua.baselines", name).upsample) or []
        case ["data", "options"]:
            return plugins.options_of(plugins.find("ua.datasets", config.data.name).load) or []
        case ["data", name] if name in plugins.names("ua.datasets"):
            return plugins.options_of(plugins.find("ua.datasets", name).load) or []
        case ["variants" | "curves", _]:
            return ["preset", *(field.name for field in fields(ua.FitConfig))]
    return []


def _groups(folder: Path | None = None) -> list[str]:
    """The names of the groups, of this project and of somebody's own."""
    return sorted({path.parent.name for root in (CONFIGS, folder or CONFIGS) for path in root.glob("*/*.yaml")})


@contextmanager
def composing(folder: Path | None) -> Iterator[Callable[[Sequence[str]], DictConfig]]:
    """Within, the function composes what these overrides ask for, with Hydra's own part; `folder`: of --config-dir."""
    search = [f"hydra.searchpath=['file://{folder.resolve()}']"] if folder is not None else []
    with hydra.initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        yield lambda overrides: hydra.compose("config", [*search, *overrides], return_hydra_config=True)


def _choices(group: str) -> list[str]:
    """The configurations that lie in the folder of a group."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def _flat(config: DictConfig, prefix: str = "") -> Iterator[str]:
    for key, value in config.items_ex(resolve=False):
        name = prefix + str(key)
        yield name
        if isinstance(value, DictConfig) and value:
            yield from _flat(value, f"{name}.")
