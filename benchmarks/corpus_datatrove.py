"""The same deduplication by datatrove's local executor; run by benchmarks/corpus.py with the Python of an environment
that has datatrove (tried with 0.10.1). Words are split at single spaces and nothing is normalised: the text comes
split, so that neither side pays for its way of finding words."""

# pyright: reportMissingImports=false

import json
import sys
import time
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.utils.text import TextNormConfig
from datatrove.utils.word_tokenizers import WordTokenizer


class Spaces(WordTokenizer):
    """Words are what lies between single spaces."""

    def word_tokenize(self, text):
        """The words."""
        return text.split(" ")

    def sent_tokenize(self, text):
        """Not used."""
        return [text]

    def span_tokenize(self, text):
        """Not used."""
        return [(0, len(text))]


class Signature(MinhashDedupSignature):
    """Signatures of text that is split already."""

    def __init__(self, *arguments, **named):
        super().__init__(*arguments, **named)
        self.word_tokenizer = Spaces()


def main() -> None:
    """datatrove.json INPUT WORK WORKERS BANDS ROWS WORDS: prints seconds of each stage as one line of JSON."""
    source, work = Path(sys.argv[1]), Path(sys.argv[2])
    workers, bands, rows, words = map(int, sys.argv[3:7])
    plain = TextNormConfig(**dict.fromkeys(("lowercase", "norm_whitespace", "remove_punctuation"), False))
    plain.norm_unicode_diacritics = plain.norm_numbers = False
    config = MinhashConfig(n_grams=words, num_buckets=bands, hashes_per_bucket=rows, norm_config=plain)
    reader = JsonlReader(str(source), text_key="text", id_key="id", doc_progress=False, file_progress=False)
    n_files = len(list(source.glob("*.jsonl")))
    stages = [
        ("signatures", [reader, Signature(str(work / "signatures"), config=config)], n_files),
        ("buckets", [MinhashDedupBuckets(str(work / "signatures"), str(work / "buckets"), config=config)], bands),
        (
            "clusters",
            [MinhashDedupCluster(str(work / "buckets"), str(work / "clusters"), config=config, save_cluster_id=True)],
            1,
        ),
    ]
    seconds = {}
    for name, pipeline, tasks in stages:
        began = time.perf_counter()
        LocalPipelineExecutor(
            pipeline, tasks=tasks, workers=min(workers, tasks), logging_dir=str(work / "logs" / name)
        ).run()
        seconds[name] = time.perf_counter() - began
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
