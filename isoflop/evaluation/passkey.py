"""Can a model find a number again that it read long ago? Accuracy over context length and depth, and what text costs.

A question is filler with one sentence that states a key of five digits, and `The pass key is ` at the end; it counts as
right when greedy decoding gives all digits. One forward pass decides that: greedy decoding gives the key exactly if
the most likely token at every place of the answer is the key's.

`compare_context` asks two runs, before and after `isoflop extend`, and also measures their perplexity on held-out text
in windows of the original length, since an extension must not be paid for inside it.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from isoflop.corpus.passkey import QUESTION, is_passkey, random_filler, random_key, statement
from isoflop.errors import DataError, RecipeError
from isoflop.intervals import Z90, wilson
from isoflop.model.transformer import Transformer
from isoflop.run import commit, now, processor
from isoflop.tokens.batches import Batches
from isoflop.tokens.bpe import Tokenizer
from isoflop.tokens.shards import TokenSet
from isoflop.training.device import choose_device
from isoflop.training.load_run import find_trained, load_model, require_tokenizer_of
from isoflop.training.pretrain.validate import validate

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
BATCH_TOKENS = 32_768  # assumption: of one forward pass


class Question(NamedTuple):
    """Tokens of prompt and answer; the answer is tokens[start:]."""

    tokens: list[int]
    start: int


def make_question(tokenizer: Tokenizer, length: int, depth: float, generator: np.random.Generator) -> Question:
    """A question of at most `length` tokens, BOS and answer included, as near to it as whole sentences allow.

    `depth` is the share of the filler before the key: 0 is the beginning.

    Raises:
        RecipeError: `length` is too short for the key and the question.
    """
    key = random_key(generator)
    made = _question(tokenizer, [], depth, key)
    room = length - len(made.tokens)
    if room < 0:
        raise RecipeError(f"lengths: {length} tokens are too few for key and question; give at least {length - room}")
    sentences = random_filler(room, generator)
    costs = np.cumsum([_n_tokens(tokenizer, sentence) for sentence in sentences])
    for n in range(int((costs <= room).sum()), 0, -1):
        longer = _question(tokenizer, sentences[:n], depth, key)
        if len(longer.tokens) <= length:  # nearly always at once; a tokenizer may join across sentences
            return longer
    return made


@lru_cache(maxsize=4096)
def _n_tokens(tokenizer: Tokenizer, sentence: str) -> int:
    return len(tokenizer.encode(f" {sentence}"))


def _question(tokenizer: Tokenizer, filler: list[str], depth: float, key: str) -> Question:
    at = round(depth * len(filler))
    prompt = " ".join([*filler[:at], statement(key), *filler[at:], QUESTION])
    asked, answered = tokenizer.encode(prompt), tokenizer.encode(prompt + key)
    start = next((i for i, (a, b) in enumerate(zip(asked, answered)) if a != b), len(asked))
    return Question([tokenizer.bos_id, *answered], 1 + start)


@torch.no_grad()
def answers_right(model: Transformer, questions: Sequence[Question]) -> list[bool]:
    """Whether greedy decoding gives each question's answer."""
    device = model.embedding.weight.device
    longest = max(len(question.tokens) for question in questions)
    rows = [question.tokens + [0] * (longest - len(question.tokens)) for question in questions]  # after it: never seen
    hidden_BTD = model.forward(torch.tensor(rows, device=device))
    right = []
    for hidden_TD, (tokens, start) in zip(hidden_BTD, questions, strict=True):
        logits_AV = model.head(hidden_TD[start - 1 : len(tokens) - 1])
        right.append(logits_AV.argmax(dim=-1).tolist() == tokens[start:])
    return right


def passkey_accuracy(
    model: Transformer,
    tokenizer: Tokenizer,
    *,
    lengths: Sequence[int],
    depths: Sequence[float] = DEPTHS,
    n_trials: int = 50,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """One record per length and depth: trials, right answers, accuracy with its 90% Wilson interval."""
    records, done = [], 0
    for length in lengths:
        for depth in depths:
            seeds = np.random.SeedSequence([seed, length, round(1e6 * depth)])
            generator = np.random.Generator(np.random.Philox(seeds))
            questions = [make_question(tokenizer, length, depth, generator) for _ in range(n_trials)]
            size = max(1, BATCH_TOKENS // length)
            right = [r for at in range(0, n_trials, size) for r in answers_right(model, questions[at : at + size])]
            found = wilson(sum(right), n_trials, Z90)
            records.append(
                {
                    "length": length,
                    "depth": depth,
                    "n_trials": n_trials,
                    "n_right": sum(right),
                    "accuracy": found.value,
                    "low": found.low,
                    "high": found.high,
                    "mean_tokens": sum(len(question.tokens) for question in questions) / n_trials,
                }
            )
            done += 1
            if on_progress:
                on_progress("passkey", done, len(lengths) * len(depths))
    return records


def text_loss(model: Transformer, token_set: TokenSet, *, seq_len: int, max_tokens: int = 0) -> dict[str, Any]:
    """Loss on held-out text in windows of `seq_len` tokens, by domain; pooled over all but passkey domains."""
    domains = [name for name in token_set.domains("valid") if not is_passkey(name)]
    if not domains:
        raise DataError(
            f"{token_set.folder} has no validation text beside passkey documents; add a source to the corpus"
        )
    batches = Batches(token_set, seq_len=seq_len, batch_sequences=1, seed=0)
    size = max(1, BATCH_TOKENS // seq_len)
    windows = {
        name: [
            (torch.from_numpy(w.tokens), torch.from_numpy(w.counted), w.n_bytes)
            for w in batches.valid_windows(name, max_tokens=max_tokens, batch_sequences=size)
        ]
        for name in domains
    }
    found = validate(model, windows)
    return {**found, "perplexity": math.exp(float(found["loss_nats"])), "seq_len": seq_len}  # type: ignore[arg-type]


def compare_context(
    run: Path,
    *,
    before: Path | None = None,
    tokens: Path | None = None,
    lengths: Sequence[int] = (),
    depths: Sequence[float] = DEPTHS,
    n_trials: int = 50,
    max_tokens: int = 200_000,
    seed: int = 0,
    device: str = "auto",
    on_progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Passkey accuracy and text loss of `run`, and of the run it was extended from, as plain data.

    `tokens` is a tokens folder for tokenizer and held-out text, by default that of `run`; `lengths` are by default the
    powers of two from a quarter of the original length to the longest context.

    Raises:
        CheckpointError: a run folder without recipe or checkpoint.
        DataError: no tokens folder, or one for another vocabulary.
        RecipeError: lengths that a run's model cannot hold.
    """
    runs = {"before": find_trained(before)} if before else {}
    runs["after" if before else "run"] = after = find_trained(run)
    folder = tokens or Path(after.tokens)
    if not str(folder) or not folder.is_dir():
        raise DataError(f"tokens folder {str(folder)!r} of {run} is not there; give it with --tokens DIR")
    token_set = TokenSet.open(folder)
    if token_set.vocab_size != after.config.vocab_size:
        raise DataError(
            f"{folder} has a vocabulary of {token_set.vocab_size}, the model of {run} {after.config.vocab_size}; give "
            f" the tokens folder that it was trained on with --tokens DIR"
        )
    for trained in runs.values():
        require_tokenizer_of(trained.run, token_set.tokenizer_sha256, folder, "give the right one: --tokens DIR")
    first = runs.get("before", after).config
    original = first.yarn.original_seq_len if first.yarn else first.seq_len
    lengths = sorted(lengths) or default_lengths(original, after.config.seq_len)
    if lengths[-1] > after.config.seq_len:
        raise RecipeError(
            f"lengths: {lengths[-1]} is longer than the context of {run}, {after.config.seq_len}; "
            f"extend it first: isoflop extend RECIPE"
        )
    where = choose_device(device, key="--device")
    found: dict[str, Any] = {
        "original_seq_len": original,
        "seq_len": after.config.seq_len,
        "runs": {name: str(trained.checkpoint) for name, trained in runs.items()},
        "commit": commit(),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else processor(),
        "measured_at": now(),
        "seed": seed,
        "text": {},
        "cells": [],
    }
    for name, trained in runs.items():
        model = load_model(trained, device=where, seq_len=lengths[-1])
        cells = passkey_accuracy(
            model,
            token_set.tokenizer,
            lengths=lengths,
            depths=depths,
            n_trials=n_trials,
            seed=seed,
            on_progress=on_progress,
        )
        found["cells"] += [{"run": name, **cell} for cell in cells]
        found["text"][name] = text_loss(model, token_set, seq_len=original, max_tokens=max_tokens)
    return {**found, "summary": summary(found)}


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Accuracy inside the original length, at each multiple of it, and what happened to the perplexity inside."""
    original, rows = found["original_seq_len"], {}
    for name in found["runs"]:
        cells = [cell for cell in found["cells"] if cell["run"] == name]
        inside = [cell for cell in cells if cell["length"] <= original]
        rows[f"accuracy_inside_{name}"] = _pooled(inside)
        for length in sorted({cell["length"] for cell in cells} - {cell["length"] for cell in inside}):
            rows[f"accuracy_at_{length}_{name}"] = _pooled([cell for cell in cells if cell["length"] == length])
    text = found["text"]
    rows |= {f"perplexity_inside_{name}": text[name]["perplexity"] for name in found["runs"]}
    if "before" in text:
        rows["perplexity_change"] = text["after"]["perplexity"] / text["before"]["perplexity"] - 1
    return rows


def default_lengths(original: int, longest: int) -> list[int]:
    """Doubling from a quarter of the original length (64 at least) to the longest context."""
    lengths = [longest]
    while lengths[-1] // 2 >= max(64, original // 4):
        lengths.append(lengths[-1] // 2)
    return sorted({*lengths, original} if original >= 64 else lengths)


def _pooled(cells: list[dict[str, Any]]) -> float | None:
    n_trials = sum(cell["n_trials"] for cell in cells)
    return sum(cell["n_right"] for cell in cells) / n_trials if n_trials else None
