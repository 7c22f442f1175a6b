"""Runs to write down in many ways, and workbooks and Parquet files as bytes, for tests of what reads them."""

import io
import zipfile
from xml.sax.saxutils import escape

import numpy as np
import pytest

from isoflop.scaling.laws import Surface

HEAD = ("n_params", "n_tokens", "loss_nats")
TRUTH = Surface(1.7, 400.0, 1800.0, 0.34, 0.37)


def _runs():
    sizes = np.round(np.geomspace(2e6, 3e9, 24) * np.random.default_rng(0).uniform(0.9, 1.1, 24), -5)
    tokens = np.round(np.tile(np.geomspace(1e8, 2e11, 6), 4), -6)
    return [(float(n), float(d), round(float(TRUTH.loss(n, d)), 4)) for n, d in zip(sizes, tokens)]


RUNS = _runs()
"""24 runs whose numbers survive any spelling: whole sizes in thousands, losses with four decimals."""


def workbook(**sheets):
    """An .xlsx file of sheets, each a list of rows; numbers as numbers, text as text."""

    def cell(value):
        if isinstance(value, (int, float)):
            return f"<c><v>{value!r}</v></c>"
        return f'<c t="inlineStr"><is><t>{escape(value)}</t></is></c>'

    main = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    package = 'xmlns="http://schemas.openxmlformats.org/package/2006/'
    sheet = f"{office}/worksheet"
    numbered = list(enumerate(sheets.items(), start=1))
    parts = {
        "[Content_Types].xml": f'<Types {package}content-types">'
        '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
        '<Default Extension="xml" ContentType="application/xml"/></Types>',
        "_rels/.rels": f'<Relationships {package}relationships"><Relationship Id="r1" Type="{office}/officeDocument" '
        'Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook {main} xmlns:r="{office}"><sheets>'
        + "".join(f'<sheet name="{name}" sheetId="{i}" r:id="r{i}"/>' for i, (name, _) in numbered)
        + "</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": f'<Relationships {package}relationships">'
        + "".join(f'<Relationship Id="r{i}" Type="{sheet}" Target="worksheets/s{i}.xml"/>' for i, _ in numbered)
        + "</Relationships>",
    }
    for i, (_, rows) in numbered:
        body = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
        parts[f"xl/worksheets/s{i}.xml"] = f"<worksheet {main}><sheetData>{body}</sheetData></worksheet>"
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, f'<?xml version="1.0" encoding="UTF-8"?>{part}')
    return file.getvalue()


def parquet(columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet as written

    file = io.BytesIO()
    written.write_table(pyarrow.table(columns), file)
    return file.getvalue()
