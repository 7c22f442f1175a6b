"""A replayed step computes what an eager step computes."""

import dataclasses
import json

import pytest
import torch

from isoflop.model.config import ExpertConfig, LatentConfig, ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.numerics.assign import assign
from isoflop.numerics.noise import NoiseKey
from isoflop.numerics.section import NumericsSection, PhotonicSection, Rule
from isoflop.scaling.sweep.shapes import shape
from isoflop.training import loop
from isoflop.training.checkpoint import Saving
from isoflop.training.cuda_graph import GraphedStep, can_capture
from isoflop.training.optim import adamw
from isoflop.training.pretrain.recipe import BalanceSection, MtpSection
from isoflop.training.pretrain.terms import StepTerms
from isoflop.training.saturation import watch_clipping
from isoflop.training.step import take_step
from isoflop.training.step_hooks import NoiseHook, PlainFrom
from isoflop.training.workload import Loss, Workload

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Repeat(Workload):
    tokens_per_step = 4 * 64

    def __init__(self, hooks=()):
        self.hooks = hooks

    def loss_sum(self, model, micro_batch):
        return model.loss_sum(micro_batch[0][:, :-1], micro_batch[0][:, 1:])


def eager_step(workload, model, optimizer, batch, rate):
    """As the loop takes it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    values = take_step(workload, model, optimizer, [batch], clip_norm=1.0)
    optimizer.zero_grad(set_to_none=True)
    return values


def steps(graphed: bool, warm: int = 0) -> tuple[list[float], torch.Tensor]:
    model = Transformer(shape(64, vocab_size=512, seq_len=64), torch.bfloat16).cuda()
    model.initialise(torch.Generator().manual_seed(0))
    optimizer = adamw(model, learning_rate=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    batches = [(torch.randint(512, (4, 65), generator=torch.Generator().manual_seed(i)),) for i in range(12)]
    assert can_capture(Repeat(), model, optimizer, [tuple(t.cuda() for t in batches[0])])
    losses = []
    for index, batch in enumerate(batches[:warm]):
        losses.append(float(eager_step(Repeat(), model, optimizer, batch, 1e-3 * (index + 1))[0]))
    replay = GraphedStep(Repeat(), model, optimizer, batches[:1], 1.0) if graphed else None
    for index, batch in enumerate(batches[warm:], start=warm):
        rate = 1e-3 * (index + 1)
        pinned = tuple(t.pin_memory() for t in batch)
        values = replay([pinned], rate) if replay else eager_step(Repeat(), model, optimizer, batch, rate)
        losses.append(float(values[0]))
    return losses, model.embedding.weight.detach().cpu()


@pytest.mark.parametrize("warm", [0, 3])
def test_graphed_steps_equal_eager_steps(warm):
    eager, eager_weight = steps(graphed=False)
    replayed, weight = steps(graphed=True, warm=warm)
    assert replayed == pytest.approx(eager, rel=2e-3)
    error = float((weight - eager_weight).norm() / eager_weight.norm())
    assert error < 2e-2, error


LATENT = LatentConfig(32, 16, 16, 32)
EXPERTS = ExpertConfig(16, 4, 32, n_groups=4, n_groups_kept=2)
V3 = ModelConfig(3, 64, 2, 2, 32, 128, 512, 64, init_std=0.05, latent=LATENT, experts=EXPERTS, mtp_depth=1)


def accumulated_steps(kind: str, graphed: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Four steps of three micro-batches: their values, and the embedding afterwards."""
    mixture = "mixture" in kind
    config = V3 if mixture else shape(64, vocab_size=512, seq_len=64)
    model, noise_key = Transformer(config, torch.bfloat16).cuda(), NoiseKey(0)
    model.initialise(torch.Generator().manual_seed(0))
    hooks = []
    if kind.startswith("fp8_rowwise"):
        assign(model, NumericsSection((Rule("blocks.*", "fp8_rowwise"),)))
    if mixture:
        hooks = [StepTerms(model, BalanceSection(bias_speed=0.01), MtpSection(), batch_tokens=3 * 256)]
    elif kind != "bfloat16":
        assign(model, NumericsSection((Rule("blocks.*", kind),)), noise_key)
        hooks = [*watch_clipping(model), NoiseHook(noise_key)]
    workload = RepeatWithTerms(hooks[0]) if mixture else Repeat(hooks)
    workload.tokens_per_step = 3 * 256
    optimizer = adamw(model, learning_rate=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    draw = lambda i: (torch.randint(512, (4, 65), generator=torch.Generator().manual_seed(i)).pin_memory(),)
    replay, rows = None, []
    for step in range(4):
        batches = [draw(10 * step + i) for i in range(3)]
        for hook in hooks:
            hook.begin(step)
        if graphed and replay is None:
            assert can_capture(workload, model, optimizer, batches)
            replay = GraphedStep(workload, model, optimizer, batches, 1.0)
        if replay is not None:
            rows.append(replay(batches, 1e-3))
            continue
        rows.append(take_step(workload, model, optimizer, batches, clip_norm=1.0))
        optimizer.zero_grad(set_to_none=True)
    # Read at the end, as the loop does: no later step may have written over the values of an earlier one.
    return torch.stack(rows).cpu(), model.embedding.weight.detach().cpu()


@pytest.mark.parametrize("kind", ["bfloat16", "mixture", "fp8_rowwise mixture", "fp8_block", "photonic"])
def test_replayed_micro_batches_add_up_as_eager_ones(kind):
    (eager, eager_weight), (replayed, weight) = accumulated_steps(kind, False), accumulated_steps(kind, True)
    torch.testing.assert_close(replayed[:, :2], eager[:, :2], rtol=5e-3, atol=0)
    torch.testing.assert_close(replayed[0, 2:], eager[0, 2:], rtol=5e-3, atol=1e-4)
    assert float((weight - eager_weight).norm() / eager_weight.norm()) < 2e-2


def test_micro_batches_of_unequal_length_are_not_captured():
    model = Transformer(shape(64, vocab_size=512, seq_len=64), torch.bfloat16).cuda()
    optimizer = adamw(model, learning_rate=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    batches = [(torch.zeros(n, 65, dtype=torch.long).cuda(),) for n in (4, 4, 3)]
    assert can_capture(Repeat(), model, optimizer, batches[:2])
    assert not can_capture(Repeat(), model, optimizer, batches)


class RepeatWithTerms(Repeat):
    def __init__(self, terms):
        self.terms, self.hooks = terms, [terms]

    def loss_sum(self, model, micro_batch):
        losses = model.losses(micro_batch[0][:, :-1], micro_batch[0][:, 1:])
        return Loss(self.terms.objective(losses), losses.nats)


def mixture_steps(graphed: bool, n_steps: int = 12):
    model = Transformer(V3, torch.bfloat16).cuda()
    model.initialise(torch.Generator().manual_seed(0))
    optimizer = adamw(model, learning_rate=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    balance = BalanceSection(bias_speed=0.01, bias_until_tokens=8 * 256, sequence_loss=1e-3)
    terms = StepTerms(model, balance, MtpSection(), batch_tokens=256)
    workload = RepeatWithTerms(terms)
    batches = [(torch.randint(512, (4, 65), generator=torch.Generator().manual_seed(i)),) for i in range(n_steps)]
    moved = [tuple(t.cuda() for t in batch) for batch in batches]
    assert can_capture(workload, model, optimizer, moved[:1])
    replay = GraphedStep(workload, model, optimizer, moved[:1], 1.0) if graphed else None
    rows, biases = [], []
    for index, batch in enumerate(moved):
        terms.begin(index)
        values = replay([batch], 1e-3) if replay else eager_step(workload, model, optimizer, batch, 1e-3)
        rows.append(values.tolist())
        biases.append(torch.stack([router.bias for router in model.routers()]).cpu())
    return torch.tensor(rows), torch.stack(biases)


def test_graphed_steps_of_a_mixture_balance_and_report_as_eager_ones():
    eager, eager_biases = mixture_steps(graphed=False)
    replayed, biases = mixture_steps(graphed=True)
    assert replayed.shape == eager.shape == (12, 2 + 3 * 3)
    torch.testing.assert_close(replayed[:, 0], eager[:, 0], rtol=3e-3, atol=0)
    assert torch.equal(biases[0].abs() > 0, eager_biases[0].abs() > 0)  # the first loads are the same
    torch.testing.assert_close(biases[0], eager_biases[0])
    assert (biases[0].abs().amax() - 0.01).abs() < 1e-6, "the passes before the capture must not count"
    assert torch.equal(biases[8], biases[11]), "the speed is 0 after 8 steps"
    assert not torch.equal(biases[6], biases[7])
    torch.testing.assert_close(replayed[0, 2:], eager[0, 2:])


def test_experts_that_run_in_a_loop_are_not_captured():
    batch = [(torch.zeros(4, 65, dtype=torch.long).cuda(),)]
    for config, dtype in ((V3, torch.float32), (dataclasses.replace(V3, d_model=60), torch.bfloat16)):
        model = Transformer(config, dtype).cuda()
        optimizer = adamw(model, learning_rate=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
        assert not can_capture(Repeat(), model, optimizer, batch)
    for format, runs in (("fp8_block", False), ("bfloat16", False), ("fp8_rowwise", True)):
        model = Transformer(V3, torch.bfloat16).cuda()
        assign(model, NumericsSection((Rule("blocks.*", format),)))
        optimizer = adamw(model, learning_rate=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
        assert can_capture(Repeat(), model, optimizer, batch) is runs, format


def photonic_model():
    model, noise_key = Transformer(shape(64, vocab_size=512, seq_len=64), torch.bfloat16).cuda(), NoiseKey(0)
    model.initialise(torch.Generator().manual_seed(0))
    assign(model, NumericsSection((Rule("blocks.*", "photonic"),)), noise_key)
    optimizer = adamw(model, learning_rate=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    return model, noise_key, optimizer


def photonic_steps(graphed: bool) -> list[float]:
    model, noise_key, optimizer = photonic_model()
    batches = [(torch.randint(512, (4, 65), generator=torch.Generator().manual_seed(i)).cuda(),) for i in range(8)]
    workload = Repeat([*watch_clipping(model), NoiseHook(noise_key)])
    assert can_capture(workload, model, optimizer, batches[:1])
    replay, rows = None, []
    for index, batch in enumerate(batches):
        for hook in workload.hooks:
            hook.begin(index)
        if graphed and replay is None:
            replay = GraphedStep(workload, model, optimizer, [batch], 1.0)
        values = replay([batch], 1e-3) if replay else eager_step(workload, model, optimizer, batch, 1e-3)
        rows.append(values.tolist())
    return rows


def test_graphed_steps_on_a_noisy_core_equal_eager_ones():
    eager, replayed = photonic_steps(graphed=False), photonic_steps(graphed=True)
    for found, expected in zip(replayed, eager, strict=True):
        assert found[0] == pytest.approx(expected[0], rel=3e-3)
        assert found[2] == pytest.approx(expected[2], abs=3e-5), "the passes before the capture must not count"


def fp8_steps(format: str, graphed: bool) -> list[float]:
    model = Transformer(shape(64, vocab_size=512, seq_len=64), torch.bfloat16).cuda()
    model.initialise(torch.Generator().manual_seed(0))
    assign(model, NumericsSection((Rule("blocks.*", format),)))
    optimizer = adamw(model, learning_rate=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    batches = [(torch.randint(512, (4, 65), generator=torch.Generator().manual_seed(i)).cuda(),) for i in range(8)]
    assert can_capture(Repeat(), model, optimizer, batches[:1])
    replay = GraphedStep(Repeat(), model, optimizer, batches[:1], 1.0) if graphed else None
    step = lambda batch: replay([batch], 1e-3) if replay else eager_step(Repeat(), model, optimizer, batch, 1e-3)
    return [float(step(batch)[0]) for batch in batches]


@pytest.mark.parametrize("format", ["fp8_block", "fp8_tensorwise"])
def test_graphed_steps_quantise_the_weights_of_their_own_step(format):
    assert fp8_steps(format, graphed=True) == pytest.approx(fp8_steps(format, graphed=False), rel=5e-3)


def test_a_replay_draws_the_noise_of_its_own_step():
    model, noise_key, optimizer = photonic_model()
    batch = (torch.randint(512, (4, 65), generator=torch.Generator().manual_seed(0)).cuda(),)
    replay = GraphedStep(Repeat(), model, optimizer, [batch], 1.0)
    losses = []
    for step in (3, 4, 3):
        noise_key.set(step, 0)
        losses.append(float(replay([batch], 0.0)[0]))
    assert losses[0] == losses[2] != losses[1]


def test_noise_from_a_key_of_the_host_is_not_captured():
    for settings in (PhotonicSection(backward="core"), PhotonicSection(core={"signs": "two_pass"})):
        model, noise_key, optimizer = photonic_model()
        assign(model, NumericsSection((Rule("blocks.*", "photonic"),), photonic=settings), noise_key)
        assert not can_capture(Repeat(), model, optimizer, [(torch.zeros(4, 65, dtype=torch.long).cuda(),)])


class Repeated(Repeat):
    """The same micro-batches in every step: at a rate of 0 only the format tells one loss from another."""

    def __init__(self, n_micro, hooks):
        super().__init__(hooks)
        self.n_micro, self.tokens_per_step = n_micro, n_micro * 4 * 64

    def batch(self, step, rank=0, world=1):
        draw = lambda i: torch.randint(512, (4, 65), generator=torch.Generator().manual_seed(i))
        return [(draw(i),) for i in range(self.n_micro)]


def steps_until(folder, section: NumericsSection | None, n_micro: int, rate: float, **plan) -> list[float]:
    """Losses of ten steps, the last four of them plain."""
    model, noise_key = Transformer(shape(64, vocab_size=512, seq_len=64), torch.bfloat16).cuda(), NoiseKey(0)
    model.initialise(torch.Generator().manual_seed(0))
    hooks = []
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(4 if weight.ndim == 2 else 1)  # so that a format shows in the loss
    if section is not None:
        assign(model, section, noise_key)
        hooks = [*watch_clipping(model), NoiseHook(noise_key), PlainFrom(model, 6)]
    optimizer = adamw(model, learning_rate=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    plan = loop.StepPlan(10, rate=lambda step: rate, plain_from=6, **plan)
    saving = Saving(every_s=0.0, at_end=False)
    loop.train(Repeated(n_micro, hooks), model, optimizer, plan, run_dir=folder, saving=saving, state={})
    return [json.loads(line)["loss_nats"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("n_micro", [1, 3])
@pytest.mark.parametrize("backward", ["", "ste", "core"], ids=["fp8_block", "photonic", "photonic, not captured"])
def test_graphs_of_a_format_are_not_replayed_after_it_has_ended(tmp_path, monkeypatch, backward, n_micro):
    made = []

    class Counted(GraphedStep):
        def __init__(self, *arguments):
            made.append(len(formats_in(arguments[1])))
            super().__init__(*arguments)

    monkeypatch.setattr(loop, "GraphedStep", Counted)
    rule = Rule("blocks.*", "photonic" if backward else "fp8_block")
    section = NumericsSection((rule,), photonic=PhotonicSection(backward=backward or "ste"))
    still = steps_until(tmp_path / "still", section, n_micro, 0.0)
    assert made[-1] == 0 and [n > 0 for n in made] == ([False] if backward == "core" else [True, False])
    plain = steps_until(tmp_path / "plain", None, n_micro, 0.0)
    assert still[6:] == pytest.approx(plain[6:], rel=1e-5)
    assert min(abs(a / b - 1) for a, b in zip(still[:6], plain)) > 1e-4
    replayed = steps_until(tmp_path / "replayed", section, n_micro, 1e-3)
    eager = steps_until(tmp_path / "eager", section, n_micro, 1e-3, graph=False)
    assert replayed == pytest.approx(eager, rel=2e-2) and eager[-1] < 0.9 * eager[0]


def formats_in(model) -> list:
    return [layer for layer in model.modules() if getattr(layer, "numerics", None) is not None]
