"""The sections of an evaluation recipe. No torch here."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from isoflop.errors import RecipeError
from isoflop.evaluation.tasks.catalogue import NAMES, task
from isoflop.recipe import NotNegative, NotNegativeInt, PositiveInt, Processes, Range, Seed

NORMALISATIONS = {
    "acc": "sum",
    "acc_norm": "character",
    "acc_bytes": "byte",
    "acc_token": "token",
    "acc_whole_text": "whole text",
    "acc_mutual_info": "unconditional",
}
"""Metric -> by what an option's log-probability is divided or lowered; the first three and the last as in lm-eval."""


@dataclass(frozen=True)
class TasksSection:
    """What is measured, on which files."""

    names: tuple[str, ...] = NAMES
    """Benchmarks, as docs/evaluation.md lists them."""
    data: str = "data/eval"
    """Folder of official files, one folder a benchmark; --data replaces it."""
    limit: NotNegativeInt = 0
    """The first so many items of each task; 0: all. --limit replaces it."""
    shots: dict[str, NotNegativeInt] = field(default_factory=dict)
    """Worked examples of a task, where not its own number; some tasks have none to show."""


@dataclass(frozen=True)
class PromptSection:
    """How a task's text is put to the model."""

    style: Literal["auto", "text", "chat"] = "auto"
    """chat: as the user's turn of a conversation; text: as it is; auto: chat where the run says how."""
    template: str = ""
    """Chat template: deepseek-llm, deepseek-v3, a Jinja file, a Hugging Face folder; empty: the run's own."""


@dataclass(frozen=True)
class LikelihoodSection:
    """How options and texts are scored."""

    metrics: tuple[Literal["acc", "acc_norm", "acc_bytes", "acc_token", "acc_whole_text", "acc_mutual_info"], ...] = ()
    """Accuracies by other normalisations, beside those of a task."""
    budget_tokens: NotNegativeInt = 0
    """Tokens of a forward pass; changes no result but rounding. 0: 32,768 on a GPU, 2,048 on a CPU."""


@dataclass(frozen=True)
class GenerationSection:
    """How answers are written."""

    n_samples: PositiveInt = 1
    """Answers of each question; their scores are averaged."""
    k: tuple[PositiveInt, ...] = (1,)
    """pass@k of programs; each at most n_samples."""
    temperature: NotNegative = 0.0
    """0 takes the most likely token."""
    top_p: Annotated[float, Range(above=0, at_most=1)] = 1.0
    """Draw from the fewest tokens that have this much probability together."""
    seed: Seed = 0
    """With the number of item and sample it decides what is drawn."""
    max_tokens: NotNegativeInt = 0
    """Longest answer; 0: the task's own limit."""
    max_rows: PositiveInt = 32
    """Answers that are written at once."""
    workers: Processes = 0
    """Programs that the sandbox runs at once; 0: one a processor core."""


@dataclass(frozen=True)
class ContaminationSection:
    """Which items the training text may have shown; overlap counts as in filters.decontaminate of a corpus."""

    train_text: tuple[str, ...] = ()
    """Folders of isoflop corpus build or tokens, folders of runs (for what they were trained on), files or folders of
    text; empty: nothing is looked for. --train-text replaces it."""
    n_words: PositiveInt = 13
    """Length of a run in words."""
    n_chars: PositiveInt = 20
    """Length of a run in characters, for texts that are mostly of an unspaced script."""
    min_words: PositiveInt = 8
    """Shortest text that is looked for as a whole, in words."""
    min_chars: PositiveInt = 12
    """The same in characters."""


@dataclass(frozen=True)
class ComputeSection:
    """Where the model is computed."""

    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of activations and products; auto is bfloat16 on a GPU and float32 on a CPU."""


@dataclass(frozen=True)
class EvalRecipe:
    """One evaluation: isoflop eval RUN... RECIPE."""

    tasks: TasksSection = TasksSection()
    prompt: PromptSection = PromptSection()
    likelihood: LikelihoodSection = LikelihoodSection()
    generation: GenerationSection = GenerationSection()
    contamination: ContaminationSection = ContaminationSection()
    compute: ComputeSection = ComputeSection()


def check(recipe: EvalRecipe) -> None:
    """Rules between keys. Raises RecipeError."""
    g = recipe.generation
    for name in (*recipe.tasks.names, *recipe.tasks.shots):
        task(name)
    if not recipe.tasks.names:
        raise RecipeError("tasks.names = [] must have a task; leave it out for all of them")
    if max(g.k, default=1) > g.n_samples:
        raise RecipeError(f"generation.k = {list(g.k)} must be at most generation.n_samples = {g.n_samples}; raise it")
    if g.n_samples > 1 and not g.temperature:
        raise RecipeError(
            f"generation.n_samples = {g.n_samples} with temperature = 0 gives the same answer so many times; "
            "set generation.temperature, or n_samples = 1"
        )
