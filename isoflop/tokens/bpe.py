"""Byte-level BPE as in DeepSeek LLM or DeepSeek-V3: text or bytes in, integers out, and back without loss.

Pre-tokenisation cuts the text where no merge may cross. Rules "v1": every line break by itself, runs of letters, of
punctuation, of CJK symbols, of white space, single digits. Rules "v3": groups of up to three digits, Chinese and
Japanese runs, and punctuation together with the line breaks after it. The pieces are mapped to 256 byte symbols, all
of which are in the vocabulary, so any string and any byte string has tokens. Special tokens come after the ordinary
ones (the id of BOS is their number), and the vocabulary that the model sees is padded. The file `tokenizer.json` is
the whole tokenizer: `transformers.PreTrainedTokenizerFast` loads it and gives the same ids.

Source: DeepSeek LLM (arXiv 2401.02954) section 2.1, DeepSeek-V3 (arXiv 2412.19437) section 4.1; character ranges as in
the released tokenizers. Where we deviate: v1 is one regular expression with disjoint classes instead of six passes (the
same cuts, and Python's `re` can make them too, which is ten times faster than the library); characters of no class are
runs without spaces; all 256 byte symbols are in the alphabet (the paper's 243 leave out the bytes that UTF-8 never
uses). v3 is cut by the library, as its classes are Unicode's.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers

from isoflop.errors import DataError, RecipeError
from isoflop.recipe import write_text
from isoflop.tokens.fast.count import count_pieces
from isoflop.tokens.fast.encoder import Encoder, library_encoder
from isoflop.tokens.fast.learn import learn_merges
from isoflop.tokens.rules import N_BYTES, PIECES, V3_SPLITS, Rules, byte_symbols

MAX_PIECE_BYTES = 96_000_000
"""Different pieces that a tokenizer may be trained on: the text itself can be any length. Training takes about 20 times
this memory at most."""
BOS = "<\uff5cbegin\u2581of\u2581sentence\uff5c>"  # paper
EOS = "<\uff5cend\u2581of\u2581sentence\uff5c>"  # paper
FIM_BEGIN = "<\uff5cfim\u2581begin\uff5c>"  # paper
FIM_HOLE = "<\uff5cfim\u2581hole\uff5c>"  # paper
FIM_END = "<\uff5cfim\u2581end\uff5c>"  # paper
USER, ASSISTANT = "<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>"  # paper: DeepSeek-V3's marks of turns


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    n_reserved: int = 0,
    padded_vocab_size: int = 0,
    pad_multiple: int = 1,
    min_frequency: int = 2,
    rules: Rules = "v1",
    fim_tokens: bool = False,
    chat_tokens: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> "Tokenizer":
    """Train merges on `texts` until there are `vocab_size` ordinary tokens (256 bytes plus merges).

    BOS, EOS, with `fim_tokens` the three of fill-in-the-middle, with `chat_tokens` the two marks of turns, and
    `n_reserved` further special tokens are added after them; the model's vocabulary is then padded to
    `padded_vocab_size`, or to a multiple of `pad_multiple` where that is 0.

    Raises:
        RecipeError: sizes that contradict each other.
        DataError: `texts` support fewer tokens than asked for; the message has the number reached.
    """
    if vocab_size < N_BYTES:
        raise RecipeError(f"vocab_size = {vocab_size} must hold the {N_BYTES} byte symbols; give at least {N_BYTES}")
    fim = [FIM_HOLE, FIM_BEGIN, FIM_END] if fim_tokens else []  # in the order of the released ids
    marks = [USER, ASSISTANT] if chat_tokens else []
    special = [BOS, EOS, *fim, *marks, *(f"<\uff5creserved\u2581{index}\uff5c>" for index in range(n_reserved))]
    n_tokens = vocab_size + len(special)
    padded = padded_vocab_size or -(-n_tokens // pad_multiple) * pad_multiple
    if padded < n_tokens:
        raise RecipeError(
            f"padded_vocab_size = {padded} must be at least vocab_size + {len(special)} special tokens = {n_tokens}; "
            "raise it, or give 0 to choose it automatically"
        )
    backend = _untrained(rules)
    data, sizes, counts = count_pieces(texts, backend, rules, MAX_PIECE_BYTES)
    symbols = byte_symbols()
    alphabet = sorted(symbols)
    id_of_byte = np.array([alphabet.index(symbol) for symbol in symbols], dtype=np.int32)
    pairs = learn_merges(
        data, sizes, counts, id_of_byte, vocab_size - N_BYTES, min_frequency=min_frequency, on_progress=on_progress
    )
    names = alphabet
    for left, right in pairs:
        names.append(names[left] + names[right])
    reached = len(names)
    if reached < vocab_size:
        raise DataError(
            f"vocab_size = {vocab_size} is larger than the corpus supports: only {reached} tokens occur at least "
            f"{min_frequency} times; lower vocab_size to {reached} or less, or give more text"
        )
    merges = [(names[left], names[right]) for left, right in pairs]
    backend.model = models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=merges)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in special])
    return Tokenizer(backend, padded)


class Tokenizer:
    """A trained tokenizer. Make it with `train_tokenizer` or `Tokenizer.load`."""

    def __init__(self, backend: tokenizers.Tokenizer, vocab_size: int):
        self._backend = backend
        self._backend.encode_special_tokens = True  # text that spells a special token stays text
        self.rules: Rules | None = _rules_of(backend)
        """Where the text is cut; None for rules that are not ours."""
        self.vocab_size = vocab_size
        """Padded size: what the model's embedding and head have."""
        self.bos_id: int = backend.get_vocab()[BOS]
        self.eos_id: int = backend.get_vocab()[EOS]
        begin, hole, end = (backend.token_to_id(name) for name in (FIM_BEGIN, FIM_HOLE, FIM_END))
        self.fim_ids: tuple[int, int, int] | None = None
        if begin is not None and hole is not None and end is not None:
            self.fim_ids = (begin, hole, end)
        """Begin, hole and end of fill-in-the-middle, where the tokenizer has them."""

    @classmethod
    def load(cls, folder: str | Path) -> "Tokenizer":
        """Read `tokenizer.json` and `tokenizer_config.json` from `folder`. Raises DataError."""
        path, config_path = Path(folder) / "tokenizer.json", Path(folder) / "tokenizer_config.json"
        for needed in (path, config_path):
            if not needed.is_file():
                raise DataError(f"{needed} does not exist; make a tokenizer with: isoflop tokens RECIPE")
        try:
            text, config = path.read_text(encoding="utf-8"), json.loads(config_path.read_text(encoding="utf-8"))
            padded, expected = int(config["padded_vocab_size"]), config["tokenizer_sha256"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{config_path} is not ours ({error!r}); make it again: isoflop tokens RECIPE") from error
        if _identity(text, padded) != expected:
            raise DataError(f"{path} is damaged or was edited: hash differs; make it again: isoflop tokens RECIPE")
        return cls(tokenizers.Tokenizer.from_str(text), padded)

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json`, and `tokenizer_config.json` with which `transformers` finds BOS and EOS."""
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": BOS,
            "eos_token": EOS,
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "split_special_tokens": True,  # text that spells a special token stays text, in transformers too
            "padded_vocab_size": self.vocab_size,
            "tokenizer_sha256": self.sha256,
        }
        write_text(Path(folder) / "tokenizer.json", self.to_json())
        write_text(Path(folder) / "tokenizer_config.json", json.dumps(config, indent=1, ensure_ascii=False) + "\n")

    def to_json(self) -> str:
        return self._backend.to_str(pretty=True) + "\n"

    @cached_property
    def sha256(self) -> str:
        """Identity of the tokenizer: hash of `tokenizer.json` and of the padded size."""
        return _identity(self.to_json(), self.vocab_size)

    @property
    def n_tokens(self) -> int:
        """Ordinary plus special tokens, without padding."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str) -> list[int]:
        """Tokens of `text`, without BOS and EOS."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """`encode` of each text as an int32 array, many times faster."""
        if self._encoder is not None:
            return self._encoder.encode(texts)
        found = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(item.ids, dtype=np.int32) for item in found]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`, special tokens spelled out. Bytes that are not UTF-8 become U+FFFD; see `decode_bytes`."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=False)

    def encode_bytes(self, data: bytes) -> list[int]:
        """Tokens of any byte string: UTF-8 as `encode` gives it, each byte that is not UTF-8 as its byte symbol."""
        ids: list[int] = []
        for text, invalid in _valid_runs(data):
            ids.extend(self.encode(text))
            ids.extend(self._id_of_byte[byte] for byte in invalid)
        return ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes behind `ids`; special and padding tokens have none."""
        table = self._bytes_of_id
        return b"".join(table[int(i)] for i in ids)

    @cached_property
    def _encoder(self) -> Encoder | None:
        return library_encoder(self._backend, self.rules, self._bytes_of_id) if self.rules else None

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """Number of text bytes per id, int32 (vocab_size,); 0 for special and padding tokens."""
        return np.array([len(item) for item in self._bytes_of_id], dtype=np.int32)

    @cached_property
    def line_break_splits(self) -> dict[int, list[int]]:
        """Tokens that join something visible with the line breaks after it, and what they are without being joined."""
        splits = {}
        for index, data in enumerate(self._bytes_of_id):
            head = data.rstrip(b"\r\n")
            if head.strip() and len(head) < len(data) and _is_utf8(head):
                splits[index] = self.encode_bytes(head) + self.encode_bytes(data[len(head) :])
        return splits

    @cached_property
    def is_line_break_join(self) -> np.ndarray:
        """Whether a token is in `line_break_splits`, bool (vocab_size,)."""
        return np.isin(np.arange(self.vocab_size), list(self.line_break_splits))

    @cached_property
    def _bytes_of_id(self) -> list[bytes]:
        byte_of_symbol = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        table = [b""] * self.vocab_size
        for token, index in self._backend.get_vocab(with_added_tokens=False).items():
            table[index] = bytes(byte_of_symbol[symbol] for symbol in token)
        return table

    @cached_property
    def _id_of_byte(self) -> list[int]:
        vocabulary = self._backend.get_vocab(with_added_tokens=False)
        return [vocabulary[symbol] for symbol in byte_symbols()]


def _identity(text: str, padded_vocab_size: int) -> str:
    return hashlib.sha256(f"{padded_vocab_size}\n{text}".encode()).hexdigest()


def _untrained(rules: Rules) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    steps: list[Any] = [
        *(pre_tokenizers.Split(Regex(split), "isolated") for split in ((PIECES,) if rules == "v1" else V3_SPLITS)),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
    ]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)  # type: ignore[assignment]
    backend.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return backend


def _rules_of(backend: tokenizers.Tokenizer) -> Rules | None:
    """The rules by which `backend` cuts plain text, None where they are not ours or it does more to a text."""
    found = json.loads(backend.to_str())
    if (
        found["normalizer"]
        or found["truncation"]
        or found["padding"]
        or not all(token["special"] for token in found["added_tokens"])
    ):
        return None
    all_rules: tuple[Rules, ...] = ("v1", "v3")
    for rules in all_rules:
        ours = json.loads(_untrained(rules).to_str())
        if found["pre_tokenizer"] == ours["pre_tokenizer"] and _options(found["model"]) == _options(ours["model"]):
            return rules
    return None


def _options(model: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key not in ("vocab", "merges") and value}


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _valid_runs(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Cut `data` into (longest decodable text, the undecodable bytes after it)."""
    position = 0
    while position < len(data):
        try:
            yield data[position:].decode(), b""
            return
        except UnicodeDecodeError as error:
            start, end = position + error.start, position + error.end
            yield data[position:start].decode(), data[start:end]
            position = end
