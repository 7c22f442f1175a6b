import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.errors import DataError, RecipeError
from isoflop.tokens.bpe import (
    BOS,
    EOS,
    FIM_BEGIN,
    FIM_END,
    FIM_HOLE,
    V3_SPLITS,
    Tokenizer,
    _untrained,
    byte_symbols,
    train_tokenizer,
)

# text that hits every character class and the borders between them
TRICKY = st.text(
    alphabet=st.one_of(
        st.sampled_from("ab1 \t\r\n.,_\u00e9\u4e2d\u3002\u3000\uff5c\u2581"), st.characters(codec="utf-8")
    )
)


@given(text=st.one_of(st.text(), TRICKY))
@settings(max_examples=300)
def test_any_string_round_trips_and_both_encoders_agree(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode_batch([text])[0].tolist() == ids
    assert sum(tokenizer.token_bytes[ids]) == len(text.encode())


@given(data=st.binary())
@settings(max_examples=300)
def test_any_byte_string_round_trips(tokenizer: Tokenizer, data: bytes) -> None:
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


@pytest.mark.parametrize("data", [b"\xff", b"ab\xc0\xc1\xf5cd", b"\xe4\xb8", "caf\u00e9".encode(), b""])
def test_invalid_utf8_is_mapped_bytewise_and_the_rest_as_text(tokenizer: Tokenizer, data: bytes) -> None:
    ids = tokenizer.encode_bytes(data)
    assert tokenizer.decode_bytes(ids) == data
    if data.isascii() or data == "caf\u00e9".encode():
        assert ids == tokenizer.encode(data.decode())


def test_transformers_loads_the_file_and_gives_the_same_ids(tokens_folder: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    other = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokens_folder / "tokenizer.json"))

    @given(text=st.one_of(st.text(), TRICKY))
    @settings(max_examples=200)
    def check(text: str) -> None:
        ids = other.encode(text, add_special_tokens=False)
        assert other.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) == text
        assert ids == tokenizer.encode(text)

    check()
    assert (other.convert_tokens_to_ids(BOS), other.convert_tokens_to_ids(EOS)) == (tokenizer.bos_id, tokenizer.eos_id)


def test_ids_are_laid_out_as_in_the_paper(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.n_tokens) == (300, 301, 304)
    assert tokenizer.vocab_size == 320
    assert tokenizer.token_bytes.shape == (320,)
    assert not tokenizer.token_bytes[300:].any()
    single = {tokenizer.decode_bytes([i]) for i in range(300) if tokenizer.token_bytes[i] == 1}
    assert single == {bytes([byte]) for byte in range(256)}


def test_text_that_spells_a_special_token_stays_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(f"a{BOS}b{EOS}")
    assert not {tokenizer.bos_id, tokenizer.eos_id} & set(ids)
    assert tokenizer.decode([tokenizer.bos_id, *tokenizer.encode("a"), tokenizer.eos_id]) == f"{BOS}a{EOS}"


def test_merges_stay_within_character_classes_and_digits_are_single() -> None:
    text = "value12 = f(x1);\n\n\n  \u4e2d\u6587\u3002 value12 = f(x1);\n\n\n" * 50
    tokenizer = train_tokenizer([text], 268)
    tokens = [tokenizer.decode_bytes([index]) for index in range(268)]
    assert {b"value", b" (", b");"} & set(tokens)
    for index in range(268):
        token = tokenizer.decode_bytes([index]).decode(errors="replace")
        if len(token) > 1:
            inner = token[1:] if token[0] == " " else token
            classes = {_class_of(c) for c in inner}
            assert len(classes) == 1, token
            assert not classes & {"digit", "line break"}, token


def test_training_is_deterministic() -> None:
    texts = [f"word{i % 7} \u4e2d{i % 5}\u6587 and some more text {i % 11}" for i in range(500)]
    first, second = (train_tokenizer(iter(texts), 270) for _ in range(2))
    assert first.sha256 == second.sha256


def test_vocabulary_larger_than_the_corpus_supports_names_the_number_reached() -> None:
    with pytest.raises(
        DataError, match=r"vocab_size = 5000 is larger than the corpus supports: only (\d+) tokens"
    ) as info:
        train_tokenizer(["hello hello world world"], 5000)
    reached = int(str(info.value).split("only ")[1].split()[0])
    assert train_tokenizer(["hello hello world world"], reached).bos_id == reached


@pytest.mark.parametrize(
    ("vocab_size", "padded", "message"), [(100, 0, "must hold the 256"), (256, 257, "padded_vocab_size = 257 must be")]
)
def test_sizes_that_contradict_each_other_are_refused(vocab_size: int, padded: int, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        train_tokenizer(["text"], vocab_size, padded_vocab_size=padded)


def test_damaged_or_missing_tokenizer_is_named(tokens_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.json does not exist"):
        Tokenizer.load(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokens_folder / name, tmp_path / name)
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    (tmp_path / "tokenizer.json").write_text(text.replace("the", "teh", 1), encoding="utf-8")
    with pytest.raises(DataError, match="hash differs"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({}), encoding="utf-8")
    with pytest.raises(DataError, match="is not ours"):
        Tokenizer.load(tmp_path)


def test_byte_symbols_are_256_different_printable_characters() -> None:
    symbols = byte_symbols()
    assert len(set(symbols)) == 256
    assert all(symbol.isprintable() and not symbol.isspace() for symbol in symbols)


def _class_of(character: str) -> str:
    if character in "\r\n":
        return "line break"
    if character.isdigit():
        return "digit"
    if character.isspace():
        return "space"
    if character == "\ufffd" or "\u4e00" <= character <= "\u9fff":
        return "cjk"  # part of a character, or a whole one
    return "letter" if character.isalpha() else "punctuation"


V3_TEXT = (
    "value12345 = f(x1);\n\n\n  \u4e2d\u6587\u3002 value12 .hello\r\n  (it's)!\n\n\t\u30ab\u30ca x\u0301y \u0661\u0662 "
    "1,234,567.89 #include <a>  \n  end"
)


@pytest.fixture(scope="module")
def v3() -> Tokenizer:
    return train_tokenizer([V3_TEXT * 3] * 40, 310, rules="v3", fim_tokens=True, n_reserved=2, pad_multiple=8)


@given(text=st.one_of(st.text(), TRICKY))
@settings(max_examples=200)
def test_v3_rules_round_trip_and_both_encoders_agree(v3: Tokenizer, text: str) -> None:
    ids = v3.encode(text)
    assert v3.decode(ids) == text
    assert v3.encode_batch([text])[0].tolist() == ids
    assert sum(v3.token_bytes[ids]) == len(text.encode())


@given(
    text=st.text(
        alphabet=st.one_of(st.sampled_from("ab1 \t\r\n.,_(\u00e9\u4e2d\u30a2\u3002"), st.sampled_from(V3_TEXT))
    )
)
@settings(max_examples=200)
def test_v3_cuts_are_those_of_the_three_published_passes(text: str) -> None:
    regex = pytest.importorskip("regex", reason="an independent engine with Unicode classes")
    pieces = [text] if text else []
    for split in V3_SPLITS:
        pieces = [part for piece in pieces for part in regex.split(f"({split})", piece) if part]
    steps = json.loads(_untrained("v3").to_str())["pre_tokenizer"]["pretokenizers"]
    assert [step["type"] for step in steps] == ["Split", "Split", "Split", "ByteLevel"]
    shown = [piece for piece, _ in _untrained("v3").pre_tokenizer.pre_tokenize_str(text)]
    byte_of = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    assert [bytes(byte_of[c] for c in piece).decode() for piece in shown] == pieces


def test_v3_groups_digits_in_threes_and_joins_punctuation_with_line_breaks(v3: Tokenizer) -> None:
    tokens = [v3.decode_bytes([index]).decode(errors="replace") for index in range(310)]
    assert "123" in tokens and ");\n\n\n" in tokens
    assert max((len(token) for token in tokens if token.isdigit()), default=0) == 3
    assert [v3.decode([index]) for index in v3.encode("12345")] == ["123", "45"]


def test_fim_tokens_follow_bos_and_eos_and_the_reserved_ones_follow_them(v3: Tokenizer) -> None:
    assert (v3.bos_id, v3.eos_id, v3.fim_ids, v3.n_tokens, v3.vocab_size) == (310, 311, (313, 312, 314), 317, 320)
    assert not {*range(310, 320)} & set(v3.encode(f"{FIM_BEGIN}{FIM_HOLE}{FIM_END}"))


def test_v3_tokenizer_is_loaded_back_with_its_rules_and_by_transformers(v3: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    v3.save(tmp_path)
    other = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.encode(V3_TEXT) == v3.encode(V3_TEXT) == other.encode(V3_TEXT, add_special_tokens=False)
    assert (loaded.sha256, loaded.fim_ids) == (v3.sha256, v3.fim_ids)
    assert other.convert_tokens_to_ids([FIM_BEGIN, FIM_HOLE, FIM_END]) == list(v3.fim_ids or ())


SPELLED = [
    f"The text {BOS} names {EOS} both.",
    BOS,
    f"x{EOS}\n{BOS}{BOS}",
    f"{FIM_BEGIN}prefix{FIM_HOLE}suffix{FIM_END}",
    f"\u4e2d\u6587{EOS}\u4e2d\u6587  {FIM_HOLE}1234",
    "<|endoftext|> </s> [INST] <s>",
]


@pytest.mark.parametrize("rules", ["v1", "v3"])
@pytest.mark.parametrize("text", SPELLED)
def test_text_that_spells_a_special_token_is_text_here_and_in_transformers(tmp_path, rules, text):
    transformers = pytest.importorskip("transformers")
    made = train_tokenizer(["some text to learn from, twice twice"] * 3, vocab_size=270, rules=rules, fim_tokens=True)
    made.save(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    ids = made.encode(text)
    assert theirs(text, add_special_tokens=False)["input_ids"] == ids
    assert not set(ids) & {made.bos_id, made.eos_id, *(made.fim_ids or ())}
    assert made.decode(ids) == theirs.decode(ids) == text
