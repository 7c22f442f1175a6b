"""Rows of Parquet and Arrow files as records, a few at a time: a cell that is too long is never made a string.

A Parquet column is read dictionary-encoded where it is stored so, so one long value that a million rows share is held
once; row groups that declare values longer than a record may be, or expand like a bomb, are set aside unread.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.corpus.document import BadRecord, OnBad, SourceOptions
from isoflop.corpus.read.values import Records
from isoflop.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_ROWS = 64  # assumption: rows decoded at once; with longest records this is the bound on memory
_LICENCE_COLUMNS = ("license", "licence")


def read_parquet(path: Path, origin: str, source: SourceOptions, on_bad: OnBad) -> Records:
    """(place, record) of each row. Raises DataError without pyarrow."""
    pa = _pyarrow(path)
    import pyarrow.parquet as pq

    number = 0
    try:
        columns = _columns(pq.read_schema(path), source)
        if source.text_key not in columns:
            on_bad(_no_column(origin, pq.read_schema(path), source))
            return
        with pq.ParquetFile(
            path,
            read_dictionary=[source.text_key],
            pre_buffer=False,
            buffer_size=1 << 20,
            page_checksum_verification=True,
        ) as file:
            for group in range(file.num_row_groups):
                about = file.metadata.row_group(group)
                column = _leaf(about, source.text_key)
                problem = _oversized(column, source) if column else None
                if problem:
                    reason = f"{about.num_rows} rows: {problem}"
                    on_bad(BadRecord(f"{origin}:{number + 1}", reason, column.total_uncompressed_size))
                    number += about.num_rows
                    continue
                for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
                    batch.validate(full=True)
                    yield from _rows(batch, number, origin, source, on_bad)
                    number += batch.num_rows
            if number != file.metadata.num_rows:
                on_bad(BadRecord(origin, f"{file.metadata.num_rows} rows are stated, {number} were found"))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        on_bad(BadRecord(f"{origin}:{number + 1}", f"not readable Parquet: {error}"[:300]))


def read_arrow(path: Path, origin: str, source: SourceOptions, on_bad: OnBad) -> Records:
    """(place, record) of each row of an Arrow file or stream, mapped into memory. Raises DataError without pyarrow."""
    pa = _pyarrow(path)
    number = 0
    try:
        with pa.memory_map(str(path)) as file:
            for batch in _arrow_batches(file, path):
                if source.text_key not in batch.schema.names:
                    on_bad(_no_column(origin, batch.schema, source))
                    return
                batch = batch.select(_columns(batch.schema, source))
                batch.validate(full=True)  # offsets of a damaged file lead out of its buffers: the process would end
                for start in range(0, batch.num_rows, _BATCH_ROWS):
                    yield from _rows(batch.slice(start, _BATCH_ROWS), number + start, origin, source, on_bad)
                number += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        on_bad(BadRecord(f"{origin}:{number + 1}", f"not readable Arrow: {error}"[:300]))


def _arrow_batches(file: "pa.MemoryMappedFile", path: Path) -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa

    with path.open("rb") as head:
        is_file = head.read(6) == b"ARROW1"
    if is_file:
        reader = pa.ipc.open_file(file)
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)
    else:
        yield from pa.ipc.open_stream(file)


def _rows(batch: "pa.RecordBatch", number: int, origin: str, source: SourceOptions, on_bad: OnBad) -> Records:
    import pyarrow as pa

    texts = batch.column(source.text_key)
    others = {name: batch.column(name).to_pylist() for name in batch.schema.names if name != source.text_key}
    for row in range(batch.num_rows):
        where = f"{origin}:{number + row + 1}"
        cell = texts[row]
        value = cell.value if isinstance(cell, pa.DictionaryScalar) else cell
        size = 0
        if value is not None and value.is_valid and hasattr(value, "as_buffer"):
            size = value.as_buffer().size
        if size > source.limits.max_record_bytes:
            reason = f"value is longer than limits.max_record_mb = {source.limits.max_record_mb:g}"
            on_bad(BadRecord(where, reason, size))
            continue
        try:
            text = value.as_py() if value is not None else None
            text = text.decode("utf-8") if isinstance(text, bytes) else text
        except UnicodeDecodeError as error:
            on_bad(BadRecord(where, f"not UTF-8 at byte {error.start}", size))
            continue
        yield where, {source.text_key: text, **{name: values[row] for name, values in others.items()}}


def _columns(schema: "pa.Schema", source: SourceOptions) -> list[str]:
    wanted = (source.text_key, source.lang_key, *_LICENCE_COLUMNS)
    return [name for name in schema.names if name in wanted]


def _no_column(origin: str, schema: "pa.Schema", source: SourceOptions) -> BadRecord:
    names = ", ".join(schema.names[:20])
    return BadRecord(origin, f"no column text_key = {source.text_key!r}; the file has: {names}")


def _leaf(group: Any, name: str) -> Any:
    """The chunk of a flat column. A nested column before it has several chunks: its place in the schema is not this."""
    chunks = (group.column(place) for place in range(group.num_columns))
    return next((chunk for chunk in chunks if chunk.path_in_schema == name), None)


def _oversized(column: Any, source: SourceOptions) -> str | None:
    limits = source.limits
    size, packed = column.total_uncompressed_size, max(1, column.total_compressed_size)
    if size > 64_000_000 and size > limits.max_expansion * packed:
        return f"column expands {size / packed:.0f} times, more than limits.max_expansion = {limits.max_expansion:g}"
    if size > limits.max_record_bytes * max(1, column.num_values):
        return f"values are longer on average than limits.max_record_mb = {limits.max_record_mb:g}"
    return None


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet and Arrow needs pyarrow; pip install isoflop[corpus]") from error
    return pyarrow
