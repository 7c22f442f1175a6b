"""Text of items to token ids: contexts with what follows them, windows of a text, prompts, plain or as a conversation.

Plain text is cut as lm-eval does it: it begins with the begin-of-text token, and blanks at the end of a context belong
to what follows. Special tokens in a text are only spelled.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import tokenizers

from isoflop.errors import DataError
from isoflop.serving.vocabulary import Vocabulary
from isoflop.tokens.bpe import Tokenizer
from isoflop.tokens.chat import ChatTemplate, Message

Ids = list[int]


@dataclass(frozen=True)
class Prompts:
    """A tokenizer, and how a conversation is laid out where the model is asked as an assistant."""

    tokenizer: Vocabulary
    template: ChatTemplate | None = None

    @cached_property
    def begin(self) -> Ids:
        """What every text begins with: begin of text, unless the tokenizer is not ours and its rules do not say so."""
        if self.tokenizer.bos_id is None:
            return []
        if isinstance(self.tokenizer, Tokenizer):
            return [self.tokenizer.bos_id]
        added = tokenizers.Tokenizer.from_str(self.tokenizer.to_json()).encode("").ids
        return [self.tokenizer.bos_id] if added[:1] == [self.tokenizer.bos_id] else []

    @property
    def prefix_id(self) -> int:
        """What stands before a text of which everything is scored: begin of text, or else its end.

        Raises:
            DataError: the tokenizer has neither.
        """
        for found in (self.tokenizer.bos_id, self.tokenizer.eos_id):
            if found is not None:
                return found
        raise DataError("the tokenizer has no begin and no end of text, and a text without context needs one before it")

    def pairs(self, texts: Sequence[tuple[str, str]]) -> list[tuple[Ids, Ids]]:
        """(ids of a context, ids of what follows it) of each pair of texts; the second may be empty.

        Raises:
            DataError: a conversation that the template refuses.
        """
        if self.template is not None:
            return self._answers(texts)
        split = []
        for context, continuation in texts:
            kept = context.rstrip()
            split.append((kept, context[len(kept) :] + continuation))
        needed = dict.fromkeys(text for context, rest in split for text in (context, context + rest))
        known = dict(zip(needed, self._encode([*needed]), strict=True))
        found = []
        for context, rest in split:
            before, whole = known[context], known[context + rest]
            found.append(([*self.begin, *before] if context else [self.prefix_id], whole[len(before) :]))
        return found

    def prompt(self, text: str) -> Ids:
        """Ids after which the model writes.

        Raises:
            DataError: a conversation that the template refuses.
        """
        if self.template is not None:
            return self.template.prompt_ids([Message("user", text)]).tolist()
        return self.begin + self.tokenizer.encode(text)

    def said(self, ids: Sequence[int]) -> str:
        """Text of an answer: without special tokens, and without what a chat layout puts before an answer.

        Bytes that are no text become U+FFFD.
        """
        text = self.tokenizer.decode_bytes(ids).decode("utf-8", "replace")
        return text.removeprefix(self.template.lead) if self.template else text

    def windows(self, text: str, seq_len: int) -> Iterator[tuple[Ids, Ids]]:
        """(context, what is scored) that together score a text once: the last window has a full context.

        As in lm-eval, begin of text stands twice where the tokenizer has it, and is scored the second time.
        Source: its `loglikelihood_rolling`, with a context of one token.
        """
        return windows([*self.begin, *self.tokenizer.encode(text)], self.prefix_id, seq_len)

    def _answers(self, texts: Sequence[tuple[str, str]]) -> list[tuple[Ids, Ids]]:
        """Continuations as the assistant's answers: what of a conversation would be trained, without its end.

        An answer to nothing stands behind begin of text alone; one without text has no tokens.
        """
        assert self.template is not None
        asked = [(context if context.strip() else "nothing", rest.strip()) for context, rest in texts]
        rows = iter(self.template.rows([[Message("user", c), Message("assistant", a)] for c, a in asked if a]))
        found = []
        for (context, _), (_, answer) in zip(texts, asked, strict=True):
            if not answer:
                found.append(([self.prefix_id], []))
                continue
            ids, is_target = next(rows)
            (places,) = np.nonzero(is_target)
            said = [at for at in places.tolist() if int(ids[at]) not in self.template.stop_ids]
            before = ids[: said[0] if said else len(ids)].tolist() if context.strip() else [self.prefix_id]
            found.append((before, [int(ids[at]) for at in said]))
        return found

    def _encode(self, texts: Sequence[str]) -> Iterable[Ids]:
        if isinstance(self.tokenizer, Tokenizer):
            return [ids.tolist() for ids in self.tokenizer.encode_batch([*texts])]
        return [self.tokenizer.encode(text) for text in texts]


def windows(ids: Ids, prefix_id: int, seq_len: int) -> Iterator[tuple[Ids, Ids]]:
    """Windows of at most `seq_len` scored tokens behind one token of context; the last one reaches back further."""
    for first in range(0, len(ids), seq_len):
        last = min(first + seq_len, len(ids))
        begin = max(0, last - seq_len)
        context = [prefix_id, *ids[:first]] if begin == 0 else ids[begin - 1 : first]
        yield context, ids[first:last]
