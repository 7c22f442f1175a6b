"""Tables as people really have them: the numbers that were meant, or one message with column, row, value and a way out.

Every table holds the same 24 runs. A good one gives a law exactly these; a bad one is refused, and the message is read.
"""

import csv
import io
import json
import math

import numpy as np
import pytest
from table_files import parquet, workbook

from isoflop.errors import IsoflopError
from isoflop.scaling.fit.checks import fit_rows, import_checks
from isoflop.scaling.fit.selection import load_table
from isoflop.scaling.laws import Surface

HEAD = ("n_params", "n_tokens", "loss_nats")
TRUTH = Surface(1.7, 400.0, 1800.0, 0.34, 0.37)


def runs():
    """24 runs whose numbers survive any spelling: whole sizes in thousands, losses with four decimals."""
    generator = np.random.default_rng(0)
    sizes = np.round(np.geomspace(2e6, 3e9, 24) * generator.uniform(0.9, 1.1, 24), -5)
    tokens = np.round(np.tile(np.geomspace(1e8, 2e11, 6), 4), -6)
    return [(float(n), float(d), round(float(TRUTH.loss(n, d)), 4)) for n, d in zip(sizes, tokens)]


RUNS = runs()
WHOLE = [(f"{n:.0f}", f"{d:.0f}", str(y)) for n, d, y in RUNS]


def text(rows=WHOLE, head=HEAD, sep=",", ends="\n"):
    file = io.StringIO()
    csv.writer(file, delimiter=sep, lineterminator=ends).writerows([head, *rows])
    return file.getvalue()


def grouped(mark, decimal="."):
    return [
        (f"{n:,.0f}".replace(",", mark), f"{d:,.0f}".replace(",", mark), str(y).replace(".", decimal))
        for n, d, y in RUNS
    ]


def changed(row, column, cell, rows=WHOLE):
    """Line row + 2 of the file with another cell."""
    copy = [list(one) for one in rows]
    copy[row][column] = cell
    return copy


def more(head, columns, rows=WHOLE):
    """Further columns at the right."""
    return text([(*row, *cells) for row, cells in zip(rows, zip(*columns))], (*HEAD, *head))


def records(rows=RUNS, head=HEAD):
    return [dict(zip(head, row)) for row in rows]


NUMBERS = [[*HEAD], *map(list, RUNS)]
OTHERS = ("Model Size", "train/tokens seen", "val/loss")
WANDB = "n_params=Model Size,n_tokens=train/tokens seen,loss_nats=val/loss"
RULE = "+" + "+".join("-" * 14 for _ in HEAD) + "+\n"
BOXED = [f"| {row[0]:>12} | {row[1]:>12} | {row[2]:>12} |\n" for row in [HEAD, *WHOLE]]
PPL = [(n, d, repr(math.exp(y))) for (n, d, _), (_, _, y) in zip(WHOLE, RUNS)]
HISTORY = [
    (f"run {i}", step, f"{n:.0f}", f"{d * step / 300:.0f}", str(round(y + 0.9 * (300 - step) / 300, 4)))
    for i, (n, d, y) in enumerate(RUNS)
    for step in (100, 200, 300)
]

GOOD = {
    "plain commas": ("t.csv", text(), {}),
    "semicolons and decimal commas": ("t.csv", text(grouped("", ","), sep=";"), {"said": "semicolons"}),
    "semicolons between numbers of two commas each": (
        "t.txt",
        text(
            [[f"{x:.6e}".replace(".", ",") for x in row[:2]] + [str(row[2]).replace(".", ",")] for row in RUNS], sep=";"
        ),
        {"said": "semicolons"},
    ),
    "tabs in a .tsv": ("t.tsv", text(sep="\t"), {}),
    "tabs in a .txt": ("t.txt", text(sep="\t"), {"said": "tabs"}),
    "aligned by spaces": ("t.txt", "".join(f"{a:>14}{b:>16}  {c}\n" for a, b, c in [HEAD, *WHOLE]), {"said": "spaces"}),
    "Markdown": ("t.md", "".join([BOXED[0], "|---|---:|:---|\n", *BOXED[1:]]), {"said": "bars"}),
    "a drawn box": ("t.txt", RULE + BOXED[0] + RULE + "".join(BOXED[1:]) + RULE, {"said": "bars"}),
    "comments above and between": (
        "t.csv",
        "# sweep of May\n# seeds: 0\n" + text(WHOLE[:9]) + "# second node\n" + text(WHOLE[9:]).partition("\n")[2],
        {"said": "3 comment lines left out, the first is line 1"},
    ),
    "a header behind a comment mark, as numpy.savetxt writes it": (
        "t.txt",
        "# " + " ".join(HEAD) + "\n" + "".join(f"{n:.18e} {d:.18e} {y:.18e}\n" for n, d, y in RUNS),
        {"said": "read as their header"},
    ),
    "a title above the header": (
        "t.csv",
        "Sweep of May\n\n" + text(),
        {"said": "a title left out, the first is 'Sweep"},
    ),
    "a title of a spreadsheet": ("t.csv", "Sweep of May,,\n,,\n" + text(), {"said": "a title left out"}),
    "a line that states the separator": ("t.csv", "sep=;\n" + text(sep=";"), {"said": "semicolons"}),
    "a byte order mark": ("t.csv", text().encode("utf-8-sig"), {}),
    "UTF-16": ("t.csv", text(sep="\t").encode("utf-16"), {"said": "UTF-16"}),
    "UTF-16 without a mark": ("t.csv", text(sep="\t").encode("utf-16-le"), {"said": "UTF-16"}),
    "UTF-16 lines of JSON, as PowerShell redirects them": (
        "t.jsonl",
        "\r\n".join(map(json.dumps, records())).encode("utf-16"),
        {},
    ),
    "Windows-1252": ("t.csv", more(["Gr\u00f6\u00dfe"], [["\u00e4"] * 24]).encode("cp1252"), {"said": "Windows-1252"}),
    "ends of lines of Windows": ("t.csv", text(ends="\r\n"), {}),
    "ends of lines of old Macs": ("t.csv", text(ends="\r"), {}),
    "spaces after commas and quotes": (
        "t.csv",
        "\n".join(", ".join(f'"{c}"' for c in row) for row in [HEAD, *WHOLE]),
        {},
    ),
    "commas between thousands": ("t.csv", text(grouped(",")), {"said": "read as"}),
    "apostrophes between thousands": ("t.csv", text(grouped("'")), {"said": "read as"}),
    "no-break spaces between thousands": ("t.csv", text(grouped("\u00a0")), {"said": "read as"}),
    "underscores between thousands": ("t.csv", text(grouped("_")), {"said": "read as"}),
    "points between thousands": ("t.csv", text(grouped(".", ","), sep=";"), {"said": "read as"}),
    "70M and 2T": (
        "t.csv",
        text([(f"{n / 1e6:.15g}M", f"{d / 1e12:.15g}T", y) for n, d, y in RUNS]),
        {"said": "M' (t.csv line 2) read as"},
    ),
    "7 B with a space": (
        "t.csv",
        text([(f"{n / 1e9:.15g} B", f"{d / 1e9:.15g} billion", y) for n, d, y in RUNS]),
        {"said": "read as"},
    ),
    "powers of ten as in papers": (
        "t.csv",
        text([(f"{n / 1e6:.15g}x10^6", f"{d / 1e9:.15g} \u00d7 10^{{9}}", y) for n, d, y in RUNS]),
        {"said": "read as"},
    ),
    "N/A": ("t.csv", text(changed(5, 2, "N/A")), {"lost": 5, "said": "'N/A' (t.csv line 7) read as missing"}),
    "#DIV/0!": ("t.csv", text(changed(5, 2, "#DIV/0!")), {"lost": 5, "said": "line 7"}),
    "a dash": ("t.csv", text(changed(5, 2, "\u2014")), {"lost": 5, "said": "line 7"}),
    "an empty cell": ("t.csv", text(changed(5, 2, "")), {"lost": 5, "warned": "1 rows left out: loss_nats is missing"}),
    "infinity": ("t.csv", text(changed(5, 2, "inf")), {"lost": 5, "said": "line 7) read as infinite"}),
    "empty lines and columns": ("t.csv", text([(*row, "", "") for row in WHOLE], (*HEAD, "", "")) + ",,,,\n,,,,\n", {}),
    "an index that pandas wrote": ("t.csv", text([(i, *row) for i, row in enumerate(WHOLE)], ("", *HEAD)), {}),
    "names with / and spaces": ("t.csv", text(head=OTHERS), {"mapping": WANDB}),
    "a name with a comma": (
        "t.csv",
        text(head=("size, total", *HEAD[1:])),
        {"mapping": 'n_params="size, total"'},
    ),
    "a name that reads like a quotient of others": (
        "t.csv",
        more(["val", "loss", "val/loss"], [["1"] * 24, ["2"] * 24, [row[2] for row in WHOLE]]).replace(
            "loss_nats", "x"
        ),
        {"mapping": "loss_nats=val/loss"},
    ),
    "crashed runs of a tracker": (
        "t.csv",
        more(
            ["Name", "State"], [[f"r{i}" for i in range(24)], ["crashed" if i == 3 else "finished" for i in range(24)]]
        ),
        {"lost": 3, "warned": "1 rows left out: State = crashed"},
    ),
    "checkpoints of runs": (
        "t.csv",
        text(HISTORY, ("Name", "_step", *HEAD)),
        {"said": "48 rows left out: checkpoints before the last _step of their Name (the first: t.csv line 2)"},
    ),
    "runs of one name whose lengths grow by factors": (
        "t.csv",
        more(
            ["run", "step"], [[f"width {i // 6}" for i in range(24)], [str(4**i) for _ in range(4) for i in range(6)]]
        ),
        {"warned": "appear at several values of step"},
    ),
    "runs at a constant rate among cooled ones": (
        "t.csv",
        more(["lr_schedule"], [["constant" if i in (2, 9) else "cosine" for i in range(24)]]),
        {"lost": (2, 9), "warned": "2 rows left out: lr_schedule = constant, never cooled"},
    ),
    "two cooled schedules": (
        "t.csv",
        more(["lr_schedule"], [["linear" if i % 2 else "cosine" for i in range(24)]]),
        {"warned": "2 schedules share one law: cosine (12), linear (12)"},
    ),
    "an array of JSON": ("t.json", json.dumps(records(), indent=1), {}),
    "columns of JSON, as pandas writes them": (
        "t.json",
        json.dumps({name: {str(i): row[k] for i, row in enumerate(RUNS)} for k, name in enumerate(HEAD)}),
        {},
    ),
    "columns and data, as a tracker's table": ("t.json", json.dumps({"columns": HEAD, "data": RUNS}), {}),
    "lines of JSON called .txt": ("t.txt", "\n".join(map(json.dumps, records())), {}),
    "NaN in JSON": ("t.jsonl", "\n".join(map(json.dumps, records(changed(5, 2, math.nan, RUNS)))), {"lost": 5}),
    "a workbook": ("t.xlsx", workbook(runs=NUMBERS), {}),
    "a workbook of text": ("t.xlsx", workbook(runs=[HEAD, *grouped(",")]), {"said": "sheet 'runs' row 2) read as"}),
    "a workbook with notes first": (
        "t.xlsx",
        workbook(notes=[["to do"], ["more seeds"]], runs=NUMBERS),
        {"said": "sheet 'runs' is read, the fullest, not 'notes'"},
    ),
    "a workbook with a title": ("t.xlsx", workbook(runs=[["Sweep of May"], [], *NUMBERS]), {"said": "title"}),
    "a workbook called .csv": ("t.csv", workbook(runs=NUMBERS), {}),
    "Parquet": ("t.parquet", lambda: parquet(dict(zip(HEAD, map(list, zip(*RUNS))))), {}),
    "Parquet of text": ("t.pq", lambda: parquet(dict(zip(HEAD, map(list, zip(*grouped(",")))))), {"said": "row 1"}),
    "perplexity": (
        "t.csv",
        text(PPL, (*HEAD[:2], "val_ppl")),
        {"mapping": "perplexity=val_ppl", "said": "perplexity is fitted as loss_nats"},
    ),
    "bits per token with their conversion": (
        "t.csv",
        text([(n, d, repr(y / math.log(2))) for n, d, y in RUNS], (*HEAD[:2], "loss_bits")),
        {"mapping": "loss_nats=loss_bits*0.6931471805599453"},
    ),
    "millions with their factor": (
        "t.csv",
        text([(f"{n / 1e6:.15g}", d, y) for n, d, y in RUNS], ("Params (M)", *HEAD[1:])),
        {"mapping": "n_params=Params (M)*1e6"},
    ),
    "tokens as batch x steps": (
        "t.csv",
        text([(n, f"{d / 1e6:.0f}", "1000", "1000", y) for n, d, y in RUNS], (HEAD[0], "iters", "bs", "ctx", HEAD[2])),
        {"mapping": "n_tokens=iters*bs*ctx"},
    ),
    "a unit that agrees": ("t.csv", more(["unit"], [["nats/token"] * 24]), {}),
    "nats that are called bits per byte": (
        "t.csv",
        text(head=(*HEAD[:2], "loss")),
        {"mapping": "bits_per_byte=loss", "warned": "bits_per_byte has a median of 2"},
    ),
    "bits per byte that are called nats": (
        "t.csv",
        text([(n, d, y / 2.9) for n, d, y in RUNS], (*HEAD[:2], "loss")),
        {"mapping": "loss_nats=loss", "warned": "loss_nats has a median of 0.", "losses": [y / 2.9 for *_, y in RUNS]},
    ),
    "one diverged run": (
        "t.csv",
        text(changed(5, 2, "9.7")),
        {"losses": [*(r[2] for r in RUNS[:5]), 9.7, *(r[2] for r in RUNS[6:])]},
    ),
    "copies of a row": ("t.csv", text([*WHOLE, WHOLE[3]]), {"copies": 3, "warned": "1 rows are exact copies"}),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_law_sees_the_runs_that_were_meant_and_what_was_inferred_is_said(tmp_path, name):
    file, content, how = GOOD[name]
    content = content() if callable(content) else content
    (tmp_path / file).write_bytes(content.encode() if isinstance(content, str) else content)
    table = load_table(tmp_path / file, mapping=how.get("mapping", ""))
    loss = "loss_nats" if table.has("loss_nats") else "bits_per_byte"
    warned = import_checks(table)
    table, left_out = fit_rows(table, [*HEAD[:2], loss])
    kept = np.delete(np.arange(24), how.get("lost", []))
    kept = np.append(kept, how["copies"]) if "copies" in how else kept
    for column, values in zip((*HEAD[:2], loss), zip(*RUNS)):
        wanted = np.array(how.get("losses", values) if column == loss else values)[kept]
        np.testing.assert_allclose(table.columns[column], wanted, rtol=1e-14)
    said = "\n".join(table.inferences)
    assert how["said"] in said if "said" in how else "read as" not in said and "separated" not in said, said
    assert how.get("warned", "") in "\n".join([*table.warnings, *warned, *left_out])


HALF = [(n, d, repr(y / 2.93) if i % 2 else repr(y)) for i, (n, d, y) in enumerate(RUNS)]
BAD = {
    "a million or a thousandth": (
        "t.csv",
        text(changed(4, 0, "350m")),
        {},
        "column n_params, t.csv line 6: '350m' is no number",
    ),
    "a percentage": ("t.csv", text(changed(4, 2, "3.2%")), {}, "column loss_nats, t.csv line 6: '3.2%'"),
    "about": ("t.csv", text(changed(4, 2, "~3")), {}, "t.csv line 6: '~3' is no number; write it in digits"),
    "an error bar": ("t.csv", text(changed(4, 2, "3.1\u00b10.1")), {}, "t.csv line 6"),
    "a unit in the cell": ("t.csv", text(changed(4, 2, "2.9 nats")), {}, "t.csv line 6: '2.9 nats'"),
    "a date that a spreadsheet made": ("t.csv", text(changed(4, 2, "12.11.2024")), {}, "t.csv line 6: '12.11.2024'"),
    "a formula's text": (
        "t.xlsx",
        workbook(runs=changed(4, 2, "=C5*2", [[*HEAD], *map(list, RUNS)])),
        {},
        "row 5: '=C5*2'",
    ),
    "a comma of either kind": (
        "t.csv",
        text([(n, d, y.replace(".", ",")[:5]) for n, d, y in [(*row[:2], f"{float(row[2]):.3f}") for row in WHOLE]]),
        {},
        "may be a decimal mark or a thousands separator",
    ),
    "two columns of one name": (
        "t.csv",
        text(head=("loss_nats", *HEAD[1:])),
        {},
        "two columns named loss_nats (1 and 3)",
    ),
    "a row too long": (
        "t.csv",
        text().replace(WHOLE[4][2], WHOLE[4][2] + ",7"),
        {},
        "line 6 has 4 values, the header 3",
    ),
    "two separators": (
        "t.csv",
        text(WHOLE[:9]) + text(WHOLE[9:], sep=";").partition("\n")[2],
        {},
        "line 11 has 1 values",
    ),
    "an open quote": (
        "t.csv",
        text().replace(WHOLE[4][0], '"' + WHOLE[4][0]),
        {},
        "not CSV text (unexpected end of data); close",
    ),
    "no header": ("t.csv", text().partition("\n")[2], {}, "has no header: its first line is"),
    "nothing": ("t.csv", "", {}, "has no rows"),
    "a header alone": ("t.csv", ",".join(HEAD) + "\n", {}, "has no rows"),
    "an empty workbook": ("t.xlsx", workbook(runs=[]), {}, "has no rows"),
    "other names": ("t.csv", text(head=OTHERS), {}, "try --map 'n_params=Model Size"),
    "a misspelt name": (
        "t.csv",
        text(),
        {"mapping": "n_params=n_parms"},
        "no column 'n_parms'; did you mean n_params?",
    ),
    "a name of text": (
        "t.csv",
        more(["run"], [["a"] * 24]),
        {"mapping": "n_params=run"},
        "column run, t.csv line 2: 'a' is no number",
    ),
    "millions": (
        "t.csv",
        text([(f"{n / 1e6:.15g}", d, y) for n, d, y in RUNS]),
        {},
        "column n_params, t.csv line 2: 2.1 must be a count of at least 10000; in millions? map it with a factor",
    ),
    "billions of tokens": (
        "t.csv",
        text([(n, d / 1e9, y) for n, d, y in RUNS]),
        {},
        "column n_tokens, t.csv line 2: 0.1 must be",
    ),
    "one row in millions": (
        "t.csv",
        text(changed(4, 0, "350")),
        {},
        "column n_params, t.csv line 6: 350 must be a count",
    ),
    "half nats, half bits per byte": ("t.csv", text(HALF), {}, "12 of 24 rows are 2.9"),
    "four rows in bits": (
        "t.csv",
        text([(n, d, y / math.log(2) if i in (3, 8, 13, 20) else y) for i, (n, d, y) in enumerate(RUNS)]),
        {},
        "column loss_nats, t.csv line 5: ",
    ),
    "one row in bits per byte": ("t.csv", text(changed(5, 2, repr(RUNS[5][2] / 2.93))), {}, "t.csv line 7: "),
    "some rows as perplexity": (
        "t.csv",
        text([(n, d, math.exp(y) if i in (3, 8, 13) else y) for i, (n, d, y) in enumerate(RUNS)]),
        {},
        "column loss_nats, t.csv line 5: ",
    ),
    "units named, two": (
        "t.csv",
        more(["unit"], [["nats"] * 20 + ["bits"] * 4]),
        {},
        "column unit, t.csv line 22: bits is not loss_nats",
    ),
    "another unit named": (
        "t.csv",
        more(["loss_unit"], [["bpb"] * 24]),
        {},
        "column loss_unit, t.csv line 2: bpb is not loss_nats",
    ),
    "perplexity that is called nats": (
        "t.csv",
        text([(n, d, math.exp(y) * 4) for n, d, y in RUNS]),
        {},
        "--map perplexity=...",
    ),
    "more bits than a byte has": (
        "t.csv",
        text([(n, d, 4 * y) for n, d, y in RUNS], (*HEAD[:2], "bits_per_byte")),
        {},
        "a byte has 8 bits",
    ),
    "a name that says bits per byte": (
        "t.csv",
        text(head=(*HEAD[:2], "val_bpb")),
        {"mapping": "loss_nats=val_bpb"},
        "--map loss_nats=val_bpb: the name says bits_per_byte (column val_bpb, t.csv line 2: ",
    ),
    "a name that says perplexity": (
        "t.csv",
        text(head=(*HEAD[:2], "eval/ppl")),
        {"mapping": "loss_nats=eval/ppl"},
        "--map perplexity=eval/ppl",
    ),
    "a name that says bits": (
        "t.csv",
        text(head=(*HEAD[:2], "loss (bits)")),
        {"mapping": "loss_nats=loss (bits)"},
        "loss (bits)*0.693147",
    ),
    "a perplexity below 1": (
        "t.csv",
        text(changed(4, 2, "0.9", PPL), (*HEAD[:2], "perplexity")),
        {},
        "column perplexity, t.csv line 6: 0.9 must be above 1",
    ),
    "tokenizers of other lengths": (
        "t.csv",
        more(["bytes_per_token"], [["4.2"] * 20 + ["3.1"] * 4]),
        {},
        "column bytes_per_token, t.csv line 22: 3.1 differs from 4.2",
    ),
    "an archive": ("t.xlsx", b"PK\x03\x04" + b"\0" * 200, {}, "no workbook that can be read"),
    "damaged Parquet": ("t.parquet", b"PAR1" + b"\1" * 200, {}, "damaged Parquet"),
    "a picture": ("t.csv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)), {}, "not a table of text"),
    "a compressed table": ("t.csv.gz", b"\x1f\x8b\x08\0" + b"\0" * 50, {}, "is compressed; unpack it"),
    "one name twice in JSON": (
        "t.jsonl",
        '{"loss_nats": 1, "n_params": 2, "loss_nats": 3}\n',
        {},
        "names loss_nats twice",
    ),
    "a list of numbers": ("t.json", "[1, 2, 3]", {}, "one run is one object"),
    "a broken line of JSON": ("t.jsonl", '{"a": 1}\n{"a": \n{"a": 3}\n', {}, "line 2 is not JSON"),
    "lists in lists in lists": ("t.json", "[" * 50_000, {}, "is not JSON"),
    "columns that are no list": ("t.json", '{"columns": 3, "data": [[1]]}', {}, "columns and data that are no lists"),
    "data of another width": (
        "t.json",
        '{"columns": ["a", "b"], "data": [[1, 2], [1, 2, 3]]}',
        {},
        "row 2 of data has 3 values, columns 2",
    ),
    "data of numbers": ("t.json", '{"columns": ["a", "b"], "data": [1]}', {}, "row 1 of data has no list of values"),
    "columns of one name": ("t.json", '{"columns": ["a", "a"], "data": [[1, 2]]}', {}, "two columns named a"),
    "no run that finished": (
        "t.csv",
        more(["state"], [["crashed"] * 24]),
        {},
        "none of 24 rows can be fitted: 24 rows left out: state",
    ),
    "no loss at all": ("t.csv", text([(n, d, "N/A") for n, d, _ in WHOLE]), {}, "absent or empty"),
    "an object in a cell": (
        "t.jsonl",
        "\n".join(map(json.dumps, records(changed(4, 2, {"mean": 3}, RUNS)))),
        {},
        "column loss_nats, t.jsonl line 5: {'mean': 3} is no number",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_meant_is_refused_in_one_sentence_with_its_place(tmp_path, name):
    file, content, how, message = BAD[name]
    (tmp_path / file).write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(IsoflopError) as refused:
        table = load_table(tmp_path / file, mapping=how.get("mapping", ""))
        import_checks(table)
        scale, loss = table.scale("a law")[0], table.loss("a law")[0]
        fit_rows(table, [scale, "n_tokens", loss])
    assert message in str(refused.value), refused.value
    assert "\n" not in str(refused.value) and ("; " in str(refused.value) or ": " in str(refused.value))
