"""Passkey and copy documents: text in which something far back must be found again. Made, not read.

    passkey   filler sentences, one of them `The pass key is 58217. Remember it.`, and the question for it at the end
    copy      a line of made-up words, and the same line again

A corpus gets them as domains of their own (`[[passkey]]` in a corpus recipe), and `isoflop passkey` asks such questions
of a model. All text here is ours. The task is that of arXiv 2305.16300, section 4.1; the words are not.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from isoflop.corpus.sources import Document
from isoflop.errors import RecipeError

DOMAIN = "passkey"
"""Domains of such documents are called this, or begin with it and an underscore."""

FILLER = (
    "The river runs to the sea.",
    "A cat sleeps near the door.",
    "Rain falls on the old roof.",
    "The bread is still warm.",
    "Two boats wait at the pier.",
    "Snow covers the quiet hill.",
    "The train leaves before noon.",
    "Grass grows along the road.",
    "A lamp burns in the hall.",
    "The wind turns to the west.",
    "Birds rest on the long wire.",
    "The clock is a little late.",
    "Tea stands on the table.",
    "The garden gate is open.",
    "Clouds drift over the town.",
    "A child draws a small house.",
)
"""Sentences that say nothing about a key and hold no digit."""

QUESTION = "What is the pass key? The pass key is "
"""What the answer follows."""

N_DIGITS = 5


@dataclass(frozen=True)
class PasskeyOptions:
    """One `[[passkey]]` entry of a corpus recipe."""

    domain: str = DOMAIN
    """Name of its domain, `passkey` or `passkey_...`; entries of different lengths are different domains."""
    n_documents: int = 20_000
    """Documents in all."""
    min_chars: int = 100
    """Length of the shortest document; lengths are uniform up to max_chars. A token has 2 to 4 characters."""
    max_chars: int = 1000
    """Longest document: what must be found is at most this far back."""
    copy_share: float = 0.25
    """Share of copy documents; the others ask for a pass key."""
    valid_share: float = 0.02
    """Share held out for validation."""
    seed: int = 0


def is_passkey(domain: str) -> bool:
    """Whether a domain holds such documents, not text."""
    return domain == DOMAIN or domain.startswith(f"{DOMAIN}_")


def statement(key: str) -> str:
    """The sentence that has the key."""
    return f"The pass key is {key}. Remember it."


def passkey_documents(options: PasskeyOptions) -> Iterator[tuple[str, Document]]:
    """(split, document) pairs; document i depends on the seed and i alone.

    Raises:
        RecipeError: lengths or shares that cannot be.
    """
    shortest = len(statement("0" * N_DIGITS)) + len(QUESTION) + N_DIGITS + 3
    if not shortest <= options.min_chars <= options.max_chars:
        raise RecipeError(
            f"passkey.min_chars = {options.min_chars} must be at least {shortest} (statement and question) and at most "
            f"passkey.max_chars = {options.max_chars}"
        )
    for name in ("copy_share", "valid_share"):
        if not 0.0 <= getattr(options, name) <= 1.0:
            raise RecipeError(f"passkey.{name} = {getattr(options, name)} must lie in [0, 1]")
    if options.n_documents < 1:
        raise RecipeError(
            f"passkey.n_documents = {options.n_documents} must be at least 1; leave the entry out for none"
        )
    if not is_passkey(options.domain):
        raise RecipeError(
            f"passkey.domain = {options.domain!r} must be {DOMAIN} or begin with {DOMAIN}_, so that it is not taken "
            f"for text; for example {DOMAIN}_long"
        )
    n_valid = round(options.valid_share * options.n_documents)
    for index in range(options.n_documents):
        generator = np.random.Generator(
            np.random.Philox(np.random.SeedSequence([options.seed, zlib.crc32(options.domain.encode()), index]))
        )
        n_chars = int(generator.integers(options.min_chars, options.max_chars + 1))
        make = copy_text if generator.random() < options.copy_share else passkey_text
        name = f"{options.domain}/{index:07d}"
        document = Document(name, make(n_chars, generator), options.domain, name, "none needed")
        yield "valid" if index < n_valid else "train", document


def passkey_text(n_chars: int, generator: np.random.Generator) -> str:
    """At most `n_chars` of filler with the key at a uniform place, the question and the answer."""
    key = random_key(generator)
    needle = statement(key)
    n_filler = (n_chars - len(needle) - len(QUESTION) - N_DIGITS - 3) // (max(map(len, FILLER)) + 1)
    sentences = random_filler(max(0, n_filler), generator)
    sentences.insert(int(generator.integers(len(sentences) + 1)), needle)
    return f"{' '.join(sentences)} {QUESTION}{key}."


def copy_text(n_chars: int, generator: np.random.Generator) -> str:
    """Two equal lines of made-up words, each about half of `n_chars` long."""
    words: list[str] = []
    left = n_chars // 2
    while left > 0:
        words.append("".join(chr(ord("a") + letter) for letter in generator.integers(0, 26, generator.integers(2, 6))))
        left -= len(words[-1]) + 1
    line = " ".join(words)
    return f"{line}\n{line}\n"


def random_key(generator: np.random.Generator) -> str:
    """Five different digits: one of 30,240 keys."""
    return "".join(map(str, generator.permutation(10)[:N_DIGITS]))


def random_filler(n: int, generator: np.random.Generator) -> list[str]:
    """`n` filler sentences, drawn independently."""
    return [FILLER[index] for index in generator.integers(0, len(FILLER), n)]
