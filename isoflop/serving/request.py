"""What may be asked of the engine: a prompt of token ids, and how its continuation is drawn and ends. No torch here.

Everything is checked before a request is taken: a wrong value costs its sender one message, and nobody else anything.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from isoflop.errors import RequestError

MAX_BIASES, MAX_STOPS, MAX_STOP_BYTES, MAX_LOGPROBS = 1024, 16, 1024, 64  # assumption: beyond use, below harm


@dataclass(frozen=True)
class Grammar:
    """What the text must be: a JSON document of a schema, or a match of a regular expression."""

    kind: Literal["json_schema", "regex"]
    text: str
    """The schema as JSON, or the expression."""


@dataclass(frozen=True)
class Sampling:
    """How a continuation is drawn, and when it ends."""

    max_tokens: int = 256
    """Longest continuation; the context ends it earlier."""
    temperature: float = 1.0
    """0 takes the most likely token."""
    top_k: int = 0
    """Draw from the so many most likely tokens; 0: from all."""
    top_p: float = 1.0
    """Draw from the fewest tokens that have this much probability together."""
    min_p: float = 0.0
    """Leave out tokens less likely than this share of the most likely one."""
    repetition_penalty: float = 1.0
    """Logits of tokens that prompt or continuation have: divided by it if positive, multiplied if negative."""
    presence_penalty: float = 0.0
    """Taken from the logit of every token that the continuation has."""
    frequency_penalty: float = 0.0
    """Taken as often as the continuation has the token."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these ids."""
    seed: int | None = None
    """Same seed, same text, whatever runs beside it; None: the engine gives one."""
    stop: tuple[str, ...] = ()
    """The text ends before the first of these."""
    stop_ids: tuple[int, ...] = ()
    """Ids that end the continuation, as the end of text does."""
    ignore_end: bool = False
    """Go on after the end of text."""
    logprobs: int | None = None
    """Return log-probabilities of drawn tokens and of so many most likely ones; None: none at all."""
    prompt_logprobs: int | None = None
    """The same for the tokens of the prompt."""
    grammar: Grammar | None = None


_RANGES: dict[str, tuple[type, float, float]] = {
    "max_tokens": (int, 0, math.inf),
    "temperature": (float, 0, 100),
    "top_k": (int, 0, math.inf),
    "top_p": (float, 0, 1),
    "min_p": (float, 0, 1),
    "repetition_penalty": (float, 0, 10),
    "presence_penalty": (float, -2, 2),
    "frequency_penalty": (float, -2, 2),
    "seed": (int, 0, 2**64 - 1),
    "logprobs": (int, 0, MAX_LOGPROBS),
    "prompt_logprobs": (int, 0, MAX_LOGPROBS),
}
_ABOVE_ZERO = {"top_p", "repetition_penalty"}


def check_sampling(sampling: Sampling, *, n_tokens: int, has_text: bool) -> None:
    """Raises RequestError for the first value that is out of its range or of a wrong kind.

    `n_tokens` ids may be drawn; without `has_text` there is no tokenizer, and nothing can be said about text.
    """
    defaults = {item.name: item.default for item in fields(Sampling)}
    for name, (kind, low, high) in _RANGES.items():
        value = getattr(sampling, name)
        if value is None and defaults[name] is None:
            continue
        _check_number(name, value, kind, low, high, open_below=name in _ABOVE_ZERO, default=defaults[name])
    if sampling.max_tokens == 0 and sampling.prompt_logprobs is None:
        raise RequestError("max_tokens = 0 must be at least 1 unless prompt_logprobs asks about the prompt; give 1")
    _check_ids("stop_ids", sampling.stop_ids, n_tokens)
    _check_bias(sampling.logit_bias, n_tokens)
    _check_stops(sampling.stop, has_text)
    if not isinstance(sampling.ignore_end, bool):
        raise RequestError(f"ignore_end = {sampling.ignore_end!r} must be true or false; leave it out for false")
    if sampling.grammar is not None:
        grammar = sampling.grammar
        if not isinstance(grammar, Grammar) or grammar.kind not in ("json_schema", "regex"):
            raise RequestError(f"grammar = {grammar!r} must be Grammar('json_schema' or 'regex', text)")
        if not has_text:
            raise RequestError("grammar needs a tokenizer, and this run has none; give --tokens DIR, or leave it out")


def check_prompt(ids: Sequence[int], *, n_tokens: int, context: int) -> None:
    """Raises RequestError for a prompt that no continuation fits behind, or with ids that are no tokens."""
    if not len(ids):
        raise RequestError("prompt: 0 tokens, at least 1 is needed to continue; begin it with the begin-of-text token")
    _check_ids("prompt", ids, n_tokens)
    if len(ids) + 1 > context:
        raise RequestError(
            f"prompt: {len(ids)} tokens and 1 to draw are more than the context of {context}; "
            f"shorten the prompt by {len(ids) + 1 - context} tokens"
        )


def _check_number(name: str, value: Any, kind: type, low: float, high: float, *, open_below: bool, default) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole and not (kind is float and isinstance(value, float)):
        wanted = "a whole number" if kind is int else "a number"
        raise RequestError(f"{name} = {value!r} must be {wanted}; the default is {default}")
    inside = low <= value <= high and math.isfinite(value) and not (open_below and value == low)  # NaN is in no range
    if not inside:
        rule = f"{'above' if open_below else 'at least'} {low:g}"
        rule += "" if math.isinf(high) else f" and at most {high:g}"
        raise RequestError(f"{name} = {value!r} must be {rule}; the default is {default}")


def _check_ids(name: str, ids: Sequence[int], n_tokens: int) -> None:
    for at, value in enumerate(ids):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < n_tokens:
            raise RequestError(f"{name}[{at}] = {value!r} must be a token id: at least 0 and below {n_tokens}")


def _check_bias(biases: Any, n_tokens: int) -> None:
    if not isinstance(biases, Mapping) or len(biases) > MAX_BIASES:
        found = f"{len(biases)} entries" if isinstance(biases, Mapping) else repr(biases)
        raise RequestError(f"logit_bias = {found} must be a table of at most {MAX_BIASES} ids and numbers; shorten it")
    _check_ids("logit_bias", list(biases), n_tokens)
    for key, value in biases.items():
        _check_number(f"logit_bias[{key}]", value, float, -100, 100, open_below=False, default=0)


def _check_stops(stops: Any, has_text: bool) -> None:
    if isinstance(stops, str) or not isinstance(stops, Sequence) or len(stops) > MAX_STOPS:
        raise RequestError(f"stop = {stops!r} must be a list of at most {MAX_STOPS} texts; give a list")
    for at, stop in enumerate(stops):
        if not isinstance(stop, str) or not stop or len(stop.encode("utf-8", "surrogatepass")) > MAX_STOP_BYTES:
            raise RequestError(f"stop[{at}] = {stop!r:.60} must be text of 1 to {MAX_STOP_BYTES} bytes; leave it out")
        try:
            stop.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"stop[{at}] = {stop!r:.60} must be text that UTF-8 can say; leave it out") from error
    if stops and not has_text:
        raise RequestError("stop needs a tokenizer, and this run has none; give stop_ids instead")
