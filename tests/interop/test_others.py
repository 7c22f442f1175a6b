"""With packages that the project does not need: lm-eval scores an export as we do, transformers loads FP8 itself."""

from dataclasses import replace

import pytest
import torch
from interop_models import FAMILIES, build, export, make_run

from isoflop.interop.import_hf import Folder
from isoflop.interop.parity import load_model
from isoflop.tokens.shards import TokenSet

CASES = [(" stone", "the tree and the"), (" here\n", "they were"), (" 123", "at")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gqa", "v3"])
def test_likelihoods_in_lm_eval_are_ours(tmp_path, tiny_tokens, name):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'lm_eval[hf]'")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = build(replace(FAMILIES[name], vocab_size=512))
    export(make_run(tmp_path / "run", model, data={"tokens": str(tiny_tokens)}), tmp_path / "hf")
    backend = HFLM(pretrained=str(tmp_path / "hf"), device="cpu", dtype="float32", batch_size=1, add_bos_token=True)
    requests = [
        Instance(request_type="loglikelihood", doc={}, arguments=(context, continuation), idx=0)
        for continuation, context in CASES
    ]
    found = backend.loglikelihood(requests)
    tokenizer = TokenSet.open(tiny_tokens).tokenizer
    for (continuation, context), (score, _) in zip(CASES, found, strict=True):
        before = [tokenizer.bos_id, *tokenizer.encode(context)]
        whole = [tokenizer.bos_id, *tokenizer.encode(context + continuation)]
        with torch.no_grad():
            nats_TV = model.logits(torch.tensor([whole]))[0].log_softmax(-1)
        ours = sum(nats_TV[at - 1, whole[at]].item() for at in range(len(before), len(whole)))
        assert score == pytest.approx(ours, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gqa", "v3"])
def test_transformers_reads_our_fp8_folder_by_itself(tmp_path, name):
    """Where there is no GPU it turns FP8 into the config's number format; the values are ours, bit for bit."""
    pytest.importorskip("accelerate", reason="transformers needs accelerate for FP8: pip install accelerate")
    import transformers

    model = build(FAMILIES[name])
    export(make_run(tmp_path / "run", model), tmp_path / "hf", fp8=True)
    transformers.logging.set_verbosity_error()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    ours = load_model(Folder(tmp_path / "hf"), torch.device("cpu")).state_dict()
    found = theirs.state_dict()
    read = {
        "model.layers.1.self_attn.o_proj.weight": ours["blocks.1.attention.out.weight"],
        "model.layers.0.mlp.down_proj.weight": ours["blocks.0.mlp.down.weight"],
    }
    if name == "v3":
        read["model.layers.1.mlp.experts.gate_up_proj"] = ours["blocks.1.mlp.experts.gate_up"]
    for key, expected in read.items():
        assert torch.equal(found[key], expected), key
