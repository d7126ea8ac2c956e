"""The command line: everything composes, wrong words are named, runs can be swept, interrupted and
continued."""

import csv
import inspect
import json
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
import yaml
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

import ua
from experiments import benchmark
from ua import _command_line, plugins, run

TOY_YAML = """\
# @package _global_
# Counts.
defaults:
  - /fit: released
  - override /logger: files
  - _self_

module: toy_package.counting
numbers: [1, 2, 3]
image: ???
"""
TOY_MODULE = """\
from dataclasses import dataclass

from ua import FitConfig

MEASURED = []


@dataclass(frozen=True)
class Config:
    fit: FitConfig
    numbers: list[int]
    image: str

    def __post_init__(self):
        if not self.numbers:
            raise ValueError("numbers must hold at least one")


def run(config, tracker):
    assert isinstance(config.fit, FitConfig)
    for number in config.numbers:
        if tracker.find(step=number) is None:
            if number == 3 and config.image == "interrupted" and not MEASURED.count(3):
                MEASURED.append(3)
                raise KeyboardInterrupt
            MEASURED.append(number)
            tracker.log({"square": number**2}, step=number)
    return {"rows": len(tracker.rows), "steps": config.fit.steps}
"""


@pytest.fixture
def cli(tmp_path, monkeypatch, capfd):
    """`cli("experiment=toy", ...)` in an empty folder, with an experiment of one's own: status, stdout,
    stderr."""
    (tmp_path / "own" / "experiment").mkdir(parents=True)
    (tmp_path / "own" / "experiment" / "toy.yaml").write_text(TOY_YAML)
    (tmp_path / "toy_package").mkdir()
    (tmp_path / "toy_package" / "__init__.py").touch()
    (tmp_path / "toy_package" / "counting.py").write_text(TOY_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    for name in ("toy_package", "toy_package.counting"):
        sys.modules.pop(name, None)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["ua.run", *arguments])
        status = 0
        try:
            run.main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
            if isinstance(stop.code, str):  # what the interpreter does with it
                print(stop.code, file=sys.stderr)
        out, err = capfd.readouterr()
        return status, out, err

    return call


def toy(cli, *arguments):
    return cli("--config-dir", "own", "experiment=toy", *arguments)


def only_folder(pattern):
    (folder,) = Path().glob(pattern)
    return folder


def test_no_argument_lists_the_experiments(cli):
    status, out, _ = cli()
    assert status == 0
    listed = {line.split()[0]: line for line in out.split("experiments:")[1].splitlines() if line}
    assert set(plugins.names("experiments")) <= set(listed)  # some are other settings of the same module
    assert set(listed) == set(options("experiment"))
    assert all(len(line.split()) > 3 for line in listed.values()), "an experiment without a line about it"
    sweeps = out.split("sweeps:")[1].split("experiments:")[0].splitlines()
    assert {line.split()[0] for line in sweeps if line} == set(options("sweep"))


def test_a_run_of_ones_own_module(cli):
    status, _, err = toy(cli, "image=a.jpg", "fit.steps=7")
    assert (status, "done: outputs" in err) == (0, True)
    folder = only_folder("outputs/toy/*")
    assert {path.name for path in folder.iterdir()} == {
        "config.yaml",
        "environment.json",
        "metrics.csv",
        "summary.json",
    }
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["module"] == "toy_package.counting" and config["fit"]["steps"] == 7
    assert json.loads((folder / "summary.json").read_text()) == {"rows": 3, "steps": 7}
    command = json.loads((folder / "environment.json").read_text())["command"]
    assert command == "python -m ua.run experiment=toy image=a.jpg fit.steps=7"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fit.stpes=3"], ["fit.stpes", "did you mean 'fit.steps'"]),
        (["imgae=3"], ["imgae", "did you mean 'image'"]),
        (["sede=3"], ["did you mean 'seed'"]),
        (["fti=paper"], ["did you mean 'fit'"]),
        (["fit=relesed"], ["did you mean 'released'", "accepted: default,"]),
        (["logger=wandbb"], ["did you mean 'wandb'"]),
        (["launcher=joblibb"], ["did you mean 'joblib'"]),
        (["image=a", "logger.mode=onlin"], ["logger.mode", "did you mean 'online'"]),
        (["image=a", "fit.steps=many"], ["fit.steps", "'many'"]),
        (["image=a", "fit.steps=-1"], ["steps", "-1"]),
        (["image=a", "fit.border=clmap"], ["border", "did you mean 'clamp'"]),
        (["image=a", "numbers=[]"], ["numbers must hold at least one"]),
        (["image=a", "numbers=[a]"], ["numbers[0]", "'a'"]),
        (["image=a", "+nmubers=[1]"], ["did you mean 'numbers'"]),
        (["image=a (1),.jpg"], ["image=a (1),.jpg", "quotes"]),
        (["image=a", "module=toy_package.nothing"], ["toy_package.nothing"]),
        (["image=a", "numbers=3"], ["numbers: must be a list"]),
        (["image=a", "numbers=1,2"], ["numbers=1,2", "-m for a sweep"]),
        (["image=a", "seed=x"], ["seed must be an integer from 0", "'x'"]),
        (["image=a", "hydra.run.dri=x"], ["hydra.run.dri", "did you mean 'hydra.run.dir'"]),
        (["image=a", "hydra.run.dir=own/experiment/toy.yaml"], ["'own/experiment/toy.yaml' cannot be used: File"]),
        ([], ["image= is missing"]),
        (["image=a", "resume=nowhere"], ["resume=nowhere", "no run to go on with"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_wrong_words_are_one_line_that_helps(cli, arguments, words):
    status, _, err = toy(cli, *arguments)
    assert status == 1
    assert err.startswith("error: ") and err.count("\n") == 1, err
    for word in words:
        assert word in err


def test_unknown_and_missing_experiments(cli):
    status, _, err = cli("experiment=ablation_itres")
    assert status == 1 and "did you mean 'ablation_iters'" in err and err.count("\n") == 1
    status, _, err = cli("experiment=ablation_iters", "baseline=[jbuu]")
    assert status == 1 and "did you mean 'jbu'" in err and err.count("\n") == 1
    status, _, err = cli("fit=paper")
    assert status == 1 and "experiment=NAME is missing" in err and "ablation_iters" in err


def test_the_traceback_is_there_when_asked_for(cli, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(ValueError, match="at least one"):
        toy(cli, "image=a", "numbers=[]")
    with pytest.raises(hydra.errors.ConfigCompositionException):
        toy(cli, "stpes=1")


def test_a_sweep_has_a_folder_a_job(cli):
    status, _, err = toy(cli, "-m", "image=a,b", "fit=paper")
    assert status == 0, err
    configs = [yaml.safe_load(path.read_text()) for path in sorted(Path().glob("multirun/*/*/config.yaml"))]
    assert [config["image"] for config in configs] == ["a", "b"]
    assert len(list(Path().glob("multirun/*/*/summary.json"))) == 2


def test_an_interrupted_run_is_readable_and_goes_on(cli):
    status, _, err = toy(cli, "image=interrupted")
    assert status == 130 and "resume=outputs" in err
    folder = only_folder("outputs/toy/*")
    with (folder / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]
    assert not (folder / "summary.json").exists()

    status, _, err = toy(cli, "image=interrupted", f"resume={folder}")
    assert status == 0, err
    assert sys.modules["toy_package.counting"].MEASURED == [1, 2, 3, 3], "a finished row was measured again"
    assert json.loads((folder / "summary.json").read_text())["rows"] == 3

    status, _, err = toy(cli, "image=other", f"hydra.run.dir={folder}")
    assert status == 1 and "image: interrupted -> other" in err


def test_configurations_may_extend_a_preset(cli):
    Path("own/fit").mkdir()
    Path("own/fit/mine.yaml").write_text("defaults: [released, _self_]\nsteps: 9\n")
    status, _, err = toy(cli, "image=a", "fit=mine")
    assert status == 0, err
    fit = yaml.safe_load((only_folder("outputs/toy/*") / "config.yaml").read_text())["fit"]
    assert ua.FitConfig(**fit) == ua.preset("released").replace(steps=9)


def compose(*overrides):
    run.register_presets()
    with hydra.initialize_config_dir(config_dir=str(run.CONFIGS), version_base="1.3"):
        return hydra.compose("config", list(overrides))


@pytest.mark.parametrize("name", [path.stem for path in sorted((run.CONFIGS / "experiment").glob("*.yaml"))])
def test_every_experiment_composes_into_its_own_schema(name):
    config = compose(f"experiment={name}", "module=null")
    module = plugins.find("experiments", module_of(name))
    for key in list(config):
        if config._get_node(key)._is_missing():
            config[key] = "given"
    own = OmegaConf.masked_copy(config, [key for key in config if key not in _command_line.RUN_KEYS])
    assert isinstance(_command_line.typed(module.Config, own), module.Config)
    _command_line.typed(_command_line.LoggerConfig, config.logger)


def module_of(name):
    return yaml.safe_load((run.CONFIGS / "experiment" / f"{name}.yaml").read_text()).get("module", name)


def options(group):
    return [path.stem for path in sorted((run.CONFIGS / group).glob("*.yaml"))]


@pytest.mark.parametrize(
    "override",
    [
        *(f"data={name}" for name in options("data")),
        *(f"baseline=[{name}]" for name in options("baseline")),
        *(f"logger={name}" for name in options("logger")),
        *(f"fit={name}" for name in (*ua.PRESETS, *options("fit"))),
    ],
)
def test_every_choice_composes(override):
    config = compose("experiment=ablation_iters", "module=null", override)
    own = OmegaConf.masked_copy(config, [key for key in config if key not in _command_line.RUN_KEYS])
    _command_line.typed(plugins.find("experiments", "ablation_iters").Config, own)


@pytest.mark.parametrize("group", ["hydra/launcher", "hydra/sweeper", "data"])
def test_what_an_extra_brings_is_named(group):
    error = MissingConfigException("", f"{group}/joblib", ["basic"])
    words = _command_line.explain(error)
    assert f"{group}=joblib" in words and "basic" in words and ("[launchers]" in words) == (group != "data")


@pytest.mark.parametrize("name", options("launcher"))
def test_every_launcher_composes(name):
    from hydra.core.plugins import Plugins
    from hydra.plugins.launcher import Launcher

    text = (run.CONFIGS / "launcher" / f"{name}.yaml").read_text()
    wanted = yaml.safe_load(text)["defaults"][0]["override /hydra/launcher"]
    known = " ".join(kind.__module__ for kind in Plugins.instance().discover(Launcher))
    if wanted.split("_")[0] not in known:
        pytest.skip(f"the plugin of {wanted} is not installed")
    compose("experiment=ablation_iters", f"launcher={name}")


def test_presets_of_the_command_line_are_those_of_the_library():
    for name in ua.PRESETS:
        config = compose("experiment=ablation_iters", "module=null", f"fit={name}")
        assert OmegaConf.to_object(config.fit) == ua.preset(name)


def test_every_baseline_has_a_yaml_with_the_defaults_of_its_module():
    assert set(options("baseline")) == set(plugins.names("ua.baselines"))
    for name in options("baseline"):
        values = yaml.safe_load((run.CONFIGS / "baseline" / f"{name}.yaml").read_text())
        parameters = inspect.signature(plugins.find("ua.baselines", name).upsample).parameters.values()
        defaults = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
        assert values == {name: defaults}


def test_every_dataset_has_a_yaml():
    assert set(options("data")) == set(plugins.names("ua.datasets"))


def test_benchmark_has_the_same_values_without_hydra():
    config = compose("experiment=benchmark", "module=null")
    own = OmegaConf.masked_copy(config, [key for key in config if key not in _command_line.RUN_KEYS])
    assert _command_line.typed(benchmark.Config, own) == benchmark.Config()


def test_as_people_type_it(tmp_path):
    """In a process of its own, from another folder."""
    words = ["experiment=upsample", "image=none.jpg", "signal=none.npy", "output=hr.npy"]
    environment = {"PYTHONPATH": str(run.CONFIGS.parent), "PATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ua.run", *words]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: image: no file 'none.jpg' (accepted: PNG, JPEG or TIFF)"
    assert "Traceback" not in done.stderr
