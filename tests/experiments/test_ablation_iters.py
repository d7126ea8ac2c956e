"""The whole experiment on a small image: rows, sums, pictures, and going on after an interruption."""

import json
import math
from pathlib import Path

import pytest
import torch

import ua
from experiments import ablation_iters
from experiments.ablation_iters import Config, DataConfig, PictureConfig
from ua.tracking import Tracker

BASELINES = {name: {} for name in ("nearest", "bilinear", "bicubic", "jbu", "guided_filter")}


def config(**changes):
    values = {
        "data": DataConfig("embedded", {"names": ["motorcycle", "coffee"], "size": [48, 64]}),
        "fit": ua.preset("released"),
        "baseline": BASELINES,
        "presets": ["default"],
        "steps": [0, 2, 5],
        "scales": [8, 16],
        "picture": PictureConfig("motorcycle", 16, 2),
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


def test_a_row_for_every_image_scale_method_and_step(finished):
    _, rows, _ = finished
    assert len(rows) == 2 * 2 * (len(BASELINES) + 1 + 3)
    for row in rows:
        assert row["seconds"] > 0 and 0 < row["loss"] < 0.5 and 5 < row["psnr"] < 60 and -1 <= row["ssim"] <= 1
        assert row["feature_rmse"] > 0 and -1 <= row["feature_cosine"] <= 1
        assert ("depth_rmse" in row) == ("miou" in row) == (row["image"] == "motorcycle")
    depth = [row for row in rows if row["image"] == "motorcycle"]
    assert all(row["depth_rmse"] > 0 and 0 <= row["depth_delta1"] <= 1 and 0 <= row["miou"] <= 1 for row in depth)


def test_the_fit_does_what_it_optimises(finished):
    _, rows, _ = finished
    for image in ("motorcycle", "coffee"):
        for scale in (8, 16):
            fitted = [row for row in rows if (row["image"], row["scale"], row["method"]) == (image, scale, "fit")]
            assert [row["step"] for row in fitted] == [0, 2, 5]
            assert fitted[0]["loss"] > fitted[1]["loss"] > fitted[2]["loss"]


def test_what_it_writes(finished):
    folder, _, summary = finished
    names = {str(path.relative_to(folder)) for path in folder.rglob("*.*")}
    assert {f"figures/convergence_x{scale}.png" for scale in (8, 16)} <= names
    assert {f"tables/ablation_iters_x{scale}.{kind}" for scale in (8, 16) for kind in ("md", "tex")} <= names
    assert "figures/panels_motorcycle_x16.png" in names
    assert summary["x16"]["means"]["bilinear"]["depth_rmse_ratio"] == 1
    assert set(summary["x8"]["means"]["fit"]) == {"0", "2", "5"}
    assert summary["x8"]["best_steps"]["loss"] == 5
    json.dumps(summary)


def test_it_goes_on_where_it_was_interrupted(finished, tmp_path, monkeypatch):
    _, rows, _ = finished
    small = config(scales=[16], presets=[], baseline={})

    class Stopped(Exception):
        pass

    def stop_at_third(*arguments, real=ablation_iters.score_image):
        if len(tracker.rows) == 3:
            raise Stopped
        return real(*arguments)

    tracker = Tracker(tmp_path, {})
    monkeypatch.setattr(ablation_iters, "score_image", stop_at_third)
    with pytest.raises(Stopped):
        ablation_iters.run(small, tracker)
    monkeypatch.undo()
    before = (tmp_path / "metrics.csv").read_text()
    assert before.count("\n") == 4  # the header and three rows

    tracker = Tracker(tmp_path, {})
    ablation_iters.run(small, tracker)
    assert (tmp_path / "metrics.csv").read_text().startswith(before), "finished rows were touched"
    assert len(tracker.rows) == 2 * (1 + 3)
    whole = {(row["image"], row["step"]): row for row in rows if (row["method"], row["scale"]) == ("fit", 16)}
    for row in tracker.rows:
        if row["method"] == "fit":
            assert math.isclose(row["psnr"], whole[row["image"], row["step"]]["psnr"], rel_tol=1e-6)


def test_a_snapshot_is_what_a_shorter_fit_ends_with():
    image = torch.rand(1, 3, 32, 48)
    looked = ablation_iters.snapshots(config(), image, 8, [2, 5])
    shorter = ua.fit(image, (4, 6), preset="released", steps=2)
    for kept, direct in zip(looked[2].fit.gaussians, shorter.gaussians, strict=True):
        torch.testing.assert_close(kept, direct)
    assert not torch.equal(looked[2].fit.gaussians.sigma_x, looked[5].fit.gaussians.sigma_x)


def test_a_parameterisation_without_parameters():
    fixed = ua.preset("released").replace(parameterisation="fixed")
    looked = ablation_iters.snapshots(config(fit=fixed), torch.rand(1, 3, 16, 16), 8, [0, 3])
    assert torch.equal(looked[0].fit.gaussians.sigma_x, looked[3].fit.gaussians.sigma_x)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": []}, "steps"),
        ({"steps": [-1]}, "steps"),
        ({"scales": [0]}, "scales"),
        ({"presets": ["relesed"]}, "did you mean 'released'"),
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
        ablation_iters.baseline("guided_filter", {"raduis": 2}, torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize("name", ua.PRESETS)
def test_settings_go_by_the_name_of_their_preset(name):
    assert ablation_iters.settings_name(ua.preset(name).replace(steps=7)) == name
    assert ablation_iters.settings_name(ua.preset(name).replace(sigma_r=7.0)) == "own settings"


def test_an_image_that_was_not_loaded_gives_no_picture(tmp_path):
    data = DataConfig("embedded", {"names": ["chelsea"], "size": [32, 32]})
    ablation_iters.run(config(data=data, steps=[0], scales=[16], presets=[], baseline={}), Tracker(tmp_path, {}))
    assert [path.name for path in Path(tmp_path, "figures").iterdir()] == ["convergence_x16.png"]
