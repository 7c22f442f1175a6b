"""What a ladder recipe may say, as frozen dataclasses, and the rules between its keys.

TOML in (isoflop.recipe.load_recipe), a `LadderRecipe` out; isoflop.scaling.sweep.ladder turns it into cells.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from isoflop.errors import RecipeError
from isoflop.launch.choose import EngineSection, check_engine
from isoflop.numerics.section import NumericsSection, check_numerics
from isoflop.recipe import (
    NotNegative,
    NotNegativeInt,
    Positive,
    PositiveInt,
    Processes,
    Range,
    Seed,
    Tree,
    WrittenAs,
    check_ranges,
    from_tree,
)
from isoflop.scaling.lr_batch_law import hyper_law
from isoflop.scaling.published import DEEPSEEK
from isoflop.scaling.sweep.family import DENSE, Family
from isoflop.training.pretrain.recipe import (
    BalanceSection,
    CheckpointSection,
    MtpSection,
    ValidateSection,
    check_device,
)
from isoflop.training.schedule import Schedule


@dataclass(frozen=True)
class LadderSection:
    """Which budgets and which sizes."""

    purpose: Literal["isoflop", "grid", "hyper"] = "isoflop"
    """isoflop: sizes around the optimum of each budget; grid: sizes x tokens_per_param; hyper: rates x batches."""
    budgets: tuple[Positive, ...] = ()
    """Training FLOPs of a cell, C = M D, increasing; or give minutes or gpu_hours instead."""
    minutes: NotNegative = 0.0
    """Wall time of the whole sweep with `workers` workers; the budgets that fit are chosen."""
    gpu_hours: NotNegative = 0.0
    """Device time of the whole sweep, summed over workers."""
    workers: Annotated[int, Range(at_least=1, at_most=1024)] = 1
    """Runs at a time on this machine; with engine.kind = "ray", see engine.max_cells."""
    overhead_s: NotNegative = 0.0
    """Seconds that a cell costs besides its steps: start, validation, saving."""
    n_budgets: PositiveInt = 4
    """How many, where they are chosen from a time."""
    budget_ratio: Annotated[float, Range(above=1)] = 3.0
    """Between neighbouring budgets, where they are chosen from a time."""
    n_sizes: Annotated[int, Range(at_least=1, at_most=100)] = 5
    """Sizes per budget; an IsoFLOP curve needs at least 3."""
    size_span: Annotated[float, Range(above=1)] = 3.5
    """Factor in M from the centre to the smallest and to the largest size (the fact sheet advises 3 to 4)."""
    cells: tuple[tuple[Positive, Positive], ...] = ()
    """More cells, each a budget and a model scale M, beside those of the purpose; isoflop next writes them."""
    sizes: tuple[Positive, ...] = ()
    """Explicit model scales M, FLOPs per token: for a grid, or instead of the centred sizes of a hyper ladder."""
    tokens_per_param: tuple[Positive, ...] = ()
    """For a grid: training tokens per parameter, all parameters that a token uses counted."""
    learning_rate_factors: tuple[Positive, ...] = (1.0,)
    """Multiples of the law's rate, each a cell."""
    batch_factors: tuple[Positive, ...] = (1.0,)
    """Multiples of the law's batch, each a cell."""
    seeds: tuple[Seed, ...] = (0,)
    """Each a cell."""
    share_trunks: bool = True
    """Cells of one size branch off one constant-rate run; needs train.schedule = constant_cooldown."""
    n_controls: NotNegativeInt = 0
    """Shared cells that are run once more alone, at their own budget's rate and batch: the price of sharing."""
    max_tokens: NotNegativeInt = 0
    """No cell may train on more; 0: no limit. Budgets chosen from a time are lowered together to respect it."""


_DEEPSEEK = DEEPSEEK.allocation.law("n") if DEEPSEEK.allocation else None
assert _DEEPSEEK is not None


@dataclass(frozen=True)
class AllocationSection:
    """Prior law M_opt = coefficient C^exponent on which sizes are centred (default: DeepSeek LLM, arXiv 2401.02954)."""

    coefficient: Positive = _DEEPSEEK[0]
    """M_opt of one FLOP."""
    exponent: Annotated[float, Range(above=0, below=1)] = _DEEPSEEK[1]
    """How fast M_opt grows with compute."""

    def scale_at(self, budget_flops: float) -> float:
        """M that is optimal at a budget."""
        return self.coefficient * budget_flops**self.exponent

    def budget_at(self, scale: float) -> float:
        """Budget at which a model scale M is optimal."""
        return (scale / self.coefficient) ** (1 / self.exponent)


@dataclass(frozen=True)
class LadderModelSection:
    """What all sizes have in common; the rest follows from the family in isoflop.scaling.sweep.shapes."""

    vocab_size: PositiveInt = 512
    """Padding included, as in the tokens folder."""
    seq_len: PositiveInt = 128
    """Longest sequence in tokens."""
    init_std: NotNegative = 0.0
    """0: the family's rule, 0.006 sqrt(4096 / d_model) below width 4096."""


@dataclass(frozen=True)
class LadderDataSection:
    """As in a pretrain recipe."""

    tokens: str = ""
    """Tokens folder, relative to the working directory."""
    tokenizer_sha256: str = ""
    """Hash that the folder's tokenizer must have; empty accepts any."""
    weights: dict[str, NotNegative] = field(default_factory=dict)
    """Share of each domain; empty keeps the natural proportions."""


@dataclass(frozen=True)
class LadderTrainSection:
    """As in a pretrain recipe, less what the ladder decides (tokens, batch, rate, seed)."""

    schedule: Schedule = "constant_cooldown"
    """Learning rate over the steps: multi_step, cosine, constant_cooldown or constant."""
    cooldown_fraction: Annotated[float, Range(above=0, below=1)] = 0.2
    """Share of the steps that constant_cooldown spends going to 0."""
    warmup_steps: NotNegativeInt = 0
    """0: 2% of the steps of this size at its own optimum, but at most 10% of the shortest run of the size."""
    max_micro_batch: NotNegativeInt = 0
    """Most sequences in a forward pass; 0: the whole batch."""
    beta1: Annotated[float, Range(at_least=0, below=1)] = 0.9
    """Of AdamW: decay of the gradient's mean."""
    beta2: Annotated[float, Range(at_least=0, below=1)] = 0.95
    """Of AdamW: decay of the squared gradient's mean."""
    eps: Positive = 1e-8
    """Of AdamW: added to the root of the squared gradient's mean."""
    weight_decay: NotNegative = 0.1
    """Of AdamW, on matrices, times the learning rate."""
    clip_norm: Positive = 1.0
    """Longest gradient, over all weights together; a longer one is scaled down."""
    optimizer: Literal["adamw", "muon"] | None = None
    """Left out: adamw; muon: see isoflop.training.muon."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of activations and products; auto is bfloat16 on a GPU and float32 on a CPU."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of each block; auto compiles long runs on a GPU."""
    cuda_graph: bool = True
    """Replay the steps of small models as one CUDA graph."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""
    threads: Processes = 0
    """CPU threads of one run; 0: one."""
    balance: Annotated[Tree, WrittenAs(BalanceSection)] = field(default_factory=dict)
    """`[train.balance]` of a pretrain recipe, for a mixture of experts; empty: its defaults."""
    mtp: Annotated[Tree, WrittenAs(MtpSection)] = field(default_factory=dict)
    """`[train.mtp]` of a pretrain recipe, for multi-token prediction; empty: its defaults."""


@dataclass(frozen=True)
class LadderRecipe:
    """A sweep to be: `isoflop ladder RECIPE`, `isoflop sweep RECIPE`."""

    study: str = "study"
    """Name of the study; records and pages carry it."""
    ladder: LadderSection = LadderSection()
    allocation: AllocationSection = AllocationSection()
    hyper: Tree = field(default_factory=lambda: {"law": "deepseek"})
    """A published law, as law = "deepseek"; or learning_rate and batch_tokens, each a number or { coefficient = ...,
    and exponents of total_flops, flops_per_token, n_params, n_tokens or n_experts }."""
    model: LadderModelSection = LadderModelSection()
    family: Family = DENSE
    """Dense or mixture of experts, MHA, GQA or latent attention: the same at every size."""
    data: LadderDataSection = LadderDataSection()
    train: LadderTrainSection = LadderTrainSection()
    validate: Annotated[Tree, WrittenAs(ValidateSection)] = field(default_factory=dict)
    """`[validate]` of a pretrain recipe, the same in every cell; empty: its defaults."""
    checkpoint: Annotated[Tree, WrittenAs(CheckpointSection)] = field(default_factory=dict)
    """`[checkpoint]` of a pretrain recipe, the same in every cell; empty: its defaults."""
    numerics: NumericsSection | None = None
    """`[numerics]` of a pretrain recipe: the same in every cell."""
    engine: EngineSection = field(default_factory=EngineSection)


def check(recipe: LadderRecipe) -> None:
    """Ranges, and rules between keys. Raises RecipeError naming the key, the value, the rule and a way out."""
    check_ranges(recipe)
    spec, train = recipe.ladder, recipe.train
    for tree, section, name in (
        (recipe.validate, ValidateSection, "validate."),
        (recipe.checkpoint, CheckpointSection, "checkpoint."),
        (train.balance, BalanceSection, "train.balance."),
        (train.mtp, MtpSection, "train.mtp."),
    ):
        from_tree(tree, section, name)
    check_family(recipe.family)
    if recipe.numerics is not None:
        check_numerics(recipe.numerics)
    if spec.purpose == "grid":
        if not spec.sizes or not spec.tokens_per_param:
            raise RecipeError(
                'ladder.purpose = "grid" needs ladder.sizes (FLOPs per token) and ladder.tokens_per_param'
            )
    elif (given := sum(map(bool, (spec.budgets, spec.minutes, spec.gpu_hours)))) > 1 or not (given or spec.cells):
        raise RecipeError("give exactly one of ladder.budgets, ladder.minutes and ladder.gpu_hours, or ladder.cells")
    if any(b <= a for a, b in zip(spec.budgets, spec.budgets[1:])):
        raise RecipeError(f"ladder.budgets = {list(spec.budgets)} must increase; sort them")
    given = len(set(spec.sizes)) if spec.sizes else spec.n_sizes
    if spec.purpose == "isoflop" and given < 3:
        raise RecipeError(
            f"ladder.n_sizes = {given}: an IsoFLOP curve needs at least 3 sizes per budget, better 5 to 7"
        )
    for name in ("learning_rate_factors", "batch_factors", "seeds", "sizes", "tokens_per_param", "cells"):
        values = getattr(spec, name)
        if len(set(values)) < len(values):
            raise RecipeError(f"ladder.{name} = {list(values)} names a value twice; each is a cell: leave one out")
    for name in ("learning_rate_factors", "batch_factors", "seeds"):
        if not getattr(spec, name):
            raise RecipeError(f"ladder.{name} = [] must name at least one; leave it out for the default")
    check_device(train.device)
    check_engine(recipe.engine, train.device)
    hyper_law(recipe.hyper)
    if not recipe.study:
        raise RecipeError('study = "" must name the study: its records and pages carry the name')
    if spec.share_trunks and train.schedule != "constant_cooldown":
        raise RecipeError(
            f'ladder.share_trunks = true needs train.schedule = "constant_cooldown", not "{train.schedule}": '
            f"only there a run does not know its length; set ladder.share_trunks = false to keep the schedule"
        )
    if spec.share_trunks and recipe.numerics and recipe.numerics.plain_share() > train.cooldown_fraction:
        raise RecipeError(
            f"numerics.until = {recipe.numerics.until:g} must be at least {1 - train.cooldown_fraction:g}, where "
            f"train.cooldown_fraction = {train.cooldown_fraction:g} begins: cells of one trunk compute alike up to "
            f"there; raise it, or set ladder.share_trunks = false"
        )
    for name, of, part in (
        ("balance", "experts", recipe.family.experts),
        ("mtp", "mtp_depth", recipe.family.mtp_depth),
    ):
        if getattr(train, name) and not part:
            raise RecipeError(f"train.{name} is set but the models have none: leave it out or set family.{of}")


def check_family(family: Family) -> None:
    """Ranges, and rules between the family's keys. Raises RecipeError naming the key, the value and the rule."""
    check_ranges(family, "family.")
    experts = family.experts
    if experts is not None and experts.n_active > experts.n_experts:
        raise RecipeError(
            f"family.experts.n_active = {experts.n_active} must be at most family.experts.n_experts = "
            f"{experts.n_experts}"
        )
    if family.latent is not None and family.heads_per_kv_head != 1:
        raise RecipeError(
            f"family.heads_per_kv_head = {family.heads_per_kv_head} must be 1 with family.latent: latent attention "
            f"makes every head's own key and value; leave one of the two out"
        )
