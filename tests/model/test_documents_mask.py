"""Packed documents that may not see each other: the same numbers as each document alone, in all attention."""

import dataclasses

import pytest
import torch

from isoflop.model.config import ExpertConfig, LatentConfig, ModelConfig
from isoflop.model.transformer import Transformer

BOS = 3
DENSE = ModelConfig(2, 16, 4, 2, 8, 32, 40, 24, init_std=0.3)
LATENT = dataclasses.replace(
    DENSE, n_kv_heads=4, d_head=12, latent=LatentConfig(d_kv_latent=8, d_nope=8, d_rope=4, d_value=6, d_q_latent=10)
)
EXPERTS = dataclasses.replace(LATENT, mtp_depth=2, experts=ExpertConfig(6, 2, 8, n_dense_layers=1))


def build(config: ModelConfig, document_start: int | None) -> Transformer:
    model = Transformer(config, document_start=document_start)
    model.initialise(torch.Generator().manual_seed(0))
    return model


def packed(seed: int = 0) -> tuple[torch.Tensor, list[slice]]:
    """Two rows of 24 tokens, and where the documents of the first one lie: the rest of one, and two whole ones."""
    tokens_BT = torch.randint(4, 40, (2, 24), generator=torch.Generator().manual_seed(seed))
    tokens_BT[0, [5, 14]] = BOS
    tokens_BT[1, 0] = BOS
    return tokens_BT, [slice(0, 5), slice(5, 14), slice(14, 24)]


@pytest.mark.parametrize("config", [DENSE, LATENT, EXPERTS], ids=["dense", "latent", "experts"])
def test_a_masked_document_has_the_hidden_states_it_has_alone(config):
    masked, plain = build(config, BOS), build(config, None)
    tokens_BT, documents = packed()
    found_BTD = masked(tokens_BT)
    for document in documents:  # alone it starts at position 0: only differences of positions count
        alone_BTD = plain(tokens_BT[:1, document])
        error = (found_BTD[:1, document] - alone_BTD).abs().max() / alone_BTD.abs().max()
        assert error < 1e-5
    whole_BTD = plain(tokens_BT)
    torch.testing.assert_close(found_BTD[1], whole_BTD[1], rtol=1e-5, atol=1e-5)  # one document: nothing is masked
    assert (found_BTD[0, 5:] - whole_BTD[0, 5:]).abs().max() > 0.01


def test_prediction_modules_do_not_look_across_either():
    masked = build(EXPERTS, BOS)
    tokens_BT, _ = packed()
    changed_BT = tokens_BT.clone()
    changed_BT[0, 6:14] = (changed_BT[0, 6:14] + 1 - 4) % 36 + 4  # the second document, its BOS kept
    for before, after in zip(*(masked.mtp_hidden(masked(t), t)[0] for t in (tokens_BT, changed_BT)), strict=True):
        torch.testing.assert_close(before[0, 14:], after[0, 14:])
        assert (before[0, 6:12] - after[0, 6:12]).abs().max() > 0.01


def test_gradients_of_one_document_do_not_reach_another():
    masked = build(DENSE, BOS)
    tokens_BT, _ = packed()
    embedded = masked.embedding(tokens_BT).detach().requires_grad_()
    masked.embedding.forward = lambda _: embedded  # type: ignore[method-assign]
    masked(tokens_BT)[0, 14:].sum().backward()
    assert embedded.grad is not None
    reached_T = embedded.grad[0].abs().amax(dim=-1) > 0
    assert reached_T.tolist() == [False] * 14 + [True] * 10
