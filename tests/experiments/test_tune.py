"""One number for one setting: made as its docstring says, on development images alone."""

import math

import pytest

import ua
from experiments import _bench as bench
from experiments import tune
from ua.tracking import Tracker

SMALL = tune.Config(
    data={"embedded": {"names": ["motorcycle", "elevation"], "size": [48, 64]}},
    fit=ua.preset("default"),
    scales=[8],
    regimes=["average", "network"],
    degradation_seed=0,
    backend="torch",
    device="cpu",
)


def row(signal, method, regime="average", scene="a", **scores):
    names = {"image": scene, "scene": scene, "dataset": "d", "guide": "clean", "scale": 8}
    return {**names, "regime": regime, "signal": signal, "method": method, "step": None, **scores}


def test_score_of_rows():
    rows = [
        *(row("depth", "bilinear", scene=scene, depth_rmse=2.0) for scene in "ab"),
        row("depth", "fit", scene="a", depth_rmse=1.0),
        row("depth", "fit", scene="b", depth_rmse=4.0),  # log 1/2 + log 2: as good as bilinear
        row("labels", "bilinear", miou=0.5),
        row("labels", "fit", miou=0.75),
        row("labels", "bilinear", "network", miou=1.0),  # nothing to compare with
        row("labels", "fit", "network", miou=0.5),
        row("features", "bilinear", feature_rmse=1.0),
        row("features", "fit", feature_rmse=0.0),  # counts as a thousandth
    ]
    assert tune.score(rows) == pytest.approx((0 + math.log(0.5) + math.log(1e-3)) / 3)
    with pytest.raises(ValueError, match="nothing was measured"):
        tune.score(rows[6:8])


def test_a_setting_is_scored_on_development_images(tmp_path):
    tracker = Tracker(tmp_path, {})
    summary = tune.run(SMALL, tracker)
    assert summary["images"] == ["motorcycle"]  # the elevation is for tests
    assert {row["method"] for row in tracker.rows} == {bench.YARDSTICK, tune.METHOD}
    assert {(row["regime"], row["signal"]) for row in tracker.rows} == {
        (regime, signal) for regime in bench.REGIMES for signal in ("depth", "features", "labels")
    }
    assert summary["score"] == tune.score(tracker.rows)
    ratio = {
        row["method"]: row["depth_rmse"]
        for row in tracker.rows
        if row["signal"] == "depth" and row["regime"] == "network"
    }
    assert summary["network"]["depth middlebury"] == pytest.approx(ratio["fit"] / ratio["bilinear"])
    assert (tmp_path / "tables" / "tune_average.md").exists()
    before = list(tracker.rows)
    assert tune.run(SMALL, tracker) == summary and tracker.rows == before, "rows were measured again"


def test_worse_settings_score_worse(tmp_path):
    scores = []
    blurred = ua.preset("default").replace(
        sigma=8.0, sigma_r=1.0, radius=8, back_projections=0, leave_one_out=0, diffusions=0
    )
    for name, fit in (("default", ua.preset("default")), ("blurred", blurred)):
        fields = vars(SMALL) | {"fit": fit, "regimes": ["average"]}
        scores.append(tune.run(tune.Config(**fields), Tracker(tmp_path / name, {}))["score"])
    assert scores[0] < 0 < scores[1]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("regimes", ["averge"], "did you mean 'average'"),
        ("scales", [0], "scales must be numbers >= 1"),
        ("data", {"embeded": {}}, "did you mean 'embedded'"),
        ("data", {"embedded": {"szie": 3}}, "did you mean 'size'"),
    ],
)
def test_wrong_values_are_named(field, value, words):
    with pytest.raises((ValueError, TypeError), match=words):
        tune.Config(**vars(SMALL) | {field: value})
