"""One evaluation: runs and a recipe -> scores with intervals, raw answers and records in the runs' own folders.

`RUN/evaluation/TASK.KEY.jsonl` holds raw answers; KEY is a hash of everything they depend on, so work that was stopped
goes on where it was, and another checkpoint, file or setting begins a file of its own. `RUN/evaluation.jsonl` gets one
record a task once it is complete.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from isoflop.errors import DataError
from isoflop.evaluation.collect import Answers, judge, keep, option_texts, score_items, stored_sizes, write_answers
from isoflop.evaluation.contamination import Marks, clean_scores, find_text, mark
from isoflop.evaluation.grade import Graded, grade, option_scores, summarise
from isoflop.evaluation.prompts import Prompts
from isoflop.evaluation.recipe import EvalRecipe
from isoflop.evaluation.tasks.catalogue import task
from isoflop.evaluation.tasks.task import Choice, Item, Loaded, Passage, Question, Task
from isoflop.recipe import to_tree
from isoflop.run import append_json_line, commit, cores, now, only_one, processor
from isoflop.sandbox.sandbox import Sandbox
from isoflop.serving.conversation import is_chat_model
from isoflop.serving.engine import Engine
from isoflop.serving.load import load
from isoflop.serving.options import EngineOptions
from isoflop.tokens.chat import load_template
from isoflop.training.load_run import find_trained, require_model, tokenizer_sha256_of

FORMAT = 1
"""Of raw answers; a file of another one is not continued."""
Progress = Callable[[str, int, int], None]


@dataclass
class Model:
    """A run under test."""

    run: Path
    recipe: EvalRecipe

    def __post_init__(self) -> None:
        r = self.recipe
        self.trained = find_trained(self.run)
        self.model, tokenizer, folder = load(self.run, device=r.compute.device, dtype=r.compute.dtype)
        if tokenizer is None or folder is None:
            raise DataError(
                f"{self.run} has no tokenizer; a benchmark is text: put the run's tokenizer into {self.run}"
            )
        self.model.cast_once()
        is_chat = is_chat_model(self.run) if r.prompt.style == "auto" else r.prompt.style == "chat"
        self.prompts = Prompts(tokenizer, load_template(folder, r.prompt.template) if is_chat else None)
        self.folder = folder

    @cached_property
    def engine(self) -> Engine:
        return Engine(self.model, self.prompts.tokenizer, EngineOptions(max_rows=self.recipe.generation.max_rows))

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What its answers depend on, beside the items."""
        state = json.loads((self.trained.checkpoint / "state.json").read_text(encoding="utf-8"))
        template = self.prompts.template
        return {
            "checkpoint": self.trained.checkpoint.name,
            "model_sha256": state["sha256"]["model.safetensors"],
            "tokenizer_sha256": tokenizer_sha256_of(self.run),
            "bos_id": self.prompts.tokenizer.bos_id,
            "eos_id": self.prompts.tokenizer.eos_id,
            "style": "chat" if template else "text",
            "template": template.name if template else None,
            "template_sha256": template.sha256 if template else None,
            **({"stop_ids": list(template.stop_ids), "lead": template.lead} if template else {}),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "seq_len": self.model.config.seq_len,
        }


def with_cells(runs: Sequence[str]) -> list[str]:
    """Runs, and instead of the folder of a sweep all of its cells.

    Raises:
        DataError: a sweep whose cells have no weights.
    """
    found = []
    for run in runs:
        cells = sorted(Path(run, "cells").glob("*/")) if not Path(run, "recipe.toml").is_file() else []
        kept = [str(cell) for cell in cells if (cell / "checkpoints").is_dir()]
        if cells and not kept:
            raise DataError(f"no cell of {run} has weights; run the sweep with isoflop sweep --keep-weights")
        found += kept or [run]
    return found


@dataclass
class Chosen:
    """A task with the items that are asked, and why others are not."""

    task: Task
    loaded: Loaded
    n_shots: int
    limit: int

    @property
    def items(self) -> list[Item]:
        return self.loaded.items[: self.limit or None]

    @cached_property
    def items_sha256(self) -> str:
        """Of all that the model is shown, and of tests that run beside its programs."""
        hashed = hashlib.sha256()
        for item in self.loaded.items:
            shown: list[Any] = [{k: v for k, v in asdict(item).items() if k != "texts"} | {"gold": None, "group": ""}]
            if self.task.job is not None and isinstance(item, Question):
                shown.append(item.gold)
            hashed.update(json.dumps(shown, sort_keys=True, default=str).encode())
        return hashed.hexdigest()


def choose(recipe: EvalRecipe) -> list[Chosen]:
    """Read all tasks of a recipe, before any model is loaded.

    Raises:
        DataError: official files that are missing or of another version.
    """
    found = []
    for name in recipe.tasks.names:
        wanted = task(name)
        n_shots = recipe.tasks.shots.get(name, wanted.n_shots)
        try:
            loaded = wanted.read(Path(recipe.tasks.data), n_shots)
        except DataError as error:
            raise DataError(f"task {name}: {error}; or leave it out: --tasks") from error
        found.append(Chosen(wanted, loaded, n_shots, recipe.tasks.limit))
    return found


def evaluate(
    runs: Sequence[str],
    recipe: EvalRecipe,
    *,
    with_samples: bool = False,
    on_progress: Progress | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
    """Scores of all runs, or cells of sweeps, as plain data, and with `with_samples` one object an item.

    Raises:
        CheckpointError, RecipeError, DataError: a run, recipe or official file that cannot be used.
        SandboxError: programs are to be judged, and the sandbox does not hold here.
        KeyboardInterrupt: it was asked to stop; answers so far are kept.
    """
    names = with_cells(runs)
    for name in names:
        require_model(Path(name))
    find_text(recipe.contamination.train_text)  # what is not there is said before anything is read
    chosen = choose(recipe)
    found: dict[str, Any] = {}
    samples: list[dict[str, Any]] = []
    with Sandbox(recipe.generation.workers or cores()) as sandbox:
        if any(one.task.job for one in chosen):
            sandbox.require()
        marks = None
        if recipe.contamination.train_text:
            asked = {one.task.name: one.items for one in chosen}
            marks = mark(asked, recipe.contamination, on_progress=on_progress, should_stop=should_stop)
        for name in names:
            model = Model(Path(name), recipe)
            metrics, details = {}, {}
            with only_one(model.run / "evaluation"):
                for one in chosen:
                    done = _one_task(model, one, sandbox, name, marks, with_samples, on_progress, should_stop)
                    metrics[one.task.name], details[one.task.name], rows = done
                    samples += rows
            found[name] = {
                "tasks": metrics,
                "details": details,
                "settings": {
                    **settings(model),
                    "data": str(Path(recipe.tasks.data).resolve()),
                    **({"train_text": marks.text} if marks else {}),
                },
            }
    return {"runs": found}, iter(samples)


def settings(model: Model) -> dict[str, Any]:
    """What a score depends on, and where it was computed."""
    device = model.model.embedding.weight.device
    return {
        **model.identity,
        "recipe": to_tree(model.recipe),
        "seed": model.recipe.generation.seed,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "torch": torch.__version__,
        "commit": commit(),
        "measured_at": now(),
    }


def _one_task(
    model: Model,
    one: Chosen,
    sandbox: Sandbox,
    name: str,
    marks: Marks | None,
    with_samples: bool,
    on_progress: Progress | None,
    should_stop: Callable[[], bool],
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """Metrics of a task, what is to be known about them, and with `with_samples` an object an item."""
    recipe, began = model.recipe, time.perf_counter()
    key = _key(model, one)
    answers = Answers.open(model.run / "evaluation" / f"{one.task.name}.{key}.jsonl")
    items = dict(enumerate(one.items))
    metrics, n_samples = recipe.likelihood.metrics, recipe.generation.n_samples
    options = {"whole_text": "acc_whole_text" in metrics, "unconditional": "acc_mutual_info" in metrics}
    for n in items.keys() & answers.known.keys():
        answers.require(n, stored_sizes(items[n], answers.known[n], n_samples=n_samples, **options))
    left = {n: item for n, item in items.items() if n not in answers.known}
    done = len(items) - len(left)

    def on_answer() -> None:
        nonlocal done
        done += 1
        if on_progress:
            on_progress(f"{one.task.name}, {name}", min(done, len(items)), len(items))
        if should_stop():
            raise KeyboardInterrupt

    scored = [(n, item) for n, item in left.items() if isinstance(item, (Choice, Passage))]
    asked = [(n, item) for n, item in left.items() if isinstance(item, Question)]
    if scored:
        budget = recipe.likelihood.budget_tokens
        keep(answers, score_items(model.model, model.prompts, scored, **options, budget=budget), on_answer)
    if asked:
        keep(answers, write_answers(model.engine, model.prompts, asked, recipe.generation, one.task.name), on_answer)
    if one.task.job is not None:
        done = 0
        programs = {n: item for n, item in items.items() if isinstance(item, Question)}
        keep(answers, judge(one.task, programs, answers, sandbox), on_answer)
    k = recipe.generation.k
    graded = {n: grade(one.task, item, answers.known[n], metrics, k) for n, item in items.items()}
    found = summarise(list(items.values()), list(graded.values()))
    problems = [f"{items[n].id}: {answers.known[n]['problem']}" for n in items if "problem" in answers.known[n]]
    details = {
        "n_items": len(items),
        "chance": _chance(one.items),
        "n_missing": sum(one is None for one in graded.values()),
        "n_skipped": len(one.loaded.skipped),
        "n_truncated": sum(answers.known[n]["n_cut"] > 0 for n in items),
        "problems": [*one.loaded.skipped[:5], *problems[:5]],
        "n_shots": one.n_shots,
        "limit": one.limit,
        "lm_eval": one.task.lm_eval,
        "form": one.task.form,
        "note": one.loaded.note,
        "source": one.task.source,
        "items_sha256": one.items_sha256,
        "answers": answers.path.name,
        "seconds": time.perf_counter() - began,
    }
    if marks is not None:
        of_items = marks.by_task[one.task.name]
        details["contamination"] = clean_scores(one.items, list(graded.values()), of_items)
    values = {metric: interval._asdict() for metric, interval in found.items()}
    kept = settings(model) | ({"train_text": marks.text} if marks else {})
    record = {"run_id": f"{one.task.name}.{key}.{one.limit}", "task": one.task.name, "metrics": values}
    append_json_line(model.run / "evaluation.jsonl", {**record, **details, "settings": kept})
    samples = []
    if with_samples:
        shown = (sample(one.task, item, answers.known[n], graded[n], metrics) for n, item in items.items())
        samples = [{"run": name, "task": one.task.name, **row} for row in shown]
        if marks is not None:
            samples = [row | {"contaminated": m} for row, m in zip(samples, marks.by_task[one.task.name], strict=True)]
    return values, details, samples


def _chance(items: Sequence[Item]) -> float | None:
    """Accuracy of guessing, where every item has options."""
    shares = [len(item.gold) / len(item.options) for item in items if isinstance(item, Choice)]
    return sum(shares) / len(shares) if shares and len(shares) == len(items) else None


def _key(model: Model, one: Chosen) -> str:
    """Hash of what raw answers depend on; how many items are asked is none of it."""
    recipe = model.recipe
    depends: list[Any] = [FORMAT, model.identity, one.items_sha256]
    if any(isinstance(item, Question) for item in one.loaded.items):
        g = recipe.generation
        depends.append([g.n_samples, g.temperature, g.top_p, g.max_tokens, g.seed if g.temperature else 0])
    depends.append(sorted({"acc_whole_text", "acc_mutual_info"} & {*recipe.likelihood.metrics}))
    return hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:12]


def sample(
    task: Task, item: Item, answer: dict[str, Any], graded: Graded | None, metrics: Sequence[str]
) -> dict[str, Any]:
    """One item for people: what was shown, what came back, how it was scored."""
    row: dict[str, Any] = {"item": item.id, "group": item.group}
    if isinstance(item, Choice):
        texts = option_texts(item)
        row["prompt"] = [context for context, _ in texts] if item.contexts else texts[0][0]
        row |= {"options": list(item.options), "gold": list(item.gold)}
        if graded:
            names = dict.fromkeys((*task.metrics, *metrics))
            row["option_scores"] = {name: option_scores(item, answer, name) for name in names}
            row["is_greedy"] = answer["is_greedy"]
    elif isinstance(item, Question):
        row |= {"prompt": item.prefix + item.prompt, "outputs": answer.get("outputs")}
    else:
        row |= {"prompt": item.text, "nats": answer.get("nats")}
    row |= {"scores": graded.scores if graded else None, "verdict": graded.verdict if graded else None}
    return row | ({"problem": answer["problem"]} if "problem" in answer else {})
