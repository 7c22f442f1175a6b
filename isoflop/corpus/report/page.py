"""The page of a corpus: what came in, what each stage dropped and why, what is left, and how it is to be mixed.

It is made from `report.json` alone, the machine-readable half of the same report, and holds no time, path or machine:
the same documents, recipe and version of matplotlib give the same page, byte for byte. Without matplotlib it has no
charts and says so.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from isoflop.corpus.report import figures
from isoflop.corpus.report.tally import KEPT
from isoflop.pages.html import page, size
from isoflop.pages.plot import BLUE, installed, name_colors, svg_text

Tree = Mapping[str, Any]
SHOWN_SAMPLES = 6
"""Samples of a rule that are shown; report.json has up to twenty."""
SHOWN_RULES = 16
"""Rules in the chart; the table has all."""
SHOWN_LANGUAGES = 7
"""All others are one part."""

STAGE_TITLES = {
    "sample": "sampled",
    "read": "read",
    "duplicates": "duplicates removed",
    "filter": "filtered",
    "decontaminate": "decontaminated",
}
CLUSTER_SIZES = {2: "2", 3: "3", 7: "4 to 7", 15: "8 to 15", 63: "16 to 63", 255: "64 to 255"}
"""Largest cluster of a group -> its name; larger ones are "256 and more"."""


def corpus_page(report: Tree, *, title: str = "Corpus report") -> str:
    """HTML of a whole report."""
    manifest, mixture = report["manifest"], report["manifest"]["mixture"]
    stages = [_stage(found) for found in report["stages"]]
    domains = sorted({name for stage in stages for name in stage["documents"]})
    colors = name_colors(domains)
    rules = _rules(report["stages"])
    dropped_domains = sorted({row[1] for stage in report["stages"] for row in stage["dropped"]})
    rule_colors = name_colors(list(dict.fromkeys(rule["stage"] for rule in rules)))
    languages = _languages(report["stages"][-1]["kept"])
    parts = list(dict.fromkeys(name for _, values, _ in languages for name in values))
    language_colors = name_colors(parts)
    duplicates = report.get("duplicates") or {}
    clusters = _cluster_groups(duplicates.get("cluster_sizes") or [])
    mixture_colors = name_colors(
        list(dict.fromkeys([*(d for d in domains if d in mixture["domains"]), *mixture["domains"]]))
    )
    return page(
        "corpus/report/page.html",
        title=title,
        manifest=manifest,
        stages=stages,
        domains=[_domain(name, stages) for name in domains],
        rules=[rule | dict(enumerate(rule["by_domain"][name] or "" for name in dropped_domains)) for rule in rules],
        dropped_domains=dropped_domains,
        kept_samples=report["stages"][-1]["samples"].get(KEPT, [])[:10],
        shown_samples=SHOWN_SAMPLES,
        duplicates=duplicates,
        duplicate_counts=[(name.replace("_", " "), n) for name, n in (duplicates.get("counts") or {}).items()],
        clusters=clusters,
        contamination=[
            {**item, "share": item["n_found"] / item["n_texts"] if item["n_texts"] else None}
            for item in report.get("contamination") or []
        ],
        mixture=mixture,
        mixed=[
            {"name": name, "target": sum(s["part"] * s["target"][name] for s in mixture["stages"]), **item}
            for name, item in mixture["domains"].items()
        ],
        valid_bytes=sum(item["n_bytes"] for item in manifest["files"] if item["split"] == "valid"),
        licences=sorted(manifest["licenses"].items(), key=lambda item: (-item[1], item[0])),
        colors=colors,
        rule_colors={STAGE_TITLES.get(name, name): color for name, color in rule_colors.items()},
        language_colors=language_colors,
        languages=languages,
        mixture_colors=mixture_colors,
        drawn=installed(),
        pictures=_pictures(
            {
                "flow": lambda: figures.flow_figure(stages, colors),
                "rules": lambda: figures.bars_figure([_bar(rule, rule_colors) for rule in rules[:SHOWN_RULES]]),
                "clusters": lambda: figures.bars_figure(
                    [(name, found, f"{found:,}", BLUE) for name, found in clusters]
                ),
                "similarity": lambda: _similarity(duplicates),
                "lengths": lambda: _lengths(report["stages"], colors),
                "languages": lambda: figures.shares_figure(languages, language_colors),
                "mixture": lambda: figures.shares_figure(_mixture_rows(mixture), mixture_colors),
                "curriculum": lambda: figures.curriculum_figure(mixture["stages"], mixture_colors),
            }
        ),
    )


def _pictures(draw: Mapping[str, Any]) -> dict[str, str]:
    """Every chart that has something to show; none without matplotlib."""
    drawn = {name: function() for name, function in draw.items()} if installed() else {}
    return {name: svg_text(figure, name, f"Chart: {name}") for name, figure in drawn.items() if figure is not None}


def _stage(found: Tree) -> dict[str, Any]:
    """Documents and bytes that are left after a stage, by domain and together."""
    documents, sizes = Counter[str](), Counter[str]()
    for domain, _, n_documents, n_bytes in found["kept"]:
        documents[domain] += n_documents
        sizes[domain] += n_bytes
    return {
        "title": STAGE_TITLES.get(found["name"], found["name"]),
        "documents": documents,
        "sizes": sizes,
        "n_documents": documents.total(),
        "n_bytes": sizes.total(),
    }


def _domain(name: str, stages: Sequence[Tree]) -> dict[Any, Any]:
    """What is left of a domain after each stage."""
    sizes = [stage["sizes"][name] for stage in stages]
    left = [f"{size(found)} / {stage['documents'][name]:,}" for found, stage in zip(sizes, stages, strict=True)]
    return {"name": name, **dict(enumerate(left)), "kept": sizes[-1] / sizes[0] if sizes[0] else 0}


def _rules(stages: Sequence[Tree]) -> list[dict[str, Any]]:
    """What each rule dropped, most text first."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for stage in stages:
        for rule, domain, _, documents, n_bytes in stage["dropped"]:
            row = found.setdefault(
                (stage["name"], rule),
                {
                    "rule": rule,
                    "stage": stage["name"],
                    "documents": 0,
                    "n_bytes": 0,
                    "by_domain": Counter(),
                    "samples": stage["samples"].get(rule, []) if rule != KEPT else [],
                },
            )
            row["documents"] += documents
            row["n_bytes"] += n_bytes
            row["by_domain"][domain] += documents
    return [found[key] for key in sorted(found, key=lambda key: (-found[key]["n_bytes"], key))]


def _bar(rule: Tree, colors: Mapping[str, str]) -> tuple[str, float, str, str]:
    text = f"{size(rule['n_bytes'])}, {rule['documents']:,} documents"
    return rule["rule"], rule["n_bytes"], text, colors[rule["stage"]]


def _languages(kept: Sequence[Sequence[Any]]) -> list[tuple[str, dict[str, int], str]]:
    """Bytes by language of each domain: the largest languages by name, all others together."""
    sizes: dict[str, Counter[str]] = defaultdict(Counter)
    whole = Counter[str]()
    for domain, lang, _, n_bytes in kept:
        sizes[domain][lang or "not stated"] += n_bytes
        whole[lang or "not stated"] += n_bytes
    names = [name for name, _ in sorted(whole.items(), key=lambda item: (-item[1], item[0]))]
    top, rest = names[:SHOWN_LANGUAGES], names[SHOWN_LANGUAGES:]
    rows = []
    for domain, counts in sorted(sizes.items()):
        values = {name: counts[name] for name in top}
        if rest:
            values["others"] = sum(counts[name] for name in rest)
        rows.append((domain, values, size(counts.total())))
    return rows


def _cluster_groups(sizes: Sequence[Sequence[int]]) -> list[tuple[str, int]]:
    """Clusters of near-duplicates by how many documents they have."""
    groups: Counter[str] = Counter(dict.fromkeys([*CLUSTER_SIZES.values(), "256 and more"], 0))
    for found, clusters in sizes:
        groups[next((name for limit, name in CLUSTER_SIZES.items() if found <= limit), "256 and more")] += clusters
    return [(name, clusters) for name, clusters in groups.items() if clusters]


def _similarity(duplicates: Tree) -> Any:
    options = duplicates.get("options") or {}
    if not options.get("bands"):
        return None
    return figures.similarity_figure(
        options["bands"], options["rows"], options["threshold"], duplicates.get("similarities") or []
    )


def _lengths(stages: Sequence[Tree], colors: Mapping[str, str]) -> Any:
    before, after = defaultdict(dict), defaultdict(dict)
    for lengths, stage in ((before, stages[0]), (after, stages[-1])):
        for domain, place, documents in stage["lengths"]:
            lengths[domain][place] = documents
    return figures.lengths_figure([(name, before[name], after[name]) for name in colors if before[name]], colors)


def _mixture_rows(mixture: Tree) -> list[tuple[str, dict[str, float], str]]:
    domains = mixture["domains"]
    return [
        (title, {name: item[key] for name, item in domains.items()}, size(total))
        for title, key, total in (
            ("the text", "bytes", sum(item["bytes"] for item in domains.values())),
            ("training", "seen_bytes", mixture["planned_bytes"]),
            ("worth", "effective_bytes", mixture["effective_bytes"]),
        )
    ]
