"""The whole experiment on a small image: rows, sums, pictures, and going on after an interruption."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

import ua
from experiments import _bench, ablation_iters
from experiments.ablation_iters import Config, DataConfig, PictureConfig, StopRule
from ua.tracking import Tracker

BASELINES = {name: {} for name in ("nearest", "bilinear", "bicubic", "jbu", "guided_filter")}
SIGNALS = {"motorcycle": ["colour", "depth", "features", "labels"], "coffee": ["colour", "features"]}
METHODS = [*BASELINES, "released", "default", "fit, plateau"]


def config(**changes):
    values = {
        "data": DataConfig("embedded", {"names": ["motorcycle", "coffee"], "size": [48, 64]}),
        "fit": ua.preset("released"),
        "baseline": BASELINES,
        "curves": {"slow": {"lr": 0.01, "steps": 3}},
        "stopping": {"plateau": {"window": 1, "tolerance": 0.05}},
        "presets": ["released", "default"],
        "steps": [0, 2, 5],
        "scales": [8, 16],
        "picture": PictureConfig("motorcycle", 16, 2),
        "degradation_seed": 0,
        "backend": "auto",
        "device": "cpu",
    }
    return Config(**values | changes)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tracker = Tracker(folder, {})
    summary = ablation_iters.run(config(), tracker)
    return folder, tracker.rows, summary


def find(rows, **labels):
    return [row for row in rows if all(row[name] == value for name, value in labels.items())]


def test_a_row_for_every_image_scale_signal_method_and_step(finished):
    _, rows, _ = finished
    looks = len(METHODS) + 3 + 2  # of the fit after 0, 2, 5 steps, of the slow curve after 0 and 2
    for image, signals in SIGNALS.items():
        mine = find(rows, image=image)
        assert {row["signal"] for row in mine} == set(signals)
        assert len(mine) == 2 * len(signals) * looks
    for row in find(rows, signal="colour"):
        assert 0 < row["loss"] < 0.5 and 5 < row["psnr"] < 60 and -1 <= row["ssim"] <= 1
    for row in rows:
        assert row["fit_seconds"] >= 0 and row["render_seconds"] > 0


def test_the_fit_does_what_it_optimises(finished):
    _, rows, _ = finished
    for image in SIGNALS:
        for scale in (8, 16):
            fitted = find(rows, image=image, scale=scale, method="fit", signal="colour")
            assert [row["step"] for row in fitted] == [0, 2, 5]
            assert fitted[0]["loss"] > fitted[1]["loss"] > fitted[2]["loss"]
            slow = find(rows, image=image, scale=scale, method="slow", signal="colour")
            assert [row["step"] for row in slow] == [0, 2]
            assert slow[0]["loss"] == fitted[0]["loss"] and slow[1]["loss"] > fitted[1]["loss"]


def test_the_curve_of_released_passes_through_the_preset():
    image = torch.rand(1, 3, 32, 48)
    (look,) = looks_at(image, [51]).values()
    preset = ua.fit(image, (4, 6), preset="released")
    for kept, direct in zip(look.fit.gaussians, preset.gaussians, strict=True):
        torch.testing.assert_close(kept, direct)


@pytest.mark.parametrize(
    ("losses", "stops"),
    [
        ([4, 4, 4], False),  # a second window is not full
        ([4, 4, 2, 2], False),
        ([4, 4, 3.9, 3.9], True),  # 2.5 % lower, and 5 % are asked for
        ([4, 4, 5, 5], True),
        ([4, 4, 3.8, 3.8], True),  # just as much as is asked for is not more
        ([9, 4, 4, 2, 2], False),
    ],
)
def test_a_stopping_rule(losses, stops):
    assert StopRule(window=2, tolerance=0.05).stops(losses) == stops


def test_a_rule_stops_where_its_loss_no_longer_falls(finished):
    _, rows, _ = finished
    for row in find(rows, method="fit, plateau"):
        labels = {"image": row["image"], "scale": row["scale"], "signal": row["signal"], "method": "fit"}
        assert 2 <= row["stopped_after"] <= 5
        for fitted in find(rows, **labels, step=row["stopped_after"]):
            for name in {"loss", "feature_rmse", "depth_rmse"} & set(row):
                assert row[name] == fitted[name]
    image = torch.rand(1, 3, 32, 48)
    never, at_once = StopRule(1, 0.0), StopRule(1, 1.0)
    settings = ua.preset("released").replace(steps=6)
    looks = ablation_iters.snapshots(settings, image, (4, 6), [], {"never": never, "at_once": at_once}, "auto")
    assert looks["never"].steps == 6 and looks["at_once"].steps == 2


def test_what_it_writes(finished):
    folder, _, summary = finished
    names = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
    assert {f"figures/convergence_x{scale}.png" for scale in (8, 16)} <= names
    for table in ("ablation_iters", "intervals", "paired", "stopping"):
        assert {f"tables/{table}_x{scale}.{kind}" for scale in (8, 16) for kind in ("md", "tex")} <= names
    assert "figures/panels_motorcycle_x16.png" in names
    assert summary["x16"]["means"]["bilinear"]["depth RMSE / bilinear"] == 1
    assert set(summary["x8"]["means"]["fit"]) == {"0", "2", "5"}
    assert summary["x8"]["best_steps"]["L1 loss"] == 5
    paired = (folder / "tables" / "paired_x8.md").read_text()
    assert "| fit 5 " in paired and "| released " in paired and "| slow 2 " in paired
    json.dumps(summary)


def test_it_goes_on_where_it_was_interrupted(finished, tmp_path, monkeypatch):
    _, rows, _ = finished
    small = config(scales=[16], baseline={}, presets=[], curves={}, stopping={}, picture=PictureConfig("none", 16, 0))

    class Stopped(Exception):
        pass

    def stop_at_fourth(*arguments, real=_bench.score):
        if len(tracker.rows) == 8:
            raise Stopped
        return real(*arguments)

    tracker = Tracker(tmp_path, {})
    monkeypatch.setattr(_bench, "score", stop_at_fourth)
    with pytest.raises(Stopped):
        ablation_iters.run(small, tracker)
    monkeypatch.undo()
    before = (tmp_path / "metrics.csv").read_text()
    assert before.count("\n") == 9  # the header and eight rows

    tracker = Tracker(tmp_path, {})
    ablation_iters.run(small, tracker)
    assert (tmp_path / "metrics.csv").read_text().count("\n") == 1 + (4 + 2) * (1 + 3)
    whole = {(row["image"], row["step"]): row for row in find(rows, method="fit", scale=16, signal="colour")}
    for row in find(tracker.rows, method="fit", signal="colour"):
        assert math.isclose(row["psnr"], whole[row["image"], row["step"]]["psnr"], rel_tol=1e-6)


def looks_at(image, steps, **changes):
    settings = ua.preset("released").replace(steps=max(steps), **changes)
    return ablation_iters.snapshots(settings, image, (4, 6), steps, {}, "auto")


def test_a_snapshot_is_what_a_shorter_fit_ends_with():
    image = torch.rand(1, 3, 32, 48)
    looked = looks_at(image, [2, 5])
    shorter = ua.fit(image, (4, 6), preset="released", steps=2)
    for kept, direct in zip(looked[2].fit.gaussians, shorter.gaussians, strict=True):
        torch.testing.assert_close(kept, direct)
    assert not torch.equal(looked[2].fit.gaussians.sigma_x, looked[5].fit.gaussians.sigma_x)


def test_a_parameterisation_without_parameters():
    looked = looks_at(torch.rand(1, 3, 16, 24), [0, 3], parameterisation="fixed")
    assert torch.equal(looked[0].fit.gaussians.sigma_x, looked[3].fit.gaussians.sigma_x)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": []}, "steps"),
        ({"steps": [-1]}, "steps"),
        ({"scales": [0]}, "scales"),
        ({"presets": ["relesed"]}, "did you mean 'released'"),
        ({"curves": {"slow": {"lrr": 0.1}}}, "did you mean 'lr'"),
        ({"curves": {"fit": {}}}, "'fit' twice"),
        ({"stopping": {"mine": {"window": 0, "tolerance": 0.1}}}, "window must be an integer >= 1, got 0"),
        ({"stopping": {"mine": {"window": 3}}}, "'mine' needs tolerance"),
        ({"stopping": {"mine": {"window": 2.7, "tolerance": 0.1}}}, "'mine': window must be an integer >= 1, got 2.7"),
        ({"stopping": {"mine": {"window": 2, "tolerance": "x"}}}, "'mine': tolerance must be a number >= 0, got 'x'"),
    ],
)
def test_bad_values(changes, words):
    with pytest.raises(ValueError, match=words):
        config(**changes)


@pytest.mark.parametrize(("scale", "steps", "words"), [(0, 1, "picture.scale"), (8, -1, "picture.steps")])
def test_bad_pictures(scale, steps, words):
    with pytest.raises(ValueError, match=words):
        PictureConfig("coffee", scale, steps)


def test_unknown_options_of_a_baseline():
    with pytest.raises(TypeError, match="unknown option of baseline 'guided_filter' 'raduis'; did you mean 'radius'"):
        _bench.of_baseline("guided_filter", {"raduis": 2})


@pytest.mark.parametrize("name", ua.PRESETS)
def test_settings_go_by_the_name_of_their_preset(name):
    assert ablation_iters.settings_name(ua.preset(name).replace(steps=7)) == name
    assert ablation_iters.settings_name(ua.preset(name).replace(sigma_r=7.0)) == "own settings"


def test_an_image_that_was_not_loaded_gives_no_picture(tmp_path):
    data = DataConfig("embedded", {"names": ["chelsea"], "size": [32, 32]})
    ablation_iters.run(config(data=data, steps=[0], scales=[16], presets=[], baseline={}), Tracker(tmp_path, {}))
    assert [path.name for path in Path(tmp_path, "figures").iterdir()] == ["convergence_x16.png"]


def test_a_picture_of_a_sample_with_normals(tmp_path):
    data = DataConfig("embedded", {"names": ["elevation"], "size": [32, 32]})
    small = config(data=data, steps=[0], scales=[8], presets=[], baseline={}, curves={}, stopping={})
    ablation_iters.run(dataclasses.replace(small, picture=PictureConfig("elevation", 8, 0)), Tracker(tmp_path, {}))
    assert (tmp_path / "figures" / "panels_elevation_x8.png").is_file()
    assert "angle of normals / bilinear" in (tmp_path / "tables" / "ablation_iters_x8.md").read_text()
