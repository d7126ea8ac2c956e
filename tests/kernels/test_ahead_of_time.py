"""Every Triton kernel, compiled for three generations of GPUs by a machine without one; for Hopper at every tile."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels.bilateral._triton_tiles import TILES, Shape, tile_for

CHECKOUT = Path(__file__).resolve().parents[2]
# In a process of its own: the interpreter, which the tests here run under, replaces the compiler.
OPERATORS = ("bilateral", "diffusion", "leave_one_out")
SCRIPT = (
    f"OPERATORS = {OPERATORS}"
    + """
import importlib, itertools, json
from kernels._triton_ahead_of_time import CAPABILITIES, SHARED_LIMIT, compile_all
if __name__ == "__main__":
    found = []
    for operator, capability in itertools.product(OPERATORS, CAPABILITIES):
        ahead = importlib.import_module(f"kernels.{operator}._triton_ahead_of_time")
        reports = compile_all(ahead.compile_case, ahead.cases_for(capability), (capability,), 2)
        for (case, _), report in reports.items():
            # What is spilled lies on the stack or in local memory, so only what has one of them is disassembled.
            spilled = report.stack or report.local
            in_loop = report.loop.get("LDL", 0) + report.loop.get("STL", 0) if spilled else 0
            limit = SHARED_LIMIT[capability]
            found.append((capability, f"{operator} {case}", report.stack, in_loop, report.shared, limit))
    print(json.dumps(found))
"""
)
# Bytes of stack a thread may have, by the start of a case's name and the capability. All are a few words outside
# the loops: the assembler gives them up to fit one more program on a multiprocessor (128 or 168 registers a thread),
# or, in `mix`, beside 64 to 96 accumulators.
SPILLS: dict[str, dict[int, int]] = {
    "bilateral mix float32 G=3 BP=64 BC=64": {80: 24},
    "bilateral mix float16 G=3 BP=32 BC=128": {80: 32, 90: 24},
    "bilateral mix bfloat16 G=3 BP=32 BC=128": {80: 32, 90: 24},
    "bilateral delta float16 G=3 BP=64 BC=32": {90: 16},
    "bilateral moments float32 G=3 BP=16 BC=16": {90: 16},
    # Cells of 1022 pixels at other than integer scales take all 255 registers.
    "diffusion step BC=1 BJ=1 BX=1024 WHOLE=False": {100: 16},
    # Triton 3.6 alone, at 96 registers.
    "bilateral signal_gradient float16 G=3 BP=32 BC=32": {90: 40},
}

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="the package triton is not here")


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[int, str, int, int, int, int]]:
    script = tmp_path_factory.mktemp("ahead") / "compile.py"
    script.write_text(SCRIPT)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, str(script)],
        env=environment | {"PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return [tuple(report) for report in json.loads(run.stdout)]


def test_every_kernel_compiles_for_every_generation(reports: list) -> None:
    names = set()
    for operator in OPERATORS:
        kernels = vars(importlib.import_module(f"kernels.{operator}._triton_kernels"))
        names |= {(operator, name.removesuffix("_kernel")) for name in kernels if name.endswith("_kernel")}
    for capability in (80, 90, 100):
        compiled = {tuple(name.split()[:2]) for found, name, *_ in reports if found == capability}
        assert compiled == names


def test_shared_memory_is_within_the_limit(reports: list) -> None:
    assert not [report for report in reports if report[4] > report[5]]


def test_nothing_spills_in_a_loop(reports: list) -> None:
    assert not [report for report in reports if report[3]]


def test_nothing_spills_outside_but_what_is_named(reports: list) -> None:
    def allowed(capability: int, name: str) -> int:
        return max((sizes.get(capability, 0) for start, sizes in SPILLS.items() if name.startswith(start)), default=0)

    assert not [report for report in reports if report[2] > allowed(*report[:2])]
    assert not [start for start in SPILLS if not any(name.startswith(start) for _, name, *_ in reports)]


def test_tiles_are_what_the_kernels_can_take() -> None:
    sizes = itertools.product((1, 4, 196, 256, 4000), (1, 29, 197), (1, 3, 21, 384, 768))
    for (pixels, candidates, channels), kernel in itertools.product(sizes, TILES):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            tile = tile_for(kernel, Shape(pixels, candidates, channels, dtype))
            numbers = (tile.pixels, tile.keys, tile.channels, tile.warps)
            assert all(number > 0 and number & (number - 1) == 0 for number in numbers), (kernel, tile)
            if kernel in ("mix", "delta", "moments", "signal_gradient"):  # the least that tl.dot takes
                assert min(tile.pixels, tile.keys, tile.channels) >= 16
            if kernel == "mix":  # the accumulators of a thread
                assert tile.channels * tile.blocks * tile.pixels / (32 * tile.warps) <= 96
