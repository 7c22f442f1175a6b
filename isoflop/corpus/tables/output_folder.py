"""An output folder that is complete or not there: built under another name, then renamed; never over foreign files."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isoflop.errors import DataError


def read_manifest(folder: Path, command: str) -> dict[str, Any]:
    """`manifest.json` of a folder that `command` makes. Raises DataError."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise DataError(f"{folder} has no manifest.json; make it with: {command}")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); delete the folder, then: {command}") from error


def require_replaceable(out: Path, key: str) -> None:
    """Refuse to replace a folder that is not of our making.

    Raises:
        DataError: `out` has content, and no manifest with `key`.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    path = out / "manifest.json"
    if not path.is_file() or f'"{key}"' not in path.read_text(encoding="utf-8", errors="replace"):
        raise DataError(f"out = {out} has files that this command did not make; give an empty or a new folder")


@contextmanager
def new_folder(out: Path, key: str) -> Iterator[Path]:
    """A temporary folder that becomes `out` if the block ends well, and vanishes if it doesn't."""
    require_replaceable(out, key)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield work
        if out.exists():
            shutil.rmtree(out)
        work.chmod(0o755)
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
