"""Random small runs with a tokenizer, and official files of a few rows."""

import json
from pathlib import Path

from interop_models import FAMILIES, build, make_run

from isoflop.model.config import ModelConfig
from isoflop.training.load_run import keep_tokenizer

CONFIG = ModelConfig(2, 32, 4, 2, 8, 64, 512, 192)
"""Of the vocabulary of the tokens folder that all tests share."""


def run_of(folder: Path, tokens: Path, *, config: ModelConfig = CONFIG, seed: int = 0) -> Path:
    """A run folder of random weights."""
    make_run(folder, build(config, seed), data={"tokens": str(tokens)})
    keep_tokenizer(tokens, folder)
    return folder


def official_files(folder: Path, n: int = 24) -> Path:
    """Rows in the formats of some benchmarks, made up."""
    words = ["seed", "tide", "harbour", "lantern", "meadow", "iron", "violet", "thunder", "river", "copper"]

    def text(at: int, length: int) -> str:
        return " ".join(words[(at * 7 + 3 * i + i * i) % len(words)] for i in range(length))

    def write(name: str, rows: list[dict]) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")

    ask = [text(at, 4 + at % 9) for at in range(n)]
    piqa = [{"goal": q, "sol1": text(at + 1, 3), "sol2": text(at + 2, 1 + at % 5)} for at, q in enumerate(ask)]
    write("piqa/valid.jsonl", piqa)
    (folder / "piqa/valid-labels.lst").write_text("".join(f"{at % 2}\n" for at in range(n)), encoding="utf-8")
    write(
        "winogrande/winogrande.jsonl",
        [
            {"sentence": f"{q} and _ was {text(at, 3)}.", "option1": words[at % 5], "option2": words[5], "answer": "1"}
            for at, q in enumerate(ask)
        ],
    )
    write("pile/test.jsonl", [{"text": text(at, 10 + 40 * at), "meta": {"pile_set_name": "made"}} for at in range(6)])
    write("nq_open/NQ-open.dev.jsonl", [{"question": q, "answer": [words[0]]} for q in ask])
    write("nq_open/NQ-open.efficientqa.dev.1.1.jsonl", [{"question": q, "answer": [words[1]]} for q in ask[:5]])
    return folder


__all__ = ["CONFIG", "FAMILIES", "official_files", "run_of"]
