"""Small models of every family with weights that make a mistake visible, and run folders that hold them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from isoflop.interop.export_hf import export_run
from isoflop.model.config import ExpertConfig, LatentConfig, ModelConfig, YarnConfig
from isoflop.model.transformer import Transformer
from isoflop.recipe import write_recipe
from isoflop.training import checkpoint
from isoflop.training.optim import adamw

LATENT = LatentConfig(d_kv_latent=24, d_nope=12, d_rope=8, d_value=10)
WITH_QUERY = replace(LATENT, d_q_latent=28)
SOFTMAX = ExpertConfig(8, 3, 20, n_shared=2, affinity="softmax", normalise=False, selection_bias=False)
SIGMOID = ExpertConfig(16, 4, 20, n_groups=4, n_groups_kept=2, routed_scale=2.5)
DENSE = ModelConfig(2, 48, 4, 4, 12, 80, 160, 96)
MLA = replace(DENSE, n_layers=3, d_head=20, latent=WITH_QUERY)

FAMILIES = {
    "mha": DENSE,
    "gqa": replace(DENSE, n_layers=3, n_kv_heads=2, rope_base=5000.0, norm_eps=1e-5),
    "wide_heads": replace(DENSE, n_heads=3, n_kv_heads=1, d_head=20),
    "dense_yarn": replace(DENSE, yarn=YarnConfig(4.0, 24, mscale=0.8)),
    "moe": replace(DENSE, n_layers=3, experts=SOFTMAX),
    "moe_gqa_yarn": replace(
        DENSE,
        n_layers=3,
        n_kv_heads=2,
        experts=replace(SOFTMAX, n_shared=1, n_dense_layers=2, normalise=True),
        yarn=YarnConfig(4.0, 24, mscale=0.8),
    ),
    "v2_lite": replace(MLA, latent=LATENT, experts=SOFTMAX, yarn=YarnConfig(4.0, 24, mscale=0.707)),
    "v2": replace(
        MLA,
        experts=replace(SOFTMAX, n_experts=12, n_groups=4, n_groups_kept=2, group_score="max", routed_scale=16.0),
    ),
    "v3": replace(MLA, experts=SIGMOID, mtp_depth=1, yarn=YarnConfig(4.0, 24)),
    "v3_no_query_latent": replace(MLA, latent=LATENT, experts=replace(SIGMOID, n_groups=1, n_groups_kept=1)),
    "v3_unscaled_yarn": replace(MLA, experts=replace(SIGMOID, n_dense_layers=0), yarn=YarnConfig(4.0, 24, mscale=0.0)),
    "v3_not_normalised": replace(MLA, experts=replace(SIGMOID, normalise=False, n_shared=2), mtp_depth=2),
    "v3_dense": MLA,
}

V3 = ModelConfig(
    61,
    7168,
    128,
    128,
    192,
    18432,
    129280,
    163840,
    latent=LatentConfig(512, 128, 64, 128, 1536),
    experts=ExpertConfig(256, 8, 2048, n_dense_layers=3, routed_scale=2.5, n_groups=8, n_groups_kept=4),
    mtp_depth=1,
)
"""DeepSeek-V3 itself, with its prediction module."""


def build(config: ModelConfig, seed: int = 0) -> Transformer:
    """Random weights in which every matrix, norm and selection bias counts."""
    model = Transformer(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("norm.weight"):
                value.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith("router.bias"):
                value.normal_(0.0, 0.1, generator=generator)
            elif name == "embedding.weight":
                value.normal_(0.0, 1.0, generator=generator)
            else:  # products keep their input's size, so that logits are of order 1 and attention is not flat
                value.normal_(0.0, 1.5 * value.shape[-1] ** -0.5, generator=generator)
    return model.eval()


def make_run(folder: Path, model: Transformer, step: int = 3, **sections: object) -> Path:
    """What `isoflop train` leaves behind: a recipe and a checkpoint."""
    optimizer = adamw(model, learning_rate=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    checkpoint.save(folder / "checkpoints", step=step, model=model, optimizer=optimizer, state={})
    write_recipe(folder / "recipe.toml", {"model": model.config, **sections})
    return folder


def export(run: Path, out: Path, **options: Any) -> dict[str, Any]:
    """`export_run` without its parity report."""
    return export_run(run, out, parity=False, **options)


def random_tokens(config: ModelConfig, batch: int = 3, length: int = 0, seed: int = 1) -> torch.Tensor:
    shape = (batch, length or config.seq_len)
    return torch.randint(0, config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """max |a - b| / max |b|."""
    return ((a - b).abs().max() / b.abs().max()).item()
