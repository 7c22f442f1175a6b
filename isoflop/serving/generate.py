"""Prompts from a file or the command line to completions as plain data: what `isoflop generate` writes."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from isoflop.errors import RequestError
from isoflop.serving.conversation import prompt_of
from isoflop.serving.engine import Engine
from isoflop.serving.options import Completion
from isoflop.serving.request import Sampling


class Prompt(NamedTuple):
    """What to continue."""

    asked: Any
    """Text, ids or messages, as they were given."""
    ids: list[int]
    seed: int | None = None
    """Of this prompt alone, before that of all."""


def read_prompts(path: Path, engine: Engine) -> list[Prompt]:
    """One prompt a line: {"prompt": text}, {"ids": [...]} or {"messages": [...]}, and "seed" if it has its own.

    Raises:
        RequestError: no such file, or a line that is no prompt; the message has its number.
    """
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--prompts {path} can't be read: {error}; give a JSONL file in UTF-8") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                found.append(_prompt(json.loads(line), engine))
            except (RequestError, ValueError, RecursionError) as error:
                raise RequestError(f"{path}:{number}: {error}") from error
    if not found:
        raise RequestError(f"--prompts {path} has no prompts; give at least one line")
    return found


def text_prompt(text: str, engine: Engine) -> Prompt:
    """Text to continue. Raises RequestError where the run has no tokenizer."""
    return Prompt(text, engine.encode(text))


def generate(engine: Engine, prompts: Sequence[Prompt], sampling: Sampling) -> dict[str, Any]:
    """Completions in the order of the prompts, tokens a second, and the share of accepted drafts by place."""
    each = []
    for prompt in prompts:
        chats = isinstance(prompt.asked, list) and prompt.asked is not prompt.ids
        stops = (*sampling.stop_ids, *engine.template.stop_ids) if chats else sampling.stop_ids
        each.append(replace(sampling, seed=sampling.seed if prompt.seed is None else prompt.seed, stop_ids=stops))
    began = time.perf_counter()
    done = engine.complete([prompt.ids for prompt in prompts], each)
    seconds = time.perf_counter() - began
    return {
        "completions": [_as_data(prompt, one, engine) for prompt, one in zip(prompts, done, strict=True)],
        "tokens_per_s": sum(len(one.ids) for one in done) / seconds,
        "acceptance": engine.stats.acceptance or None,
        "n_prompt_tokens_reused": engine.stats.n_reused_tokens,
    }


def _prompt(line: Any, engine: Engine) -> Prompt:
    kinds = {"prompt", "ids", "messages"}
    if not isinstance(line, dict) or len(kinds & set(line)) != 1 or not set(line) <= kinds | {"seed"}:
        raise RequestError('a line must be {"prompt": text}, {"ids": [...]} or {"messages": [...]}, with "seed" or not')
    seed = line.get("seed")
    if "ids" in line:
        if not isinstance(line["ids"], list):
            raise RequestError(f"ids = {line['ids']!r:.60} must be a list of token ids")
        return Prompt(line["ids"], line["ids"], seed)
    if "messages" in line:
        return Prompt(line["messages"], prompt_of(engine.template, line["messages"]), seed)
    if not isinstance(line["prompt"], str):
        raise RequestError(f'prompt = {line["prompt"]!r:.60} must be text; ids go under "ids"')
    return Prompt(line["prompt"], engine.encode(line["prompt"]), seed)


def _as_data(prompt: Prompt, done: Completion, engine: Engine) -> dict[str, Any]:
    logprobs = None
    if done.logprobs:
        logprobs = [
            {"id": token, **found._asdict(), "top": [{"id": other, "raw": value} for other, value in found.top]}
            for token, found in zip(done.ids, done.logprobs, strict=True)
        ]
    return {
        "prompt": prompt.asked,
        "text": done.text if engine.tokenizer is not None else None,
        "ids": done.ids,
        "finish_reason": done.finish_reason,
        "logprobs": logprobs,
        "n_prompt_tokens": len(done.prompt_ids),
        "n_tokens": len(done.ids),
    }
