"""From files to what is trained on: conversations and pairs as tokens, split, counted, the bad ones set aside."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from isoflop.alignment.conversations import (
    Conversation,
    Pair,
    first_question,
    read_conversations,
    read_pairs,
    split_by_prompt,
)
from isoflop.alignment.recipe import PairDataSection, SftDataSection
from isoflop.alignment.records import Quarantine, find_files
from isoflop.corpus.document import BadRecord
from isoflop.errors import DataError
from isoflop.tokens.chat import ChatTemplate, Message, Refused, Row

log = logging.getLogger(__name__)

_BATCH = 512


class Prompt(NamedTuple):
    """A held-out question."""

    messages: tuple[Message, ...]
    ids: np.ndarray
    expected: str
    """The answer in the data (the preferred one)."""


class PairRows(NamedTuple):
    """Both answers of a pair with their prompt."""

    chosen: Row
    rejected: Row


@dataclass
class Samples:
    """Tokenised training and held-out samples; of pairs, `PairRows` in place of rows."""

    train: list[Any]
    valid: list[Any]
    prompts: list[Prompt]
    summary: dict[str, Any]
    quarantine: Quarantine

    def write(self, run_dir: Path) -> None:
        """What was set aside, with file and line."""
        self.quarantine.write(run_dir / "quarantine.jsonl")


def load_conversations(section: SftDataSection, template: ChatTemplate, *, max_tokens: int, seed: int) -> Samples:
    """Conversations of `[data]` as rows.

    Raises:
        DataError: files that are not there, or nothing left to train or to validate on.
    """
    bad = Quarantine()
    both = _read(section, read_conversations, seed, bad)
    train, valid = (_tokenised(part, [c.messages for c in part], template, max_tokens, bad) for part in both)
    return _samples(train, valid, template, max_tokens, bad)


def load_pairs(section: PairDataSection, template: ChatTemplate, *, max_tokens: int, seed: int) -> Samples:
    """Preference pairs of `[data]` as two rows each, whose answers are the only targets.

    Raises:
        DataError: files that are not there, or nothing left to train or to validate on.
    """
    bad = Quarantine()
    train, valid = (_sides(part, template, max_tokens, bad) for part in _read(section, read_pairs, seed, bad))
    return _samples(train, valid, template, max_tokens, bad)


def digest(samples: Sequence[Any]) -> str:
    """Hash of tokens and targets in their order."""
    found = hashlib.sha256()
    for row in _rows_of(samples):
        found.update(np.int64(len(row.ids)).tobytes() + row.ids.tobytes() + row.is_target.tobytes())
    return found.hexdigest()


def _rows_of(samples: Sequence[Any]) -> Iterator[Row]:
    for sample in samples:
        yield from sample if isinstance(sample, PairRows) else (sample,)


def answer_only(row: Row) -> Row:
    """A row whose targets are those of the last answer: earlier answers belong to a pair's prompt."""
    last = np.flatnonzero(row.is_target)[-1]
    others = np.flatnonzero(~row.is_target[: last + 1])
    start = int(others[-1]) + 1 if len(others) else 0
    return Row(row.ids, row.is_target & (np.arange(len(row.ids)) >= start))


def _read(
    section: SftDataSection | PairDataSection, read: Callable[..., list[Any]], seed: int, bad: Quarantine
) -> tuple[list[Any], list[Any]]:
    """What is trained on, and what is held out: files of their own, or a share of the prompts."""
    train = read(find_files(section.train, "data.train"), section.format, bad)
    if not section.valid:
        return split_by_prompt(train, section.valid_fraction, seed)
    valid = read(find_files(section.valid, "data.valid"), section.format, bad)
    return _without_held_out(train, valid, bad), valid


def _samples(
    train: list[tuple[Any, Any]], valid: list[tuple[Any, Any]], template: ChatTemplate, max_tokens: int, bad: Quarantine
) -> Samples:
    """Of records with their rows, counted for the page and the result. Raises DataError where nothing is left."""
    counts = bad.counts()
    for name, items in (("train", train), ("valid", valid)):
        if not items:
            why = "; ".join(f"{reason} ({n})" for reason, n in list(counts.items())[:3]) or "nothing was read"
            more = "" if name == "train" else " or raise data.valid_fraction"
            raise DataError(f"data.{name}: no sample is left: {why}; give more data{more}")
    rows = list(_rows_of([sample for _, sample in train]))
    lengths = np.array([len(row.ids) for row in rows])
    if counts:
        log.info("%d records were set aside: %s", len(bad.records), counts)
    summary = {
        "n_train": len(train),
        "n_valid": len(valid),
        "set_aside": counts,
        "tokens": int(lengths.sum()),
        "targets": int(sum(row.is_target.sum() for row in rows)),
        "longest": int(lengths.max()),
        "max_tokens": max_tokens,
        "lengths": {
            str(1 << int(k)): int(n) for k, n in zip(*np.unique(np.log2(lengths).astype(int), return_counts=True))
        },
    }
    prompts = prompts_of([item for item, _ in valid], template)
    return Samples([sample for _, sample in train], [sample for _, sample in valid], prompts, summary, bad)


def _without_held_out(train: list, valid: list, bad: Quarantine) -> list:
    held = {first_question(item) for item in valid}
    kept = []
    for item in train:
        if first_question(item) in held:
            bad(BadRecord(item.origin, "its prompt is held out for validation"))
        else:
            kept.append(item)
    return kept


def _tokenised(
    items: Sequence[Conversation | Pair],
    conversations: Sequence[tuple[Message, ...]],
    template: ChatTemplate,
    max_tokens: int,
    bad: Quarantine,
) -> list[tuple[Any, Row]]:
    found = []
    for start in range(0, len(items), _BATCH):
        part = range(start, min(start + _BATCH, len(items)))
        for index, row in zip(part, _rows([conversations[i] for i in part], template), strict=True):
            if isinstance(row, Refused):
                bad(BadRecord(items[index].origin, str(row)[:300]))
            elif len(row.ids) > max_tokens:
                bad(BadRecord(items[index].origin, f"{len(row.ids)} tokens are over the limit of {max_tokens}"))
            else:
                found.append((items[index], row))
    return found


def _rows(conversations: Sequence[tuple[Message, ...]], template: ChatTemplate) -> list[Row | Refused]:
    """All at once, or one by one where the template refuses some."""
    try:
        return list(template.rows(conversations))
    except Refused:
        found: list[Row | Refused] = []
        for conversation in conversations:
            try:
                found.append(template.row(conversation))
            except Refused as error:
                found.append(error)
        return found


def _sides(
    pairs: Sequence[Pair], template: ChatTemplate, max_tokens: int, bad: Quarantine
) -> list[tuple[Pair, PairRows]]:
    chosen, rejected = (
        dict(_tokenised(pairs, [pair.both[side] for pair in pairs], template, max_tokens, bad)) for side in (0, 1)
    )
    found = []
    for pair in pairs:
        if pair in chosen and pair in rejected:
            sides = PairRows(answer_only(chosen[pair]), answer_only(rejected[pair]))
            n = min(int(np.argmax(side.is_target)) for side in sides)  # tokens before the first target
            if not n or not np.array_equal(sides.chosen.ids[:n], sides.rejected.ids[:n]):
                bad(BadRecord(pair.origin, "the two sides share no prompt in tokens"))
            else:
                found.append((pair, sides))
    return found


def prompts_of(items: Sequence[Conversation | Pair], template: ChatTemplate) -> list[Prompt]:
    """Of each held-out item the turns up to its first answer (of a pair: its prompt)."""
    found = []
    for item in items:
        if isinstance(item, Pair):
            messages, expected = item.prompt, item.chosen
        else:
            end = next(i for i, message in enumerate(item.messages) if message.role == "assistant")
            messages, expected = item.messages[:end], item.messages[end].content
        found.append(Prompt(messages, template.prompt_ids(messages), expected))
    return found
