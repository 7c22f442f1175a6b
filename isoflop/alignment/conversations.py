"""Conversations and preference pairs of every usual format in one normal form.

    messages         messages [{role, content}]; content may be a list of text parts
    sharegpt         conversations [{from, value}] (human, gpt), also with role and content
    alpaca           instruction, input, output or response (Dolly: context), with system, history or instances
    prompt_response  prompt and response, completion or answer; question and answer

Pairs: prompt, chosen, rejected (texts, messages or ShareGPT turns); HH-RLHF (two whole dialogues); AlpacaEval
(instruction, output_1, output_2, preference). Texts lose white space at both ends, because a layout has its own blank
before an answer. An Alpaca input follows its instruction behind one line break, without Stanford's preamble.

A record that is no conversation is reported with file and line and left out; so is one that repeats another.
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from isoflop.alignment.records import read_records
from isoflop.corpus.document import BadRecord, OnBad
from isoflop.errors import DataError
from isoflop.tokens.chat import Message, check

Format = Literal["auto", "messages", "sharegpt", "alpaca", "prompt_response"]
PairFormat = Literal["auto", "prompt_chosen", "hh", "alpaca_eval"]

_ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot"), "assistant"),
}
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_ANSWERS = ("output", "response", "completion", "answer")

S = TypeVar("S")
K = TypeVar("K")


class Conversation(NamedTuple):
    """Turns that end with an assistant's, and where they were found."""

    messages: tuple[Message, ...]
    origin: str


class Pair(NamedTuple):
    """Two answers to one prompt; the first is preferred."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    origin: str

    @property
    def both(self) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
        """The two whole conversations, the preferred one first."""
        return (*self.prompt, Message("assistant", self.chosen)), (*self.prompt, Message("assistant", self.rejected))


T = TypeVar("T", Conversation, Pair)


def read_conversations(files: Iterable[Path], format: Format, on_bad: OnBad) -> list[Conversation]:
    """All conversations of some files in their order; what is none, or is there already, goes to `on_bad`."""
    found = _distinct(files, on_bad, lambda record: _conversations(record, format), "conversation")
    return [Conversation(messages, where) for messages, where in found.items()]


def read_pairs(files: Iterable[Path], format: PairFormat, on_bad: OnBad) -> list[Pair]:
    """All preference pairs of some files in their order; what is none, or is there already, goes to `on_bad`."""
    found = _distinct(files, on_bad, lambda record: [_pair(record, format)], "pair")
    return [Pair(*sides, where) for sides, where in found.items()]


def first_question(item: Conversation | Pair) -> str:
    """What a split goes by, so that no prompt is on both sides."""
    turns = item.messages if isinstance(item, Conversation) else item.prompt
    return next(message.content for message in turns if message.role == "user")


def split_by_prompt(items: Sequence[T], fraction: float, seed: int) -> tuple[list[T], list[T]]:
    """(train, valid): all items that begin with one question are on one side, whatever else is in the list."""
    held = []
    for item in items:
        digest = hashlib.sha256(f"{seed}\n{first_question(item)}".encode()).digest()
        held.append(int.from_bytes(digest[:8], "big") < fraction * 2**64)
    return [i for i, is_valid in zip(items, held) if not is_valid], [i for i, is_valid in zip(items, held) if is_valid]


def _distinct(
    files: Iterable[Path], on_bad: OnBad, convert: Callable[[Mapping[str, Any]], Iterable[K]], what: str
) -> dict[K, str]:
    """What `convert` makes of all records, each once, with the place where it was found first."""
    found: dict[K, str] = {}
    for path in files:
        for where, record in read_records(path, on_bad):
            try:
                items = list(convert(record))
            except DataError as error:
                on_bad(BadRecord(where, str(error)[:300]))
                continue
            for item in items:
                if item in found:
                    on_bad(BadRecord(where, f"repeats an earlier {what}"))
                else:
                    found[item] = where
    return found


def _conversations(record: Mapping[str, Any], format: Format) -> Iterator[tuple[Message, ...]]:
    format = _format_of(record) if format == "auto" else format
    if record.get("label") is False:
        raise DataError("label false marks the answer as a bad one; pairs are for preferences")
    if format == "messages":
        found = [_turns(_need(record, "messages", list))]
    elif format == "sharegpt":
        found = [[*_system(record), *_turns(_need(record, "conversations", list))]]
    elif format == "alpaca":
        found = _alpaca(record)
    else:
        question = _text(record, ("prompt", "question", "query"))
        found = [[*_system(record), Message("user", question), Message("assistant", _text(record, _ANSWERS))]]
    for messages in found:
        check(messages, ends_with="assistant")
        yield tuple(messages)


def _format_of(record: Mapping[str, Any]) -> Format:
    if "messages" in record:
        return "messages"
    if "conversations" in record:
        return "sharegpt"
    if "instruction" in record:
        return "alpaca"
    if any(key in record for key in ("prompt", "question", "query")):
        return "prompt_response"
    raise DataError(f"no known format: the record has the keys {_keys(record)}; see docs/alignment.md for those read")


def _alpaca(record: Mapping[str, Any]) -> Iterator[list[Message]]:
    instruction = _text(record, ("instruction",))
    earlier = list(_system(record))
    for turn in record.get("history") or ():
        if not isinstance(turn, (list, tuple)) or len(turn) != 2:
            raise DataError("history must be a list of [question, answer]")
        earlier += [Message("user", _content(turn[0])), Message("assistant", _content(turn[1]))]
    instances = record.get("instances")
    for instance in instances if isinstance(instances, list) else [record]:
        if not isinstance(instance, Mapping):
            raise DataError("instances must be a list of {input, output}")
        more = _content(instance.get("input") or instance.get("context") or "")
        question = f"{instruction}\n{more}" if more else instruction
        yield [*earlier, Message("user", question), Message("assistant", _text(instance, _ANSWERS))]


def _pair(record: Mapping[str, Any], format: PairFormat) -> tuple[tuple[Message, ...], str, str]:
    if format == "auto":
        if "output_1" in record:
            format = "alpaca_eval"
        elif any(key in record for key in ("prompt", "conversations", "instruction", "question", "messages")):
            format = "prompt_chosen"
        else:
            format = "hh"
    if format == "alpaca_eval":
        prompt, chosen, rejected = _alpaca_eval(record)
    elif format == "hh":
        prompt, chosen, rejected = _dialogues(_hh(record, "chosen"), _hh(record, "rejected"))
    else:
        prompt, chosen, rejected = _prompt_chosen(record)
    check([*prompt, Message("assistant", chosen)], ends_with="assistant")
    check([*prompt, Message("assistant", rejected)], ends_with="assistant")
    if chosen == rejected:
        raise DataError("equal sides: chosen and rejected are the same text; drop the pair")
    return tuple(prompt), chosen, rejected


def _prompt_chosen(record: Mapping[str, Any]) -> tuple[list[Message], str, str]:
    for side in ("chosen", "rejected"):
        if side not in record:
            raise DataError(f"no {side}: the record has the keys {_keys(record)}")
    chosen, rejected = record["chosen"], record["rejected"]
    prompt = record.get("prompt", record.get("conversations", record.get("messages")))
    if prompt is None:
        question = _text(record, ("instruction", "question"))
        more = _content(record.get("input") or "")
        prompt = f"{question}\n{more}" if more else question
    turns = _turns(prompt) if isinstance(prompt, list) else [Message("user", _content(prompt))]
    turns = [*_system(record), *turns]
    if isinstance(chosen, list) and isinstance(rejected, list) and len(chosen) > 1:  # whole dialogues beside the prompt
        return _dialogues(_turns(chosen), _turns(rejected))
    return turns, _answer(chosen), _answer(rejected)


def _answer(side: Any) -> str:
    if isinstance(side, list):
        if len(side) != 1:
            raise DataError("chosen and rejected must be one answer each, or whole dialogues both")
        side = side[0]
    if isinstance(side, Mapping):
        (turn,) = _turns([side])
        if turn.role != "assistant":
            raise DataError(f"chosen and rejected must be an assistant's, not the {turn.role}'s")
        return turn.content
    return _content(side)


def _dialogues(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], str, str]:
    """One prompt and two answers from two dialogues that are the same up to their last turn."""
    for turns in (chosen, rejected):
        check(turns, ends_with="assistant")
    if chosen[:-1] != rejected[:-1]:
        raise DataError("the two dialogues differ before the last answer")
    return chosen[:-1], chosen[-1].content, rejected[-1].content


def _hh(record: Mapping[str, Any], side: str) -> list[Message]:
    pieces = _HH_TURN.split(_need(record, side, str))
    if pieces[0].strip() or len(pieces) < 3:
        raise DataError(f"{side} does not begin with a turn of a Human")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [Message(roles[who], text.strip()) for who, text in zip(pieces[1::2], pieces[2::2])]


def _alpaca_eval(record: Mapping[str, Any]) -> tuple[list[Message], str, str]:
    outputs = [_text(record, (key,)) for key in ("output_1", "output_2")]
    if (preference := record.get("preference")) not in (1, 2):
        raise DataError(f"preference is {preference!r}, not 1 or 2: a tie or no judgement; drop the pair")
    first = preference == 1
    prompt = [Message("user", _text(record, ("instruction", "prompt")))]
    return prompt, outputs[0 if first else 1], outputs[1 if first else 0]


def _turns(items: list[Any]) -> list[Message]:
    messages = []
    for number, item in enumerate(items, 1):
        if not isinstance(item, Mapping):
            raise DataError(f"turn {number} is no object")
        role = item.get("role", item.get("from"))
        if not isinstance(role, str) or role.lower() not in _ROLES:
            raise DataError(f"turn {number} has the unknown role {role!r}; known: {', '.join(_ROLES)}")
        content = item["content"] if "content" in item else item.get("value")
        messages.append(Message(_ROLES[role.lower()], _content(content)))
    return messages


def _system(record: Mapping[str, Any]) -> list[Message]:
    text = _content(record.get("system") or "")
    return [Message("system", text)] if text else []


def _content(value: Any) -> str:
    """Text of a turn, also where it comes in parts."""
    if isinstance(value, list):
        if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in value):
            raise DataError("a turn has parts that are no text")
        value = "".join(part["text"] for part in value)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"a turn is {type(value).__name__}, not text")
    return value.strip()


def _text(record: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    for key in keys:
        if record.get(key) is not None:
            return _content(record[key])
    raise DataError(f"no {' or '.join(keys)}: the record has the keys {_keys(record)}")


def _need(record: Mapping[str, Any], key: str, kind: type[S]) -> S:
    value = record.get(key)
    if not isinstance(value, kind):
        raise DataError(f"{key} is {type(value).__name__}, not {kind.__name__}")
    return value


def _keys(record: Mapping[str, Any]) -> str:
    return ", ".join(map(str, list(record)[:12])) or "(none)"
