"""Files as a build reads them."""

from pathlib import Path
from typing import Any

import pytest

from isoflop.corpus.document import BadRecord, Document, SourceOptions
from isoflop.corpus.read.environment import EnvironmentOptions
from isoflop.corpus.read.ingest import find_inputs
from isoflop.corpus.read.sources import read_file


def read(path: Path, **options) -> tuple[list[Document], list[BadRecord]]:
    """The documents of a file or folder, and what was set aside."""
    source, bad = SourceOptions(path=str(path), name="s", **options), list[BadRecord]()
    files = find_inputs([source], EnvironmentOptions(enabled=False), bad.append)
    return [found for file in files for found in read_file(file.path, file.id, source, bad.append)], bad


def write_parquet(path: Path, columns: dict[str, list[Any]], **options) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="Parquet needs the corpus extra")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table(columns), path, **options)
