"""The ablations of kernel, noise, resolution and guide in a small setting, and what their tables say."""

import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments import _ablation_report, _bench, ablation_guide, ablation_kernel, ablation_noise, ablation_resolution
from ua import datasets
from ua._command_line import CONFIGS, RUN_KEYS, typed
from ua.run import register_presets
from ua.statistics import Comparison, Interval
from ua.tracking import Tracker

MODULES = {
    "ablation_kernel": ablation_kernel,
    "ablation_noise": ablation_noise,
    "ablation_resolution": ablation_resolution,
    "ablation_guide": ablation_guide,
}
SMALL = {
    "ablation_kernel": ["scales=[8]", "regimes=[network]"],
    "ablation_noise": [
        "scales=[8]",
        "guides=[salt_and_pepper_20,gaussian_40]",
        "pictured=[clean,gaussian_40]",
        "~severities.gaussian_noise_of_255",
        "~severities.salt_and_pepper_percent",
        "+severities.impulses={clean: 0, salt_and_pepper_20: 20}",
    ],
    "ablation_resolution": ["cells=[2,4]", "output=32", "outputs=[16,80]", "output_cells=4", "picture=coffee"],
    "ablation_guide": ["scales=[8]", "~data.satellite"],
}
TRANSFER = {"motorcycle": ["features", "depth", "labels"], "coffee": ["features"]}


def config(name, *overrides):
    """The experiment's own YAML with a few tiny images."""
    register_presets()
    small = ["~data.shared", "+data.embedded.names=[motorcycle,coffee]", "data.embedded.size=[48,64]", "device=cpu"]
    with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        values = compose("config", [f"experiment={name}", *small, *SMALL[name], *overrides])
    own = OmegaConf.masked_copy(values, [str(key) for key in values if key not in RUN_KEYS])
    return typed(MODULES[name].Config, own)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """name -> (folder, rows, summary), run when it is first asked for."""
    done = {}

    def get(name):
        if name not in done:
            tracker = Tracker(tmp_path_factory.mktemp(name), {})
            summary = MODULES[name].run(config(name), tracker)
            done[name] = tracker.folder, tracker.rows, summary
        return done[name]

    return get


def find(rows, **labels):
    return [row for row in rows if all(row[name] == value for name, value in labels.items())]


def tables(folder):
    return {path.stem for path in (folder / "tables").glob("*.md")}


@pytest.mark.parametrize("name", MODULES)
def test_it_reports_reconstruction_and_transfer(finished, name):
    folder, rows, summary = finished(name)
    json.dumps(summary)
    assert {"colour", "features", "depth", "labels"} == {row["signal"] for row in rows}
    assert {row["regime"] for row in rows} >= {_bench.IMAGE}
    for row in find(rows, signal="colour"):
        assert 0 <= row["loss"] < 0.5 and -1 <= row["ssim"] <= 1
    assert all(0 < row["feature_rmse"] < 3 for row in find(rows, signal="features"))
    assert all(row["fit_seconds"] >= 0 and row["render_seconds"] > 0 for row in rows)
    assert any(path.stem.endswith("_paired") for path in (folder / "tables").glob("*.tex"))
    assert list((folder / "figures").glob("*.png"))


@pytest.mark.parametrize("name", MODULES)
def test_what_is_measured_is_not_measured_again(finished, name, monkeypatch):
    folder, rows, _ = finished(name)
    before = (folder / "metrics.csv").read_bytes()
    monkeypatch.setattr(_bench, "score", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(MODULES[name], "report", lambda *_: {})
    tracker = Tracker(folder, {})
    MODULES[name].run(config(name), tracker)
    assert len(tracker.rows) == len(rows) and (folder / "metrics.csv").read_bytes() == before


def test_every_setting_of_the_kernel_has_its_rows(finished):
    folder, rows, _ = finished("ablation_kernel")
    known = config("ablation_kernel")
    settings = ablation_kernel.settings(known)
    assert len(settings) >= 26 and settings["radius: 4"].radius == 4 and settings["loss: l2"].objective == "l2"
    methods = {"bilinear", *known.baseline, *known.presets, *settings}
    for image, signals in TRANSFER.items():
        mine = find(rows, image=image)
        assert {row["method"] for row in mine} == methods
        assert len(mine) == len(methods) * (len(signals) + 1)
    text = (folder / "tables" / "ablation_kernel_network.md").read_text()
    assert "| factor " in text and "| log_covariance " in text
    assert {"ablation_kernel_network", "ablation_kernel_network_paired"} <= tables(folder)


def test_a_spoiled_guide_spoils_what_has_a_guide(finished):
    folder, rows, summary = finished("ablation_noise")
    for method in ("bilinear", "released", "default_without_remedy"):
        labels = {"image": "motorcycle", "regime": "average", "signal": "depth", "method": method}
        (clean,), (spoiled,) = (find(rows, guide=guide, **labels) for guide in ("clean", "salt_and_pepper_20"))
        assert (clean["depth_rmse"] == spoiled["depth_rmse"]) == (method == "bilinear")
    for row in find(rows, signal="colour", guide="clean"):
        assert row["psnr_clean"] == row["psnr"]
    noisy = find(rows, signal="colour", guide="gaussian_40", method="released")
    assert all(row["psnr_clean"] != row["psnr"] for row in noisy)
    assert summary["average"]["cost"]["gaussian_40"]["features"]["bilinear"] == 1
    assert {"cost_average", "ablation_noise_average_gaussian_40"} <= tables(folder)
    figures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {"impulses_average", "panels_motorcycle"} <= figures


def test_every_size_has_its_rows(finished):
    folder, rows, _ = finished("ablation_resolution")
    assert {(row["output"], row["cells"]) for row in rows} == {(32, 2), (32, 4), (16, 4), (80, 4)}
    assert {row["image"] for row in rows} == {f"{name} {side}" for name in TRANSFER for side in (16, 32, 80)}
    assert {row["scene"] for row in rows} == set(TRANSFER)
    assert "ablation_resolution_average_80px_4cells" in tables(folder)
    assert {"cells_average", "output_average", "panels_coffee"} == {
        path.stem for path in (folder / "figures").iterdir()
    }


def test_a_resized_sample():
    (sample,) = datasets.load("embedded", names=["motorcycle"], size=(48, 64))
    whole = ablation_resolution.resized(sample, 48)
    assert torch.equal(whole.image, sample.image[:, :, 8:56]) and torch.equal(whole.labels, sample.labels[:, 8:56])
    assert torch.equal(whole.depth, sample.depth[:, :, 8:56])
    small = ablation_resolution.resized(sample, 16)
    torch.testing.assert_close(small.image.mean(), whole.image.mean())
    assert torch.equal(small.labels, whole.labels[1::3, 1::3])
    large = ablation_resolution.resized(sample, 96)
    assert torch.equal(large.labels[::2, ::2], whole.labels) and torch.equal(large.labels[1::2, 1::2], whole.labels)
    assert (large.depth[0][large.depth_valid] > 0).all() and large.image.min() >= 0 and large.image.max() <= 1


def test_no_guide_sees_the_truth(finished):
    folder, rows, _ = finished("ablation_guide")
    for guide in ablation_guide.SEES_DEPTH:
        assert {row["signal"] for row in find(rows, guide=guide)} == {"colour", "features"}  # labels are of depth
    assert {row["signal"] for row in find(rows, guide="self")} == {"features", "depth", "labels"}
    assert not find(rows, guide="all_bands") and not find(rows, image="coffee", guide="depth")
    colours = {row["guide"]: row["psnr"] for row in find(rows, image="coffee", signal="colour", method="bilinear")}
    assert len(set(colours.values())) == 5  # each guide is its own image
    assert {"guides_average_default_paired", "ablation_guide_average_grey"} <= tables(folder)


def test_guides_of_a_sample():
    (sample,) = datasets.load("embedded", names=["motorcycle"], size=(48, 64))
    maps = {name: make(sample) for name, make in ablation_guide.GUIDES.items()}
    channels = {name: len(pixels) for name, pixels in maps.items() if pixels is not None}
    assert channels == {"rgb": 3, "grey": 1, "red": 1, "green": 1, "blue": 1, "depth": 1, "rgb_and_depth": 4}
    assert (maps["depth"][0][~sample.depth_valid] == 0.5).all()
    assert all(pixels.min() >= 0 and pixels.max() <= 1 for pixels in maps.values() if pixels is not None)
    low = torch.rand(1, 5, 6, 8)
    guide = ablation_guide.self_guide(low, None, sample.image[None])
    assert guide.shape == (1, 3, 48, 64) and guide.min() >= 0 and guide.max() <= 1


@pytest.mark.parametrize(
    ("difference", "p", "kind", "mark"),
    [
        (-0.1, 0.01, "ratio", "+"),
        (0.1, 0.01, "ratio", "-"),
        (0.1, 0.01, "points", "+"),
        (0.1, 0.05, "points", ""),
    ],
)
def test_marks_of_significance(difference, p, kind, mark):
    comparison = Comparison(Interval(difference, difference, difference), 3, 9, p)
    modality = _ablation_report.Modality("x", kind)
    assert _ablation_report.sign(comparison, modality) == mark
    marked = _ablation_report.marked("1.0", modality, {"bilinear": comparison, "released": None})
    assert marked == ("1.0" + (f" b{mark}" if mark else ""))


@pytest.mark.parametrize(
    ("name", "override", "words"),
    [
        ("ablation_kernel", "+factors.radius.x={radiuss: 2}", "did you mean 'radius'"),
        ("ablation_kernel", "only=[sigma,radus]", "did you mean 'radius'"),
        ("ablation_kernel", "only=[]", "only must name at least one of form, radius"),
        ("ablation_kernel", "base=relesed", "did you mean 'released'"),
        ("ablation_kernel", "regimes=[average,average]", "regimes must name each once, got 'average' twice"),
        ("ablation_noise", "+variants.bilinear={preset: released}", "'bilinear' twice"),
        ("ablation_noise", "+variants.7={preset: released}", "names that are no numbers, got '7'"),
        ("ablation_resolution", "outputs=[8]", "must be at least 11, the window of SSIM"),
        ("ablation_noise", "guides=[jpg]", "did you mean 'jpeg'"),
        ("ablation_noise", "+severities.noise={gaussian_40: x}", "gaussian_40 must be a number, got 'x'"),
        ("ablation_noise", "pictured=[gaussian_4]", "did you mean 'gaussian_40'"),
        ("ablation_resolution", "cells=[64]", "output must be at least the most cells, 64"),
        ("ablation_resolution", "outputs=[]", "outputs must be numbers"),
        ("ablation_guide", "guides=[gray]", "did you mean 'grey'"),
        ("ablation_guide", "split=tst", "did you mean 'test'"),
    ],
)
def test_bad_values(name, override, words):
    with pytest.raises((TypeError, ValueError), match=words):
        config(name, override)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("ablation_guide", ["guides=[self]"]),
        ("ablation_guide", ["guides=[all_bands]"]),
        ("ablation_kernel", ["scales=[1]", "presets=[paper]", "base=default", "only=[radius]"]),
        ("ablation_noise", ["guides=[jpeg]", "pictured=[clean]", "presets=[]", "baseline=nearest"]),
        ("ablation_resolution", ["cells=[1]", "outputs=[16]", "output_cells=16", "presets=[default]"]),
    ],
)
def test_odd_settings_are_measured_and_drawn(name, overrides, tmp_path):
    small = config(name, "data.embedded.size=[16,32]", *overrides)
    small.data["embedded"]["names"] = ["coffee"]
    assert MODULES[name].run(small, Tracker(tmp_path, {}))["images"] == ["coffee"]


def test_the_base_is_measured_and_what_all_are_compared_with(tmp_path):
    few = config("ablation_kernel", "base=default", "presets=[paper]", "baseline=nearest", "only=[colours]")
    tracker = Tracker(tmp_path, {})
    ablation_kernel.run(few, tracker)
    assert {row["method"] for row in tracker.rows} == {"bilinear", "nearest", "paper", "default", "colours: lab"}
    text = (tmp_path / "tables" / "ablation_kernel_network_paired.md").read_text()
    assert "| colours: lab | default " in text and "| colours: lab | bilinear" in text


@pytest.mark.parametrize(
    ("name", "overrides", "pictures"),
    [
        ("ablation_noise", ["guides=[jpeg]", "pictured=[blur,jpeg]"], {"panels_motorcycle"}),
        ("ablation_noise", ["guides=[jpeg]", "pictured=[blur]"], set()),
        ("ablation_noise", ["guides=[jpeg]", "pictured=[jpeg]", "picture=null"], set()),
        ("ablation_guide", ["guides=[rgb]", "picture=null"], set()),
        ("ablation_resolution", ["picture=null"], set()),
    ],
)
def test_nothing_is_pictured_that_was_not_asked_for(name, overrides, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(_bench, "measure", lambda *_, **__: None)
    monkeypatch.setattr(MODULES[name], "report", lambda *_: {})
    MODULES[name].run(config(name, *overrides), Tracker(tmp_path, {}))
    assert {path.stem for path in (tmp_path / "figures").glob("*")} == pictures


def test_a_shrunk_image_stays_in_its_range():
    sample = datasets.Sample("x", torch.ones(3, 48, 48))
    assert ablation_resolution.resized(sample, 23).image.max() <= 1
