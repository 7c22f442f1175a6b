"""Conversations to the ids after which the model answers. One layout, in plain words that any vocabulary can spell.

Source: DeepSeek LLM's README, section 5. Base models have never seen it: they are given plain text to continue.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from isoflop.errors import RequestError
from isoflop.serving.vocabulary import Vocabulary

_ROLES = ("system", "user", "assistant")


def prompt_of(vocabulary: Vocabulary, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Ids of a conversation that ends with the user's turn, up to where the assistant begins.

    What a message spells never becomes a special token: text is encoded as text, and only the ends of answers are ids.

    Raises:
        RequestError: no conversation.
    """
    _check(messages)
    ids = [] if vocabulary.bos_id is None else [vocabulary.bos_id]
    text = ""
    for message in messages:
        if message["role"] == "assistant":
            ids += vocabulary.encode(f"{text}Assistant: {message['content']}")
            ids += [] if vocabulary.eos_id is None else [vocabulary.eos_id]
            text = ""
        else:
            text += f"User: {message['content']}\n\n" if message["role"] == "user" else f"{message['content']}\n\n"
    return ids + vocabulary.encode(f"{text}Assistant:")


def is_chat_model(run: Path) -> bool:
    """Whether the run's own files say how a conversation is written: base models have none."""
    folder = run / "tokenizer"
    if (folder / "chat_template.jinja").is_file():
        return True
    config = folder / "tokenizer_config.json"
    try:
        return config.is_file() and "chat_template" in json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        return False


def _check(messages: Sequence[Mapping[str, str]]) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise RequestError(f"messages = {messages!r:.60} must be a list of roles and contents; give at least one")
    for at, message in enumerate(messages):
        good = isinstance(message, Mapping) and isinstance(message.get("content"), str)
        if not good or message.get("role") not in _ROLES:
            raise RequestError(
                f"messages[{at}] = {message!r:.80} must have a role ({', '.join(_ROLES)}) and a content of text"
            )
    if messages[-1]["role"] != "user":
        raise RequestError(f"messages end with the {messages[-1]['role']}'s turn; the last one must be the user's")
