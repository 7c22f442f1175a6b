"""Byte-pair encoding learned from counted pieces: the merges of the library's trainer in a fraction of its memory.

Pieces lie one after the other in one array with a place for every byte. A token occupies the places of its bytes: its
first place holds its id in `first`, its last place in `last`, so both neighbours of a token are found without links. A
merge writes two numbers per occurrence. Pairs are counted exactly where they are frequent: a scan finds all pairs above
a threshold, merges keep those counts up to date, and when none is left the next scan lowers the threshold. Ties go to
the smaller pair of ids, as in the library: for the same pieces the merges are the same.

Memory: about 20 bytes per byte of different pieces, whatever the text's length.
"""

import heapq
from collections.abc import Callable, Iterator

import numpy as np

BORDER, GONE = -1, -2
"""In `first`: between pieces; a place where no token begins any more."""
MAX_FREQUENT = 1 << 17  # assumption: pairs that a scan keeps
SCAN_PLACES = 1 << 22  # assumption: bounds the memory of a scan
SCAN_BITS = 22
"""Rare pairs are told from frequent ones by this many bits of their hash before any pair is counted by itself."""
_MIX = np.uint64(0x9E3779B97F4A7C15)


def learn_merges(
    data: bytes,
    sizes: np.ndarray,
    counts: np.ndarray,
    id_of_byte: np.ndarray,
    n_merges: int,
    *,
    min_frequency: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[tuple[int, int]]:
    """At most `n_merges` pairs of ids in order; the k-th one makes the id 256 + k. Fewer where pairs become rare.

    `data` is the pieces one after the other, `sizes` their bytes, `counts` how often each occurs.
    """
    places = _Places(data, sizes, counts, id_of_byte, n_merges)
    merges: list[tuple[int, int]] = []
    frequent: dict[tuple[int, int], int] = {}
    queue: list[tuple[int, int, int]] = []
    threshold = -1
    while len(merges) < n_merges:
        if not queue:
            if threshold == min_frequency:
                break
            frequent, threshold = places.frequent_pairs(min_frequency)
            queue = [(-count, *pair) for pair, count in frequent.items()]
            heapq.heapify(queue)
            continue
        count, left, right = heapq.heappop(queue)
        known = frequent.get((left, right), 0)
        if known != -count:
            if known >= threshold:
                heapq.heappush(queue, (-known, left, right))
            continue
        del frequent[left, right]
        new = 256 + len(merges)
        merges.append((left, right))
        lost, gained = places.merge(left, right, new, threshold)
        for pair, n in lost:
            if pair in frequent:
                frequent[pair] -= n
        for pair, n in gained:
            frequent[pair] = n
            heapq.heappush(queue, (-n, *pair))
        if on_progress and (len(merges) % 100 == 0 or len(merges) == n_merges):
            on_progress(len(merges), n_merges)
    return merges


Counted = list[tuple[tuple[int, int], int]]


class _Places:
    def __init__(self, data: bytes, sizes: np.ndarray, counts: np.ndarray, id_of_byte: np.ndarray, n_merges: int):
        order = np.argsort(-counts, kind="stable")  # pieces that occur once come last and need no weight
        starts = np.cumsum(sizes) - sizes
        total = int(sizes.sum()) + len(sizes) + 1
        self.first = np.full(total, BORDER, dtype=np.int32)
        source = np.frombuffer(data, dtype=np.uint8)
        n_repeated = int((counts > 1).sum())
        place = 1
        weights = []
        for begin in range(0, len(order), 1 << 16):
            pieces = order[begin : begin + (1 << 16)]
            size = sizes[pieces]
            inside = np.repeat(starts[pieces] - (np.cumsum(size) - size), size) + np.arange(size.sum())
            target = inside - np.repeat(starts[pieces] - (np.cumsum(size + 1) - size - 1), size) + place
            self.first[target] = id_of_byte[source[inside]]
            repeated = slice(0, max(0, min(len(pieces), n_repeated - begin)))
            weights.append(np.repeat(counts[pieces][repeated], size[repeated] + 1).astype(np.uint32))
            place += int(size.sum()) + len(size)
        self.last = self.first.copy()
        self.weights = np.concatenate([np.ones(1, dtype=np.uint32), *weights])
        self.length = np.ones(256 + n_merges, dtype=np.int32)
        self.where: dict[int, np.ndarray] = {}

    def merge(self, left: int, right: int, new: int, threshold: int) -> tuple[Counted, Counted]:
        """Replace the pair; returns the pairs that became rarer, by how much, and the new ones that are frequent."""
        begins = self._occurrences(left, right)
        n_left, n_right = int(self.length[left]), int(self.length[right])
        self.length[new] = n_left + n_right
        ends = begins + (n_left + n_right)
        weights = self._weight(begins)
        before, after = self.last[begins - 1], self.first[ends]
        touching = begins[1:] == ends[:-1]
        alone = np.ones(len(begins), dtype=bool)  # no occurrence follows at once
        np.logical_not(touching, out=alone[:-1])
        self.first[begins + n_left] = GONE
        self.first[begins] = new
        self.last[ends - 1] = new
        self.where[new] = begins
        lost = [((n, left), c) for n, c in _totals(before, weights)]
        lost += [((right, n), c) for n, c in _totals(after[alone], weights[alone])]
        before[1:][touching] = new
        gained = [((n, new), c) for n, c in _totals(before, weights, threshold)]
        gained += [((new, n), c) for n, c in _totals(after[alone], weights[alone], threshold)]
        return lost, gained

    def frequent_pairs(self, min_frequency: int) -> tuple[dict[tuple[int, int], int], int]:
        """All pairs at least as frequent as the threshold returned, about MAX_FREQUENT at most, with their counts."""
        n_bits = min(SCAN_BITS, max(10, (2 * len(self.first)).bit_length()))
        buckets = np.zeros(1 << n_bits)
        for pairs, weights in self._scan():
            buckets += np.bincount(_bucket(pairs, n_bits), weights, minlength=len(buckets))
        threshold = min_frequency
        if len(buckets) > MAX_FREQUENT:
            threshold = max(min_frequency, int(np.partition(buckets, -MAX_FREQUENT)[-MAX_FREQUENT]))
        while True:
            likely = buckets >= threshold
            found, totals = np.zeros(0, dtype=np.int64), np.zeros(0)
            for pairs, weights in self._scan():
                chosen = likely[_bucket(pairs, n_bits)]
                found, where = np.unique(np.concatenate([found, pairs[chosen]]), return_inverse=True)
                totals = np.bincount(where, np.concatenate([totals, weights[chosen]]), minlength=len(found))
            kept = totals >= threshold
            if kept.any() or threshold == min_frequency:
                break
            threshold = max(min_frequency, threshold // 2)  # rare pairs that share a bucket looked frequent
        pairs = zip((found[kept] >> 32).tolist(), (found[kept] & 0xFFFFFFFF).tolist())
        return dict(zip(pairs, totals[kept].astype(np.int64).tolist())), threshold

    def _scan(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs of neighbours as numbers, and how often each occurs."""
        for begin in range(0, len(self.first), SCAN_PLACES):
            places = np.flatnonzero(self.first[begin : begin + SCAN_PLACES] >= 0) + begin
            left = self.first[places]
            right = self.first[places + self.length[left]]
            inside = right >= 0
            pairs = left[inside].astype(np.int64) << 32 | right[inside]
            yield pairs, self._weight(places[inside]).astype(np.float64)

    def _occurrences(self, left: int, right: int) -> np.ndarray:
        """Where the pair begins, ascending; of overlapping ones the first, third, ..."""
        lefts, rights = self._where(left), self._where(right)
        if len(lefts) <= len(rights):
            begins = lefts[self.first[lefts + self.length[left]] == right]
        else:
            begins = (rights - self.length[left])[self.last[rights - 1] == left]
        if left == right and len(begins):
            starts = np.append(True, np.diff(begins) != self.length[left])
            position = np.arange(len(begins))
            begins = begins[(position - position[starts][np.cumsum(starts) - 1]) % 2 == 0]
        return begins

    def _where(self, token: int) -> np.ndarray:
        """Places where the token begins."""
        found = self.where.get(token)
        if found is None:
            ranges = range(0, len(self.first), SCAN_PLACES)
            found = np.concatenate(
                [(np.flatnonzero(self.first[b : b + SCAN_PLACES] == token) + b).astype(np.int32) for b in ranges]
            )
        else:
            found = found[self.first[found] == token]
        self.where[token] = found
        return found

    def _weight(self, places: np.ndarray) -> np.ndarray:
        weights = np.ones(len(places), dtype=np.int64)
        repeated = places < len(self.weights)
        weights[repeated] = self.weights[places[repeated]]
        return weights


def _totals(tokens: np.ndarray, weights: np.ndarray, at_least: int = 1) -> list[tuple[int, int]]:
    """Sum of the weights of each token that is one, where it is `at_least` that."""
    inside = tokens >= 0
    tokens, weights = tokens[inside], weights[inside]
    if len(tokens) < 4096:
        order = np.argsort(tokens, kind="stable")
        tokens, weights = tokens[order], weights[order]
        starts = np.flatnonzero(np.append(True, tokens[1:] != tokens[:-1])) if len(tokens) else tokens
        found, sums = tokens[starts], np.add.reduceat(weights, starts) if len(tokens) else weights
    else:
        totals = np.bincount(tokens, weights)
        found = np.flatnonzero(totals)
        sums = totals[found].astype(np.int64)
    enough = sums >= at_least
    return list(zip(found[enough].tolist(), sums[enough].tolist()))


def _bucket(pairs: np.ndarray, n_bits: int) -> np.ndarray:
    return (pairs.astype(np.uint64) * _MIX >> np.uint64(64 - n_bits)).astype(np.int64)
