"""What a step does beside the next-token loss: terms added to it, loads counted, and the biases that follow them.

Loads are added up over all micro-batches of a step, and over all ranks, before the biases move once: the balance that
is sought is that of the global batch. All of it stays on the device, so a step can be captured in a CUDA graph; the
weights that change during a run are scalars there, set before the step.
"""

import torch
from torch import Tensor

from isoflop.model.transformer import Losses, Transformer
from isoflop.training.balance import balance_loss, bias_direction, by_name, load_statistics
from isoflop.training.pretrain.recipe import BalanceSection, MtpSection
from isoflop.training.step_hooks import StepHook


class LoadHook(StepHook):
    """Counts the loads of the experts over a step, then moves the selection biases by them."""

    def __init__(self, model: Transformer, balance: BalanceSection, *, moves_bias: bool = True):
        self._balance, self._experts = balance, model.config.experts
        device, routers = model.embedding.weight.device, model.routers()
        biased = moves_bias and self._experts is not None and self._experts.selection_bias
        self._biases = [router.bias for router in routers] if biased else []
        n_experts = 0 if self._experts is None else self._experts.n_experts
        self.n_figures = 0 if self._experts is None else 3 * len(routers)
        self._loads_LE = torch.zeros(len(routers), n_experts, dtype=torch.int64, device=device)
        self._speed = torch.full((), balance.bias_speed, device=device)

    @torch.no_grad()
    def finish(self) -> Tensor | None:
        """Move the biases by the loads of the whole step, forget the loads, return their statistics, flattened."""
        if self._experts is None:
            return None
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self._loads_LE)
        if self._biases:
            moves_LE = bias_direction(self._loads_LE) * self._speed
            torch._foreach_add_(self._biases, list(moves_LE.unbind(0)))
        statistics = load_statistics(self._loads_LE).flatten()
        self._loads_LE.zero_()
        return statistics

    def reset(self) -> None:
        """Forget loads that belong to no step."""
        self._loads_LE.zero_()

    def figures(self, step: int, values: list[float]) -> dict[str, object]:
        """What the metrics line of a step says about the load; empty between reports."""
        every = self._balance.report_every
        if not values or not every or step % every:
            return {}
        return {"expert_load": by_name(values)}


class StepTerms(LoadHook):
    """The terms of one model; `begin` before a step, `objective` for each micro-batch, `finish` after the optimizer."""

    def __init__(self, model: Transformer, balance: BalanceSection, mtp: MtpSection, *, batch_tokens: int):
        super().__init__(model, balance)
        self._mtp, self._batch_tokens, self._seq_len = mtp, batch_tokens, model.config.seq_len
        self._weight = torch.full((), mtp.weight, device=self._speed.device)
        self._set = (balance.bias_speed, mtp.weight)

    def begin(self, step: int) -> None:
        """Set the weights of a step; `step` counts finished steps."""
        n_tokens, balance, mtp = step * self._batch_tokens, self._balance, self._mtp
        resting = balance.bias_until_tokens and n_tokens >= balance.bias_until_tokens
        later = mtp.later_from_tokens and n_tokens >= mtp.later_from_tokens
        wanted = (0.0 if resting else balance.bias_speed, mtp.later_weight if later else mtp.weight)
        if wanted != self._set:
            self._speed.fill_(wanted[0])
            self._weight.fill_(wanted[1])
            self._set = wanted

    def objective(self, losses: Losses) -> Tensor:
        """Next-token loss plus (lambda / D) times the sum over prediction depths, plus the balance losses.

        Sums over tokens, so a loss per sequence counts seq_len times. Counts the loads as it goes.
        Source: arXiv 2412.19437, eq. 17 and 25.
        """
        total = losses.nats
        if losses.mtp_nats:
            total = total + self._weight / len(losses.mtp_nats) * torch.stack(losses.mtp_nats).sum()
        if not losses.routings or self._experts is None:
            return total
        self._loads_LE += torch.stack([routing.load_E for routing in losses.routings])
        terms = [balance_loss(routing, self._experts, self._balance) for routing in losses.routings]
        added = [term for term in terms if term is not None]
        return total + self._seq_len * torch.stack(added).sum() if added else total
