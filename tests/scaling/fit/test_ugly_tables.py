"""Tables as people really have them: the numbers that were meant, or one message with column, row, value and a way out.

Every table holds the same 24 runs. A good one gives a law exactly these; a bad one is refused, and the message is read.
"""

import csv
import io
import json
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from table_files import HEAD, RUNS, parquet, workbook

from isoflop.errors import IsoflopError
from isoflop.scaling.fit.checks import fit_rows, import_checks
from isoflop.scaling.fit.selection import load_table

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


class Good(NamedTuple):
    """A file whose rows are RUNS but for those `lost`, with row `copies` twice; what is said of it, in part."""

    content: str | bytes | Callable[[], bytes]
    file: str = "t.csv"
    mapping: str = ""
    said: str = ""
    warned: str = ""
    lost: int | tuple[int, ...] = ()
    copies: int | None = None
    losses: list[float] | None = None


class Bad(NamedTuple):
    """A file that is refused with this in the message."""

    content: str | bytes
    message: str
    file: str = "t.csv"
    mapping: str = ""


def load(folder, case):
    content = case.content() if callable(case.content) else case.content
    (folder / case.file).write_bytes(content.encode() if isinstance(content, str) else content)
    return load_table(folder / case.file, mapping=case.mapping)


GOOD = {
    "plain commas": Good(text()),
    "semicolons and decimal commas": Good(text(grouped("", ","), sep=";"), said="semicolons"),
    "semicolons between numbers of two commas each": Good(
        text(
            [[f"{x:.6e}".replace(".", ",") for x in row[:2]] + [str(row[2]).replace(".", ",")] for row in RUNS], sep=";"
        ),
        "t.txt",
        said="semicolons",
    ),
    "tabs in a .tsv": Good(text(sep="\t"), "t.tsv"),
    "tabs in a .txt": Good(text(sep="\t"), "t.txt", said="tabs"),
    "aligned by spaces": Good("".join(f"{a:>14}{b:>16}  {c}\n" for a, b, c in [HEAD, *WHOLE]), "t.txt", said="spaces"),
    "Markdown": Good("".join([BOXED[0], "|---|---:|:---|\n", *BOXED[1:]]), "t.md", said="bars"),
    "bars alone": Good(text(sep="|"), said="separated by"),
    "a drawn box": Good(RULE + BOXED[0] + RULE + "".join(BOXED[1:]) + RULE, "t.txt", said="bars"),
    "comments above and between": Good(
        "# sweep of May\n# seeds: 0\n" + text(WHOLE[:9]) + "# second node\n" + text(WHOLE[9:]).partition("\n")[2],
        said="3 comment lines left out, the first is line 1",
    ),
    "a header behind a comment mark, as numpy.savetxt writes it": Good(
        "# " + " ".join(HEAD) + "\n" + "".join(f"{n:.18e} {d:.18e} {y:.18e}\n" for n, d, y in RUNS),
        "t.txt",
        said="read as their header",
    ),
    "a title above the header": Good("Sweep of May\n\n" + text(), said="a title left out, the first is 'Sweep"),
    "a title of a spreadsheet": Good("Sweep of May,,\n,,\n" + text(), said="a title left out"),
    "a line that states the separator": Good("sep=;\n" + text(sep=";"), said="semicolons"),
    "a byte order mark": Good(text().encode("utf-8-sig")),
    "UTF-16": Good(text(sep="\t").encode("utf-16"), said="UTF-16"),
    "UTF-16 without a mark": Good(text(sep="\t").encode("utf-16-le"), said="UTF-16"),
    "UTF-16 lines of JSON, as PowerShell redirects them": Good(
        "\r\n".join(map(json.dumps, records())).encode("utf-16"), "t.jsonl"
    ),
    "UTF-16 of a spreadsheet": Good(text(grouped("", ","), sep="\t", ends="\r\n").encode("utf-16"), said="UTF-16"),
    "Windows-1252": Good(more(["Gr\u00f6\u00dfe"], [["\u00e4"] * 24]).encode("cp1252"), said="Windows-1252"),
    "ends of lines of Windows": Good(text(ends="\r\n")),
    "ends of lines of old Macs": Good(text(ends="\r")),
    "spaces after commas and quotes": Good("\n".join(", ".join(f'"{c}"' for c in row) for row in [HEAD, *WHOLE])),
    "commas between thousands": Good(text(grouped(",")), said="read as"),
    "apostrophes between thousands": Good(text(grouped("'")), said="read as"),
    "no-break spaces between thousands": Good(text(grouped("\u00a0")), said="read as"),
    "narrow spaces between thousands": Good(text(grouped("\u202f", ","), sep=";"), said="read as"),
    "underscores between thousands": Good(text(grouped("_")), said="read as"),
    "points between thousands": Good(text(grouped(".", ","), sep=";"), said="read as"),
    "decimal commas in quotes": Good(text(grouped("", ",")), said="read as"),
    "70M and 2T": Good(
        text([(f"{n / 1e6:.15g}M", f"{d / 1e12:.15g}T", y) for n, d, y in RUNS]), said="M' (t.csv line 2) read as"
    ),
    "7 B with a space": Good(
        text([(f"{n / 1e9:.15g} B", f"{d / 1e9:.15g} billion", y) for n, d, y in RUNS]), said="read as"
    ),
    "powers of ten as in papers": Good(
        text([(f"{n / 1e6:.15g}x10^6", f"{d / 1e9:.15g} \u00d7 10^{{9}}", y) for n, d, y in RUNS]), said="read as"
    ),
    "an empty cell": Good(text(changed(5, 2, "")), lost=5, warned="1 rows left out: loss_nats is missing"),
    "infinity": Good(text(changed(5, 2, "inf")), lost=5, said="line 7) read as infinite"),
    "empty lines and columns": Good(text([(*row, "", "") for row in WHOLE], (*HEAD, "", "")) + ",,,,\n,,,,\n"),
    "an index that pandas wrote": Good(text([(i, *row) for i, row in enumerate(WHOLE)], ("", *HEAD))),
    "spaces around names": Good(text(head=(" n_params", "n_tokens ", "\tloss_nats"))),
    "names with / and spaces": Good(text(head=OTHERS), mapping=WANDB),
    "a name with a comma": Good(text(head=("size, total", *HEAD[1:])), mapping='n_params="size, total"'),
    "a name that reads like a quotient of others": Good(
        more(["val", "loss", "val/loss"], [["1"] * 24, ["2"] * 24, [row[2] for row in WHOLE]]).replace(
            "loss_nats", "x"
        ),
        mapping="loss_nats=val/loss",
    ),
    "crashed runs of a tracker": Good(
        more(
            ["Name", "State"], [[f"r{i}" for i in range(24)], ["crashed" if i == 3 else "finished" for i in range(24)]]
        ),
        lost=3,
        warned="1 rows left out: State = crashed",
    ),
    "checkpoints of runs": Good(
        text(HISTORY, ("Name", "_step", *HEAD)),
        said="48 rows left out: checkpoints before the last _step of their Name (the first: t.csv line 2)",
    ),
    "runs of one name whose lengths grow by factors": Good(
        more(
            ["run", "step"], [[f"width {i // 6}" for i in range(24)], [str(4**i) for _ in range(4) for i in range(6)]]
        ),
        warned="appear at several values of step",
    ),
    "runs at a constant rate among cooled ones": Good(
        more(["lr_schedule"], [["constant" if i in (2, 9) else "cosine" for i in range(24)]]),
        lost=(2, 9),
        warned="2 rows left out: lr_schedule = constant, never cooled",
    ),
    "two cooled schedules": Good(
        more(["lr_schedule"], [["linear" if i % 2 else "cosine" for i in range(24)]]),
        warned="2 schedules share one law: cosine (12), linear (12)",
    ),
    "an array of JSON": Good(json.dumps(records(), indent=1), "t.json"),
    "columns of JSON, as pandas writes them": Good(
        json.dumps({name: {str(i): row[k] for i, row in enumerate(RUNS)} for k, name in enumerate(HEAD)}), "t.json"
    ),
    "columns and data, as a tracker's table": Good(json.dumps({"columns": HEAD, "data": RUNS}), "t.json"),
    "lines of JSON called .txt": Good("\n".join(map(json.dumps, records())), "t.txt"),
    "NaN in JSON": Good("\n".join(map(json.dumps, records(changed(5, 2, math.nan, RUNS)))), "t.jsonl", lost=5),
    "a workbook": Good(workbook(runs=NUMBERS), "t.xlsx"),
    "a workbook of text": Good(workbook(runs=[HEAD, *grouped(",")]), "t.xlsx", said="sheet 'runs' row 2) read as"),
    "a workbook with notes first": Good(
        workbook(notes=[["to do"], ["more seeds"]], runs=NUMBERS),
        "t.xlsx",
        said="sheet 'runs' is read, the fullest, not 'notes'",
    ),
    "a workbook with a title": Good(workbook(runs=[["Sweep of May"], [], *NUMBERS]), "t.xlsx", said="title"),
    "a workbook called .csv": Good(workbook(runs=NUMBERS)),
    "Parquet": Good(lambda: parquet(dict(zip(HEAD, map(list, zip(*RUNS))))), "t.parquet"),
    "Parquet of text": Good(lambda: parquet(dict(zip(HEAD, map(list, zip(*grouped(",")))))), "t.pq", said="row 1"),
    "perplexity": Good(
        text(PPL, (*HEAD[:2], "val_ppl")), mapping="perplexity=val_ppl", said="perplexity is fitted as loss_nats"
    ),
    "bits per token with their conversion": Good(
        text([(n, d, repr(y / math.log(2))) for n, d, y in RUNS], (*HEAD[:2], "loss_bits")),
        mapping="loss_nats=loss_bits*0.6931471805599453",
    ),
    "millions with their factor": Good(
        text([(f"{n / 1e6:.15g}", d, y) for n, d, y in RUNS], ("Params (M)", *HEAD[1:])),
        mapping="n_params=Params (M)*1e6",
    ),
    "tokens as batch x steps": Good(
        text([(n, f"{d / 1e6:.0f}", "1000", "1000", y) for n, d, y in RUNS], (HEAD[0], "iters", "bs", "ctx", HEAD[2])),
        mapping="n_tokens=iters*bs*ctx",
    ),
    "a unit that agrees": Good(more(["unit"], [["nats/token"] * 24])),
    "nats that are called bits per byte": Good(
        text(head=(*HEAD[:2], "loss")), mapping="bits_per_byte=loss", warned="bits_per_byte has a median of 2"
    ),
    "bits per byte that are called nats": Good(
        text([(n, d, y / 2.9) for n, d, y in RUNS], (*HEAD[:2], "loss")),
        mapping="loss_nats=loss",
        warned="loss_nats has a median of 0.",
        losses=[y / 2.9 for *_, y in RUNS],
    ),
    "one diverged run": Good(
        text(changed(5, 2, "9.7")), losses=[*(r[2] for r in RUNS[:5]), 9.7, *(r[2] for r in RUNS[6:])]
    ),
    "copies of a row": Good(text([*WHOLE, WHOLE[3]]), copies=3, warned="1 rows are exact copies"),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_law_sees_the_runs_that_were_meant_and_what_was_inferred_is_said(tmp_path, name):
    case = GOOD[name]
    table = load(tmp_path, case)
    loss = "loss_nats" if table.has("loss_nats") else "bits_per_byte"
    warned = import_checks(table)
    table, left_out = fit_rows(table, [*HEAD[:2], loss])
    kept = np.delete(np.arange(24), case.lost)
    kept = kept if case.copies is None else np.append(kept, case.copies)
    n_params, n_tokens, losses = zip(*RUNS)
    for column, values in zip((*HEAD[:2], loss), (n_params, n_tokens, case.losses or losses)):
        np.testing.assert_allclose(table.columns[column], np.array(values)[kept], rtol=1e-14)
    said = "\n".join(table.inferences)
    assert case.said in said if case.said else "read as" not in said and "separated" not in said, said
    assert case.warned in "\n".join([*table.warnings, *warned, *left_out])


HALF = [(n, d, repr(y / 2.93) if i % 2 else repr(y)) for i, (n, d, y) in enumerate(RUNS)]


BAD = {
    "about": Bad(text(changed(4, 2, "~3")), "t.csv line 6: '~3' is no number; write it in digits"),
    "a formula's text": Bad(
        workbook(runs=changed(4, 2, "=C5*2", [[*HEAD], *map(list, RUNS)])), "row 5: '=C5*2'", "t.xlsx"
    ),
    "two separators": Bad(text(WHOLE[:9]) + text(WHOLE[9:], sep=";").partition("\n")[2], "line 11 has 1 values"),
    "no header": Bad(text().partition("\n")[2], "has no header: its first line is"),
    "nothing": Bad("", "has no rows"),
    "a header alone": Bad(",".join(HEAD) + "\n", "has no rows"),
    "an empty workbook": Bad(workbook(runs=[]), "has no rows", "t.xlsx"),
    "other names": Bad(text(head=OTHERS), "try --map 'n_params=Model Size"),
    "a misspelt name": Bad(text(), "no column 'n_parms'; did you mean n_params?", mapping="n_params=n_parms"),
    "a name of text": Bad(
        more(["run"], [["a"] * 24]), "column run, t.csv line 2: 'a' is no number", mapping="n_params=run"
    ),
    "millions": Bad(
        text([(f"{n / 1e6:.15g}", d, y) for n, d, y in RUNS]),
        "column n_params, t.csv line 2: 2.1 must be a count of at least 10000; in millions? map it with a factor",
    ),
    "billions of tokens": Bad(
        text([(n, d / 1e9, y) for n, d, y in RUNS]), "column n_tokens, t.csv line 2: 0.1 must be"
    ),
    "one row in millions": Bad(text(changed(4, 0, "350")), "column n_params, t.csv line 6: 350 must be a count"),
    "half nats, half bits per byte": Bad(text(HALF), "12 of 24 rows are 2.9"),
    "four rows in bits": Bad(
        text([(n, d, y / math.log(2) if i in (3, 8, 13, 20) else y) for i, (n, d, y) in enumerate(RUNS)]),
        "column loss_nats, t.csv line 5: ",
    ),
    "one row in bits per byte": Bad(text(changed(5, 2, repr(RUNS[5][2] / 2.93))), "t.csv line 7: "),
    "some rows as perplexity": Bad(
        text([(n, d, math.exp(y) if i in (3, 8, 13) else y) for i, (n, d, y) in enumerate(RUNS)]),
        "column loss_nats, t.csv line 5: ",
    ),
    "units named, two": Bad(
        more(["unit"], [["nats"] * 20 + ["bits"] * 4]), "column unit, t.csv line 22: bits is not loss_nats"
    ),
    "another unit named": Bad(
        more(["loss_unit"], [["bpb"] * 24]), "column loss_unit, t.csv line 2: bpb is not loss_nats"
    ),
    "perplexity that is called nats": Bad(text([(n, d, math.exp(y) * 4) for n, d, y in RUNS]), "--map perplexity=..."),
    "more bits than a byte has": Bad(
        text([(n, d, 4 * y) for n, d, y in RUNS], (*HEAD[:2], "bits_per_byte")), "a byte has 8 bits"
    ),
    "a name that says bits per byte": Bad(
        text(head=(*HEAD[:2], "val_bpb")),
        "--map loss_nats=val_bpb: the name says bits_per_byte (column val_bpb, t.csv line 2: ",
        mapping="loss_nats=val_bpb",
    ),
    "a name that says perplexity": Bad(
        text(head=(*HEAD[:2], "eval/ppl")), "--map perplexity=eval/ppl", mapping="loss_nats=eval/ppl"
    ),
    "a name that says bits": Bad(
        text(head=(*HEAD[:2], "loss (bits)")), "loss (bits)*0.693147", mapping="loss_nats=loss (bits)"
    ),
    "a perplexity below 1": Bad(
        text(changed(4, 2, "0.9", PPL), (*HEAD[:2], "perplexity")),
        "column perplexity, t.csv line 6: 0.9 must be above 1",
    ),
    "tokenizers of other lengths": Bad(
        more(["bytes_per_token"], [["4.2"] * 20 + ["3.1"] * 4]),
        "column bytes_per_token, t.csv line 22: 3.1 differs from 4.2",
    ),
    "an archive": Bad(b"PK\x03\x04" + b"\0" * 200, "no workbook that can be read", "t.xlsx"),
    "damaged Parquet": Bad(b"PAR1" + b"\1" * 200, "damaged Parquet", "t.parquet"),
    "a picture": Bad(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256)), "not a table of text"),
    "a compressed table": Bad(b"\x1f\x8b\x08\0" + b"\0" * 50, "is compressed; unpack it", "t.csv.gz"),
    "a list of numbers": Bad("[1, 2, 3]", "one run is one object", "t.json"),
    "a broken line of JSON": Bad('{"a": 1}\n{"a": \n{"a": 3}\n', "line 2 is not JSON", "t.jsonl"),
    "lists in lists in lists": Bad("[" * 50_000, "is not JSON", "t.json"),
    "columns that are no list": Bad('{"columns": 3, "data": [[1]]}', "columns and data that are no lists", "t.json"),
    "data of another width": Bad(
        '{"columns": ["a", "b"], "data": [[1, 2], [1, 2, 3]]}', "row 2 of data has 3 values, columns 2", "t.json"
    ),
    "data of numbers": Bad('{"columns": ["a", "b"], "data": [1]}', "row 1 of data has no list of values", "t.json"),
    "columns of one name": Bad('{"columns": ["a", "a"], "data": [[1, 2]]}', "two columns named a", "t.json"),
    "no run that finished": Bad(
        more(["state"], [["crashed"] * 24]), "none of 24 rows can be fitted: 24 rows left out: state"
    ),
    "no loss at all": Bad(text([(n, d, "N/A") for n, d, _ in WHOLE]), "absent or empty"),
    "an object in a cell": Bad(
        "\n".join(map(json.dumps, records(changed(4, 2, {"mean": 3}, RUNS)))),
        "column loss_nats, t.jsonl line 5: {'mean': 3} is no number",
        "t.jsonl",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_meant_is_refused_in_one_sentence_with_its_place(tmp_path, name):
    with pytest.raises(IsoflopError) as refused:
        table = load(tmp_path, BAD[name])
        import_checks(table)
        scale, loss = table.scale("a law")[0], table.loss("a law")[0]
        fit_rows(table, [scale, "n_tokens", loss])
    assert BAD[name].message in str(refused.value), refused.value
    assert "\n" not in str(refused.value) and ("; " in str(refused.value) or ": " in str(refused.value))
