"""Paths that can be written, and files that are either whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# It can only be read by setting it, for all threads at once: do that when there is one.
_UMASK = os.umask(0)
os.umask(_UMASK)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well, and goes away otherwise.

    Raises:
        TypeError, ValueError, FileNotFoundError: as `check_writable`.
    """
    target = as_path(path)
    temporary = _new_file_beside(target)
    try:
        yield temporary
        # mkstemp makes private files; give the result the permissions that any new file gets.
        temporary.chmod(0o666 & ~_UMASK)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Tells before any computing that `path` could not be written after it.

    Raises:
        TypeError: `path` is no path.
        FileNotFoundError: its folder does not exist.
        ValueError: it is a folder, or lies in one that takes no new files.
    """
    _new_file_beside(as_path(path)).unlink()


def as_path(path: str | Path) -> Path:
    """`path` as a `Path`.

    Raises:
        TypeError: anything but text or a path.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"path must be text or a path, got {path!r} of type {type(path).__name__}")
    return Path(path)


def _new_file_beside(target: Path) -> Path:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path: no folder {str(target.parent)!r} to write {target.name!r} to")
    if target.is_dir():
        raise ValueError(f"path must be a file, got the folder {str(target)!r}")
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        reason = f"the folder {str(target.parent)!r} takes no new file ({error.strerror})"
        raise ValueError(f"path {str(target)!r} cannot be written: {reason}") from error
    os.close(handle)
    return Path(name)
