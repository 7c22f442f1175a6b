"""Texts keep to their grammar, with drafts and without, and a cut one is a beginning of a right one."""

import dataclasses
import json
import re

import pytest
from serving_models import DENSE, build
from test_exactness import adversary, tell

from isoflop.serving import Engine, EngineOptions, Grammar, Sampling
from isoflop.tokens.bpe import Tokenizer

pytest.importorskip("llguidance", reason="grammars need llguidance: pip install isoflop[serving]")

MODEL = dataclasses.replace(DENSE, vocab_size=512)
PAIR = {"age": {"type": "integer"}, "ok": {"type": "boolean"}}
TREE = {"anyOf": [{"type": "null"}, {"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/tree"}}]}
SCHEMAS = [
    {"type": "object", "properties": PAIR, "required": ["age", "ok"]},
    {"enum": ["red", "green", 3, None]},
    {"type": "array", "items": {"type": "string", "maxLength": 4}, "minItems": 1, "maxItems": 3},
    {"$ref": "#/$defs/tree", "$defs": {"tree": TREE}},
    {"type": "number", "minimum": 0, "maximum": 9},
]


@pytest.fixture(scope="module")
def tokenizer(tiny_tokens):
    return Tokenizer.load(tiny_tokens)


def sampling(grammar, seed, max_tokens=150):
    return Sampling(max_tokens=max_tokens, temperature=1.0, seed=seed, grammar=grammar)


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_json_of_a_schema_can_be_read(tokenizer, schema):
    engine = Engine(build(MODEL), tokenizer)
    grammar = Grammar("json_schema", json.dumps(schema))
    done = engine.complete(["x"] * 6, [sampling(grammar, seed) for seed in range(6)])
    ended = [one for one in done if one.finish_reason == "stop"]
    assert len(ended) >= 2
    for one in ended:
        found = json.loads(one.text)
        if "enum" in schema:
            assert found in schema["enum"]
        if schema.get("type") == "object":
            assert isinstance(found["age"], int) and isinstance(found["ok"], bool)
        if schema.get("type") == "array":
            assert 1 <= len(found) <= 3 and all(isinstance(item, str) and len(item) <= 4 for item in found)
        if schema.get("type") == "number":
            assert 0 <= found <= 9


def test_text_of_an_expression_matches_it_whatever_drafts(tokenizer, monkeypatch):
    expression = r"[a-f]{3,6}(-[0-9]{2}){1,4}!"
    model, grammar = build(MODEL), Grammar("regex", expression)
    each = [sampling(grammar, seed) for seed in range(8)]
    done = Engine(model, tokenizer).complete(["x"] * 8, each)
    assert all(one.finish_reason == "stop" and re.fullmatch(expression, one.text) for one in done)
    assert len({one.text for one in done}) > 4
    tell(done)
    monkeypatch.setattr("isoflop.serving.engine.look_up", adversary(7))
    engine = Engine(model, tokenizer, EngineOptions(draft="lookup"))
    assert [one.ids for one in engine.complete(["x"] * 8, each)] == [one.ids for one in done]
    assert 0 < sum(engine.stats.accepted) < sum(engine.stats.proposed)


def test_a_text_cut_by_its_length_says_so(tokenizer):
    grammar = Grammar("regex", "[a-z]{400}")
    (done,) = Engine(build(MODEL), tokenizer).complete(["x"], sampling(grammar, 1, max_tokens=9))
    assert done.finish_reason == "length" and re.fullmatch("[a-z]+", done.text)


def test_free_neighbours_are_untouched(tokenizer):
    model = build(MODEL)
    free = Sampling(max_tokens=20, temperature=1.0, seed=3)
    (alone,) = Engine(model, tokenizer).complete(["x"], free)
    both = Engine(model, tokenizer).complete(["x", "x"], [free, sampling(Grammar("regex", "[0-9]+"), 4, 20)])
    assert both[0].ids == alone.ids and both[1].text.isdigit()
