"""The arithmetic of the benchmark against a brute count, its conclusions, and small runs with and without Hydra."""

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import _benchmark_measure as measuring
from experiments import _benchmark_operators as operators
from experiments import _benchmark_report as report
from experiments import benchmark
from experiments._benchmark_operators import OPERATORS, Case
from experiments.benchmark import Config
from kernels.geometry import owners
from ua import tables
from ua.prefilters import auto
from ua.tracking import Tracker

CHECKOUT = Path(__file__).resolve().parents[2]
CASE = Case("render", "torch", 32, 2, 2, 1, 0, "float32", "cpu", "released")
SMALL = {
    "backends": ["torch", "reference"],
    "device": "cpu",
    "sizes": [32],
    "steps": 1,
    "few_steps": 1,
    "channels": 2,
    "more_channels": [],
    "channels_at": 32,
    "batch": 2,
    "batch_at": 32,
    "repeats": 1,
}
AUTHORS = """\
import torch

def UPA(HR_img, lr_modality):
    assert HR_img.shape == (32, 32, 3) and HR_img.dtype == "uint8" and lr_modality.dtype == torch.float32
    return torch.nn.functional.interpolate(lr_modality, HR_img.shape[:2])
"""


@pytest.fixture
def authors(tmp_path):
    """A folder with an entry point like that of the authors' code."""
    (tmp_path / "authors" / "src").mkdir(parents=True)
    (tmp_path / "authors" / "src" / "upsample_anything.py").write_text(AUTHORS)
    operators.authors_function.cache_clear()
    yield str(tmp_path / "authors")
    sys.modules.pop("upsample_anything", None)


def made_row(case, seconds, **more):
    """A row as `measure` makes it, with round numbers."""
    values = {"seconds": seconds, "seconds_p20": seconds, "seconds_p80": seconds, "repeats": 1, "peak_mb": 100.0}
    values |= {"images_per_second": case.batch / seconds, "peak_ratio": 1.2, "bytes_share": 0.6, "flops_share": 0.1}
    return asdict(case) | values | {"bytes_per_second": 1e9, "flops_per_second": 1e9} | more


def made_results(rows, *, red=(), **settings):
    results = {
        "environment": benchmark.environment(),
        "settings": asdict(Config(device="cpu")) | {"dtype": "float32"} | settings,
        "agreement": [{"backend": backend, "ok": backend not in red} for backend in ("cpu", "triton")],
        "ceilings": {"copy_bytes_per_second": 1e10, "matmul_flops_per_second": {"float32": 1e11}},
        "rows": rows,
        "skipped": [],
    }
    return results | report.conclusions(results)


def verdicts(results):
    return {(target["backend"], target["what"]): target["verdict"] for target in results["targets"]}


# Arithmetic


@pytest.mark.parametrize(("size", "cells", "radius"), [(32, 4, 2), (33, 5, 3), (30, 2, 8), (16, 1, 8), (40, 9, 1)])
def test_pairs_are_those_of_a_brute_count(size, cells, radius):
    owner = owners(cells, size).tolist()
    distinct = {
        (i, j): sum((i - k) ** 2 + (j - m) ** 2 <= radius**2 for k in range(cells) for m in range(cells))
        for i in range(cells)
        for j in range(cells)
    }
    counted = sum(distinct[i, j] for i in owner for j in owner)
    case = replace(CASE, size=size, cells=cells, batch=3)
    assert operators.pairs(case, radius) == 3 * counted


@pytest.mark.parametrize("channels", [1, 5])
def test_flops_of_a_render_are_those_of_its_formula(channels):
    """The formula carried out with numbers that count their operations."""
    counted = 0

    class Counting(float):
        def _count(self, other):
            nonlocal counted
            counted += 1
            return Counting(1.0)

        __add__ = __sub__ = __mul__ = _count

        def exp(self):
            return self._count(None)

    one = Counting(1.0)
    guide_channels = range(operators.GUIDE_CHANNELS)
    dx, dy = one - one, one - one
    across, along = one * dx + one * dy, one * dx + one * dy
    differences = [one - one for _ in guide_channels]
    colour = differences[0] * differences[0]
    for difference in differences[1:]:
        colour = colour + difference * difference
    score = across * across + along * along + one * colour
    weight = (score - one).exp()
    total = one + weight
    _ = total, [one + weight * one for _ in range(channels)]

    case = replace(CASE, size=8, cells=1, channels=channels)  # one candidate for each of 64 pixels
    assert operators.render_flops(case) == 64 * counted


def test_least_bytes_of_a_render_are_those_of_its_tensors():
    case = replace(CASE, channels=5, batch=2, dtype="float16")
    problem = operators.make_problem(case)
    tensors = (problem.guide, problem.guide_lr, problem.signal, *problem.factors)
    with torch.no_grad():
        out = problem.render(problem.signal, problem.factors)
    assert out.dtype == torch.float16
    assert operators.render_bytes(case) == sum(tensor.nbytes for tensor in (*tensors, out))
    assert case.user_bytes() == problem.image.nbytes + problem.signal.nbytes + out.nbytes


def test_flops_and_bytes_of_the_whole_are_those_of_its_parts():
    case = replace(CASE, operator="end_to_end", steps=7)
    for amount in ("flops", "least_bytes"):
        step, render, whole = (getattr(OPERATORS[name], amount) for name in ("fit_step", "render", "end_to_end"))
        assert whole(case) == 7 * step(case) + render(case)
    assert operators.backward_flops(case) > operators.render_flops(case)
    assert operators.backward_bytes(case) > operators.render_bytes(case)


def test_percentiles():
    found = measuring.percentiles([5.0, 1.0, 2.0, 4.0, 3.0, 6.0])
    assert found == {"seconds": 3.5, "seconds_p20": 2.0, "seconds_p80": 5.0}


def test_ceilings_are_the_highest_of_all_starts():
    def found(copied, matmul):
        return {"copy_bytes_per_second": copied, "matmul_flops_per_second": {"float32": matmul}}

    assert report.highest(found(1.0, 4.0), found(2.0, 3.0)) == found(2.0, 4.0)
    assert report.highest(found(1.0, 4.0), {}) == found(1.0, 4.0)
    row = made_row(CASE, 1.0)
    assert report.shares(row, found(4e9, 2e9)) == {"bytes_share": 0.25, "flops_share": 0.5}
    assert report.shares(asdict(CASE) | {"oom": True}, found(4e9, 2e9)) == {}


def test_exponent_of_a_linear_cost():
    rows = [made_row(replace(CASE, size=size), 1e-6 * size**2) for size in (224, 448, 1792)]
    assert report.exponent(rows) == pytest.approx(1)


@pytest.mark.parametrize("size", [16, 33, 250])
def test_the_image_is_an_image_of_eight_bits(size):
    image = operators.synthetic_image(size)
    assert image.shape == (1, 3, size, size)
    assert image.min() >= 0 and image.max() <= 1 and image.std() > 0.05
    assert torch.equal((255 * image).round() / 255, image)


def test_default_is_timed_on_a_clean_image_and_on_one_that_it_cleans():
    clean, noisy = operators.synthetic_image(224, operators.LITTLE_GRAIN), operators.synthetic_image(224)
    assert auto.apply(clean) is clean and auto.apply(noisy) is not noisy


# Which cases, and what they say


def test_cases():
    config = Config(sizes=[448, 224], backends=["cpu", "torch"], only_sizes={"torch": [224]})
    found = benchmark.cases(config, config.backends, "cpu", "float32")
    assert len(found) == len(set(found))
    of = {(case.backend, case.operator, case.size, case.channels, case.batch): case for case in found}
    assert of["cpu", "end_to_end", 224, 384, 1].cells == 16
    assert of["cpu", "fit_step", 224, 3, 1].steps == 51  # a loop of its own
    assert of["torch", "fit_step", 224, 3, 1].steps == config.few_steps
    assert ("cpu", "render", 448, 768, 1) in of
    assert {key[1] for key in of if key[0] == "cpu" and key[4] == 32} == {"end_to_end", "default"}
    assert {case.size for case in found if case.backend == "torch"} == {224}
    assert [case.size for case in found if case.backend == "cpu" and case.operator == "fit_step"] == [224, 448]


def test_what_takes_too_long_or_too_much_memory_is_left_out():
    rows = [made_row(replace(CASE, size=64), 0.5)]
    large = replace(CASE, size=1024)

    def reason(rows, *, longest=1e9, deadline=math.inf, free=math.inf):
        return benchmark.not_worth_it(large, rows, longest, deadline, free)

    assert reason([]) is None and reason(rows) is None
    assert "more than longest=30" in reason(rows, longest=30)
    assert "minutes" in reason([], deadline=0) and "minutes" in reason(rows, deadline=time.monotonic() + 1)
    assert "more than is free" in reason(rows, free=large.user_bytes())
    assert "out of memory" in reason([asdict(replace(CASE, size=64)) | {"oom": True}])
    assert reason([asdict(replace(CASE, size=2048)) | {"oom": True}]) is None


def test_ratios_and_targets_on_the_cpu():
    whole = replace(CASE, operator="end_to_end", size=1024, cells=64, channels=384, steps=51)
    step = replace(CASE, operator="fit_step", size=224, cells=16, channels=3, steps=51)
    rows = [made_row(replace(step, backend=name), value) for name, value in (("cpu", 0.004), ("reference", 0.2))]
    rows += [made_row(replace(whole, backend="cpu"), 13.0)]
    results = made_results(rows)
    assert results["ratios"][0]["times_reference"] == pytest.approx(50)
    found = verdicts(results)
    assert found["cpu", "fit at 224, seconds"] == "met"  # 51 x .004 s
    assert found["cpu", "end to end at 1024, seconds"] == "not met"
    assert found["cpu", "render at 224, seconds"] == "not measured"
    assert set(verdicts(made_results(rows, steps=3)).values()) == {"not measured"}  # stated for 51 steps


def test_targets_on_a_gpu():
    whole = replace(CASE, operator="end_to_end", backend="triton", size=224, cells=16, channels=384, steps=51)
    render = replace(CASE, backend="triton", size=448, cells=32)
    rows = [
        made_row(whole, 0.004),
        made_row(replace(whole, backend="authors"), 0.5),
        made_row(replace(whole, batch=32), 0.03),
        made_row(replace(whole, size=1024, cells=64), 0.1, peak_ratio=1.4),
        asdict(replace(whole, size=2048, cells=128)) | {"oom": True},
        made_row(replace(render, channels=384), 0.1, bytes_share=0.6),
        made_row(replace(render, channels=768), 0.1, bytes_share=0.4),
    ]
    results = made_results(rows)
    assert {what: verdict for (backend, what), verdict in verdicts(results).items() if backend == "triton"} == {
        "end to end at 224, seconds": "met",
        "end to end at 224, times the authors' speed": "met",
        "end to end at 224, images a second": "met",
        "end to end at 1024, seconds": "not met",
        "end to end at 1024, peak / (input + output)": "met",
        "end to end at 2048, works: seconds": "not met",
        "render, share of copy bandwidth": "not met",
    }
    (ratio,) = [row for row in results["ratios"] if "times_authors" in row]
    assert ratio["backend"] == "triton" and ratio["times_authors"] == pytest.approx(125)
    shown = tables.markdown(report.tables_of(results)["benchmark"].rows)
    assert "out of memory" in shown

    red = made_results(rows, red=["triton"])
    assert not [row for row in red["ratios"] if row["backend"] == "triton"]
    assert verdicts(red)["triton", "end to end at 224, seconds"] == "disagrees with the reference"


# Measuring


@pytest.mark.parametrize(
    ("error", "row"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), {"oom": True}),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), {"oom": True}),
        (RuntimeError("a kernel failed\nat length"), {"error": "RuntimeError: a kernel failed"}),
    ],
)
def test_what_goes_wrong_is_a_row(monkeypatch, error, row):
    def fails(problem):
        raise error

    monkeypatch.setitem(OPERATORS, "render", replace(OPERATORS["render"], prepare=fails))
    assert measuring.measure_here(CASE, 1, 1.0, None) == row


def test_agreement_sees_a_wrong_backend(monkeypatch):
    like = replace(CASE, channels=3)
    right = measuring.agreement("torch", like)
    assert right["ok"] and right["value"] < 1e-4 and right["d_signal"] < 1e-4 and right["d_r"] < 1e-3

    from kernels.bilateral import torch as backend

    original = backend.render
    monkeypatch.setattr(backend, "render", lambda signal, *rest, **options: original(1.01 * signal, *rest, **options))
    assert not measuring.agreement("torch", like)["ok"]


def test_a_disagreeing_backend_gets_no_ratio(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "agreement", lambda backend, like: {"backend": backend, "ok": False})
    numbers = dict.fromkeys(("seconds", "peak_mb", "peak_ratio", "bytes_per_second", "flops_per_second"), 1.0)
    monkeypatch.setattr(benchmark, "measure", lambda *_: numbers)
    with pytest.raises(SystemExit) as stop:
        benchmark.main(["--output", str(tmp_path / "r.json"), "--device", "cpu", "--backends", "torch", "reference"])
    assert "no ratios of torch" in str(stop.value)
    results = json.loads((tmp_path / "r.json").read_text())
    assert not [row for row in results["ratios"] if row["backend"] == "torch"]
    assert "DISAGREES" in capsys.readouterr().err


def test_refusals_are_printed(capsys):
    assert measuring.refusal("torch", "cpu", "float16") is None
    assert "float64" in measuring.refusal("cpu", "cpu", "float64")
    assert "unknown backend" in measuring.refusal("nothing", "cpu", "float32")


def test_the_authors_code_is_called(authors, tmp_path):
    case = replace(CASE, operator="end_to_end", backend="authors", steps=51)
    row = measuring.measure_here(case, 1, 1.0, authors)
    assert row["seconds"] > 0 and "error" not in row
    failed = measuring.measure_here(case, 1, 1.0, str(tmp_path))
    assert "there is no src/upsample_anything.py" in failed["error"]


# Runs


def test_a_plain_run_and_its_drawing(authors, tmp_path):
    """As on the machine with the GPU: none of these packages may be imported. Then drawn here."""
    output = tmp_path / "plain" / "results.json"
    output.parent.mkdir()
    options = [f"--output={output}", f"--authors={authors}"]
    for name, value in SMALL.items():
        options += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    script = (
        "import sys\n"
        "for name in ('hydra', 'omegaconf', 'wandb', 'matplotlib', 'skimage', 'yaml', 'PIL', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        "from experiments import benchmark\n"
        "if __name__ == '__main__':\n"
        "    benchmark.main()\n"
    )
    (tmp_path / "plain.py").write_text(script)
    command = [sys.executable, str(tmp_path / "plain.py"), *options]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT), "OMP_NUM_THREADS": "1"}  # quick beside other programs
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "| verdict" in done.stdout and "[1/18] authors end_to_end" in done.stderr
    results = json.loads(output.read_text())
    assert len(results["rows"]) == 18 and not [row for row in results["rows"] if "error" in row]
    assert results["settings"]["authors"] is True and str(tmp_path) not in output.read_text()
    assert all(row["ok"] for row in results["agreement"])
    assert next(row for row in results["ratios"] if row["backend"] == "torch")["times_authors"] < 1

    again = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert again.returncode == 0, again.stderr
    assert seconds_of(json.loads(output.read_text())) == seconds_of(
        results
    )  # gone on with: nothing was left to measure
    other = subprocess.run([*command, "--steps", "2"], capture_output=True, text=True, env=environment)
    assert other.returncode == 1 and "measured with steps 1" in other.stderr

    drawn = Tracker(tmp_path / "drawn", {})
    benchmark.run(Config(results=str(output)), drawn)
    written = {str(path.relative_to(drawn.folder)) for path in drawn.folder.rglob("*.*") if path.is_file()}
    assert {"figures/scaling.png", "figures/operators.png", "tables/ratios.md", "tables/targets.tex"} <= written
    assert {"tables/benchmark.md", "results.json"} <= written


def seconds_of(results):
    return [row["seconds"] for row in results["rows"]]


def test_run_folder(tmp_path, monkeypatch):
    config = Config(**SMALL | {"operators": ["render"], "more_channels": []})
    summary = benchmark.run(config, Tracker(tmp_path, {}))
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["backend"] for row in results["rows"]] == ["torch", "reference"]
    assert "torch" in results["environment"]["versions"] and results["ceilings"]["copy_bytes_per_second"] > 0
    assert (tmp_path / "figures" / "scaling.png").is_file() and (tmp_path / "metrics.csv").is_file()
    assert {target["verdict"] for target in summary["targets"]} == {"not measured"}

    monkeypatch.setattr(benchmark, "measure", lambda *_: pytest.fail("measured again"))
    tracker = Tracker(tmp_path, {})
    benchmark.run(config, tracker)
    assert len(tracker.rows) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sizes": [40]}, "multiples of one of cells"),
        ({"repeats": 0}, "repeats"),
        ({"operators": ["rende"]}, "did you mean 'render'"),
        ({"backends": ["tritn"]}, "did you mean 'triton'"),
        ({"dtype": "float64"}, "unknown dtype"),
        ({"device": "nowhere"}, "device=nowhere"),
        ({"results": "nowhere.json"}, "results=nowhere.json"),
        ({"authors": "nowhere"}, "authors=nowhere"),
    ],
)
def test_bad_values(changes, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        Config(**changes)


@pytest.mark.parametrize("text", ["", "[]", '{"rows": []}'])
def test_a_file_without_results(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match="no results of experiments.benchmark"):
        benchmark.read_results(tmp_path / "results.json")


@pytest.mark.gpu
def test_a_plain_run_on_a_gpu(tmp_path):
    output = tmp_path / "results.json"
    small = ["--sizes", "64", "224", "--batch", "2", "--repeats", "3", "--only-sizes", '{"torch.compile": [64]}']
    command = [sys.executable, "-m", "experiments.benchmark", "--device", "cuda", "--output", str(output), *small]
    done = subprocess.run(command, capture_output=True, text=True, cwd=CHECKOUT)
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())
    assert not [row for row in results["rows"] if "error" in row or "oom" in row]
    assert all(row["ok"] for row in results["agreement"])
    assert {"torch", "reference"} <= {row["backend"] for row in results["rows"]}
    assert np.all([0 < row["bytes_share"] < 2 for row in results["rows"]])
