"""Every recipe in the repository is a test: it loads with its schema, says what it is, and runs where that is cheap."""

import dataclasses
import typing
from pathlib import Path

import pytest
from places import ROOT

import isoflop
from isoflop.alignment.demo import DemoRecipe
from isoflop.alignment.recipe import check as check_align
from isoflop.keys import KINDS, kind_of, recipe_of
from isoflop.model.accounting import count_parameters
from isoflop.optics.camera import CameraSection
from isoflop.optics.config import CoreConfig
from isoflop.optics.medium import MediumSection
from isoflop.recipe import Range, load_recipe, plain_type
from isoflop.scaling.sweep.ladder import LadderRecipe, ladder_on_tokens, plan_ladder, resolved
from isoflop.scaling.sweep.recipe import check as check_ladder
from isoflop.scaling.sweep.run import run_sweep
from isoflop.scaling.sweep.speed import SpeedModel
from isoflop.tokens.shards import TokensRecipe, build_tokens
from isoflop.training.pretrain.extend import ExtendRecipe, extension
from isoflop.training.pretrain.recipe import DataSection, PretrainRecipe, check
from isoflop.training.pretrain.workload import run_pretrain

FILES = sorted([*(ROOT / "recipes").rglob("*.toml"), *(Path(isoflop.__file__).parent / "presets").rglob("*.toml")])
SCHEMAS = {kind.replace("_", " "): recipe_of(kind) for kind in KINDS}
SMALL = {
    "data.weights": "{}",
    "train.precision": "float32",
    "train.device": "cpu",
    "train.threads": 1,
    "validate.max_tokens": 256,
}
"""What makes a recipe of a run one of seconds, with a small model and few tokens."""


def label(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def of_kind(kind: str) -> list[Path]:
    return [path for path in FILES if kind_of(path) == kind]


OWN_CHECK = {CoreConfig, CameraSection, MediumSection}
"""Sections of isoflop.optics, which imports nothing of ours; tests/optics hold their rules."""


def numbers_without_range(schema: type, seen: set[type]) -> typing.Iterator[str]:
    """Keys of a schema, and of all sections in it, that take any number at all."""
    if schema in seen or schema in OWN_CHECK:
        return
    seen.add(schema)
    for key, hint in typing.get_type_hints(schema, include_extras=True).items():
        yield from (f"{schema.__name__}.{key}" for _ in range(free_numbers(hint)))
        for part in parts_of(hint):
            if isinstance(part, type) and dataclasses.is_dataclass(part):
                yield from numbers_without_range(part, seen)


def parts_of(hint) -> set:
    return {hint, plain_type(hint)}.union(*(parts_of(part) for part in typing.get_args(hint) if part is not ...))


def free_numbers(hint) -> int:
    """How many int and float a type has that no Range is said of."""
    if typing.get_origin(hint) is typing.Annotated:
        inner, *said = typing.get_args(hint)
        return 0 if any(isinstance(mark, Range) for mark in said) else free_numbers(inner)
    if typing.get_origin(hint) is typing.Literal:
        return 0
    return (hint in (int, float)) + sum(free_numbers(part) for part in typing.get_args(hint))


def test_every_number_of_every_recipe_has_a_range():
    seen: set[type] = set()
    free = {name for schema in SCHEMAS.values() for name in numbers_without_range(schema, seen)}
    assert free == {"SourceOptions.priority"}  # of two sources the smaller one wins: any number will do
    assert len(seen) > 40


def test_every_kind_of_recipe_is_there():
    assert {kind_of(path) for path in FILES} == set(KINDS)
    assert {label(path) for path in FILES} >= {
        "pretrain/deepseek-7b",
        "pretrain/deepseek-67b",
        "sweep/cpu",
        "sweep/gpu",
    }


@pytest.mark.parametrize("path", FILES, ids=label)
def test_a_recipe_loads_with_its_schema_and_its_header_says_what_it_is_for(path):
    load_recipe(path, recipe_of(kind_of(path)))
    text = path.read_text(encoding="utf-8")
    header = [line for line in text.split("\n\n")[0].splitlines() if line.startswith("#")]
    assert header, "a recipe starts with a comment: what it is, the command, the hardware, what to expect"
    assert text.isascii() and all(len(line) <= 120 for line in text.splitlines())
    if "presets" not in path.parts:
        comments = "\n".join(line for line in text.splitlines() if line.startswith("#"))
        assert any(word in comments for word in ("isoflop ", "sh recipes/", "python recipes/")), (
            "the header has no command"
        )


@pytest.mark.parametrize("path", of_kind("pretrain"), ids=label)
def test_a_pretrain_recipe_keeps_its_rules_and_runs_when_made_small(path, tmp_path, tiny_tree):
    recipe = load_recipe(path, PretrainRecipe)
    check(recipe)
    if path.parent.name == "pretrain":  # those of studies may be small
        assert recipe.n_steps() > 1000 and count_parameters(recipe.model).n_params_total > 1e8
    small = SMALL | {f"model.{key}": value for key, value in tiny_tree["model"].items()}
    small |= {"data.tokens": f'"{tiny_tree["data"]["tokens"]}"'}
    small |= {"train.n_tokens": 128, "train.batch_tokens": 32, "train.warmup_steps": 2}
    if recipe.model.latent is not None:
        small |= {f"model.latent.{name}": 2 for name in ("d_nope", "d_rope", "d_value")}
        small |= {"model.latent.d_kv_latent": 4, "model.latent.d_q_latent": 4 if recipe.model.latent.d_q_latent else 0}
    if recipe.model.experts is not None:
        small |= {"model.n_layers": 2, "model.experts.n_dense_layers": 1, "model.experts.d_expert": 4}
        small |= {"model.experts.n_experts": 16, "model.experts.n_shared": 1}
    shrunk = load_recipe(path, PretrainRecipe, [f"{key}={value}" for key, value in small.items()])
    result = run_pretrain(shrunk, tmp_path)
    assert (result["status"], result["step"]) == ("finished", 4) and result["bits_per_byte"] > 0


@pytest.mark.parametrize("path", of_kind("extend"), ids=label)
def test_an_extend_recipe_runs_when_made_small(path, tmp_path, tiny_recipe):
    experts = {"n_layers": 2, "mtp_depth": 1, "experts": {"n_experts": 4, "n_active": 2, "d_expert": 8}}
    base = tiny_recipe(train={"n_tokens": 64}, model=experts if "deepseek-v3" in path.stem else {})
    run_pretrain(base, tmp_path / "short")
    small = SMALL | {"extend.run": f'"{tmp_path / "short"}"', "extend.seq_len": 64, "extend.factor": 0}
    small |= {"data.tokens": '""'}  # those of the run
    small |= {"train.n_tokens": 256, "train.batch_tokens": 128, "train.micro_batch": 1}
    made = extension(load_recipe(path, ExtendRecipe, [f"{key}={value}" for key, value in small.items()]))
    result = run_pretrain(made, tmp_path / "long")
    assert (result["status"], result["step"]) == ("finished", 2) and made.model.seq_len == 64


@pytest.mark.parametrize("path", of_kind("sweep"), ids=label)
def test_a_ladder_recipe_keeps_its_rules_and_gives_a_plan(path):
    recipe = load_recipe(path, LadderRecipe)
    check_ladder(recipe)
    if recipe.ladder.minutes or recipe.ladder.gpu_hours:
        speed = SpeedModel(per_step_s=2e-3, per_layer_s=5e-4, per_flop_s=1 / 45e9, per_param_s=0.0)
        planned = plan_ladder(recipe, speed)
        assert resolved(planned).ladder.minutes == 0 and len(planned.budgets) == recipe.ladder.n_budgets
    else:
        planned = plan_ladder(recipe)
    assert planned.saving >= 1.0 and len(planned.cells) >= 3
    if recipe.ladder.purpose == "isoflop":
        assert planned.saving > 1.15 if recipe.ladder.share_trunks else planned.saving == 1.0


@pytest.mark.dist
def test_the_cpu_sweep_runs_when_made_small(tmp_path, tiny_tokens):
    overrides = ["ladder.minutes=0", "ladder.budgets=[2e9]", "ladder.n_sizes=3", "ladder.size_span=2.5"]
    overrides += ["model.seq_len=16", f'data.tokens="{tiny_tokens}"', "allocation.coefficient=0.8"]
    recipe = load_recipe(ROOT / "recipes/sweep/cpu.toml", LadderRecipe, overrides)
    law = {"learning_rate": {"coefficient": 0.01}, "batch_tokens": {"coefficient": 256.0}}
    recipe = dataclasses.replace(recipe, hyper=law, validate={"max_tokens": 256})
    tied, data_sha256 = ladder_on_tokens(recipe)
    cells = list(plan_ladder(tied, data_sha256=data_sha256).cells)
    records = run_sweep(cells, tmp_path, study="cpu", workers=1)
    assert len(records) == 3 and {record.status for record in records} == {"finished"}


@pytest.mark.parametrize("path", of_kind("tokens"), ids=label)
def test_a_tokens_recipe_runs_when_made_small(path, tmp_path, tiny_corpus):
    overrides = ["tokenizer.vocab_size=300", "tokenizer.padded_vocab_size=0", "tokenizer.sample_mb=1"]
    made = build_tokens(tiny_corpus, tmp_path / "tokens", load_recipe(path, TokensRecipe, overrides))
    assert made["vocab_size"] >= 302 and {shard["split"] for shard in made["shards"]} == {"train", "valid"}


@pytest.mark.parametrize("path", [p for kind in ("sft", "dpo", "reward") for p in of_kind(kind)], ids=label)
def test_align_recipes_are_consistent(path: Path) -> None:
    check_align(load_recipe(path, recipe_of(kind_of(path))))


def test_the_align_demo_is_the_one_that_ships() -> None:
    shipped = Path(isoflop.__file__).parent / "presets" / "align_demo.toml"
    lines = [path.read_text().splitlines()[1:] for path in (shipped, ROOT / "recipes" / "align" / "demo.toml")]
    assert lines[0] == lines[1]  # but for the place of the schema
    recipe = load_recipe(shipped, DemoRecipe)
    assert count_parameters(recipe.model).n_params_total <= 3_000_000
    check(PretrainRecipe(model=recipe.model, data=DataSection(tokens="x"), train=recipe.base))
