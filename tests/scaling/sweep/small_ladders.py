"""Ladders of tiny models that train in seconds, and records without what may differ between two runs of one cell."""

from pathlib import Path

from isoflop.model.accounting import flops_per_token
from isoflop.recipe import from_tree
from isoflop.scaling.sweep.ladder import LadderRecipe, ladder_on_tokens, plan_ladder
from isoflop.scaling.sweep.shapes import shape

TIMES = ("wall_s", "tokens_per_s", "started_at", "finished_at", "commit")
"""Wall-clock fields, and the checkout, which a commit beside a running test may change."""


def ladder_recipe(tokens: Path, *, widths=(8, 16), ratios=(0.25, 0.5), seeds=(0,), train=(), **sections):
    """Sizes x token counts; batch and rate are functions of the model alone."""
    sizes = [float(flops_per_token(shape(d, vocab_size=512, seq_len=16))) for d in widths]
    ladder = {"purpose": "grid", "sizes": sizes, "tokens_per_param": list(ratios), "workers": 2, "seeds": list(seeds)}
    tree = {
        "study": "test",
        "ladder": ladder,
        "hyper": {"learning_rate": {"coefficient": 0.01}, "batch_tokens": {"coefficient": 256.0}},
        "model": {"seq_len": 16},
        "data": {"tokens": str(tokens)},
        "train": {"schedule": "constant_cooldown", "device": "cpu", "threads": 1, **dict(train)},
        "validate": {"max_tokens": 512},
        **sections,
    }
    return from_tree(tree, LadderRecipe)


def cells_of(recipe: LadderRecipe):
    tied, data_sha256 = ladder_on_tokens(recipe)
    return list(plan_ladder(tied, data_sha256=data_sha256).cells)


def facts(record):
    return {key: value for key, value in record.to_dict().items() if key not in TIMES}
