"""A small corpus of two domains, its tokenizer and its tokens, made once per session."""

import random
from pathlib import Path

import pytest

from isoflop.corpus.build import build_corpus
from isoflop.corpus.dedup.options import DedupOptions
from isoflop.corpus.document import SourceOptions
from isoflop.corpus.recipe import CorpusRecipe, SplitOptions
from isoflop.tokens.bpe import Tokenizer
from isoflop.tokens.shards import TokenizerOptions, TokenSet, TokensRecipe, build_tokens

SENTENCE = (
    "the model reads text and learns a law of loss against compute caf\u00e9 12 3.5 \u4e2d\u6587 \u4f60\u597d x+y=z"
)
WORDS = SENTENCE.split(" ")


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    generator = random.Random(1)
    for domain in ("prose", "code"):
        (folder / domain).mkdir()
        for index in range(60):
            words = generator.choices(WORDS, k=300)
            lines = [f"{index} {' '.join(words[start : start + 12])}" for start in range(0, 300, 12)]
            (folder / domain / f"{index:03d}.txt").write_text("\n".join(lines), encoding="utf-8")
    recipe = CorpusRecipe(
        sources=tuple(SourceOptions(path=str(folder / name), domain=name) for name in ("prose", "code")),
        split=SplitOptions(valid_fraction=0.2),
        dedup=DedupOptions(near=False),
    )
    build_corpus(recipe, folder / "corpus")
    return folder / "corpus"


@pytest.fixture(scope="session")
def tokens_recipe() -> TokensRecipe:
    return TokensRecipe(TokenizerOptions(vocab_size=300, n_reserved=2, padded_vocab_size=0, pad_multiple=64))


@pytest.fixture(scope="session")
def tokens_folder(small_corpus: Path, tokens_recipe: TokensRecipe) -> Path:
    folder = small_corpus.parent / "tokens"
    build_tokens(small_corpus, folder, tokens_recipe)
    return folder


@pytest.fixture(scope="session")
def token_set(tokens_folder: Path) -> TokenSet:
    return TokenSet.open(tokens_folder)


@pytest.fixture(scope="session")
def tokenizer(token_set: TokenSet) -> Tokenizer:
    return token_set.tokenizer
