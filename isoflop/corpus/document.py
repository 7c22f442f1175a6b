"""What readers take and give: a source of a recipe in, documents out, records that could not be read beside them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from isoflop.corpus.read.bytes import ReadLimits


@dataclass(frozen=True, slots=True)
class Document:
    """One text with where it comes from."""

    id: str
    """Unique and the same on every machine: source name, path inside it, record. The `origin` of tables."""
    text: str
    domain: str
    source: str
    """What is split as a whole between train and valid: a package, a web site, or a document of a user's corpus."""
    license: str = ""
    lang: str = ""
    """Language of the text, or programming language of a source file; empty: not known yet."""


@dataclass(frozen=True, slots=True)
class BadRecord:
    """A record that was set aside."""

    origin: str
    reason: str
    n_bytes: int = 0
    """Size of what was set aside, where it is known."""
    kept: bool = False
    """True: not set aside but repaired, as the reason says."""


@dataclass(frozen=True)
class SourceOptions:
    """One `[[sources]]` entry of a corpus recipe."""

    path: str
    """File or folder, relative to the folder in which the command runs."""
    domain: str = "text"
    """Domain of its documents; several sources may share one."""
    name: str = ""
    """Short unique name used in document ids; empty: the last part of `path`."""
    text_key: str = "text"
    """Key or column that holds the text, for JSON lines, Parquet and Arrow."""
    lang_key: str = "lang"
    """Key or column that holds the language, where there is one."""
    license: str = ""
    """Licence of documents that state none themselves."""
    lang: str = ""
    """Language of documents that state none themselves; empty: the language filter finds it out."""
    encoding: str = ""
    """Encoding of text and HTML files that are not UTF-8; empty: detected."""
    split: Literal["auto", "train", "valid"] = "auto"
    """auto: `split.valid_fraction` of the documents go to validation; or all of them to one side. Documents of a source
    that is valid as a whole are taken as they are: no quality rule drops or changes them."""
    priority: int = 0
    """Of equal or nearly equal documents the one with the smallest priority stays, then the first by origin."""
    limits: ReadLimits = field(default_factory=ReadLimits)

    @property
    def label(self) -> str:
        """`name`, or the last part of the path."""
        return self.name or Path(self.path).name


OnBad = Callable[[BadRecord], None]
"""Told of every record that is set aside or repaired."""
