"""Held-out prompts put to a model: who stops, who loops, what is said."""

from collections.abc import Sequence
from typing import Any

from isoflop.alignment.answers import answer
from isoflop.alignment.recipe import AnswersSection
from isoflop.alignment.repetition import repeats
from isoflop.alignment.samples import Prompt
from isoflop.alignment.scoring import share
from isoflop.alignment.start import Start
from isoflop.model.transformer import Transformer


def ask(model: Transformer, start: Start, prompts: Sequence[Prompt], section: AnswersSection) -> dict[str, Any]:
    """Greedy answers to the first `section.prompts` prompts, with shares and their intervals; empty without prompts."""
    asked = prompts[: section.prompts]
    if not asked:
        return {}
    said = answer(
        model,
        [prompt.ids for prompt in asked],
        stop_ids=start.template.stop_ids,
        max_new_tokens=section.max_new_tokens,
        n_known=start.n_known,
    )
    stopped = [item.stopped for item in said]
    repeated = [repeats(item.ids, stopped=item.stopped) for item in said]
    shown = [
        {
            "prompt": [list(message) for message in prompt.messages],
            "expected": prompt.expected,
            "answer": start.template.decode(item.ids),
            "stopped": item.stopped,
        }
        for prompt, item in list(zip(asked, said))[: section.shown]
    ]
    return {
        "stop_share": share(stopped)._asdict(),
        "repetition_ratio": share(repeated)._asdict(),
        "max_new_tokens": section.max_new_tokens,
        "stopped": stopped,
        "repeated": repeated,
        "n_tokens": [len(item.ids) for item in said],
        "shown": shown,
    }
