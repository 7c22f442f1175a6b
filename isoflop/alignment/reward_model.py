"""A reward model: the model's body with one output, read at the last token of a conversation; trained on pairs.

    loss = -log sigmoid(r(chosen) - r(rejected) - margin)      (Bradley-Terry)

Only differences are learnt, so a score means something beside another one of the same prompt; `reward.centre` keeps
their mean near 0. Such models like long answers: the accuracy of "longer wins" is reported beside their own.
Source: arXiv 2203.02155, section 3.5; DeepSeek-V3 (arXiv 2412.19437, section 5.2.1).

Shapes: B rows, T tokens, S samples, P pairs, D d_model.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.alignment.adapters import add_adapters
from isoflop.alignment.job import AlignJob
from isoflop.alignment.losses import Sides, reward_losses
from isoflop.alignment.packing import Packed, pack, with_last_read
from isoflop.alignment.pairs import Group, Pairs, PairWorkload
from isoflop.alignment.recipe import AdapterSection, RewardRecipe, RewardSection, StartSection
from isoflop.alignment.scoring import in_groups
from isoflop.alignment.start import open_start
from isoflop.errors import CheckpointError
from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.recipe import from_tree, read_tree
from isoflop.tokens.chat import ChatTemplate, Message
from isoflop.training import checkpoint
from isoflop.training.monitor import Progress
from isoflop.training.run import run
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


class Reward(PairWorkload):
    """Pairs as batches, the loss of their scores, and the share that is ranked right on held-out ones."""

    def __init__(
        self, train: Pairs, valid: Pairs, section: RewardSection, device: torch.device, hooks: Sequence[StepHook] = ()
    ):
        super().__init__(train, valid, FIGURES, device, last_read=True, hooks=hooks)
        self._section = section

    def loss_sum(self, model: nn.Module, micro_batch: Group) -> Tensor:
        scores = _scores(model, micro_batch)
        n = len(scores.chosen_P)
        wins_P = (scores.chosen_P > scores.rejected_P).float()
        both_P = (scores.chosen_P + scores.rejected_P) / 2
        self._figures.add([wins_P.sum(), (scores.chosen_P - scores.rejected_P).sum(), both_P.sum()], [n, n, n])
        return self._losses(scores).sum()

    def judged(self, model: nn.Module, group: Group) -> tuple[Tensor, Tensor]:
        scores = _scores(model, group)
        return self._losses(scores), scores.chosen_P - scores.rejected_P

    def _losses(self, scores: Sides) -> Tensor:
        return reward_losses(scores, margin=self._section.margin, centre=self._section.centre)


class RewardJob(AlignJob):
    """A reward recipe as a run."""

    title = "Reward model"

    def workload(self, model: Transformer, dtype: torch.dtype, hooks: list[StepHook]) -> tuple[nn.Module, Workload]:
        train, valid = (Pairs.of_job(self.recipe, pairs) for pairs in (self.samples.train, self.valid))
        scored = RewardModel(model)
        return scored, Reward(train, valid, self.recipe.reward, scored.score.device, hooks)

    def initialise(self, model: nn.Module) -> None:
        assert isinstance(model, RewardModel)
        model.initialise(torch.Generator().manual_seed(self.recipe.train.seed))

    def finish(self, model: nn.Module) -> dict[str, Any]:
        return {}


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
    tree = read_tree(recipe) if recipe.is_file() else {}
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
