"""Run folders: readable at any time, refused where they do not fit, and without a question from W&B."""

import csv
import json
import os
import random
import sys
import time

import numpy as np
import pytest
import torch
import yaml
from matplotlib.figure import Figure

from ua.tracking import LoggerConfig, Tracker, choose_device, finished, limit_threads, now

CONFIG = {"module": "toy", "seed": 3, "fit": {"steps": 5}, "logger": {"name": "files", "mode": "disabled"}}


def read(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_row_is_on_disk_at_once(tmp_path):
    tracker = Tracker(tmp_path, CONFIG)
    for step in (1, 2):
        tracker.log({"loss": 1 / step}, step=step, image="a")
        assert [row["step"] for row in read(tmp_path)] == [str(done) for done in range(1, step + 1)]
    assert float(read(tmp_path)[1]["loss"]) == 0.5


def test_columns_that_appear_later(tmp_path):
    tracker = Tracker(tmp_path, CONFIG)
    tracker.log({"loss": 1.0}, step=0, image="a")
    tracker.log({"psnr": 30.5}, image="a", method="bilinear")
    assert (tmp_path / "metrics.csv").read_text() == "image,method,step,loss,psnr\na,,0,1.0,\na,bilinear,,,30.5\n"
    again = Tracker(tmp_path, CONFIG)
    assert again.find(image="a", method="bilinear") == {
        "image": "a",
        "method": "bilinear",
        "step": None,
        "psnr": 30.5,
    }
    assert again.find(image="a", step=0)["loss"] == 1.0
    assert again.rows == tracker.rows


def test_a_row_is_measured_once(tmp_path):
    tracker = Tracker(tmp_path, CONFIG)
    tracker.log({"loss": 1.0}, step=0, scale=8, image="007")
    assert tracker.find(step=0, image="007", scale=8) and tracker.find(step=1, image="007", scale=8) is None
    with pytest.raises(ValueError, match="already"):
        tracker.log({"loss": 2.0}, step=0, scale=8, image="007")
    assert Tracker(tmp_path, CONFIG).find(step=0, image="007", scale=8)["image"] == "007"  # not the number 7


def test_a_line_cut_off_by_a_crash_is_dropped(tmp_path):
    tracker = Tracker(tmp_path, CONFIG)
    tracker.log({"loss": 1.0, "psnr": 20.0}, step=0)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1,0.")
    again = Tracker(tmp_path, CONFIG)
    assert [row["step"] for row in again.rows] == [0]
    again.log({"loss": 0.5, "psnr": 21.0}, step=1)
    assert [row["loss"] for row in read(tmp_path)] == ["1.0", "0.5"]


def test_a_folder_of_another_configuration_is_refused(tmp_path):
    Tracker(tmp_path, CONFIG)
    with pytest.raises(ValueError, match=r"fit\.steps: 5 -> 6"):
        Tracker(tmp_path, CONFIG | {"fit": {"steps": 6}})
    Tracker(tmp_path, CONFIG | {"logger": {"name": "wandb", "mode": "disabled"}})  # where one logs to may change
    assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == CONFIG


def test_no_file_of_a_run_is_taken_for_one(tmp_path):
    (tmp_path / "metrics.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="no column 'step'"):
        Tracker(tmp_path, CONFIG)


def test_environment_and_seed(tmp_path):
    Tracker(tmp_path, CONFIG, seed=3, command="python -m ua.run experiment=toy")
    drawn = torch.rand(1).item(), np.random.rand(), random.random()
    Tracker(tmp_path, CONFIG, seed=3)
    assert drawn == (torch.rand(1).item(), np.random.rand(), random.random())
    record = json.loads((tmp_path / "environment.json").read_text())
    assert record["versions"]["torch"] == torch.__version__
    assert {"python", "cpu", "threads", "gpu", "commit", "dirty", "started"} <= set(record)
    assert record["seed"] == 3
    assert [start["command"] for start in record["earlier_starts"]] == ["python -m ua.run experiment=toy"]


def test_summary_tables_and_figures(tmp_path):
    tracker = Tracker(tmp_path, CONFIG)
    tracker.summary({"psnr": float("inf"), "x8": {"rmse": [0.5, float("nan")]}})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"psnr": None, "x8": {"rmse": [0.5, None]}}
    tracker.table("scores", [{"method": "ours", "psnr": 30.0}], caption="Scores.")
    assert "| ours" in (tmp_path / "tables" / "scores.md").read_text()
    assert r"\label{tab:scores}" in (tmp_path / "tables" / "scores.tex").read_text()
    figure = Figure()
    figure.subplots().plot([1, 2])
    assert tracker.figure("curve", figure).read_bytes().startswith(b"\x89PNG")
    assert not [path for path in tmp_path.rglob(".*")], "temporary files are left"


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    """A machine on which nobody has logged in, and a person who would notice a question."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_MODE", "NETRC", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_ARTIFACT_DIR"):
        monkeypatch.delenv(name, raising=False)

    class NoAnswer:
        def isatty(self):
            return True

        def readline(self, *_):
            raise AssertionError("asked a question")

        read = fileno = readline

    monkeypatch.setattr(sys, "stdin", NoAnswer())


def test_wandb_is_offline_and_asks_nothing(tmp_path, no_key):
    folder = tmp_path / "run"
    Tracker(folder, CONFIG).log({"loss": 1.0}, step=0, image="a")  # a run that was interrupted
    logger = LoggerConfig(group="a-sweep", tags=["first-tag", "second-tag"])
    with Tracker(folder, CONFIG, logger=logger) as tracker:
        tracker.log({"loss": 0.5}, step=1, image="a")
        tracker.log({"psnr": 30.0}, image="a")
        tracker.table("scores", [{"method": "ours", "psnr": 30.0}, {"method": "bilinear", "rmse": 1.0}])
        tracker.figure("curve", Figure())
        tracker.summary({"psnr": 30.0})
    (run,) = (folder / "wandb").glob("offline-run-*")
    assert list(run.rglob("*.table.json")) and list(run.rglob("*.png"))
    (log,) = run.glob("run-*.wandb")
    deadline = time.monotonic() + 20  # W&B's own process writes it
    wanted = (b"a/loss", b"a/psnr", b"a-sweep", b"first-tag", b"second-tag", b"tables/scores", b"figures/curve")
    while not all(word in log.read_bytes() for word in wanted):
        assert time.monotonic() < deadline, "rows did not reach W&B"
        time.sleep(0.1)


def test_curves_are_drawn_over_their_steps(tmp_path, no_key, monkeypatch):
    import wandb

    defined, logged = [], []
    with Tracker(tmp_path / "run", CONFIG, logger=LoggerConfig()) as tracker:
        monkeypatch.setattr(tracker._wandb._run, "define_metric", lambda *a, **k: defined.append((a, k)))
        monkeypatch.setattr(tracker._wandb._run, "log", logged.append)
        for step in (0, 5):
            tracker.log({"loss": 1.0}, step=step, image="a", method="ours")
        tracker.log({"psnr": 30.0}, image="a", method="bilinear")
        tracker.summary({"score": -0.5, "images": ["a"]})
    assert defined == [(("a/ours/*",), {"step_metric": "step"})]
    assert logged == [
        {"a/ours/loss": 1.0, "step": 0},
        {"a/ours/loss": 1.0, "step": 5},
        {"a/bilinear/psnr": 30.0},
        {"score": -0.5},
    ]
    assert not {"WANDB_DATA_DIR", "WANDB_CACHE_DIR"} & set(os.environ), "the next run would write into this folder"
    assert wandb.run is None


def test_finished_runs_are_known(tmp_path):
    assert finished(tmp_path, CONFIG) is None
    tracker = Tracker(tmp_path, CONFIG)
    assert finished(tmp_path, CONFIG) is None
    tracker.summary({"score": 0.25})
    assert finished(tmp_path, CONFIG) == {"score": 0.25}
    with pytest.raises(ValueError, match="another configuration"):
        finished(tmp_path, CONFIG | {"seed": 4})


def test_threads_are_limited_and_never_raised(tmp_path):
    before = torch.get_num_threads()
    try:
        limit_threads(1)
        assert torch.get_num_threads() == 1
        limit_threads(64)
        assert torch.get_num_threads() == 1
        Tracker(tmp_path, CONFIG)
        assert json.loads((tmp_path / "environment.json").read_text())["threads"] == 1
    finally:
        torch.set_num_threads(before)


def test_wandb_online_without_a_key_is_an_error_not_a_question(tmp_path, no_key):
    with pytest.raises(ValueError, match="WANDB_API_KEY"):
        Tracker(tmp_path, CONFIG, logger=LoggerConfig(mode="online"))


def test_disabled_wandb_is_not_there(tmp_path):
    with Tracker(tmp_path, CONFIG, logger=LoggerConfig(mode="disabled")) as tracker:
        tracker.log({"loss": 1.0})
    assert not (tmp_path / "wandb").exists()


def test_unknown_loggers():
    with pytest.raises(ValueError, match="did you mean 'wandb'"):
        LoggerConfig(name="wandbb")
    with pytest.raises(ValueError, match="did you mean 'online'"):
        LoggerConfig(mode="onlin")


def test_devices():
    assert choose_device("cpu") == "cpu" and choose_device("auto") in ("cpu", "cuda")
    for name in ("gpu", "cuda:99", "meta", 3.5):
        with pytest.raises(ValueError, match=f"device={name}: must be"):
            choose_device(name)


def test_clock_goes_on():
    assert now() <= now("cpu")
