"""Files as a build reads them."""

from pathlib import Path

from isoflop.corpus.document import BadRecord, Document, SourceOptions
from isoflop.corpus.read.environment import EnvironmentOptions
from isoflop.corpus.read.ingest import find_inputs
from isoflop.corpus.read.sources import read_file


def read(path: Path, **options) -> tuple[list[Document], list[BadRecord]]:
    """The documents of a file or folder, and what was set aside."""
    source, bad = SourceOptions(path=str(path), name="s", **options), list[BadRecord]()
    files = find_inputs([source], EnvironmentOptions(enabled=False), bad.append)
    return [found for file in files for found in read_file(file.path, file.id, source, bad.append)], bad
