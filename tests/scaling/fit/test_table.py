"""Tables: reading, mapping, filtering, weights, and the checks of foreign data."""

import json
import re

import numpy as np
import pytest

from isoflop.errors import DataError, FitError
from isoflop.scaling.fit.checks import fit_rows, import_checks
from isoflop.scaling.fit.run import fit_table
from isoflop.scaling.fit.selection import load_table
from isoflop.scaling.fit.table import Table, read_table

CSV = """kind,params,tokens,batch_seqs,seq_len,loss,sd
a,1e6,2e7,4,128,3.5,0.1
a,2e6,4e7,8,128,3.0,0.2
b,4e6,,8,128,2.5,0.1
"""


@pytest.fixture
def table_path(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(CSV)
    return path


def test_a_mapping_adds_our_columns_products_and_quotients(table_path):
    mapping = "n_params=params,batch_tokens=batch_seqs*seq_len,n_tokens=tokens/2,loss_nats=loss"
    table = load_table(table_path, mapping=mapping)
    assert table.columns["batch_tokens"].tolist() == [512, 1024, 1024]
    np.testing.assert_array_equal(table.columns["n_tokens"], [1e7, 2e7, np.nan])
    assert table.conventions["batch_tokens"] == "= batch_seqs*seq_len"
    with pytest.raises(FitError, match="did you mean params"):
        load_table(table_path, mapping="n_params=parms")
    with pytest.raises(FitError, match="ours=theirs"):
        load_table(table_path, mapping="n_params")


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        (["kind=a"], [1e6, 2e6]),
        (["n_params>1e6"], [2e6, 4e6]),
        (["params<4e6", "n_params>=2e6"], [2e6]),
        (["kind!=a"], [4e6]),
        (["params=2000000"], [2e6]),
        (["tokens>0"], [1e6, 2e6]),
    ],
)
def test_where_reads_numbers_and_text_by_either_name(table_path, conditions, kept):
    table = load_table(table_path, mapping="n_params=params", where=conditions)
    assert table.columns["n_params"].tolist() == kept


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("kind=c", "keeps none of 3 rows; kind takes: a, b"),
        ("kin=a", "did you mean kind"),
        ("kind<a", "use = for text"),
        ("kind", "must read COLUMN=VALUE"),
    ],
)
def test_a_condition_that_cannot_be_meant_says_why(table_path, condition, message):
    with pytest.raises(FitError, match=message):
        load_table(table_path, where=[condition])


def test_weights_from_a_standard_deviation_are_inverse_squares(table_path):
    for name in ("1/sd^2", "1 / sd ** 2"):
        np.testing.assert_allclose(load_table(table_path, weights=name).weights(), [100, 25, 100])
    np.testing.assert_allclose(load_table(table_path, weights="params").weights(), [1e6, 2e6, 4e6])
    with pytest.raises(FitError, match="must be above 0"):
        load_table(table_path, weights="tokens")


def test_the_highest_losses_are_dropped_and_the_rest_keeps_its_order(table_path):
    table = load_table(table_path, mapping="loss_nats=loss", drop_highest_loss=1)
    assert table.columns["loss"].tolist() == [3.0, 2.5]
    assert "1 rows of highest loss_nats" in table.conventions["dropped"]
    with pytest.raises(FitError, match="leaves none"):
        load_table(table_path, mapping="loss_nats=loss", drop_highest_loss=3)


def test_a_missing_column_names_what_exists_and_suggests_a_mapping(table_path):
    with pytest.raises(
        FitError,
        match=r"needs the column n_params or .*kind, params.*--map 'n_params=params,n_tokens=tokens,loss_nats=loss'",
    ):
        fit_table(read_table(table_path), "surface")


def test_jsonl_and_csv_give_the_same_table(table_path, tmp_path):
    csv = read_table(table_path)
    rows = [{name: column[i].item() for name, column in csv.columns.items()} for i in range(csv.n_rows)]
    rows[2]["tokens"] = None
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps({**row, "nested": {"x": 1}}) + "\n" for row in rows))
    table = read_table(path)
    assert list(table.columns) == list(csv.columns)
    for name, column in csv.columns.items():
        np.testing.assert_array_equal(table.columns[name], column)
    assert read_table([table_path, path]).n_rows == 6


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_table(tmp_path / "none.csv")


def sweep(**changes):
    """A clean table of 3 budgets x 4 sizes, with columns replaced."""
    flops = np.repeat([1e15, 2e15, 4e15], 4)
    params = np.tile([1e6, 2e6, 4e6, 8e6], 3)
    tokens = flops / (6 * params)
    columns = {
        "budget_flops": flops,
        "total_flops": flops,
        "n_params": params,
        "n_tokens": tokens,
        "batch_tokens": np.full(12, 4096.0),
        "steps": tokens / 4096,
        "learning_rate": np.full(12, 1e-3),
        "loss_nats": 2 + 400 / params**0.4 + 400 / tokens**0.4,
    }
    return Table({**columns, **{name: np.asarray(value) for name, value in changes.items()}})


CLEAN = sweep().columns
TRAPS = {
    "3.0000 times the label budget_flops in 12 of 12 rows; a factor 3": {"budget_flops": CLEAN["total_flops"] / 3},
    "times the label budget_flops in 4 of 12 rows .all of source=x, no others.": {
        "budget_flops": np.where(np.arange(12) < 4, 3e14, CLEAN["budget_flops"]),
        "source": np.where(np.arange(12) < 4, "x", "y"),
    },
    "6 n_params n_tokens is 1.300 to 1.300 times total_flops": {"n_tokens": CLEAN["n_tokens"] * 1.3},
    "steps x batch_tokens is 0.5 to 0.5 times n_tokens in 12": {"batch_tokens": CLEAN["batch_tokens"] / 2},
    "3 of 12 rows end at more than 30% of their peak": {"min_lr": np.where(np.arange(12) < 3, 5e-4, 0.0)},
    "2 schedules share one law: cosine .10., constant .2.": {"schedule": ["constant"] * 2 + ["cosine"] * 10},
    "1 rows are exact copies": {name: np.append(column, column[-1]) for name, column in CLEAN.items()},
    "appear at several values of steps": {"run": ["same"] * 12},
    "holds 2 kinds of runs: a .6., b .6.": {"dataset": ["a", "b"] * 6},
    "n_tokens is 0 or below in 1 of 12 rows": {"n_tokens": np.append(-5.0, CLEAN["n_tokens"][1:])},
    "loss_nats / bits_per_byte runs from": {"bits_per_byte": CLEAN["loss_nats"] * np.linspace(0.3, 0.5, 12)},
}


def test_a_clean_table_raises_no_warning():
    assert import_checks(sweep()) == []


@pytest.mark.parametrize("message", TRAPS)
def test_each_trap_is_said_in_one_sentence_with_its_numbers(message):
    found = import_checks(sweep(**TRAPS[message]))
    assert [text for text in found if re.search(message, text)], found


def test_one_digit_labels_are_suspect_only_where_nothing_confirms_them():
    labels = np.array([3e18, 9e18, 2e19, 3e19, 9e19])
    assert "one significant digit" in import_checks(Table({"total_flops": labels}))[0]
    assert import_checks(Table({"total_flops": np.array([1e18, 1e19, 1e20])})) == []
    confirmed = {"total_flops": labels, "n_params": np.full(5, 1e8), "n_tokens": labels / 6e8}
    assert not [text for text in import_checks(Table(confirmed)) if "significant" in text]


def test_diverged_uncooled_and_missing_rows_are_left_out_and_counted():
    table = sweep(
        loss_nats=np.append(np.nan, CLEAN["loss_nats"][1:]),
        status=["finished"] * 10 + ["diverged"] * 2,
        cooled=[1.0] * 9 + [0.0] * 3,
    )
    kept, warnings = fit_rows(table, ["loss_nats"])
    assert kept.n_rows == 8
    assert ["1 rows" in warnings[0], "2 rows" in warnings[1], "1 rows" in warnings[2]] == [True] * 3
    with pytest.raises(FitError, match="none of 12 rows"):
        fit_rows(sweep(cooled=np.zeros(12)), [])
