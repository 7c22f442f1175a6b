"""Our models and those of transformers compute the same, both ways; where transformers departs, it is written down."""

import json
import re
import sys
from dataclasses import replace

import pytest
import torch
import transformers
from interop_models import FAMILIES, build, export, make_run, random_tokens, relative_error
from safetensors.torch import load_file, save_file

from isoflop.cli import main as cli
from isoflop.errors import CheckpointError
from isoflop.interop import import_hf as intake
from isoflop.interop import parity
from isoflop.interop.export_hf import open_run, run_model
from isoflop.interop.formats import derived_format, to_config
from isoflop.interop.import_hf import Folder, import_folder
from isoflop.interop.layout import INDEX
from isoflop.interop.parity import TOLERANCE, compare, greedy, load_model
from isoflop.model.experts import select

EACH = pytest.mark.parametrize("name", FAMILIES)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity_warning()


def exported(tmp_path, config, **options):
    """A run with random weights, and the folder it became."""
    run = make_run(tmp_path / "run", build(config))
    export(run, tmp_path / "out", **options)
    return run, tmp_path / "out"


def tensors_of(folder):
    files = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    return {name: value for file in files for name, value in load_file(folder / file).items()}


def same_bits(a, b):
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and torch.equal(a[k].view(torch.uint8), b[k].view(torch.uint8)) for k in a
    )


def their_random_model(config, seed=0):
    """A model that transformers made from our config.json, with weights as `interop_models.build` draws them."""
    tree = to_config(replace(config, mtp_depth=0), derived_format(config), bos=0, eos=1, dtype="float32")
    read = transformers.CONFIG_MAPPING[tree["model_type"]].from_dict(tree)
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(read, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("norm.weight"):
                value.uniform_(0.5, 1.5)
            elif name.endswith("correction_bias"):
                value.normal_(0.0, 0.1)
            elif name.endswith(("proj.bias", "shared_expert_gate.weight")):
                value.zero_()  # ours has no such weights
            elif name == "model.embed_tokens.weight":
                value.normal_()
            else:
                value.normal_(0.0, 1.5 * value.shape[-1] ** -0.5)
    return model


@EACH
def test_an_exported_model_computes_the_same_in_transformers(tmp_path, name):
    """The report itself: logits, most likely tokens, 64 greedy steps, through both caches."""
    _, folder = exported(tmp_path, FAMILIES[name])
    report = compare(folder)
    assert report["status"] == "passed", report
    assert report["relative_difference"] <= TOLERANCE and report["top1_agreement"] == 1.0
    assert report["greedy"]["steps"] == 64 and report["greedy"]["equal"] == report["greedy"]["prompts"] >= 3
    assert report["positions"] >= 0.9 * 8 * 96 and 1.0 < report["largest_logit"] < 100
    assert report == json.loads((folder / "parity.json").read_text())


@EACH
def test_a_model_that_transformers_saved_computes_the_same_here(tmp_path, name):
    config = replace(FAMILIES[name], mtp_depth=0)
    theirs = their_random_model(config)
    theirs.save_pretrained(tmp_path / "theirs")
    import_folder(tmp_path / "theirs", tmp_path / "run")
    ours = run_model(open_run(tmp_path / "run"))
    tokens_BT = random_tokens(config)
    with torch.no_grad():
        assert relative_error(ours.logits(tokens_BT), theirs(tokens_BT).logits) <= TOLERANCE
    export(tmp_path / "run", tmp_path / "again")
    before = {k: v for f in (tmp_path / "theirs").glob("*.safetensors") for k, v in load_file(f).items()}
    assert same_bits(tensors_of(tmp_path / "again"), before)


@EACH
@pytest.mark.parametrize("options", [{}, {"dtype": "bfloat16"}, {"fp8": True}], ids=["float32", "bfloat16", "fp8"])
def test_export_import_export_gives_the_same_bits(tmp_path, name, options):
    run, folder = exported(tmp_path, FAMILIES[name], shard_mib=1, **options)
    import_folder(folder, tmp_path / "back")
    export(tmp_path / "back", tmp_path / "again", shard_mib=1, fp8=options.get("fp8", False))
    first, second = tensors_of(folder), tensors_of(tmp_path / "again")
    assert same_bits(first, second)
    if not options:
        one, other = (load_file(open_run(r).checkpoint / "model.safetensors") for r in (run, tmp_path / "back"))
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("name", ["mha", "v3"])
def test_an_fp8_folder_computes_the_same_and_says_what_it_cost(tmp_path, name):
    config = FAMILIES[name]
    run, folder = exported(tmp_path, config, fp8=True)
    report = compare(folder, run_model=run_model(open_run(run)))
    assert report["status"] == "passed", report
    cost = report["rounding"]  # of single positions much more, where another expert is chosen
    assert cost["relative_difference"] > 1e-3 and cost["mean_logit_difference"] < 0.1 * cost["largest_logit"]
    kinds = {name: value.dtype for name, value in tensors_of(folder).items()}
    assert kinds["model.layers.0.self_attn.o_proj.weight"] == torch.float8_e4m3fn
    assert kinds["model.layers.0.self_attn.o_proj.weight_scale_inv"] == torch.float32
    assert kinds["model.embed_tokens.weight"] == kinds["lm_head.weight"] == torch.float32


def test_a_folder_with_the_released_names_of_deepseekmoe_becomes_one_that_transformers_has_a_class_for(tmp_path):
    _, released = exported(tmp_path, FAMILIES["moe"], format="deepseek", dtype="bfloat16")
    names = {re.sub(r"(layers|experts)\.\d+", r"\1.#", name) for name in tensors_of(released)}
    shared = {f"model.layers.#.mlp.shared_experts.{side}_proj.weight" for side in ("gate", "up", "down")}
    assert shared < names and not any(name.endswith(".bias") for name in names)
    skipped = compare(released)
    assert skipped["status"] == "skipped" and "DeepseekForCausalLM" in skipped["reason"]
    assert "--format qwen2_moe" in skipped["reason"]
    import_folder(released, tmp_path / "back")
    export(tmp_path / "back", tmp_path / "known")
    assert compare(tmp_path / "known")["status"] == "passed"
    one, other = tensors_of(released), tensors_of(tmp_path / "known")
    down = "model.layers.1.mlp.shared_expert{}.down_proj.weight"
    assert torch.equal(other[down.format("")], 2 * one[down.format("s")])  # its readers weigh it by sigmoid(0)
    import_folder(tmp_path / "known", tmp_path / "again")
    export(tmp_path / "again", tmp_path / "out_again", format="deepseek")
    assert same_bits(tensors_of(tmp_path / "out_again"), one)


@pytest.mark.parametrize("name", ["mlp.shared_expert_gate.weight", "self_attn.k_proj.bias"])
def test_weights_that_ours_has_not_are_refused_unless_they_are_zeros(tmp_path, name):
    _, folder = exported(tmp_path, FAMILIES["moe"])
    path = folder / "model-00001-of-00001.safetensors"
    tensors = load_file(path)
    tensors[f"model.layers.1.{name}"].view(-1)[3] = 0.5
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"model\.layers\.1\.{name} is not zeros"):
        import_folder(folder, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_without_rounding_the_report_has_no_rounding(tmp_path):
    run, folder = exported(tmp_path, FAMILIES["mha"])
    assert "rounding" not in compare(folder, run_model=run_model(open_run(run)))


def test_the_report_fails_when_the_rotary_layout_is_not_converted(tmp_path, monkeypatch):
    _, folder = exported(tmp_path, FAMILIES["v3"])
    monkeypatch.setattr(intake, "to_ours", lambda rows, rotary: rows)
    report = compare(folder)
    assert report["status"] == "failed" and report["relative_difference"] > 1e-2


def test_without_transformers_the_report_says_so(tmp_path, monkeypatch):
    _, folder = exported(tmp_path, FAMILIES["mha"])
    monkeypatch.setitem(sys.modules, "transformers", None)
    report = compare(folder)
    assert report["status"] == "skipped" and "pip install 'isoflop[interop]'" in report["reason"]
    assert json.loads((folder / "parity.json").read_text()) == report


def test_a_routing_tie_is_left_out_and_counted(tmp_path):
    """Two experts with the same router row and bias: every token that wants one of them at the border is a tie."""
    config = replace(FAMILIES["v3_no_query_latent"], n_layers=2)
    model = build(config)
    with torch.no_grad():
        router = model.blocks[1].mlp.router
        router.weight[1:4], router.bias[1:4] = router.weight[0], router.bias[0]
    export(make_run(tmp_path / "run", model), tmp_path / "out")
    report = compare(tmp_path / "out")
    assert report["routing_ties"] > 0 and report["positions_left_out"] >= report["routing_ties"]
    assert report["positions"] + report["positions_left_out"] == 8 * 96
    assert report["status"] == "passed" and report["positions"] > 50


def test_the_prediction_module_equals_that_of_transformers(tmp_path):
    """Embedding before hidden state, hidden state after the final norm, chained after the module's own norm."""
    from transformers.modeling_layers import MtpModel

    config = FAMILIES["v3_not_normalised"]
    _, folder = exported(tmp_path, config)
    ours = load_model(Folder(folder), CPU)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    # it looks for layer 61 only, the one of the released model
    theirs._keys_to_ignore_on_load_unexpected = [rf"model\.layers\.{config.n_layers + k}\..*" for k in range(2)]
    module = MtpModel.from_pretrained(theirs).eval()
    tokens_BT = random_tokens(config, batch=2, length=40)
    with torch.no_grad():
        hidden_BTD = theirs.model(tokens_BT).last_hidden_state
        mine, _ = ours.mtp_hidden(ours(tokens_BT), tokens_BT)
        for depth in range(2):
            ahead_BT = tokens_BT[:, 1 + depth :]
            position_1T = torch.arange(ahead_BT.shape[1])[None]
            hidden_BTD = module.forward_layer(
                depth, hidden_BTD[:, : ahead_BT.shape[1]], position_1T, None, input_ids=ahead_BT
            )
            assert relative_error(mine[depth], hidden_BTD) <= 2 * TOLERANCE  # of one module after another


class TestDepartures:
    """Where transformers and the released reference code part (docs/interop.md has the table)."""

    def test_discarded_groups_are_minus_infinity_in_this_transformers_too(self, tmp_path):
        """Versions that put 0 there choose discarded experts once biases push all scores below 0."""
        config = replace(FAMILIES["v3"], mtp_depth=0)
        model = build(config)
        for block in model.blocks[1:]:
            block.mlp.router.bias -= 1.5
        export(make_run(tmp_path / "run", model), tmp_path / "out")
        report = compare(tmp_path / "out")
        assert report["status"] == "passed", report
        # the case has power: with 0 instead of -inf other experts are chosen
        scores_TE, experts = torch.rand(50, 16, generator=torch.Generator().manual_seed(0)), config.experts
        bias_E = model.blocks[1].mlp.router.bias
        chosen_TA = select(scores_TE, bias_E, experts)
        masked_TNE = (scores_TE + bias_E).unflatten(1, (4, 4))
        best_TN = masked_TNE.topk(2, -1).values.sum(-1).topk(2, -1).indices
        kept_TN = torch.zeros(50, 4, dtype=torch.bool).scatter_(1, best_TN, True)
        zeros_TE = masked_TNE.masked_fill(~kept_TN[..., None], 0.0).flatten(1)
        other_TA = zeros_TE.topk(experts.n_active, -1).indices
        assert (chosen_TA.sort().values != other_TA.sort().values).any(1).all()

    def test_latent_norms_ignore_rms_norm_eps_in_transformers(self):
        theirs = their_random_model(replace(FAMILIES["v3"], norm_eps=1e-4))
        attention = theirs.model.layers[0].self_attn
        assert attention.q_a_layernorm.variance_epsilon == attention.kv_a_layernorm.variance_epsilon == 1e-6
        assert theirs.model.norm.variance_epsilon == 1e-4

    def test_v2_ignores_norm_topk_prob_in_transformers(self):
        """The released V2 code normalises then, and leaves out the scaling factor; so such a model has no export."""
        model = their_random_model(FAMILIES["v2"])
        tokens_BT = random_tokens(FAMILIES["v2"], batch=1)
        with torch.no_grad():
            before = model(tokens_BT).logits
            model.config.norm_topk_prob = True
            other = type(model)(model.config).eval()
            other.load_state_dict(model.state_dict())
            assert torch.equal(other(tokens_BT).logits, before)

    def test_yarn_is_applied_below_the_original_length_in_transformers(self):
        """The released code leaves it out then; so do we, by refusing such a config."""
        config = FAMILIES["v3"]
        tree = to_config(config, "deepseek_v3", bos=0, eos=1, dtype="float32")
        tree["max_position_embeddings"] = config.yarn.original_seq_len
        read = transformers.DeepseekV3Config.from_dict(tree)
        model = transformers.DeepseekV3ForCausalLM(read)
        assert model.model.layers[0].self_attn.scaling == pytest.approx(config.softmax_scale())
        from isoflop.interop.formats import from_config

        with pytest.raises(CheckpointError, match=r"original_seq_len = 24 .* below model.seq_len = 24"):
            from_config(tree)


def test_greedy_through_the_cache_equals_the_full_forward():
    config = FAMILIES["v3"]
    model = build(config)
    tokens_BT = random_tokens(config, batch=2, length=10)
    with torch.no_grad():
        found_BT = greedy(model, tokens_BT, 20)
        for step in range(20):
            end = 10 + step
            assert torch.equal(model.logits(found_BT[:, :end])[:, -1].argmax(-1), found_BT[:, end])


def test_a_difference_beyond_small_models_is_a_warning_and_a_large_one_an_error(tmp_path, monkeypatch, capsys, refused):
    run = make_run(tmp_path / "run", build(FAMILIES["mha"]))
    monkeypatch.setattr(parity, "TOLERANCE", 1e-12)
    cli.main(["export", str(run), "--out", str(tmp_path / "close")])
    assert re.search(r"warning: logits differ by .* more than small models do", capsys.readouterr().out)
    monkeypatch.setattr(parity, "WRONG", 1e-11)
    error = refused("export", run, "--out", tmp_path / "wrong")
    assert "transformers computes something else: logits differ by" in error and "4 of 4 greedy" in error
    assert json.loads((tmp_path / "wrong" / "parity.json").read_text())["status"] == "failed"


def test_continuations_that_part_at_equal_logits_are_left_out(tmp_path, monkeypatch):
    """Two tokens with one head row are always equally likely; a program that takes the other one is not wrong."""
    model = build(FAMILIES["mha"])
    with torch.no_grad():
        model.head.weight[1::2] = model.head.weight[::2]
    run = make_run(tmp_path / "run", model)
    export(run, tmp_path / "out")
    monkeypatch.setattr(parity, "greedy", lambda *given: greedy(*given) ^ (torch.arange(96) >= 32))
    report = compare(tmp_path / "out")["greedy"]
    assert report["left_out_for_ties"] == 4 and report["prompts"] == report["equal"] == 0
