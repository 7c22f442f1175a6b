"""Losses against trl 1.16.0 (its trainers, on models of our weights in transformers) and against float64 by hand."""

import math
import warnings

import numpy as np
import pytest
import torch
from interop_models import FAMILIES, build, export, make_run

from isoflop.alignment.losses import Sides, pair_losses, reward_losses, sum_by_sample
from isoflop.alignment.packing import pack
from isoflop.interop.layout import layout, to_theirs
from isoflop.model.log_probs import head_log_probs
from isoflop.tokens.chat import Row

pytestmark = pytest.mark.filterwarnings("ignore:::trl", "ignore:::transformers", "ignore::FutureWarning")
"""Deprecations of trl's own making."""

MODELS = ["mha", "gqa"]
PROMPTS = [7, 12, 5]
ANSWERS = [(9, 4), (3, 11), (6, 6)]


def rows(seed=0, vocab_size=160):
    """[chosen..., rejected...] with shared prompts; targets are the answers."""
    generator = np.random.default_rng(seed)
    sides = ([], [])
    for prompt, lengths in zip(PROMPTS, ANSWERS):
        head = generator.integers(0, vocab_size, prompt)
        for side, length in zip(sides, lengths):
            ids = np.concatenate([head, generator.integers(0, vocab_size, length)]).astype(np.int32)
            side.append(Row(ids, np.arange(len(ids)) >= prompt))
    return [*sides[0], *sides[1]]


@pytest.fixture(scope="module", params=MODELS)
def models(request, tmp_path_factory):
    """(ours, theirs, their reference, our reference) of one set of weights each."""
    import transformers

    place, found = tmp_path_factory.mktemp("models"), []
    for seed in (0, 1):
        model = build(FAMILIES[request.param], seed)
        export(make_run(place / f"run{seed}", model), place / f"hf{seed}")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(place / f"hf{seed}", dtype=torch.float32)
        found += [model, theirs]
    return found[0], found[1], found[3], found[2]


def ours(model, samples, packed):
    """Per-token log-probabilities, numbers of samples, entropies."""
    batch = pack(samples, seq_len=model.config.seq_len, packed=packed)
    hidden = model(batch.tokens_BT, documents_BT=batch.samples_BT).flatten(0, 1)
    targets = batch.targets_BT.flatten()
    log_p, entropy = head_log_probs(model.head, hidden, targets)
    return log_p, batch.samples_BT.flatten(), targets >= 0, entropy


@pytest.fixture(scope="module")
def trl():
    pytest.importorskip("trl", reason="needs trl 1.16.0: pip install isoflop[dev]")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import trl

        _ = trl.DPOTrainer, trl.SFTTrainer, trl.RewardTrainer
        yield trl


def make_trainer(trl, name, model, dataset, folder, **options):
    """A trainer of trl's, and what its collator makes of a tokenised data set; `options` go into its config."""
    import tokenizers
    import transformers
    from datasets import Dataset

    class Trainer(getattr(trl, f"{name}Trainer")):
        def _prepare_dataset(self, dataset, *_, **__):
            return dataset  # tokenised already: the ids are ours, the collator and the loss are trl's

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{n}": n for n in range(160)}, unk_token="w0"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1")
    extra = {"ref_model": options.pop("ref_model")} if "ref_model" in options else {}
    config = getattr(trl, f"{name}Config")(
        output_dir=str(folder), report_to="none", use_cpu=True, bf16=False, max_length=96, **options
    )
    data = Dataset.from_list(dataset)
    trainer = Trainer(model=model, args=config, train_dataset=data, processing_class=tokenizer, **extra)
    return trainer, trainer.data_collator([data[index] for index in range(len(dataset))])


def gradients_equal(model, theirs, rtol):
    """Every gradient of ours against that of theirs, rows in their order."""
    named = dict(theirs.named_parameters())
    for target in layout(model.config, "llama"):
        gradient = model.get_parameter(target.name).grad
        for piece in target.pieces:
            part = gradient.view(-1, gradient.shape[-1]) if gradient.ndim > 1 else gradient
            part = part[piece.first_row : piece.first_row + piece.n_rows] if gradient.ndim > 1 else part
            part = to_theirs(part, piece.rotary) if gradient.ndim > 1 else part
            expected = named[piece.name].grad
            error = (part.reshape(expected.shape) - expected).abs().max() / expected.abs().max()
            assert error < rtol, (piece.name, error)
            assert expected.abs().max() > 0


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize(
    ("loss", "smoothing"), [("sigmoid", 0.0), ("robust", 0.2), ("sigmoid_norm", 0.0), ("ipo", 0.0)]
)
def test_dpo_losses_gradients_and_metrics_equal_trl(models, trl, loss, smoothing, packed, tmp_path):
    model, theirs, their_reference, reference = models
    samples, beta = rows(), 0.3
    model.zero_grad(), theirs.zero_grad()
    log_p, numbers, counted, entropy = ours(model, samples, packed)
    sums = Sides(*sum_by_sample(log_p, numbers, 6).chunk(2))
    with torch.no_grad():
        reference_p, reference_numbers, _, _ = ours(reference, samples, packed)
        reference_sums = Sides(*sum_by_sample(reference_p, reference_numbers, 6).chunk(2))
    lengths = Sides(*(torch.tensor(side, dtype=torch.float32) for side in zip(*ANSWERS)))
    terms = pair_losses(sums, reference_sums, lengths, beta=beta, loss=loss, label_smoothing=smoothing)
    terms.loss_P.mean().backward()

    pairs = [
        {
            "prompt_ids": chosen.ids[:prompt].tolist(),
            "chosen_ids": chosen.ids[prompt:].tolist(),
            "rejected_ids": rejected.ids[prompt:].tolist(),
        }
        for prompt, chosen, rejected in zip(PROMPTS, samples[:3], samples[3:])
    ]
    trainer, batch = make_trainer(
        trl,
        "DPO",
        theirs,
        pairs,
        tmp_path,
        ref_model=their_reference,
        beta=beta,
        loss_type=[loss],
        label_smoothing=smoothing,
    )
    expected = trainer.compute_loss(theirs.train(), batch)
    expected.backward()
    assert terms.loss_P.mean().item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)
    gradients_equal(model, theirs, 1e-4)
    metrics = {name: values[0] for name, values in trainer._metrics["train"].items()}
    named = {
        "rewards/chosen": terms.rewards.chosen_P.mean(),
        "rewards/rejected": terms.rewards.rejected_P.mean(),
        "rewards/margins": terms.margins_P.mean(),
        "rewards/accuracies": terms.wins_P.mean(),
        "logps/chosen": sums.chosen_P.mean(),
        "logps/rejected": sums.rejected_P.mean(),
        "entropy": entropy.sum() / counted.sum(),
    }
    for name, value in named.items():
        assert value.item() == pytest.approx(metrics[name], rel=1e-5, abs=1e-5), name


def test_label_smoothing_equals_float64_by_hand():
    generator = np.random.default_rng(3)
    values = generator.normal(size=(6, 50)) * 20
    beta, share = 0.1, 0.15
    difference = beta * ((values[0] - values[2]) - (values[1] - values[3]))
    expected = (1 - share) * np.logaddexp(0, -difference) + share * np.logaddexp(0, difference)
    t = torch.from_numpy(values)
    lengths = Sides(t[4].abs() + 1, t[5].abs() + 1)
    found = pair_losses(Sides(t[0], t[1]), Sides(t[2], t[3]), lengths, beta=beta, label_smoothing=share)
    np.testing.assert_allclose(found.loss_P, expected, rtol=1e-12)
    narrow = [Sides(a.float(), b.float()) for a, b in ((t[0], t[1]), (t[2], t[3]), lengths)]
    np.testing.assert_allclose(pair_losses(*narrow, beta=beta, label_smoothing=share).loss_P, expected, rtol=1e-5)


def test_dpo_starts_at_ln2_with_zero_margin():
    log_p = Sides(torch.tensor([-12.0, -40.0]), torch.tensor([-3.0, -99.0]))
    terms = pair_losses(log_p, log_p, Sides(torch.ones(2), torch.ones(2)), beta=0.1)
    assert terms.loss_P.tolist() == pytest.approx([math.log(2)] * 2)
    assert terms.margins_P.tolist() == [0.0, 0.0] and terms.wins_P.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("packed", [True, False])
def test_sft_loss_log_probabilities_and_gradients_equal_trl(models, trl, packed, tmp_path):
    model, theirs, _, _ = models
    samples = [*rows(), *multi_turn()]
    model.zero_grad(), theirs.zero_grad()
    batch = pack(samples, seq_len=96, packed=packed)
    n_targets = (batch.targets_BT >= 0).sum()
    loss = model.losses(batch.tokens_BT, batch.targets_BT, documents_BT=batch.samples_BT).nats / n_targets
    loss.backward()

    data = [{"input_ids": s.ids.tolist(), "labels": np.where(s.is_target, s.ids, -100).tolist()} for s in samples]
    options = {"dataset_kwargs": {"skip_prepare_dataset": True}, "loss_type": "nll"}
    trainer, inputs = make_trainer(trl, "SFT", theirs, data, tmp_path, **options)
    expected = trainer.compute_loss(theirs.train(), dict(inputs), num_items_in_batch=n_targets)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients_equal(model, theirs, 1e-4)

    with torch.no_grad():
        log_p, numbers, counted, entropy = ours(model, samples, packed)
        outputs = theirs(**inputs, fused_lm_head=True)
    for index in range(len(samples)):
        here, there = (numbers == index) & counted, outputs.label_mask[index]
        torch.testing.assert_close(log_p[here], outputs.log_probs[index][there], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(entropy[here], outputs.entropy[index][there], rtol=1e-5, atol=1e-5)


def multi_turn():
    """Two answers in one conversation."""
    ids = np.random.default_rng(4).integers(0, 160, 31).astype(np.int32)
    return [Row(ids, np.isin(np.arange(31), [*range(8, 13), *range(20, 31)]))]


@pytest.mark.parametrize("centre", [0.0, 0.01])
def test_reward_loss_equals_trl(trl, centre, tmp_path, models):
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=160,
        num_labels=1,
        pad_token_id=0,
    )
    theirs = transformers.LlamaForSequenceClassification(config)
    samples = rows()
    data = [{"chosen_ids": a.ids.tolist(), "rejected_ids": b.ids.tolist()} for a, b in zip(samples[:3], samples[3:])]
    coefficient = {"center_rewards_coefficient": centre} if centre else {}
    trainer, inputs = make_trainer(trl, "Reward", theirs, data, tmp_path, **coefficient)
    theirs.eval()
    with torch.no_grad():
        expected = trainer.compute_loss(theirs, dict(inputs))
        scores = theirs(**inputs).logits[:, 0]
        found = reward_losses(Sides(*scores.chunk(2)), centre=centre).mean()
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_sums_by_sample_leave_padding_out():
    values, numbers = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([1, -1, 0, 1])
    assert sum_by_sample(values, numbers, 3).tolist() == [4.0, 9.0, 0.0]
