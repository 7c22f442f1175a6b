"""The sections of a judge recipe. No torch here."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from isoflop.errors import RecipeError
from isoflop.evaluation.recipe import ComputeSection
from isoflop.recipe import NotNegative, NotNegativeInt, Positive, PositiveInt, Range, Seed


@dataclass(frozen=True)
class JudgeSection:
    """The model that judges, behind an endpoint of the OpenAI kind (POST URL/chat/completions)."""

    url: str = ""
    """Up to /v1, as http://127.0.0.1:8000/v1."""
    model: str = ""
    """Its name there."""
    key_variable: str = ""
    """Environment variable that holds the key; empty: none is sent. The key itself is written nowhere."""
    timeout_s: Positive = 120.0
    """Of one call, to its last byte."""
    tries: PositiveInt = 3
    """Calls for one judgement before it counts as missing."""
    retry_s: NotNegative = 2.0
    """Before the second try; doubled before each further one, at most a minute."""
    max_tokens: PositiveInt = 2048
    """Longest judgement."""
    at_once: Annotated[int, Range(at_least=1, at_most=64)] = 4
    """Calls in flight."""
    max_calls: PositiveInt = 5000
    """A start that needs more is refused before the first one."""
    give_up_after: PositiveInt = 10
    """Judgements in a row that failed; then the rest is missing, and another start goes on."""


@dataclass(frozen=True)
class QuestionsSection:
    """What is asked, and how answers are written."""

    benchmark: Literal["mt_bench", "mt_bench_zh", "alignbench", "do_not_answer"] = "mt_bench"
    """Whose questions."""
    data: str = "data/eval"
    """Folder of official files; --data replaces it."""
    limit: NotNegativeInt = 0
    """The first so many questions; 0: all. --limit replaces it."""
    template: str = ""
    """Chat template of the runs: deepseek-llm, deepseek-v3, a Jinja file, a folder; empty: their own."""
    temperature: NotNegative = 0.0
    """Of the answers, not of the judge; 0 takes the most likely token."""
    seed: Seed = 0
    """Decides what is drawn."""
    max_tokens: PositiveInt = 1024
    """Longest answer."""


@dataclass(frozen=True)
class JudgeRecipe:
    """One judged evaluation: isoflop judge A [B] RECIPE."""

    judge: JudgeSection = JudgeSection()
    questions: QuestionsSection = QuestionsSection()
    compute: ComputeSection = field(default_factory=ComputeSection)


def check(recipe: JudgeRecipe) -> None:
    """Rules between keys. Raises RecipeError."""
    if not recipe.judge.url.startswith(("http://", "https://")):
        raise RecipeError(f"judge.url = {recipe.judge.url!r} must begin with http:// or https:// and end before /chat")
    if not recipe.judge.model:
        raise RecipeError('judge.model = "" must name the model that judges, as the endpoint calls it')
