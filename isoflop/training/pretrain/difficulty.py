"""How hard the text of each step is, before it is read: what most of the scatter of small batches comes from.

Counts of pairs of tokens, in text that the run does not reach, say how surprising a batch is; the loss of small models
follows that almost one to one (isoflop.training.forecast). A function of the recipe and of the tokens alone.
"""

import numpy as np

from isoflop.tokens.batches import Batches

LARGEST_BATCH, LARGEST_POOL = 2**13, 2**30
"""Tokens of a step and of the text up to which it is judged: larger batches scatter little, and text is read twice."""
COUNTED = 2**20
"""Tokens that are counted."""
PAIRS = 2**22
"""Places for counts of pairs; of larger vocabularies several pairs share a place."""
OF_SINGLE = 32.0
"""Pairs that the frequency of a token alone counts as (assumption)."""


class TextDifficulty:
    """Mean surprise of a token of each step, in nats."""

    def __init__(self, batches: Batches, *, vocab_size: int, n_steps: int):
        """`batches` must be its own: the run's are read by another thread."""
        self._batches, self._vocab_size, self._n_steps = batches, vocab_size, n_steps
        self._counts: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None

    def __call__(self, first: int, end: int) -> np.ndarray:
        """Of the steps from `first` (0 is the first one) up to `end`."""
        pair_P, before_V, share_V = self._counts = self._counts or self._count()
        windows_ST = self._read(first, end)
        before, token = windows_ST[:, :-1], windows_ST[:, 1:]
        chance = (pair_P[self._place(before, token)] + OF_SINGLE * share_V[token]) / (before_V[before] + OF_SINGLE)
        return -np.log(chance).reshape(end - first, -1).mean(axis=1)

    def _count(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs by place, tokens that something follows, and the share of each token, in text beyond the run's end."""
        per_step = self._batches.batch_sequences * self._batches.seq_len
        windows_ST = self._read(self._n_steps, self._n_steps + -(-COUNTED // per_step))
        before, token = windows_ST[:, :-1].ravel(), windows_ST[:, 1:].ravel()
        single_V = np.bincount(token, minlength=self._vocab_size) + 0.5
        return (
            np.bincount(self._place(before, token), minlength=PAIRS),
            np.bincount(before, minlength=self._vocab_size),
            single_V / single_V.sum(),
        )

    def _place(self, before: np.ndarray, token: np.ndarray) -> np.ndarray:
        return (before * self._vocab_size + token) % PAIRS

    def _read(self, first: int, end: int) -> np.ndarray:
        n = self._batches.batch_sequences
        return self._batches.sequences(np.arange(first * n, end * n, dtype=np.int64))
