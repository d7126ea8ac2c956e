"""Sweeps: the same numbers from every launcher, killed ones go on, searches find, and W&B's own sweep fits the code."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from ua import run, tracking
from ua._command_line import CONFIGS, check_composed, composing, job_folder

TOY_YAML = """\
# @package _global_
# Squares.
defaults:
  - override /logger: files
  - _self_

module: toy_package.squares
number: 1.0
rows: 2
seconds: 0.0
"""
TOY_MODULE = """\
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    number: float
    rows: int
    seconds: float

    def __post_init__(self):
        if self.number == 13:
            raise ValueError("number must not be 13")


def run(config, tracker):
    for step in range(config.rows):
        if tracker.find(step=step) is None:
            time.sleep(config.seconds)
            tracker.log({"when": time.time()}, step=step)
    return {"score": (config.number - 3) ** 2}
"""
# One image of 32 x 32 on 4 x 4 cells, by the backend that compiles nothing.
TINY = [
    "experiment=tune",
    "data.embedded.size=[32,32]",
    "+data.embedded.names=[coffee]",
    "scales=[8]",
    "regimes=[average]",
    "backend=torch",
]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to be in, with an experiment of one's own beside the project's."""
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "toy.yaml").write_text(TOY_YAML)
    (tmp_path / "toy_package").mkdir()
    (tmp_path / "toy_package" / "__init__.py").touch()
    (tmp_path / "toy_package" / "squares.py").write_text(TOY_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{CONFIGS.parent}{os.pathsep}{tmp_path}")  # of other processes
    monkeypatch.chdir(tmp_path)
    for name in ("toy_package", "toy_package.squares"):
        sys.modules.pop(name, None)
    return tmp_path


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["ua.run", *arguments])
    run.main()


def toy(monkeypatch, *arguments):
    call(monkeypatch, "-m", "--config-dir", "own", "experiment=toy", "hydra.sweep.dir=swept", *arguments)


def measured(folder):
    """The rows of every job of a sweep, but for their seconds."""
    result = {}
    for path in sorted(Path(folder).glob("*/metrics.csv")):
        with path.open() as file:
            rows = [
                {name: value for name, value in row.items() if not name.endswith("_seconds")}
                for row in csv.DictReader(file)
            ]
        result[path.parent.name] = rows
    return result


def same(found, expected):
    """Rows of jobs are equal; numbers up to the order of their sums, which follows the number of threads."""
    assert list(found) == list(expected)
    for name, rows in expected.items():
        assert len(found[name]) == len(rows)
        for row, other in zip(found[name], rows, strict=True):
            assert list(row) == list(other)
            for column, text in other.items():
                assert row[column] == text or float(row[column]) == pytest.approx(float(text), rel=1e-5), column


def test_every_launcher_gives_the_same_numbers(here, monkeypatch):
    grids = {
        "local": ["fit.sigma=0.5,1.0", "fit.sigma_r=0.1,0.2"],
        "joblib": ["fit.sigma_r=0.1,0.2", "fit.sigma=0.5,1.0"],
        "submitit_local": ["fit.sigma=0.5,1.0", "fit.sigma_r=0.1"],  # a process a job, each a second or two to start
    }
    for launcher, grid in grids.items():
        call(monkeypatch, "-m", *TINY, *grid, f"launcher={launcher}", f"hydra.sweep.dir={launcher}")
    rows = measured("local")
    assert len(rows) == 4 and len({json.dumps(each) for each in rows.values()}) == 4
    same(measured("joblib"), rows)
    same(measured("submitit_local"), {name: each for name, each in rows.items() if "sigma_r=0.1," in name})
    for launcher, most in (("joblib", max(1, cores() // 2)), ("submitit_local", 1)):
        for path in Path(launcher).glob("*/environment.json"):
            assert json.loads(path.read_text())["threads"] <= most, "jobs side by side took all cores"


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def test_a_killed_sweep_goes_on(here):
    """SIGKILL for the whole group of processes, in the middle of the second of three jobs."""
    words = ["-m", "--config-dir", "own", "experiment=toy", "number=1,2,3", "rows=3", "hydra.sweep.dir=swept"]
    command = [sys.executable, "-m", "ua.run", *words, "seconds=0.2"]
    job = Path("swept") / "toy,number=2,rows=3,seconds=0.2"
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (job / "metrics.csv").exists():
            assert process.poll() is None and time.monotonic() < deadline, "the second job never began"
            time.sleep(0.02)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    first = Path("swept") / "toy,number=1,rows=3,seconds=0.2"
    assert (first / "summary.json").exists() and not (job / "summary.json").exists()
    before = (first / "metrics.csv").stat().st_mtime_ns, measured("swept")

    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"finished already: {first}" in done.stderr
    assert (first / "metrics.csv").stat().st_mtime_ns == before[0], "a finished job was measured again"
    after = measured("swept")
    assert [len(rows) for rows in after.values()] == [3, 3, 3]
    for name, rows in before[1].items():
        assert after[name][: len(rows)] == rows, "a finished row was measured again"
    assert len(list(Path("swept").glob("*/summary.json"))) == 3


def test_a_sweep_may_be_changed_and_resumed(here, monkeypatch, capfd):
    toy(monkeypatch, "number=2,1")
    times = {path: path.stat().st_mtime_ns for path in Path("swept").glob("*/metrics.csv")}
    toy(monkeypatch, "number=1,5,2")  # another order, one more
    call(monkeypatch, "-m", "--config-dir", "own", "experiment=toy", "number=1", "resume=swept", "launcher=local")
    assert {path.parent.name for path in Path("swept").glob("*/summary.json")} == {
        f"toy,number={number}" for number in (1, 2, 5)
    }
    assert all(path.stat().st_mtime_ns == before for path, before in times.items())
    assert capfd.readouterr().err.count("finished already") == 3


def test_finished_jobs_of_other_code_are_refused(here, monkeypatch, capfd):
    toy(monkeypatch, "number=1")
    path = Path("swept/toy,number=1/environment.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": "0" * 40}))
    with pytest.raises(SystemExit, match=r"measured elsewhere: commit was 0{40}, is .*; choose another folder"):
        toy(monkeypatch, "number=1")


def test_a_job_that_fails_does_not_stop_the_others(here, monkeypatch):
    module = here / "toy_package" / "squares.py"
    module.write_text(
        TOY_MODULE.replace("    for step", "    if config.number == 1:\n        raise OSError('full')\n    for step")
    )
    with pytest.raises(SystemExit, match="error: full"):
        toy(monkeypatch, "number=1,2")
    assert [path.parent.name for path in Path("swept").glob("*/summary.json")] == ["toy,number=2"]


def test_wrong_values_are_found_before_the_first_job(here, monkeypatch):
    with pytest.raises(SystemExit, match="number must not be 13"):
        toy(monkeypatch, "number=1,13", "rows=1,2")
    (here / "own" / "sweep").mkdir()
    sweep = here / "own" / "sweep" / "mine.yaml"
    for key, values, words in (("number", "1,13", "must not be 13"), ("nmuber", "1,2", "did you mean 'number'")):
        sweep.write_text(f"# @package _global_\nhydra: {{sweeper: {{params: {{{key}: '{values}'}}}}}}\n")
        with pytest.raises(SystemExit, match=words):
            toy(monkeypatch, "sweep=mine")
    assert not Path("swept").exists()


# What is typed, and what the one line of the answer must hold. Every one is found before anything is measured.
TYPOS = {
    "experimnt=tune": "did you mean 'experiment'?",
    "experiment=tunne": "did you mean 'tune'?",
    "-m experiment=tune sweep=sigma_by_sigma": "did you mean 'sigma_by_sigma_r'?",
    "experiment=tune sweep=parts": "with -m alone",
    "-m experiment=tune swep=parts": "did you mean 'sweep'?",
    "experiment=tune +fit.sgima=3": "did you mean 'fit.sigma'?",
    "experiment=tune ++fit.sgima=3": "did you mean 'fit.sigma'?",
    "experiment=tune ~fit.sgima": "did you mean 'fit.sigma'?",
    "experiment=tune +fit.stpes.x=3": "did you mean 'fit.steps'?",
    "experiment=tune fit.steps.x=3": "fit.steps: Value",
    "experiment=tune +fit.sigma=3": "leave out the +",
    "experiment=tune +swep=parts": "did you mean 'sweep'?",
    "experiment=tune reume=folder": "did you mean 'resume'?",
    "experiment=tune redraw=tru": "redraw must be true or false, got 'tru'",
    "experiment=tune fit.prefilter=mdian": "did you mean 'median'?",
    "experiment=tune regimes=[averge]": "did you mean 'average'?",
    "experiment=tune data.embedded.szie=[64,64]": "did you mean 'data.embedded.size'?",
    "experiment=tune data.embedded.names=[coffee]": "write +data.embedded.names=...",
    "experiment=tune +data.embedded.szie=[64,64]": "did you mean 'size'?",
    "experiment=tune +data.shred={}": "did you mean 'shared'?",
    "experiment=tune hydra.swep.dir=x": "did you mean 'hydra.sweep'?",
    "experiment=transfer baseline.jbu.sgima=1": "did you mean 'baseline.jbu.sigma'?",
    "experiment=transfer +baseline.jbu.sgima=1": "did you mean 'sigma'?",
    "experiment=transfer variants.always_average.sgima=1": "did you mean 'variants.always_average.sigma'?",
    "experiment=transfer +variants.x={sgima: 1}": "did you mean 'sigma'?",
    "experiment=ablation_iters data.options.szie=3": "did you mean 'data.options.size'?",
    "experiment=tune --multirn": "did you mean '--multirun'?",
    "experiment=tune --cfg jbo": "invalid choice: 'jbo'",
    "-m experiment=tune fit.border=drop,clmap": "did you mean 'clamp'?",
    "-m experiment=tune fit.sgima=1,2": "did you mean 'fit.sigma'?",
    "-m experiment=tune fit=default,relesed": "did you mean 'released'?",
    "-m experiment=tune fit.radius=range(1,200)": "radius must be at most 100 cells, got 199",
}


@pytest.mark.parametrize(("typed", "words"), TYPOS.items())
def test_typos_name_the_nearest_word(here, monkeypatch, typed, words):
    monkeypatch.setattr(tracking.Tracker, "log", lambda *_, **__: pytest.fail("something was measured"))
    arguments = typed.split(" ") if "{" not in typed else typed.split(" ", 1)
    with pytest.raises(SystemExit) as stop:
        call(monkeypatch, *arguments)
    first, *others = str(stop.value).splitlines()
    assert first.startswith("error: ") and words in first
    assert not others or "experimnt" in typed  # which lists the experiments


def test_a_single_run_is_not_repeated_unless_asked(here, monkeypatch, capfd):
    words = ["--config-dir", "own", "experiment=toy", "hydra.run.dir=single"]
    call(monkeypatch, *words)
    (first,) = measured(".").values()
    call(monkeypatch, *words)
    assert "finished already: single" in capfd.readouterr().err
    for again in ("redraw=true", "resume=single"):
        Path("single/summary.json").write_text("{}")
        call(monkeypatch, *words, again)
        assert json.loads(Path("single/summary.json").read_text()) == {"score": 4.0}
    assert list(measured(".").values()) == [first]


def test_a_search_goes_on_where_it_was_stopped(here, monkeypatch):
    """Optuna proposes the same again, finished jobs answer at once, and the result is that of a search in one go."""
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="hydra-optuna-sweeper is not installed")
    text = (CONFIGS / "sweep" / "search.yaml").read_text().replace("n_startup_trials: 12", "n_startup_trials: 2")
    Path("own/sweep").mkdir()
    Path("own/sweep/mine.yaml").write_text(text[: text.index("params:")] + 'params: {number: "interval(0.0,10.0)"}')
    toy(monkeypatch, "sweep=mine", "hydra.sweeper.n_trials=4", "hydra.sweep.dir=whole")
    toy(monkeypatch, "sweep=mine", "hydra.sweeper.n_trials=2")
    assert len(measured("swept")) == 2
    times = {path: path.stat().st_mtime_ns for path in Path("swept").glob("*/metrics.csv")}
    toy(monkeypatch, "sweep=mine", "hydra.sweeper.n_trials=4")
    assert set(measured("swept")) == set(measured("whole")) and len(measured("whole")) == 4
    assert all(path.stat().st_mtime_ns == before for path, before in times.items())
    results = [Path(folder, "optimization_results.yaml").read_text() for folder in ("swept", "whole")]
    assert results[0] == results[1]
    scores = [json.loads(path.read_text())["score"] for path in Path("whole").glob("*/summary.json")]
    assert yaml.safe_load(results[0])["best_value"] == min(scores)


@pytest.mark.parametrize("name", [path.stem for path in sorted((CONFIGS / "sweep").glob("*.yaml"))])
def test_every_ready_sweep_composes_with_all_its_values(name):
    if "optuna" in (CONFIGS / "sweep" / f"{name}.yaml").read_text():
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="hydra-optuna-sweeper is not installed")
    run.register_presets()
    run.check_sweep(["-m", "experiment=tune", f"sweep={name}"])


def test_jobs_of_a_sweep_share_a_group(here, monkeypatch):
    groups = []

    class Spy(tracking.Tracker):
        def __init__(self, *args, logger, **options):
            groups.append(logger.group)
            super().__init__(*args, logger=logger, **options)

    monkeypatch.setattr(run, "Tracker", Spy)
    toy(monkeypatch, "number=1,2")
    toy(monkeypatch, "number=3", "logger.group=mine")
    call(monkeypatch, "--config-dir", "own", "experiment=toy")
    assert groups == ["swept", "swept", "mine", None]


def test_names_of_jobs():
    name = job_folder(["experiment=tune", "fit.sigma=0.5", "fit.border=drop", "launcher=joblib", "logger.tags=[a]"])
    assert name == "tune,fit.border=drop,fit.sigma=0.5"
    assert name == job_folder(
        ["logger=wandb", "fit.border=drop", "sweep=x", "redraw=true", "fit.sigma=0.5", "experiment=tune"]
    )
    odd = job_folder(["experiment=toy", "+image='a b/(1).jpg'"]), job_folder(["experiment=toy", "+image='a b_(1).jpg'"])
    assert odd[0] != odd[1] and not set("/' ()") & set("".join(odd))
    long = [job_folder(["experiment=toy", *(f"key_{i}={i}" for i in range(40)), f"z={z}"]) for z in (1, 2)]
    assert long[0] != long[1] and max(map(len, long)) < 200


def test_two_do_not_write_into_one_folder(tmp_path, capfd):
    entered = []

    def other():
        with tracking.alone_in(tmp_path):
            entered.append("other")

    thread = threading.Thread(target=other)
    with tracking.alone_in(tmp_path):
        thread.start()
        deadline = time.monotonic() + 20
        while "another process writes there" not in capfd.readouterr().err:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not entered
    thread.join()
    assert entered == ["other"]


def wandb_sweep():
    return yaml.safe_load((CONFIGS / "wandb_sweep.yaml").read_text())


def values_of(parameter):
    return parameter["values"] if "values" in parameter else [parameter["min"], parameter["max"]]


def test_the_sweep_of_wandb_calls_us_with_keys_that_exist():
    sweep = wandb_sweep()
    start = sweep["command"].index("-m")
    assert sweep["command"][start:][:3] == ["-m", "ua.run", "experiment=tune"]
    assert sweep["command"][-1] == "${args_no_hyphens}"
    words = [word for word in sweep["command"] if "=" in word]
    run.register_presets()
    choices = {key: values_of(parameter) for key, parameter in sweep["parameters"].items()}
    with composing(None) as compose:
        for number in range(max(map(len, choices.values()))):
            values = {key: each[min(number, len(each) - 1)] for key, each in choices.items()}
            config = compose([*words, *(f"{key}={value}" for key, value in values.items())])
            assert {key: OmegaConf.select(config, key) for key in choices} == values
            check_composed(config)


def test_the_metric_of_wandbs_sweep_reaches_wandb(here, monkeypatch):
    sweep = wandb_sweep()
    agent = [f"{key}={values_of(parameter)[0]}" for key, parameter in sweep["parameters"].items()]
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    logged = {}
    monkeypatch.setattr(tracking._Wandb, "summary", lambda self, values: logged.update(values) or summary(self, values))
    call(monkeypatch, *TINY, "logger=wandb", *agent)
    folder = Path("outputs/tune/abc123")  # the agent's name of the run, since several may start at once
    name = sweep["metric"]["name"]
    assert json.loads((folder / "summary.json").read_text())[name] == logged[name]
    (log,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 20  # W&B's own process writes it
    while name.encode() not in log.read_bytes():
        assert time.monotonic() < deadline, "the metric did not reach W&B"
        time.sleep(0.05)


summary = tracking._Wandb.summary
