"""Exchangeable parts by name: a part is one module in its package, or any importable module named with a dot."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable
from functools import cache
from types import ModuleType
from typing import Any


@cache
def names(package: str) -> tuple[str, ...]:
    """The parts that lie in `package`, sorted. Looked up once: a call of the library should not read folders."""
    path = importlib.import_module(package).__path__
    return tuple(sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_")))


def find(package: str, name: str, needs: str = "", kind: str = "") -> ModuleType:
    """The module `package.name`, or, where `name` has a dot, the module of that full name (somebody's own part).

    `kind` is what errors call the part, by default the last word of the package.

    Raises:
        TypeError: `name` is no text.
        ValueError: no such part, the message names the nearest one and all others; or a module without `needs`.
    """
    kind = kind or package.rsplit(".", 1)[-1]
    if not isinstance(name, str):
        raise TypeError(f"{kind}: a name is needed, got {name!r} of type {type(name).__name__}")
    module = _import(package, kind, name)
    if needs and not hasattr(module, needs):
        raise ValueError(f"{kind}: module {name!r} has no {needs!r}, which every one of {package} has")
    return module


def define(name: str, **contents: Any) -> str:
    """Makes a part of what a notebook or a script has defined, without a file, and returns its name for `find`.

    `define("mine.kernels", Kernels=Kernels)` and then `ua.fit(..., parameterisation="mine.kernels")`. Defining it again
    replaces it. It lives as long as the process: to keep a part, write it to a file.

    Args:
        name: with a dot, and no module that can be imported.
        contents: what the part holds, by name, like `Kernels`, `loss` or `upsample`.

    Raises:
        ValueError: a name without a dot, or that of a real module.
    """
    if "." not in name.strip("."):
        raise ValueError(f"name must have a dot, like 'mine.{name}', got {name!r}")
    if getattr(sys.modules.get(name), "__spec__", None) is not None:
        raise ValueError(f"name must not be that of a module which is there already, got {name!r}")
    sys.modules[name] = module = ModuleType(name, "Defined by ua.plugins.define.")
    vars(module).update(contents)
    return name


def _import(package: str, kind: str, name: str) -> ModuleType:
    if "." in name and not name.startswith(".") and not name.endswith("."):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not f"{name}.".startswith(f"{error.name}."):  # the module is there, something that it imports is not
                raise
            raise ValueError(f"{kind}: no module {name!r} can be imported ({error})") from error
    if name not in names(package):
        raise ValueError(f"{unknown(kind, name, names(package))}; a part of your own has a dot in its name")
    return importlib.import_module(f"{package}.{name}")


def check_options(function: Callable[..., Any], options: Iterable[str], what: str) -> None:
    """Raises TypeError for an option that `function` does not take, with the nearest one; `what`: whose it is."""
    known = options_of(function)
    for name in options:
        if known is not None and name not in known:
            raise TypeError(unknown(f"option of {what}", name, known))


def options_of(function: Callable[..., Any]) -> list[str] | None:
    """The names of its arguments and, where it takes `**options`, those in `OPTIONS` of its module; None: any."""
    parameters = inspect.signature(function).parameters.values()
    named = [parameter.name for parameter in parameters if parameter.kind is not parameter.VAR_KEYWORD]
    if len(named) == len(parameters):
        return named
    further = getattr(inspect.getmodule(function), "OPTIONS", None)
    return None if further is None else [*named, *further]


def unknown(what: str, given: str, accepted: Iterable[str]) -> str:
    """Error text for a name that is none of `accepted`, with the nearest one where there is one."""
    accepted = list(accepted)
    near = difflib.get_close_matches(str(given), accepted, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {what} {given!r}{hint} (accepted: {', '.join(accepted)})"
