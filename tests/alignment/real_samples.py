"""The first records of real files, in their own formats, as a data folder of the demo."""

import gzip
import json
from pathlib import Path


def head(source: Path, target: Path, n: int) -> int:
    """Copy the first `n` records of a JSON list or of JSON lines, compressed or not; returns how many there were."""
    opened = gzip.open if source.suffix == ".gz" else open
    with opened(source, "rt", encoding="utf-8") as file:
        text = file.read()
    target.parent.mkdir(parents=True, exist_ok=True)
    if text.lstrip().startswith("["):
        records = json.loads(text)[:n]
        found = json.dumps(records, ensure_ascii=False)
    else:
        records = text.split("\n")[:n]
        found = "\n".join(records) + "\n"
    with opened(target, "wt", encoding="utf-8") as file:
        file.write(found)
    return len(records)
