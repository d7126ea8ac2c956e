"""What the fused CPU backends of all operators share: which tensors they take, and their threads."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Job = TypeVar("Job")
Result = TypeVar("Result")

# Bytes, a page. Processors tell what is read from what was just written by the place in the page at first: loops over
# arrays of one layout take up to twice as long where those written start a little ahead of those read. (And matrix
# products of PyTorch take several times as long on what starts at no multiple of 64.)
ALIGNMENT = 4096


def refuses(signal: Tensor, guide: Tensor) -> str | None:
    """Why the backend cannot take these tensors (`guide`: or what is made of it); None: it can."""
    if guide.device.type != "cpu" or signal.device.type != "cpu":
        return f"it needs tensors on the CPU, got {signal.device} and {guide.device}"
    if torch.float64 in (signal.dtype, guide.dtype):
        return "it computes in float32, got float64"
    if guide.requires_grad:
        return "it has no gradient with respect to the image"
    if importlib.util.find_spec("numba") is None:
        return "it needs the package numba"
    return None


def empty(*shape: int) -> np.ndarray:
    """float32, from the start of a page on. NumPy asks for huge ones, which are there much sooner than PyTorch's."""
    size = math.prod(shape)
    buffer = np.empty(size + ALIGNMENT // 4, np.float32)
    first = -buffer.ctypes.data % ALIGNMENT // 4
    return buffer[first : first + size].reshape(shape)


def in_threads(work: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
    """`work` of every job, on as many threads as PyTorch uses; results in order."""
    jobs = list(jobs)
    threads = torch.get_num_threads()
    if threads == 1 or len(jobs) == 1:
        return map(work, jobs)
    return _pool(os.getpid(), threads).map(work, jobs)


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """One pool a process: threads do not survive a fork, so a data loader's worker makes its own."""
    return ThreadPoolExecutor(threads, thread_name_prefix="kernels-cpu")
