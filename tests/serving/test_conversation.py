"""Conversations reach the engine by the one chat template: a prompt begins a row of SFT, what ends answers stops it."""

import dataclasses

import pytest
import torch
from serving_models import DENSE, build

from isoflop.errors import RequestError
from isoflop.serving.chat import Chat
from isoflop.serving.conversation import is_chat_model, prompt_of
from isoflop.serving.engine import Engine
from isoflop.serving.request import Sampling
from isoflop.tokens.bpe import Tokenizer, train_tokenizer
from isoflop.tokens.chat import Message, load_template


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "V3's marks"])
def folder(tmp_path_factory, request):
    made = train_tokenizer(["User: hello there, Assistant: hello"] * 3, vocab_size=270, chat_tokens=request.param)
    path = tmp_path_factory.mktemp("tokenizer")
    made.save(path)
    return path


def test_the_prompt_of_an_engine_is_a_prefix_of_the_training_row(folder):
    template = load_template(folder)
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}]
    row = template.row([*(Message(m["role"], m["content"]) for m in talk), Message("assistant", "hello there")])
    ids = prompt_of(template, talk)
    assert ids == row.ids[: len(ids)].tolist()
    assert row.is_target[len(ids) :].any() and not row.is_target[: len(ids)].any()


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "must be a list of roles and contents"),
        ([{"role": "pirate", "content": "a"}], r"messages\[0\]"),
        ([{"role": "assistant", "content": "a"}], "expected user"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "not the user's"),
    ],
)
def test_what_is_no_conversation_is_refused(folder, messages, reason):
    with pytest.raises(RequestError, match=reason):
        prompt_of(load_template(folder), messages)


def test_a_chat_stops_where_the_template_ends_answers_and_takes_its_history_along(folder):
    tokenizer = Tokenizer.load(folder)
    engine = Engine(build(dataclasses.replace(DENSE, vocab_size=tokenizer.vocab_size)), tokenizer)
    engine.tokenizer_folder = folder
    asked = []
    add = engine.add
    engine.add = lambda prompt, sampling: asked.append((prompt, sampling)) or add(prompt, sampling)
    chat = Chat(engine, Sampling(max_tokens=4, temperature=0.0), is_chat=True)
    for text in ("hello", "again"):
        list(chat.say(text))
    assert set(engine.template.stop_ids) <= set(asked[0][1].stop_ids)
    turns = [Message("user", "hello")]
    if chat.turns[0][1].strip():
        turns += [Message("assistant", chat.turns[0][1]), Message("user", "again")]
        assert asked[1][0] == engine.template.prompt_ids(turns).tolist()
    assert asked[0][0] == engine.template.prompt_ids(turns[:1]).tolist()


def test_a_run_without_a_template_of_its_own_is_a_base_model(tmp_path, folder):
    run = tmp_path / "run"
    Tokenizer.load(folder).save(run / "tokenizer")
    assert not is_chat_model(run)
    (run / "tokenizer" / "chat_template.jinja").write_text(load_template(folder).source, encoding="utf-8")
    assert is_chat_model(run)


def test_messages_without_a_tokenizer_are_refused():
    with torch.no_grad():
        engine = Engine(build(DENSE), None)
    with pytest.raises(RequestError, match="messages need a tokenizer"):
        engine.template.prompt_ids([Message("user", "a")])
