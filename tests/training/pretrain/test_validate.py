"""Bits per byte against a computation by hand in float64."""

import math

import pytest
import torch
from torch.nn import functional as F

from isoflop.errors import DataError
from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.tokens.batches import Batches
from isoflop.tokens.shards import TokenSet
from isoflop.training.pretrain.validate import validate

CONFIG = ModelConfig(
    n_layers=1, d_model=8, n_heads=2, n_kv_heads=2, d_head=4, d_ff=16, vocab_size=512, seq_len=16, init_std=0.2
)


@pytest.fixture
def model() -> Transformer:
    made = Transformer(CONFIG)
    made.initialise(torch.Generator().manual_seed(3))
    return made


def windows_of(folder, max_tokens: int = 0):
    token_set = TokenSet.open(folder)
    batches = Batches(token_set, seq_len=16, batch_sequences=4, seed=0)
    windows = {
        domain: [
            (torch.from_numpy(w.tokens), torch.from_numpy(w.counted), w.n_bytes)
            for w in batches.valid_windows(domain, max_tokens=max_tokens)
        ]
        for domain in token_set.domains("valid")
    }
    return token_set, windows


@torch.no_grad()
def nats_by_hand(model: Transformer, groups) -> tuple[float, int]:
    wide, nats, n_targets = model.double(), 0.0, 0
    wide.dtype = torch.float64
    for tokens_BT, counted_BT, _ in groups:
        logits_BTV = wide.logits(tokens_BT[:, :-1])
        each = F.cross_entropy(logits_BTV.flatten(0, 1), tokens_BT[:, 1:].flatten(), reduction="none")
        nats += float(each[counted_BT.flatten()].sum())
        n_targets += int(counted_BT.sum())
    return nats, n_targets


def test_bits_per_byte_equal_cross_entropy_in_float64_over_the_bytes_of_the_manifest(tiny_tokens, model):
    token_set, windows = windows_of(tiny_tokens)
    found = validate(model, windows)
    by_hand = {domain: nats_by_hand(model, groups) for domain, groups in windows.items()}
    n_bytes = {domain: token_set.shard("valid", domain).n_bytes for domain in windows}
    assert set(by_hand) == {"prose", "code"}
    for domain, (nats, _) in by_hand.items():
        wanted = nats / (math.log(2) * n_bytes[domain])
        assert found["bits_per_byte_by_domain"][domain] == pytest.approx(wanted, rel=1e-6)
    nats, n_targets = (sum(pair[i] for pair in by_hand.values()) for i in range(2))
    assert found["n_bytes"] == sum(n_bytes.values()) and found["n_targets"] == n_targets
    assert found["bits_per_byte"] == pytest.approx(nats / (math.log(2) * sum(n_bytes.values())), rel=1e-6)
    assert found["loss_nats"] == pytest.approx(nats / n_targets, rel=1e-6)


def test_a_model_that_knows_nothing_pays_the_logarithm_of_the_vocabulary(tiny_tokens):
    blank = Transformer(CONFIG)
    with torch.no_grad():
        for parameter in blank.parameters():
            parameter.zero_()
    _, windows = windows_of(tiny_tokens, max_tokens=256)
    found = validate(blank, windows)
    assert found["loss_nats"] == pytest.approx(math.log(512), rel=1e-6)


def test_pooling_is_by_bytes_and_not_by_domain(tiny_tokens, model):
    _, windows = windows_of(tiny_tokens)
    found = validate(model, windows)
    shares = {domain: sum(group[2] for group in groups) for domain, groups in windows.items()}
    assert shares["prose"] > 1.3 * shares["code"]
    pooled = sum(found["bits_per_byte_by_domain"][d] * n for d, n in shares.items()) / sum(shares.values())
    assert found["bits_per_byte"] == pytest.approx(pooled, rel=1e-9)


def test_nothing_to_validate_on_is_said(model):
    with pytest.raises(DataError, match="no validation shard"):
        validate(model, {})
