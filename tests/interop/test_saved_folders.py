"""Folders as transformers saves them and people leave them: parity with transformers, or one message with a way out."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from isoflop.errors import CheckpointError
from isoflop.interop.import_hf import Folder, import_folder
from isoflop.interop.layout import INDEX
from isoflop.interop.parity import compare

transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install isoflop[interop]")

SIZES = {
    "vocab_size": 160,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}
EXPERTS = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
QWEN = {**EXPERTS, "num_experts": 8, "shared_expert_intermediate_size": 32, "decoder_sparse_step": 1}
LATENT = {"kv_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 12, "v_head_dim": 12, "q_lora_rank": None}
DEEPSEEK = {**EXPERTS, **LATENT, "n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1}
KINDS = {
    "llama": ("Llama", {}),
    "llama_gqa": ("Llama", {"num_key_value_heads": 2}),
    "llama_tied": ("Llama", {"tie_word_embeddings": True}),
    "qwen2_moe": ("Qwen2Moe", QWEN),
    "v2": ("DeepseekV2", {**DEEPSEEK, "n_shared_experts": 2, "q_lora_rank": 24}),
    "v2_lite": ("DeepseekV2", DEEPSEEK),
    "v3": ("DeepseekV3", {**DEEPSEEK, "n_group": 2, "topk_group": 1}),
}


def save(folder, kind="llama", seed=0, **options):
    """A small random model of a kind, saved by transformers."""
    name, sizes = KINDS[kind]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **sizes})
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "shared_expert_gate" in key:  # our shared experts have no gate: a gate of zeros halves them
                value.zero_()
            elif value.ndim > 1:
                value.normal_(0.0, 0.2)
    model.save_pretrained(folder, **options)
    return folder


def tensors(folder, change):
    """Let `change` edit the tensors of a folder of one file."""
    content = load_file(folder / "model.safetensors")
    change(content)
    save_file({k: v.contiguous() for k, v in content.items()}, folder / "model.safetensors", metadata={"format": "pt"})


def keys(folder, **values):
    path = folder / "config.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, **{k: v for k, v in values.items() if v is not None}}))


HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def only_the_head(folder):
    tensors(folder, lambda held: held.update({HEAD: held.pop(EMBEDDING)}))


def both_equal(folder):
    tensors(folder, lambda held: held.update({HEAD: held[EMBEDDING].clone()}))


def both_different(folder):
    tensors(folder, lambda held: held.update({HEAD: held[EMBEDDING].flip(0)}))


def saved_again_as_one_file(folder):
    other = save(folder.parent / "other", seed=1)
    shutil.copy(other / "model.safetensors", folder / "model.safetensors")


def saved_again_in_shards(folder):
    save(folder, seed=1, max_shard_size="40KB")


def foreign_weights_beside(folder):
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    save_file({"x": torch.ones(3)}, folder / "consolidated.safetensors")


def extra_files(folder):
    (folder / "original").mkdir()
    for name in ("README.md", "training_args.bin", ".DS_Store", "optimizer.pt", "original/params.json"):
        (folder / name).write_bytes(b"{}")


def an_index_of_one_file(folder):
    names = list(load_file(folder / "model.safetensors"))
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model.safetensors")}
    (folder / INDEX).write_text(json.dumps(index))


def renamed_shards(folder):
    path = folder / INDEX
    tree = json.loads(path.read_text())
    for number, name in enumerate(sorted(set(tree["weight_map"].values()))):
        (folder / name).rename(folder / f"part {number}.safetensors")
        tree["weight_map"] = {
            k: f"part {number}.safetensors" if v == name else v for k, v in tree["weight_map"].items()
        }
    path.write_text(json.dumps(tree))


def rotary_tables(folder):
    """As Llama checkpoints of years ago have them."""
    tensors(folder, lambda held: held.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}))


def nothing(folder):
    pass


READ_AS_TRANSFORMERS_DOES = {
    "llama": ("llama", {}, nothing),
    "llama with shared keys": ("llama_gqa", {}, nothing),
    "llama in shards": ("llama", {"max_shard_size": "40KB"}, nothing),
    "tied, the embedding in the file": ("llama_tied", {}, nothing),
    "tied, the head in the file": ("llama_tied", {}, only_the_head),
    "tied, both in the file and equal": ("llama_tied", {}, both_equal),
    "tied, both in the file and different": ("llama_tied", {}, both_different),
    "saved in shards, then as one file": ("llama", {"max_shard_size": "40KB"}, saved_again_as_one_file),
    "saved as one file, then in shards": ("llama", {}, saved_again_in_shards),
    "other weights beside": ("llama", {}, foreign_weights_beside),
    "files that are no weights": ("llama", {}, extra_files),
    "an index of one file": ("llama", {}, an_index_of_one_file),
    "renamed shards": ("llama", {"max_shard_size": "40KB"}, renamed_shards),
    "rotary tables": ("llama", {}, rotary_tables),
    "Qwen2-MoE whose gates are zeros": ("qwen2_moe", {}, nothing),
    "V2": ("v2", {}, nothing),
    "V2-Lite in shards": ("v2_lite", {"max_shard_size": "60KB"}, nothing),
    "V3 without its stated prediction module": ("v3", {}, nothing),
    "V3 in shards, too": ("v3", {"max_shard_size": "60KB"}, nothing),
    "V3 that states no module": ("v3", {}, lambda folder: keys(folder, num_nextn_predict_layers=0)),
}


@pytest.mark.parametrize("case", READ_AS_TRANSFORMERS_DOES)
@pytest.mark.filterwarnings("ignore")
def test_a_saved_folder_computes_what_transformers_computes_from_it(tmp_path, case, caplog):
    kind, options, change = READ_AS_TRANSFORMERS_DOES[case]
    folder = save(tmp_path / "folder", kind, **options)
    change(folder)
    found = import_folder(folder, tmp_path / "run")
    report = compare(folder, device="cpu")
    assert report["status"] == "passed", (case, report, found, caplog.text)


def drop(name):
    return lambda folder: tensors(folder, lambda held: held.pop(name))


def a_shard_is_missing(folder):
    sorted(folder.glob("model-*.safetensors"))[-1].unlink()


def an_adapter_beside(folder):
    (folder / "adapter_config.json").write_text("{}")


def more_layers_than_stated(folder):
    keys(folder, num_hidden_layers=2)


REFUSED = {
    "qwen2_moe with gated shared experts": (
        "qwen2_moe",
        {},
        lambda folder: tensors(
            folder, lambda held: held.update({k: torch.ones_like(v) for k, v in held.items() if "expert_gate" in k})
        ),
        "shared_expert_gate.weight is not zeros",
    ),
    "untied without a head": ("llama", {}, drop(HEAD), "lacks 1 of"),
    "a shard is missing": ("llama", {"max_shard_size": "40KB"}, a_shard_is_missing, "get the missing file"),
    "an adapter beside": ("llama", {}, an_adapter_beside, "merge it into the weights first"),
    "more layers than the config states": ("llama", {}, more_layers_than_stated, "num_hidden_layers"),
    "pickled only": (
        "llama",
        {},
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "there are pytorch_model.bin|there are: pytorch_model.bin",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_folder_that_cannot_be_read_right_is_refused_with_a_way_out(tmp_path, case):
    kind, options, change, message = REFUSED[case]
    folder = save(tmp_path / "folder", kind, **options)
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        import_folder(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_is_not_read_is_named_and_kept_in_import_json(tmp_path, caplog):
    folder = save(tmp_path / "folder", max_shard_size="40KB")
    saved_again_as_one_file(folder)
    found = import_folder(folder, tmp_path / "run")
    assert INDEX in found["files_not_read"] and "model.safetensors" in caplog.text
    assert len(found["files_not_read"]) == len(list(folder.glob("model-*.safetensors"))) + 1
    assert Folder(folder).ignored == found["files_not_read"]
