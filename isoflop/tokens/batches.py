"""Batches as a pure function of (seed, step, rank): nothing to replay after a restart, nothing to save.

The training shards are cut into windows of seq_len + 1 tokens, seq_len apart (the last token of one is the first of
the next: each token is a target once). Sequence number step * batch_sequences + i of a run is a window found by random
access: per epoch one seeded permutation of all windows; with weights, `corpus.mixture` names the domain first. Ranks
take consecutive rows of the global batch, so their number changes nothing in it; and runs with different batch
sizes see the same sequences in the same order.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from isoflop.corpus.mixture import Curriculum, Mixture
from isoflop.errors import DataError, RecipeError
from isoflop.tokens.shards import TokenSet

ALL = "*"  # the pool of all domains, mixed in natural proportions


class ValidBatch(NamedTuple):
    """Windows for validation: inputs are tokens[:, :-1], targets tokens[:, 1:]."""

    tokens: np.ndarray
    """int64 (b, seq_len + 1)."""
    counted: np.ndarray
    """bool (b, seq_len): targets whose loss counts; BOS and padding don't."""
    n_bytes: int
    """Text bytes of the counted targets."""


class Batches:
    """Training batches and validation windows of one token set."""

    def __init__(
        self,
        token_set: TokenSet,
        *,
        seq_len: int,
        batch_sequences: int,
        seed: int,
        weights: Mapping[str, float] | None = None,
        curriculum: Sequence[tuple[int, Mapping[str, float]]] = (),
    ):
        """`curriculum`: (first sequence, weights) of each stage, instead of `weights`."""
        self.token_set = token_set
        self.seq_len = seq_len
        self.batch_sequences = batch_sequences
        self.seed = seed
        domains = token_set.domains("train")
        stages = list(curriculum) or ([(0, weights)] if weights else [])
        if stages:
            used = {name for _, shares in stages for name, share in shares.items() if share != 0}
            unknown = sorted({name for _, shares in stages for name in shares} - set(domains))
            if unknown:
                raise RecipeError(f"data.weights.{unknown[0]}: no such domain; the tokens have: {', '.join(domains)}")
            domains = [name for name in domains if name in used]
        self._shards = [np.asarray(token_set.tokens("train", name)) for name in domains]  # a plain view indexes faster
        n_windows = [max(0, (len(shard) - 1) // seq_len) for shard in self._shards]
        empty = [name for name, n in zip(domains, n_windows) if not n]
        if empty or not domains:
            raise DataError(
                f"model.seq_len = {seq_len} needs {seq_len + 1} tokens in every domain; "
                f"{', '.join(empty) or 'train'} has fewer: shorten seq_len or give more text"
            )
        self._first_window = np.concatenate([[0], np.cumsum(n_windows)]).astype(np.int64)
        in_order = [(first, {name: w[name] for name in domains if name in w}) for first, w in stages]
        self._mixture: Curriculum | Mixture | None = None
        if in_order:
            self._mixture = Curriculum(in_order, seed=seed) if curriculum else Mixture(in_order[0][1], seed=seed)
        order = {name: index for index, name in enumerate(domains)}
        names = self._mixture.names if self._mixture else [ALL]
        # a pool is a range of windows that is permuted as one
        self._pools = [
            (int(self._first_window[order[name]]), n_windows[order[name]]) if name != ALL else (0, sum(n_windows))
            for name in names
        ]
        self._permutations: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    @property
    def n_unique_tokens(self) -> int:
        """Different target tokens in one epoch over all pools."""
        return sum(n for _, n in self._pools) * self.seq_len

    def epochs(self, n_tokens: int) -> float:
        """How often the most repeated pool is seen in `n_tokens` training tokens."""
        return max(self.epochs_by_domain(n_tokens).values())

    def epochs_by_domain(self, n_tokens: int) -> dict[str, float]:
        """Epochs per domain; one entry `*` in natural proportions."""
        if isinstance(self._mixture, Curriculum):
            counts = self._mixture.counts_before(n_tokens // self.seq_len).tolist()
            return {name: count / n for name, count, (_, n) in zip(self._mixture.names, counts, self._pools)}
        shares = self._mixture.shares if self._mixture else {ALL: 1.0}
        return {
            name: n_tokens * share / (n * self.seq_len) for (name, share), (_, n) in zip(shares.items(), self._pools)
        }

    def batch(self, step: int, *, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Rows of `rank` in the global batch of `step` (from 0): int64 (batch_sequences / world_size, seq_len + 1)."""
        if self.batch_sequences % world_size:
            raise RecipeError(
                f"train.batch_tokens: {self.batch_sequences} sequences must divide by world_size = {world_size}; "
                f"nearest: {-(-self.batch_sequences // world_size) * world_size} sequences"
            )
        rows = self.batch_sequences // world_size
        first = step * self.batch_sequences + rank * rows
        return self.sequences(np.arange(first, first + rows, dtype=np.int64))

    def sequences(self, indices: np.ndarray) -> np.ndarray:
        """Windows of the sequences with these numbers (int64, counted from the start of the run)."""
        if self._mixture:
            pools, draws = self._mixture.draws(indices)
        else:
            pools, draws = np.zeros_like(indices), indices
        windows = np.empty_like(indices)
        for pool, (first, n) in enumerate(self._pools):
            here = pools == pool
            epochs, places = np.divmod(draws[here], n)
            found = np.empty_like(places)
            for epoch in np.unique(epochs):
                found[epochs == epoch] = self._permutation(pool, int(epoch), n)[places[epochs == epoch]]
            windows[here] = first + found
        return self._gather(windows)

    def valid_windows(self, domain: str, max_tokens: int = 0, *, batch_sequences: int = 64) -> Iterator[ValidBatch]:
        """Validation windows of one domain, in order; at most about `max_tokens` targets (0: all), evenly spread.

        Each target is in one window, so over a whole shard the bytes add up to the manifest's count exactly:
        bits per byte = sum of the counted targets' loss_nats / (ln 2 * n_bytes).
        """
        shard = self.token_set.tokens("valid", domain)
        bos, eos = self.token_set.tokenizer.bos_id, self.token_set.tokenizer.eos_id
        n_windows = max(1, -(-(len(shard) - 1) // self.seq_len))
        n_wanted = min(n_windows, max(1, max_tokens // self.seq_len)) if max_tokens else n_windows
        chosen = np.arange(n_wanted, dtype=np.int64) * n_windows // n_wanted
        for first in range(0, n_wanted, batch_sequences):
            positions = chosen[first : first + batch_sequences, None] * self.seq_len + np.arange(self.seq_len + 1)
            inside = positions < len(shard)
            tokens = np.where(inside, shard[np.minimum(positions, len(shard) - 1)].astype(np.int64), eos)
            counted = inside[:, 1:] & (tokens[:, 1:] != bos)
            n_bytes = int(self.token_set.tokenizer.token_bytes[tokens[:, 1:]][counted].sum())
            yield ValidBatch(tokens, counted, n_bytes)

    def _gather(self, windows: np.ndarray) -> np.ndarray:
        shards = np.searchsorted(self._first_window, windows, side="right") - 1
        starts = (windows - self._first_window[shards]) * self.seq_len
        span = np.arange(self.seq_len + 1)
        if len(self._shards) == 1:
            return self._shards[0][starts[:, None] + span].astype(np.int64)
        tokens = np.empty((len(windows), self.seq_len + 1), dtype=np.int64)
        for number in np.unique(shards):
            here = shards == number
            tokens[here] = self._shards[number][starts[here, None] + span]
        return tokens

    def _permutation(self, pool: int, epoch: int, n: int) -> np.ndarray:
        key = (pool, epoch)
        if key not in self._permutations:
            seeds = np.random.SeedSequence([self.seed, 0x65706F, pool, epoch])
            self._permutations[key] = np.random.Generator(np.random.Philox(seeds)).permutation(n)
            if len(self._permutations) > 2 * len(self._pools):  # this epoch and the one before
                self._permutations.popitem(last=False)
        return self._permutations[key]
