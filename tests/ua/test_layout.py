"""The layout of the repository and what may import what (DESIGN section 4), read from the sources."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
PACKAGES = ("ua", "kernels", "experiments")
FOLDERS = {"ua", "kernels", "configs", "experiments", "tests", "notebooks"}
MAY_IMPORT = {
    "kernels": {"kernels"},
    "ua": {"ua", "kernels"},
    "experiments": {"experiments", "ua", "kernels"},
}
SOURCES = sorted(path for package in PACKAGES for path in (CHECKOUT / package).rglob("*.py"))
COMMAND_LINE = [CHECKOUT / "ua" / name for name in ("run.py", "_command_line.py")]  # where Hydra is
NAMES = [str(path.relative_to(CHECKOUT)) for path in SOURCES]


def imported(tree: ast.AST) -> Iterator[str]:
    """Names of the modules that the statements below `tree` import."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield str(node.module)


def at_import(tree: ast.Module) -> ast.Module:
    """The statements that run when the module is imported: no bodies of functions, nothing for type checkers alone."""

    class Strip(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

        def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
            return None

        def visit_If(self, node: ast.If) -> ast.AST | None:
            return None if "TYPE_CHECKING" in ast.unparse(node.test) else self.generic_visit(node)

    return Strip().visit(tree)


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def tops(names: Iterator[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_folders_are_those_of_the_design() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    folders = {name.partition("/")[0] for name in tracked if "/" in name}
    assert {folder for folder in folders if not folder.startswith(".")} <= FOLDERS
    assert {"ua", "kernels", "configs", "experiments", "tests"} <= folders


def test_tests_mirror_the_packages() -> None:
    assert {path.name for path in (CHECKOUT / "tests").iterdir() if path.is_dir() and path.name[0] not in "._"} <= set(
        PACKAGES
    )
    # No package among the tests: one named `ua` or `kernels` would hide ours.
    assert not list((CHECKOUT / "tests").rglob("__init__.py"))


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_imports_of_our_own(path: Path) -> None:
    package = path.relative_to(CHECKOUT).parts[0]
    allowed = MAY_IMPORT[package]
    if path in COMMAND_LINE:
        allowed = allowed | {"configs", "experiments"}
    ours = tops(imported(parse(path))) & (FOLDERS | set(PACKAGES))
    assert ours <= allowed


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_hydra_meets_the_library_in_one_place(path: Path) -> None:
    if path not in COMMAND_LINE:
        assert not tops(imported(parse(path))) & {"hydra", "omegaconf"}


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_importing_a_module_imports_nothing_heavy(path: Path) -> None:
    allowed = set(sys.stdlib_module_names) | set(PACKAGES) | {"torch", "numpy"}
    if path in COMMAND_LINE:
        allowed |= {"hydra", "omegaconf"}
    if path.name in {"_cpu_loops.py", "_cpu_borrow.py", "_cpu_exp2.py"}:
        allowed |= {"numba", "llvmlite"}
    if path.name.startswith("_triton"):
        allowed |= {"triton"}
    assert tops(imported(at_import(parse(path)))) <= allowed


def test_numba_lives_in_the_loops_alone() -> None:
    users = {path.name for path in SOURCES if {"numba", "llvmlite"} & tops(imported(parse(path)))}
    assert users == {"_cpu_loops.py", "_cpu_borrow.py", "_cpu_exp2.py"}


def test_wandb_is_imported_by_the_tracker_alone() -> None:
    assert {path.name for path in SOURCES if "wandb" in tops(imported(parse(path)))} <= {"tracking.py"}


@pytest.mark.parametrize(
    "package",
    [
        "kernels.bilateral",
        "kernels.diffusion",
        "ua.baselines",
        "ua.datasets",
        "ua.guides",
        "ua.objectives",
        "ua.parameterisations",
        "ua.prefilters",
    ],
)
def test_exchangeable_parts_do_not_import_each_other_by_list(package: str) -> None:
    # A new part is one new file: the package itself names none of its modules.
    folder = CHECKOUT / Path(*package.split("."))
    tree = parse(folder / "__init__.py")
    assert not [name for name in imported(tree) if name.startswith(package)]


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_nothing_is_unpickled_and_nothing_is_swallowed(path: Path) -> None:
    tree = parse(path)
    assert not tops(imported(tree)) & {"pickle", "cloudpickle", "dill", "joblib"}
    for node in ast.walk(tree):
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), "a bare except"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "np.load", "numpy.load"):
            safe = {
                "torch.load": ("weights_only", True),
                "np.load": ("allow_pickle", False),
                "numpy.load": ("allow_pickle", False),
            }
            name, value = safe[ast.unparse(node.func)]
            given = {keyword.arg: getattr(keyword.value, "value", None) for keyword in node.keywords}
            assert given.get(name) is value


PRIVATE = re.compile(r"/(?:home|work|root|Users|tmp)/|https?://(?:localhost|\d+\.\d+|[\w.-]*(?:internal|corp))")


def test_no_paths_or_hosts_of_one_machine_in_any_file() -> None:
    suffixes = {".py", ".yaml", ".toml", ".md", ".txt", ".json", ".csv", ".ipynb", ".sh", ""}
    tracked = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True).stdout.split()
    found = []
    for name in tracked:
        path = CHECKOUT / name
        if path.suffix in suffixes and path.is_file() and path != Path(__file__).resolve():
            found += [f"{name}: {match.group()}" for match in PRIVATE.finditer(path.read_text(errors="ignore"))]
    assert not found
