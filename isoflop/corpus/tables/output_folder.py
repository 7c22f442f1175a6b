"""An output folder that is complete or not there: built under another name, then renamed; never over foreign files."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from isoflop.errors import DataError, undamaged
from isoflop.recipe import Tree


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


class Made(NamedTuple):
    """What a command writes into its folder."""

    key: str
    """That its manifest has, and the manifest of no other command."""
    listed: str
    """Under which the manifest lists files with their paths."""
    names: tuple[str, ...]
    """Of the other files."""

    def files(self, folder: Path, manifest: Tree) -> set[Path]:
        """Those that a manifest lists. Raises DataError: its list is damaged."""
        with undamaged(f"{folder / 'manifest.json'}", DataError, "delete the folder and make it again"):
            return {folder / item["path"] for item in manifest.get(self.listed, ())}


def require_replaceable(out: Path, made: Made) -> None:
    """Refuse to replace a folder with files that are not of our making, or that no other folder can replace.

    Raises:
        DataError: `out` has a file that the command did not write; or it is a mount point.
    """
    if os.path.ismount(out):
        raise DataError(f"out = {out} is a mount point, which a new folder can't replace; give a folder inside it")
    ours: set[Path] = set()
    with contextlib.suppress(DataError):
        found = read_manifest(out, "")
        if made.key in found:  # of its own: tokens name the key of their corpus further inside
            ours = made.files(out, found) | {out / name for name in ("manifest.json", *made.names)}
    inside = out.rglob("*") if out.is_dir() else [out] if out.exists() else []
    foreign = next((path for path in inside if path not in ours and (path.is_symlink() or not path.is_dir())), None)
    if foreign is not None:
        raise DataError(
            f"out = {out} has files that this command did not make; give an empty or a new folder, or move them: "
            f"{foreign}"
        )


def put_in_place(work: Path, out: Path, made: Made) -> None:
    """Rename `work` to `out`, in the place of what the same command made there before. Raises DataError."""
    require_replaceable(out, made)  # again: the work took its time
    if out.exists():
        shutil.rmtree(out)
    work.rename(out)


def behind_link(out: Path) -> Path:
    """Where a link leads: the folder there is replaced, not the link."""
    return Path(os.path.realpath(out)) if out.is_symlink() else out


@contextmanager
def new_folder(out: Path, made: Made) -> Iterator[Path]:
    """A temporary folder that becomes `out` if the block ends well, and vanishes if it doesn't."""
    out = behind_link(out)
    require_replaceable(out, made)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield work
        work.chmod(0o755)
        put_in_place(work, out, made)
    finally:
        shutil.rmtree(work, ignore_errors=True)
