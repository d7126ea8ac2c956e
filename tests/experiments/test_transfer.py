"""The whole bench on small crops: rows, tables, going on after an interruption, and what is compared with what."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import _bench, _effects, transfer
from experiments import _segmentation_net as segmentation
from experiments import _transfer_predictions as predictions
from experiments import _transfer_report as reports
from experiments.transfer import Config
from ua import datasets
from ua.statistics import Interval
from ua.tracking import Tracker

BASELINES = {"nearest": {}, "bicubic": {}}
METHODS = ["bilinear", "nearest", "bicubic", "default", "plain"]
SIGNALS = {"chelsea": ["features"], "elevation": ["features", "depth", "normals"]}


def config(**changes):
    values = {
        "data": {"embedded": {"names": ["chelsea", "elevation", "motorcycle"], "size": [48, 64]}},
        "split": "test",
        "scales": [8, 14],
        "regimes": ["average", "network"],
        "baseline": BASELINES,
        "presets": ["default"],
        "variants": {"plain": {"preset": "default", "back_projections": 0, "radius": 2}},
        "predictions": False,
        "pictures": ["elevation"],
        "picture_scale": 8,
        "degradation_seed": 0,
        "backend": "auto",
        "device": "cpu",
    }
    return Config(**values | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tracker = Tracker(folder, {})
    summary = transfer.run(config(), tracker)
    return folder, tracker.rows, summary


def find(rows, **labels):
    return [row for row in rows if all(row[name] == value for name, value in labels.items())]


def test_a_row_for_every_image_scale_regime_signal_and_method(finished):
    _, rows, summary = finished
    assert summary["images"] == ["chelsea", "elevation"]  # the motorcycle is in the other split
    assert len(rows) == 2 * 2 * 4 * len(METHODS)
    for image, signals in SIGNALS.items():
        for signal in signals:
            assert len(find(rows, image=image, signal=signal)) == 2 * 2 * len(METHODS)
    for row in rows:
        assert row["fit_seconds"] >= 0 and row["render_seconds"] > 0
    for row in find(rows, signal="features"):
        assert 0 < row["feature_rmse"] < 3 and -1 <= row["feature_cosine"] <= 1
    assert all(0 < row["normal_angle"] < 60 for row in find(rows, signal="normals"))


def test_the_regimes_are_what_they_say(finished):
    _, rows, _ = finished
    errors = {
        regime: find(rows, image="elevation", scale=8, regime=regime, signal="depth") for regime in _bench.REGIMES
    }
    for average, network in zip(*errors.values(), strict=True):
        assert average["method"] == network["method"] and average["depth_rmse"] < network["depth_rmse"]


def test_what_it_writes(finished):
    folder, _, summary = finished
    tables = {path.stem for path in (folder / "tables").glob("*.md")}
    for regime in _bench.REGIMES:
        name = f"transfer_{regime}"
        assert {name, f"{name}_paired", f"{name}_x8", f"{name}_x14"} <= tables
    assert "seconds" in tables and "predictions" not in tables
    figures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {"transfer_average", "transfer_network", "panels_elevation_x8"} <= figures
    json.dumps(summary)
    bilinear = {name: methods["bilinear"] for name, methods in summary["average"].items()}
    assert bilinear == {"depth elevation": 1, "features": 1, "cosine": 0, "normals elevation": 1}
    paired = (folder / "tables" / "transfer_average_paired.md").read_text()
    assert "| minus" in paired and "nearest" in paired
    assert "features" in paired and "/2" in paired and "depth" not in paired.partition("| modality")[2]  # one image


def test_it_goes_on_where_it_was_interrupted(tmp_path, monkeypatch):
    small = config(scales=[14], pictures=[])

    class Stopped(Exception):
        pass

    def stop_at_seventh(*arguments, real=_bench.score):
        if len(tracker.rows) == 7:
            raise Stopped
        return real(*arguments)

    tracker = Tracker(tmp_path, {})
    monkeypatch.setattr(_bench, "score", stop_at_seventh)
    with pytest.raises(Stopped):
        transfer.run(small, tracker)
    monkeypatch.undo()
    before = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert len(before) == 7
    tracker = Tracker(tmp_path, {})
    transfer.run(small, tracker)
    after = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert len(after) == 2 * 4 * len(METHODS)
    assert [{name: row[name] for name in before[0]} for row in after[:7]] == before
    monkeypatch.setattr(_bench, "score", stop_at_seventh)
    assert transfer.run(small, Tracker(tmp_path, {}))["images"]  # nothing is left to measure


def test_results_repeat(finished, tmp_path):
    _, rows, _ = finished
    tracker = Tracker(tmp_path, {})
    transfer.run(config(scales=[14], pictures=[]), tracker)
    for row in tracker.rows:
        labels = {name: row[name] for name in ("image", "scale", "regime", "signal", "method")}
        (same,) = find(rows, **labels)
        for name in {"feature_rmse", "depth_rmse", "normal_angle"} & set(row):
            assert row[name] == pytest.approx(same[name], rel=1e-5)


def test_classes_that_do_not_occur_are_left_out():
    labels = torch.full((16, 16), 7)
    labels[:8], labels[0] = 2, -1
    sample = datasets.Sample("x", torch.rand(3, 16, 16), labels=labels, num_classes=9)
    truth = next(truth for truth in _bench.truths(sample, "cpu") if truth.name == "labels")
    assert truth.maps.shape == (2, 16, 16)
    assert truth.target[0, :, 0].tolist() == [-1] + [0] * 7 + [1] * 8
    assert torch.equal(truth.valid, labels >= 0)
    signal = _bench.lower(truth, "network", (4, 4), seed=0)
    assert signal.classes == 2 and signal.low.min() >= 0
    torch.testing.assert_close(signal.low.sum(1), torch.ones(1, 4, 4))
    assert _bench.score(signal, truth.maps) == {"miou": 1.0, "boundary_miou": 1.0}


def test_the_same_image_counts_once(tmp_path, capfd, monkeypatch):
    own = datasets.load("embedded", names=["coffee"], size=(32, 32))
    loads = {"embedded": lambda **_: own, "own.data": lambda **_: own}
    monkeypatch.setattr(datasets, "load", lambda name, **options: loads[name](**options))
    found = _bench.load({"embedded": {}, "own.data": {}}, "dev", Tracker(tmp_path, {}))
    assert [sample.name for sample in found] == ["coffee"]
    assert "coffee is left out: it is the same image as coffee" in capfd.readouterr().err


def test_without_the_shared_folder_it_says_so(tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("UA_DATA", raising=False)
    tracker = Tracker(tmp_path, {})
    only = {"embedded": {"names": ["chelsea"], "size": [32, 32]}, "shared": {}}
    assert len(_bench.load(only, "test", tracker)) == 1
    transfer.measure_predictions(config(data=only), "cpu", tracker)
    said = capfd.readouterr().err
    assert "data set 'shared' is left out" in said and "real predictions are left out" in said
    with pytest.raises(FileNotFoundError, match="UA_DATA"):
        _bench.load({"shared": {}}, "test", tracker)
    with pytest.raises(ValueError, match="no sample of embedded is in the split dev"):
        _bench.load({"embedded": {"names": ["chelsea"]}}, "dev", tracker)


def test_predictions_on_made_up_files(tmp_path, monkeypatch):
    """A network of a few steps, on an aerial image of our own in the folder's layout."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "data" / "aerial_potsdam"
    folder.mkdir(parents=True)
    labels = np.kron(rng.integers(0, 7, (8, 8)), np.ones((12, 12), int)).astype(np.uint8)
    Image.fromarray(labels).save(folder / "2_10_0_0_512_512_label.png")
    Image.fromarray(np.stack([40 * labels] * 3, -1)).save(folder / "2_10_0_0_512_512.png")
    few = segmentation.train
    monkeypatch.setattr(segmentation, "train", lambda *arguments, **options: few(*arguments, **options, steps=2))
    tracker = Tracker(tmp_path / "run", {})
    small = config(data={"shared": {"root": str(tmp_path / "data")}}, split="dev")
    for _ in range(2):  # the second time there is nothing left
        transfer.measure_predictions(small, "cpu", tracker)
        assert len(tracker.rows) == len(METHODS)
    assert all(0 <= row["iou"] <= 1 and row["dataset"] == "potsdam" for row in tracker.rows)
    means = reports.prediction_table(tracker, tracker.rows)
    assert set(means["default"]) == {"potsdam IoU", "potsdam band IoU"}


def test_predictions_of_the_real_folder(shared_data):
    dog = predictions.authors(shared_data)
    assert dog.image.shape == (3, 448, 448) and dog.probabilities.shape == (21, 32, 32) and dog.scale == 14
    nearest = dog.probabilities.repeat_interleave(14, 1).repeat_interleave(14, 2)
    assert predictions.score(dog, nearest)["iou"] == pytest.approx(0.891, abs=0.002)  # as the folder's notes say


def row(image, method, value, scale=8, **labels):
    known = {"guide": "clean", "regime": "average", "signal": "depth", "dataset": "nyu", "step": None}
    known |= {"scene": image}
    return {"image": image, "scale": scale, "method": method, "depth_rmse": value, **known, **labels}


def test_ratios_are_means_over_scales_then_over_scenes(tmp_path):
    rows = [row("a", "bilinear", 2.0), row("b", "bilinear", 4.0), row("a", "bilinear", 5.0, scale=16)]
    rows += [row("a", "default", 1.0), row("b", "default", 4.0), row("a", "default", 5.0, scale=16)]
    effects = _effects.against(rows)
    (modality,) = _effects.modalities(effects)
    assert modality == _effects.Modality("depth nyu", "ratio")
    measured = _effects.by_scene(effects)
    assert measured[modality, "default"] == {"a": 0.75, "b": 1.0}
    assert _effects.intervals(effects)[modality]["default"].mean == pytest.approx(0.875)


def test_two_views_of_a_room_are_one_scene():
    rows = [
        row(name, method, value, scene="room" if name != "c" else "c")
        for name in "abc"
        for method, value in (("bilinear", 2.0), ("default", 1.0))
    ]
    measured = _effects.by_scene(_effects.against(rows))
    assert [list(scenes) for scenes in measured.values()] == [["room", "c"], ["room", "c"]]


def test_a_yardstick_of_zero_compares_with_nothing():
    rows = [row("a", "bilinear", 0.0), row("a", "default", 1.0)]
    assert _effects.against(rows) == []


def test_an_interval_as_text():
    interval = Interval(0.81234, 0.7, 0.9)
    assert _effects.cell(interval, ".3f") == "0.812 [0.700, 0.900]"
    assert _effects.cell(Interval(1.234, math.nan, math.nan), "+.2f") == "+1.23"
    assert _effects.cell(None, ".3f") is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "devel"}, "did you mean 'dev'"),
        ({"scales": []}, "scales"),
        ({"regimes": ["averge"]}, "did you mean 'average'"),
        ({"picture_scale": 0}, "picture_scale"),
        ({"presets": ["relesed"]}, "did you mean 'released'"),
        ({"variants": {"mine": {"preset": "default", "stepz": 3}}}, "did you mean 'steps'"),
        ({"variants": {"bicubic": {}}}, "'bicubic' twice"),
    ],
)
def test_bad_values(changes, words):
    with pytest.raises(ValueError, match=words):
        config(**changes)
