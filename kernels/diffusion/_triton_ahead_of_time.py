"""The Triton kernels at the tiles that matter, compiled without a GPU.

    python -m kernels.diffusion._triton_ahead_of_time [--capability 90]

prints registers, spills, shared memory and instructions. Not under TRITON_INTERPRET, which replaces the compiler.
"""

from __future__ import annotations

import argparse
import inspect
from dataclasses import dataclass
from typing import Any

from triton.compiler import ASTSource

from kernels._triton_ahead_of_time import CAPABILITIES, Report, assemble, compile_all
from kernels.diffusion import _triton_kernels as kernels
from kernels.diffusion._triton_launch import FINISH_PIXELS, FINISH_WARPS, STAGES, Tile, tile_for
from kernels.diffusion.triton import WIDEST_CELL

FLOATS = {"keep", "momentum", "rate", "share"}
HALVES = {"step": {"p_signal"}, "finish": {"p_out"}}
# Columns of a cell: of the patches of a ViT, and the most.
COLUMNS = (14, WIDEST_CELL + 1)


@dataclass(frozen=True)
class Case:
    """One kernel as it is compiled, with all its optional parts. constants: its constexpr arguments."""

    kernel: str
    constants: tuple[tuple[str, Any], ...]
    warps: int

    def __str__(self) -> str:
        return f"{self.kernel} {' '.join(f'{name}={value}' for name, value in self.constants)} warps={self.warps}"


def all_cases() -> list[Case]:
    tiles = [*(tile_for(384, 16, columns) for columns in COLUMNS), tile_for(384, 1, 1)]
    steps = [_step(tile, whole) for tile in tiles for whole in (True, False)]
    return [*steps, Case("finish", (("BX", FINISH_PIXELS), ("WHOLE", False)), FINISH_WARPS)]


def cases_for(capability: int) -> list[Case]:
    """What the tests compile: all for 9.0; for others, to save time, what takes most registers."""
    widest = ("BX", tile_for(384, 16, WIDEST_CELL + 1).columns)
    return [case for case in all_cases() if capability == 90 or case.kernel != "step" or widest in case.constants]


def _step(tile: Tile, whole: bool) -> Case:
    sizes = {"BC": tile.channels, "BJ": tile.cells, "BX": tile.columns, "WHOLE": whole}
    return Case("step", tuple(sizes.items()), tile.warps)


def compile_case(case: Case, capability: int) -> Report:
    """Compile for a GPU of this compute capability (90 for 9.0) and read what the assembler says."""
    function = getattr(kernels, f"{case.kernel}_kernel")
    constants = dict(case.constants)
    signature, aligned = {}, {}
    for position, name in enumerate(inspect.signature(function.fn).parameters):
        signature[name] = "constexpr" if name in constants else _type_of(name, case)
        if signature[name].startswith("*"):
            aligned[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned)
    return assemble(source, capability, case.warps, STAGES)


def _type_of(name: str, case: Case) -> str:
    if name == "p_valid":  # a mask, or the factors of a prediction: both are compiled
        return "*u8" if dict(case.constants)["WHOLE"] else "*fp32"
    if name.startswith("p_"):
        return "*fp16" if name in HALVES[case.kernel] else "*fp32"
    return "fp32" if name in FLOATS else "i32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, choices=CAPABILITIES, default=90)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    print("| kernel | registers | stack | shared | a pixel: all | arithmetic | loads |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for (case, _), report in compile_all(compile_case, all_cases(), (options.capability,), options.processes).items():
        constants, loop = dict(case.constants), report.loop
        pixels = constants.get("BC", 1) * constants.get("BJ", 1) * constants["BX"] / (32 * case.warps)  # of a thread
        groups = (tuple(loop), ("FFMA", "FADD", "FMUL"), ("LDG",))
        counts = [f"{sum(loop[name] for name in group) / pixels:.1f}" for group in groups]
        print(f"| {case} | {report.registers} | {report.stack} | {report.shared} | {' | '.join(counts)} |")


if __name__ == "__main__":
    main()
