"""Documents on their way to integers: BOS, tokens, EOS; some rearranged for fill-in-the-middle, some line breaks split.

Both changes touch training documents only, so bits per byte on held-out text mean the same with and without them. What
is changed is a pure function of the seed, the domain and the document's number in it: neither the number of processes
nor a restart can alter it. No byte of text is lost or added.

    fill-in-the-middle   BOS fim_begin PREFIX fim_hole SUFFIX fim_end MIDDLE EOS, cut at two uniform characters
    split line breaks    a token that joins punctuation and line breaks becomes the tokens of the two, so that the model
                         also meets a prompt's end that was not joined

Source: arXiv 2412.19437, section 4.1: prefix-suffix-middle at document level before packing, rate 0.1; the share of
split tokens is not stated there, nor where documents are cut: both are our choice.
"""

import zlib
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from isoflop.errors import RecipeError
from isoflop.recipe import Seed, Share, check_ranges
from isoflop.tokens.bpe import Tokenizer


@dataclass(frozen=True)
class DocumentOptions:
    """The `[documents]` section of a tokens recipe."""

    fim_rate: Share = 0.0
    """Share of training documents in prefix-suffix-middle order. Paper: 0.1; needs tokenizer.fim_tokens."""
    split_rate: Share = 0.0
    """Share of tokens joining punctuation and line breaks that are split in training documents. Paper: not stated."""
    seed: Seed = 0
    """Of which documents and tokens change."""


class Texts(NamedTuple):
    """Consecutive documents of one shard."""

    split: str
    domain: str
    first: int
    """Number of the first of them within the shard."""
    texts: list[str]


def check(options: DocumentOptions, tokenizer: Tokenizer) -> None:
    """Raises RecipeError for rates that cannot be, or that the tokenizer has no tokens for."""
    check_ranges(options, "documents.")
    if options.fim_rate and tokenizer.fim_ids is None:
        raise RecipeError(
            f"documents.fim_rate = {options.fim_rate} needs the three fill-in-the-middle tokens, which this tokenizer "
            f"lacks; train one with tokenizer.fim_tokens = true, or set fim_rate = 0"
        )
    if options.split_rate and tokenizer.rules == "v1":
        raise RecipeError(
            f"documents.split_rate = {options.split_rate} but this tokenizer never joins punctuation and line breaks; "
            f'tokenizer.rules = "v3" does, or set split_rate = 0'
        )


def encode_documents(tokenizer: Tokenizer, options: DocumentOptions, documents: Texts) -> np.ndarray:
    """Tokens of each document between BOS and EOS, one after the other, int32."""
    bos, eos = (np.array([index], dtype=np.int32) for index in (tokenizer.bos_id, tokenizer.eos_id))
    if documents.split != "train" or not (options.fim_rate or options.split_rate):
        return np.concatenate([part for ids in tokenizer.encode_batch(documents.texts) for part in (bos, ids, eos)])
    parts: list[str] = []
    plans = []
    for number, text in enumerate(documents.texts, start=documents.first):
        generator = _generator(options, documents.domain, number)
        cut = cut_for_fim(text, options.fim_rate, generator)
        parts.extend(cut or (text,))
        plans.append((generator, cut is not None))
    encoded, out = iter(tokenizer.encode_batch(parts)), []
    for generator, is_cut in plans:
        ids = _middle_last(tokenizer, [next(encoded) for _ in range(3)]) if is_cut else next(encoded)
        out += [bos, split_line_breaks(tokenizer, ids, options.split_rate, generator), eos]
    return np.concatenate(out)


def cut_for_fim(text: str, rate: float, generator: np.random.Generator) -> tuple[str, str, str] | None:
    """Prefix, middle and suffix of a document that is chosen, None for the others."""
    if not rate or generator.random() >= rate:
        return None
    first, second = sorted(generator.integers(0, len(text) + 1, 2).tolist())
    return text[:first], text[first:second], text[second:]


def split_line_breaks(tokenizer: Tokenizer, ids: np.ndarray, rate: float, generator: np.random.Generator) -> np.ndarray:
    """Each token that joins punctuation and line breaks is split with probability `rate`."""
    if not rate:
        return ids
    splits = tokenizer.line_break_splits
    places = np.flatnonzero(tokenizer.is_line_break_join[ids])
    places = places[generator.random(len(places)) < rate]
    if not len(places):
        return ids
    pieces, start = [], 0
    for place in places:
        pieces += [ids[start:place], np.array(splits[int(ids[place])], dtype=np.int32)]
        start = place + 1
    return np.concatenate([*pieces, ids[start:]])


def _middle_last(tokenizer: Tokenizer, parts: list[np.ndarray]) -> np.ndarray:
    assert tokenizer.fim_ids is not None
    begin, hole, end = ([index] for index in tokenizer.fim_ids)
    prefix, middle, suffix = parts
    return np.concatenate([begin, prefix, hole, suffix, end, middle]).astype(np.int32)


def _generator(options: DocumentOptions, domain: str, number: int) -> np.random.Generator:
    seeds = np.random.SeedSequence([options.seed, 0x646F63, zlib.crc32(domain.encode()), number])
    return np.random.Generator(np.random.Philox(seeds))
