"""Items of the tasks next_word and next_words from the held-out part of a corpus; the same for the same seed.

    python recipes/study/benchmarks_items.py --corpus runs/benchmarks/corpus --out runs/benchmarks/eval

Wrong options are what follows at three other places of the held-out text of the same domain, so that how
common a word is says little and the context has to be read. A document is a group: its items are not independent.
"""

import argparse
import json
import random
import re
from pathlib import Path

from isoflop.evaluation.tasks.files import json_lines

CONTEXT, CONTINUATION, PER_DOCUMENT = 24, 8, 12
"""Words before an item, words that follow in next_words, items of a document."""


def places(corpus: Path, generator: random.Random) -> list[dict]:
    """Places of held-out documents: words before, the word and the words that follow."""
    found = []
    for path in sorted((corpus / "valid").glob("*.jsonl.zst")):
        domain = path.name.partition(".")[0]
        for number, (_, row) in enumerate(json_lines(path)):
            words = re.findall(r"\S+", row["text"])
            long = [at for at in range(CONTEXT, len(words) - CONTINUATION) if re.fullmatch("[a-z]{6,}", words[at])]
            for at in sorted(generator.sample(long, min(PER_DOCUMENT, len(long)))):
                group = f"{domain}-{number}"
                before, after = " ".join(words[at - CONTEXT : at]), " ".join(words[at : at + CONTINUATION])
                place = {"id": f"{group}-{at}", "group": group, "domain": domain}
                found.append({**place, "before": before, "after": after})
    generator.shuffle(found)
    return found


def items(found: list[dict], n: int, n_words: int, generator: random.Random) -> list[dict]:
    """Items with four different options, the right one at a random place."""

    def option(place: dict) -> str:
        return " " + " ".join(place["after"].split(" ")[:n_words])

    made = []
    for place in found[:n]:
        options = {option(place)}
        while len(options) < 4:
            other = generator.choice(found)
            if other["domain"] == place["domain"]:
                options.add(option(other))
        shuffled = sorted(options)
        generator.shuffle(shuffled)
        made.append(
            {
                "id": place["id"],
                "context": place["before"],
                "options": shuffled,
                "gold": shuffled.index(option(place)),
                "group": place["group"],
            }
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    generator = random.Random(asked.seed)
    found = places(asked.corpus, generator)
    (asked.out / "cloze").mkdir(parents=True, exist_ok=True)
    for name, n_words in (("next_word", 1), ("next_words", CONTINUATION)):
        rows = items(found, asked.n, n_words, generator)
        text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
        (asked.out / "cloze" / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{len(rows)} items of {name}")


if __name__ == "__main__":
    main()
