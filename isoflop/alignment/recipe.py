"""What the recipes of alignment may say, as frozen dataclasses, and the rules between their keys.

One recipe is one run: SFT, DPO or a reward model. It names the run it starts from, whose sizes, tokenizer and chat
template go with it; the resolved recipe in the run folder has them written out, so that a run of alignment is exported,
evaluated and started from like any other. Plain data only: this file never imports torch.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from isoflop.errors import RecipeError
from isoflop.model.config import ModelConfig
from isoflop.numerics.section import NumericsSection, check_numerics, refuse_until
from isoflop.recipe import (
    NotNegative,
    NotNegativeInt,
    Positive,
    PositiveInt,
    Processes,
    Range,
    Seed,
    Share,
    check_ranges,
)
from isoflop.training.pretrain.recipe import BalanceSection, CheckpointSection, MtpSection, check_device

MICRO_TOKENS = 16_384
"""Tokens of a forward pass where a recipe leaves them open (assumption: the activations of a small model fit)."""


@dataclass(frozen=True)
class StartSection:
    """`[initial]`: the run whose weights, sizes, tokenizer and chat template this one begins with."""

    run: str
    """Folder of isoflop train, extend, import, or of an earlier stage; of an adapter run its merged folder."""
    tokenizer: str = ""
    """Folder of the tokenizer; empty: the run's own. It must be the one that the run was trained with."""
    checkpoint: str = ""
    """Filled in: the checkpoint folder."""
    model_sha256: str = ""
    """Filled in: hash of its weights, part of what this run is."""


@dataclass(frozen=True)
class SftDataSection:
    """Conversations."""

    train: tuple[str, ...]
    """Files or folders: .json, .jsonl (also .gz, .zst), .parquet."""
    valid: tuple[str, ...] = ()
    """Held-out files; empty: a share of the prompts of `train`."""
    format: Literal["auto", "messages", "sharegpt", "alpaca", "prompt_response"] = "auto"
    """Of the records; auto tells by their keys."""
    valid_fraction: Annotated[float, Range(above=0, below=1)] = 0.02
    """Prompts held out where `valid` is empty."""
    template: str = ""
    """deepseek-llm, deepseek-v3, a Jinja file, a Hugging Face folder; empty: the tokenizer's own, or the default."""
    max_tokens: NotNegativeInt = 0
    """Longer conversations are left out and counted; 0: model.seq_len."""
    train_blank: bool = False
    """Also train the blank before an answer where it is a token of its own (before digits and Chinese characters)."""


@dataclass(frozen=True)
class PairDataSection:
    """Preference pairs."""

    train: tuple[str, ...]
    """Files or folders: .json, .jsonl (also .gz, .zst), .parquet."""
    valid: tuple[str, ...] = ()
    """Held-out files; empty: a share of the prompts of `train`."""
    format: Literal["auto", "prompt_chosen", "hh", "alpaca_eval"] = "auto"
    """Of the records; auto tells by their keys."""
    valid_fraction: Annotated[float, Range(above=0, below=1)] = 0.05
    """Prompts held out where `valid` is empty; all pairs of a prompt are on one side."""
    template: str = ""
    """deepseek-llm, deepseek-v3, a Jinja file, a Hugging Face folder; empty: the tokenizer's own, or the default."""
    max_tokens: NotNegativeInt = 0
    """Pairs with a longer side are left out and counted; 0: model.seq_len."""


@dataclass(frozen=True)
class AlignTrainSection:
    """How it is trained."""

    learning_rate: Positive
    """Peak rate. Paper: 1e-5 (SFT 7B), 5e-6 (SFT 67B and V3, DPO); adapters want about ten times as much."""
    epochs: Annotated[float, Range(above=0, at_most=1000)]
    """Passes over the data. Paper: 4 (SFT 7B), 2 (SFT 67B and V3), 1 (DPO)."""
    batch: PositiveInt
    """Conversations or pairs per optimizer step. Paper: 512 (DPO), not stated for SFT."""
    micro_tokens: NotNegativeInt = 0
    """Tokens of a forward pass, padding included; changes no result but rounding. 0: 16,384."""
    packed: bool = True
    """Several samples share a row, invisible to each other; false: one sample a row, padded."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """After a linear warm-up. Paper: cosine (DPO, SFT of V3)."""
    warmup_share: Share = 0.03
    """Of the steps; assumption, the paper states no length."""
    final_share: Share = 0.1
    """Where the cosine ends, as a share of the peak (V3: 0.2)."""
    beta1: Annotated[float, Range(at_least=0, below=1)] = 0.9
    """Of AdamW: memory of the gradient."""
    beta2: Annotated[float, Range(at_least=0, below=1)] = 0.95
    """Of AdamW: memory of the squared gradient."""
    eps: Positive = 1e-8
    """Of AdamW; PyTorch's default."""
    weight_decay: NotNegative = 0.1
    """Of AdamW, for matrices."""
    clip_norm: Positive = 1.0
    """Largest norm of a step's gradient."""
    seed: Seed = 0
    """Of the order of the data, of adapters and of a reward head."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of activations and products; auto is bfloat16 on a GPU and float32 on a CPU."""
    compile: bool = False
    """torch.compile of each block."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""
    threads: Processes = 0
    """CPU threads; 0 leaves PyTorch's choice. Results are bitwise repeatable at one thread count."""
    balance: BalanceSection | None = None
    """Of a mixture of experts; left out: V3's values. Losses are taken per sample."""
    mtp: MtpSection | None = None
    """Of multi-token prediction; left out: V3's first weight. SFT only."""

    def n_steps(self, n_samples: int) -> int:
        """Optimizer steps: a step never mixes two epochs, so an epoch's last one may be smaller."""
        per_epoch = -(-n_samples // self.batch)
        return max(1, round(self.epochs * per_epoch))

    def rate(self, step: int, n_steps: int) -> float:
        """Learning rate of optimizer step `step`, from 0."""
        n_warmup = round(self.warmup_share * n_steps)
        ramp = min(1.0, (step + 1) / n_warmup) if n_warmup else 1.0
        if self.schedule == "constant":
            return self.learning_rate * ramp
        fall = 0.5 * (1 + math.cos(math.pi * step / n_steps))
        return self.learning_rate * ramp * (self.final_share + (1 - self.final_share) * fall)


@dataclass(frozen=True)
class AdapterSection:
    """The `[adapter]` section of a recipe: train narrow matrices beside a frozen base (LoRA)."""

    rank: PositiveInt = 16
    """Width of the two matrices, r."""
    alpha: Annotated[float, Range(above=0)] = 32.0
    """Their product counts alpha / rank (rslora: alpha / sqrt(rank))."""
    targets: tuple[str, ...] = ("all",)
    """Layers of the blocks by their last name (qkv, out, gate_up, down; latent attention: q_down, kv_up, ...), or all.
    Routed experts, embedding and head are never adapted."""
    rslora: bool = False
    """Rank-stabilised scale."""
    merge: bool = True
    """At the end, also write RUN/merged: a run folder of the whole model, to export or to go on from."""

    @property
    def scale(self) -> float:
        """s of y = W x + s B A x."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class AnswersSection:
    """Greedy answers to held-out prompts, before and after: who stops, who loops."""

    prompts: NotNegativeInt = 200
    """Prompts asked, at most; 0: none."""
    max_new_tokens: PositiveInt = 256
    """Limit of an answer. Paper: not stated."""
    shown: NotNegativeInt = 8
    """Of them on the page of the run."""


@dataclass(frozen=True)
class AlignValidateSection:
    """When held-out data are scored during the run; the end always is."""

    every_steps: NotNegativeInt = 0
    """Optimizer steps; 0: only at the end."""
    max_samples: NotNegativeInt = 0
    """Conversations or pairs; 0: all held-out ones."""


@dataclass(frozen=True)
class SecondSection:
    """The second stage of SFT: from the first one's result, on conversational data only (paper: 7B)."""

    train: tuple[str, ...]
    """Files or folders, in place of data.train."""
    learning_rate: NotNegative = 0.0
    """0: as in the first stage."""
    epochs: NotNegative = 0.0
    """0: as in the first stage."""


@dataclass(frozen=True)
class SftRecipe:
    """What `isoflop sft` reads."""

    initial: StartSection
    """Where it starts."""
    data: SftDataSection
    """What it is trained on."""
    train: AlignTrainSection
    """How it is trained."""
    adapter: AdapterSection | None = None
    """Train adapters beside a frozen base; left out: all weights."""
    answers: AnswersSection = field(default_factory=AnswersSection)
    """What is asked before and after."""
    validate: AlignValidateSection = field(default_factory=AlignValidateSection)
    """When held-out data are scored."""
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    """When the run is saved."""
    second: SecondSection | None = None
    """A second stage on other data; left out: one stage."""
    numerics: NumericsSection | None = None
    """Number formats of the layers; left out: all compute in train.precision."""
    model: ModelConfig | None = None
    """Filled in: sizes of the model, those of the run it starts from."""


@dataclass(frozen=True)
class DpoSection:
    """`[dpo]`: the loss."""

    beta: Positive = 0.1
    """Strength of the tie to the reference. Paper: not stated, 0.1 is usual; sigmoid_norm wants about 5."""
    loss: Literal["sigmoid", "robust", "sigmoid_norm", "ipo"] = "sigmoid"
    """sigmoid: DPO (with label_smoothing: cDPO); sigmoid_norm: log-ratios per token (losses.py)."""
    label_smoothing: Annotated[float, Range(at_least=0, below=0.5)] = 0.0
    """Share of labels that may be wrong, for sigmoid and robust."""
    reference: Literal["cached", "live"] = "cached"
    """cached: log-probabilities of the reference are computed once and kept in the run folder; live: every step."""


@dataclass(frozen=True)
class DpoRecipe:
    """What `isoflop dpo` reads."""

    initial: StartSection
    """Where it starts."""
    data: PairDataSection
    """What it is trained on."""
    train: AlignTrainSection
    """How it is trained."""
    dpo: DpoSection = field(default_factory=DpoSection)
    """The loss."""
    adapter: AdapterSection | None = None
    """Train adapters beside a frozen base; left out: all weights."""
    answers: AnswersSection = field(default_factory=AnswersSection)
    """What is asked before and after."""
    validate: AlignValidateSection = field(default_factory=AlignValidateSection)
    """When held-out data are scored."""
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    """When the run is saved."""
    numerics: NumericsSection | None = None
    """Number formats of the layers; left out: all compute in train.precision."""
    model: ModelConfig | None = None
    """Filled in: sizes of the model, those of the run it starts from."""


@dataclass(frozen=True)
class RewardSection:
    """`[reward]`: the loss."""

    margin: NotNegative = 0.0
    """By how much the preferred score should be higher."""
    centre: NotNegative = 0.0
    """Weight of the mean squared sum of both scores, which keeps scores around 0 (usual: 0.01)."""


@dataclass(frozen=True)
class RewardRecipe:
    """What `isoflop reward` reads."""

    initial: StartSection
    """Where it starts."""
    data: PairDataSection
    """What it is trained on."""
    train: AlignTrainSection
    """How it is trained."""
    reward: RewardSection = field(default_factory=RewardSection)
    """The loss."""
    adapter: AdapterSection | None = None
    """Train adapters beside a frozen base; left out: all weights."""
    validate: AlignValidateSection = field(default_factory=AlignValidateSection)
    """When held-out data are scored."""
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    """When the run is saved."""
    numerics: NumericsSection | None = None
    """Number formats of the layers; left out: all compute in train.precision."""
    model: ModelConfig | None = None
    """Filled in: sizes of the model, those of the run it starts from."""


Recipe = SftRecipe | DpoRecipe | RewardRecipe


def check(recipe: Recipe) -> None:
    """Ranges, and rules between keys. Raises RecipeError naming the key, the value, the rule and a way out."""
    check_ranges(recipe)
    check_device(recipe.train.device)
    if not recipe.data.train:
        raise RecipeError("data.train = [] must name files or folders of conversations or pairs")
    if recipe.numerics is not None:
        check_numerics(recipe.numerics)
        refuse_until(recipe.numerics)
    balance = recipe.train.balance
    if balance is not None and (balance.device_loss or balance.communication_loss):
        raise RecipeError(
            "train.balance: device_loss and communication_loss are taken over whole sequences and not over samples; "
            "set both to 0, sequence_loss and expert_loss stay"
        )
    if not isinstance(recipe, SftRecipe) and recipe.train.mtp is not None:
        raise RecipeError("train.mtp: prediction modules are trained by SFT only; leave the section out")
    if isinstance(recipe, DpoRecipe) and recipe.dpo.label_smoothing and recipe.dpo.loss in ("ipo", "sigmoid_norm"):
        raise RecipeError(
            f"dpo.label_smoothing = {recipe.dpo.label_smoothing} has no meaning for dpo.loss = {recipe.dpo.loss!r}; "
            'set it to 0, or loss = "sigmoid" or "robust"'
        )


def identity_tree(tree: dict[str, Any]) -> dict[str, Any]:
    """What of a resolved recipe decides the numbers of the run: not where it runs, nor how often it is saved."""
    where = ("device", "micro_tokens", "packed", "compile", "threads")
    train = {key: value for key, value in tree["train"].items() if key not in where}
    data = {key: value for key, value in tree["data"].items() if key in ("format", "max_tokens")}
    adapter = {key: value for key, value in tree.get("adapter", {}).items() if key != "merge"}
    kept = {key: tree[key] for key in ("dpo", "reward", "numerics", "model") if key in tree}
    if "dpo" in kept:
        kept["dpo"] = {key: value for key, value in kept["dpo"].items() if key != "reference"}
    return {**kept, "train": train, "data": data, "adapter": adapter, "initial": tree["initial"]["model_sha256"]}
