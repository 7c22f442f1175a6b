"""The commands that make data: corpus build, tokens."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from isoflop.cli.arguments import Json, Out, Overrides, Recipe, load_recipe
from isoflop.cli.console import Bar, report_found


def corpus_build(recipe: Recipe, /, *overrides: Overrides, out: Out = Path("runs/corpus"), json: Json = None) -> None:
    """Raw text -> clean corpus: read, deduplicate, filter, hold out validation, remix, report."""
    from isoflop.corpus.build import build_corpus
    from isoflop.corpus.recipe import CorpusRecipe

    with Bar("B") as bar:
        found = build_corpus(load_recipe(recipe, CorpusRecipe, overrides), out, on_progress=bar.stage)
    state = " (was up to date)" if found.get("reused") else f"; report in {out / 'report.html'}"
    rows = [
        (f"{item['split']} {item['domain']}", f"{item['n_documents']:,} documents, {item['n_bytes']:,} bytes")
        for item in found["files"]
    ]
    report_found(found, json, f"corpus in {out}{state}", rows)


def tokens(
    recipe: Recipe,
    /,
    *overrides: Overrides,
    corpus: Annotated[Path, Parameter(metavar="DIR", help="corpus folder")] = Path("runs/corpus"),
    out: Out = Path("runs/tokens"),
    json: Json = None,
) -> None:
    """Clean corpus -> tokenizer and token shards."""
    from isoflop.tokens.shards import TokensRecipe, build_tokens

    with Bar("B") as bar:
        found = build_tokens(corpus, out, load_recipe(recipe, TokensRecipe, overrides), on_progress=bar.stage)
    rows = [
        (f"{s['split']} {s['domain']}", f"{s['n_tokens']:,} tokens, {s['n_bytes']:,} bytes") for s in found["shards"]
    ]
    rows += [(f"bytes per token, {name}", f"{value:.2f}") for name, value in found.get("compression", {}).items()]
    rows.append(("vocabulary", f"{found['vocab_size']:,} rows, {found['bytes_per_token']:.3f} bytes per token"))
    report_found(found, json, f"tokens in {out}" + (" (was up to date)" if found.get("reused") else ""), rows)
