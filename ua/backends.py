"""Which module of `kernels.bilateral` computes: by name, or the fastest that takes the tensors at hand."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from ua import plugins

PACKAGE = "kernels.bilateral"
FASTEST_FIRST = ("triton", "cpu", "torch")


def choose(name: str, signal: Tensor, guide: Tensor) -> ModuleType:
    """The backend `name`; "auto": the fastest that does not refuse.

    Raises:
        ValueError: unknown name, or a backend that cannot take these tensors (the message says why).
    """
    check_name(name)
    if name == "auto":
        present = plugins.names(PACKAGE)
        candidates = (plugins.find(PACKAGE, fast) for fast in FASTEST_FIRST if fast in present)
        return next(backend for backend in candidates if backend.refuses(signal, guide) is None)
    backend = plugins.find(PACKAGE, name, needs="refuses", kind="backend")
    reason = backend.refuses(signal, guide)
    if reason is not None:
        raise ValueError(f"backend={name!r} cannot compute this: {reason}; use backend='torch' or 'auto'")
    return backend


def check_name(name: str) -> None:
    """Raises ValueError for a name that is no backend; a dotted name is only tried when it is used."""
    accepted = ["auto", *plugins.names(PACKAGE)]
    if not isinstance(name, str) or (name not in accepted and "." not in name):
        raise ValueError(plugins.unknown("backend", name, accepted))
