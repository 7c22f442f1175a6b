"""A reward model: the model's body with one output, read at the last token of a conversation; trained on pairs.

    loss = -log sigmoid(r(chosen) - r(rejected) - margin)      (Bradley-Terry)

Only differences are learnt, so a score means something beside another one of the same prompt; `reward.centre` keeps
their mean near 0. Such models like long answers: the accuracy of "longer wins" is reported beside their own.
Source: arXiv 2203.02155, section 3.5; DeepSeek-V3 (arXiv 2412.19437, section 5.2.1).

Shapes: B rows, T tokens, S samples, P pairs, D d_model.
"""

import dataclasses
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.alignment.adapters import add_adapters
from isoflop.alignment.build import begin_folder, micro_tokens, optimizer_of, plan_of, prepare, saving_of
from isoflop.alignment.dpo import Group, PairFigures, Pairs, longer_wins
from isoflop.alignment.losses import Sides, reward_losses
from isoflop.alignment.packing import Packed, pack, with_last_read
from isoflop.alignment.page import write_page
from isoflop.alignment.recipe import AdapterSection, RewardRecipe, RewardSection, StartSection, check
from isoflop.alignment.samples import digest, load_pairs
from isoflop.alignment.scoring import in_groups, share
from isoflop.alignment.sft import check_same, limit_of, require_stop, trajectory_of
from isoflop.alignment.start import open_start, resolved_start
from isoflop.errors import CheckpointError
from isoflop.model.accounting import flops_per_token
from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.recipe import from_tree
from isoflop.tokens.chat import ChatTemplate, Message
from isoflop.training import checkpoint
from isoflop.training.monitor import Progress
from isoflop.training.run import Built, Job, run
from isoflop.training.step_hooks import StepHook
from isoflop.training.workload import Workload

HEAD_STD = 0.02  # assumption: scores begin near 0 beside hidden states of size 1
FIGURES = ("accuracy", "margin", "mean_reward")


class RewardModel(nn.Module):
    """Body and one output."""

    def __init__(self, transformer: Transformer):
        super().__init__()
        self.transformer = transformer
        del transformer.head  # no logits; prediction modules read it
        transformer.drop_mtp()
        device = transformer.embedding.weight.device
        self.score = nn.Parameter(torch.zeros(1, transformer.config.d_model, device=device))

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the output's weights; the body keeps its own."""
        with torch.no_grad():
            drawn = torch.empty(self.score.shape, device=generator.device)
            self.score.copy_(drawn.normal_(0.0, HEAD_STD, generator=generator))

    def forward(self, packed: Packed, n_samples: int) -> Tensor:
        """Scores of the samples, float32 [S]: at the one target of each, its last token."""
        hidden_BTD = self.transformer(packed.tokens_BT, documents_BT=packed.samples_BT)
        last_BT = packed.targets_BT >= 0
        wide = torch.promote_types(hidden_BTD.dtype, torch.float32)  # differences of scores are small
        scores_S = hidden_BTD[last_BT].to(wide) @ self.score[0].to(wide)
        order = torch.zeros(n_samples, dtype=wide, device=scores_S.device)
        return order.index_copy(0, packed.samples_BT[last_BT], scores_S)


class Reward(Workload):
    """Pairs as batches, the loss of their scores, and the share that is ranked right on held-out ones."""

    def __init__(
        self,
        train: Pairs,
        valid: Pairs,
        section: RewardSection,
        device: torch.device,
        hooks: Sequence[StepHook] = (),
    ):
        self._train, self._valid, self._section = train, valid, section
        self._figures = PairFigures(FIGURES, device)
        self.hooks = [self._figures, *hooks]
        self.tokens_per_step = train.tokens_per_step

    def batch(self, step: int, rank: int = 0, world: int = 1) -> list[Group]:
        return self._train.groups(step, rank, world, last_read=True)

    def divisor(self, micro_batches: list[Group]) -> Tensor:
        return micro_batches[0][4]

    def loss_sum(self, model: nn.Module, micro_batch: Group) -> Tensor:
        scores = _scores(model, micro_batch)
        n = len(scores.chosen_P)
        wins_P = (scores.chosen_P > scores.rejected_P).float()
        both_P = (scores.chosen_P + scores.rejected_P) / 2
        self._figures.add([wins_P.sum(), (scores.chosen_P - scores.rejected_P).sum(), both_P.sum()], [n, n, n])
        return reward_losses(scores, margin=self._section.margin, centre=self._section.centre).sum()

    @torch.no_grad()
    def validate(self, model: nn.Module) -> dict[str, object]:
        model.eval()
        device = next(model.parameters()).device
        groups = self._valid.group(range(len(self._valid.pairs)), last_read=True)
        found = [_scores(model, tuple(part.to(device) for part in group)) for group in groups]
        model.train()
        scores = Sides(*(torch.cat(side).cpu() for side in zip(*found, strict=True)))
        won = share((scores.chosen_P > scores.rejected_P).numpy())
        loss_P = reward_losses(scores, margin=self._section.margin, centre=self._section.centre)
        return {
            "loss_nats": float(loss_P.double().mean()),
            "accuracy": won.value,
            "low": won.low,
            "high": won.high,
            "n": won.n,
            "margin": float((scores.chosen_P - scores.rejected_P).double().mean()),
            "longer_wins": longer_wins(self._valid.pairs),
        }


class RewardJob(Job):
    """A reward recipe as a run."""

    def __init__(self, recipe: RewardRecipe, run_dir: Path):
        """Raises RecipeError, DataError and CheckpointError for what cannot be trained on or from."""
        check(recipe)
        self._run_dir = run_dir
        self.start = open_start(recipe.initial, recipe.data.template)
        require_stop(self.start)
        config, t = self.start.config, recipe.train
        self.samples = load_pairs(
            recipe.data,
            self.start.template,
            max_tokens=limit_of(recipe.data.max_tokens, config.seq_len),
            seed=t.seed,
        )
        self.recipe = dataclasses.replace(recipe, initial=resolved_start(recipe.initial, self.start), model=config)
        n_steps = t.n_steps(len(self.samples.train))
        trajectory = trajectory_of(self.recipe, self.start, digest(self.samples.train))
        self.identity = {"trajectory": trajectory, "n_steps": n_steps, "base_sha256": self.start.model_sha256}
        self.plan, self.saving = plan_of(recipe, n_steps), saving_of(recipe)

    def build(self) -> Built:
        recipe, start, t = self.recipe, self.start, self.recipe.train
        body, dtype, hooks = prepare(recipe, start)
        begin_folder(self._run_dir, recipe, start, self.samples)
        model = RewardModel(body)
        options: dict[str, Any] = {
            "seq_len": start.config.seq_len,
            "batch": t.batch,
            "seed": t.seed,
            "micro_tokens": micro_tokens(recipe),
        }
        held = self.samples.valid[: recipe.validate.max_samples or None]
        train, valid = Pairs(self.samples.train, **options), Pairs(held, **options)
        workload = Reward(train, valid, recipe.reward, model.score.device, hooks)
        return Built(workload, model, optimizer_of(recipe, model), flops_per_token(start.config, "exact"), dtype)

    def initialise(self, model: nn.Module) -> None:
        assert isinstance(model, RewardModel)
        model.initialise(torch.Generator().manual_seed(self.recipe.train.seed))

    def check_continues(self, state: dict[str, Any], found: Path) -> None:
        check_same(self.identity, state, found)

    def result(self, figures: dict[str, Any], validation: dict[str, object], built: Built) -> dict[str, Any]:
        result = {**self.identity, **figures, "samples": self.samples.summary, "template": self.start.template.name}
        if not validation:
            return result
        result |= {"loss_nats": validation["loss_nats"], "accuracy": validation["accuracy"], "validation": validation}
        write_page(self._run_dir, "Reward model", self.recipe, result, {})
        return result


def run_reward(
    recipe: RewardRecipe,
    run_dir: Path,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train a reward model as the recipe says; resumes what it finds.

    Raises:
        RecipeError: bad values.
        DataError: data or a tokenizer that cannot be used.
        CheckpointError: a base that cannot be started from, damaged checkpoints, or a full disk.
    """
    return run(RewardJob(recipe, run_dir), run_dir, on_progress=on_progress, should_stop=should_stop)


def load_reward_model(run_dir: Path, *, device: torch.device | None = None) -> RewardModel:
    """The trained model of a run of `isoflop reward`, ready to score. Raises CheckpointError."""
    recipe = run_dir / "recipe.toml"
    tree = tomllib.loads(recipe.read_text(encoding="utf-8")) if recipe.is_file() else {}
    found = checkpoint.newest(run_dir / "checkpoints")
    if "reward" not in tree or found is None:
        raise CheckpointError(f"{run_dir} holds no trained reward model; give the folder of isoflop reward")
    body = Transformer(from_tree(tree["model"], ModelConfig, "model.")).to(device or torch.device("cpu"))
    if "adapter" in tree:
        start = open_start(from_tree(tree["initial"], StartSection, "initial."))
        checkpoint.load(start.checkpoint, body, None)
        add_adapters(body, from_tree(tree["adapter"], AdapterSection, "adapter."), torch.Generator().manual_seed(0))
    model = RewardModel(body)
    checkpoint.load(found, model, None)
    return model.eval()


@torch.no_grad()
def score_conversations(
    model: RewardModel, template: ChatTemplate, conversations: Sequence[Sequence[Message]], *, n_tokens: int = 16_384
) -> list[float]:
    """A score for each conversation, which ends with the answer to be judged."""
    rows = with_last_read(template.rows(conversations))
    seq_len, device = model.transformer.config.seq_len, model.score.device
    scores: list[float] = []
    for group in in_groups([len(row.ids) for row in rows], n_tokens, seq_len):
        packed = pack([rows[index] for index in group], seq_len=seq_len)
        scores += model(Packed(*(part.to(device) for part in packed)), len(group)).tolist()
    return scores


def _scores(model: nn.Module, group: tuple[Tensor, ...]) -> Sides:
    assert isinstance(model, RewardModel)
    return Sides(*model(Packed(*group[:3]), 2 * len(group[3])).view(-1, 2).unbind(1))
