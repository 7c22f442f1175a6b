"""A conversation with a run at a terminal: history, commands, streaming. No printing here; pieces of text come out.

A chat model is given the whole conversation each time, and reuses the pages of what it has read before. A base model
is given the text so far and goes on with it.
"""

import dataclasses
import types
from collections.abc import Iterator
from typing import Any, get_args, get_origin, get_type_hints

from isoflop.errors import RequestError
from isoflop.serving.conversation import prompt_of
from isoflop.serving.engine import Engine
from isoflop.serving.request import Sampling, check_sampling

SETTINGS = (
    *("max_tokens", "temperature", "top_k", "top_p", "min_p"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty", "seed"),
)
HELP = "/retry again, /reset forget, /system TEXT, /set NAME VALUE, /show, /help, /quit; Ctrl-C stops an answer"


class Chat:
    """One conversation."""

    def __init__(self, engine: Engine, sampling: Sampling, *, is_chat: bool, system: str = ""):
        """Raises RequestError where the run has no tokenizer."""
        if engine.tokenizer is None:
            raise RequestError("chat needs a tokenizer, and this run has none; give --tokens DIR")
        check_sampling(sampling, n_tokens=engine.n_tokens, has_text=True)
        self._engine, self.sampling, self.is_chat, self.system = engine, sampling, is_chat, system
        self.turns: list[tuple[str, str]] = []
        """What was said and what was answered."""

    def say(self, text: str) -> Iterator[str]:
        """Pieces of the answer; what has come is kept if the reader stops before the end.

        Raises:
            RequestError: the conversation is longer than the context.
        """
        sampling = self.sampling
        if self.is_chat:
            sampling = dataclasses.replace(sampling, stop_ids=(*sampling.stop_ids, *self._engine.template.stop_ids))
        number = self._engine.add(self._prompt(text), sampling)
        answer = ""
        try:
            while not self._engine.is_finished():
                for output in self._engine.step():
                    answer += output.text
                    if output.text:
                        yield output.text
        finally:
            self._engine.cancel(number)
            self.turns.append((text, answer))

    def retry(self) -> Iterator[str]:
        """The last answer once more, with other draws unless a seed is set. Raises RequestError before the first."""
        if not self.turns:
            raise RequestError("/retry: nothing was said yet; write something first")
        text, _ = self.turns.pop()
        return self.say(text)

    def reset(self) -> None:
        """Forget what was said."""
        self.turns.clear()

    def set(self, name: str, value: str) -> None:
        """Change how answers are drawn. Raises RequestError for an unknown name or a value out of range."""
        if name not in SETTINGS:
            raise RequestError(f"/set {name}: there is no such setting; there are {', '.join(SETTINGS)}")
        kind = get_type_hints(Sampling)[name]
        if get_origin(kind) is types.UnionType:
            kind = next(part for part in get_args(kind) if part is not type(None))
        try:
            parsed: Any = None if value in ("", "none") else kind(value)
        except ValueError as error:
            raise RequestError(f"/set {name} {value}: not a number; the value now is {self.show()[name]}") from error
        changed = dataclasses.replace(self.sampling, **{name: parsed})
        check_sampling(changed, n_tokens=self._engine.n_tokens, has_text=True)
        self.sampling = changed

    def show(self) -> dict[str, Any]:
        """Settings and their values."""
        return {name: getattr(self.sampling, name) for name in SETTINGS}

    def _prompt(self, text: str) -> list[int]:
        assert self._engine.tokenizer is not None
        if not self.is_chat:
            before = "".join(said + answer for said, answer in self.turns)
            return self._engine.encode(self.system + before + text)
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for said, answer in self.turns:
            if not answer.strip():  # nothing was said: no layout has such a turn
                continue
            messages += [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
        return prompt_of(self._engine.template, [*messages, {"role": "user", "content": text}])
