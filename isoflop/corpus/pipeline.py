"""The stages of a build in their order, and what they found as plain data.

read         files -> runs of normalised documents; records that could not be read
documents    runs -> the table of documents, a Parquet file per partition; validation sources chosen
models       what the filters learn, on a fixed sample
filter       documents through the quality rules -> compressed frames per split and domain
made         documents that are made, not read
join         frames -> train|valid/DOMAIN.jsonl.zst
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from isoflop.corpus.dedup.clusters import cluster_examples, count_clusters
from isoflop.corpus.dedup.table import deduplicate_table
from isoflop.corpus.document import BadRecord
from isoflop.corpus.filter.stage import (
    FilterJob,
    all_licenses,
    contamination,
    filter_partition,
    made_documents,
    summed,
    train_filters,
)
from isoflop.corpus.read.environment import environment_versions
from isoflop.corpus.read.ingest import InputFile, ReadOptions, gather, read_files, read_tasks, write_quarantine
from isoflop.corpus.read.split import split_rule
from isoflop.corpus.recipe import CorpusRecipe
from isoflop.corpus.remix import plan_mixture
from isoflop.corpus.report.tally import KEPT, Tally, merged
from isoflop.corpus.tables.output import join_frames, join_tasks, require_both_splits, shown
from isoflop.corpus.tables.partitions import finish
from isoflop.corpus.tables.stages import Build, Progress, Task
from isoflop.errors import DataError
from isoflop.recipe import to_tree


def run_stages(
    build: Build, recipe: CorpusRecipe, files: list[InputFile], unreadable: list[BadRecord], out: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run every stage that is not done, write the texts to `out`; (manifest, funnel for the report).

    `unreadable`: what was met when looking for the files.

    Raises:
        DataError: nothing that can be read, or nothing left for training or validation.
    """
    options = ReadOptions(recipe.clean.unicode_form, recipe.split.max_piece_kb, recipe.partitions)
    read = build.open("read", [to_tree(options), [_identity(item) for item in files]])
    tasks = read_tasks(files, read.folder, options)
    came = merged(item["tally"] for item in build.run(read, read_files, tasks))
    if not came.n_documents:
        raise nothing_usable(read.summaries, len(files), {})

    packages = [tuple(entry) for item in read.summaries for entry in item["packages"]]
    rule = split_rule(packages, recipe.sources, recipe.split.valid_fraction, recipe.environment.valid_share)
    documents = build.open("documents", [to_tree(rule), recipe.sample], [read])
    runs = sorted(read.folder / name for item in read.summaries for name in item["runs"])
    build.run(documents, gather, _by_partition(recipe, came.n_bytes, runs, documents.folder, rule, recipe.sample))
    finish(documents.folder, recipe.partitions)

    work, about = None, dict[str, Any]()
    after = documents
    if not recipe.raw:
        after = build.open("duplicates", to_tree(recipe.dedup), [documents])
        work = after.folder / "work"
        about = build.once(after, partial(_deduplicated, build, recipe, documents.folder, work), weight=came.n_bytes)

    models = build.open("models", to_tree(recipe.filters) if recipe.filters else "", [after])
    filtered = build.open("filter", [to_tree(recipe.clean), sorted(rule.given)], [models])
    filters = None if recipe.raw else recipe.filters
    job = FilterJob(
        documents.folder, work, filtered.folder, recipe.clean, filters, models.folder / "models", rule.given
    )
    build.once(models, lambda _: build.workers.alone(train_filters, job, recipe.partitions))
    build.run(filtered, filter_partition, _by_partition(recipe, came.n_bytes, job))
    tallies = [merged(item["tallies"][place] for item in filtered.summaries) for place in range(3)]
    clean = tallies[-1]

    made = build.open("made", to_tree(recipe.passkey or ()))
    to_make = enumerate(recipe.passkey or ())
    build.run(made, made_documents, [Task(f"{i:05d}", (asked, i, made.folder)) for i, asked in to_make])

    join = build.open("join", "", [filtered, made], fresh=True)
    entries = build.run(join, join_frames, join_tasks([*filtered.summaries, *made.summaries], out))
    if not clean.n_documents:
        raise nothing_usable(read.summaries, len(files), _by_rule(tallies))
    require_both_splits(entries, _by_rule(tallies))
    write_quarantine(out / "quarantine.jsonl", unreadable, read.folder, tasks)
    trained_on = {item["domain"]: item["n_bytes"] for item in entries if item["split"] == "train" and item["n_bytes"]}
    manifest = {
        "packages": environment_versions([item.environment for item in files if item.environment]),
        "held_out": list(rule.held_out),
        "n_bad_records": len(unreadable) + sum(item["n_bad"] for item in read.summaries),
        "n_repaired_records": sum(item["n_repaired"] for item in read.summaries),
        "duplicates": _duplicate_counts(about),
        "drops": _drop_table(tallies[1:]),
        "files": entries,
        "corpus_sha256": hashlib.sha256("".join(item["sha256"] for item in entries).encode()).hexdigest(),
        "n_documents": sum(item["n_documents"] for item in entries),
        "n_bytes": sum(item["n_bytes"] for item in entries),
        "licenses": all_licenses([*filtered.summaries, *made.summaries]),
        "mixture": plan_mixture(trained_on, recipe.mix),
        "inputs": [entry for item in read.summaries for entry in item["inputs"]],
    }
    before = [("read", came)]
    if recipe.sample < 1.0:
        before.append(("sample", merged(item["tally"] for item in documents.summaries)))
    return manifest, _funnel(recipe, job, before, tallies, filtered.summaries, about)


def _funnel(
    recipe: CorpusRecipe,
    job: FilterJob,
    before: list[tuple[str, Tally]],
    tallies: list[Tally],
    summaries: list[dict[str, Any]],
    about: dict[str, Any],
) -> dict[str, Any]:
    """What the report shows of each stage."""
    names = ("duplicates", "filter", "decontaminate")
    wanted = (not recipe.raw, not recipe.raw, bool(job.filters and job.filters.decontaminate.benchmarks))
    shown_ = [(name, tally) for name, tally, show in zip(names, tallies, wanted, strict=True) if show]
    if shown_ and shown_[-1][1] is not tallies[-1]:  # samples of what is kept are taken at the end
        shown_[-1][1].samples[KEPT] = tallies[-1].samples[KEPT]
    stages = [*before, *(shown_ or [("kept", tallies[-1])])]
    similarities: Counter[int] = Counter()
    for item in summaries:
        similarities.update(dict(item["similarities"]))
    duplicates: dict[str, Any] = {}
    if about:
        duplicates = {"options": to_tree(recipe.dedup), "counts": _duplicate_counts(about), **about["clusters"]}
        duplicates["similarities"] = [[(place + 0.5) / 20, count] for place, count in sorted(similarities.items())]
    return {
        "stages": [{"name": name, **tally.plain()} for name, tally in stages],
        "duplicates": duplicates,
        "contamination": contamination(job, summaries),
        "hits": summed(summaries, "hits"),
        "edits": summed(summaries, "edits"),
    }


def _deduplicated(
    build: Build, recipe: CorpusRecipe, documents: Path, work: Path, progress: Progress
) -> dict[str, Any]:
    found = deduplicate_table(documents, work, recipe.dedup, run=build.workers.run, on_progress=progress)
    sizes: dict[str, Any] = {}
    if recipe.dedup.near:
        arguments = [(bucket, work, recipe.partitions) for bucket in range(recipe.partitions)]
        sizes = cluster_examples(list(build.workers.run(count_clusters, arguments)), documents)
    return {**found, "clusters": sizes}


def _duplicate_counts(found: Mapping[str, Any]) -> dict[str, int]:
    if not found:
        return {}
    counts = {rule: item["n_documents"] for rule, item in found["rules"].items()}
    return {
        "exact": counts.get("exact_duplicate", 0),
        "near": counts.get("near_duplicate", 0),
        "train_quotes_valid": counts.get("shared_with_validation", 0),
        "repeated_passages": counts.get("repeated_passages", 0),
        "cut_documents": found["n_cut_documents"],
        "cut_bytes": found["n_cut_bytes"],
    }


def _identity(item: InputFile) -> list[Any]:
    return [item.id, item.n_bytes, item.path.stat().st_mtime_ns, to_tree(item.source or item.environment)]


def _by_partition(recipe: CorpusRecipe, n_bytes: int, *arguments: Any) -> list[Task]:
    """A task per partition; its number is the first argument."""
    weight = max(1, n_bytes // recipe.partitions)
    return [Task(f"{number:05d}", (number, *arguments), weight) for number in range(recipe.partitions)]


def nothing_usable(summaries: list[dict[str, Any]], n_files: int, dropped: Mapping[str, int]) -> DataError:
    """No document is left: how many there were, what took them, and where to look."""
    bad = [record for item in summaries for record in item["bad"]]
    n_bad = sum(item["n_bad"] for item in summaries)
    first = f"{bad[0][0]}: {bad[0][1]}" if bad else "none"
    return DataError(
        f"sources: no usable document in {n_files} files ({n_bad} records could not be read, dropped by rule: "
        f"{shown(dropped)}); first problem: {first}; check the paths and text_key, or loosen the rule that drops most"
    )


def _by_rule(tallies: list[Tally]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for tally in tallies:
        for (rule, _, _), (documents, _) in tally.dropped.items():
            counts[rule] += documents
    return dict(counts)


def _drop_table(tallies: list[Tally]) -> dict[str, dict[str, int]]:
    table: dict[str, dict[str, int]] = defaultdict(dict)
    for tally in tallies:
        for (rule, domain, _), (documents, _) in sorted(tally.dropped.items()):
            table[domain][rule] = table[domain].get(rule, 0) + documents
    return dict(sorted(table.items()))
