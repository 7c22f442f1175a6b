"""Conversations to the ids after which the model answers, by the run's chat template (`tokens/chat.py`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from isoflop.errors import DataError, RequestError
from isoflop.tokens.chat import ROLES, ChatTemplate, Message, read_template


def prompt_of(template: ChatTemplate, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Ids of a conversation that ends with the user's turn, up to where the assistant begins.

    Raises:
        RequestError: no conversation, or one that the template refuses.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise RequestError(f"messages = {messages!r:.60} must be a list of roles and contents; give at least one")
    for at, message in enumerate(messages):
        good = isinstance(message, Mapping) and isinstance(message.get("content"), str)
        if not good or message.get("role") not in ROLES:
            raise RequestError(
                f"messages[{at}] = {message!r:.80} must have a role ({', '.join(ROLES)}) and a content of text"
            )
    try:
        return template.prompt_ids([Message(message["role"], message["content"]) for message in messages]).tolist()
    except DataError as error:
        raise RequestError(f"messages: {error}") from error


def is_chat_model(run: Path) -> bool:
    """Whether the run's own files say how a conversation is written: base models have none."""
    return read_template(run / "tokenizer") is not None
