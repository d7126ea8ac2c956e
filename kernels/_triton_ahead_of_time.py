"""What the ahead-of-time checks of all operators share: a kernel compiled without a GPU, and what the assembler says.

Not under TRITON_INTERPRET, which replaces the compiler.
"""

from __future__ import annotations

import functools
import itertools
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

Case = TypeVar("Case")

CAPABILITIES = (80, 90, 100)
# Most shared memory that a block may have, bytes (CUDA C++ Programming Guide, technical specifications).
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}


@dataclass(frozen=True)
class Report:
    """What the assembler made of a case.

    registers: a thread. stack, local: bytes a thread, both 0 without spills. shared: bytes a program. cubin: the code.
    """

    registers: int
    stack: int
    local: int
    shared: int
    cubin: bytes

    @functools.cached_property
    def loop(self) -> Mapping[str, int]:
        """How often each operation stands in the innermost loop that takes the exponentials (the longest, if none
        does), which is where the time goes; empty where there is none. Disassembled when asked for: half a second.
        """
        return _loop(_cuobjdump("-sass", self.cubin))


def assemble(source: ASTSource, capability: int, warps: int, stages: int) -> Report:
    """Compile for a GPU of this compute capability (90 for 9.0) and read what the assembler says."""
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps, "num_stages": stages},
    )
    cubin = compiled.asm["cubin"]
    return Report(*_usage(cubin), compiled.metadata.shared, cubin)


def _usage(cubin: bytes) -> tuple[int, int, int]:
    """Registers, bytes of stack and of local memory a thread."""
    text = _cuobjdump("-res-usage", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing of registers: {text!r}")
    return int(found.group(1)), int(found.group(2)), int(found.group(3))


def _loop(sass: str) -> Counter[str]:
    """Operations of the innermost loop with the most exponentials, the longest of equals, as cuobjdump prints code."""
    lines = re.findall(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+\s+)?([A-Z][A-Z0-9]*)(.*?);", sass)
    place = {int(address, 16): position for position, (address, _, _) in enumerate(lines)}
    loops = []
    for position, (_, operation, rest) in enumerate(lines):
        target = re.search(r"0x([0-9a-f]+)", rest)
        if operation == "BRA" and target and place.get(int(target.group(1), 16), position) < position:
            loops.append((place[int(target.group(1), 16)], position))
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    mixes = [Counter(operation for _, operation, _ in lines[first : last + 1]) for first, last in inner]
    return max(mixes, key=lambda mix: (mix["MUFU"], mix.total()), default=Counter())


def _cuobjdump(what: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, what, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def compile_all(
    compile_case: Callable[[Case, int], Report], cases: list[Case], capabilities: tuple[int, ...], processes: int
) -> dict[tuple[Case, int], Report]:
    """Every case for every capability."""
    jobs = list(itertools.product(cases, capabilities))
    with ProcessPoolExecutor(processes) as pool:
        return dict(zip(jobs, pool.map(functools.partial(_job, compile_case), jobs), strict=True))


def _job(compile_case: Callable[[Case, int], Report], job: tuple[Case, int]) -> Report:
    return compile_case(*job)
