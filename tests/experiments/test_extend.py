"""The worked example of experiments/README.md: its blocks, in a folder outside the checkout, run as they are."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import ua
from ua import run

CHECKOUT = Path(__file__).resolve().parents[2]
README = (CHECKOUT / "experiments" / "README.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"`([\w/.]+)`\n\n```(?:python|yaml)\n(.*?)```", README, re.DOTALL))
COMMANDS = re.search(r"```bash\n(.*?)```", README, re.DOTALL)[1].replace("\\\n", " ").splitlines()
MINE = ("fit", "my_method.bicubic_clamped")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with the files of the example, where the commands are given."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_method"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def words(command):
    program, *arguments = shlex.split(command)
    assert [program, *arguments[:2]] == ["python", "-m", "ua.run"]
    return arguments[2:]


def in_this_process(command, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ua.run", *words(command)])
    run.main()


def rows_of(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_one_file_a_part_and_one_yaml_and_nothing_else():
    modules = {Path(name).stem for name in FILES if name.startswith("my_method/")}
    assert modules == {"kernels", "objective", "bicubic_clamped", "discs", "compare"}
    assert {Path(name).parts[1] for name in FILES if name.startswith("my_configs/")} == {
        "fit",
        "baseline",
        "data",
        "experiment",
    }
    assert len(COMMANDS) == 3


def test_the_first_command_as_people_type_it(folder):
    environment = {
        **os.environ,
        "PYTHONPATH": str(CHECKOUT),
    }  # in place of an installation; my_method is found as it is
    done = subprocess.run(
        [sys.executable, "-m", "ua.run", *words(COMMANDS[0])], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("outputs/compare/*")
    rows = rows_of(found)
    assert {(row["image"], row["method"]) for row in rows} == {
        (image, method) for image in ("discs_0", "discs_1") for method in (*MINE, "bilinear", "bicubic")
    }
    means = json.loads((found / "summary.json").read_text())["depth_rmse"]
    for method in means:
        measured = [float(row["depth_rmse"]) for row in rows if row["method"] == method]
        assert means[method] == pytest.approx(sum(measured) / 2) and 0.01 < means[method] < 1
        assert f"{means[method]:.3f}" in (found / "tables" / "compare.md").read_text()
    assert len(set(means.values())) == 4
    assert (found / "figures" / "compare.png").stat().st_size > 5000
    fit = yaml.safe_load((found / "config.yaml").read_text())["fit"]
    assert (fit["parameterisation"], fit["objective"]) == ("my_method.kernels", "my_method.objective")


def test_the_sweep_over_objectives(folder, monkeypatch):
    in_this_process(COMMANDS[1], monkeypatch)
    jobs = {
        yaml.safe_load((job / "config.yaml").read_text())["fit"]["objective"]: {
            row["image"]: float(row["depth_rmse"]) for row in rows_of(job) if row["method"] == "fit"
        }
        for job in folder.glob("multirun/*/*")
        if job.is_dir()
    }
    assert set(jobs) == {"l1", "l2", "my_method.objective"}
    assert len({rmses["discs_0"] for rmses in jobs.values()}) == 3, "each objective has its own fit"


def test_the_parts_in_an_experiment_that_is_there_already(folder, monkeypatch):
    in_this_process(COMMANDS[2], monkeypatch)
    (found,) = folder.glob("outputs/ablation_iters/*")
    rows = rows_of(found)
    colour = [row for row in rows if row["signal"] == "colour" and row["image"] == "discs_0"]
    fitted = [row for row in colour if row["method"] == "fit"]
    assert [row["step"] for row in fitted] == ["0", "5", "10"]
    assert float(fitted[0]["psnr"]) < float(fitted[1]["psnr"]) < float(fitted[2]["psnr"])
    assert {row["method"] for row in rows} >= {"fit", "bilinear", "my_method.bicubic_clamped"}
    assert json.loads((found / "summary.json").read_text())["images"] == ["discs_0", "discs_1"]


def test_the_line_for_python(folder):
    (call,) = re.findall(r"Or from Python: `(.*)`", README)
    random = torch.Generator().manual_seed(0)
    names = {
        "ua": ua,
        "image": torch.rand(3, 24, 32, generator=random),
        "signal": torch.rand(2, 6, 8, generator=random),
    }
    assert eval(call, names).shape == (1, 2, 24, 32)


def test_the_kernels_are_what_they_say(folder):
    fit = ua.fit(torch.rand(3, 24, 32), (6, 8), preset="released", parameterisation="my_method.kernels", steps=2)
    torch.testing.assert_close(fit.gaussians.sigma_x, 2 * fit.gaussians.sigma_y)
    assert fit.gaussians.theta.abs().max() > 0.01, "no saddle: the angle has a gradient from the start"


def test_files_that_it_names_are_there():
    named = re.findall(r"\]\(([\w./]+)\)", README)
    assert named and all((CHECKOUT / "experiments" / path).exists() for path in named)
    folders = re.findall(r"`((?:ua|configs|kernels)/[\w/]+/)`", README)
    assert folders and all((CHECKOUT / path).is_dir() for path in folders)
    listed = re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE)
    assert (
        {"transfer", "benchmark", "upsample"}
        <= set(listed)
        <= {path.stem for path in (CHECKOUT / "configs" / "experiment").glob("*.yaml")}
    )
