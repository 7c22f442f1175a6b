"""Which tokens keep a continuation inside its grammar: masks by llguidance, one for each place where a token is drawn.

A schema or an expression comes from a stranger: its size is capped, and what the library cannot do is one message.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from isoflop.errors import RequestError
from isoflop.serving.request import Grammar
from isoflop.serving.vocabulary import Vocabulary

MAX_GRAMMAR_BYTES = 256 * 1024  # assumption: beyond every schema that people write by hand


class Grammars:
    """Makes matchers for a tokenizer; the library's view of the vocabulary is built on first use."""

    def __init__(self, tokenizer: Vocabulary):
        self._tokenizer = tokenizer
        self._vocabulary: Any = None

    def matcher(self, grammar: Grammar) -> "Matcher":
        """Raises RequestError: too large, no grammar, or one that llguidance cannot do."""
        try:
            import llguidance
        except ImportError as error:
            raise RequestError("grammar needs llguidance: pip install 'isoflop[serving]', or leave it out") from error
        size = len(grammar.text.encode("utf-8", "surrogatepass"))
        if size > MAX_GRAMMAR_BYTES:
            raise RequestError(f"grammar: {size} bytes must be at most {MAX_GRAMMAR_BYTES}; shorten it")
        if self._vocabulary is None:
            made = self._tokenizer
            self._vocabulary = llguidance.LLTokenizer(made.to_json(), n_vocab=made.n_tokens, eos_token=made.eos_id)
        try:
            if grammar.kind == "json_schema":
                json.loads(grammar.text)  # the library takes some texts that are no JSON
                text = llguidance.LLMatcher.grammar_from_json_schema(grammar.text)
            else:
                text = llguidance.LLMatcher.grammar_from_regex(grammar.text)
        except (ValueError, RecursionError) as error:
            raise RequestError(f"grammar: not a {grammar.kind} ({str(error)[:200]}); correct it") from error
        found = llguidance.LLMatcher(self._vocabulary, text, log_level=0)
        if found.is_error():
            raise RequestError(f"grammar: {found.get_error()[:300]}; change that part of the {grammar.kind}")
        return Matcher(found)


class Matcher:
    """Where one continuation stands in its grammar."""

    def __init__(self, matcher: Any):
        self._matcher = matcher

    def masks(self, drafts: Sequence[int]) -> list[np.ndarray]:
        """Bits of the allowed ids for the next token and after each draft that is allowed itself."""
        masks, taken = [self._mask()], 0
        for draft in drafts:
            if not _has(masks[-1], draft) or not self._matcher.consume_token(draft):
                break
            taken += 1
            if self._matcher.is_stopped():
                break
            masks.append(self._mask())
        if taken:
            self._matcher.rollback(taken)
        return masks

    def accept(self, token: int) -> bool:
        """Take note of a drawn token; False once the grammar has ended, or cannot go on."""
        return bool(self._matcher.consume_token(token)) and not self._matcher.is_stopped()

    def _mask(self) -> np.ndarray:
        return np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint32)


def _has(mask: np.ndarray, token: int) -> bool:
    return bool(mask[token // 32] >> np.uint32(token % 32) & np.uint32(1))
