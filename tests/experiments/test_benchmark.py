"""The arithmetic of the benchmark, and one small measurement with and without Hydra."""

import json
import subprocess
import sys

import pytest
import torch

from experiments import benchmark
from experiments.benchmark import Case, Config
from ua.tracking import Tracker

SMALL = {"backends": ["torch"], "sizes": [32], "steps": 1, "channels": 2, "repeats": 1, "limits": {}}


def row(backend, size, steps, seconds):
    peaks = {"fit_peak_mb": 100.0, "peak_mb": 200.0}
    times = {"seconds": 2 * seconds, "fit_seconds": seconds, "render_seconds": seconds}
    return {
        "backend": backend,
        "size": size,
        "steps": steps,
        "cells": size // 16,
        "channels": 384,
        **times,
        **peaks,
    }


def test_cases_keep_to_the_limits():
    config = Config(backends=["cpu", "torch", "reference"], sizes=[224, 448])
    assert [(case.backend, case.size, case.steps) for case in benchmark.cases(config)] == [
        ("cpu", 224, 51), ("cpu", 448, 51), ("torch", 224, 51),
        ("cpu", 224, 5), ("torch", 224, 5), ("reference", 224, 5),
    ]  # fmt: skip
    assert benchmark.cases(Config(backends=["cpu"], sizes=[224])) == [Case("cpu", 224, 16, 51, 384)]


def test_exponent_of_a_linear_cost():
    rows = [row("cpu", size, 51, 1e-6 * size**2) for size in (224, 448, 1792)]
    assert benchmark.exponent(rows, "fit_seconds") == pytest.approx(1)


def test_ratios_and_targets():
    config = Config(sizes=[224, 1792])
    rows = [row("cpu", 224, 51, 0.2), row("cpu", 1792, 51, 51.2)]
    rows += [row(backend, 224, 5, seconds) for backend, seconds in (("cpu", 0.1), ("reference", 5.0))]
    results = benchmark.results_of(config, rows)
    assert results["ratio_to_reference"]["cpu"]["fit_seconds"] == pytest.approx(50)
    assert results["exponents"]["cpu"]["fit_seconds"] == pytest.approx(4 / 3)
    met = {(target["size"], target["what"]): target["met"] for target in results["targets"]}
    assert met[224, "fit_seconds"] and met[224, "fit_peak_mb"]
    assert not met[None, "exponent of fit_seconds"]  # 256 times as long for 64 times the pixels
    assert benchmark.targets(Config(sizes=[224], steps=3), rows) == []  # stated for 51 steps


@pytest.mark.parametrize("size", [16, 33, 250])
def test_the_image_is_an_image(size):
    image = benchmark.synthetic_image(size)
    assert image.shape == (1, 3, size, size)
    assert image.min() >= 0 and image.max() <= 1 and image.std() > 0.05
    assert torch.equal(image, benchmark.synthetic_image(size))


def test_a_measurement_without_hydra(tmp_path):
    """As on the machine with the GPU: none of these packages may be imported."""
    script = (
        "import sys\n"
        "for name in ('hydra', 'omegaconf', 'wandb', 'matplotlib', 'skimage', 'yaml', 'PIL'):\n"
        "    sys.modules[name] = None\n"
        "from experiments import benchmark\n"
        f"print(benchmark.measure(benchmark.Case('torch', 32, 2, 1, 2), benchmark.Config(**{SMALL})))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_run_folder(tmp_path):
    tracker = Tracker(tmp_path, {})
    config = Config(**SMALL)
    summary = benchmark.run(config, tracker)
    (measured,) = tracker.rows
    assert measured["fit_seconds"] > 0 and measured["peak_mb"] >= measured["fit_peak_mb"] > 0
    assert measured["imports_mb"] > 50
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["rows"][0]["backend"] == "torch" and "torch" in results["environment"]["versions"]
    assert (tmp_path / "figures" / "scaling.png").is_file() and (tmp_path / "tables" / "benchmark.md").is_file()
    assert summary["targets"] == []

    def measured_again(*_):
        raise AssertionError

    original, benchmark.in_new_process = benchmark.in_new_process, measured_again
    try:
        benchmark.run(config, Tracker(tmp_path, {}))  # goes on: everything is there
    finally:
        benchmark.in_new_process = original


def test_a_case_that_fails_says_why():
    with pytest.raises(RuntimeError, match="unknown bilateral 'nothing'"):
        benchmark.in_new_process(Case("nothing", 32, 2, 1, 2), Config(**SMALL))


@pytest.mark.parametrize(
    ("changes", "words"), [({"sizes": [40]}, "multiples of one of cells"), ({"repeats": 0}, "repeats")]
)
def test_bad_values(changes, words):
    with pytest.raises(ValueError, match=words):
        Config(**changes)
