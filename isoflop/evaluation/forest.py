"""Sequences that begin alike, laid out so that what they share is computed once.

Sequences are sorted and their common beginnings found: a forest whose nodes are runs of tokens, each continuing its
parent. Options of a question share its context, questions of a subject share the worked examples, in whatever order and
by whoever they were asked. The forest is walked depth first and cut into parts of a token budget; what later parts
attend to is kept.

No torch here. Slots are places in the memory of keys and values, one a token, counted anew in every part.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

SHARED_LEAST = {"cpu": 2, "cuda": 4}
"""A beginning shorter than this is computed again: a node of few tokens costs more than it saves (assumption)."""
WHOLE_SHARE = 0.25
"""A tree of at most this share of the budget is computed in one part (assumption)."""


class Asked(NamedTuple):
    """A sequence, of which the last `n_scored` are asked about."""

    tokens: np.ndarray
    """int32."""
    n_scored: int


@dataclass(eq=False)
class Node:
    """Tokens `start` to `end` (exclusive) of a sequence, and of all that begin like it."""

    start: int
    end: int
    tokens: np.ndarray
    """Of the whole sequence, up to `end` at least."""
    parent: "Node | None"
    places: list[tuple[int, int, int]] = field(default_factory=list)
    """(sequence, first, last): it is asked what follows its tokens first to last (exclusive), which lie in here."""
    slots: np.ndarray | None = None
    """Of its own tokens in the part that is computed, while they are held."""

    @property
    def n_tokens(self) -> int:
        return self.end - self.start

    def path(self) -> Iterator["Node"]:
        """Itself and what it continues, upwards."""
        node: Node | None = self
        while node is not None:
            yield node
            node = node.parent


class Part(NamedTuple):
    """What one forward pass computes."""

    kept: np.ndarray
    """Slots of the part before that are kept: the first ones of this part, in the order given; its own follow."""
    nodes: list[Node]
    is_kept: bool
    """Whether the next part keeps any."""


def grow(sequences: Sequence[Asked], least: int = 2) -> list[Node]:
    """The forest of all sequences, their last tokens left out: nothing follows those.

    Nodes above others have at least `least` tokens.

    Returns nodes depth first, each after its parent; the longest tree comes first, so that memory ends early if it
    does.
    """
    inputs = [sequence.tokens[:-1] for sequence in sequences]
    keys = [tokens.astype(">i4").tobytes() for tokens in inputs]
    nodes: list[Node] = []
    path: list[Node] = []
    last: list[Node] = [None] * len(inputs)  # type: ignore[list-item]
    previous = -1
    for at in sorted(range(len(inputs)), key=keys.__getitem__):
        if previous >= 0 and keys[at] == keys[previous]:
            last[at] = last[previous]
            continue
        shared = _shared(inputs[previous], inputs[at]) if previous >= 0 else 0
        node = _branch(path, nodes, inputs[at], shared, least)
        nodes.append(node)
        path.append(node)
        last[at], previous = node, at
    for at, (sequence, node) in enumerate(zip(sequences, last, strict=True)):
        end = len(sequence.tokens) - 1
        first = end - sequence.n_scored
        for above in node.path():
            if above.end > first:
                above.places.append((at, max(first, above.start), min(end, above.end)))
    return _depth_first(nodes)


def cut(nodes: Sequence[Node], budget: int) -> Iterator[Part]:
    """What forward passes compute, nodes of at most `budget` tokens, or one.

    What is small for the budget together with all below it is not cut. Slots are set while a part is used.
    """
    sizes = dict.fromkeys(nodes, 0)
    for node in nodes:
        for above in node.path():
            sizes[above] += node.n_tokens
    held: list[Node] = []
    kept, n = np.zeros(0, dtype=np.int64), 0
    part: list[Node] = []
    for node in nodes:
        n_next = sizes[node] if sizes[node] <= budget * WHOLE_SHARE else node.n_tokens
        if part and n + n_next > budget:
            needed = {*node.path()}
            yield Part(kept, part, node.parent is not None)
            for done in [*held, *part]:
                if done not in needed:
                    done.slots = None
            held = [one for one in [*held, *part] if one in needed]
            kept = np.concatenate([np.zeros(0, dtype=np.int64), *(_slots_of(one) for one in held)])
            n = 0
            for one in held:
                one.slots = np.arange(n, n + one.n_tokens)
                n += one.n_tokens
            part, n = [], 0
        first = len(kept) + n
        node.slots = np.arange(first, first + node.n_tokens)
        part.append(node)
        n += node.n_tokens
    if part:
        yield Part(kept, part, False)


def path_slots(node: Node) -> np.ndarray:
    """Slots of all tokens that a node's last token sees, in order."""
    return np.concatenate([_slots_of(one) for one in node.path()][::-1])


def _slots_of(node: Node) -> np.ndarray:
    assert node.slots is not None, "a node is used after its slots were given away"
    return node.slots


def _branch(path: list[Node], nodes: list[Node], tokens: np.ndarray, shared: int, least: int) -> Node:
    """The node of a sequence that shares so many tokens with the one before it, whose nodes are `path`."""
    while path and path[-1].start >= shared:
        path.pop()
    if path and path[-1].end > shared:  # it branches off inside
        within = path.pop()
        if shared - within.start >= least:
            upper = Node(within.start, shared, within.tokens, within.parent)
            within.start, within.parent = shared, upper
            nodes.append(upper)
            path.append(upper)
    parent = path[-1] if path else None
    return Node(parent.end if parent else 0, len(tokens), tokens, parent)


def _shared(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens both begin with."""
    n = min(len(first), len(second))
    differs = first[:n] != second[:n]
    at = int(differs.argmax()) if n else 0
    return at if n and differs[at] else n


def _depth_first(nodes: list[Node]) -> list[Node]:
    below: dict[Node | None, list[Node]] = {}
    for node in nodes:
        below.setdefault(node.parent, []).append(node)
    longest: dict[Node, int] = {}
    for node in nodes:
        for above in node.path():
            if longest.get(above, 0) >= node.end:
                break
            longest[above] = node.end
    for children in below.values():
        children.sort(key=longest.__getitem__)  # the last one is taken first
    found, waiting = [], below.get(None, [])
    while waiting:
        node = waiting.pop()
        found.append(node)
        waiting += below.get(node, [])
    return found
