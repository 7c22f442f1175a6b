"""What a corpus recipe may say, as frozen dataclasses, and the rules between its keys."""

from dataclasses import dataclass, field, replace
from typing import Annotated

from isoflop.corpus.dedup.options import DedupOptions, check_options
from isoflop.corpus.document import SourceOptions
from isoflop.corpus.filter.rules import FilterOptions
from isoflop.corpus.passkey import PasskeyOptions
from isoflop.corpus.read.clean import CleanOptions
from isoflop.corpus.read.environment import EnvironmentOptions
from isoflop.corpus.remix import MixOptions, check_mixture
from isoflop.corpus.tables.stages import Engine
from isoflop.errors import RecipeError
from isoflop.recipe import Processes, Range, check_ranges


@dataclass(frozen=True)
class SplitOptions:
    """Validation share of user sources, and the size of pieces."""

    valid_fraction: Annotated[float, Range(at_least=0, below=1)] = 0.05
    """Share of the documents of a source with split = "auto" that go to validation, by a hash of their origin."""
    max_piece_kb: Annotated[float, Range(at_least=1)] = 50.0
    """Longer documents are cut at paragraph ends; kilobytes."""


@dataclass(frozen=True)
class CorpusRecipe:
    """What `isoflop corpus build` reads."""

    sources: tuple[SourceOptions, ...] = ()
    """User files and folders."""
    environment: EnvironmentOptions = field(default_factory=EnvironmentOptions)
    split: SplitOptions = field(default_factory=SplitOptions)
    clean: CleanOptions = field(default_factory=CleanOptions)
    dedup: DedupOptions = field(default_factory=DedupOptions)
    filters: FilterOptions | None = None
    """Families of published rules on top of `clean`; left out: none of them."""
    raw: bool = False
    """Read, normalise, cut and split, but drop nothing: what a clean corpus is compared with."""
    sample: Annotated[float, Range(above=0, at_most=1)] = 1.0
    """Share of the training documents to take, those of the smallest keys: below 1 to try a recipe out."""
    mix: MixOptions = field(default_factory=MixOptions)
    passkey: tuple[PasskeyOptions, ...] | None = None
    """Passkey documents as further domains; they are made, not read, so no rule drops any of them."""
    partitions: Annotated[int, Range(at_least=1, at_most=100_000)] = 16
    """Parts into which every table is cut, by key; a part should fit in memory easily: 16 suit corpora of a few GB, one
    per 200 MB larger ones."""
    engine: Engine = "native"
    """native: processes of this machine. ray: a cluster, which must see the same folders."""
    ray_address: str = ""
    """Of a running cluster, for example "auto"; empty: start one on this machine."""
    workers: Processes = 0
    """Processes; 0: one per core, at most 8, and none for small inputs. Changes nothing in the result."""
    keep_stages: bool = False
    """Leave the stages on disk, so that after a change of the recipe only what depends on it is made anew."""


def check(recipe: CorpusRecipe) -> None:
    """Rules between keys. Raises RecipeError."""
    check_ranges(recipe)
    for source in recipe.sources:
        if not source.domain or set(source.domain) & set('/\\.\0"'):
            raise RecipeError(
                f"sources.domain = {source.domain!r} becomes the name of a file: letters, digits, - and _, not empty"
            )
    check_options(recipe.dedup)
    if recipe.filters:
        recipe.filters.check()
    check_mixture(recipe.mix)


def decisive(recipe: CorpusRecipe) -> CorpusRecipe:
    """The recipe less what changes nothing in the result, sources in one order."""
    sources = tuple(sorted(recipe.sources, key=lambda source: source.label))
    return replace(recipe, sources=sources, engine="native", ray_address="", workers=0, keep_stages=False)
