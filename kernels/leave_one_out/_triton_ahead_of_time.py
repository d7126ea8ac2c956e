"""The Triton kernels as they are launched, compiled without a GPU.

    python -m kernels.leave_one_out._triton_ahead_of_time [--capability 90]

prints registers, spills, shared memory and instructions. Not under TRITON_INTERPRET, which replaces the compiler.
"""

from __future__ import annotations

import argparse
import inspect
from dataclasses import dataclass
from typing import Any

from triton.compiler import ASTSource

from kernels._triton_ahead_of_time import CAPABILITIES, Report, assemble, compile_all
from kernels.leave_one_out import BETA_1, BETA_2, EPSILON, PRIOR, ROUNDING
from kernels.leave_one_out import _triton_kernels as kernels
from kernels.leave_one_out._triton_launch import CELLS

POINTERS = {"p_known": "*u8", "p_offsets": "*i32", "p_opposite": "*i32"}
CONSTANTS = {
    "predict": {"ROUNDING": ROUNDING},
    "step": {"BETA_1": BETA_1, "BETA_2": BETA_2, "EPSILON": EPSILON, "PULL": 2 * PRIOR / 3},
}


@dataclass(frozen=True)
class Case:
    """One kernel as it is compiled. constants: those of its constexpr arguments that vary."""

    kernel: str
    constants: tuple[tuple[str, Any], ...]

    def __str__(self) -> str:
        return f"{self.kernel} {' '.join(f'{name}={value}' for name, value in self.constants)}"


def all_cases() -> list[Case]:
    """On a colour guide, with the candidates of radius 1 and 3."""
    shapes = [(("G", 3), ("BP", CELLS), ("BK", candidates)) for candidates in (4, 32)]
    steps = [Case("step", (*shape, ("UPDATE", update))) for shape in shapes for update in (False, True)]
    return [*(Case("predict", shape) for shape in shapes), *steps]


def cases_for(capability: int) -> list[Case]:
    """What the tests compile: all for 9.0; for others, to save time, the largest of each kernel."""
    cases = all_cases()
    return cases if capability == 90 else list({case.kernel: case for case in cases}.values())


def compile_case(case: Case, capability: int) -> Report:
    """Compile for a GPU of this compute capability (90 for 9.0) and read what the assembler says."""
    function = getattr(kernels, f"{case.kernel}_kernel")
    constants = dict(case.constants) | CONSTANTS[case.kernel]
    signature, aligned = {}, {}
    for position, name in enumerate(inspect.signature(function.fn).parameters):
        signature[name] = "constexpr" if name in constants else _type_of(name)
        if signature[name].startswith("*"):
            aligned[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=aligned)
    return assemble(source, capability, warps=1, stages=2)


def _type_of(name: str) -> str:
    if name.startswith("p_"):
        return POINTERS.get(name, "*fp32")
    return "fp32" if name in kernels.NUMBERS else "i32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, choices=CAPABILITIES, default=90)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    print("| kernel | registers | stack | shared |\n| --- | ---: | ---: | ---: |")
    for (case, _), report in compile_all(compile_case, all_cases(), (options.capability,), options.processes).items():
        print(f"| {case} | {report.registers} | {report.stack} | {report.shared} |")


if __name__ == "__main__":
    main()
