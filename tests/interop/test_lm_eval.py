"""Exported folders load in lm-eval's Hugging Face backend and score there as they do here."""

from dataclasses import replace

import pytest
import torch
from interop_models import FAMILIES, build, make_run

from isoflop.interop.export import export_run
from isoflop.tokens.shards import TokenSet

CASES = [(" stone", "the tree and the"), (" here\n", "they were"), (" 123", "at")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gqa", "v3"])
def test_likelihoods_in_lm_eval_are_ours(tmp_path, tiny_tokens, name):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'lm_eval[hf]'")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    model = build(replace(FAMILIES[name], vocab_size=512))
    export_run(make_run(tmp_path / "run", model, data={"tokens": str(tiny_tokens)}), tmp_path / "hf")
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
