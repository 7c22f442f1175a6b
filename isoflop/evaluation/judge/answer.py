"""A chat model answers questions of several turns; every round of answers is kept, so work that was stopped goes on."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from isoflop.errors import DataError
from isoflop.evaluation.collect import Answers, complete, keep, room
from isoflop.evaluation.judge.questions import Case
from isoflop.evaluation.judge.recipe import JudgeRecipe
from isoflop.evaluation.recipe import EvalRecipe, PromptSection
from isoflop.evaluation.run import Model
from isoflop.run import only_one
from isoflop.serving.request import Sampling
from isoflop.tokens.chat import Message


def write_turns(
    run: Path,
    cases: Sequence[Case],
    recipe: JudgeRecipe,
    *,
    on_progress: Callable[[str, int, int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, list[str]]:
    """Answers of a run to every turn, by question.

    Raises:
        DataError: a run without a chat template.
    """
    q = recipe.questions
    prompt = PromptSection(style="chat" if q.template else "auto", template=q.template)
    made = EvalRecipe(prompt=prompt, compute=recipe.compute)
    model = Model(run, made)
    template = model.prompts.template
    if template is None:
        raise DataError(f"{run} has no chat template, and questions are a conversation; name one: questions.template")
    depends = [model.identity, [case.turns for case in cases], q.temperature, q.seed, q.max_tokens]
    key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:12]
    answers = Answers.open(run / "evaluation" / f"{q.benchmark}.{key}.turns.jsonl")

    def said(number: int) -> list[str]:
        return answers.known.get(number, {}).get("turns", [])

    done = sum(map(len, map(said, range(len(cases)))))

    def on_answer() -> None:
        nonlocal done
        done += 1
        if on_progress:
            on_progress(f"answer, {run}", done, sum(len(case.turns) for case in cases))
        if should_stop():
            raise KeyboardInterrupt

    def rows(turn: int):
        asked, owners = [], []
        for number, case in enumerate(cases):
            if len(said(number)) != turn or len(case.turns) <= turn:
                continue
            messages = []
            for before in range(turn):
                messages += [Message("user", case.turns[before]), Message("assistant", said(number)[before])]
            ids = template.prompt_ids([*messages, Message("user", case.turns[turn])]).tolist()
            kept, n = room(ids, q.max_tokens, model.model.config.seq_len)
            seed = hashlib.sha256(f"{q.seed}/{q.benchmark}/{case.id}/{turn}".encode()).digest()
            sampling = Sampling(
                max_tokens=n,
                temperature=q.temperature,
                seed=int.from_bytes(seed[:8], "big"),
                stop_ids=template.stop_ids,
            )
            asked.append((kept, sampling))
            owners.append(number)
        for place, completion in complete(model.engine, asked):
            text = model.prompts.tokenizer.decode_bytes(completion.ids).decode("utf-8", "replace")
            yield {"item": owners[place], "turns": [*said(owners[place]), text.strip()]}

    with only_one(run / "evaluation"):
        for turn in range(max(len(case.turns) for case in cases)):
            keep(answers, rows(turn), on_answer)
    return {case.id: said(number) for number, case in enumerate(cases)}
