"""Who holds which page, and which full pages can be used again by a sequence that begins the same. No torch here.

A page is free, held by one or more sequences, or kept: held by nobody, its content known by key; of these the longest
unused one is taken first when free pages run out. The key of a full page is a hash over the key of the page before, its
token ids, the salt of its owner and the version of the weights. A hash finds, it does not prove: ids, salt and the page
before are compared on every hit. Pages that others may read are full, and nothing is ever written to them again.

With prediction modules, what is kept of a token depends on the tokens after it too; `lookahead` of them are part of a
page's ids then.
"""

import hashlib
from array import array
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from isoflop.model.pages import DUMP, PAGE


def page_key(parent: bytes, ids: bytes, salt: bytes, version: int) -> bytes:
    """Name of a full page's content."""
    head = len(salt).to_bytes(4, "little") + salt + version.to_bytes(8, "little")
    return hashlib.sha256(parent + head + ids).digest()


@dataclass(eq=False)
class Entry:
    """What a shared page holds."""

    key: bytes
    parent: "Entry | None"
    ids: bytes
    salt: bytes
    page: int

    def holds(self, parent: "Entry | None", ids: bytes, salt: bytes) -> bool:
        return self.parent is parent and self.ids == ids and self.salt == salt


class PagePool:
    """Pages 1 to n_pages - 1; page 0 is where padded rows write."""

    def __init__(self, n_pages: int, *, lookahead: int = 0, reuse: bool = True):
        self.n_pages, self.lookahead, self.reuse, self.version = n_pages, lookahead, reuse, 0
        self._free = deque(page for page in range(n_pages) if page != DUMP)
        self._holders = [0] * n_pages
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._entry_of: dict[int, Entry] = {}
        self._by_key: dict[bytes, Entry] = {}

    @property
    def n_free(self) -> int:
        """Pages that `take` can give."""
        return len(self._free) + len(self._kept)

    @property
    def n_held(self) -> int:
        return self.n_pages - 1 - self.n_free

    def holders(self, page: int) -> int:
        return self._holders[page]

    def is_shared(self, page: int) -> bool:
        """Whether others may read it: then it is never written."""
        return page in self._entry_of

    def take(self, n: int) -> list[int] | None:
        """`n` pages for one sequence, or None if there are not so many."""
        if n > self.n_free:
            return None
        found = []
        for _ in range(n):
            if self._free:
                page = self._free.popleft()
            else:
                page, _ = self._kept.popitem(last=False)
                self._forget(page)
            self._holders[page] = 1
            found.append(page)
        return found

    def release(self, pages: Sequence[int]) -> None:
        """Give pages back. The last of a sequence becomes the oldest: a beginning is more often needed than an end."""
        for page in reversed(pages):
            assert self._holders[page] > 0, f"page {page} is given back by nobody who holds it"
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if page in self._entry_of:
                self._kept[page] = None
            else:
                self._free.appendleft(page)

    def match(self, tokens: Sequence[int], salt: bytes) -> list[Entry]:
        """The pages that hold the beginning of `tokens` already; at least one token is always left to compute."""
        found: list[Entry] = []
        while self.reuse:
            end = (len(found) + 1) * PAGE
            if end > len(tokens) - 1 or end + self.lookahead > len(tokens):
                break
            entry = self.find(found[-1] if found else None, self.ids_of(tokens, len(found)), salt)
            if entry is None:
                break
            found.append(entry)
        return found

    def hold(self, entries: Sequence[Entry]) -> list[int]:
        """Share the pages of `match`."""
        for entry in entries:
            self._holders[entry.page] += 1
            self._kept.pop(entry.page, None)
        return [entry.page for entry in entries]

    def n_kept_of(self, entries: Sequence[Entry]) -> int:
        """How many of these pages count as free now."""
        return sum(entry.page in self._kept for entry in entries)

    def share(self, page: int, parent: Entry | None, ids: bytes, salt: bytes) -> Entry | None:
        """Let others read a full page that will never be written again; returns the entry that holds this content.

        Where another page holds it already, that one stays the one that is found. None: the key is taken by other
        content, and the page stays private.
        """
        key = page_key(parent.key if parent else b"", ids, salt, self.version)
        known = self._by_key.get(key)
        if known is not None:
            return known if known.holds(parent, ids, salt) else None
        entry = Entry(key, parent, ids, salt, page)
        self._by_key[key] = self._entry_of[page] = entry
        return entry

    def find(self, parent: Entry | None, ids: bytes, salt: bytes) -> Entry | None:
        entry = self._by_key.get(page_key(parent.key if parent else b"", ids, salt, self.version))
        return entry if entry is not None and entry.holds(parent, ids, salt) else None

    def ids_of(self, tokens: Sequence[int], index: int) -> bytes:
        """What page `index` of a sequence depends on beside the pages before it."""
        return array("q", tokens[index * PAGE : (index + 1) * PAGE + self.lookahead]).tobytes()

    def forget_all(self) -> None:
        """The weights have changed: nothing that is kept fits them."""
        self.version += 1
        for page in [*self._entry_of]:
            self._forget(page)
        self._free.extend(self._kept)
        self._kept.clear()

    def _forget(self, page: int) -> None:
        entry = self._entry_of.pop(page)
        del self._by_key[entry.key]
