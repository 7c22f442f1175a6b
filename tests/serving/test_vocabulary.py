"""Tokenizers of others, as imported runs bring them, give the engine the same ids and bytes as the library."""

import json

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from isoflop.errors import DataError
from isoflop.serving.vocabulary import ForeignTokenizer, load_tokenizer
from isoflop.tokens.bpe import Tokenizer

SPECIALS = [tokenizers.AddedToken("<s>", special=True), tokenizers.AddedToken("</s>", special=True)]


def write(folder, backend, config):
    backend.add_special_tokens(SPECIALS)
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return load_tokenizer(folder)


def byte_level():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: at for at, symbol in enumerate([*alphabet, "th", "the"])}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, [("t", "h"), ("th", "e")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def sentence_pieces():
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581the", "\u2581", "t", "h", "e"]
    backend = tokenizers.Tokenizer(
        models.BPE({piece: at for at, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return backend


@pytest.mark.parametrize("make", [byte_level, sentence_pieces])
def test_bytes_of_ids_are_those_of_the_text(tmp_path, make):
    found = write(tmp_path / "foreign", make(), {"bos_token": {"content": "<s>"}, "eos_token": "</s>"})
    assert isinstance(found, ForeignTokenizer)
    assert (found.bos_id, found.eos_id) == (found.n_tokens - 2, found.n_tokens - 1)
    for text in ("the the", "h\u00e9 \U0001f600\n", "<s>the</s>"):
        ids = found.encode(text)
        assert not {found.bos_id, found.eos_id} & set(ids)  # spelled, not meant
        assert found.decode_bytes(ids).decode().lstrip() == text
        assert found.decode_bytes([found.bos_id, *ids, found.eos_id]) == found.decode_bytes(ids)


def test_ours_is_ours_and_a_damaged_one_is_refused(tmp_path, tiny_tokens):
    assert isinstance(load_tokenizer(tiny_tokens), Tokenizer)
    for text in ("{", "{}", "[1]", '{"model": {"type": "BPE"}}'):
        (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
        with pytest.raises(DataError, match="is not a tokenizer"):
            load_tokenizer(tmp_path)


def test_a_configuration_that_is_no_table_names_no_special_token(tmp_path):
    found = write(tmp_path / "foreign", byte_level(), [])
    assert (found.bos_id, found.eos_id) == (None, None)
