"""Every Triton kernel at every tile that the code can pick, compiled without a GPU.

    python -m kernels.bilateral._triton_ahead_of_time [--capability 90] [--kernel mix]

prints registers, spills, shared memory and instructions. Not under TRITON_INTERPRET, which replaces the compiler.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from triton.compiler import ASTSource

from kernels._triton_ahead_of_time import CAPABILITIES, Report, assemble, compile_all
from kernels.bilateral import _triton_kernels as kernels
from kernels.bilateral._triton_launch import FEW_CHANNELS, SLOTS_PER_BLOCK
from kernels.bilateral._triton_tiles import TILES, Shape, Tile, tile_for

POINTERS = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}
INTEGER_TABLES = {"p_classes", "p_keys", "p_counts", "p_offsets", "p_slots", "p_radius"}
OF_THE_SIGNAL = {"p_signal", "p_out", "p_d_out"}
FLOATS = {"rate", "correction", "floor", "epsilon", "cells_per_pixel"}
# What tiles are chosen by, from the smallest to beyond the largest choice.
PIXELS, CANDIDATES, CHANNELS = (16, 17, 32, 33, 256), (1, 32, 33, 197), (1, 16, 17, 64, 65, 128, 129, 1024)


@dataclass(frozen=True)
class Case:
    """One kernel as it is compiled. constants: its constexpr arguments; left_out: pointers that are None."""

    kernel: str
    dtype: torch.dtype
    constants: tuple[tuple[str, Any], ...]
    left_out: frozenset[str]
    warps: int
    stages: int

    def __str__(self) -> str:
        constants = " ".join(f"{name}={value}" for name, value in self.constants)
        without = "".join(f" -{name.removeprefix('p_')}" for name in sorted(self.left_out))
        return f"{self.kernel} {str(self.dtype).removeprefix('torch.')} {constants} warps={self.warps}{without}"


def all_cases() -> list[Case]:
    """Every kernel at every tile that `_triton_tiles` picks, with all its optional parts; bfloat16 at the largest."""
    return list(dict.fromkeys(itertools.chain(_softmax_cases(), _dot_cases(), _fit_cases(), _lr_cases())))


def cases_for(capability: int) -> list[Case]:
    """What the tests compile: all for 9.0; for others, to save minutes, the largest tile of each kernel and type."""
    cases = all_cases()
    if capability == 90:
        return cases
    return list({(case.kernel, case.dtype): case for case in cases if case.dtype != torch.bfloat16}.values())


def main_cases() -> list[Case]:
    """What runs on a colour image with radii that do not vary and no holes: the figures in `kernels/README.md`."""
    without = {"p_radius", "p_valid", "p_reach", "p_d_guide"}
    return [
        dataclasses.replace(case, left_out=case.left_out | (without & _pointers(case.kernel)))
        for case in all_cases()
        if dict(case.constants).get("G", 3) == 3
    ]


def _pointers(kernel: str) -> set[str]:
    return {name for name in inspect.signature(_function(kernel).fn).parameters if name.startswith("p_")}


def _function(kernel: str) -> Any:
    return getattr(kernels, f"{kernel}_kernel")


def _tiles(
    kernel: str,
    dtype: torch.dtype,
    channels: tuple[int, ...] = CHANNELS,
    guide_channels: int = 3,
) -> list[Tile]:
    sizes = itertools.product(PIXELS, CANDIDATES, channels)
    shapes = (Shape(*size, dtype, guide_channels) for size in sizes)
    return list(dict.fromkeys(tile_for(kernel, shape) for shape in shapes))


def _case(kernel: str, dtype: torch.dtype, tile: Tile, left_out: set[str], **constants: Any) -> Case:
    return Case(kernel, dtype, tuple(constants.items()), frozenset(left_out), tile.warps, tile.stages)


LOSS = {"p_losses", "p_d_out", "p_delta"}


def _softmax_cases() -> Iterator[Case]:
    for channels in (0, 1, 3, FEW_CHANNELS):
        for tile in _tiles("softmax", torch.float16, (channels,)):
            sizes = {"G": 3, "C": channels, "BP": tile.pixels, "BK": tile.keys}
            yield _case("softmax", torch.float16, tile, {*LOSS, "p_reach"}, **sizes)


def _dot_cases() -> Iterator[Case]:
    for kernel in ("mix", "delta", "moments", "signal_gradient"):
        channels = tuple(number for number in CHANNELS if kernel != "mix" or number > FEW_CHANNELS)
        for dtype in (torch.float32, torch.float16):
            for tile in _tiles(kernel, dtype, channels):
                yield _case(kernel, dtype, tile, set(), G=3, **_dot_constants(kernel, tile))
        largest = _tiles(kernel, torch.bfloat16, channels)[-1]
        yield _case(kernel, torch.bfloat16, largest, set(), G=3, **_dot_constants(kernel, largest))


def _dot_constants(kernel: str, tile: Tile) -> dict[str, Any]:
    constants: dict[str, Any] = {"BP": tile.pixels, "BC": tile.channels, "PRECISION": "tf32x3"}
    if kernel == "signal_gradient":
        return constants | {"SIDE": math.isqrt(tile.keys)}
    own = {"mix": {"NC": tile.blocks}, "moments": {"N": 7}, "delta": {}}
    return constants | {"BK": tile.keys} | own[kernel]


def _fit_cases() -> Iterator[Case]:
    for guide in (1, 3, 8):
        for tile in _tiles("softmax", torch.float32, (guide,), guide):
            sizes = {"G": guide, "C": guide, "BP": tile.pixels, "BK": tile.keys}
            yield _case("softmax", torch.float32, tile, {"p_out", "p_valid"}, **sizes)
        for tile in _tiles("fit_moments", torch.float32):
            yield _case("fit_moments", torch.float32, tile, set(), G=guide, BP=tile.pixels, BK=tile.keys)


def _lr_cases() -> Iterator[Case]:
    one, two = Tile(0, 0, warps=1), Tile(0, 0, warps=2)
    for moments in (4, 7):
        yield _case("reduce", torch.float32, one, set(), N=moments, BS=SLOTS_PER_BLOCK)
    for update in (False, True):
        yield _case("step", torch.float32, two, set(), G=3, BS=SLOTS_PER_BLOCK, UPDATE=update)


def compile_case(case: Case, capability: int) -> Report:
    """Compile for a GPU of this compute capability (90 for 9.0) and read what the assembler says."""
    function = _function(case.kernel)
    constants: dict[str, Any] = dict(case.constants) | dict.fromkeys(case.left_out)
    signature, aligned = {}, {}
    for position, name in enumerate(inspect.signature(function.fn).parameters):
        signature[name] = "constexpr" if name in constants else _type_of(name, case)
        if signature[name].startswith("*") or name == "row_length":
            aligned[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned)
    return assemble(source, capability, case.warps, case.stages)


def _type_of(name: str, case: Case) -> str:
    if name in OF_THE_SIGNAL:
        return POINTERS[case.dtype]
    if name in INTEGER_TABLES:
        return "*i32"
    if name == "p_valid":
        return "*u8"
    if name.startswith("p_"):
        return "*fp32"
    return "fp32" if name in FLOATS else "i32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, choices=CAPABILITIES, default=90)
    parser.add_argument("--kernel", choices=[*TILES, "reduce", "step"])
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    cases = [case for case in main_cases() if options.kernel in (None, case.kernel)]
    print("| kernel | registers | stack | shared | a pair: all | arithmetic | exp2 | loads |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for (case, _), report in compile_all(compile_case, cases, (options.capability,), options.processes).items():
        constants, loop = dict(case.constants), report.loop
        keys = constants.get("BK", constants.get("SIDE", 0) ** 2)
        pairs = keys * constants.get("BP", 0) / (32 * case.warps)  # of a thread and a turn of the loop
        groups = (tuple(loop), ("FFMA", "FADD", "FMUL"), ("MUFU",), ("LDG", "LDS", "LDSM", "LDGSTS"))
        counts = [sum(loop[name] for name in group) / pairs if loop and pairs else 0 for group in groups]
        values = (report.registers, report.stack, report.shared, *(f"{count:.1f}" for count in counts))
        print(f"| {case} | {' | '.join(map(str, values))} |")


if __name__ == "__main__":
    main()
