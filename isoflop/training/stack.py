"""Runs of one shape, batch and length trained as one batched program: they differ in seed, data order and rate.

Small models leave most of a GPU idle and pay for every kernel; eight of them at once take little longer than one. Each
run keeps its own files and numbers: those of `loop.train`, up to the order of sums.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isoflop.model.attention import fastest_kernels
from isoflop.model.stacked import StackedTransformer, stackable
from isoflop.model.transformer import Transformer
from isoflop.training import checkpoint
from isoflop.training.checkpoint import Saving
from isoflop.training.cuda_graph import MAX_PARAMETERS, captured, warming_up
from isoflop.training.loop import LoopResult, Status, StepPlan
from isoflop.training.monitor import Progress, Reporter, Watch
from isoflop.training.optim import prepare_state
from isoflop.training.run import Job, Opened, conclude, finished_result, open_run, trained
from isoflop.training.workload import Workload

MicroBatches = list[tuple[Tensor, ...]]

STEPS_READ = 32
"""Of one reading: small steps are over sooner than one of them is read by itself."""
STEPS_AT_ONCE = 8
"""Of one look at figures and files: on a GPU small steps are over sooner than Python has looked after every member."""
TOKENS_READ = 4_000_000
"""Of one reading at most: memory of the device (assumption)."""


class Member(NamedTuple):
    """One run of a stack, with what `loop.train` takes for it."""

    workload: Workload
    model: Transformer
    optimizer: torch.optim.Optimizer
    plan: StepPlan
    run_dir: Path
    saving: Saving
    state: dict[str, Any]
    watch: Watch


def run_stacked(
    jobs: Sequence[Job],
    run_dirs: Sequence[Path],
    *,
    start_from: Sequence[Path | None],
    stop_at: int | None = None,
    keep_steps: frozenset[int] = frozenset(),
    on_progress: Sequence[Callable[[Progress], None] | None],
    should_stop: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """`run` of several jobs, as one batched program where they can be stacked from the same step, else one by one.

    Raises CheckpointError as `run` does.
    """
    results = [finished_result(job, run_dir, stop_at) for job, run_dir in zip(jobs, run_dirs, strict=True)]
    missing = [index for index, result in enumerate(results) if result is None]
    opened = [
        open_run(jobs[i], run_dirs[i], start_from[i], stop_at, keep_steps, Watch(on_progress[i], should_stop))
        for i in missing
    ]
    members = [_member(each) for each in opened]
    if len(opened) > 1 and len({each.start_step for each in opened}) == 1 and can_stack(members):
        with fastest_kernels(opened[0].device):
            loops = train_stacked(members, start_step=opened[0].start_step)
    else:
        loops = map(trained, opened)
    for index, each, loop in zip(missing, opened, loops):
        results[index] = conclude(each, loop)
    return [result for result in results if result is not None]


def can_stack(members: Sequence[Member]) -> bool:
    """Whether these runs can be one program: equal shapes and lengths, nothing around their steps or during the run."""
    first = members[0]

    def fits(member: Member) -> bool:
        plan, alike = member.plan, (member.plan.n_steps, member.plan.end, member.plan.clip_norm)
        same = alike == (first.plan.n_steps, first.plan.end, first.plan.clip_norm)
        same = same and member.workload.tokens_per_step == first.workload.tokens_per_step
        plain = not member.workload.hooks and not plan.validate_every and stackable(member.model)
        plain = plain and type(member.optimizer) is torch.optim.AdamW
        return same and plain and member.model.config == first.model.config

    return all(map(fits, members))


def train_stacked(members: Sequence[Member], *, start_step: int) -> list[LoopResult]:
    """Train all members from `start_step` to the end of their plans; a member that diverges leaves the others alone.

    The time of a member is its share of the stack's.
    """
    first = members[0]
    device = first.model.embedding.weight.device
    end, step, n = first.plan.end, start_step, len(members)
    finished: Status = "finished" if end == first.plan.n_steps else "stopped"
    statuses: list[Status] = [finished] * n
    data_wait_s = wall_s = 0.0
    last_save = time.perf_counter()
    with ExitStack() as open_files, ThreadPoolExecutor(1, thread_name_prefix="batches") as reader:
        reports = [_reporter(member, device, start_step) for member in members]
        for report in reports:
            open_files.callback(report.close)
        read = max(1, min(STEPS_READ, TOKENS_READ // (n * first.workload.tokens_per_step)))
        take, block = None, _Block(step, [], [])
        ahead = reader.submit(_read, members, step, min(step + read, end), device)
        while step < end and any(status != "diverged" for status in statuses):
            began = time.perf_counter()
            if step == block.end:
                block = ahead.result().to(device)
                data_wait_s += time.perf_counter() - began
                if block.end < end:
                    ahead = reader.submit(_read, members, block.end, min(block.end + read, end), device)
            take = take or StackedStep(members, block.at(step), start_step)
            n_steps = _at_once(take.most, step, block.end, first.saving)
            values = take(block, step, n_steps)
            for rates, figures in zip(block.rates[step - block.first :], values.unbind(0)):
                step += 1
                for report, rate, value, status in zip(reports, rates, figures.unbind(0), statuses):
                    if status != "diverged":
                        report.add(step, rate, value)
            wall_s += time.perf_counter() - began
            stopping = any(member.watch.should_stop() for member in members)
            saves = first.saving.at(step, time.perf_counter() - last_save)
            saves = saves or (step == end and first.saving.at_end) or stopping
            for index, report in enumerate(reports):
                if statuses[index] != "diverged" and report.drain(wait=bool(saves or step == end)):
                    statuses[index] = "diverged"
            if saves:
                for member, status in zip(members, statuses):
                    if status != "diverged":
                        _save(member, step, wall_s / n)
                last_save = time.perf_counter()
            if stopping and step < end:
                statuses = ["diverged" if status == "diverged" else "interrupted" for status in statuses]
                break
    return [
        LoopResult(
            status=status,
            step=report.diverged_at or step,
            train_loss_nats=report.recent_loss(),
            wall_s=wall_s / n,
            tokens=(step - start_step) * member.workload.tokens_per_step,
            data_wait_s=data_wait_s / n,
            stacked=n,
        )
        for member, report, status in zip(members, reports, statuses)
    ]


class StackedStep:
    """Optimizer steps of every member, on a GPU replays of one CUDA graph where a step has one micro-batch."""

    def __init__(self, members: Sequence[Member], micro_batches: MicroBatches, start_step: int = 0):
        self.members = members
        self.stack = StackedTransformer([member.model for member in members])
        self._parameters = list(self.stack.parameters())
        self._device = self._parameters[0].device
        self._total_S = torch.zeros(len(members), device=self._device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._optimizers = [member.optimizer for member in members]
        if _equal_rates(members, start_step):
            self._optimizers = [_joint_optimizer(members, self.stack)]
        fused = all(member.optimizer.defaults["fused"] and member.plan.graph for member in members)
        small = sum(p.numel() for p in members[0].model.parameters()) <= MAX_PARAMETERS
        self.most = 1
        """Steps of one call at most."""
        if self._device.type == "cuda" and fused and small and len(micro_batches) == 1:
            self.most = STEPS_AT_ONCE
            self._capture(micro_batches[0])

    def __call__(self, block: "_Block", step: int, n_steps: int) -> Tensor:
        """[n_steps, S, 2]: loss per token and gradient norm of each member after each step, on the device."""
        places = range(step - block.first, step - block.first + n_steps)
        if self._graph is None:
            return torch.stack([self._eager(block.at(block.first + i), block.rates[i]) for i in places])
        rates = torch.tensor([block.rates[i] for i in places], pin_memory=True).to(self._device, non_blocking=True)
        figures = []
        for i, rates_S in zip(places, rates.unbind(0)):
            for held, new in zip(self._inputs, block.micro_batches[0], strict=True):
                held.copy_(new[i])
            self._rates_S.copy_(rates_S)
            self._graph.replay()
            figures.append(self._figures.clone())
        return torch.stack(figures)

    def _eager(self, micro_batches: MicroBatches, rates: Sequence[float]) -> Tensor:
        self._set_rates(rates)
        return self._take([tuple(t.to(self._device, non_blocking=True) for t in batch) for batch in micro_batches])

    def _set_rates(self, rates: Iterable[float | Tensor]) -> None:
        for optimizer, rate in zip(self._optimizers, rates):
            for group in optimizer.param_groups:
                group["lr"] = rate

    def _gradients(self, micro_batches: MicroBatches) -> None:
        """The gradients of all members, in place of those of the step before."""
        for parameter in self._parameters:
            parameter.grad = None  # the first micro-batch's is taken as it comes: no zeros, no sum
        self._total_S.zero_()
        workload = self.members[0].workload
        divisor = workload.divisor(micro_batches)  # of one member: the number of its tokens
        with self.stack.cast_weights():
            for micro_batch in micro_batches:
                losses_S = workload.loss_sum(self.stack, micro_batch)
                assert isinstance(losses_S, Tensor)
                (losses_S.sum() / divisor).backward()
                self._total_S += losses_S.detach() / divisor

    def _take(self, micro_batches: MicroBatches) -> Tensor:
        self._gradients(micro_batches)
        norms_S = self._clip()
        if len(self._optimizers) > 1:
            self._share_gradients()
        for optimizer in self._optimizers:
            optimizer.step()
        return torch.stack((self._total_S, norms_S.float()), 1)

    def _clip(self) -> Tensor:
        """Scale each member's gradients as `clip_grad_norm_` does; returns their norms [S] from before."""
        by_member = list(zip(*(parameter.grad.unbind(0) for parameter in self._parameters), strict=True))  # type: ignore
        norms = torch._foreach_norm([gradient for gradients in by_member for gradient in gradients])
        norms_S = torch.linalg.vector_norm(torch.stack(norms).view(len(by_member), -1), dim=1)
        scales_S = (self.members[0].plan.clip_norm / (norms_S + 1e-6)).clamp(max=1.0)
        for gradients, scale in zip(by_member, scales_S):
            torch._foreach_mul_(gradients, scale)
        return norms_S

    def _share_gradients(self) -> None:
        """Give every member its part of the stack's gradients."""
        for name, parameter in self.stack.named_parameters():
            assert parameter.grad is not None
            for member, gradient in zip(self.members, parameter.grad.unbind(0), strict=True):
                member.model.get_parameter(name).grad = gradient

    def _capture(self, micro_batch: tuple[Tensor, ...]) -> None:
        self._inputs = tuple(tensor.to(self._device, copy=True) for tensor in micro_batch)
        self._rates_S = torch.zeros(len(self.members), device=self._device)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["capturable"] = True
        self._set_rates(self._rates_S.unbind(0))
        if len(self._optimizers) > 1:
            for member in self.members:
                for parameter in member.model.parameters():
                    prepare_state(member.optimizer, parameter)
        with warming_up(self._device):
            for _ in range(2):
                self._gradients([self._inputs])
        self._graph = torch.cuda.CUDAGraph()
        with captured(self._graph):
            self._figures = self._take([self._inputs])


def _equal_rates(members: Sequence[Member], start_step: int) -> bool:
    """Whether all steps to come, and AdamW's other settings, are the same for all members."""
    settings = [
        [
            {key: value for key, value in group.items() if key not in ("params", "lr")}
            for group in optimizer.param_groups
        ]
        for optimizer in (member.optimizer for member in members)
    ]
    steps = range(start_step, members[0].plan.end)
    return all(other == settings[0] for other in settings) and all(
        len({member.plan.rate(step) for member in members}) == 1 for step in steps
    )


def _joint_optimizer(members: Sequence[Member], stack: StackedTransformer) -> torch.optim.AdamW:
    """AdamW over the stacked weights; the moments of the members' own become views of its."""
    first, stacked = members[0], dict(stack.named_parameters())
    names = {parameter: name for name, parameter in first.model.named_parameters()}
    groups = [
        {**group, "params": [stacked[names[parameter]] for parameter in group["params"]]}
        for group in first.optimizer.param_groups
    ]
    joint = torch.optim.AdamW(groups)
    for name, parameter in stacked.items():
        own = [(member.optimizer, member.model.get_parameter(name)) for member in members]
        for optimizer, weight in own:
            prepare_state(optimizer, weight)
        states = [optimizer.state[weight] for optimizer, weight in own]
        joint.state[parameter]["step"] = states[0]["step"]
        for state in states:
            state["step"] = states[0]["step"]
        for moment in ("exp_avg", "exp_avg_sq"):
            joint.state[parameter][moment] = torch.stack([state[moment] for state in states])
            for state, view in zip(states, joint.state[parameter][moment].unbind(0), strict=True):
                state[moment] = view
    return joint


def _member(opened: Opened) -> Member:
    built = opened.built
    assert isinstance(built.model, Transformer)
    return Member(
        built.workload,
        built.model,
        built.optimizer,
        opened.plan,
        opened.run_dir,
        opened.saving,
        opened.state,
        opened.watch,
    )


class _Block(NamedTuple):
    """Micro-batches of consecutive steps: their tensors with the steps as first dimension."""

    first: int
    micro_batches: MicroBatches
    rates: list[list[float]]
    """Of each step, of each member."""

    @property
    def end(self) -> int:
        return self.first + len(self.rates)

    def at(self, step: int) -> MicroBatches:
        return [tuple(tensor[step - self.first] for tensor in micro_batch) for micro_batch in self.micro_batches]

    def to(self, device: torch.device) -> "_Block":
        moved = [tuple(tensor.to(device, non_blocking=True) for tensor in batch) for batch in self.micro_batches]
        return self._replace(micro_batches=moved)


def _at_once(most: int, step: int, end: int, saving: Saving) -> int:
    """How many steps, `most` or up to the next checkpoint that is due."""
    n_steps = min(most, end - step)
    return next((done for done in range(1, n_steps) if saving.at(step + done, 0.0)), n_steps)


def _read(members: Sequence[Member], first: int, end: int, device: torch.device) -> _Block:
    """The members' micro-batches of some steps, row by row after each other."""
    of_members = [member.workload.batches(first, end) for member in members]
    in_order = [batch for of_step in zip(*of_members, strict=True) for batch in of_step]  # step by step
    joined = []
    for micro_batch in zip(*in_order, strict=True):
        tensors = [torch.stack(parts) for parts in zip(*micro_batch, strict=True)]
        tensors = [tensor.unflatten(0, (end - first, -1)).flatten(1, 2) for tensor in tensors]
        joined.append(tuple(tensor.pin_memory() if device.type == "cuda" else tensor for tensor in tensors))
    return _Block(first, joined, [[member.plan.rate(step) for member in members] for step in range(first, end)])


def _reporter(member: Member, device: torch.device, start_step: int) -> Reporter:
    return Reporter(
        member.run_dir,
        device=device,
        hooks=(),
        start_step=start_step,
        n_steps=member.plan.n_steps,
        tokens_per_step=member.workload.tokens_per_step,
        watch=member.watch,
    )


def _save(member: Member, step: int, wall_s: float) -> None:
    folder, state = member.run_dir / "checkpoints", member.state
    state = {**state, "wall_s": state.get("wall_s", 0.0) + wall_s}
    checkpoint.save(folder, step=step, model=member.model, optimizer=member.optimizer, state=state)
    checkpoint.prune(folder, step=step, keep=member.saving.keep, pinned=set(member.saving.at_steps))
