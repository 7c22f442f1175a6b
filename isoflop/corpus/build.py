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
from pathlib import Path
from typing import Any

from isoflop.corpus.document import BadRecord
from isoflop.corpus.pipeline import run_stages
from isoflop.corpus.read.ingest import find_inputs
from isoflop.corpus.recipe import CorpusRecipe, check, decisive
from isoflop.corpus.remix import mixture_section
from isoflop.corpus.report.page import corpus_page
from isoflop.corpus.tables.output_folder import Made, behind_link, put_in_place, read_manifest, require_replaceable
from isoflop.corpus.tables.stages import Build, Progress, Workers, fingerprint, n_workers, remove_stage
from isoflop.errors import DataError
from isoflop.recipe import read_json, to_tree, write_json, write_recipe, write_text
from isoflop.run import commit, now, only_one, processor

log = logging.getLogger(__name__)

PARALLEL_FROM_BYTES = 6_000_000  # assumption: below this, starting processes costs more than it saves
COMMAND = "isoflop corpus build RECIPE"
MADE = Made("corpus_sha256", "files", ("quarantine.jsonl", "mixture.toml", "report.json", "report.html", "build.json"))
MIXTURE_HEADER = """The mixture of this corpus, as the [data] section of a pretrain recipe. A sweep recipe takes
weights, no curriculum."""


def build_corpus(recipe: CorpusRecipe, out: str | Path, *, on_progress: Progress | None = None) -> dict[str, Any]:
    """Build the corpus, or go on building it, and return its manifest. What is up to date is kept as it is.

    Raises:
        DataError: no input, or nothing that can be read, or nothing left for training or validation.
        RecipeError: values that contradict each other.
    """
    out = Path(out)
    check(recipe)
    unreadable: list[BadRecord] = []
    files = find_inputs(recipe.sources, recipe.environment, unreadable.append)
    decides = to_tree(decisive(recipe))
    asked = fingerprint(decides, [[item.id, item.n_bytes, item.path.stat().st_mtime_ns] for item in files])
    found = _up_to_date(out, asked)
    if found is not None:
        log.info("%s is up to date: same recipe, same files", out)
        return {**found, "reused": True}
    out = behind_link(out)
    require_replaceable(out, MADE)
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
        inputs = [[item["id"], item["sha256"]] for item in found["inputs"]]
        recipe_sha256 = hashlib.sha256(json.dumps([decides, inputs], sort_keys=True).encode()).hexdigest()
        manifest = {"recipe_sha256": recipe_sha256, "recipe": decides, **found}
        write_json(work / "manifest.json", manifest)
        write_recipe(work / "mixture.toml", mixture_section(found["mixture"]), header=MIXTURE_HEADER)
        report = {"manifest": {k: v for k, v in manifest.items() if k != "inputs"}, **funnel}
        write_json(work / "report.json", report)
        write_text(work / "report.html", corpus_page(report))
        about = {
            "asked": asked,
            "began": began,
            "ended": now(),
            "commit": commit(),
            "machine": processor(),
            "engine": recipe.engine,
            "workers": n,
            "stages": {s.name: {"seconds": round(s.seconds, 3), "n_bytes": s.n_bytes} for s in build.stages},
        }
        write_json(work / "build.json", about)
        put_in_place(work, out, MADE)
    if not recipe.keep_stages:
        for stage in build.stages:
            remove_stage(stage.folder)
        shutil.rmtree(root)
    log.info("wrote %s: %d documents, %.1f MB", out, manifest["n_documents"], manifest["n_bytes"] / 1e6)
    return {**manifest, "reused": False}


def _up_to_date(out: Path, asked: str) -> dict[str, Any] | None:
    """The manifest of a complete folder made from the same recipe and files, by name, size and time."""
    if not (out / "manifest.json").is_file() or not (out / "build.json").is_file():
        return None
    found = read_manifest(out, COMMAND)
    complete = all(path.is_file() for path in MADE.files(out, found))
    about = read_json(out / "build.json", DataError, f"delete the folder, then: {COMMAND}")
    return found if complete and about.get("asked") == asked else None
