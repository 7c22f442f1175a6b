"""The page of a corpus: what came in, what each stage dropped and why, what is left, and how it is to be mixed.

It is made from `report.json` alone, the machine-readable half of the same report, and holds no time, path or machine:
the same documents and recipe give the same page, byte for byte.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from isoflop.corpus.report.tally import KEPT
from isoflop.pages import charts
from isoflop.pages.charts import label_bytes
from isoflop.pages.html import (
    Markup,
    decimal,
    facts,
    fingerprint,
    folded,
    join,
    listed,
    markup,
    page,
    percent,
    section,
    sentence,
    table,
    tag,
    tiles,
)

Tree = Mapping[str, Any]
SHOWN_SAMPLES = 6
"""Samples of a rule that are shown; report.json has up to twenty."""

STAGE_TITLES = {
    "sample": "sampled",
    "read": "read",
    "duplicates": "duplicates removed",
    "filter": "filtered",
    "decontaminate": "decontaminated",
}


def corpus_page(report: Tree, *, title: str) -> str:
    """HTML of a whole report."""
    domains = sorted({row[0] for stage in report["stages"] for row in stage["kept"]})
    colors = charts.color_of(domains)
    sections = [
        ("funnel", "Funnel", _funnel(report, colors)),
        ("dropped", "Dropped", _dropped(report)),
        ("duplicates", "Duplicates", _duplicates(report.get("duplicates") or {})),
        ("contamination", "Evaluation sets", _contamination(report.get("contamination") or [])),
        ("lengths", "Lengths", _lengths(report, colors)),
        ("languages", "Languages", _languages(report)),
        ("mixture", "Mixture", _mixture(report["manifest"]["mixture"], colors)),
        ("kept", "Kept text", _kept(report)),
        ("files", "Files and licences", _files(report["manifest"])),
    ]
    style = Markup(f"<style>{charts.CSS}</style>")
    footer = f"isoflop corpus build; corpus {report['manifest']['corpus_sha256'][:16]}. The numbers: report.json."
    return page(title, join(style, _lead(report)), sections, footer)


def _lead(report: Tree) -> Markup:
    manifest, stages = report["manifest"], report["stages"]
    (n_read, b_read), (n_kept, b_kept) = _total(stages[0]["kept"]), _total(stages[-1]["kept"])
    gone = _by_stage_and_rule(stages)
    valid = sum(item["n_bytes"] for item in manifest["files"] if item["split"] == "valid")
    worst = max(gone.items(), key=lambda item: item[1][1], default=None)
    remark = f"most by {worst[0][1]}" if worst else ""
    return join(
        sentence(
            f"{n_kept:,} of {n_read:,} documents stay, {label_bytes(b_kept)} of {label_bytes(b_read)}: "
            f"{1 - b_kept / max(1, b_read):.1%} of the text was dropped."
        ),
        tiles(
            [
                ("read", label_bytes(b_read), f"{n_read:,} documents"),
                ("kept", label_bytes(b_kept), f"{n_kept:,} documents"),
                ("dropped", percent(1 - n_kept / max(1, n_read), 1), remark or "of the documents"),
                ("set aside", f"{manifest['n_bad_records']:,}", "records that could not be read"),
                ("validation", percent(valid / max(1, manifest["n_bytes"]), 1), label_bytes(valid)),
            ]
        ),
    )


def _funnel(report: Tree, colors: Mapping[str, str]) -> Markup:
    stages = report["stages"]
    columns, before = [], None
    for stage in stages:
        documents, n_bytes = _total(stage["kept"])
        lost = "" if before is None else f"\u2212{1 - n_bytes / max(1, before):.1%}"
        name = STAGE_TITLES.get(stage["name"], stage["name"])
        columns.append((name, _sums(stage["kept"], 3), f"{label_bytes(n_bytes)}, {documents:,}", lost))
        before = n_bytes
    rows = []
    for domain in colors:
        counts = [_sums(stage["kept"], 2).get(domain, 0) for stage in stages]
        sizes = [_sums(stage["kept"], 3).get(domain, 0) for stage in stages]
        cells = [f"{label_bytes(size)} / {count:,}" for size, count in zip(sizes, counts, strict=True)]
        rows.append([domain, *cells, percent(sizes[-1] / sizes[0] if sizes[0] else 0, 1)])
    heads = ["domain", *[STAGE_TITLES.get(stage["name"], stage["name"]) for stage in stages], "text kept"]
    return section(
        "funnel",
        "From what was read to what is kept",
        charts.legend(colors),
        charts.flow(columns, colors),
        table(heads, rows),
        sentence(
            "Each cell: text / documents that are left after the stage. A document is a piece of at most ",
            f"{report['manifest']['recipe']['split']['max_piece_kb']:g} kB; long texts are cut at paragraph ends.",
        ),
    )


def _dropped(report: Tree) -> Markup:
    gone = _by_stage_and_rule(report["stages"])
    ranked = sorted(gone.items(), key=lambda item: (-item[1][1], item[0]))
    if not ranked:
        return Markup("")
    names = {key: f"{key[1]}" for key, _ in ranked}
    stages = list(dict.fromkeys(stage for (stage, _), _ in ranked))
    colors = charts.color_of(stages)
    by_name = {names[key]: colors[key[0]] for key, _ in ranked}
    chart = charts.bars(
        [(names[key], size, f"{label_bytes(size)}, {count:,} documents") for key, (count, size) in ranked[:16]],
        colors=by_name,
    )
    domains = sorted({row[1] for stage in report["stages"] for row in stage["dropped"]})
    cells: Counter[tuple[str, str, str]] = Counter()
    for stage in report["stages"]:
        for rule, domain, _, documents, _ in stage["dropped"]:
            cells[stage["name"], rule, domain] += documents
    rows = [
        [rule, stage, *[cells[stage, rule, d] or "" for d in domains], gone[stage, rule][0]]
        for (stage, rule), _ in ranked
    ]
    found = {(stage["name"], rule): cards for stage in report["stages"] for rule, cards in stage["samples"].items()}
    samples = [
        folded(f"{rule}: {count:,} documents", _cards(found[stage, rule][:SHOWN_SAMPLES], css="gone"))
        for (stage, rule), (count, _) in ranked
        if rule != KEPT and (stage, rule) in found
    ]
    return section(
        "dropped",
        "What was dropped, by rule",
        charts.legend({STAGE_TITLES.get(name, name): color for name, color in colors.items()}),
        chart,
        table(["rule", "stage", *domains, "documents"], rows, text_columns=(0, 1)),
        tag("h3", "Samples"),
        sentence("Documents with the smallest hash of (rule, key): as good as drawn at random, and always the same."),
        *samples,
    )


def _duplicates(found: Tree) -> Markup:
    if not found:
        return Markup("")
    options, sizes = found.get("options") or {}, found.get("cluster_sizes") or []
    parts: list[Any] = [facts([(name.replace("_", " "), value) for name, value in (found.get("counts") or {}).items()])]
    if sizes:
        groups: Counter[str] = Counter()
        for size, count in sizes:
            groups[_size_group(size)] += count
        rows = [(name, float(groups[name]), f"{groups[name]:,} clusters") for name in _GROUPS if groups[name]]
        parts += [tag("h3", "Documents in a cluster of near-duplicates"), charts.bars(rows)]
    if options.get("bands"):
        b, r, threshold = options["bands"], options["rows"], options["threshold"]
        points = [(s / 200, 1 - (1 - (s / 200) ** r) ** b) for s in range(201)]
        parts += [
            tag("h3", "Which pairs are found"),
            sentence(
                f"{b} bands of {r} values: a pair of Jaccard similarity s (of shingles) is compared with probability "
                f"1 \u2212 (1 \u2212 s^{r})^{b}, and counts as the same text from {threshold:g} on. Bars: pairs that "
                "were compared in this corpus, by their similarity."
            ),
            charts.curve(
                points,
                mark=(threshold, f"threshold {threshold:g}"),
                counts=[(place, count) for place, count in found.get("similarities") or []],
                x_label="Jaccard similarity of a pair",
                y_label="probability of being compared",
            ),
        ]
    for number, cluster in enumerate(found.get("examples") or []):
        head = f"cluster {number + 1}: {cluster['size']:,} documents, stays: {cluster['members'][0][1]}"
        parts.append(folded(head, _cards(cluster["members"][:1]), _cards(cluster["members"][1:], css="gone")))
    return section("duplicates", "Duplicates", *parts)


_GROUPS = ("2", "3", "4 to 7", "8 to 15", "16 to 63", "64 to 255", "256 and more")


def _size_group(size: int) -> str:
    limits = ((2, 0), (3, 1), (7, 2), (15, 3), (63, 4), (255, 5))
    return _GROUPS[next((place for limit, place in limits if size <= limit), 6)]


def _contamination(found: Sequence[Tree]) -> Markup:
    rows = [
        [
            item["benchmark"],
            item["n_texts"],
            item["n_found"],
            percent(item["n_found"] / item["n_texts"], 1) if item["n_texts"] else None,
            item["n_documents"],
            item["n_too_short"],
        ]
        for item in found
    ]
    heads = ["benchmark", "texts", "found", "share", "documents with them", "too short to look for"]
    return section(
        "contamination",
        "Overlap with evaluation sets",
        sentence(
            "Texts of which a run of words occurs in the filtered corpus; the documents that hold them are dropped."
        )
        if rows
        else "",
        table(heads, rows),
    )


def _lengths(report: Tree, colors: Mapping[str, str]) -> Markup:
    before, after = (_bins(report["stages"][place]["lengths"]) for place in (0, -1))
    panels = [(name, before.get(name, {}), after.get(name, {})) for name in colors if before.get(name)]
    return section(
        "lengths",
        "Length of documents",
        sentence("Documents by bytes of text, in powers of two. Outline: as read. Filled: kept."),
        charts.histograms(panels, colors),
    )


def _languages(report: Tree) -> Markup:
    sizes: dict[str, Counter[str]] = defaultdict(Counter)
    for domain, lang, _, n_bytes in report["stages"][-1]["kept"]:
        sizes[domain][lang or "not stated"] += n_bytes
    whole: Counter[str] = Counter()
    for counts in sizes.values():
        whole.update(counts)
    names = [name for name, _ in sorted(whole.items(), key=lambda item: (-item[1], item[0]))]
    top = names[:7]
    colors = charts.color_of([*top, "others"] if len(names) > len(top) else top)
    rows = []
    for domain, counts in sorted(sizes.items()):
        values = {name: float(counts[name]) for name in top}
        values["others"] = float(sum(counts.values()) - sum(values.values()))
        rows.append((domain, values, label_bytes(sum(counts.values()))))
    return section("languages", "Languages of the kept text", charts.legend(colors), charts.shares(rows, colors))


def _mixture(plan: Tree, colors: Mapping[str, str]) -> Markup:
    domains = plan["domains"]
    shown = {name: color for name, color in colors.items() if name in domains}
    for name in domains:
        shown.setdefault(name, charts.COLORS[len(shown) % len(charts.COLORS)])
    total = sum(item["bytes"] for item in domains.values())
    rows = [
        ("the text", {name: item["bytes"] for name, item in domains.items()}, label_bytes(total)),
        ("training", {name: item["seen_bytes"] for name, item in domains.items()}, label_bytes(plan["planned_bytes"])),
        (
            "worth",
            {name: item["effective_bytes"] for name, item in domains.items()},
            label_bytes(plan["effective_bytes"]),
        ),
    ]
    cells = [
        [
            name,
            label_bytes(item["bytes"]),
            percent(sum(s["part"] * s["target"][name] for s in plan["stages"]), 2),
            percent(item["share"], 2),
            decimal(item["epochs"], 3),
            percent(item["lost"], 1),
        ]
        for name, item in domains.items()
    ]
    stages = [(s["start"], s["part"], s["realised"]) for s in plan["stages"]]
    return section(
        "mixture",
        "Mixture",
        charts.legend(shown),
        charts.shares(rows, shown),
        table(["domain", "text", "target share", "realised share", "epochs", "lost to repetition"], cells),
        sentence(
            f"Training is planned over {label_bytes(plan['planned_bytes'])} of text. Repeated text counts less (law "
            f"of arXiv 2305.16264): what is read is worth {label_bytes(plan['effective_bytes'])} of new text, "
            f"{plan['lost_to_repetition']:.1%} less. Realised shares are the sampler's, in blocks of 4,096 draws."
        ),
        join(tag("h3", "Curriculum"), charts.curriculum(stages, shown)) if len(stages) > 1 else "",
    )


def _kept(report: Tree) -> Markup:
    found = report["stages"][-1]["samples"].get(KEPT, [])
    return section("kept", "A sample of what is kept", _cards(found[:10])) if found else Markup("")


def _files(manifest: Tree) -> Markup:
    rows = [
        [item["path"], item["n_documents"], label_bytes(item["n_bytes"]), fingerprint(item["sha256"])]
        for item in manifest["files"]
    ]
    licences = sorted(manifest["licenses"].items(), key=lambda item: (-item[1], item[0]))
    return section(
        "files",
        "Files and licences",
        table(["file", "documents", "text", "hash of the content"], rows, text_columns=(0, 3)),
        facts(
            [
                ("held out packages", listed(manifest.get("held_out"))),
                ("recipe", fingerprint(manifest["recipe_sha256"])),
            ]
        ),
        folded("Licences", table(["licence", "documents"], licences)),
    )


def _cards(samples: Iterable[Sequence[str]], css: str = "") -> Markup:
    """Samples as [hash, origin, domain, lang, detail, excerpt]."""
    cards = []
    for _, origin, domain, lang, detail, excerpt in samples:
        about = " \u00b7 ".join(part for part in (origin, domain, lang, detail) if part)
        cards.append(
            f'<div class="sample {css}"><small>{markup(about)}</small><pre>{markup(excerpt.strip())}</pre></div>'
        )
    return Markup(f'<div class="samples">{"".join(cards)}</div>') if cards else Markup("")


def _total(kept: Iterable[Sequence[Any]]) -> tuple[int, int]:
    rows = list(kept)
    return sum(row[2] for row in rows), sum(row[3] for row in rows)


def _sums(kept: Iterable[Sequence[Any]], place: int) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for row in kept:
        sums[row[0]] += row[place]
    return dict(sums)


def _by_stage_and_rule(stages: Iterable[Tree]) -> dict[tuple[str, str], tuple[int, int]]:
    gone: dict[tuple[str, str], tuple[int, int]] = {}
    for stage in stages:
        for rule, _, _, documents, n_bytes in stage["dropped"]:
            before = gone.get((stage["name"], rule), (0, 0))
            gone[stage["name"], rule] = (before[0] + documents, before[1] + n_bytes)
    return gone


def _bins(lengths: Iterable[Sequence[Any]]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = defaultdict(dict)
    for domain, size, documents in lengths:
        found[domain][size] = documents
    return dict(found)
