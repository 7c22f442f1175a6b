"""Preference pairs from a model's own answers and a rule: what passes is preferred to what fails.

Each prompt is answered several times; of one answer that passes and one that fails a pair is made, the two that are
nearest in length, so that length says as little as it can about which is better. A prompt with answers of one kind only
makes no pair.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from isoflop.alignment.answers import answer
from isoflop.alignment.repetition import repeats
from isoflop.alignment.samples import Prompt
from isoflop.alignment.start import Start
from isoflop.model.transformer import Transformer

Rule = Callable[[str, str, bool, bool], bool]
"""(expected answer, answer, whether it stopped, whether it loops) -> whether it passes."""


def make_pairs(
    model: Transformer,
    start: Start,
    prompts: Sequence[Prompt],
    rule: Rule,
    *,
    n_answers: int = 6,
    temperature: float = 1.0,
    max_new_tokens: int = 128,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:
    """Records with prompt, chosen and rejected, as `read_pairs` takes them; at most one for each prompt."""
    asked = [prompt for prompt in prompts for _ in range(n_answers)]
    said = answer(
        model,
        [prompt.ids for prompt in asked],
        stop_ids=start.template.stop_ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        n_known=start.n_known,
        on_progress=on_progress,
    )
    generator = np.random.Generator(np.random.Philox([seed, 0x70616972]))
    records = []
    for index, prompt in enumerate(prompts):
        passed: dict[str, int] = {}
        failed: dict[str, int] = {}
        for item in said[index * n_answers : (index + 1) * n_answers]:
            text = start.template.decode(item.ids).strip()
            good = rule(prompt.expected, text, item.stopped, repeats(item.ids, stopped=item.stopped))
            (passed if good else failed)[text] = len(item.ids)
        both = [
            (abs(passed[chosen] - failed[rejected]), generator.random(), chosen, rejected)
            for chosen in sorted(passed)
            for rejected in sorted(failed)
            if chosen and rejected and chosen != rejected
        ]
        if both:
            _, _, chosen, rejected = min(both)
            turns = [message._asdict() for message in prompt.messages]
            records.append({"prompt": turns, "chosen": chosen, "rejected": rejected})
    return records
