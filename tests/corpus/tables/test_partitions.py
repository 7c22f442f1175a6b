"""Partition folders: the same rows give the same bytes, and what is complete says so."""

import random

import pytest

from isoflop.corpus.tables import partitions as tables
from isoflop.errors import DataError

pa = pytest.importorskip("pyarrow", reason="tables need the corpus extra")

N_PARTITIONS = 7


def documents(n: int) -> "pa.Table":
    rows = []
    for i in range(n):
        text = f"text {i // 2} \u4e2d\u6587"  # every text twice
        key = tables.document_key("web", text)
        rows.append((key, f"s/{i}", "s", "web", "en", "mit", text))
    columns = list(zip(*rows)) if rows else [()] * len(tables.DOCUMENT_COLUMNS)
    return pa.table([list(column) for column in columns], schema=tables.document_schema())


def build(folder, rows, n_runs, generator):
    order = list(range(rows.num_rows))
    generator.shuffle(order)
    runs = []
    for i in range(n_runs):
        runs.append(folder / "runs" / f"{i}.arrow")
        tables.write_run(runs[-1], rows.take(pa.array(order[i::n_runs], "int64")), N_PARTITIONS)
    for partition in range(N_PARTITIONS):
        tables.write_partition(folder / "out", partition, tables.read_runs(runs, partition))
    return tables.finish(folder / "out", N_PARTITIONS)


def test_bytes_do_not_depend_on_the_order_of_rows_nor_on_the_number_of_runs(tmp_path):
    rows = documents(2000)
    one = build(tmp_path / "one", rows, 1, random.Random(1))
    many = build(tmp_path / "many", rows, 13, random.Random(2))
    assert one == many and one.n_rows == 2000
    assert one.n_text_bytes == sum(len(text.encode()) for text in rows.column("text").to_pylist())
    for partition in range(N_PARTITIONS):
        paths = [tables.partition_path(tmp_path / name / "out", partition) for name in ("one", "many")]
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_partitions_in_order_are_all_rows_in_order(tmp_path):
    rows = documents(500)
    build(tmp_path, rows, 3, random.Random(3))
    parts = [tables.read_partition(tmp_path / "out", index, ["key", "origin"]) for index in range(N_PARTITIONS)]
    found = pa.concat_tables(parts).to_pylist()
    wanted = sorted(zip(rows.column("key").to_pylist(), rows.column("origin").to_pylist()))
    assert [(row["key"], row["origin"]) for row in found] == wanted


def test_empty_partitions_and_empty_tables_are_tables(tmp_path):
    info = build(tmp_path, documents(2), 2, random.Random(4))
    assert info.n_rows == 2
    assert build(tmp_path / "none", documents(0), 1, random.Random(5)).n_rows == 0


def test_an_unfinished_folder_says_so(tmp_path):
    tables.write_partition(tmp_path, 1, documents(4))
    with pytest.raises(DataError, match="lacks 2 of 3 partitions, first 0"):
        tables.finish(tmp_path, 3)
    with pytest.raises(DataError, match=r"has no table\.json"):
        tables.open_table(tmp_path)


def test_a_damaged_partition_names_its_file(tmp_path):
    tables.write_partition(tmp_path, 0, documents(4))
    path = tables.partition_path(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"part-00000\.parquet can't be read"):
        tables.read_partition(tmp_path, 0)


def test_a_failed_write_leaves_no_file(tmp_path):
    with pytest.raises(KeyError):
        tables.write_run(tmp_path / "run.arrow", documents(4).drop_columns(["key"]), N_PARTITIONS)
    assert not list(tmp_path.iterdir())
