"""Random samples with prompts and targets."""

import numpy as np

from isoflop.tokens.chat import Row


def make_samples(lengths, seed=0, vocab_size=160) -> list[Row]:
    generator = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        is_target = np.arange(length + 1) >= generator.integers(1, length + 1)
        rows.append(Row(generator.integers(0, vocab_size, length + 1).astype(np.int32), is_target))
    return rows
