"""How the benchmark measures: seconds, memory, the ceilings of the device, and whether a backend is right at all."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments._benchmark_operators import (
    OPERATORS,
    PACKAGES,
    Case,
    Problem,
    make_problem,
    module_name,
    prepare_authors,
)
from kernels.geometry import Factors
from ua import plugins
from ua.tracking import now

MB = 2**20
FLUSHED = 256 * MB  # more than the L2 cache of any GPU of today (50 MB on an H200)
# Largest differences from the reference that count as agreement, in units of the largest value, by type of the signal.
# Sums over a hundred candidates round in float32; half precision rounds the result by 2^-11 (bfloat16: 2^-8).
BOUNDS = {"float32": 1e-3, "float16": 4e-3, "bfloat16": 3e-2}
# Rounding noise in theta, amplified by Adam, moves the losses of two right implementations by up to .7 % in 51 steps.
LOSS_BOUND = 0.02

Row = dict[str, Any]


def measure(case: Case, repeats: int, budget: float, authors: str | None = None) -> Row:
    """A row for `case`: on the CPU from a fresh process, whose peak of memory is its own.

    Whatever goes wrong is a row as well, since a run of many minutes must not be lost for one case: `oom: true` where
    memory ran out, else `error` with the reason.
    """
    arguments = (case, repeats, budget, authors)
    if torch.device(case.device).type != "cpu":
        return measure_here(*arguments)
    context = multiprocessing.get_context("forkserver")  # forks of a process that has everything imported: quick
    context.set_forkserver_preload([__name__, "kernels.bilateral._cpu_loops"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send_row, args=(sender, *arguments), daemon=True)
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return {"error": "the process was killed; the system does so where memory runs out"}
    finally:
        process.join()


def _send_row(sender: Connection, *arguments: Any) -> None:
    sender.send(measure_here(*arguments))


def measure_here(case: Case, repeats: int, budget: float, authors: str | None) -> Row:
    """`measure` in this process."""
    try:
        return measured(case, repeats, budget, authors)
    except Exception as error:  # a kernel, a compiler or a driver may raise anything
        if out_of_memory(error):
            return {"oom": True}
        first_line = next(iter(str(error).splitlines()), "")
        return {"error": f"{type(error).__name__}: {first_line}"}


def measured(case: Case, repeats: int, budget: float, authors: str | None) -> Row:
    """Seconds of one call (of the fit: of one step), peak memory, and what they say of bandwidth and arithmetic.

    `peak_mb` is all memory in use at the peak, inputs included: what PyTorch allocated on a GPU, on the CPU that of the
    process above what it holds after a first small call. `above_inputs_mb` is the same less the inputs. `peak_ratio` is
    `peak_mb` in units of image, signal and output together (of image and Gaussians for a fit): 1 is the least there can
    be.
    """
    device = torch.device(case.device)
    operator = OPERATORS[case.operator]
    prepare = partial(prepare_authors, folder=authors) if authors and case.backend == "authors" else operator.prepare
    warm_up(case, prepare)
    before = start_of_peak(device)
    problem = make_problem(case)
    inputs = sum(tensor.nbytes for tensor in (problem.image, problem.signal, problem.guide_lr, *problem.factors))
    if device.type == "cuda":
        prepare(problem)()  # compiles for this shape and captures graphs; its time does not count, its memory does
    events = device.type == "cuda" and not operator.whole_call
    seconds = timed(lambda: prepare(problem), device, repeats, budget, events=events)
    peak = peak_bytes(device) - before
    per_call = case.steps if case.operator == "fit_step" else 1
    row: Row = {name: value / per_call for name, value in percentiles(seconds).items()}
    row |= {"repeats": len(seconds), "images_per_second": case.batch / row["seconds"]}
    row |= {"peak_mb": peak / MB, "above_inputs_mb": (peak - inputs) / MB, "peak_ratio": peak / case.user_bytes()}
    for name, amount in (("bytes", operator.least_bytes(case)), ("flops", operator.flops(case))):
        row |= {name: amount, f"{name}_per_second": amount / row["seconds"]}
    return row


def warm_up(case: Case, prepare: Callable[[Problem], Callable[[], Any]]) -> None:
    """Compiles, or loads what was compiled, at the smallest price: on 2 x 2 cells of the same size."""
    if case.backend == "authors":
        return
    if case.backend == "torch.compile":
        # For this shape alone: after others it would compile for shapes in general.
        torch.compiler.reset()
        prepare(make_problem(case))()
        return
    tiny = replace(case, size=2 * case.size // case.cells, cells=2, batch=1, steps=min(case.steps, 2))
    prepare(make_problem(tiny))()


def timed(
    prepare: Callable[[], Callable[[], Any]], device: torch.device, repeats: int, budget: float, *, events: bool
) -> list[float]:
    """Seconds of each call of what `prepare` returns: `repeats` of them, fewer where they take `budget` seconds."""
    seconds: list[float] = []
    started = now(device)
    while len(seconds) < repeats and (not seconds or now(device) - started < budget):
        # No name is bound to what was prepared, so that none of it is in memory when the next is.
        seconds.append(seconds_on_device(prepare(), device) if events else seconds_on_host(prepare(), device))
    return seconds


def seconds_on_host(work: Callable[[], Any], device: torch.device) -> float:
    """From the call to the moment when its result is there."""
    if device.type == "cuda":
        flush_cache(device)
    start = now(device)
    work()
    return now(device) - start


def seconds_on_device(work: Callable[[], Any], device: torch.device) -> float:
    """Between two events on the GPU. The flush before keeps it busy while the host prepares the launch."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush_cache(device)
    start.record()
    work()
    end.record()
    torch.cuda.synchronize(device)
    return start.elapsed_time(end) / 1e3


def flush_cache(device: torch.device) -> None:
    """Overwrites the L2 cache, so that every repeat reads its inputs from memory."""
    _flushed(device).zero_()


@cache
def _flushed(device: torch.device) -> Tensor:
    return torch.empty(FLUSHED, dtype=torch.int8, device=device)


def start_of_peak(device: torch.device) -> int:
    """Bytes in use before a measurement; the peak is counted anew from here."""
    gc.collect()
    if device.type == "cpu":
        with suppress(OSError):  # Linux alone has this; elsewhere the warm-up's peak hides peaks below it
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        return peak_bytes(device)
    flush_cache(device)  # its buffer is none of the measurement's memory
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held so far: on the GPU what PyTorch allocated, else all of it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        # Elsewhere than on Linux; macOS counts bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """The 20th, 50th and 80th."""
    low, middle, high = np.percentile(seconds, [20, 50, 80]).tolist()
    return {"seconds": middle, "seconds_p20": low, "seconds_p80": high}


def out_of_memory(error: Exception) -> bool:
    """Whether it says that memory ran out: PyTorch has a class for the GPU's and words for the CPU's."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def ceilings(device_name: str, dtype: str) -> dict[str, Any]:
    """What the device reaches at best, measured: bytes/s of a large copy (read and written), FLOP/s of a large matrix
    product in float32 (no TF32) and in `dtype`."""
    device = torch.device(device_name)
    on_gpu = device.type == "cuda"
    source = torch.ones((2**30 if on_gpu else 2**28) // 4, device=device)
    target = torch.empty_like(source)
    copy_seconds = fastest(lambda: target.copy_(source), device)
    side = 8192 if on_gpu else 2048
    matmul: dict[str, float] = {}
    for name in dict.fromkeys(("float32", dtype)):
        factor = torch.ones(side, side, device=device, dtype=getattr(torch, name))
        matmul[name] = 2 * side**3 / fastest(partial(torch.matmul, factor, factor), device)
    return {"copy_bytes_per_second": 2 * source.nbytes / copy_seconds, "matmul_flops_per_second": matmul}


def fastest(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of ten calls after a first one."""
    work()
    return min(timed(lambda: work, device, 10, 5.0, events=device.type == "cuda"))


def refusal(backend: str, device: str, dtype: str) -> str | None:
    """Why a backend computes nothing in this run, in its own words; None: it does."""
    try:
        module = plugins.find("kernels.bilateral", module_name(backend), needs="refuses", kind="backend")
    except (ImportError, ValueError) as error:
        return str(error)
    signal = torch.zeros(1, 1, 1, 1, device=device, dtype=getattr(torch, dtype))
    return module.refuses(signal, signal.float())


def agreement(backend: str, like: Case) -> dict[str, Any]:
    """A backend against the reference in float64 on a small problem with the device, types and preset of `like`.

    Largest errors of the render and of each gradient in units of the largest value, of the losses of three steps of
    the fit relative to each. `ok`: all are within their bounds, which are `BOUNDS` and `LOSS_BOUND`.
    """
    small = replace(like, backend=backend, size=48, cells=4, channels=5, batch=2, steps=3)
    problem, truth = make_problem(small), exact(make_problem(replace(small, backend="reference")))
    errors = {"value": difference(*(p.render(p.signal, p.factors) for p in (problem, truth)))}
    gradients = (OPERATORS["render_backward"].prepare(p)() for p in (problem, truth))
    names = ("signal", *Factors._fields)
    errors |= {f"d_{name}": difference(*pair) for name, pair in zip(names, zip(*gradients, strict=True), strict=True)}
    losses, true_losses = (p.fit().losses.double() for p in (problem, truth))
    for operator, package in PACKAGES.items():
        if backend in plugins.names(package):
            errors[operator] = difference(*(OPERATORS[operator].prepare(p)() for p in (problem, truth)))
    loss_error = float(((losses - true_losses) / true_losses).abs().max())
    bound = BOUNDS[like.dtype]
    # A NaN compares as False, so it is never within a bound.
    ok = all(error <= bound for error in errors.values()) and loss_error <= LOSS_BOUND
    return {"backend": backend, "ok": ok, "bound": bound, "losses": loss_error, **errors}


def exact(problem: Problem) -> Problem:
    """The same numbers in float64."""
    return replace(
        problem,
        image=problem.image.double(),
        signal=problem.signal.double(),
        guide=problem.guide.double(),
        guide_lr=problem.guide_lr.double(),
        factors=Factors(*(lr_map.double() for lr_map in problem.factors)),
    )


def difference(actual: Tensor, expected: Tensor) -> float:
    """The largest error in units of the largest expected value."""
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max().clamp(min=1e-12))
