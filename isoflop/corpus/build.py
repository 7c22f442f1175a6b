"""`isoflop corpus build`: sources -> a clean, deduplicated, remixed corpus folder.

Out: `train/DOMAIN.jsonl.zst`, `valid/DOMAIN.jsonl.zst`, `quarantine.jsonl` (records that could not be read),
`manifest.json` (hash, licence and size of every input and output file, and what each rule dropped), `mixture.toml`
(`[data]` of a pretrain recipe), `report.json` and `report.html`.

The stages (isoflop.corpus.pipeline) work in a folder beside the output, `.NAME.stages`, in tasks that are each done
once: after a crash, a full disk or SIGKILL the same command goes on where it was, and the output folder appears when
it is complete. Its bytes depend on the documents and the recipe alone, not on workers, engine, input order or
restarts; times and machine are in `build.json`, the one file that is not part of that promise.
"""

import hashlib
import json
import logging
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from isoflop.corpus.clean import CleanOptions
from isoflop.corpus.dedup import DedupOptions, check_options
from isoflop.corpus.environment import EnvironmentOptions
from isoflop.corpus.filter_stage import FilterOptions
from isoflop.corpus.folder import read_manifest, require_replaceable
from isoflop.corpus.intake import find_inputs
from isoflop.corpus.passkey import PasskeyOptions
from isoflop.corpus.pipeline import run_stages
from isoflop.corpus.remix import MixOptions, check_mixture, mixture_section
from isoflop.corpus.report import corpus_page
from isoflop.corpus.sources import BadRecord, SourceOptions
from isoflop.corpus.stages import Build, Engine, Progress, Workers, fingerprint, n_workers
from isoflop.errors import RecipeError
from isoflop.recipe import Processes, Range, check_ranges, to_tree, write_json, write_recipe, write_text
from isoflop.run import commit, now, only_one, processor

log = logging.getLogger(__name__)

PARALLEL_FROM_BYTES = 6_000_000  # assumption: below this, starting processes costs more than it saves
COMMAND = "isoflop corpus build RECIPE"
MIXTURE_HEADER = """The mixture of this corpus, as the [data] section of a pretrain recipe. A sweep recipe takes
weights, no curriculum."""


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


def build_corpus(recipe: CorpusRecipe, out: str | Path, *, on_progress: Progress | None = None) -> dict[str, Any]:
    """Build the corpus, or go on building it, and return its manifest. What is up to date is kept as it is.

    Raises:
        DataError: no input, or nothing that can be read, or nothing left for training or validation.
        RecipeError: values that contradict each other.
    """
    out = Path(out)
    _check(recipe)
    unreadable: list[BadRecord] = []
    files = find_inputs(recipe.sources, recipe.environment, unreadable.append)
    asked = fingerprint(
        to_tree(_decisive(recipe)), [[item.id, item.n_bytes, item.path.stat().st_mtime_ns] for item in files]
    )
    found = _up_to_date(out, asked)
    if found is not None:
        log.info("%s is up to date: same recipe, same files", out)
        return {**found, "reused": True}
    require_replaceable(out, "corpus_sha256")
    out.parent.mkdir(parents=True, exist_ok=True)
    root = out.absolute().parent / f".{out.name}.stages"
    n = n_workers(recipe.workers, sum(item.n_bytes for item in files), parallel_from=PARALLEL_FROM_BYTES)
    began = now()
    with only_one(root):
        with Workers(n, recipe.engine, recipe.ray_address) as workers:
            build = Build(root, workers, on_progress)
            work = root / "output"
            shutil.rmtree(work, ignore_errors=True)
            found, funnel = run_stages(build, recipe, files, unreadable, work)
        manifest = {"recipe_sha256": _recipe_sha256(recipe, found), "recipe": to_tree(_decisive(recipe)), **found}
        write_json(work / "manifest.json", manifest)
        write_recipe(work / "mixture.toml", mixture_section(found["mixture"]), header=MIXTURE_HEADER)
        report = {"manifest": {k: v for k, v in manifest.items() if k != "inputs"}, **funnel}
        write_json(work / "report.json", report)
        write_text(work / "report.html", corpus_page(report, title=f"Corpus {out.name}"))
        about: dict[str, Any] = {
            "asked": asked,
            "began": began,
            "ended": now(),
            "commit": commit(),
            "machine": processor(),
        }
        about |= {"engine": recipe.engine, "workers": n}
        about["stages"] = {s.name: {"seconds": round(s.seconds, 3), "n_bytes": s.n_bytes} for s in build.stages}
        write_json(work / "build.json", about)
        if out.exists():
            shutil.rmtree(out)
        work.rename(out)
    if not recipe.keep_stages:
        shutil.rmtree(root)
    log.info("wrote %s: %d documents, %.1f MB", out, manifest["n_documents"], manifest["n_bytes"] / 1e6)
    return {**manifest, "reused": False}


def _check(recipe: CorpusRecipe) -> None:
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


def _decisive(recipe: CorpusRecipe) -> CorpusRecipe:
    """The recipe less what changes nothing in the result, sources in one order."""
    sources = tuple(sorted(recipe.sources, key=lambda source: source.label))
    return replace(recipe, sources=sources, engine="native", ray_address="", workers=0, keep_stages=False)


def _recipe_sha256(recipe: CorpusRecipe, found: dict[str, Any]) -> str:
    decides = [to_tree(_decisive(recipe)), [[item["id"], item["sha256"]] for item in found["inputs"]]]
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def _up_to_date(out: Path, asked: str) -> dict[str, Any] | None:
    """The manifest of a complete folder made from the same recipe and files, by name, size and time."""
    if not (out / "manifest.json").is_file() or not (out / "build.json").is_file():
        return None
    found = read_manifest(out, COMMAND)
    complete = all((out / item["path"]).is_file() for item in found.get("files", []))
    about = json.loads((out / "build.json").read_text(encoding="utf-8"))
    return found if complete and about.get("asked") == asked else None
