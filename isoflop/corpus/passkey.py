"""Passkey documents: text in which something far back must be found again. Made, not read.

    pass key   filler sentences, one of them `The pass key is 58217. Remember it.`, and the question for it at the end
    list       the same with a list of words, of which more tokens must be found: small models learn to copy from it

A corpus gets them as domains of their own (`[[passkey]]` in a corpus recipe), and `isoflop passkey` asks such questions
of a model. All text here is ours. The task is that of arXiv 2305.16300, section 4.1; the words are not.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from isoflop.corpus.document import Document
from isoflop.errors import RecipeError
from isoflop.recipe import PositiveInt, Seed, Share, check_ranges

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

WORDS = (
    *("apple", "stone", "horse", "paper", "glass", "music", "salt", "winter", "copper", "tiger"),
    *("silver", "honey", "candle", "ladder", "button", "mirror", "pepper", "rabbit", "needle", "violin"),
    *("carpet", "anchor", "basket", "feather", "hammer", "jacket", "lemon", "marble", "napkin", "orange"),
    *("pencil", "rocket", "saddle", "ticket", "umbrella", "velvet", "wagon", "yellow", "zebra", "barrel"),
)
"""Words of lists; none is in the filler."""

QUESTION = "What is the pass key? The pass key is "
"""What the answer follows."""

N_DIGITS = 5


@dataclass(frozen=True)
class PasskeyOptions:
    """One `[[passkey]]` entry of a corpus recipe."""

    domain: str = DOMAIN
    """Name of its domain, `passkey` or `passkey_...`; entries of different lengths are different domains."""
    n_documents: PositiveInt = 20_000
    """Documents in all."""
    min_chars: PositiveInt = 100
    """Length of the shortest document; lengths are uniform up to max_chars. A token has 2 to 4 characters."""
    max_chars: PositiveInt = 1000
    """Longest document: what must be found is at most this far back."""
    list_share: Share = 0.5
    """Share of documents with a list; the others have a pass key."""
    first_share: Share = 0.0
    """Share of documents that begin with what is asked for at their end; in the others its place is uniform. Windows
    are cut without regard to documents, so hardly one holds a key almost its own length back where this is 0."""
    valid_share: Share = 0.02
    """Share held out for validation."""
    seed: Seed = 0
    """Of keys, filler and places."""


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
    check_ranges(options, "passkey.")
    shortest = len(statement("0" * N_DIGITS)) + len(QUESTION) + N_DIGITS + 3
    if not shortest <= options.min_chars <= options.max_chars:
        raise RecipeError(
            f"passkey.min_chars = {options.min_chars} must be at least {shortest} (statement and question) and at most "
            f"passkey.max_chars = {options.max_chars}"
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
        make = list_text if generator.random() < options.list_share else passkey_text
        name = f"{options.domain}/{index:07d}"
        document = Document(name, make(n_chars, generator, options.first_share), options.domain, name, "none needed")
        yield "valid" if index < n_valid else "train", document


def passkey_text(n_chars: int, generator: np.random.Generator, first_share: float) -> str:
    """At most `n_chars` of filler with the key, first or at a uniform place, the question and the answer."""
    key = random_key(generator)
    return _with_filler(statement(key), f"{QUESTION}{key}.", n_chars, generator, first_share)


def list_text(n_chars: int, generator: np.random.Generator, first_share: float) -> str:
    """At most `n_chars` of filler with a list of 5 to 20 different words, and again at the end."""
    n_words = int(generator.integers(5, 21))
    while True:
        words = " ".join(WORDS[index] for index in generator.permutation(len(WORDS))[:n_words])
        needle, ending = f"The list is {words}. Remember it.", f"What is the list? The list is {words}."
        if len(needle) + len(ending) + 1 <= n_chars or n_words == 1:
            return _with_filler(needle, ending, n_chars, generator, first_share)
        n_words -= 1


def _with_filler(needle: str, ending: str, n_chars: int, generator: np.random.Generator, first_share: float) -> str:
    n_filler = (n_chars - len(needle) - len(ending) - 1) // (max(map(len, FILLER)) + 1)
    sentences = random_filler(max(0, n_filler), generator)
    place = int(generator.integers(len(sentences) + 1))
    sentences.insert(0 if first_share and generator.random() < first_share else place, needle)
    return f"{' '.join(sentences)} {ending}"


def random_key(generator: np.random.Generator) -> str:
    """Five different digits: one of 30,240 keys."""
    return "".join(map(str, generator.permutation(10)[:N_DIGITS]))


def random_filler(n: int, generator: np.random.Generator) -> list[str]:
    """`n` filler sentences, drawn independently."""
    return [FILLER[index] for index in generator.integers(0, len(FILLER), n)]
