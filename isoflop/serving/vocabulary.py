"""What the engine needs of a tokenizer, and the same of one that is not ours: ids of text, bytes of ids.

Imported runs bring the tokenizer.json of their makers: byte-level BPE, where every symbol stands for a byte, or
SentencePiece's way, where a lower block is a blank and bytes without a piece are spelled `<0x0A>`.
"""

import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Protocol

import tokenizers

from isoflop.errors import DataError
from isoflop.tokens.bpe import Tokenizer
from isoflop.tokens.rules import byte_symbols

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Vocabulary(Protocol):
    """A tokenizer, as the engine sees it."""

    @property
    def n_tokens(self) -> int:
        """Ids below this may be drawn."""
        ...

    @property
    def bos_id(self) -> int | None:
        """Begins every text, if there is one."""
        ...

    @property
    def eos_id(self) -> int | None:
        """Ends a text."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of a text, in which special tokens are only spelled."""
        ...

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Bytes behind ids; special tokens have none."""
        ...

    def to_json(self) -> str:
        """The text of tokenizer.json."""
        ...


class ForeignTokenizer:
    """A tokenizer.json that others have made."""

    def __init__(self, backend: tokenizers.Tokenizer, *, bos: str | None, eos: str | None):
        self._backend = backend
        self._backend.encode_special_tokens = True  # text that spells a special token stays text
        self.bos_id = backend.token_to_id(bos) if bos else None
        self.eos_id = backend.token_to_id(eos) if eos else None
        self.n_tokens = 1 + max(backend.get_vocab(with_added_tokens=True).values())

    @classmethod
    def load(cls, folder: Path) -> "ForeignTokenizer":
        """Raises DataError: no tokenizer there, or one that cannot be read."""
        path, config = folder / "tokenizer.json", {}
        try:
            if (folder / "tokenizer_config.json").is_file():
                config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{path} is not a tokenizer ({error}); give a folder that has one") from error
        config = config if isinstance(config, dict) else {}
        return cls(backend, bos=_name(config, "bos_token"), eos=_name(config, "eos_token"))

    def encode(self, text: str) -> list[int]:
        """Ids of a text, in which special tokens are only spelled."""
        return self._backend.encode(text, add_special_tokens=False).ids

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Bytes behind ids; special tokens have none."""
        return b"".join(self._bytes_of_id.get(int(i), b"") for i in ids)

    def to_json(self) -> str:
        """The text of tokenizer.json."""
        return self._backend.to_str()

    @cached_property
    def _bytes_of_id(self) -> dict[int, bytes]:
        byte_of_symbol = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        is_byte_level = '"ByteLevel"' in json.dumps(json.loads(self.to_json())["decoder"])
        table = {}
        for piece, index in self._backend.get_vocab(with_added_tokens=False).items():
            if is_byte_level and all(symbol in byte_of_symbol for symbol in piece):
                table[index] = bytes(byte_of_symbol[symbol] for symbol in piece)
            elif found := _BYTE.fullmatch(piece):
                table[index] = bytes([int(found[1], 16)])
            else:
                table[index] = piece.replace("\u2581", " ").encode()
        for index, token in self._backend.get_added_tokens_decoder().items():
            table[index] = b"" if token.special else token.content.encode()
        return table


def load_tokenizer(folder: Path) -> Tokenizer | ForeignTokenizer:
    """Ours, with its hash checked, or that of others. Raises DataError."""
    config = folder / "tokenizer_config.json"
    ours = config.is_file() and "tokenizer_sha256" in config.read_text(encoding="utf-8", errors="replace")
    return Tokenizer.load(folder) if ours else ForeignTokenizer.load(folder)


def _name(config: dict, key: str) -> str | None:
    """A special token is named by itself, or by a table that has it."""
    value = config.get(key)
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None
