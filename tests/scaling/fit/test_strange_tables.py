"""Tables and measurements as other people have them: the number that was meant or a refusal by name, and no optimum
without a word."""

import csv
import json

import numpy as np
import pytest
from table_files import HEAD, RUNS, TRUTH

from isoflop.columns import as_number
from isoflop.errors import DataError, FitError, IsoflopError
from isoflop.scaling.fit.run import LAWS, fit_table, run_fit
from isoflop.scaling.fit.selection import load_table
from isoflop.scaling.fit.table import Table, read_table
from isoflop.scaling.sweep.records import RunRecord


def write(path, rows, head=HEAD):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])
    return path


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("6.4M", 6.4e6),
        ("2T", 2e12),
        ("7b", 7e9),
        ("300K", 3e5),
        ("2.3 billion", 2.3e9),
        ("1,234.5K", 1234500.0),
        ("\u22122.5e3", -2500.0),
        ("12,34,567", 1234567.0),
        ("1.234.567,5", 1234567.5),
        ("0,125", 0.125),
    ],
)
def test_units_and_separators_that_leave_no_doubt_are_numbers(tmp_path, cell, number):
    assert as_number(cell) == number
    rows = [[cell, "1e9", "3.1"], ["1e7", "1e9", "3.1"]]
    table = read_table(write(tmp_path / "t.csv", rows))
    assert table.columns["n_params"].tolist() == [number, 1e7]
    assert any(repr(cell) in text and "line 2" in text for text in table.inferences)


@pytest.mark.parametrize(
    "cell",
    [
        "3.2%",
        "350m",
        "2.9 nats",
        "~3",
        "3.1\u00b10.1",
        "<3",
        "1e",
        "1,23",
        "1_0",
        "12.11.2024",
        "3.1.2",
        "x",
        "TRUE",
        "$3",
    ],
)
def test_a_cell_that_is_no_number_is_named_with_its_column_and_line_by_every_law_that_reads_it(tmp_path, cell):
    rows = [list(row) for row in RUNS]
    rows[4][2] = cell
    path = write(tmp_path / "runs.csv", rows)
    for law in ("surface", "parabola", "lstar", "hyper"):
        with pytest.raises(DataError, match=r"column loss_nats, runs\.csv line 6: '.*'") as refused:
            run_fit(path, law, bootstrap=0)
        assert cell in str(refused.value)
    with pytest.raises(DataError, match="line 6"):
        load_table(path, mapping="bits_per_byte=loss_nats/2")
    with pytest.raises(DataError, match="line 6"):
        load_table(path, where=["loss_nats<4"])
    assert load_table(path, where=["n_params<1e7"]).n_rows > 0  # what reads other columns is not disturbed


def test_a_bad_cell_makes_no_other_column_take_the_place_of_its_own(tmp_path):
    rows = [(n, d, loss, "6 PF" if i == 3 else 6 * n * d) for i, (n, d, loss) in enumerate(RUNS)]
    with pytest.raises(DataError, match=r"column total_flops, t\.csv line 5: '6 PF' is no number"):
        run_fit(write(tmp_path / "t.csv", rows, (*HEAD, "total_flops")), "power", bootstrap=0)


@pytest.mark.parametrize("mark", ["N/A", "-", "nan", "NULL", "#DIV/0!", "\u2014", ""])
def test_a_missing_number_costs_its_row_and_is_said(tmp_path, mark):
    rows = [list(row) for row in RUNS]
    rows[7][2] = mark
    result = run_fit(write(tmp_path / "t.csv", rows), "surface", bootstrap=0)
    assert result["n_rows"] == 23
    assert any("1 rows left out: loss_nats" in text for text in result["warnings"])
    assert any(repr(mark) in text and "line 9" in text for text in result["inferences"]) == bool(mark)


@pytest.mark.parametrize("cells", [["1,234", "2,345"], ["1,234", "1.5"], ["1.234", "2,5", "1.234.567", "2.5"]])
def test_a_mark_that_may_mean_two_things_is_refused(tmp_path, cells):
    path = write(tmp_path / "t.csv", [[cell, "10", "3"] for cell in cells])
    if cells == ["1,234", "1.5"]:  # the point is decimal, so the comma groups
        assert read_table(path).columns["n_params"].tolist() == [1234.0, 1.5]
        return
    with pytest.raises(DataError, match=r"column n_params, t\.csv line [25]: .* (may be a decimal mark|is no number)"):
        read_table(path).numbers("n_params")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loss_nats,n_params,loss_nats\n1,2,3\n", r"two columns named loss_nats \(1 and 3\)"),
        ("loss_nats, loss_nats \n1,3\n", "two columns named loss_nats"),
        ("\ufeffloss_nats;n;loss_nats\n1;2;3\n", "two columns named loss_nats"),
        ('{"loss_nats": 1, "n": 2, "loss_nats": 3}\n', "names loss_nats twice"),
        ('{"loss_nats": 1, " loss_nats": 3}', "names loss_nats twice"),
        ('n,note\n1,"five\n2,b\n3,c\n', "line 4 is not CSV text.*close the quotes"),
        ("n;d\n1;2\n1;2;3\n", "line 3 has 3 values, the header 2 .separated by semicolons"),
    ],
)
def test_nothing_in_a_file_collapses_in_silence(tmp_path, text, message):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_table(path)


def test_empty_lines_and_columns_of_a_spreadsheet_are_no_rows_and_no_columns(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("sep=;\nn;;d;;\n1;;2;;\n;;;;\n3;x;4;;\n")
    table = read_table(path)
    assert {name: column.tolist() for name, column in table.columns.items()} == {
        "n": [1.0, 3.0],
        "column 2": ["", "x"],
        "d": [2.0, 4.0],
    }


def two_texts(ids, **more):
    return [
        {"run_id": name, "text": text, "n_params": n, "n_tokens": d, "loss_nats": loss - minus, **more}
        for name, (n, d, loss) in zip(ids, RUNS)
        for text, minus in (("web", 0.0), ("code", 0.8), ("web2", 0.1))
    ]


@pytest.mark.parametrize("ids", [[f"r{i}" for i in range(24)], list(range(1234567, 1234591)), ["same"] * 24, [""] * 24])
@pytest.mark.parametrize("where", [[], ["text=web"], ["text!=web"], ["loss_nats<3"]])
def test_csv_and_json_lines_keep_the_same_rows_of_a_run(tmp_path, ids, where):
    rows = two_texts(ids)
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write(tmp_path / "t.csv", [list(row.values()) for row in rows], list(rows[0]))
    tables = [load_table(tmp_path / name, where=where) for name in ("t.jsonl", "t.csv")]
    for name in HEAD:
        np.testing.assert_array_equal(tables[0].columns[name], tables[1].columns[name])
    assert tables[0].warnings == tables[1].warnings
    repeated = tables[0].n_rows - len(set(tables[0].columns["run_id"].tolist())) if ids[0] else 0
    assert [f"{repeated} rows have the run_id of another row; all are fitted" in w for w in tables[0].warnings] == [
        True
    ] * bool(repeated)
    if where != ["loss_nats<3"]:
        assert tables[0].n_rows == {"": 72, "text=web": 24, "text!=web": 48}["".join(where)]


def test_a_repeated_run_of_a_sweep_replaces_its_earlier_row_and_that_is_said(tmp_path):
    rows = [
        RunRecord(f"r{i}", study="s", n_params_total=1, n_tokens=int(d), flops_per_token=n, loss_nats=loss).to_dict()
        for i, (n, d, loss) in enumerate(RUNS)
    ]
    again = [{**rows[3], "loss_nats": 9.0}, {**rows[5], "loss_nats": 8.0}]
    (tmp_path / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, *again]))
    table = load_table(tmp_path / "records.jsonl")
    assert table.n_rows == 24
    assert table.columns["loss_nats"][[3, 5]].tolist() == [9.0, 8.0]
    assert table.inferences == ["2 rows have the run_id of another row; replaced by a later row of it"]


def bowls(loss, budgets=(1e16, 1e17, 1e18), sizes=6):
    """Runs of equal compute around N = 0.1 C^0.5 with losses from a function of compute and ln(N / best)."""
    flops = np.repeat(budgets, sizes)
    offset = np.tile(np.linspace(-1, 1, sizes), len(budgets))
    params = 0.1 * flops**0.5 * np.exp(offset)
    return Table(
        {
            "total_flops": flops,
            "n_params": params,
            "n_tokens": flops / 6 / params,
            "loss_nats": np.broadcast_to(np.asarray(loss(flops, offset), dtype=float), len(flops)).copy(),
        }
    )


NO_BOTTOM = {
    "equal": lambda C, x: 3.0 + 0 * C,
    "equal but for rounding": lambda C, x: 3.0 + 1e-13 * np.sin(40 * x),
    "equal within each budget": lambda C, x: 2 + 1e-18 * C,
    "a dome": lambda C, x: 3 - 0.1 * x**2,
    "falling with size": lambda C, x: 3 - 0.1 * x,
    "rising with size, bent": lambda C, x: 3 + 0.05 * np.exp(x / 2),
}


@pytest.mark.parametrize("method", ["parabola", "akima", "auto"])
@pytest.mark.parametrize("shape", NO_BOTTOM)
def test_curves_without_a_bottom_give_no_law(shape, method):
    for law in ("parabola", "lstar"):
        with pytest.raises(FitError, match=r"in 3 of 3 budgets.*(equal|bend|lowest loss is at the edge|lies)"):
            fit_table(bowls(NO_BOTTOM[shape]), law, bootstrap=0, interpolation=method)


def test_what_is_fitted_but_hardly_says_an_optimum_carries_a_warning():
    noise = np.random.default_rng(3).normal(size=18)
    flat = bowls(lambda C, x: 3 - 0.1 * np.log10(C / 1e16) + 0.001 * x**2 + 0.003 * noise)
    try:
        said = " ".join(fit_table(flat, "parabola", bootstrap=0)["warnings"])
    except FitError as refused:
        said = str(refused)
    assert "hardly bends" in said or "does not bend" in said or "lies" in said
    rising = bowls(lambda C, x: 2 + 0.1 * np.log10(C / 1e16) + 0.1 * x**2)
    assert any("does not fall" in text for text in fit_table(rising, "parabola", bootstrap=0)["warnings"])
    assert any("k is 0" in text for text in fit_table(rising, "lstar", bootstrap=0)["warnings"])
    flops = np.geomspace(1e16, 1e19, 5)
    shrinking = Table({"total_flops": flops, "n_params": 1e12 * flops**-0.2, "n_tokens": flops**1.2})
    assert any("n_exponent = -0.2" in text for text in fit_table(shrinking, "power", bootstrap=0)["warnings"])
    one_ratio = Table({"n_params": flops**0.5, "n_tokens": 20 * flops**0.5, "loss_nats": 1 + 30 * flops**-0.1})
    one_ratio = Table({name: np.repeat(column, 2) for name, column in one_ratio.columns.items()})
    assert any("change only together" in text for text in fit_table(one_ratio, "surface", bootstrap=0)["warnings"])


BOWL = bowls(lambda C, x: 3 + x**2)
NEAR = {"total_flops": np.array([1e17, 1.01e17, 1.02e17]), "loss_nats": np.array([3, 2.9, 2.8])}


@pytest.mark.parametrize(
    ("table", "law", "message"),
    [
        (bowls(lambda C, x: 3 + x**2, budgets=(1e17,)), "parabola", "all 6 rows have one compute"),
        (bowls(lambda C, x: 3 + x**2, budgets=(1e17,)), "lstar", "all 6 rows have one compute"),
        (bowls(lambda C, x: 0 * x + 3), "surface", "all 18 losses are equal"),
        (BOWL.adding(n_params=1e7 + np.tile(np.arange(6.0), 3)), "parabola", "within a factor 1"),
        (bowls(lambda C, x: -3 - x**2), "parabola", "none of 18 rows can be fitted"),
        (bowls(lambda C, x: np.full(18, np.inf)), "surface", "loss_nats"),
        (Table(NEAR), "lstar", "within 10%"),
        (Table({"total_flops": np.array([1e17, 1.01e17]), "n_params": np.array([1e7, 2e7])}), "power", "two budgets"),
    ],
)  # fmt: skip
def test_measurements_without_spread_are_refused_in_one_sentence(table, law, message):
    with pytest.raises(FitError, match=message):
        fit_table(table, law, bootstrap=0)


@pytest.mark.parametrize("value", [10**400, -(10**400), float("inf"), "1e400", True, [3.1], {"mean": 3.1}, "", None])
@pytest.mark.parametrize("column", ["total_flops", "n_params", "n_tokens", "loss_nats"])
def test_one_strange_value_is_named_or_costs_its_row_with_a_word(tmp_path, column, value):
    table = bowls(lambda C, x: 4 * C**-0.01 + 0.1 * x**2, sizes=7)
    rows = [{name: values[i] for name, values in table.columns.items()} for i in range(table.n_rows)]
    rows[9][column] = value
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    for law in LAWS:
        try:
            result = run_fit(path, law, bootstrap=0)
        except IsoflopError as refused:
            assert "Error" not in str(refused)
            assert (
                not isinstance(value, (bool, list, dict))
                or law in ("hyper", "experts")
                or (f"column {column}, t.jsonl line 10: {value}" in str(refused))
                or column not in str(refused)
            )
            continue
        assert not isinstance(value, (bool, list, dict)), (law, result["warnings"])
        read = not (law in ("surface", "overtraining") and column == "total_flops") and not (
            law == "power" and column == "loss_nats"
        )
        assert not read or any(f"1 rows left out: {column}" in text for text in result["warnings"]), law


@pytest.mark.parametrize("seed", [6, 13, 20, 24])
def test_few_runs_of_one_ratio_with_rounded_losses_are_an_answer_or_one_sentence(seed):
    sizes = 10 ** np.random.default_rng(seed).uniform(6, 9, 6)
    loss = np.round(TRUTH.loss(sizes, 20 * sizes), 1)
    table = Table({"n_params": sizes, "n_tokens": 20 * sizes, "loss_nats": loss})
    try:
        found = fit_table(table, "surface", bootstrap=20)
    except FitError as refused:
        assert "\n" not in str(refused)
    else:
        assert any("change only together" in text for text in found["warnings"])
