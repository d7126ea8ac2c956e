"""Reading results: what the report finds in run folders, what it writes, and that it touches nothing else."""

import base64
import csv
import functools
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from experiments import _report_figures as figures_of
from experiments import _report_measures as measures_of
from experiments import _report_page as page_of
from experiments import _report_runs as runs_of
from experiments import _report_studies as studies_of
from experiments import report
from experiments._report_figures import number_format
from experiments._report_studies import Choice, Line
from ua import plots, run, tracking
from ua.statistics import bootstrap_mean
from ua.tracking import Tracker, write_text

IMAGES = ("coffee", "rocket", "chelsea")
VOID = {"area", "base", "br", "col", "hr", "img", "input", "link", "meta", "source"}


@pytest.fixture(scope="module", autouse=True)
def one_environment():
    """Asks Git for the commit once, and not for each of many small runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "environment", functools.cache(tracking.environment))
        yield


def make_run(folder, config, values, *, finish=True, name="toy", score=None):
    """A run folder with rows of a fit at steps 0 and 5 and of a baseline; `values(image, step)`: the fit's PSNR."""
    command = f"python -m ua.run experiment={name}"
    with Tracker(folder, {"module": name, **config}, seed=config.get("seed", 0), command=command) as tracker:
        for number, image in enumerate(IMAGES):
            tracker.log({"psnr": 20.0 + number, "seconds": 0.1}, image=image, scale=8, method="bilinear")
            for step in (0, 5):
                tracker.log(
                    {"psnr": values(number, step), "seconds": 0.2 + step}, step=step, image=image, scale=8, method="fit"
                )
        if finish:
            tracker.summary({"ok": 1} if score is None else {"score": score})
    return folder


def sweep(root, *, seeds=(0,), sigmas=(8, 16), ranges=(0.06, 0.12, 0.24)):
    for seed in seeds:
        for sigma in sigmas:
            for number, sigma_r in enumerate(ranges):
                config = {"seed": seed, "fit": {"sigma": sigma, "sigma_r": sigma_r, "steps": 51}}
                values = lambda image, step, gain=number + sigma / 8 + seed: 25.0 + image * gain + step  # noqa: E731
                make_run(root / f"{seed}-{sigma}-{number}", config, values)
    return root


def make_report(folder, runs, **changes):
    changes = {"measures": ["psnr"], **changes}  # every measure is pictures that take their time
    with Tracker(folder, {}, command="python -m ua.run experiment=report runs=here") as tracker:
        summary = report.run(report.Config(runs if isinstance(runs, list) else str(runs), **changes), tracker)
        tracker.summary(summary)
    return summary


def study_of(root, **choice):
    (study,) = studies_of.studies(runs_of.find_runs([str(root)])[0], Choice(**choice))
    return study


def table(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


class Page(HTMLParser):
    """Checks nesting while it reads; keeps text, attributes and headings."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.attributes, self.tags = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def two_keys(tmp_path_factory):
    """A sweep over two keys with a picture and a text that would be markup, and the report about it."""
    root = tmp_path_factory.mktemp("results")
    sweep(root / "<script>alert(1)</script>")
    (figures := root / "<script>alert(1)</script>" / "0-8-0" / "figures").mkdir()
    Image.fromarray(np.full((30, 3000, 3), 200, np.uint8)).save(figures / "panels.png")
    before = snapshot(root)
    out = tmp_path_factory.mktemp("report")
    summary = make_report(out, root)
    assert snapshot(root) == before, "the runs were touched"
    return root, out, summary


def snapshot(root):
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files}


def test_swept_keys_and_references_are_found(two_keys):
    root, _, summary = two_keys
    study = study_of(root)
    assert study.keys == study.axes == ["fit.sigma", "fit.sigma_r"]
    assert study.values == {"fit.sigma": ["8", "16"], "fit.sigma_r": ["0.06", "0.12", "0.24"]}
    assert study.constant == {"scale": 8} and study.unit == "image" and study.blocks == [()]
    assert Line(None, (), (("method", "bilinear"),)) in study.lines, "a baseline is the same in every setting"
    assert len(study.lines) == 2 * 3 + 1
    best = summary["experiments"]["toy"]["best"]["toy"]["psnr"]
    assert best == {"best": ["sigma 16, sigma_r 0.24"], "mean": 34.0}


def test_intervals_are_those_of_the_statistics(two_keys):
    _, out, _ = two_keys
    row = next(row for row in table(out / "tables" / "toy_all.csv") if row["fit.sigma"] == "16" and row["step"] == "5")
    expected = bootstrap_mean([30.0 + image * 2 for image in range(3)])
    assert [float(row[name]) for name in ("psnr", "psnr_low", "psnr_high")] == [
        expected.mean,
        expected.low,
        expected.high,
    ]
    assert row["psnr_n"] == "3" and row["fit.sigma_r"] == "0.06" and row["runs"].endswith("0-16-0")


def test_seeds_are_pooled_by_image(tmp_path):
    study = study_of(sweep(tmp_path, seeds=(0, 1, 2), sigmas=(8,), ranges=(0.1, 0.2)))
    assert study.axes == ["fit.sigma_r"] and [len(runs) for runs in study.settings.values()] == [3, 3]
    line = Line(("0.1",), (), (("method", "fit"),))
    estimate = study.lines[line][5]["psnr"]
    assert estimate.interval == bootstrap_mean([30.0 + image * 2 for image in range(3)]) and estimate.count == 3
    apart = study_of(tmp_path, pool=[])
    assert apart.axes == ["seed", "fit.sigma_r"], "a seed that is not pooled is a key like any other"


def test_where_measures_and_by(two_keys):
    root, _, _ = two_keys
    study = study_of(root, where={"method": "fit", "step": 0, "fit.sigma": [8]}, measures=["psnr"])
    assert study.axes == ["fit.sigma_r"] and study.measures == ["psnr"]
    assert {step for steps in study.lines.values() for step in steps} == {0}
    scales = study_of(root, by=["scale", "method"])
    assert scales.blocks == [(("scale", 8),)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measures": ["pnsr"]}, "unknown measure in measures 'pnsr'; did you mean 'psnr'"),
        ({"where": {"metod": "fit"}}, "unknown label or key in where 'metod'; did you mean 'method'"),
        ({"where": {"method": "fti"}}, "unknown value in where.method 'fti'; did you mean 'fit'"),
        ({"where": {"fit.sigma": 9}}, r"unknown value in where.fit.sigma 9.*\(accepted: 8, 16\)"),
        ({"where": {"method": "bilinear", "step": 5, "fit.sigma": 8}, "by": ["imagee"]}, "did you mean 'image'"),
        ({"better": {"psnr": "maximum"}}, "unknown direction in better.psnr 'maximum'; did you mean 'max'"),
        ({"pool": ["sed"]}, "unknown key or label in pool 'sed'; did you mean 'seed'"),
    ],
)
def test_typos_name_the_nearest(two_keys, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        make_report(tmp_path, two_keys[0], **changes)
    assert not (tmp_path / "report.html").exists()


def test_refusals(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no run folder in there"):
        make_report(tmp_path / "out", tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"runs=.*nowhere: no such folder"):
        make_report(tmp_path / "out", tmp_path / "nowhere")
    for wrong in ([], 3, [""], None):
        with pytest.raises(ValueError, match="runs must be a folder or a list of folders"):
            report.Config(wrong)
    with pytest.raises(ValueError, match="pictures must be >= 0"):
        report.Config("x", pictures=-1)


def test_unfinished_and_broken_runs(tmp_path):
    root = sweep(tmp_path / "runs", sigmas=(8,), ranges=(0.1,))
    make_run(root / "stopped", {"fit": {"sigma": 99}}, lambda image, step: 1.0, finish=False)
    with (root / "stopped" / "metrics.csv").open("a") as file:
        file.write("coffee,8,fit,9,0.1")  # cut off
    make_run(root / "odd", {}, lambda image, step: 1.0)
    (root / "odd" / "metrics.csv").write_text("image,step,psnr\na,1\n")
    make_run(root / "lost", {}, lambda image, step: 1.0)
    (root / "lost" / "config.yaml").unlink()
    write_text(root / "text" / "environment.json", "{")
    write_text(root / "text" / "config.yaml", "a: 1")
    before = snapshot(root)

    summary = make_report(tmp_path / "out", root)
    assert (summary["runs"], summary["unfinished"], summary["broken"]) == (2, 1, 3)
    states = {row["run"]: row["state"] for row in table(tmp_path / "out" / "tables" / "runs.csv")}
    assert states["runs/0-8-0"] == "finished" and states["runs/stopped"] == "unfinished, not used"
    assert "2 cells in line 2, 3 in its first" in states["runs/odd"]
    assert states["runs/lost"] == "broken: config.yaml is missing"
    assert "environment.json is no JSON" in states["runs/text"]
    assert {row["run"] for row in table(tmp_path / "out" / "tables" / "rows.csv")} == {"runs/0-8-0"}

    make_report(tmp_path / "more", root, unfinished=True)
    rows = table(tmp_path / "more" / "tables" / "rows.csv")
    assert {row["run"]: row["finished"] for row in rows} == {"runs/0-8-0": "True", "runs/stopped": "False"}
    assert sum(row["run"] == "runs/stopped" for row in rows) == 9, "the line that was cut off does not count"
    assert snapshot(root) == before

    with pytest.raises(ValueError, match=r"1 unfinished runs, none to report on \(unfinished=true"):
        make_report(tmp_path / "none", root / "stopped")


def test_the_page_stands_alone(two_keys):
    _, out, _ = two_keys
    text = (out / "report.html").read_text()
    page = Page(text)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "srcset", "action", "data"):
            assert value.startswith(("#", "data:image/webp;base64,")), (tag, name, value[:60])
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert "http" not in text and "@import" not in text and "script" not in page.tags
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    linked = [value[1:] for _, name, value in page.attributes if name == "href" and value.startswith("#")]
    assert set(linked) <= set(ids)
    assert all(value for tag, name, value in page.attributes if tag == "img" and name == "alt")
    assert page.tags.count("img") == sum(tag == "img" and name == "alt" for tag, name, _ in page.attributes) == 1
    figures = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    assert sum("heat map over sigma and sigma_r" in value for value in figures) == 1
    assert sum("against step: sigma 8, sigma_r 0.06 26 to 31" in value for value in figures) == 1


def test_everything_is_escaped(two_keys, tmp_path):
    _, out, _ = two_keys
    text = (out / "report.html").read_text()
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;/0-8-0" in text
    config = {"fit": {"name": "<b>&bold"}}
    make_run(tmp_path / "runs" / "a", config, lambda image, step: 25.0 + image)
    make_run(tmp_path / "runs" / "b", {"fit": {"name": '"><img src=x>'}}, lambda image, step: 26.0 + image)
    make_report(tmp_path / "out", tmp_path / "runs", title="</title><i>")
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert not {"img", "b>", "i"} & set(page.tags) and "</title><i>" in page.text


def test_numbers_stand_right_and_the_best_is_bold(two_keys):
    _, out, _ = two_keys
    text = (out / "report.html").read_text()
    head = '<th scope="row">16</th><th scope="row">0.24</th><th scope="row">fit</th>'
    assert re.search(
        rf'{head}\s*<td class="number best"><b>34.00</b>',
        text,
    )
    assert re.search(
        r'<tr class="reference"><th scope="row" colspan="3">bilinear</th>\s*<td class="number">21.00<small>', text
    )
    markdown = (out / "tables" / "toy_means.md").read_text()
    assert "**34.00**" in markdown and markdown.count("**34.00**") == 1 and "[30.00, 38.00]" in markdown


def test_a_heat_map_for_two_keys_and_lines_for_one(two_keys, tmp_path):
    _, out, _ = two_keys
    assert {path.name for path in (out / "figures").iterdir()} == {"toy_heat_maps_fit.png", "toy_convergence.png"}
    make_report(tmp_path / "one", two_keys[0], where={"fit.sigma": 8})
    assert {path.name for path in (tmp_path / "one" / "figures").iterdir()} == {"toy_key.png", "toy_convergence.png"}
    figures = re.findall(r'aria-label="(psnr[^"]*)"', (tmp_path / "one" / "report.html").read_text())
    assert figures[0] == "psnr ↑ against sigma_r: fit 31 to 33; bilinear 21"


def test_three_keys_are_sorted_with_a_marginal_for_each(tmp_path):
    for number, (sigma, rate, mode) in enumerate([(8, 0.1, "a"), (8, 0.2, "b"), (16, 0.1, "b"), (16, 0.2, "a")]):
        config = {"fit": {"sigma": sigma, "lr": rate}, "mode": mode}
        make_run(tmp_path / "runs" / str(number), config, lambda image, step, gain=number: 25.0 + image + gain)
    make_report(tmp_path / "out", tmp_path / "runs")
    names = {path.stem for path in (tmp_path / "out" / "figures").iterdir()}
    assert names == {"toy_marginal_sigma", "toy_marginal_lr", "toy_marginal_mode", "toy_convergence"}
    assert [row["psnr"] for row in table(tmp_path / "out" / "tables" / "toy_all.csv")] == [
        "29.0",
        "28.0",
        "27.0",
        "26.0",
        "21.0",
    ]
    labels = re.findall(r'aria-label="(psnr[^"]*)"', (tmp_path / "out" / "report.html").read_text())
    assert "psnr ↑ against sigma: fit 26.5 to 28.5; bilinear 21" in labels


def test_latex_has_no_bare_special_characters(tmp_path):
    for name in ("50%_$x$", "a&b#{c}~^\\"):
        make_run(tmp_path / "runs" / name[:1], {"fit": {"kind": name}}, lambda image, step, n=name: 25.0 + len(n))
    make_report(tmp_path / "out", tmp_path / "runs")
    text = (tmp_path / "out" / "tables" / "toy_means.tex").read_text()
    assert r"50\%\_\$x\$" in text and r"a\&b\#\{c\}\textasciitilde{}\textasciicircum{}\textbackslash{}" in text
    assert r"psnr 95 \%" in text and r"fit.kind" in text


def test_the_same_runs_give_the_same_bytes(two_keys, tmp_path):
    root, out, _ = two_keys
    make_report(tmp_path, root)
    for path in (path for path in out.rglob("*") if path.is_file() and path.name != "environment.json"):
        assert path.read_bytes() == (tmp_path / path.relative_to(out)).read_bytes(), path.name


def test_reports_are_no_results_and_may_lie_among_them(tmp_path):
    sweep(tmp_path, sigmas=(8,))
    with Tracker(tmp_path / "report", {"module": "report"}, command="python -m ua.run experiment=report") as tracker:
        first = report.run(report.Config(str(tmp_path), measures=["psnr"]), tracker)
        tracker.summary(first)
    runs, broken = runs_of.find_runs([str(tmp_path), str(tmp_path / "0-8-0")])
    assert [run.folder.name for run in runs] == ["0-8-0", "0-8-1", "0-8-2"] and not broken and first["runs"] == 3


def test_pictures_have_their_limit(two_keys, tmp_path):
    make_report(tmp_path, two_keys[0], pictures=0)
    text = (tmp_path / "report.html").read_text()
    assert "<img" not in text and "0-8-0/figures/panels.png" in text
    image = re.search(r'src="data:image/webp;base64,([^"]+)"', (two_keys[1] / "report.html").read_text())
    with Image.open(io.BytesIO(base64.b64decode(image.group(1)))) as picture:
        assert picture.size == (1400, 14)


def test_several_experiments_runs_without_rows_and_other_commits(tmp_path):
    make_run(tmp_path / "a", {"fit": {"sigma": 8}}, lambda image, step: 25.0 + image, name="first")
    make_run(tmp_path / "b", {"fit": {"sigma": 16}}, lambda image, step: 26.0 + image, name="first")
    environment = json.loads((tmp_path / "b" / "environment.json").read_text())
    (tmp_path / "b" / "environment.json").write_text(json.dumps(environment | {"commit": "f" * 40, "dirty": False}))
    make_run(tmp_path / "c", {}, lambda image, step: 25.0 + image, name="second")
    with Tracker(tmp_path / "d", {"module": "third"}) as tracker:
        tracker.summary({})
    study = studies_of.studies(runs_of.find_runs([str(tmp_path / name) for name in "ab"])[0], Choice())[0]
    assert study.keys == ["commit", "fit.sigma"] and study.axes == ["fit.sigma"], "sigma says which commit it was"
    summary = make_report(tmp_path / "out", [str(tmp_path / name) for name in "abcd"])
    assert set(summary["experiments"]) == {"first", "second"} and summary["runs"] == 4
    text = "".join(Page((tmp_path / "out" / "report.html").read_text()).text)
    assert "fffffffff" in text and "third" in text and "4 runs" in text


def test_an_exchanged_group_is_one_key(tmp_path):
    for number, (name, options) in enumerate([("bilinear", {}), ("jbu", {"sigma": 0.4, "radius": 2})] * 2):
        config = {"baseline": {name: options}, "fit": {"sigma": 8 * (1 + number // 2)}}
        make_run(tmp_path / str(number), config, lambda image, step, n=number: 25.0 + n)
    study = study_of(tmp_path)
    assert study.keys == study.axes == ["baseline", "fit.sigma"]
    assert study.values["baseline"] == ["bilinear", "jbu"]


def test_keys_that_change_together_share_an_axis_unless_they_may_be_random(tmp_path):
    for number, (size, name) in enumerate([(64, "small"), (96, "large"), (128, "huge")]):
        make_run(tmp_path / "a" / str(number), {"size": size, "name": name}, lambda image, step, n=number: 25.0 + n)
        config = {"lr": 0.1 + 0.03 * number, "sigma": 9.0 - number**2}
        make_run(tmp_path / "b" / str(number), config, lambda image, step, n=number: 25.0 + n)
    assert study_of(tmp_path / "a").axes == ["size"]
    random = study_of(tmp_path / "b")
    assert random.axes == ["lr", "sigma"]
    names = [chart.name for chart in figures_of.charts(random, (), False)]
    assert names == ["toy_marginal_lr", "toy_marginal_sigma", "toy_convergence"], "a heat map would be mostly holes"


def test_one_setting_alone_has_no_plot_over_keys(tmp_path):
    for number, method in enumerate(("fit", "jbu")):
        with Tracker(tmp_path / method, {"module": "toy", "size": number}) as tracker:
            tracker.log({"seconds": 1.0 + number}, method=method)
            tracker.summary({})
    study = study_of(tmp_path)
    assert study.axes == ["size"] and study.unit == "run" and figures_of.charts(study, (), False) == []
    assert figures_of.means_words(study, ()) == "Means over 1 run."


def test_many_lines_are_cut_and_it_is_said(tmp_path):
    with Tracker(tmp_path, {"module": "many"}) as tracker:
        for number in range(14):
            for step in (0, 1):
                tracker.log({"loss": 1.0 + number}, step=step, image="coffee", method=f"m{number}")
        tracker.summary({})
    (chart,) = figures_of.charts(study_of(tmp_path), (), False)
    assert [*chart.legend] == [f"m{number}" for number in range(12)], "the best"
    assert "12 of 14 lines" in chart.caption and len({str(style) for style in chart.legend.values()}) == 12


def test_factors_are_kept_apart_and_what_varies_with_the_image_is_averaged(tmp_path):
    with Tracker(tmp_path, {"module": "wide"}) as tracker:
        for number, image in enumerate(IMAGES):
            for scale in range(30):
                for method in ("fit", "jbu"):
                    row = {"miou": 0.5 + number / 10 + scale / 100, "seconds": float("inf") if scale == 3 else 1.0}
                    labels = {"scene": f"s{number // 2}", "dataset": image, "scale": scale, "view": 30 * number + scale}
                    tracker.log(row, image=image, **labels, method=method)
        tracker.summary({})
    study = study_of(tmp_path)
    assert study.unit == "scene" and study.measures == ["miou", "seconds"] and study.dropped == 6
    assert {name: len(values) for name, values in study.averaged.items()} == {"dataset": 3, "view": 90}
    assert study.blocks == [(("scale", scale),) for scale in range(30)]
    assert study.lines[Line((), (("scale", 3),), (("method", "fit"),))][None]["miou"].count == 2
    assert len(study_of(tmp_path, by=["dataset", "method"]).lines) == 6
    pooled = study_of(tmp_path, pool=["seed", "scale"])
    assert len(pooled.lines) == 2 and len(pooled.averaged["scale"]) == 30, "unless one asks for it"

    make_report(tmp_path / "out", tmp_path, measures=["miou"])
    page = "".join(Page((tmp_path / "out" / "report.html").read_text()).text)
    assert "scale 23" in page and "6 more tables (scale 24, scale 25, scale 26 and 3 more) can be read in" in page
    assert len(table(tmp_path / "out" / "tables" / "wide_all.csv")) == 60 and page_of.MOST_BLOCKS == 24
    assert (tmp_path / "out" / "tables" / "wide_means_29.md").exists()


BENCH = {"depth": {"depth_rmse": 4.0}, "labels": {"miou": 0.5}, "colour": {"psnr": 25.0}}
FACTOR = {"bilinear": 1.0, "jbu": 0.75, "fit": 0.5}


def bench(folder, *, methods=tuple(FACTOR), guides=("clean", "blur"), regimes=("average", "network"), name="bench"):
    """A run as those of the bench: three signals, of which colour has one regime; depth in units of the data set."""
    with Tracker(folder, {"module": name}) as tracker:
        for unit, image in enumerate(IMAGES[:2], start=1):
            places = [(guide, regime, signal) for guide in guides for regime in regimes for signal in BENCH]
            for guide, regime, signal in places:
                for method in methods if signal != "colour" or regime == "average" else ():
                    scores = {score: value * FACTOR[method] * unit**5 for score, value in BENCH[signal].items()}
                    values = scores | {"judged_average": float(regime == "average"), "fit_seconds": 0.1 * unit}
                    labels = {"image": image, "dataset": image, "guide": guide, "regime": regime, "signal": signal}
                    tracker.log(values, **labels, method=method)
        tracker.summary({})
    return folder


def test_signals_are_told_apart_by_their_measures(tmp_path):
    study = study_of(bench(tmp_path))
    assert study.blocks == [
        (("guide", guide), ("regime", regime)) for guide in ("clean", "blur") for regime in ("average", "network")
    ]
    assert study.averaged == {"dataset": ["coffee", "rocket"]} and study.mixed == ["fit_seconds"]
    assert study.measures == ["depth_rmse / bilinear", "miou", "psnr", "fit_seconds"], "images decide judged_average"
    assert study_of(tmp_path, measures=["judged_average"]).measures == ["judged_average"], "asked for"
    with Tracker(tmp_path / "same", {"module": "toy"}) as tracker:
        for signal, miou in (("labels", 0.5), ("prediction", 0.9)):
            tracker.log({"miou": miou}, image="coffee", signal=signal, method="fit")
        tracker.summary({})
    assert study_of(tmp_path / "same").lines.keys() == {
        Line((), (), (("signal", "labels"),)),
        Line((), (), (("signal", "prediction"),)),
    }


def test_errors_are_ratios_to_bilinear_image_by_image(tmp_path):
    for where in ({}, {"method": "fit"}):
        study = study_of(bench(tmp_path / str(len(where))), where=where, measures=["depth_rmse"])
        line = next(line for line in study.lines if ("method", "fit") in (*line.labels, *line.block) or where)
        estimate = study.final(line)["depth_rmse / bilinear"]
        assert estimate.members == {"coffee": 0.5, "rocket": 0.5}, "whatever the unit and whatever is shown"
        assert study.better == {"depth_rmse / bilinear": "min"} and "dataset" in study.averaged
    better = study_of(tmp_path / "0", measures=["depth_rmse"], better={"depth_rmse": "max"}).better
    assert better == {"depth_rmse / bilinear": "max"}


def test_without_bilinear_errors_of_data_sets_are_kept_apart(tmp_path):
    study = study_of(bench(tmp_path, methods=("jbu", "fit"), guides=("clean",), regimes=("average",)))
    assert study.blocks == [(("dataset", "coffee"),), (("dataset", "rocket"),)]
    means = [study.final(line)["depth_rmse"].mean for line in study.lines]
    assert means == [3.0, 2.0, 96.0, 64.0] and "dataset" not in study.averaged
    psnr = study_of(tmp_path, measures=["psnr"])
    assert psnr.blocks == [()], "which does not matter to other measures"


def test_an_error_of_zero_is_nothing_to_divide_by(tmp_path):
    with Tracker(tmp_path, {"module": "toy"}) as tracker:
        for image, error in (("coffee", 0.0), ("rocket", 2.0)):
            for method, factor in FACTOR.items():
                tracker.log({"normal_angle": error * factor}, image=image, method=method)
        tracker.summary({})
    study = study_of(tmp_path)
    assert study.dropped == 3
    assert [study.final(line)["normal_angle / bilinear"].members for line in study.lines] == [
        {"rocket": factor} for factor in FACTOR.values()
    ]


def test_blocks_and_experiments_without_the_chosen_measures_are_left_out(tmp_path):
    bench(tmp_path / "runs" / "a")
    bench(tmp_path / "runs" / "b", regimes=("network",), name="other")
    summary = make_report(tmp_path / "out", tmp_path / "runs", measures=["psnr"])
    best = summary["experiments"]["bench"]["best"]
    assert [*best] == ["bench, guide clean, regime average", "bench, guide blur, regime average"]
    assert set(summary["experiments"]) == {"bench"}, "the other has no row of colours"
    only = {"where": {"guide": "clean", "regime": "average"}}  # which leaves no row of the other
    assert set(make_report(tmp_path / "one", tmp_path / "runs", **only)["experiments"]) == {"bench"}
    make_report(tmp_path / "two", tmp_path / "runs", measures=["psnr", "miou"])
    page = "".join(Page((tmp_path / "two" / "report.html").read_text()).text)
    assert "guide clean, regime network" in page and "depth_rmse" not in page


def test_the_command_line_takes_a_selection(two_keys, tmp_path, monkeypatch, capfd):
    root, _, _ = two_keys
    chosen = ["measures=[psnr]", "where={method: fit, fit.sigma: [8, 16]}", "better={psnr: min}", "pictures=0"]
    words = ["ua.run", "experiment=report", f"runs='{root}'", f"hydra.run.dir='{tmp_path}'", *chosen]
    monkeypatch.setattr("sys.argv", words)
    run.main()
    assert "done:" in capfd.readouterr().err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["experiments"]["toy"]["best"]["toy"]["psnr"]["best"] == ["sigma 8, sigma_r 0.06"]
    assert "where={method: fit, fit.sigma: [8, 16]}" in "".join(Page((tmp_path / "report.html").read_text()).text)


def test_directions_are_told_by_the_words_of_a_name():
    told = {
        name: measures_of.direction(name)
        for name in ("psnr", "depth_rmse_ratio", "depth_rmse / bilinear", "miou", "seconds_p20", "flops")
    }
    assert told.pop("depth_rmse / bilinear") == "min"
    assert told == {"psnr": "max", "depth_rmse_ratio": "min", "miou": "max", "seconds_p20": "min", "flops": ""}
    assert measures_of.direction("images_per_second") == "max"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([36.74, 3.0], "36.74"),
        ([0.975, 0.1], "0.975"),
        ([0.667, 0.00097], "0.6670"),
        ([3.66e8, 1.0], "3.66e+08"),
        ([], "0"),
    ],
)
def test_number_formats(values, text):
    assert format(values[0] if values else 0, number_format(values)) == text


def test_settings_are_ranked_by_the_score_of_their_summaries(tmp_path):
    for number, (sigma, sigma_r) in enumerate([(0.96752, 0.1), (0.96752, 0.2), (2.0, 0.1), (2.0, 0.2)]):
        config = {"fit": {"sigma": sigma, "sigma_r": sigma_r}}
        score = [-0.1, -0.3, -0.2, 0.4][number]
        make_run(tmp_path / "runs" / str(number), config, lambda image, step, n=number: 25.0 + n, score=score)
    summary = make_report(tmp_path / "out", tmp_path / "runs")
    best = {"best": {"fit.sigma": 0.96752, "fit.sigma_r": 0.2}, "mean": -0.3}
    assert summary["experiments"]["toy"]["score"] == best, "in full"
    assert '<li><a href="#experiment-0-score">Score</a></li>' in (tmp_path / "out" / "report.html").read_text()
    rows = table(tmp_path / "out" / "tables" / "toy_score_all.csv")
    assert [row["score"] for row in rows] == ["-0.3", "-0.2", "-0.1", "0.4"]
    assert "**-0.300**" in (tmp_path / "out" / "tables" / "toy_score_means.md").read_text()
    assert (tmp_path / "out" / "tables" / "toy_score_means.tex").exists()
    assert (tmp_path / "out" / "figures" / "toy_score_heat_maps.png").exists()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The lowest score is -0.3, of sigma 0.968, sigma_r 0.2." in page
    assert page.index("<h3>Score</h3>") < page.index('aria-label="Means "')
    assert re.search(
        r'<th scope="row">0.968</th><th scope="row">0.2</th>\s*<td class="number best"><b>-0.300</b>', page
    )


def test_values_of_keys_have_three_digits_unless_two_look_the_same(tmp_path):
    for number, rate in enumerate((0.9675293953, 0.191271, 0.191341, 1000.0)):
        make_run(tmp_path / str(number), {"lr": rate}, lambda image, step, n=number: 25.0 + n)
    study = study_of(tmp_path)
    looks = [study.look("lr", value) for value in study.values["lr"]]
    assert looks == ["0.19127", "0.19134", "0.968", "1000"]


def test_reference_columns_are_no_results_unless_asked_for(tmp_path):
    with Tracker(tmp_path, {"module": "toy"}) as tracker:
        for number, image in enumerate(IMAGES):
            tracker.log({"psnr": 25.0 + number, "psnr_bilinear": 20.0 + number}, image=image, method="fit")
        tracker.summary({})
    assert study_of(tmp_path).measures == ["psnr"]
    assert study_of(tmp_path, measures=["psnr_bilinear"]).measures == ["psnr_bilinear"]


def heat(values, form=".4f"):
    """The face colours of the cells of a heat map, and how many frames it has."""
    (axes,) = plots.heat_maps(
        [plots.HeatMap(np.array([values]), [*map(str, values)], ["p"], "", "", "", form, "max")]
    ).axes
    cells = [patch.get_facecolor()[:3] for patch in axes.patches if patch.get_fill()]
    return np.array(cells), sum(not patch.get_fill() for patch in axes.patches)


def test_heat_maps_do_not_exaggerate():
    close, frames = heat([0.9060, 0.9070])
    far, _ = heat([0.5, 0.9])
    assert frames == 1 and np.abs(close[1] - close[0]).sum() < 0.2 * np.abs(far[1] - far[0]).sum()
    equal, frames = heat([0.5, 0.5])
    assert frames == 0 and np.ptp(equal) == 0, "grey"
    assert heat([0.9, 0.9, 0.5])[1] == 0, "no cell is the best alone"
    assert figures_of.without_timings(["psnr", "fit_seconds"], False) == ["psnr"]
    assert figures_of.without_timings(["psnr", "fit_seconds"], True) == ["psnr", "fit_seconds"]
