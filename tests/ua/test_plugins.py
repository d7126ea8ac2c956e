"""Parts by name."""

import sys
from pathlib import Path

import pytest

from ua import plugins


def test_parts_of_a_package_are_its_modules() -> None:
    names = list(plugins.names("ua.parameterisations"))
    assert names == sorted(names)
    assert {"anisotropic", "isotropic", "log_covariance", "shared_range", "no_range", "fixed"} <= set(names)
    assert {"reference", "torch", "cpu"} <= set(plugins.names("kernels.bilateral"))
    assert not any(name.startswith("_") for name in plugins.names("kernels.bilateral"))


@pytest.mark.parametrize(
    "package",
    ["ua.parameterisations", "ua.objectives", "ua.guides", "ua.prefilters", "ua.baselines", "kernels.bilateral"],
)
def test_every_part_can_be_found(package: str) -> None:
    for name in plugins.names(package):
        assert plugins.find(package, name).__name__ == f"{package}.{name}"


def test_a_dotted_name_is_a_module_of_that_name() -> None:
    import json.decoder

    assert plugins.find("ua.baselines", "json.decoder") is json.decoder


@pytest.mark.parametrize("operator", ["diffusion.diffuse", "assignment.assign", "bilateral.render"])
def test_every_backend_has_its_operator(operator: str) -> None:
    package, function = operator.split(".")
    for name in plugins.names(f"kernels.{package}"):
        backend = plugins.find(f"kernels.{package}", name)
        assert callable(backend.refuses) and callable(getattr(backend, function))


@pytest.mark.parametrize("name", ["bilinera", "", "_private", "kernels", "Bilinear"])
def test_unknown_parts(name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown baselines? {name!r}.*bicubic, .*bilinear"):
        plugins.find("ua.baselines", name)


@pytest.mark.parametrize("name", ["no_such.thing", "json.no_such", "json.decoder.no_such", "math.sin"])
def test_unknown_modules(name: str) -> None:
    with pytest.raises(ValueError, match=f"no module {name!r}"):
        plugins.find("ua.baselines", name)


def test_what_a_part_fails_to_import_is_not_blamed_on_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_made").mkdir()
    (tmp_path / "half_made" / "__init__.py").touch()
    (tmp_path / "half_made" / "part.py").write_text("import a_package_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match=r"a_package_that_is_missing"):
        plugins.find("ua.baselines", "half_made.part")


def test_the_nearest_name_is_suggested_where_there_is_one() -> None:
    assert "did you mean 'apple'" in plugins.unknown("fruit", "aple", ["pear", "apple"])
    assert "did you mean" not in plugins.unknown("fruit", "xyz", ["pear", "apple"])
    assert plugins.unknown("fruit", "xyz", ["pear", "apple"]) == "unknown fruit 'xyz' (accepted: pear, apple)"


def test_a_part_that_a_notebook_defines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mine.loss", None)  # so that it is gone after this test
    monkeypatch.delitem(sys.modules, "mine.loss")
    for factor in (1, 2):
        assert plugins.define("mine.loss", loss=lambda a, b, f=factor: f * (a - b)) == "mine.loss"
        assert plugins.find("ua.objectives", "mine.loss", needs="loss").loss(3, 1) == 2 * factor
    with pytest.raises(ValueError, match="'mine.loss' has no 'upsample'"):
        plugins.find("ua.baselines", "mine.loss", needs="upsample")
    with pytest.raises(ValueError, match=r"must have a dot, like 'mine\.loss'"):
        plugins.define("loss")
    with pytest.raises(ValueError, match=r"a module which is there already, got 'ua\.plugins'"):
        plugins.define("ua.plugins")
