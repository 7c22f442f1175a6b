"""Items that the training text holds are found, whatever form it has; others are not; both scores are reported."""

import gzip
import json
import shutil

import pytest
from evaluation_runs import run_of

from isoflop.cli.main import main
from isoflop.corpus.build import build_corpus
from isoflop.corpus.dedup.options import DedupOptions
from isoflop.corpus.document import SourceOptions
from isoflop.corpus.recipe import CorpusRecipe
from isoflop.errors import DataError
from isoflop.evaluation.contamination import TrainText, find_text, mark
from isoflop.evaluation.recipe import ContaminationSection
from isoflop.evaluation.tasks.catalogue import task
from isoflop.evaluation.tasks.task import Question
from isoflop.run import read_json_lines
from isoflop.tokens.documents import DocumentOptions
from isoflop.tokens.shards import TokenizerOptions, TokensRecipe, build_tokens

N = 24
PLANTED = {3: "goal", 8: "sol2", 11: "goal"}
"""Item -> text of its row that a training document holds a run of."""
SHORT = 20
"""An item of short texts only."""
HELD_OUT = 15
"""An item that stands in a validation document."""


def words(name: str, n: int) -> str:
    return " ".join(f"{name}{at}" for at in range(n))


def row_of(at: int) -> dict[str, str]:
    n = 3 if at == SHORT else 16
    return {"goal": words(f"goal{at}x", n), "sol1": words(f"first{at}x", n), "sol2": words(f"second{at}x", n)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("official")
    (folder / "piqa").mkdir()
    (folder / "piqa/valid.jsonl").write_text("".join(f"{json.dumps(row_of(at))}\n" for at in range(N)))
    (folder / "piqa/valid-labels.lst").write_text("".join(f"{at % 2}\n" for at in range(N)))
    return folder


@pytest.fixture(scope="module")
def documents():
    """Of training: 13 words of the planted texts in other case and with other signs, 12 words of all others."""
    texts = [words(f"noise{at}y", 60) for at in range(30)]
    for at in range(N):
        held = row_of(at)[PLANTED.get(at, "goal")].split()
        some = held[2:15] if at in PLANTED else held[2:14]
        texts[at] = f"{words('before', 20)}. {', '.join(some).upper()}! {words('after', 20)}"
    texts[HELD_OUT] = words("nothing", 30)
    return texts


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, documents):
    folder = tmp_path_factory.mktemp("text")
    held_out = [row_of(HELD_OUT)["goal"], *(words(f"held{at}z", 50) for at in range(4))]
    for name, texts in (("train", documents), ("valid", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts))
    sources = tuple(SourceOptions(str(folder / f"{name}.jsonl"), split=name) for name in ("train", "valid"))
    build_corpus(CorpusRecipe(sources=sources, raw=True, dedup=DedupOptions(near=False)), folder / "corpus")
    return folder / "corpus"


@pytest.fixture(scope="module")
def tokens(corpus):
    folder = corpus.parent / "tokens"
    tokenizer = TokenizerOptions(280, n_reserved=0, padded_vocab_size=512, fim_tokens=True)
    build_tokens(corpus, folder, TokensRecipe(tokenizer, DocumentOptions()))
    return folder


def marked(data, *train_text, **section):
    items = task("piqa").read(data, 0).items
    found = mark({"piqa": items}, ContaminationSection(tuple(map(str, train_text)), **section))
    return found.by_task["piqa"], found.text


EXPECTED = [None if at == SHORT else at in PLANTED for at in range(N)]


def test_planted_items_are_found_in_a_corpus_and_no_others(data, corpus, documents):
    found, (text,) = marked(data, corpus)
    assert found == EXPECTED
    assert text == {
        "path": str(corpus.resolve()),
        "kind": "corpus",
        "n_documents": len(documents),
        "n_bad": 0,
        "n_chars": sum(map(len, documents)),
    }
    found, _ = marked(data, corpus, n_words=12)
    assert [at for at, is_found in enumerate(found) if not is_found] == [HELD_OUT, SHORT]


def test_a_run_stands_for_its_tokens_and_for_what_its_base_was_trained_on(data, corpus, tokens, tmp_path, monkeypatch):
    found, (text,) = marked(data, tokens)
    assert found == EXPECTED and text["kind"] == "tokens" and text["n_documents"] == 30
    base, chat = tmp_path / "base", tmp_path / "chat"
    said = [{"messages": [{"role": "user", "content": row_of(5)["sol1"]}, {"role": "assistant", "content": "Yes."}]}]
    (tmp_path / "chats.json").write_text(json.dumps(said))
    for run, recipe in (
        (base, f'[data]\ntokens = "{tokens}"\n'),
        (chat, f'[initial]\nrun = "{base}"\n[data]\ntrain = ["{tmp_path / "chats.json"}"]\n'),
        (tmp_path / "longer", f'[initial]\ncheckpoint = "{base}/checkpoints/step-1"\n[data]\ntokens = "{tokens}"\n'),
    ):
        run.mkdir()
        (run / "recipe.toml").write_text(recipe)
    assert marked(data, base)[0] == EXPECTED
    assert [at for at, is_found in enumerate(marked(data, chat)[0]) if is_found] == sorted([*PLANTED, 5])
    assert [piece.path.name for piece in find_text([tmp_path / "longer", chat])] == ["tokens", "chats.json"]
    monkeypatch.setattr("isoflop.evaluation.contamination.AT_ONCE", 7)
    assert [*TrainText(tokens, "tokens").documents()] == [*TrainText(corpus, "corpus").documents()]


def test_plain_text_and_compressed_files_are_read_and_bad_records_counted(data, documents, tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.txt").write_text(documents[3])
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(json.dumps({"id": "no text", "text": documents[8]}).encode()))
    (folder / "c.parquet").write_bytes(b"PAR1 and nothing else")
    found, (text,) = marked(data, folder)
    assert [at for at, is_found in enumerate(found) if is_found] == [3, 8]
    assert text["kind"] == "text" and text["n_documents"] == 2 and text["n_bad"] == 1


def test_texts_without_spaces_are_looked_for_by_characters(tmp_path):
    text = "".join(chr(0x4E00 + 7 * at) for at in range(40))
    items = [Question("0", "", "", texts=(text,)), Question("1", "", "", texts=(text[::-1],))]
    (tmp_path / "t.txt").write_text(text[5:25])
    assert mark({"t": items}, ContaminationSection((str(tmp_path / "t.txt"),))).by_task["t"] == [True, False]
    (tmp_path / "t.txt").write_text(text[5:24])
    assert mark({"t": items}, ContaminationSection((str(tmp_path / "t.txt"),))).by_task["t"] == [False, False]


def test_the_command_scores_the_clean_items_beside_all_of_them(data, corpus, tmp_path, tiny_tokens, capsys):
    run = run_of(tmp_path / "run", tiny_tokens)
    (tmp_path / "eval.toml").write_text('[tasks]\nnames = ["piqa"]\n')
    words_ = ["eval", str(run), str(tmp_path / "eval.toml"), "--data", str(data)]
    main(words_)
    (answers,) = (run / "evaluation").glob("piqa.*.jsonl")
    before = answers.read_bytes()
    files = {name: tmp_path / name for name in ("f.json", "s.jsonl", "r.html")}
    capsys.readouterr()
    out = ["--json", str(files["f.json"]), "--samples", str(files["s.jsonl"]), "--report", str(files["r.html"])]
    main([*words_, *out, "--train-text", str(corpus)])
    assert answers.read_bytes() == before, "answers do not depend on the training text"
    found = json.loads(files["f.json"].read_text())["runs"][str(run)]
    told = found["details"]["piqa"]["contamination"]
    assert (told["n_contaminated"], told["share"], told["n_too_short"]) == (3, 3 / 23, 1)
    rows = read_json_lines(files["s.jsonl"])
    assert [row["contaminated"] for row in rows] == EXPECTED
    for metric, clean in told["clean"].items():
        scores = [row["scores"][metric] for row in rows if row["contaminated"] is False]
        assert clean["value"] == pytest.approx(sum(scores) / 20) and clean["n"] == 20
        assert clean["low"] < clean["value"] < clean["high"]
        assert found["tasks"]["piqa"][metric]["n"] == 24
    without, with_it = read_json_lines(run / "evaluation.jsonl")
    assert with_it["contamination"] == told and "contamination" not in without
    assert without["metrics"] == with_it["metrics"] == found["tasks"]["piqa"]
    assert with_it["settings"]["train_text"] == found["settings"]["train_text"]
    html = files["r.html"].read_text()
    assert "Items that stand in the training text" in html and "0.130" in html
    assert "clean_value" in capsys.readouterr().out
    main([*words_, "--report", str(files["r.html"])])
    assert "Items that stand in the training text" not in files["r.html"].read_text()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "contamination.train_text = '{0}' does not exist; give a corpus"),
        (lambda folder: (folder.mkdir(), (folder / "a.json").write_text("[]")), "has no training document"),
        (lambda folder: (folder.mkdir(), (folder / "a.json").write_text("{")), "a.json can't be read"),
        (
            lambda folder: (folder.mkdir(), (folder / "recipe.toml").write_text("[model]\nn_layers = 1\n")),
            "does not say what it was trained on",
        ),
    ],
)
def test_training_text_that_cannot_be_used_is_refused_by_name(data, tmp_path, make, message):
    make(tmp_path / "given")
    with pytest.raises(DataError) as refused:
        marked(data, tmp_path / "given")
    assert str(refused.value).startswith("contamination.train_text")
    assert message.format(tmp_path / "given") in str(refused.value)


@pytest.mark.parametrize(
    ("run", "text", "message"),
    [("gone", "", "gone has no recipe.toml"), ("run", "nowhere.txt", "contamination.train_text = 'nowhere.txt'")],
)
def test_runs_and_training_text_that_are_not_there_are_said_before_official_files_are_read(
    tmp_path, tiny_tokens, monkeypatch, refused, run, text, message
):
    monkeypatch.chdir(tmp_path)
    run_of(tmp_path / "run", tiny_tokens)
    (tmp_path / "eval.toml").write_text('[tasks]\nnames = ["piqa"]\ndata = "no folder"\n')
    assert message in refused("eval", run, "eval.toml", *(["--train-text", text] if text else []))


def test_a_damaged_shard_is_refused(data, tokens, tmp_path):
    shutil.copytree(tokens, tmp_path / "tokens")
    (shard,) = (tmp_path / "tokens").glob("train.*.bin")
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(DataError, match="make the tokens again"):
        marked(data, tmp_path / "tokens")
