"""How much one reads to understand a part of isoflop: files and lines, counted by following imports.

Three parts are counted: the dense forward pass and the training step (named files), and "records -> law -> plan": every
module of `scaling/` that `isoflop.fit`, `predict` and `plan` import at any depth, inside functions too, experts
excepted. Rooms beside `scaling/` (the recipe reader, the accounting of a model) are not followed: they are read on
their own.

    python benchmarks/reading_length.py            # a table, as in docs/architecture.md
    python benchmarks/reading_length.py --files    # and every file with its lines
"""

import argparse
import ast
from pathlib import Path

import isoflop

PACKAGE = Path(isoflop.__file__).resolve().parent
FORWARD = ("model/transformer", "model/attention", "model/loss", "numerics/linear")
STEP = ("training/run", "training/loop", "training/workload", "training/step_hooks")
ENTRANCES = ("fit", "predict", "plan")
"""Public names of the package, whose homes are followed."""
EXPERTS = (
    *("isoflop.scaling.fit.expert_forms", "isoflop.scaling.fit.expert_runs", "isoflop.scaling.fit.experts"),
    "isoflop.scaling.plan.moe_leverage",
)
"""What only mixtures of experts need, and what nothing else imports from there on."""
MOST = {"dense forward pass": (700, 4), "training step with its run": (550, 4), "records -> law -> plan": (5088, 21)}
"""Lines and files that each part may have (house rules)."""


def file_of(module: str) -> Path | None:
    """The file of a module of ours, or None where the name is no module (a function, say)."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def imported(path: Path) -> set[str]:
    """Our modules that a file imports, at its top or inside functions; imports for types only cost no reading."""
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {id(n) for node in ast.walk(tree) if _for_types(node) for n in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and id(node) not in skipped:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if file_of(name) else node.module for name in names]
        else:
            continue
        found |= {name for name in names if name.split(".")[0] == "isoflop" and file_of(name)}
    return found


def reached(start: set[str], room: str, leave_out: tuple[str, ...] = ()) -> set[str]:
    """Modules of a room that `start` needs at any depth, `start` among them."""
    seen: set[str] = set()
    waiting = set(start)
    while waiting:
        module = waiting.pop()
        if module in seen or module in leave_out or not module.startswith(f"{room}."):
            continue
        seen.add(module)
        path = file_of(module)
        assert path is not None
        waiting |= imported(path)
    return seen


def parts() -> dict[str, list[Path]]:
    """Files of every part; a file that does not exist yet is left out."""
    homes = {isoflop._HOME[name] for name in ENTRANCES}
    plan = reached(homes, "isoflop.scaling", EXPERTS)
    files = [path for module in sorted(plan) if (path := file_of(module))]
    named = ([PACKAGE / f"{name}.py" for name in names] for names in (FORWARD, STEP))
    lists = [*([path for path in paths if path.is_file()] for paths in named), files]
    return dict(zip(MOST, lists, strict=True))


def lines_of(paths: list[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", action="store_true", help="list every file")
    asked = parser.parse_args()
    print("| to understand | lines | files | at most |\n|---|---|---|---|")
    for name, paths in parts().items():
        lines, files = MOST[name]
        print(f"| {name} | {lines_of(paths):,} | {len(paths)} | {lines:,} in {files} |")
        if asked.files:
            for path in paths:
                print(f"|   {path.relative_to(PACKAGE)} | {lines_of([path])} | | |")


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


if __name__ == "__main__":
    main()
