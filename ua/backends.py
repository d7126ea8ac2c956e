"""Which backend of an operator computes: by name, or the fastest that takes the tensors at hand."""

from __future__ import annotations

from types import ModuleType

from torch import Tensor

from ua import plugins

BILATERAL, DIFFUSION, ASSIGNMENT = "kernels.bilateral", "kernels.diffusion", "kernels.assignment"
LEAVE_ONE_OUT = "kernels.leave_one_out"
# Fastest first, by the kind of device that holds the guide; "torch" takes whatever the others refuse.
AUTO = {"cuda": ("triton", "torch"), "cpu": ("cpu", "torch")}


def choose(name: str, signal: Tensor, guide: Tensor, package: str = BILATERAL) -> ModuleType:
    """The backend `name` of the operator `package`; "auto": the fastest that does not refuse.

    A backend that does not have this operator, such as one's own that has the render alone, counts as "auto" for it.

    Raises:
        ValueError: unknown name, or a backend that cannot take these tensors (the message says why).
    """
    check_name(name)
    if name == "auto" or (package != BILATERAL and name not in plugins.names(package)):
        fastest = [fast for fast in AUTO.get(guide.device.type, ("torch",)) if fast in plugins.names(package)]
        candidates = (plugins.find(package, fast) for fast in fastest)
        return next(backend for backend in candidates if backend.refuses(signal, guide) is None)
    backend = plugins.find(package, name, needs="refuses", kind="backend")
    reason = backend.refuses(signal, guide)
    if reason is not None:
        raise ValueError(f"backend={name!r} cannot compute this: {reason}; use backend='torch' or 'auto'")
    return backend


def check_name(name: str) -> None:
    """Raises ValueError for a name that is no backend; a dotted name is only tried when it is used."""
    accepted = ["auto", *plugins.names(BILATERAL)]
    if not isinstance(name, str) or (name not in accepted and "." not in name):
        raise ValueError(plugins.unknown("backend", name, accepted))
