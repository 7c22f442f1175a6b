"""One table of documents through every filter: which rows stay, what their texts become, which rule took the others.

    table --groups by (domain, language)--> blocks --edits (C4 lines)--> rules in order --edits (masks)--> decisions

A plain function of a table, so that partitions can go through it in any order, in processes or on a cluster. The
thresholds of a group are the options with the overrides that fit it. Each dropped document is counted for the first
rule it breaks; `hits` counts every rule by itself, so that one sees what a rule alone would take.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from isoflop.corpus.blocks import blocks
from isoflop.corpus.filter.c4 import C4Options, c4
from isoflop.corpus.filter.code import CodeOptions, code
from isoflop.corpus.filter.decontaminate import Benchmarks, DecontaminateOptions, contaminated, load_benchmarks, overlap
from isoflop.corpus.filter.fineweb import FinewebOptions, fineweb
from isoflop.corpus.filter.gopher import (
    Finding,
    GopherQualityOptions,
    GopherRepetitionOptions,
    gopher_quality,
    gopher_repetition,
)
from isoflop.corpus.filter.language import LanguageOptions, detect, language
from isoflop.corpus.filter.perplexity import NgramModel, PerplexityOptions, cut_off, perplexity, train_ngrams
from isoflop.corpus.filter.privacy import PrivacyOptions, mask_personal
from isoflop.corpus.filter.quality import Classifier, QualityOptions, blocks_of, quality, train_classifier
from isoflop.corpus.filter.text_block import TextBlock
from isoflop.corpus.filter.toxicity import Lexicon, ToxicityOptions, load_lexicon, toxicity
from isoflop.errors import RecipeError
from isoflop.recipe import from_tree, to_tree

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_CHARS = 250_000  # measured (benchmarks/filters.py): arrays of a block fit the cache


@dataclass(frozen=True)
class FilterOverride:
    """Other thresholds for some domains or languages; `values` has keys like "gopher_quality.min_words"."""

    domains: tuple[str, ...] = ()
    """Domains it is for; empty: all."""
    langs: tuple[str, ...] = ()
    """Languages it is for; empty: all."""
    values: dict[str, Any] = field(default_factory=dict)
    """Key of a family, a dot, key of its option -> value."""


@dataclass(frozen=True)
class FilterOptions:
    """Families of rules in the order in which they are asked."""

    language: LanguageOptions = field(default_factory=LanguageOptions)
    c4: C4Options = field(default_factory=C4Options)
    code: CodeOptions = field(default_factory=CodeOptions)
    gopher_repetition: GopherRepetitionOptions = field(default_factory=GopherRepetitionOptions)
    gopher_quality: GopherQualityOptions = field(default_factory=GopherQualityOptions)
    fineweb: FinewebOptions = field(default_factory=FinewebOptions)
    perplexity: PerplexityOptions = field(default_factory=PerplexityOptions)
    quality: QualityOptions = field(default_factory=QualityOptions)
    toxicity: ToxicityOptions = field(default_factory=ToxicityOptions)
    decontaminate: DecontaminateOptions = field(default_factory=DecontaminateOptions)
    privacy: PrivacyOptions = field(default_factory=PrivacyOptions)
    overrides: tuple[FilterOverride, ...] = ()
    """Later ones win."""

    def for_group(self, domain: str, lang: str) -> "FilterOptions":
        """The options of one domain and language. Raises RecipeError for unknown keys and wrong types."""
        tree = to_tree(self)
        tree.pop("overrides")
        for override in self.overrides:
            if override.domains and domain not in override.domains:
                continue
            if override.langs and lang.partition("-")[0] not in override.langs and lang not in override.langs:
                continue
            for name, value in override.values.items():
                family, dot, key = name.partition(".")
                if not dot or family not in tree:
                    known = ", ".join(tree)
                    raise RecipeError(f"filters.overrides.values: {name!r} must read family.key; families: {known}")
                tree[family][key] = value
        return from_tree(tree, FilterOptions, "filters.")

    def check(self) -> None:
        """Read every override once, so that a typing error shows before the first document. Raises RecipeError."""
        for override in self.overrides:
            FilterOptions(overrides=(FilterOverride(values=override.values),)).for_group("", "")


@dataclass(frozen=True)
class FilterModels:
    """What filters learn or load before the first document. Each part only if its family is enabled."""

    lexicon: Lexicon | None = None
    ngrams: dict[str, tuple[NgramModel, float]] = field(default_factory=dict)
    """Language -> model, perplexity above which documents go."""
    classifier: Classifier | None = None
    benchmarks: Benchmarks | None = None

    def save(self, folder: Path) -> None:
        """Write the learnt parts; the others are read from their files again."""
        for lang, (model, limit) in self.ngrams.items():
            model.save(folder / f"ngrams.{lang or 'any'}.npz")
            (folder / f"ngrams.{lang or 'any'}.limit").write_text(repr(limit), encoding="utf-8")
        if self.classifier:
            self.classifier.save(folder / "quality.npz")


def load_models(options: FilterOptions, folder: Path) -> FilterModels:
    """What `train_models` wrote to `folder`, with word lists and benchmarks read from theirs. Raises DataError."""
    ngrams = {}
    for path in sorted(folder.glob("ngrams.*.npz")):
        lang = path.name.split(".")[1]
        limit = float(path.with_suffix(".limit").read_text(encoding="utf-8"))
        ngrams["" if lang == "any" else lang] = (NgramModel.load(path), limit)
    found = folder / "quality.npz"
    return FilterModels(
        load_lexicon(options.toxicity.word_files) if _wanted(options, "toxicity") else None,
        ngrams,
        Classifier.load(found) if found.is_file() else None,
        load_benchmarks(options.decontaminate) if options.decontaminate.benchmarks else None,
    )


def train_models(options: FilterOptions, sample: "pa.Table", folder: Path) -> FilterModels:
    """Train what the options ask for on a sample of the documents, and write it.

    `sample` has domain, lang, text; take it by smallest keys, so that it is the same whatever the order.

    Raises:
        DataError: too little text in the seed domains.
    """
    folder.mkdir(parents=True, exist_ok=True)
    domains, langs, texts = (sample.column(name).to_pylist() for name in ("domain", "lang", "text"))
    ngrams = {}
    if _wanted(options, "perplexity"):
        asked = options.perplexity
        by_lang: dict[str, list[str]] = defaultdict(list)
        pool: dict[str, list[str]] = defaultdict(list)
        for domain, lang, text in zip(domains, langs, texts):
            (by_lang if domain in asked.seed_domains else pool)[lang.partition("-")[0]].append(text)
        for lang, seeds in sorted(by_lang.items()):
            model = train_ngrams(blocks_of(_up_to(seeds, asked.train_mb)), asked.order, asked.min_count)
            ngrams[lang] = (model, cut_off(model, blocks_of(pool[lang] or seeds), asked.drop_share))
    classifier = None
    if _wanted(options, "quality"):
        asked = options.quality
        seed = [text for domain, text in zip(domains, texts) if domain in asked.seed_domains]
        others = [text for domain, text in zip(domains, texts) if domain not in asked.seed_domains]
        classifier = train_classifier(seed[: asked.max_documents], others[: asked.max_documents], asked.penalty)
    FilterModels(ngrams=ngrams, classifier=classifier).save(folder)
    return load_models(options, folder)


@dataclass
class Decisions:
    """What happens to each row of a table, aligned with its rows."""

    rules: list[str]
    """First rule that the document breaks; empty: it stays."""
    values: np.ndarray
    """What that rule measured; NaN for documents that stay."""
    texts: list[str]
    """Texts after edits and masks; those of dropped documents are as they came."""
    langs: list[str]
    """Language, found out where none was stated."""
    hits: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """(rule, domain, language) -> documents that break it, whatever other rules say."""
    edits: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """(kind, domain, language) -> places masked or lines removed in documents that stay."""
    benchmark_texts: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    """Numbers of the benchmark texts found, for `decontaminate.report`."""
    benchmark_documents: np.ndarray | None = None
    """Documents that share runs with each benchmark."""


def decide(rows: "pa.Table", options: FilterOptions, models: FilterModels) -> Decisions:
    """Ask every rule about every row. `rows` has origin, domain, lang, text; the result does not depend on order."""
    origins, domains, texts = (rows.column(name).to_pylist() for name in ("origin", "domain", "text"))
    langs, scores = _languages(rows.column("lang").to_pylist(), domains, texts, options)
    out = Decisions([""] * len(texts), np.full(len(texts), np.nan), list(texts), langs)
    groups: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, group in enumerate(zip(domains, langs)):
        groups[group].append(place)
    if models.benchmarks:
        out.benchmark_documents = np.zeros(len(models.benchmarks.names), dtype=np.int64)
    for (domain, lang), places in sorted(groups.items()):
        chosen = options.for_group(domain, lang)
        for part in blocks(places, lambda place: len(texts[place]), BLOCK_CHARS):
            _decide_block(out, part, [origins[i] for i in part], scores[part], (domain, lang), chosen, models)
    return out


def _decide_block(
    out: Decisions,
    part: list[int],
    origins: list[str],
    scores: np.ndarray,
    group: tuple[str, str],
    options: FilterOptions,
    models: FilterModels,
) -> None:
    domain, lang = group
    block = TextBlock([out.texts[place] for place in part])
    findings: list[Finding] = []
    if options.language.enabled:
        findings += language([lang] * len(part), scores, options.language)
    if options.c4.enabled:
        found, texts, removed = c4(block, options.c4)
        findings += found
        block = TextBlock(texts)
    else:
        removed = np.zeros(len(part), dtype=np.int64)
    if options.code.enabled and domain in options.code.domains:
        findings += code(block, origins, options.code)
    if options.gopher_repetition.enabled:
        findings += gopher_repetition(block, options.gopher_repetition)
    if options.gopher_quality.enabled:
        findings += gopher_quality(block, options.gopher_quality, lang.partition("-")[0])
    if options.fineweb.enabled:
        findings += fineweb(block, options.fineweb)
    model = models.ngrams.get(lang.partition("-")[0])
    if options.perplexity.enabled and model and domain not in options.perplexity.seed_domains:
        findings += perplexity(block, *model)
    if options.quality.enabled and models.classifier and domain not in options.quality.seed_domains:
        findings += quality(block, models.classifier, options.quality)
    texts = list(block.texts)
    if options.toxicity.enabled and models.lexicon:
        found, texts = toxicity(block, models.lexicon, options.toxicity)
        findings += found
    if models.benchmarks:
        shared = overlap(block, models.benchmarks)
        out.benchmark_texts = np.union1d(out.benchmark_texts, shared.texts)
        out.benchmark_documents += (shared.counts > 0).sum(axis=0)
        findings += contaminated(shared, options.decontaminate)
    for finding in findings:
        out.hits[finding.rule, domain, lang] += int(finding.drop.sum())
    for index, place in enumerate(part):
        for finding in findings:
            if finding.drop[index]:
                out.rules[place], out.values[place] = finding.rule, finding.value[index]
                break
        else:
            if options.privacy.enabled:
                texts[index], masked = mask_personal(texts[index], options.privacy)
                out.edits.update({(f"masked_{kind}", domain, lang): n for kind, n in masked.items()})
            if removed[index]:
                out.edits["c4_lines", domain, lang] += int(removed[index])
            out.texts[place] = texts[index]


def _languages(
    stated: Sequence[str | None], domains: Sequence[str], texts: Sequence[str], options: FilterOptions
) -> tuple[list[str], np.ndarray]:
    """Language of each row, and the score of the ones that were found out (1 for stated ones)."""
    langs, scores = [lang or "" for lang in stated], np.ones(len(texts))
    if options.language.enabled:
        ask = [
            place
            for place, lang in enumerate(langs)
            if (not lang or not options.language.trust_stated) and domains[place] not in options.code.domains
        ]
        found, values = detect([texts[place] for place in ask])
        for place, lang in zip(ask, found):
            langs[place] = lang
        scores[ask] = values
    return langs, scores


def _wanted(options: FilterOptions, family: str) -> bool:
    """Enabled for all documents, or for some by an override."""
    return getattr(options, family).enabled or any(item.values.get(f"{family}.enabled") for item in options.overrides)


def _up_to(texts: list[str], megabytes: float) -> list[str]:
    sizes = np.cumsum([len(text.encode()) for text in texts])
    return texts[: max(1, int(np.searchsorted(sizes, megabytes * 1e6)))]
