"""What a pretrain recipe may say, as frozen dataclasses, and the rules between its keys.

TOML in (isoflop.recipe.load_recipe), a `PretrainRecipe` out; workload.py runs it. Plain data only: this
file never imports torch, so that ladders and plans can read it.
"""

import dataclasses
import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from isoflop.errors import RecipeError
from isoflop.model.config import ExpertConfig, ModelConfig
from isoflop.numerics.section import NumericsSection, check_numerics, numerics_text
from isoflop.recipe import NotNegative, NotNegativeInt, Positive, PositiveInt, Processes, Range, Seed, check_ranges
from isoflop.training.forecast import usual_gain
from isoflop.training.schedule import Schedule, factor

WHERE_IT_RUNS = ("device", "micro_batch", "compile", "cuda_graph", "threads")
"""Keys of [train] that say where a run is computed, not what: no hash of a run or a cell depends on them."""


@dataclass(frozen=True)
class CurriculumStage:
    """One `[[data.curriculum]]` entry: from here on, these shares."""

    from_share: Annotated[float, Range(at_least=0, below=1)]
    """Of the training tokens at which the stage begins; 0 for the first, below 1."""
    weights: dict[str, NotNegative]
    """Share of each domain."""


@dataclass(frozen=True)
class DataSection:
    """What is read."""

    tokens: str = ""
    """Tokens folder, relative to the working directory."""
    tokenizer_sha256: str = ""
    """Hash that the folder's tokenizer must have; empty accepts any."""
    weights: dict[str, NotNegative] = field(default_factory=dict)
    """Share of each domain; empty keeps the natural proportions."""
    curriculum: tuple[CurriculumStage, ...] = ()
    """Shares that change during the run, instead of weights; `mixture.toml` of a corpus has them."""
    cross_document: bool = True
    """Documents packed into one window see each other, as in published pre-training; false masks them."""


@dataclass(frozen=True)
class InitialSection:
    """Where the weights of step 0 come from, if they are not drawn."""

    checkpoint: str
    """Checkpoint folder of another run; only its weights are taken."""
    model_sha256: str
    """Hash of the weights file; part of what this run is."""


@dataclass(frozen=True)
class BalanceSection:
    """How the load of experts is kept even; nothing here matters to a model without experts."""

    bias_speed: NotNegative = 0.001
    """Step of the selection bias after every optimizer step, gamma of V3; 0 leaves the biases where they are."""
    bias_until_tokens: NotNegativeInt = 0
    """Training tokens after which the biases rest (V3: 14.3e12 of 14.8e12); 0: never."""
    sequence_loss: NotNegative = 1e-4
    """Weight of V3's complementary loss: counts over the experts that affinity alone would choose."""
    expert_loss: NotNegative = 0.0
    """Weight of the expert-level loss of V2 and DeepSeekMoE: counts over the experts that were chosen."""
    device_loss: NotNegative = 0.0
    """Weight of V2's device-level loss: groups of experts on `n_devices` devices."""
    communication_loss: NotNegative = 0.0
    """Weight of V2's communication loss: how many tokens each device is sent."""
    n_devices: PositiveInt = 1
    """Devices that the experts are spread over, for the two losses above; divides n_experts."""
    report_every: NotNegativeInt = 10
    """Optimizer steps between load statistics in metrics.jsonl; 0: none."""


@dataclass(frozen=True)
class MtpSection:
    """Weight of the multi-token prediction loss; nothing here matters to a model without such modules."""

    weight: NotNegative = 0.3
    """Lambda: the mean over the modules' losses counts this much (V3: 0.3, later 0.1)."""
    later_weight: NotNegative = 0.1
    """Lambda from `later_from_tokens` on."""
    later_from_tokens: NotNegativeInt = 0
    """Training tokens after which the weight changes (V3: 10e12 of 14.8e12); 0: never."""


@dataclass(frozen=True)
class TrainSection:
    """How it is trained."""

    n_tokens: Annotated[int, Range(at_least=1, at_most=10**16)]
    """Training tokens, all passes."""
    batch_tokens: PositiveInt
    """Tokens per optimizer step, a multiple of model.seq_len."""
    learning_rate: Positive
    """Peak rate."""
    micro_batch: NotNegativeInt = 0
    """Sequences per forward pass; 0: the whole batch."""
    schedule: Schedule = "multi_step"
    """Learning rate over the steps: multi_step (paper), cosine, constant_cooldown or constant."""
    warmup_steps: NotNegativeInt = 2000
    """Linear from 0 (paper: 2000)."""
    cooldown_fraction: Annotated[float, Range(above=0, at_most=1)] = 0.2
    """Share of the steps that constant_cooldown spends going to 0."""
    beta1: Annotated[float, Range(at_least=0, below=1)] = 0.9
    """Of AdamW: decay of the gradient's mean (paper: 0.9)."""
    beta2: Annotated[float, Range(at_least=0, below=1)] = 0.95
    """Of AdamW: decay of the squared gradient's mean (paper: 0.95)."""
    eps: Positive = 1e-8
    """Not stated in the paper; PyTorch's default."""
    weight_decay: NotNegative = 0.1
    """Of AdamW, on matrices, times the learning rate (paper: 0.1)."""
    clip_norm: Positive = 1.0
    """Longest gradient, over all weights together; a longer one is scaled down (paper: 1)."""
    optimizer: Literal["adamw", "muon"] | None = None
    """Left out: adamw. muon: for the matrices of the blocks, at the same rate and decay (isoflop.training.muon)."""
    seed: Seed = 0
    """Of the weights and the order of the data."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of activations and products; auto is bfloat16 on a GPU and float32 on a CPU."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of each block; auto compiles long runs on a GPU that our own kernels do not cover (float32)."""
    cuda_graph: bool = True
    """Replay optimizer steps as CUDA graphs where they can be captured; ten times faster where launches dominate."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 ..."""
    threads: Processes = 0
    """CPU threads; 0 leaves PyTorch's choice. Results are bitwise repeatable at one thread count."""

    balance: BalanceSection | None = None
    """Of a mixture of experts; left out: V3's values."""
    mtp: MtpSection | None = None
    """Of multi-token prediction; left out: V3's first weight."""


@dataclass(frozen=True)
class ValidateSection:
    """When bits per byte are measured during the run; the end always is."""

    every_steps: NotNegativeInt = 0
    """Optimizer steps between measurements; 0: only at the end."""
    max_tokens: NotNegativeInt = 0
    """Per domain; 0: every held-out token."""


@dataclass(frozen=True)
class CheckpointSection:
    """When the run is saved; the end always is."""

    every_steps: NotNegativeInt = 0
    """Optimizer steps between checkpoints; 0: by time alone."""
    every_s: NotNegative = 300.0
    """Seconds between checkpoints; 0: by steps alone."""
    keep: PositiveInt = 2
    """Better 2: one may be damaged."""


@dataclass(frozen=True)
class PretrainRecipe:
    """One pre-training run."""

    model: ModelConfig
    data: DataSection
    train: TrainSection
    validate: ValidateSection = ValidateSection()
    checkpoint: CheckpointSection = CheckpointSection()
    numerics: NumericsSection | None = None
    """Number formats of the layers; left out: all compute in train.precision."""
    initial: InitialSection | None = None
    """Trained weights to start from, as `isoflop extend` does."""
    prediction: dict[str, Any] | None = None
    """What `isoflop plan` expects of this run, with its time stamp."""

    def n_steps(self) -> int:
        """Optimizer steps; tokens that don't fill a step are left out."""
        return self.train.n_tokens // self.train.batch_tokens

    def plain_from(self) -> int | None:
        """First step after `numerics.until`; None where the formats, if any, stay."""
        return None if self.numerics is None else self.numerics.plain_from(self.n_steps())

    def formats(self) -> dict[str, Any]:
        """What a dry run says of `[numerics]`: which products, and the step from which they are plain again."""
        first = self.plain_from()
        text = {"numerics": numerics_text(self.numerics)} if self.numerics is not None else {}
        return text if first is None else {**text, "plain_from_step": first}

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step `step`, from 0."""
        t = self.train
        return t.learning_rate * factor(
            step,
            n_steps=self.n_steps(),
            warmup_steps=t.warmup_steps,
            schedule=t.schedule,
            cooldown_fraction=t.cooldown_fraction,
        )

    def usual_gain(self) -> float:
        """Nats that the fall of the rate usually gains in the end."""
        return usual_gain(self.model.d_model, self.train.learning_rate, self.train.batch_tokens, self.n_steps())

    def computed_as(self) -> dict[str, Any]:
        """What `isoflop.model.accounting` needs to know of the formats to forecast memory, on a GPU unless float32."""
        if self.train.precision == "float32":
            return {"precision": "fp32"}
        plain = self.model.experts is not None or self.plain_from() is not None  # at the end, where more is kept
        rules = self.numerics.rules if self.numerics is not None and not plain else ()
        blocks = [rule.format for rule in rules if rule.modules in ("*", "blocks.*")]
        return {"precision": "bf16", "step": "fp8" if blocks and blocks[-1].startswith("fp8") else None}


def check(recipe: PretrainRecipe) -> None:
    """Ranges, and rules between keys. Raises RecipeError naming the key, the value, the rule and a way out."""
    check_ranges(recipe)
    t, seq_len = recipe.train, recipe.model.seq_len
    if t.batch_tokens % seq_len:
        low = max(1, t.batch_tokens // seq_len) * seq_len
        raise RecipeError(
            f"train.batch_tokens = {t.batch_tokens} must be a multiple of model.seq_len = {seq_len}; "
            f"nearest: {low} or {low + seq_len}"
        )
    if t.micro_batch and (t.batch_tokens // seq_len) % t.micro_batch:
        raise RecipeError(
            f"train.micro_batch = {t.micro_batch} must divide the {t.batch_tokens // seq_len} sequences of a batch"
        )
    if recipe.n_steps() < 1:
        raise RecipeError(
            f"train.n_tokens = {t.n_tokens} is less than one optimizer step of train.batch_tokens = {t.batch_tokens}; "
            f"raise the budget or lower the batch"
        )
    check_device(t.device)
    if recipe.prediction:
        check_prediction(recipe.prediction)
    for weights in (recipe.data.weights, *(stage.weights for stage in recipe.data.curriculum)):
        if weights and not 0 < sum(weights.values()) < math.inf:
            raise RecipeError(f"data.weights = {weights} must have a sum above 0; leave them out for natural shares")
    if t.balance is not None:
        check_balance(t.balance, recipe.model.experts)
    if t.mtp is not None:
        check_mtp(t.mtp, recipe.model.mtp_depth)
    if recipe.numerics is not None:
        check_numerics(recipe.numerics)
    if not recipe.data.tokens:
        raise RecipeError('data.tokens = "" must name a tokens folder; build one with isoflop tokens RECIPE')
    starts = [stage.from_share for stage in recipe.data.curriculum]
    if starts and (starts[0] != 0 or starts != sorted(set(starts)) or not 0 <= starts[-1] < 1):
        raise RecipeError(
            f"data.curriculum: from_share = {starts} must begin with 0 and rise below 1, as in [0.0, 0.9]"
        )
    if starts and recipe.data.weights:
        raise RecipeError(f"data.weights = {recipe.data.weights} and data.curriculum: give one of them, not both")


def check_prediction(prediction: dict[str, Any]) -> None:
    """Whether what `isoflop plan` predicted can be scored: finite numbers, the center inside. Raises RecipeError."""
    numbers = ("low", "bits_per_byte", "high", "level", "target_flops", "largest_sweep_flops")
    found = {key: prediction[key] for key in (*numbers, "largest_sweep_flops_exact") if key in prediction}
    for key, value in found.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise RecipeError(f"prediction.{key} = {value!r} must be a finite number; plan again")
    ordered = [found[key] for key in ("low", "bits_per_byte", "high") if key in found]
    if ordered != sorted(ordered):
        raise RecipeError(f"prediction: low, bits_per_byte, high = {ordered} must rise; plan again")
    if (curve := prediction.get("curve")) is not None:
        found = curve if isinstance(curve, dict) else {}
        lists = [found.get(key) for key in ("steps", "of_final")] + [found.get("final_nats", [])]
        steps, of_final, final_nats = (value if isinstance(value, (list, tuple)) else [None] for value in lists)
        numbers = [*steps, *of_final, *final_nats, found.get("gain_nats")]
        if len(steps) != len(of_final) or not steps or not all(isinstance(n, (int, float)) for n in numbers):
            raise RecipeError("prediction.curve must hold steps, of_final and gain_nats, numbers only; plan again")


def check_device(name: str, key: str = "train.device") -> None:
    """Whether a name can be one of a device, there or not. Raises RecipeError naming `key`."""
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", name):
        raise RecipeError(f"{key} = {name!r} is not a device; use auto, cpu, cuda or cuda:1")


def check_balance(section: BalanceSection, experts: ExpertConfig | None) -> None:
    """Raises RecipeError where a value makes no sense for these experts, or there are none."""
    if experts is None:
        raise RecipeError("train.balance is set but the model has no experts: leave it out or add [model.experts]")
    check_ranges(section, "train.balance.")
    if experts.n_experts % section.n_devices:
        raise RecipeError(
            f"train.balance.n_devices = {section.n_devices} must divide model.experts.n_experts = {experts.n_experts}"
        )
    if section.n_devices == 1 and (section.device_loss or section.communication_loss):
        raise RecipeError(
            "train.balance.n_devices = 1 must be at least 2 for device_loss and communication_loss: "
            "one device is always balanced; the paper's value is 8"
        )


def check_mtp(section: MtpSection, depth: int) -> None:
    """Raises RecipeError for values below 0, and where there are no modules."""
    if not depth:
        raise RecipeError("train.mtp is set but model.mtp_depth = 0: leave it out or set a depth of at least 1")
    check_ranges(section, "train.mtp.")


def with_train(recipe: PretrainRecipe, **changes: Any) -> PretrainRecipe:
    """A copy with other values in [train]."""
    return dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, **changes))
