"""What is special about the CPU backend: exponential, references that move, threads, processes, whole fit steps."""

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from compare import Problem, assert_near, assert_same_gradients, make_problem, truth
from fused_fit import FIT_CASES, check_adam_on_the_reference, check_the_floor
from torch import Tensor

from kernels.bilateral import cpu, reference
from kernels.geometry import Factors, Support

CHECKOUT = Path(__file__).resolve().parents[2]


# --- the exponential


def exp2(values: np.ndarray) -> np.ndarray:
    from kernels import _cpu_exp2

    return np.array([_cpu_exp2.exp2(value) for value in values.astype(np.float32)])


def test_exp2_is_accurate() -> None:
    random = np.random.default_rng(0)
    edges = np.arange(-60, 60.5, 0.5)  # where the polynomial's interval ends, and its middle
    x = np.concatenate([random.uniform(-60, 60, 20_000), edges, np.nextafter(edges, 100), np.nextafter(edges, -100)])
    x = x.astype(np.float32).astype(np.float64)
    error = exp2(x) / np.exp2(x) - 1
    assert np.abs(error).max() < 2e-7
    assert np.sqrt(np.square(error).mean()) < 1e-7
    assert abs(error.mean()) < 5e-8, "no bias"


def test_exp2_stops_at_its_ends() -> None:
    for low in (-64, -64.5, -100, -1e4, -1e30):
        assert exp2(np.array([low]))[0] == pytest.approx(2.0**-64, rel=1e-6)
    for high in (100, 100.4, 128, 1e4, 1e30):
        assert exp2(np.array([high]))[0] == pytest.approx(2.0**100, rel=1e-6)


# --- references that move: scores by colour alone, one pixel or two a cell


def by_colour(scores: list[float], pixels_per_cell: int = 1, radius: list[int] | None = None) -> Problem:
    """A row of cells; every pixel scores cell q by `scores[q]`, all <= 0."""
    cells = len(scores)
    nothing = torch.zeros(1, 1, cells)
    return Problem(
        torch.arange(1.0, cells + 1).view(1, 1, 1, cells),
        torch.zeros(1, 1, 1, cells * pixels_per_cell),
        torch.tensor([math.sqrt(-score) for score in scores]).view(1, 1, 1, cells),
        Factors(nothing, nothing, nothing, nothing, torch.ones(1, 1, cells)),
        Support(cells, "drop"),
        None if radius is None else torch.tensor(radius).view(1, 1, cells * pixels_per_cell),
    )


MOVES = {
    "nearest-is-best": [0, -1000, -2000, -3000],
    "each-better-than-the-last": [-3000, -2000, -1000, 0],
    "almost-moved-then-moved-far": [-1000, -959.5, 0, -3600],
    "two-nearly-equal-far-away": [-5000, -5000, -30.0, -30.5],
    "all-equally-bad": [-4000, -4000, -4000, -4000],
    "a-little-better-each-time": [-150, -120, -90, -60, -30, 0],
    "best-in-the-middle": [-700, -10, -700, -12, -700],
    "many-then-one": [-2000.0] * 20 + [-1900.0],
    "two-best-after-eight-nearly-moved": [-200.0] + [-165.0] * 7 + [0.0, 0.0],
}


@pytest.mark.parametrize("scores", MOVES.values(), ids=MOVES)
def test_the_best_candidate_wins_wherever_it_lies(scores: list[float]) -> None:
    problem = by_colour(scores)
    assert_near(problem.render(cpu), truth(problem), largest=2e-3 * len(scores), rms=1e-3 * len(scores))


def test_weights_below_an_earlier_reference_vanish_when_it_moves_far() -> None:
    # The second score is 2^58 above the first, too little to move the reference; the third is 2^1384 above it.
    out = by_colour(MOVES["almost-moved-then-moved-far"]).render(cpu)
    assert_near(out, torch.full_like(out, 3.0), largest=1e-6, rms=1e-6)


def test_a_reference_never_moves_to_a_candidate_that_a_pixel_must_not_see() -> None:
    # The first pixel may see its own cell only, its neighbour in the tile sees all: three far better ones follow.
    out = by_colour([-3000, -2000, -1000, 0], 2, [0, 4, 4, 4, 4, 4, 4, 4]).render(cpu)
    assert out.flatten().tolist() == pytest.approx([1, 4, 4, 4, 4, 4, 4, 4], abs=1e-6)


@pytest.mark.parametrize("best", range(0, 197, 28))
def test_no_candidate_is_left_out_that_matters(best: int) -> None:
    # All 197 candidates of radius 8; one of them, at any place in the order, has all the weight.
    cells = 17
    nothing = torch.zeros(1, cells, cells)
    offset = cpu.disc_offsets(8)[best]
    guide_lr = torch.full((1, 1, cells, cells), 0.5)
    guide_lr[0, 0, 8 + offset[0], 8 + offset[1]] = 0.0
    factors = Factors(nothing, nothing, nothing, nothing, torch.full((1, cells, cells), 400.0))
    signal = torch.arange(float(cells * cells)).view(1, 1, cells, cells)
    out = cpu.render(signal, torch.zeros(1, 1, cells, cells), guide_lr, factors, support=Support(8, "drop"))
    assert float(out[0, 0, 8, 8]) == pytest.approx(float(signal[0, 0, 8 + offset[0], 8 + offset[1]]), rel=1e-6)


def test_candidates_of_little_weight_still_add_up() -> None:
    # 1 against 196 times 2^-12: each is small, together they are 5 %.
    cells = 17
    nothing = torch.zeros(1, cells, cells)
    guide_lr = torch.full((1, 1, cells, cells), math.sqrt(12 * math.log(2)))
    guide_lr[0, 0, 8, 8] = 0.0
    factors = Factors(nothing, nothing, nothing, nothing, torch.ones(1, cells, cells))
    signal = torch.ones(1, 1, cells, cells)
    signal[0, 0, 8, 8] = 0
    out = cpu.render(signal, torch.zeros(1, 1, cells, cells), guide_lr, factors, support=Support(8, "drop"))
    share = 196 * 2.0**-12
    assert float(out[0, 0, 8, 8]) == pytest.approx(share / (1 + share), rel=1e-5)


def test_copies_of_a_border_cell_count_when_candidates_are_left_out() -> None:
    # The far corner of a 3 x 3 grid: each copy is 2^-20 of a weight, little enough to leave out, but there are many.
    cells, radius = 3, 8
    offsets = cpu.disc_offsets(radius)
    copies = int(((offsets >= 2).all(1)).sum())
    nothing = torch.zeros(1, cells, cells)
    guide_lr, signal = torch.zeros(1, 1, cells, cells), torch.zeros(1, 1, cells, cells)
    guide_lr[0, 0, 2, 2] = math.sqrt(20 * math.log(2))
    signal[0, 0, 2, 2] = 2.0**20
    factors = Factors(nothing, nothing, nothing, nothing, torch.ones(1, cells, cells))
    out = cpu.render(signal, torch.zeros(1, 1, cells, cells), guide_lr, factors, support=Support(radius, "clamp"))
    assert copies > 20
    assert float(out[0, 0, 0, 0]) == pytest.approx(copies / (len(offsets) - copies), rel=1e-4)


# --- tiles that are mixed together

GROUPED = {
    "several groups a row, the last one short": {"grid": (2, 41), "size": (28, 574), "channels": 17, "radius": 3},
    "cells of several tiles": {"grid": (2, 3), "size": (40, 803), "channels": 3, "radius": 1},
    "cells as high as many tiles": {"grid": (2, 2), "size": (301, 9), "channels": 33, "radius": 1},
    "a pixel a cell": {"grid": (3, 600), "size": (3, 600), "channels": 2, "radius": 0},
    "a broken scale": {"grid": (5, 29), "size": (32, 199), "channels": 19, "radius": 2, "border": "clamp"},
    "full tiles, no multiple of a vector": {"grid": (2, 2), "size": (34, 34), "channels": 16, "radius": 8},
    "a tile a group": {"grid": (9, 9), "size": (130, 133), "channels": 20, "radius": 12},
    "cells without candidates": {"grid": (4, 30), "size": (24, 200), "channels": 4, "radius": 1, "valid": 0.1},
    "one row": {"grid": (1, 5), "size": (20, 37), "channels": 1, "radius": 3, "border": "clamp"},
    "one column": {"grid": (4, 1), "size": (70, 9), "channels": 2, "radius": 2},
}


each_group = pytest.mark.parametrize("options", GROUPED.values(), ids=GROUPED)


@pytest.fixture
def poisoned(monkeypatch) -> None:
    """Scratch memory begins as NaN."""
    from kernels.bilateral import _cpu_loops

    monkeypatch.setattr(_cpu_loops, "empty", lambda *shape: np.full(shape, np.nan, np.float32))


@each_group
def test_tiles_come_to_their_places(options: dict, poisoned: None) -> None:
    problem = make_problem(**options)
    assert_near(problem.render(cpu), truth(problem), largest=4e-6, rms=4e-7)


@each_group
def test_gradients_of_tiles(options: dict, poisoned: None) -> None:
    problem = make_problem(**options)
    expected = problem.to(torch.float64).gradients(reference)
    assert_same_gradients(problem.gradients(cpu), expected, largest=5e-5, rms=5e-6)


def test_nothing_is_read_or_written_out_of_bounds(tmp_path: Path) -> None:
    """The tests of places, and a large diffusion, compiled anew with a question before every access."""
    tests = ["tests/kernels/test_cpu.py", "tests/kernels/test_diffusion.py"]
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", *tests]
    command += ["-k", "tiles_come_to or (test_float32 and big and cpu)"]
    env = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    result = subprocess.run(command, capture_output=True, text=True, env=env, cwd=CHECKOUT, timeout=500)
    assert result.returncode == 0, result.stdout[-3000:]
    assert f"{len(GROUPED) + 1} passed" in result.stdout


# --- threads and processes

BANDED = {
    "grid": (16, 12),
    "size": (176, 192),
    "batch": 2,
    "channels": 5,
    "radius": 3,
    "radius_map": True,
    "border": "clamp",
}


@pytest.fixture
def threads():
    """`torch.set_num_threads`, set back afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def everything(problem: Problem) -> list[Tensor]:
    """Render, its gradients, the loss, its gradients."""
    source = Problem(**{**vars(problem), "signal": problem.guide_lr})
    loss, loss_gradients = source.loss_and_gradients(cpu)
    return [problem.render(cpu), *problem.gradients(cpu).values(), loss, *loss_gradients.values()]


def all_equal(some: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(some, others, strict=True))


def test_results_do_not_depend_on_the_number_of_threads_or_the_call(threads) -> None:
    problem = make_problem(**BANDED, valid=0.7)
    assert len(cpu._layout(16, 12, 176, 192, 3).bands) > 2, "work for more than one thread"
    threads(1)
    alone = everything(problem)
    assert all_equal(everything(problem), alone), "twice the same"
    for n in (2, 3):
        threads(n)
        assert all_equal(everything(problem), alone), f"{n} threads"


def test_images_of_a_batch_are_computed_as_if_alone() -> None:
    problem = make_problem(**BANDED)
    rendered, gradients = problem.render(cpu), problem.gradients(cpu)
    first, second = problem.item(0), problem.item(1)
    assert torch.equal(rendered, torch.cat([first.render(cpu), second.render(cpu)]))
    # The coefficients of the gradients are drawn in order, so the first image has the same ones alone.
    assert all(torch.equal(gradients[name][:1], gradient) for name, gradient in first.gradients(cpu).items())


def test_calls_from_many_threads_at_once(threads) -> None:
    problems = [make_problem(grid=(8, 8), size=(80 + i, 90), seed=i, border="clamp") for i in range(4)]
    expected = [everything(problem) for problem in problems]
    threads(2)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(everything, problems * 3))
    assert all(all_equal(found[i], expected[i % 4]) for i in range(len(found)))


LOADER = """
import multiprocessing
import torch
import ua

class Renders(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        random = torch.Generator().manual_seed(i)
        image, signal = torch.rand(3, 96, 128, generator=random), torch.randn(2, 6, 8, generator=random)
        return ua.upsample(image, signal, preset="released", steps=2, backend="cpu")[0]

if __name__ == "__main__":
    torch.set_num_threads(2)
    expected = [Renders()[i] for i in range(4)]  # starts this process's threads, which the children do not have
    loader = torch.utils.data.DataLoader(
        Renders(), batch_size=None, num_workers=2, multiprocessing_context=multiprocessing.get_context("METHOD")
    )
    for found, wanted in zip(loader, expected, strict=True):
        assert torch.equal(found, wanted)
    print("same")
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_it_works_in_the_workers_of_a_data_loader(method: str, tmp_path: Path) -> None:
    if method == "fork" and sys.platform != "linux":
        pytest.skip("processes do not fork here")
    script = tmp_path / "loader.py"
    script.write_text(LOADER.replace("METHOD", method))
    run = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert run.returncode == 0 and run.stdout.strip() == "same", run.stderr


# --- what it refuses

REFUSALS = {
    "double-signal": (torch.zeros(1, dtype=torch.float64), torch.zeros(1), "float64"),
    "double-guide": (torch.zeros(1), torch.zeros(1, dtype=torch.float64), "float64"),
    "other-device": (torch.zeros(1), torch.zeros(1, device="meta"), "CPU"),
    "guide-with-gradient": (torch.zeros(1), torch.zeros(1, requires_grad=True), "gradient"),
}


@pytest.mark.parametrize(("signal", "guide", "why"), REFUSALS.values(), ids=REFUSALS)
def test_it_says_why_it_refuses(signal: Tensor, guide: Tensor, why: str) -> None:
    assert why in str(cpu.refuses(signal, guide))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_it_takes_signals_of_a_model(dtype: torch.dtype) -> None:
    assert cpu.refuses(torch.zeros(1, dtype=dtype), torch.zeros(1)) is None


# --- whole fit steps


@pytest.mark.parametrize(("options", "cells_per_pixel"), FIT_CASES.values(), ids=FIT_CASES)
def test_fused_steps_are_adam_on_the_reference(options: dict, cells_per_pixel: float) -> None:
    check_adam_on_the_reference(cpu, options, cells_per_pixel)


def test_fused_steps_stop_at_the_floor() -> None:
    check_the_floor(cpu)
