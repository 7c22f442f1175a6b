"""An output folder that is complete or not there: built under another name, then renamed; never over foreign files."""

import contextlib
import json
import os
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
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON ({error}); delete the folder, then: {command}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} is damaged (no JSON object); delete the folder, then: {command}")
    return found


def require_replaceable(out: Path, key: str) -> None:
    """Refuse to replace a folder that is not of our making, or that no other folder can replace.

    Raises:
        DataError: `out` has content, and no manifest with `key`; or it is a mount point.
    """
    if os.path.ismount(out):
        raise DataError(f"out = {out} is a mount point, which a new folder can't replace; give a folder inside it")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    with contextlib.suppress(DataError):
        if key in read_manifest(out, ""):  # of its own: tokens name the key of their corpus further inside
            return
    raise DataError(f"out = {out} has files that this command did not make; give an empty or a new folder")


def behind_link(out: Path) -> Path:
    """Where a link leads: the folder there is replaced, not the link."""
    return Path(os.path.realpath(out)) if out.is_symlink() else out


@contextmanager
def new_folder(out: Path, key: str) -> Iterator[Path]:
    """A temporary folder that becomes `out` if the block ends well, and vanishes if it doesn't."""
    out = behind_link(out)
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
