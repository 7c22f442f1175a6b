"""Readers: every format has one normal form, and what is none is named with file and line."""

import gzip
import json
from pathlib import Path

import pytest
import zstandard

from isoflop.alignment.conversations import Pair, read_conversations, read_pairs, split_by_prompt
from isoflop.alignment.records import Quarantine, find_files
from isoflop.errors import DataError
from isoflop.tokens.chat import Message

DATA = Path(__file__).parents[3] / "shared" / "data"
U, A, S = (lambda text, role=role: Message(role, text) for role in ("user", "assistant", "system"))

CONVERSATIONS = [
    ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " a\n"}]}, (U("q"), A("a"))),
    (
        {
            "messages": [
                {"role": "developer", "content": [{"type": "text", "text": "s"}]},
                *({"role": r, "content": c} for r, c in (("user", "q"), ("assistant", "a"))),
            ]
        },
        (S("s"), U("q"), A("a")),
    ),
    (
        {
            "conversations": [
                {"from": f, "value": v} for f, v in (("human", "q"), ("gpt", "a"), ("human", "r"), ("gpt", "b"))
            ]
        },
        (U("q"), A("a"), U("r"), A("b")),
    ),
    ({"conversations": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, (U("q"), A("a"))),
    ({"instruction": "do", "input": "", "output": "a"}, (U("do"), A("a"))),
    ({"instruction": "do", "input": "this", "response": "a"}, (U("do\nthis"), A("a"))),
    ({"instruction": "do", "context": "this", "response": "a", "category": "x"}, (U("do\nthis"), A("a"))),
    (
        {"instruction": "do", "output": "a", "system": "s", "history": [["q", "b"]]},
        (S("s"), U("q"), A("b"), U("do"), A("a")),
    ),
    ({"instruction": "do", "instances": [{"input": "x", "output": "a"}]}, (U("do\nx"), A("a"))),
    ({"prompt": "q", "response": "a"}, (U("q"), A("a"))),
    ({"question": "q", "answer": "a"}, (U("q"), A("a"))),
]

HH = "\n\nHuman: q\n\nAssistant: b\n\nHuman: r\n\nAssistant:"
PAIRS = [
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, ((U("q"),), "a", "b")),
    (
        {
            "prompt": [{"role": "user", "content": "q"}],
            "chosen": [{"role": "assistant", "content": "a"}],
            "rejected": [{"role": "assistant", "content": "b"}],
        },
        ((U("q"),), "a", "b"),
    ),
    (
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        },
        ((U("q"),), "a", "b"),
    ),
    ({"conversations": [{"from": "human", "value": "q"}], "chosen": "a", "rejected": "b"}, ((U("q"),), "a", "b")),
    ({"chosen": f"{HH} yes", "rejected": f"{HH} no\n"}, ((U("q"), A("b"), U("r")), "yes", "no")),
    ({"instruction": "q", "output_1": "a", "output_2": "b", "preference": 2}, ((U("q"),), "b", "a")),
]

BAD = [
    ({"messages": [{"role": "user", "content": "q"}]}, "no assistant turn"),
    ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]}, "turn 2: empty answer"),
    ({"messages": [{"role": "tool", "content": "q"}]}, "turn 1 has the unknown role 'tool'"),
    ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "parts that are no text"),
    (
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "label": False},
        "bad one",
    ),
    ({"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "q"}]}, "roles out of order"),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "f"}]}, "function_call"),
    ({"instruction": "do", "output": 7}, "a turn is int, not text"),
    ({"text": "q"}, "no known format: the record has the keys text"),
    ({"prompt": "q", "response": "a\udcff"}, "turn 2 has unpaired surrogates"),
]

BAD_PAIRS = [
    ({"prompt": "q", "chosen": "a ", "rejected": "a"}, "equal sides"),
    ({"prompt": "q", "chosen": "a", "rejected": ""}, "turn 2: empty answer"),
    ({"prompt": "q", "chosen": "a"}, "no rejected"),
    ({"chosen": f"{HH} yes", "rejected": "\n\nHuman: other\n\nAssistant: no"}, "differ before the last answer"),
    ({"chosen": "hello", "rejected": f"{HH} no"}, "chosen does not begin with a turn of a Human"),
    ({"instruction": "q", "output_1": "a", "output_2": "b", "preference": 1.5}, "preference is 1.5, not 1 or 2"),
]


def write(path: Path, records, kind: str) -> Path:
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(records), path)
        return path
    text = json.dumps(records, indent=1) if kind.startswith("json.") or kind == "json" else None
    data = (text or "".join(json.dumps(record) + "\n" for record in records)).encode()
    packed = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}.get(kind.rsplit(".")[-1], bytes)(data)
    path.write_bytes(packed)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "jsonl.gz", "json.zst"])
def test_every_format_of_conversations_has_one_normal_form(kind, tmp_path):
    for number, (record, expected) in enumerate(CONVERSATIONS):
        bad = Quarantine()
        (found,) = read_conversations([write(tmp_path / f"{number}.{kind}", [record], kind)], "auto", bad)
        assert found.messages == expected and not bad.records
        assert found.origin == f"{number}.{kind}:{2 if kind.startswith('json.') or kind == 'json' else 1}"


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_every_format_of_pairs_has_one_normal_form(kind, tmp_path):
    for number, (record, expected) in enumerate(PAIRS):
        bad = Quarantine()
        (found,) = read_pairs([write(tmp_path / f"{number}.{kind}", [record], kind)], "auto", bad)
        assert found[:3] == expected and not bad.records


@pytest.mark.parametrize(("record", "reason"), BAD)
def test_a_bad_conversation_is_named_with_file_and_line(record, reason, tmp_path):
    bad = Quarantine()
    good = {"prompt": "q", "response": "a"}
    found = read_conversations([write(tmp_path / "x.jsonl", [good, record], "jsonl")], "auto", bad)
    assert len(found) == 1
    assert [r.origin for r in bad.records] == ["x.jsonl:2"] and reason in bad.records[0].reason


@pytest.mark.parametrize(("record", "reason"), BAD_PAIRS)
def test_a_bad_pair_is_named_with_file_and_line(record, reason, tmp_path):
    bad = Quarantine()
    assert read_pairs([write(tmp_path / "x.jsonl", [record], "jsonl")], "auto", bad) == []
    assert [r.origin for r in bad.records] == ["x.jsonl:1"] and reason in bad.records[0].reason


def test_broken_files_lose_only_what_is_broken(tmp_path):
    good = json.dumps({"prompt": "q", "response": "a\u2028b"}, ensure_ascii=False)
    other = json.dumps({"prompt": "r", "response": "a"})
    (tmp_path / "a.jsonl").write_bytes(f"{good}\n{{oops\n[1]\n\xff".encode() + b"\xff\n" + other.encode())
    (tmp_path / "b.json").write_text(f'[\n{json.dumps({"prompt": "s", "response": "a"})},\n{{"prompt": "t"')
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(f"{other}\n".encode() * 3)[:-9])
    bad = Quarantine()
    found = read_conversations(find_files([str(tmp_path)], "data.train"), "auto", bad)
    assert [c.origin for c in found] == ["a.jsonl:1", "a.jsonl:5", "b.json:2"]
    reasons = {r.origin: r.reason for r in bad.records}
    assert "bad JSON" in reasons["a.jsonl:2"] and reasons["a.jsonl:3"] == "not a JSON object"
    assert "bad JSON" in reasons["a.jsonl:4"] and "file ends here: bad JSON" in reasons["b.json:3"]
    assert any("repeats an earlier conversation" in reason for reason in reasons.values())
    assert any("truncated gzip" in reason for reason in reasons.values())
    bad.write(tmp_path / "quarantine.jsonl")
    lines = (tmp_path / "quarantine.jsonl").read_text().splitlines()
    assert len(lines) == len(bad.records) == sum(bad.counts().values())


def test_files_that_are_not_there_or_of_no_kind_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"data\.train: .*nowhere does not exist"):
        find_files([str(tmp_path / "nowhere")], "data.train")
    (tmp_path / "x.csv").write_text("a")
    with pytest.raises(DataError, match="of no known kind"):
        find_files([str(tmp_path / "x.csv")], "data.train")
    with pytest.raises(DataError, match=r"has no \.json, \.jsonl or \.parquet file"):
        find_files([str(tmp_path)], "data.train")


def test_a_split_keeps_prompts_together_and_does_not_depend_on_the_rest():
    pairs = [Pair((U(f"q{n % 50}"),), f"a{n}", "b", "x") for n in range(400)]
    train, valid = split_by_prompt(pairs, 0.3, seed=1)
    prompts = [{p.prompt for p in side} for side in (train, valid)]
    assert not prompts[0] & prompts[1] and 5 < len(prompts[1]) < 25 and len(train) + len(valid) == 400
    assert split_by_prompt(pairs[::7], 0.3, seed=1)[1] == [p for p in pairs[::7] if p in valid]
    assert split_by_prompt(pairs, 0.3, seed=2)[1] != valid


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data sets are not beside this repository")
def test_shared_sets_are_read_in_full(tmp_path):
    expected = {  # rows of the catalogue, less repeated and empty ones
        "sft/alpaca_en/alpaca_data_0_20000.json.gz": 20000,
        "sft/dolly_hhrlhf_small": 1000,
        "sft/sharegpt_zh_1k": 1000,
        "sft/gpteacher_codegen": 4535,
        "sft/belle_seed": 175,
        "preference/hh_rlhf_harmless": 2312,
        "preference/alpaca_eval_gpt4_pairs": 4702,
        "preference/llamafactory_demo/dpo_en_demo.json.gz": 300,
        "preference/dpo_zh_500": 500,
    }
    for name, n_rows in expected.items():
        bad = Quarantine()
        read = read_conversations if name.startswith("sft") else read_pairs
        found = read(find_files([str(DATA / name)], "data.train"), "auto", bad)
        assert len(found) + len(bad.records) == n_rows and len(found) >= 0.9 * n_rows, (name, len(found), bad.counts())
