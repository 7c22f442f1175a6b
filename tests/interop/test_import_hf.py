"""Bad folders: one clear error each through the real command line, exit code 2, and nothing left behind."""

import errno
import json
import shutil
from dataclasses import replace

import pytest
import torch
from interop_models import FAMILIES, build, export, make_run
from safetensors.torch import load_file, save_file

from isoflop.cli import main as cli
from isoflop.errors import CheckpointError
from isoflop.interop.export_hf import open_run
from isoflop.interop.import_hf import import_folder
from isoflop.interop.layout import INDEX
from isoflop.interop.parity import device_of
from isoflop.interop.tensors import TensorWriter

V3_SMALL = replace(FAMILIES["v3"], vocab_size=4000)
Q = "model.layers.0.self_attn.q_a_proj.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A V3 folder of several shards, made once and copied."""
    folder = tmp_path_factory.mktemp("good")
    export(make_run(folder / "run", build(V3_SMALL)), folder / "v3", shard_mib=1)
    return folder / "v3"


@pytest.fixture
def bad(good, tmp_path):
    return shutil.copytree(good, tmp_path / "bad")


def change_config(folder, **keys):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def change_index(folder, **places):
    path = folder / INDEX
    tree = json.loads(path.read_text())
    tree["weight_map"].update(places)
    path.write_text(json.dumps(tree))


def change_tensors(folder, change, name=Q):
    """Let `change` edit the shard (a dict) that holds `name`; the index follows."""
    path = folder / INDEX
    tree = json.loads(path.read_text())
    shard = tree["weight_map"][name]
    content = load_file(folder / shard)
    change(content)
    save_file(content, folder / shard)
    tree["weight_map"] = {k: v for k, v in tree["weight_map"].items() if v != shard} | dict.fromkeys(content, shard)
    path.write_text(json.dumps(tree))


def shard_of(folder, name=Q):
    return folder / json.loads((folder / INDEX).read_text())["weight_map"][name]


def truncate(folder):
    path = shard_of(folder)
    path.write_bytes(path.read_bytes()[:-100])


def only_pickles(folder):
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")


def retype(dtype):
    return lambda folder: change_tensors(folder, lambda shard: shard.update({Q: shard[Q].to(dtype)}))


COPY = "model.layers.3.shared_head.head.weight"
BAD = {
    "truncated shard": (truncate, "safetensors has .* bytes, its header describes .*: truncated"),
    "missing shard": (lambda f: shard_of(f).unlink(), "safetensors does not exist"),
    "missing tensor": (lambda f: change_tensors(f, lambda s: s.pop(Q)), f"lacks 1 of .* tensors, {Q}"),
    "unexpected tensor": (
        lambda f: change_tensors(f, lambda s: s.update({"model.layers.0.extra.weight": torch.ones(2)})),
        "holds 1 tensors that a DeepseekV3ForCausalLM of this config does not have, model.layers.0.extra.weight",
    ),
    "wrong shape": (
        lambda f: change_tensors(f, lambda s: s.update({Q: s[Q][:-1].clone()})),
        rf"{Q} has shape \[27, 48\], config.json asks for \[28, 48\]",
    ),
    "integers": (retype(torch.int8), rf"{Q} has dtype torch.int8; weights can be float32, bfloat16, float16 or FP8"),
    "float64": (retype(torch.float64), rf"{Q} has dtype torch.float64"),
    "FP8 without its config": (retype(torch.float8_e4m3fn), f"{Q} is FP8, but config.json has no quantization_config"),
    "unknown architecture": (
        lambda f: change_config(f, architectures=["GPT2LMHeadModel"]),
        r"architectures = \['GPT2LMHeadModel'\] is none that can be imported",
    ),
    "more layers than tensors": (
        lambda f: change_config(f, num_hidden_layers=5),
        r"contradicts the tensors: num_hidden_layers .* = 6, the files hold 4",
    ),
    "fewer layers than tensors": (
        lambda f: change_config(f, num_nextn_predict_layers=0),
        r"contradicts the tensors: num_hidden_layers .* = 3, the files hold 4",
    ),
    "other width": (lambda f: change_config(f, hidden_size=64), r"config.json asks for \[4000, 64\]"),
    "other experts": (lambda f: change_config(f, n_routed_experts=8), r"config.json asks for \[8, 48\]"),
    "config that is not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
    "config of lists in lists": (lambda f: (f / "config.json").write_text("[" * 9999), "config.json is not JSON"),
    "a family that is a list": (lambda f: change_config(f, architectures=[["x"]]), "config.json is damaged"),
    "a rotary base that is text": (lambda f: change_config(f, rope_theta="x"), "config.json"),
    "config that is a list": (lambda f: (f / "config.json").write_text("[]"), "config.json is not a table"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json does not exist"),
    "pickled weights": (only_pickles, "has neither .* nor model.safetensors; weights are read from safetensors only"),
    "index that is not JSON": (lambda f: (f / INDEX).write_text("x"), "index.json is not JSON"),
    "index without map": (lambda f: (f / INDEX).write_text("{}"), "has no weight_map"),
    "index that leaves the folder": (lambda f: change_index(f, **{Q: "../x.safetensors"}), r"names '\.\./x.*; refused"),
    "index deep outside": (lambda f: change_index(f, **{Q: "a/../../x"}), r"names 'a/\.\./\.\./x'.* refused"),
    "absolute index": (lambda f: change_index(f, **{Q: "/etc/passwd"}), "names '/etc/passwd'.* refused"),
    "index of another system": (lambda f: change_index(f, **{Q: "..\\x"}), r"names '\.\.\\\\x'.* refused"),
    "index with a drive": (lambda f: change_index(f, **{Q: "C:x"}), "names 'C:x'.* refused"),
    "index with a number": (lambda f: change_index(f, **{Q: 3}), "names 3, .* refused"),
    "index that is wrong": (
        lambda f: change_index(f, **{"model.layers.9.x": shard_of(f).name}),
        "says that model.layers.9.x is in .* which does not hold it",
    ),
    "other quantisation": (
        lambda f: change_config(f, quantization_config={"quant_method": "gptq"}),
        "quant_method = 'gptq'",
    ),
    "other blocks": (
        lambda f: change_config(f, quantization_config={"quant_method": "fp8", "weight_block_size": [64, 64]}),
        r"weight_block_size = \[64, 64\]; only \[128, 128\]",
    ),
    "a head of its own in the prediction layer": (
        lambda f: change_tensors(f, lambda s: s[COPY].add_(1), COPY),
        f"{COPY} differs from lm_head.weight; isoflop shares them",
    ),
    "a damaged tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json is not a tokenizer"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_gives_one_error_and_leaves_nothing(bad, tmp_path, refused, case):
    damage, message = BAD[case]
    damage(bad)
    before = sorted(path.name for path in tmp_path.iterdir())
    error = refused("import", bad, "--out", tmp_path / "run")
    with pytest.raises(CheckpointError, match=message):
        import_folder(bad, tmp_path / "run")
    assert str(bad) in error or "config.json" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop(f"{Q}_scale_inv"), f"{Q} is FP8 and {Q}_scale_inv is missing"),
        (lambda s: s.update({f"{Q}_scale_inv": torch.ones(2, 1)}), rf"{Q}_scale_inv is \[2, 1\] .* must be \[1, 1\]"),
        (lambda s: s.update({f"{Q}_scale_inv": torch.ones(1, 1).half()}), "must be .* torch.float32"),
        (
            lambda s: s.update({Q.replace("q_a_proj", "q_a_layernorm"): torch.ones(28).to(torch.float8_e4m3fn)}),
            "q_a_layernorm.weight is FP8; embedding, head, router, norms and eh_proj cannot be",
        ),
    ],
)
def test_bad_fp8_is_refused(tmp_path, change, message):
    export(make_run(tmp_path / "run", build(FAMILIES["v3"])), tmp_path / "bad", fp8=True)
    change_tensors(tmp_path / "bad", change)
    with pytest.raises(CheckpointError, match=message):
        import_folder(tmp_path / "bad", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_tensor_in_two_files_is_refused(bad, tmp_path):
    home = shard_of(bad)
    other = next(path for path in sorted(bad.glob("*.safetensors")) if path != home)
    save_file({**load_file(other), Q: load_file(home)[Q]}, other)
    with pytest.raises(CheckpointError, match=f"{Q} is in .* and in .*; keep one of them"):
        import_folder(bad, tmp_path / "run")


@pytest.mark.parametrize("command", ["import", "export"])
def test_a_full_disk_leaves_nothing_behind(good, tmp_path, refused, monkeypatch, command):
    source = good if command == "import" else make_run(tmp_path / "source", build(FAMILIES["v3"]))
    before = sorted(path.name for path in tmp_path.iterdir())
    written = []

    def full(self, rows, name):
        written.append(name)
        if len(written) > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(self, rows, name)

    original = TensorWriter.write
    monkeypatch.setattr(TensorWriter, "write", full)
    assert "No space left" in refused(command, source, "--out", tmp_path / "out")
    assert len(written) == 21 and sorted(path.name for path in tmp_path.iterdir()) == before


def test_an_out_that_exists_is_refused_and_untouched(good, tmp_path, refused):
    run = make_run(tmp_path / "run", build(FAMILIES["v3"]))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    (tmp_path / "file").write_text("x")
    for command, source in (("import", good), ("export", run)):
        assert "exists already; delete it or give another" in refused(command, source, "--out", tmp_path / "full")
        assert "is a file; give the name of a folder" in refused(command, source, "--out", tmp_path / "file")
    assert (tmp_path / "full" / "precious").read_text() == (tmp_path / "file").read_text() == "x"


def test_an_empty_folder_behind_a_link_is_filled(good, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    import_folder(good, tmp_path / "out")
    assert (tmp_path / "out").is_symlink() and (tmp_path / "disk" / "recipe.toml").is_file()


def test_a_tied_head_becomes_a_matrix_of_its_own(tmp_path, caplog):
    export(make_run(tmp_path / "run", build(FAMILIES["mha"])), tmp_path / "tied")
    change_tensors(tmp_path / "tied", lambda shard: shard.pop("lm_head.weight"), "lm_head.weight")
    change_config(tmp_path / "tied", tie_word_embeddings=True)
    import_folder(tmp_path / "tied", tmp_path / "back")
    assert "ties head and embedding" in caplog.text
    found = load_file(open_run(tmp_path / "back").checkpoint / "model.safetensors")
    assert torch.equal(found["head.weight"], found["embedding.weight"])


def test_old_rotary_tables_and_a_single_file_are_accepted(tmp_path):
    export(make_run(tmp_path / "run", build(FAMILIES["mha"])), tmp_path / "old")
    (shard,) = (tmp_path / "old").glob("*.safetensors")
    content = load_file(shard)
    save_file({**content, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}, shard)
    shard.rename(tmp_path / "old" / "model.safetensors")
    (tmp_path / "old" / INDEX).unlink()
    assert import_folder(tmp_path / "old", tmp_path / "back")["architecture"] == "LlamaForCausalLM"


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda run: (run / "recipe.toml").unlink(), "recipe.toml does not exist; give the folder of isoflop train"),
        (lambda run: shutil.rmtree(run / "checkpoints"), "holds no checkpoint"),
        (
            lambda run: (run / "recipe.toml").write_text(
                (run / "recipe.toml").read_text().replace("d_ff = 80", "d_ff = 96")
            ),
            r"gate_up.weight should be \[192, 48\] by .*, the checkpoint has \[160, 48\]",
        ),
        (
            lambda run: next(run.glob("checkpoints/*/model.safetensors")).write_bytes(b"x"),
            "all 1 checkpoints in .* are damaged",
        ),
    ],
)
def test_a_bad_run_gives_one_error_and_leaves_nothing(tmp_path, refused, damage, message):
    run = make_run(tmp_path / "run", build(FAMILIES["mha"]))
    damage(run)
    refused("export", run, "--out", tmp_path / "out")
    with pytest.raises(CheckpointError, match=message):
        export(run, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]


def test_bad_options_of_export_are_refused(tmp_path, refused):
    run = make_run(tmp_path / "run", build(FAMILIES["v3"]))
    out = tmp_path / "out"
    assert "--step 9: " in refused("export", run, "--out", out, "--step", "9")
    assert "--shard-mib = 0 must be at least 1" in refused("export", run, "--out", out, "--shard-mib", "0")
    assert "--tokenizer" in refused("export", run, "--out", out, "--tokenizer", tmp_path)
    assert "the format llama is dense" in refused("export", run, "--out", out, "--format", "llama")
    assert "--device = 'tpu' is not a device" in refused("export", run, "--out", out, "--device", "tpu")
    no_report = ("--out", out, "--no-parity", "--device", "cuda")
    assert "--device cuda has no effect without --parity" in refused("export", run, *no_report)
    assert not out.exists()
    assert device_of("auto", parity=True) in ("cpu", "cuda") and device_of("cpu", parity=False) == "cpu"


def test_import_through_the_command_line_says_what_it_did(good, tmp_path, capsys):
    cli.main(["import", str(good), "--out", str(tmp_path / "run"), "--json", str(tmp_path / "found.json")])
    assert f"run in {tmp_path / 'run'}" in capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["architecture"] == "DeepseekV3ForCausalLM" and not found["fp8"]
    assert open_run(tmp_path / "run").config == V3_SMALL
