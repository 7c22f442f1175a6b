"""The chat template: conversations to ids with a mask of what is trained, and the prompt that asks for an answer.

There is one path for all layouts. A template renders the conversation; the text is cut at special tokens; each piece is
encoded whole, as `transformers` does, so a token may join the last blank of a header and the first word of an answer.
Where the answers stand is found by rendering once more per answer with a mark in its place: what comes before and
after the mark is the same, so what differs is the answer. A token is a target when it holds a character of an answer,
or when it is the stop token right behind one. The blank before an answer is part of the first word's token; before a
digit or a Chinese character it is a token of its own, and then no target unless that is asked for (`trains_blank`).

Two layouts are ours to write down: DeepSeek LLM's in plain words, the default, which any vocabulary can spell, and
DeepSeek-V3's where the vocabulary has its two marks. Any other comes from a Hugging Face folder or a Jinja file and
runs in `template_sandbox`.

What a user types never becomes a special token: a spelled one is broken by a character that no text may hold, which is
taken out again after the cut. (`transformers` does parse them, unless it is given `split_special_tokens=True`.)

Source: DeepSeek LLM's README, section 5; DeepSeek-V3's tokenizer_config.json.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import tokenizers

from isoflop.corpus.read.encoding import is_encodable
from isoflop.errors import DataError
from isoflop.tokens.bpe import ASSISTANT, BOS, EOS, USER
from isoflop.tokens.template_sandbox import MAX_TEMPLATE_CHARACTERS, Refused, Renderer

ROLES = ("system", "user", "assistant")
MAIN, CONFIG, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"

_REFUSE = (
    "{% else %}{{ raise_exception('role ' + message['role'] + ' is not known here; roles are user, assistant, "
    "and system in the first place') }}{% endif %}{% endfor %}"
)
_SYSTEM_FIRST = "{% elif message['role'] == 'system' and loop.first %}"
PLAIN = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
    f"{_SYSTEM_FIRST}{{{{ message['content'] + '\\n\\n' }}}}{_REFUSE}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""DeepSeek LLM's layout: one blank behind "Assistant:" in a conversation, none in the prompt, as the blank belongs to
the first word's token."""
MARKED = (
    "{{ bos_token }}{% for message in messages %}"
    f"{{% if message['role'] == 'user' %}}{{{{ '{USER}' + message['content'] }}}}"
    f"{{% elif message['role'] == 'assistant' %}}{{{{ '{ASSISTANT}' + message['content'] + eos_token }}}}"
    f"{_SYSTEM_FIRST}{{{{ message['content'] }}}}{_REFUSE}"
    f"{{% if add_generation_prompt %}}{{{{ '{ASSISTANT}' }}}}{{% endif %}}"
)
"""DeepSeek-V3's layout."""
_OURS = {"deepseek-llm": PLAIN, "deepseek-v3": MARKED}

_UNUSED = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Noncharacters, which Unicode sets aside for use inside a program: no text that is exchanged may hold them."""


class Message(NamedTuple):
    """One turn."""

    role: str
    content: str


class Row(NamedTuple):
    """A conversation as a model is trained on it."""

    ids: np.ndarray
    """int32."""
    is_target: np.ndarray
    """bool, one for each id: whether its loss counts."""


class ChatTemplate:
    """A layout of conversations together with the tokenizer that spells it."""

    def __init__(
        self,
        source: str,
        backend: tokenizers.Tokenizer,
        *,
        name: str,
        names: Mapping[str, str],
        stop_ids: Iterable[int] = (),
        trains_blank: bool = False,
    ):
        """`names`: the special tokens that the template asks for by role ("bos_token"); `stop_ids`: that end an answer.

        `trains_blank` makes a target of the blank before an answer where it is a token of its own.

        Raises:
            DataError: text that is no template, or needs tokens that the tokenizer lacks.
        """
        self.name, self.source, self._names = name, source, dict(names)
        self._trains_blank = trains_blank
        self._backend = tokenizers.Tokenizer.from_str(backend.to_str())  # ours alone: the setting below is not shared
        self._backend.encode_special_tokens = True  # text that spells a special token stays text
        self._backend.no_truncation()
        self._backend.no_padding()
        self._specials = {
            token.content: (index, token.lstrip, token.rstrip)
            for index, token in sorted(backend.get_added_tokens_decoder().items())
            if token.special and token.content
        }
        spelled = sorted(self._specials, key=len, reverse=True)
        self._cut = re.compile("|".join(f"({_around(text, *self._specials[text][1:])})" for text in spelled) or "(?!)")
        self._spelled = re.compile("|".join(map(re.escape, spelled)) or "(?!)")
        self._order = [self._specials[text][0] for text in spelled]
        try:
            self._renderer = Renderer(source, f"chat template {name}", trusted=source in _OURS.values())
        except jinja2.TemplateError as error:  # pragma: no cover - ours are templates
            raise DataError(f"chat template {name} is no template: {error}; give another") from error
        self.stop_ids: tuple[int, ...] = tuple(self._order)  # any, until it is known which one the layout uses
        """Tokens that end an answer."""
        closing = self._closing_ids()
        self.closes_answers = bool(closing)
        """Whether an answer ends with a special token that is trained: without one a model never learns to stop."""
        self.stop_ids = tuple(sorted({*stop_ids, *closing}))

    @cached_property
    def sha256(self) -> str:
        """Identity: hash of the text, of the special tokens it is given, and of what is trained."""
        decides = [self.source, self._names, *(["blank"] if self._trains_blank else [])]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        """The text of a conversation, special tokens spelled out. Raises DataError."""
        return _without(self._render(messages, generation_prompt))

    def prompt_ids(self, messages: Sequence[Message]) -> np.ndarray:
        """Tokens after which the model answers, int32; `messages` end with the user's turn.

        Raises:
            DataError: a conversation that is none, or that the template refuses.
        """
        check(messages, ends_with="user")
        return self._encode([self._render(messages, True)])[0][0]

    def row(self, messages: Sequence[Message]) -> Row:
        """`rows` of one conversation."""
        return self.rows([messages])[0]

    def rows(self, conversations: Sequence[Sequence[Message]]) -> list[Row]:
        """Tokens and targets of conversations that end with an assistant's turn.

        Raises:
            DataError: a conversation that is none, or that the template refuses.
        """
        texts, answers = [], []
        for messages in conversations:
            check(messages, ends_with="assistant")
            text, spans = self._render_with_answers(messages)
            texts.append(text)
            answers.append(spans)
        return [
            Row(ids, _targets(starts, ends, is_special, is_special & np.isin(ids, self.stop_ids), spans))
            for (ids, starts, ends, is_special), spans in zip(self._encode(texts), answers, strict=True)
        ]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of an answer: special tokens are left out."""
        return self._backend.decode([int(index) for index in ids], skip_special_tokens=True)

    @cached_property
    def lead(self) -> str:
        """What the layout puts between the prompt and an answer, such as a blank: a model writes it, nobody said it."""
        asked = [Message("user", "question")]
        prompt = self.render(asked, generation_prompt=True)
        whole = self.render([*asked, Message("assistant", "answer")])
        rest = whole.removeprefix(prompt)
        return rest[: rest.index("answer")] if whole.startswith(prompt) and "answer" in rest else ""

    def _closing_ids(self) -> set[int]:
        """The special token right behind an answer, if there is one."""
        row = self.row([Message("user", "question"), Message("assistant", "answer")])
        last = int(row.ids[np.flatnonzero(row.is_target)[-1]])
        return {last} & set(self._order)

    def _guarded(self, messages: Sequence[Message]) -> tuple[list[Message], str, str]:
        """Messages with spelled special tokens broken, the guard that breaks them, and a mark that is in none of it."""
        free = [mark for mark in _UNUSED if not any(mark in message.content for message in messages)]
        if len(free) < 2:
            raise DataError("a conversation holds all characters that Unicode sets aside; leave it out")
        guard, mark = free[:2]

        def broken(text: str) -> str:
            return self._spelled.sub(lambda found: f"{found[0][0]}{guard}{found[0][1:]}", text)

        return [Message(message.role, broken(message.content)) for message in messages], guard, mark

    def _render(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        """The guard, then the text."""
        guarded, guard, _ = self._guarded(messages)
        return guard + self._text(guarded, generation_prompt)

    def _render_with_answers(self, messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
        guarded, guard, mark = self._guarded(messages)
        text = guard + self._text(guarded, False)
        spans = []
        for place, message in enumerate(messages):
            if message.role != "assistant":
                continue
            other = guard + self._text([*guarded[:place], Message("assistant", mark), *guarded[place + 1 :]], False)
            start = other.find(mark)
            end = len(text) - (len(other) - start - 1)
            same = text[:start] == other[:start] and text[end:] == other[start + 1 :]
            if start < 0 or other.count(mark) != 1 or end < start or not same:
                raise Refused(
                    f"chat template {self.name} writes other things differently because of an answer's text, so what "
                    "is trained cannot be told; leave the conversation out, or give another template"
                )
            if self._trains_blank and text[start - 1] == " ":
                start -= 1
            spans.append((start, end))
        return text, spans

    def _text(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        plain = [message._asdict() for message in messages]
        variables = {"messages": plain, "tools": None, "documents": None, "add_generation_prompt": generation_prompt}
        return self._renderer.render({**variables, **self._names})

    def _encode(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
        """(ids, first character, character behind, whether special) of the tokens of each text, whose first character
        is its guard."""
        plans = [list(self._pieces(text)) for text in texts]
        plain = [piece for plan in plans for piece, index, *_ in plan if index is None]
        encoded = iter(self._backend.encode_batch(plain, add_special_tokens=False))
        found = []
        for plan in plans:
            ids: list[int] = []
            starts: list[int] = []
            ends: list[int] = []
            special: list[bool] = []
            for piece, index, start, places in plan:
                if index is not None:
                    ids.append(index)
                    starts.append(start)
                    ends.append(start + len(piece))
                    special.append(True)
                    continue
                item = next(encoded)
                ids += item.ids
                if places is None:
                    starts += [start + first for first, _ in item.offsets]
                    ends += [start + last for _, last in item.offsets]
                else:
                    starts += [places[first] if first < len(places) else places[-1] + 1 for first, _ in item.offsets]
                    ends += [places[last - 1] + 1 if last else places[0] for _, last in item.offsets]
                special += [False] * len(item.ids)
            found.append((np.array(ids, np.int32), np.array(starts), np.array(ends), np.array(special, bool)))
        return found

    def _pieces(self, text: str) -> Iterator[tuple[str, int | None, int, list[int] | None]]:
        """(text, id of a special token, place in the whole, place of each character where guards were taken out)."""
        guard, at = text[0], 1
        for found in self._cut.finditer(text, 1):
            yield from self._plain(text, at, found.start(), guard)
            assert found.lastindex is not None
            yield found[0], self._order[found.lastindex - 1], found.start(), None
            at = found.end()
        yield from self._plain(text, at, len(text), guard)

    def _plain(
        self, text: str, start: int, end: int, guard: str
    ) -> Iterator[tuple[str, int | None, int, list[int] | None]]:
        if start == end:
            return
        piece = text[start:end]
        if guard not in piece:
            yield piece, None, start, None
            return
        places = [place for place in range(start, end) if text[place] != guard]
        yield piece.replace(guard, ""), None, start, places


def check(messages: Sequence[Message], *, ends_with: str) -> None:
    """Whether turns are a conversation: system first if at all, then user and assistant in turn, none empty.

    Raises:
        DataError: saying which turn is wrong.
    """
    turns = list(messages)
    for number, message in enumerate(turns, 1):
        if message.role not in ROLES:
            raise DataError(f"turn {number} has role {message.role!r}; roles are {', '.join(ROLES)}: rename or drop it")
        if message.role != "system" and not message.content.strip():
            what = "empty answer" if message.role == "assistant" else "empty question"
            raise DataError(f"turn {number}: {what}; drop the conversation")
        if not is_encodable(message.content):
            raise DataError(f"turn {number} has unpaired surrogates; repair the text or drop it")
    first = 1 if turns and turns[0].role == "system" else 0
    for number, message in enumerate(turns[first:], first):
        expected = ("user", "assistant")[(number - first) % 2]
        if message.role != expected:
            raise DataError(
                f"turn {number + 1} has role {message.role}, expected {expected}: roles out of order (an optional "
                "system turn, then user and assistant in turn); join or drop turns"
            )
    if len(turns) == first or (ends_with == "assistant" and len(turns) == first + 1):
        raise DataError(f"no {'assistant turn' if ends_with == 'assistant' else 'user turn'}; drop the conversation")
    if turns[-1].role != ends_with:
        raise DataError(f"the last turn is the {turns[-1].role}'s, not the {ends_with}'s; drop it")


def template_source(backend: tokenizers.Tokenizer) -> str:
    """The layout for a tokenizer that brings none: DeepSeek-V3's where the vocabulary has its marks, else plain."""
    return MARKED if None not in (backend.token_to_id(USER), backend.token_to_id(ASSISTANT)) else PLAIN


def load_template(folder: str | Path, template: str = "", *, trains_blank: bool = False) -> ChatTemplate:
    """The chat template for the tokenizer in `folder`.

    `template` "" takes the folder's own, or else the default; "deepseek-llm" and "deepseek-v3" are ours; anything else
    is a Jinja file or a Hugging Face folder with a template.

    Raises:
        DataError: no tokenizer, no end of sequence, or no template there.
    """
    folder = Path(folder)
    backend, config = _backend(folder), _json(folder / CONFIG)
    names = {key: name for key in config if key.endswith("_token") and (name := _token_text(config[key]))}
    if backend.token_to_id(BOS) is not None and backend.token_to_id(EOS) is not None:
        names = {"bos_token": BOS, "eos_token": EOS, **names}
    eos_id = backend.token_to_id(names["eos_token"]) if "eos_token" in names else None
    if eos_id is None:
        raise DataError(
            f"{folder / CONFIG} names no eos_token that {MAIN} has: a model trained without an end of sequence never "
            "stops; name one of its special tokens there"
        )
    source, name = _source(folder, template, backend)
    if source == MARKED and template_source(backend) != MARKED:
        raise DataError(
            f"template {name} needs the special tokens {USER} and {ASSISTANT}, which {folder} lacks; use deepseek-llm, "
            "or train a tokenizer with tokenizer.chat_tokens = true"
        )
    generation = _json(folder / "generation_config.json").get("eos_token_id")
    more = generation if isinstance(generation, list) else [generation]
    stop_ids = {eos_id, *(index for index in more if isinstance(index, int))}
    return ChatTemplate(source, backend, name=name, names=names, stop_ids=stop_ids, trains_blank=trains_blank)


def read_template(path: Path) -> str | None:
    """The chat template that a Hugging Face folder holds, None where it has none. Raises DataError."""
    if (path / TEMPLATE).is_file():
        return _read(path / TEMPLATE)
    found = _json(path / CONFIG).get("chat_template")
    if isinstance(found, list):  # several by name
        found = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}.get("default")
    return found if isinstance(found, str) else None


def read_config(folder: Path) -> dict[str, Any]:
    """What tokenizer_config.json says, empty where there is none. Raises DataError."""
    return _json(folder / CONFIG)


def _source(folder: Path, template: str, backend: tokenizers.Tokenizer) -> tuple[str, str]:
    if template in _OURS:
        return _OURS[template], template
    place = Path(template) if template else folder
    found = _read(place) if place.is_file() else read_template(place)
    if found is None and template:
        raise DataError(f"template = {template!r} is neither {' nor '.join(_OURS)}, nor a file or folder with one")
    found = template_source(backend) if found is None else found
    ours = {source: name for name, source in _OURS.items()}
    return found, ours.get(found, str(place))


def _targets(
    starts: np.ndarray, ends: np.ndarray, is_special: np.ndarray, is_stop: np.ndarray, spans: list[tuple[int, int]]
) -> np.ndarray:
    found = np.zeros(len(starts), dtype=bool)
    for start, end in spans:
        found |= (starts < end) & (ends > start) & ~is_special
        found |= (starts == end) & is_stop
    return found


def _around(text: str, lstrip: bool, rstrip: bool) -> str:
    """Pattern of a special token with the white space that it swallows."""
    return (r"\s*" if lstrip else "") + re.escape(text) + (r"\s*" if rstrip else "")


def _without(text: str) -> str:
    return text.replace(text[0], "")


def _token_text(value: Any) -> str | None:
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _backend(folder: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(_read(folder / MAIN))
    except DataError:
        raise
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{folder / MAIN} is not a tokenizer ({error}); get the file again") from error


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}); give another file or folder") from error
    if path.suffix == ".jinja" and len(text) > MAX_TEMPLATE_CHARACTERS:
        raise DataError(f"{path} has {len(text)} characters, at most {MAX_TEMPLATE_CHARACTERS}; give a template alone")
    return text


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(_read(path))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); get the file again") from error
    return found if isinstance(found, dict) else {}


__all__ = ["MARKED", "PLAIN", "ROLES", "ChatTemplate", "Message", "Refused", "Row", "check", "load_template"]
