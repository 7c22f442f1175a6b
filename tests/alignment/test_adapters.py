"""LoRA against peft, on the same weights in transformers."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from interop_models import FAMILIES, build, export, make_run, random_tokens

from isoflop.alignment.adapters import adapted_layers, add_adapters, merged_weights, without_adapters
from isoflop.alignment.recipe import AdapterSection
from isoflop.errors import CheckpointError, RecipeError
from isoflop.interop.export_peft import export_peft
from isoflop.model.transformer import Transformer
from isoflop.recipe import write_recipe
from isoflop.training import checkpoint
from isoflop.training.optim import adamw

DENSE = ["mha", "gqa", "v3_dense"]


def adapted(model, section=AdapterSection(rank=4), *, drawn=True):  # noqa: B008
    generator = torch.Generator().manual_seed(3)
    names = add_adapters(model, section, generator)
    if drawn:  # as if trained
        for layer in adapted_layers(model).values():
            layer.lora_b.data.normal_(0.0, 0.1, generator=generator)
    return names


def save_adapters(model, section, folder):
    optimizer = adamw(model, learning_rate=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    checkpoint.save(folder / "checkpoints", step=2, model=model, optimizer=optimizer, state={})
    write_recipe(folder / "recipe.toml", {"model": model.config, "adapter": section})
    return optimizer


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("targets", [("all",), ("qkv", "down")])
@pytest.mark.parametrize("name", DENSE)
def test_adapter_folder_loads_in_peft_with_equal_logits(name, targets, rslora, tmp_path):
    peft = pytest.importorskip("peft", reason="needs peft 0.21.2: pip install isoflop[dev]")
    import transformers

    if name == "v3_dense":
        targets = ("q_down", "q_up", "kv_down", "kv_up", "out") if targets == ("all",) else ("q_up", "out")
    model = build(FAMILIES[name])
    export(make_run(tmp_path / "base", model), tmp_path / "hf")
    section = AdapterSection(rank=4, alpha=7.0, targets=targets, rslora=rslora)
    plain = model(random_tokens(model.config))
    adapted(model, section)
    save_adapters(model, section, tmp_path / "run")
    found = export_peft(tmp_path / "run", tmp_path / "adapter", base=str(tmp_path / "hf"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    tokens = random_tokens(model.config)
    with torch.no_grad():
        ours, expected = model.logits(tokens), theirs(tokens).logits
        assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()
        assert (model(tokens) - plain).abs().max() > 0.01  # the adapters do something
    loaded = {n.removesuffix(".default.weight") for n, p in theirs.named_parameters() if "lora_" in n}
    assert len(loaded) == found["tensors"]


def test_an_adapted_model_begins_as_exactly_its_base():
    model, tokens = build(FAMILIES["gqa"]), random_tokens(FAMILIES["gqa"])
    before = model.logits(tokens)
    names = adapted(model, drawn=False)
    assert torch.equal(model.logits(tokens), before)
    assert len(names) == 4 * model.config.n_layers
    bound = 1 / math.sqrt(model.config.d_model)
    a = adapted_layers(model)["blocks.0.attention.qkv"].lora_a
    assert a.abs().max() <= bound and a.abs().max() > 0.8 * bound


def test_the_base_is_there_with_adapters_off_and_back_on_after():
    model, tokens = build(FAMILIES["mha"]), random_tokens(FAMILIES["mha"])
    before = model.logits(tokens)
    adapted(model)
    changed = model.logits(tokens)
    with without_adapters(model):
        assert torch.equal(model.logits(tokens), before)
    assert torch.equal(model.logits(tokens), changed) and not torch.equal(changed, before)


@pytest.mark.parametrize("name", [*DENSE, "moe"])
def test_merged_weights_compute_the_same(name):
    model, tokens = build(FAMILIES[name]), random_tokens(FAMILIES[name])
    adapted(model)
    plain = Transformer(model.config).eval()
    plain.load_state_dict(merged_weights(model))
    with torch.no_grad():
        expected = model.logits(tokens)
        assert (plain.logits(tokens) - expected).abs().max() < 2e-5 * expected.abs().max()


def test_merged_adapter_exports_with_parity(tmp_path):
    from isoflop.interop.export_hf import export_run

    model = build(FAMILIES["gqa"])
    adapted(model)
    plain = Transformer(model.config).eval()
    plain.load_state_dict(merged_weights(model))
    found = export_run(make_run(tmp_path / "merged", plain), tmp_path / "hf", parity=True)
    assert found["parity"]["status"] == "passed"


def test_optimizer_and_checkpoint_hold_adapters_only(tmp_path):
    model = build(FAMILIES["gqa"])
    section = AdapterSection(rank=4)
    names = adapted(model, section)
    optimizer = save_adapters(model, section, tmp_path)
    n_trained = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    expected = {f"{name}.lora_{half}" for name in names for half in "ab"}
    assert {name for name, p in model.named_parameters() if p.requires_grad} == expected
    assert n_trained == sum(model.get_parameter(name).numel() for name in expected)
    from safetensors.torch import load_file

    folder = tmp_path / "checkpoints" / "step_00000002"
    assert load_file(folder / "model.safetensors").keys() == expected
    other = build(FAMILIES["gqa"])
    adapted(other, section, drawn=False)
    checkpoint.load(folder, other, None)
    tokens = random_tokens(model.config)
    assert torch.equal(other.logits(tokens), model.logits(tokens))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("q_proj",), r"adapter\.targets: 'q_proj' matches no layer; there are: all, down"),
        ((), "adapter.targets is em"),
    ],
)
def test_targets_that_match_nothing_are_refused(targets, message):
    with pytest.raises(RecipeError, match=message):
        adapted(build(FAMILIES["mha"]), AdapterSection(targets=targets))


def test_a_rank_above_the_size_of_a_layer_is_refused():
    with pytest.raises(RecipeError, match=r"adapter\.rank = 1000000000 is above the \d+ rows or columns of blocks\.0"):
        adapted(build(FAMILIES["mha"]), AdapterSection(rank=10**9))


def test_a_run_without_adapters_is_no_peft_folder(tmp_path):
    run = make_run(tmp_path / "run", build(replace(FAMILIES["mha"], n_layers=1)))
    with pytest.raises(CheckpointError, match=r"has no \[adapter\].*export it with isoflop export"):
        export_peft(run, tmp_path / "out")


def test_what_peft_would_take_for_experts_is_refused(tmp_path):
    model, section = build(FAMILIES["v3_dense"]), AdapterSection(rank=4)
    adapted(model, section)
    save_adapters(model, section, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"mlp\.gate_up is adapted, but peft takes every MLP of deepseek_v3"):
        export_peft(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()
