"""Who may import whom, seen by importing each module of the core in a fresh interpreter that refuses the frameworks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from impls.implementation import ROOT, find

FRAMEWORKS = ("torch", "torchvision", "jax", "jaxlib", "tensorflow", "keras", "onnxruntime")

HEAVY = ("numpy", "scipy.stats", "pandas", "matplotlib.pyplot")
"""Imported once for all modules, as they take a second; that a module asks for them is seen all the same."""

PROBE = """
import builtins, importlib, json, os, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name in FRAMEWORKS:
            raise ImportError(f"{name} is a framework")
sys.meta_path.insert(0, Refuse())
for name in HEAVY:
    importlib.import_module(name)
bare, load, asked = set(sys.modules), builtins.__import__, set()
def seen(name, names=None, *rest, **more):
    if names and names.get("__name__", "").partition(".")[0] in PARTS:
        asked.add(name)
    return load(name, names, *rest, **more)
builtins.__import__ = seen
for name in json.load(sys.stdin):
    sys.stdout.flush()
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0, name
    else:
        importlib.import_module(name)
        found = asked | (sys.modules.keys() - bare)
        print(json.dumps([name, sorted({each.partition(".")[0] for each in found} - sys.stdlib_module_names)]), flush=True)
        os._exit(0)
"""
"""Imports each module in a process that has imported none of ours before, and prints what it asked for and what came with it."""

PARTS = ("impls", "suites", "results", "reports", "levelfield")


def modules() -> list[str]:
    """Every module of the core, by its dotted name; the frameworks' own folders are not core."""
    own = {path.parent for path in ROOT.glob("*/*/impl.toml")} | {path.parent for path in ROOT.glob("*/*/*/impl.toml")}
    found = [path for part in PARTS for path in sorted((ROOT / part).rglob("*.py"))]
    core = [path.relative_to(ROOT) for path in found if not own & set(path.parents) and path.name != "__main__.py"]
    return [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in core if path.parts[:2] != ("suites", "asv")]


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """By module, the packages outside the standard library that importing it loads."""
    done = subprocess.run(
        [sys.executable, "-c", f"FRAMEWORKS, HEAVY, PARTS = {FRAMEWORKS!r}, {HEAVY!r}, {PARTS!r}\n{PROBE}"],
        input=json.dumps(modules()),
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {name: {each for each in packages if not each.startswith("_")} for name, packages in map(json.loads, done.stdout.splitlines())}


def test_every_module_is_importable_without_a_framework(loaded: dict[str, set[str]]) -> None:
    """No module of the core needs a framework, nor loads one that is installed."""
    assert set(loaded) == set(modules())
    assert len(loaded) > 40
    assert {name for name, packages in loaded.items() if packages & set(FRAMEWORKS)} == set()


STANDARD_LIBRARY_ONLY = ("impls", "impls.spec", "impls.precision", "impls.implementation", "impls.models", "impls.models.resnet")


@pytest.mark.parametrize("name", STANDARD_LIBRARY_ONLY)
def test_the_spec_needs_nothing(loaded: dict[str, set[str]], name: str) -> None:
    """Specs, precisions and the contract are standard library and each other."""
    assert loaded[name] == {"impls"}


ALLOWED = {
    "impls.weights": {"impls", "numpy", "safetensors"},
    "impls.oracle": {"impls", "numpy", "safetensors"},
    "results": {"results", "numpy", "scipy"},
    "suites": {"impls", "suites", "results", "numpy", "safetensors", "scipy", "threadpoolctl"},
}


@pytest.mark.parametrize("part", ALLOWED)
def test_a_part_loads_only_what_it_may(loaded: dict[str, set[str]], part: str) -> None:
    """Importing any module of a part loads no package beyond the part's list; what is heavy waits until it is needed."""
    own = {name: packages for name, packages in loaded.items() if name == part or name.startswith(f"{part}.")}
    assert own
    beyond = {name: packages - ALLOWED[part] - {"cython_runtime"} for name, packages in own.items()}
    assert {name: packages for name, packages in beyond.items() if packages} == {}


def test_reports_do_not_run(loaded: dict[str, set[str]]) -> None:
    """A report loads results and what draws, never a suite or the command."""
    reports = [packages for name, packages in loaded.items() if name.startswith("reports")]
    assert all(not packages & {"suites", "levelfield"} for packages in reports)
    assert any("pandas" in packages for packages in reports)


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        (["--help"], {"numpy", "pandas", "matplotlib", "scipy", "sklearn", "rich", "impls", "suites"}),
        (["bench", "--help"], {"numpy", "pandas", "matplotlib", "scipy", "sklearn", "impls", "suites"}),
        (["plan"], {"numpy", "pandas", "matplotlib", "scipy", "sklearn", "safetensors"}),
        (["plan", "--json"], {"numpy", "pandas", "matplotlib", "scipy", "sklearn", "safetensors"}),
        (["models"], {"pandas", "matplotlib", "scipy", "sklearn"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_light_commands_load_nothing_heavy(arguments: list[str], refused: set[str]) -> None:
    """Help and plan answer at once, since they do not import what they do not need."""
    look = f"""
import sys
from levelfield.cli import main
try:
    main({arguments!r})
except SystemExit as end:
    assert not end.code, end.code
print(*sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert {name.partition(".")[0] for name in done.stderr.splitlines()[-1].split()} & refused == set()


def test_frameworks_are_imported_by_their_own_folder_alone() -> None:
    """Each implementation's folder names one framework's packages, and no other's."""
    own = {"pytorch": {"torch"}, "jax": {"jax", "jaxlib"}, "tensorflow": {"tensorflow"}, "onnx": {"onnx", "onnxruntime"}}
    assert set(own) == set(find())
    everything = set().union(*own.values()) | {"keras", "torchvision"}
    for name, mine in own.items():
        for path in sorted((ROOT / "impls" / name).glob("*.py")):
            assert imported(path) & everything <= mine, path


def imported(path: Path) -> set[str]:
    """First names of all import statements of a file, at whatever depth."""
    import ast

    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names
