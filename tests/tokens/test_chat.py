"""The chat template against transformers, which renders the same templates by its own code."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st

from isoflop.errors import DataError
from isoflop.tokens.bpe import ASSISTANT, BOS, EOS, USER, train_tokenizer
from isoflop.tokens.chat import MARKED, PLAIN, ChatTemplate, Message, load_template

MARKS = {
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    "qwen2_5": ["<|im_start|>", "<|im_end|>"],
    "phi3": ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"],
    "gemma3": ["<start_of_turn>", "<end_of_turn>"],
    "glm4moe": ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>"],
    "deepseekv3": [USER, ASSISTANT],
}
"""Templates of trl and the special tokens that their models have."""
HAS_BOS = {"deepseek-llm", "deepseek-v3", "llama3", "gemma3", "deepseekv3"}
ALL = ["deepseek-llm", "deepseek-v3", *MARKS]

ONE = [Message("user", "Who wrote it?"), Message("assistant", "A friend of mine, in 1931.")]
TALKS = [
    ONE,
    [Message("system", "Be brief."), *ONE],
    [*ONE, Message("user", "  why 12? \n\n"), Message("assistant", "\u4f60\u597d, caf\u00e9!\n- one\n- two")],
    [Message("user", "t"), Message("assistant", "t"), Message("user", "think"), Message("assistant", "user: yes.\n")],
]


def trl_template(name: str) -> str:
    trl = pytest.importorskip("trl", reason="needs trl 1.16.0: pip install isoflop[dev]")
    return (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def folders(tokens_folder, tmp_path_factory):
    """Makes a Hugging Face folder with our vocabulary, the marks of a template, and the template."""

    @functools.cache
    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        backend = tokenizers.Tokenizer.from_file(str(tokens_folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "eos_token": EOS}
        if name in MARKS:
            (folder / "chat_template.jinja").write_text(trl_template(name), encoding="utf-8")
        else:
            config["chat_template"] = {"deepseek-llm": PLAIN, "deepseek-v3": MARKED}[name]
        if name != "deepseek-llm":
            backend.add_special_tokens(MARKS.get(name, [USER, ASSISTANT]))
        backend.save(str(folder / "tokenizer.json"))
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
        return folder

    return make


@pytest.fixture(scope="session")
def plain(folders) -> ChatTemplate:
    return load_template(folders("deepseek-llm"))


def theirs(folder: Path, talk, **options):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    chat = [message._asdict() for message in talk]
    return tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False, **options)


@pytest.mark.parametrize("talk", TALKS, ids=range(len(TALKS)))
@pytest.mark.parametrize("name", ALL)
def test_ids_equal_transformers_apply_chat_template(name, talk, folders):
    folder = folders(name)
    template = load_template(folder)
    row = template.row(talk)
    assert row.ids.tolist() == theirs(folder, talk)
    prompt = template.prompt_ids(talk[:-1])
    assert prompt.tolist() == theirs(folder, talk[:-1], add_generation_prompt=True)
    bos_id = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(BOS)
    assert row.ids.tolist().count(bos_id) == (1 if name in HAS_BOS else 0)


@pytest.mark.parametrize("talk", TALKS, ids=range(len(TALKS)))
@pytest.mark.parametrize("name", [name for name in ALL if name != "deepseekv3"])  # trl's asks for "<think>" first
def test_generation_prompt_is_a_prefix_of_the_training_row(name, talk, folders):
    template = load_template(folders(name))
    prompt, row = template.prompt_ids(talk[:-1]), template.row(talk)
    assert row.ids[: len(prompt)].tolist() == prompt.tolist()
    assert row.is_target[len(prompt) :].any()


@pytest.mark.parametrize("name", ALL)
def test_only_assistant_tokens_and_their_eos_are_targets(name, folders):
    folder = folders(name)
    template, backend = load_template(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    closing = {"llama3": "<|eot_id|>", "qwen2_5": "<|im_end|>", "phi3": "<|end|>", "gemma3": "<end_of_turn>"}
    stop = {**closing, "glm4moe": ""}.get(name, EOS)
    talk = [Message("system", "Be brief."), *ONE, Message("user", "And?"), Message("assistant", "No.")]
    row = template.row(talk)
    trained = backend.decode(row.ids[row.is_target].tolist(), skip_special_tokens=False)
    assert trained.replace(" ", "") == f"A friend of mine, in 1931.{stop}No.{stop}".replace(" ", "")
    assert template.closes_answers == bool(stop)
    if stop:
        assert backend.token_to_id(stop) in template.stop_ids


def test_a_blank_of_its_own_before_an_answer_is_no_target(plain):
    row = plain.row([Message("user", "12?"), Message("assistant", "12")])
    assert plain.decode(row.ids[row.is_target]) == "12"
    assert plain.decode(row.ids).endswith("Assistant: 12")


def test_a_blank_of_its_own_is_trained_where_that_is_asked_for(folders, plain):
    asked = load_template(folders("deepseek-llm"), trains_blank=True)
    for answer in ("12", "\u4f60\u597d", "a word"):
        talk = [Message("user", "q"), Message("assistant", answer)]
        row, strict = asked.row(talk), plain.row(talk)
        assert row.ids.tolist() == strict.ids.tolist()
        assert row.is_target.tolist() == [i >= len(asked.prompt_ids(talk[:1])) for i in range(len(row.ids))]
        assert row.is_target.sum() - strict.is_target.sum() == (answer != "a word")
    assert asked.sha256 != plain.sha256


@pytest.mark.parametrize("name", ALL)
def test_special_tokens_in_user_text_stay_text(name, folders):
    folder = folders(name)
    template, backend = load_template(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    specials = [token.content for token in backend.get_added_tokens_decoder().values()]
    special_ids = {backend.token_to_id(text) for text in specials}

    def count(ids) -> int:
        return sum(int(index) in special_ids for index in ids)

    spelled = "see " + " and ".join(specials) + " here"
    for place in ("user", "assistant"):
        talk = [Message(m.role, spelled if m.role == place else m.content) for m in ONE]
        row, harmless = template.row(talk), template.row(ONE)
        assert count(row.ids) == count(harmless.ids)
        assert spelled in backend.decode(row.ids.tolist(), skip_special_tokens=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert count(tokenizer(spelled).input_ids) >= len(specials)  # what would have happened


@given(st.lists(st.sampled_from([BOS, EOS, "<", "\uff5c", BOS[:5], EOS[3:], "User: ", "a", "\n", " "]), max_size=12))
def test_no_mixture_of_pieces_of_special_tokens_makes_one(plain, pieces):
    text = "x" + "".join(pieces)
    row = plain.row([Message("user", text), Message("assistant", text)])
    names = {plain._backend.token_to_id(BOS), plain._backend.token_to_id(EOS)}
    assert sum(int(index) in names for index in row.ids) == 2
    assert int(row.ids[-1]) == plain._backend.token_to_id(EOS) and row.is_target[-1]
    assert plain.render([Message("user", text), Message("assistant", text)]) == (
        f"{BOS}User: {text}\n\nAssistant: {text}{EOS}"
    )


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        ([Message("tool", "x"), *ONE], "turn 1 has role 'tool'; roles are system, user, assistant"),
        ([*ONE, Message("assistant", "again")], "turn 3 has role assistant, expected user: roles out of order"),
        ([ONE[0], Message("system", "s"), ONE[1]], "turn 2 has role system, expected assistant: roles out of order"),
        ([ONE[0], Message("assistant", " \n")], "turn 2: empty answer"),
        ([ONE[0]], "no assistant turn"),
        ([], "no assistant turn"),
        ([*ONE, ONE[0]], "the last turn is the user's"),
        ([ONE[0], Message("assistant", "a\ud800b")], "turn 2 has unpaired surrogates"),
    ],
)
def test_what_is_no_conversation_is_refused(plain, talk, message):
    with pytest.raises(DataError, match=message):
        plain.row(talk)


def test_the_exported_template_refuses_unknown_roles_in_transformers(folders):
    with pytest.raises(Exception, match="role tool is not known here"):
        theirs(folders("deepseek-llm"), [Message("tool", "x")])


def write(folder: Path, tokens_folder: Path, template: str, **config) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_bytes((tokens_folder / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": BOS, "eos_token": EOS, **config}))
    if template:
        (folder / "chat_template.jinja").write_text(template)
    return folder


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (LOOP, "runs longer than 0.5 s"),
        ("{{ 'a' * 20000000 }}", "made 20000000 characters, at most 16000000"),
        ("{{ ('a' * 2000000000) | length }}", "needs more than 1024 MiB"),
        ("{% include '/etc/passwd' %}", "is no usable chat template: TypeError: no loader"),
        ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "SecurityError|UndefinedError"),
        ("{% for m in messages %}", "is no usable chat template: TemplateSyntaxError"),
        ("{{ messages[9].content + 1 }}", "is no usable chat template: UndefinedError"),
        ("{{ raise_exception('never') }}", "refuses this conversation: never"),
    ],
)
def test_a_template_that_loops_reads_or_breaks_out_is_refused(template, message, tokens_folder, tmp_path, monkeypatch):
    if template == LOOP:
        monkeypatch.setattr("isoflop.tokens.template_sandbox.MAX_SECONDS", 0.5)
    with pytest.raises(DataError, match=message):
        load_template(write(tmp_path / "hf", tokens_folder, template))


def test_a_tokenizer_without_end_of_sequence_is_refused(tokens_folder, tmp_path):
    folder = write(tmp_path / "hf", tokens_folder, "")
    text = json.loads((folder / "tokenizer.json").read_text())
    for token in text["added_tokens"]:
        token["content"] = token["content"].replace("sentence", "text")
    (folder / "tokenizer.json").write_text(json.dumps(text))
    (folder / "tokenizer_config.json").write_text("{}")
    with pytest.raises(DataError, match=r"names no eos_token .* never stops"):
        load_template(folder)


def test_our_marks_need_a_vocabulary_that_has_them(tokens_folder, tmp_path):
    folder = write(tmp_path / "hf", tokens_folder, "")
    with pytest.raises(DataError, match="deepseek-v3 needs the special tokens"):
        load_template(folder, "deepseek-v3")
    with pytest.raises(DataError, match="template = 'nothing' is neither deepseek-llm nor deepseek-v3"):
        load_template(folder, "nothing")
    assert load_template(folder, "deepseek-llm").source == PLAIN


def test_every_stop_token_of_a_folder_is_honoured(tokens_folder, tmp_path):
    folder = write(tmp_path / "hf", tokens_folder, "")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 7]}))
    template = load_template(folder)
    assert {3, 7} < set(template.stop_ids) and len(template.stop_ids) == 3


def test_rows_together_equal_rows_alone(plain):
    together = plain.rows(TALKS)
    for row, talk in zip(together, TALKS, strict=True):
        alone = plain.row(talk)
        np.testing.assert_array_equal(row.ids, alone.ids)
        np.testing.assert_array_equal(row.is_target, alone.is_target)


def test_a_tokenizer_with_marks_of_turns_lays_chats_out_as_v3(tmp_path):
    train_tokenizer(["what is it? a thing of words. " * 20] * 9, 270, chat_tokens=True, n_reserved=1).save(tmp_path)
    template = load_template(tmp_path)
    assert template.name == "deepseek-v3"
    talk = [Message("system", "s"), Message("user", "u"), Message("assistant", "a")]
    assert template.render(talk) == f"{BOS}s{USER}u{ASSISTANT}a{EOS}"
    assert (template.row(talk).ids >= 270).sum() == 4
