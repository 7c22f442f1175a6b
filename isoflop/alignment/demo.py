"""From nothing to an assistant on this machine, in minutes: a base model, SFT in two stages, DPO, and a page.

Every step is the function behind a command (`train`, `sft`, `dpo`), and every step that is finished is skipped when the
demo is started again. Without data its conversations come from the machine's own Python environment (`demo_data`), its
pairs from the model's own answers and a rule. With a folder of sft/ and preference/ sets those take their place, and no
claim is made about them: the figures are shown as they come.
"""

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from isoflop.alignment.asked import ask
from isoflop.alignment.conversations import read_conversations, split_by_prompt
from isoflop.alignment.demo_data import arithmetic, docstrings, interleaved, judge, right_result
from isoflop.alignment.demo_page import write_demo_page
from isoflop.alignment.dpo import run_dpo
from isoflop.alignment.made_pairs import make_pairs
from isoflop.alignment.pairs import longer_wins
from isoflop.alignment.recipe import (
    AlignTrainSection,
    AnswersSection,
    DpoRecipe,
    DpoSection,
    PairDataSection,
    SecondSection,
    SftDataSection,
    SftRecipe,
    StartSection,
)
from isoflop.alignment.records import Quarantine, find_files
from isoflop.alignment.samples import Prompt, load_conversations, load_pairs, prompts_of
from isoflop.alignment.scoring import difference, ratio, score_rows, share
from isoflop.alignment.sft import run_sft
from isoflop.alignment.start import Start, open_start
from isoflop.corpus.build import build_corpus
from isoflop.corpus.read.environment import EnvironmentOptions
from isoflop.corpus.recipe import CorpusRecipe
from isoflop.errors import DataError, IsoflopError, RecipeError
from isoflop.model.accounting import count_parameters
from isoflop.model.config import ModelConfig
from isoflop.recipe import Positive, PositiveInt, Range, from_tree, load_recipe, to_toml, write_json, write_text
from isoflop.run import require_run_folder
from isoflop.tokens.shards import TokenizerOptions, TokensRecipe, build_tokens
from isoflop.training.device import choose_device
from isoflop.training.load_run import find_trained, load_model
from isoflop.training.pretrain.recipe import DataSection, PretrainRecipe, TrainSection, ValidateSection
from isoflop.training.pretrain.workload import run_pretrain

log = logging.getLogger(__name__)

STAGES = ("base", "sft1", "sft2", "dpo")
MICRO_TOKENS = 12_288
MOST_TALKS, MOST_CHARACTERS = 12_000, 600
"""Conversations that are taken of a data folder, and how long they may be (assumption: half an hour on two cores)."""
READ = "read.json"
"""In OUT/data: what was read of a data folder, and what was not."""


@dataclass(frozen=True)
class CorpusSection:
    """Text of the base model: the Python environment."""

    max_mb: Positive = 24.0
    """Sources and documentation that are read."""


@dataclass(frozen=True)
class TalksSection:
    """Conversations that are made."""

    n_arithmetic: PositiveInt = 6000
    """Sums and differences to train on."""
    n_docstrings: PositiveInt = 1500
    """Functions to train on."""
    n_prompts: PositiveInt = 500
    """Held-out prompts that are answered after each stage, and conversations that the loss is measured on."""


@dataclass(frozen=True)
class SecondRates:
    """Of the second stage."""

    learning_rate: Positive
    """Peak rate."""
    epochs: Positive
    """Passes over its conversations."""


@dataclass(frozen=True)
class PairsSection:
    """Pairs of the model's own answers."""

    n_train: PositiveInt = 1200
    """Prompts that are answered for training pairs."""
    n_valid: PositiveInt = 1100
    """The same, held out."""
    n_answers: Annotated[int, Range(at_least=2)] = 6
    """Of each prompt."""
    temperature: Positive = 1.0
    """At which they are sampled."""


@dataclass(frozen=True)
class DemoRecipe:
    """What `isoflop align demo` runs; `presets/align_demo.toml` is the one that it takes."""

    corpus: CorpusSection
    """Text of the base model."""
    tokenizer: TokenizerOptions
    """Its tokenizer."""
    model: ModelConfig
    """Its sizes."""
    base: TrainSection
    """How it is pre-trained."""
    talks: TalksSection
    """Conversations that are made."""
    sft: AlignTrainSection
    """The first stage of SFT."""
    second: SecondRates
    """The second stage."""
    pairs: PairsSection
    """Pairs of the model's own answers."""
    dpo: DpoSection
    """The loss of DPO."""
    dpo_train: AlignTrainSection
    """How DPO is trained."""


Shown = Callable[[str], Any]


def run_demo(
    out: Path,
    *,
    data: Path | None = None,
    seed: int = 0,
    say: Callable[[str], None],
    bar: Shown,
    should_stop: Callable[[], bool] = lambda: False,
    recipe: DemoRecipe | None = None,
) -> dict[str, Any]:
    """Run or resume the demo in `out` and return its score; leaves score.json and report.html.

    Raises:
        RecipeError: `out` holds a demo of other data or another seed, or a data folder without sft/ or preference/.
        DataError: sets of which nothing can be read.
        IsoflopError: a stage failed; KeyboardInterrupt after Ctrl-C, with everything finished so far kept.
    """
    if recipe is None:
        with resources.as_file(resources.files("isoflop") / "presets" / "align_demo.toml") as path:
            recipe = load_recipe(path, DemoRecipe)
    recipe = _seeded(recipe, seed)
    for name in ("sft", "preference"):
        if data is not None and not (data / name).is_dir():
            raise RecipeError(f"--data {data} has no folder {name}; give a folder with sft/ and preference/")
    _check_same(out, data=data, recipe=recipe)
    began = time.monotonic()
    seconds = _Seconds(out / "seconds.json")

    def step(number: int, text: str) -> None:
        if should_stop():
            raise KeyboardInterrupt
        say(f"[{number}/6 {time.monotonic() - began:5.0f} s] {text}")

    step(1, "base model: text of this Python environment, tokenizer, pre-training")
    with seconds("base"):
        _base(out, recipe, bar, should_stop)
    step(2, "conversations")
    with seconds("data"):
        sets = _given_sets(data, out) if data is not None else _made_sets(out, recipe, seed)
    start = StartSection(str(out / "base"))
    sft = _sft_recipe(recipe, start, sets)
    step(3, "SFT, two stages")
    with seconds("sft"), bar("token") as shown:
        _finished(run_sft(sft, out / "sft", on_progress=shown.training, should_stop=should_stop), "SFT")
    step(4, "pairs: the model's own answers and a rule" if data is None else "pairs of the data folder")
    with seconds("pairs"), bar("answer") as shown:
        pairs = _own_pairs(out, recipe, sets, shown.stage) if data is None else sets
    step(5, "DPO")
    dpo = _dpo_recipe(recipe, StartSection(str(out / "sft" / "stage2")), pairs)
    with seconds("dpo"), bar("token") as shown:
        preferred = _finished(run_dpo(dpo, out / "dpo", on_progress=shown.training, should_stop=should_stop), "DPO")
    step(6, "every stage on the same held-out prompts, conversations and pairs")
    with seconds("score"), bar("stage") as shown:
        score, detail = _score(out, recipe, sft, dpo, preferred, shown.stage)
    write_json(out / "score.json", score)
    detail["samples"] = {key: value for key, value in preferred["samples"].items() if key != "lengths"}
    if (out / "data" / READ).is_file():
        detail["conversations"] = json.loads((out / "data" / READ).read_text(encoding="utf-8"))
    detail |= {"seconds": seconds.held, "seed": seed, "data": None if data is None else str(data)}
    write_json(out / "detail.json", detail)
    write_demo_page(out, recipe, score, detail)
    return score


def _base(out: Path, recipe: DemoRecipe, bar: Shown, should_stop: Callable[[], bool]) -> None:
    text = {"environment": {"enabled": True, "max_mb": recipe.corpus.max_mb}}
    with bar("B") as shown:
        build_corpus(from_tree(text, CorpusRecipe), out / "corpus", on_progress=shown.stage)
    with bar("B") as shown:
        build_tokens(out / "corpus", out / "tokens", TokensRecipe(recipe.tokenizer), on_progress=shown.stage)
    base = PretrainRecipe(
        model=recipe.model,
        data=DataSection(tokens=str(out / "tokens")),
        train=recipe.base,
        validate=ValidateSection(max_tokens=50_000),
    )
    with bar("token") as shown:
        _finished(run_pretrain(base, out / "base", on_progress=shown.training, should_stop=should_stop), "pre-training")


def _made_sets(out: Path, recipe: DemoRecipe, seed: int) -> dict[str, list[str]]:
    """Files of the conversations that are made here."""
    folder, section = out / "data", recipe.talks
    options = EnvironmentOptions(max_mb=4 * recipe.corpus.max_mb)
    sets = {name: [str(folder / f"{name}.jsonl")] for name in ("train", "second", "valid", "more")}
    if all(Path(path).is_file() for paths in sets.values() for path in paths):
        return sets
    described = docstrings(section.n_docstrings, seed, options, valid=False)
    held = docstrings(section.n_docstrings, seed, options, valid=True)
    sums = arithmetic(section.n_arithmetic, seed, valid=False)
    held_sums = arithmetic(section.n_arithmetic, seed, valid=True)
    half = section.n_prompts // 2
    made = {
        "train": interleaved(sums, described, seed=seed),
        "second": interleaved(described, seed=seed + 1),  # conversational only, as in the paper
        "valid": interleaved(held_sums[:half], held[: section.n_prompts - half], seed=seed + 2),
        "more": interleaved(held_sums[half:], held[section.n_prompts - half :], seed=seed + 3),
    }
    for name, talks in made.items():
        write_text(folder / f"{name}.jsonl", "".join(f"{json.dumps(talk.record())}\n" for talk in talks))
    return sets


def _given_sets(data: Path, out: Path) -> dict[str, list[str]]:
    """Files of a data folder, conversations with a held-out share; what was left out is counted and named.

    Raises:
        DataError: too few conversations that are short enough.
    """
    english = [str(data / "sft" / name) for name in ("alpaca_en", "dolly_hhrlhf_small")]
    files = [path for path in english if Path(path).is_dir()] or [str(data / "sft")]
    pairs = [str(data / "preference" / name) for name in ("hh_rlhf_harmless", "alpaca_eval_gpt4_pairs")]
    pairs = [path for path in pairs if Path(path).is_dir()] or [str(data / "preference")]
    sets = {name: [str(out / "data" / f"{name}.jsonl")] for name in ("train", "valid")}
    if not Path(sets["valid"][0]).is_file():
        bad = Quarantine()
        talks = read_conversations(find_files(files, "--data"), "auto", bad)
        short = [talk for talk in talks if sum(len(m.content) for m in talk.messages) < MOST_CHARACTERS]
        parts = split_by_prompt(short[:MOST_TALKS], 0.06, 0)
        if not all(parts):
            raise DataError(
                f"--data {data}: {len(talks)} conversations in {', '.join(files)}, {len(short)} of them under "
                f"{MOST_CHARACTERS} characters; that leaves none to train on or to hold out: give more"
            )
        bad.write(out / "data" / "quarantine.jsonl")
        counts = {"n_read": len(talks), "n_short": len(short), "n_train": len(parts[0]), "n_valid": len(parts[1])}
        write_json(out / "data" / READ, {"files": files, **counts, "quarantined": bad.counts()})
        for name, part in zip(("train", "valid"), parts):
            lines = [json.dumps({"messages": [m._asdict() for m in talk.messages]}) for talk in part]
            write_text(out / "data" / f"{name}.jsonl", "".join(f"{line}\n" for line in lines))
    return {**sets, "second": sets["train"], "pairs": pairs}


def _sft_recipe(recipe: DemoRecipe, start: StartSection, sets: dict[str, list[str]]) -> SftRecipe:
    second = recipe.second
    return SftRecipe(
        initial=start,
        data=SftDataSection(train=tuple(sets["train"]), valid=tuple(sets["valid"])),
        train=recipe.sft,
        second=SecondSection(tuple(sets["second"]), learning_rate=second.learning_rate, epochs=second.epochs),
        answers=AnswersSection(prompts=0),  # asked of all stages at once, at the end
    )


def _dpo_recipe(recipe: DemoRecipe, start: StartSection, sets: dict[str, list[str]]) -> DpoRecipe:
    return DpoRecipe(
        initial=start,
        data=PairDataSection(train=tuple(sets["pairs"]), valid=tuple(sets.get("valid_pairs", ())), valid_fraction=0.2),
        train=recipe.dpo_train,
        dpo=recipe.dpo,
        answers=AnswersSection(prompts=0),
    )


def _own_pairs(
    out: Path, recipe: DemoRecipe, sets: dict[str, list[str]], on_progress: Callable[[str, float, float], None]
) -> dict[str, list[str]]:
    """Pairs of what the model answers after the second stage; held-out prompts make the held-out pairs."""
    files = {"pairs": out / "data" / "pairs.jsonl", "valid_pairs": out / "data" / "valid_pairs.jsonl"}
    section, model, start = recipe.pairs, None, open_start(StartSection(str(out / "sft" / "stage2")))
    for name, source, n in (("pairs", "train", section.n_train), ("valid_pairs", "more", section.n_valid)):
        if files[name].is_file():
            continue
        model = model or load_model(find_trained(start.run), device=choose_device(recipe.sft.device))
        records = make_pairs(
            model,
            start,
            _prompts(sets[source], start)[:n],
            judge,
            n_answers=section.n_answers,
            temperature=section.temperature,
            seed=recipe.sft.seed,
            on_progress=lambda done, total, name=name: on_progress(name, done, total),
        )
        write_text(files[name], "".join(f"{json.dumps(record)}\n" for record in records))
    return {name: [str(path)] for name, path in files.items()}


def _prompts(files: Sequence[str], start: Start) -> list[Prompt]:
    """Questions of the conversations in some files that have a result: answers to the others hardly ever fail."""
    found = prompts_of(read_conversations([Path(path) for path in files], "auto", Quarantine()), start.template)
    return [prompt for prompt in found if right_result(prompt.expected, "") is not None]


def _score(
    out: Path,
    recipe: DemoRecipe,
    sft: SftRecipe,
    dpo: DpoRecipe,
    preferred: Mapping[str, Any],
    on_progress: Callable[[str, float, float], None],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Figures of every stage, and what is behind them: paired differences, answers, the shortcut."""
    runs = {"base": out / "base", "sft1": out / "sft/stage1", "sft2": out / "sft/stage2", "dpo": out / "dpo"}
    start = open_start(StartSection(str(runs["sft2"])))
    limit, seed = recipe.model.seq_len, recipe.sft.seed
    n = recipe.talks.n_prompts
    talks = load_conversations(sft.data, start.template, max_tokens=limit, seed=seed)
    pairs = load_pairs(dpo.data, start.template, max_tokens=limit, seed=seed).valid
    found = {}
    for number, (stage, run) in enumerate(runs.items()):
        on_progress(stage, number, len(runs))
        model = load_model(find_trained(run), device=choose_device(recipe.sft.device))
        scored = score_rows(model, talks.valid[:n], micro_tokens=MICRO_TOKENS)
        said = ask(model, start, talks.prompts, AnswersSection(prompts=n, shown=n))
        sides = [[getattr(pair, side) for pair in pairs] for side in ("chosen", "rejected")]
        log_probs = [score_rows(model, rows, micro_tokens=MICRO_TOKENS).log_probs.numpy() for rows in sides]
        right = [right_result(item["expected"], item["answer"]) for item in said["shown"]]
        found[stage] = {
            "nats": -scored.log_probs.double().numpy(),
            "n_targets": scored.n_targets.numpy(),
            "said": said,
            "log_probs": log_probs,
            "right": [item for item in right if item is not None],
        }
    score: dict[str, Any] = {}
    for stage, item in found.items():
        won = item["log_probs"][0] > item["log_probs"][1]
        if stage == "dpo":  # as DPO counts: against its reference
            before = found["sft2"]["log_probs"]
            won = item["log_probs"][0] - before[0] > item["log_probs"][1] - before[1]
        score[stage] = {
            "assistant_loss": ratio(item["nats"], item["n_targets"])._asdict(),
            "stop_share": item["said"]["stop_share"],
            "repetition_ratio": item["said"]["repetition_ratio"],
            "pair_accuracy": share(won)._asdict(),
        }
    changes = {}
    for before, after in pairwise(STAGES):
        old, new = found[before], found[after]
        mean = float(old["n_targets"].mean())  # nats a target: sums of both over one count
        changes[f"{before} to {after}"] = {
            "assistant_loss": difference(old["nats"] / mean, new["nats"] / mean)._asdict(),
            "repetition_ratio": difference(old["said"]["repeated"], new["said"]["repeated"])._asdict(),
            "stop_share": difference(old["said"]["stopped"], new["said"]["stopped"])._asdict(),
        }
    detail = {
        "changes": changes,
        "right_results": {stage: share(item["right"])._asdict() for stage, item in found.items() if item["right"]},
        "longer_wins": longer_wins(pairs),
        "n_pairs": len(pairs),
        "n_train_pairs": preferred["samples"]["n_train"],
        "n_parameters": count_parameters(recipe.model).n_params_total,
        "answers": {stage: item["said"]["shown"][:12] for stage, item in found.items()},
        "answer_tokens": {stage: float(np.mean(item["said"]["n_tokens"])) for stage, item in found.items()},
        "runs": {stage: str(path) for stage, path in runs.items()},
    }
    return score, detail


class _Seconds:
    """How long each stage took, over all calls that it needed."""

    def __init__(self, path: Path):
        self._path = path
        self.held: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.held[stage] = self.held.get(stage, 0.0) + time.monotonic() - began
            write_json(self._path, self.held)


def _seeded(recipe: DemoRecipe, seed: int) -> DemoRecipe:
    changed = {name: dataclasses.replace(getattr(recipe, name), seed=seed) for name in ("base", "sft", "dpo_train")}
    return dataclasses.replace(recipe, **changed)


def _check_same(out: Path, *, data: Path | None, recipe: DemoRecipe) -> None:
    """Raises RecipeError where the folder holds a demo of other data, another seed or another recipe."""
    path = out / "demo.toml"
    held = {"recipe": recipe, "data": str(data or "")}
    text = to_toml(held)
    if not path.is_file():
        require_run_folder(out)
        write_text(path, text)
    elif path.read_text(encoding="utf-8") != text:
        raise RecipeError(f"--out {out} holds a demo with other settings, data or seed; give another folder")


def _finished(result: dict[str, Any], what: str) -> dict[str, Any]:
    if result["status"] == "interrupted":
        raise KeyboardInterrupt
    if result["status"] != "finished":
        raise IsoflopError(f"{what} of the demo ended as {result['status']} at step {result['step']}; see its folder")
    return result
