"""The engine's promises to a caller: one clear refusal and no harm, ends where they belong, nothing left behind."""

import dataclasses
import json
import random

import pytest
import torch
from serving_models import DENSE, MODELS, build, count_ties, fresh, prompts_of

from isoflop.errors import BusyError, RequestError
from isoflop.serving import Engine, EngineOptions, Grammar, Sampling
from isoflop.serving.memory import n_pages_for, page_bytes
from isoflop.tokens.bpe import Tokenizer

TEXT_MODEL = dataclasses.replace(DENSE, vocab_size=512)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokens):
    return Tokenizer.load(tiny_tokens)


@pytest.fixture
def engine(tokenizer):
    return Engine(build(TEXT_MODEL), tokenizer)


def drain(engine):
    found = []
    while not engine.is_finished():
        found += engine.step()
    return found


NAN, INF = float("nan"), float("inf")
BAD = [
    ({"temperature": NAN}, "temperature = nan must be at least 0 and at most 100; the default is 1.0"),
    ({"temperature": -0.1}, "temperature = -0.1 must be"),
    ({"temperature": True}, "temperature = True must be a number"),
    ({"temperature": "hot"}, "temperature = 'hot' must be a number"),
    ({"top_p": 0.0}, "top_p = 0.0 must be above 0 and at most 1"),
    ({"top_p": 1.5}, "top_p = 1.5 must be above 0"),
    ({"min_p": INF}, "min_p = inf must be at least 0 and at most 1"),
    ({"top_k": -1}, "top_k = -1 must be at least 0"),
    ({"top_k": 2.5}, "top_k = 2.5 must be a whole number"),
    ({"max_tokens": 0}, "max_tokens = 0 must be at least 1"),
    ({"max_tokens": None}, "max_tokens = None must be a whole number"),
    ({"repetition_penalty": 0}, "repetition_penalty = 0 must be above 0"),
    ({"presence_penalty": 3}, "presence_penalty = 3 must be at least -2 and at most 2"),
    ({"seed": -1}, "seed = -1 must be at least 0"),
    ({"seed": 2**64}, "must be at least 0 and at most"),
    ({"logprobs": 65}, "logprobs = 65 must be at least 0 and at most 64"),
    ({"logit_bias": {512: 1.0}}, "logit_bias[0] = 512 must be a token id"),
    ({"logit_bias": {1: 101}}, "logit_bias[1] = 101 must be at least -100"),
    ({"logit_bias": dict.fromkeys(range(1025), 0.0)}, "logit_bias = 1025 entries must be a table of at most 1024"),
    ({"logit_bias": [1]}, "logit_bias = [1] must be a table"),
    ({"stop": "END"}, "stop = 'END' must be a list"),
    ({"stop": (3,)}, "stop[0] = 3 must be text"),
    ({"stop": ("",)}, "stop[0] = '' must be text"),
    ({"stop": ("\ud800",)}, "must be text that UTF-8 can say"),
    ({"stop": ("a",) * 17}, "must be a list of at most 16 texts"),
    ({"stop_ids": (-1,)}, "stop_ids[0] = -1 must be a token id"),
    ({"ignore_end": 1}, "ignore_end = 1 must be true or false"),
    ({"grammar": "json"}, "grammar = 'json' must be Grammar"),
    ({"grammar": Grammar("json_schema", "{")}, "grammar: not a json_schema"),
    ({"grammar": Grammar("json_schema", '{"type": "fish"}')}, "grammar: "),
    ({"grammar": Grammar("json_schema", '{"$ref": "#/nowhere"}')}, "grammar: "),
    ({"grammar": Grammar("json_schema", '{"type": "array", "uniqueItems": true}')}, "grammar: "),
    (
        {"grammar": Grammar("json_schema", json.dumps({"enum": ["x" * 100 + str(n) for n in range(40_000)]}))},
        "bytes must",
    ),
    ({"grammar": Grammar("json_schema", "[" * 100_000)}, "grammar: not a json_schema"),
    ({"grammar": Grammar("regex", "(")}, "grammar: "),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=lambda value: str(value)[:40])
def test_a_bad_value_is_one_clear_message_and_the_engine_lives(engine, values, message):
    if "grammar" in values:
        pytest.importorskip("llguidance", reason="grammars need llguidance: pip install isoflop[serving]")
    with pytest.raises(RequestError, match=r"(?s).*") as refused:
        engine.add("the", Sampling(**values))
    assert message in str(refused.value) and len(str(refused.value)) < 500 and "\n\n" not in str(refused.value)
    assert engine.is_finished() and engine.pool.n_held == 0
    assert len(engine.complete(["the"], Sampling(max_tokens=3))[0].ids) == 3


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt: 0 tokens, at least 1 is needed"),
        (
            [1] * 400,
            "prompt: 400 tokens and 1 to draw are more than the context of 400; shorten the prompt by 1 tokens",
        ),
        ([512], "prompt[0] = 512 must be a token id: at least 0 and below 512"),
        ([1, True], "prompt[1] = True must be a token id"),
        ([1.0], "prompt[0] = 1.0 must be a token id"),
        ("word " * 500, "are more than the context of 400"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_bad_prompt_is_one_clear_message(engine, prompt, message):
    with pytest.raises(RequestError) as refused:
        engine.add(prompt)
    assert message in str(refused.value) and engine.is_finished()


def test_without_a_tokenizer_text_is_refused_and_ids_are_not():
    engine = Engine(fresh("dense"))
    for values, message in (
        ({"stop": ("a",)}, "stop needs a tokenizer"),
        ({"grammar": Grammar("regex", "a")}, "grammar"),
    ):
        with pytest.raises(RequestError, match=message):
            engine.add([1], Sampling(**values))
    with pytest.raises(RequestError, match="prompt is text, and this run has no tokenizer"):
        engine.add("text")
    (done,) = engine.complete([[1]], Sampling(max_tokens=3))
    assert done.text == "" and len(done.ids) == 3


def test_what_can_never_fit_is_refused_and_what_fits_alone_is_served():
    model = fresh("dense")
    engine = Engine(model, None, EngineOptions(cache_bytes=4 * page_bytes(model)))  # three pages and nobody's
    with pytest.raises(RequestError, match="need a cache of 200 tokens, there is one of 193; lower max_tokens"):
        engine.add([1] * 100, Sampling(max_tokens=100))
    (done,) = engine.complete([[1] * 100], Sampling(max_tokens=93))
    assert len(done.ids) == 93


def test_a_full_queue_says_so_and_what_was_taken_finishes(engine):
    engine = Engine(engine.model, None, EngineOptions(max_rows=2, max_waiting=3, max_waiting_tokens=100))
    numbers = [engine.add([1] * 20, Sampling(max_tokens=4)) for _ in range(3)]
    with pytest.raises(BusyError, match="3 requests wait, max_waiting is 3; try again later"):
        engine.add([1])
    engine.step()
    with pytest.raises(BusyError, match="more than max_waiting_tokens = 100"):
        engine.add([1] * 90)
    found = drain(engine)
    assert {output.number for output in found if output.finish_reason} == set(numbers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft": "mtp"}, "needs prediction modules"),
        ({"draft": "lookup", "n_drafts": 8}, "8 drafts a step are more than 7"),
        ({"max_rows": 0}, "budget_tokens = 512 must be at least 0 for max_rows = 0"),
        ({"max_rows": 100, "budget_tokens": 50}, "budget_tokens = 50 must be at least 100"),
        ({"cache_bytes": 10}, "cache_bytes = 10 must hold at least 2 pages"),
        ({"cache_bytes": 10**18}, "cache_bytes = 10{18} is above the .* bytes of cpu; give less, or 0"),
        ({"chunk_tokens": -1}, "must be at least 0"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(RequestError, match=message):
        Engine(fresh("dense"), None, EngineOptions(**options))


def test_cancelling_frees_at_once_whether_queued_in_the_prompt_or_running():
    model = fresh("moe_mla")
    engine = Engine(model, None, EngineOptions(max_rows=2, chunk_tokens=16, draft="mtp"))
    long, queued = Sampling(max_tokens=200), prompts_of(3, MODELS["moe_mla"], shortest=100)
    for n_steps in (0, 1, 2, 9, 15):
        numbers = [engine.add(prompt, long) for prompt in queued]
        for _ in range(n_steps):
            engine.step()
        for number in random.Random(n_steps).sample(numbers, 3):
            engine.cancel(number)
            engine.cancel(number)
        assert engine.is_finished() and engine.pool.n_held == 0 and not engine.scheduler.waiting
        assert engine.step() == []
    done = engine.complete(queued, Sampling(max_tokens=5, temperature=0))
    assert count_ties(model, done) == 0


def test_neighbours_of_cancelled_requests_read_on(monkeypatch):
    model, prompts = fresh("dense"), prompts_of(6, DENSE)
    sampling = Sampling(max_tokens=25, temperature=0.5, seed=8)
    expected = [one.ids for one in Engine(model).complete(prompts, sampling)]
    engine, found = Engine(model), {}
    numbers = [engine.add(prompt, sampling) for prompt in prompts]
    for step in range(200):
        if step in (3, 8, 12):
            engine.cancel(numbers[{3: 0, 8: 3, 12: 5}[step]])
        for output in engine.step():
            found.setdefault(output.number, []).extend(output.ids)
    for at in (1, 2, 4):
        assert found[numbers[at]] == expected[at]


def test_a_text_ends_at_the_end_of_text_at_given_ids_and_at_its_length(engine):
    (free,) = engine.complete(["the"], Sampling(max_tokens=30, temperature=0))
    assert free.finish_reason == "length" and len(free.ids) == 30
    place = next(at for at in range(5, 30) if free.ids[at] not in free.ids[:at])
    (ended,) = engine.complete(["the"], Sampling(max_tokens=30, temperature=0, stop_ids=(free.ids[place],)))
    assert ended.finish_reason == "stop" and ended.ids == free.ids[: place + 1]
    eos = engine.tokenizer.eos_id
    biased = Sampling(max_tokens=30, temperature=0, logit_bias={eos: 100.0})
    (ended,) = engine.complete(["the"], biased)
    assert (ended.ids, ended.text, ended.finish_reason) == ([eos], "", "stop")
    (ignoring,) = engine.complete(["the"], dataclasses.replace(biased, ignore_end=True, max_tokens=4))
    assert ignoring.ids == [eos] * 4 and ignoring.finish_reason == "length" and ignoring.text == ""
    (whole,) = engine.complete([[1] * 390], Sampling(max_tokens=100))
    assert len(whole.ids) == 10 and whole.finish_reason == "length"  # the context ends it


@pytest.mark.parametrize("draft", ["none", "lookup"])
def test_stop_strings_cut_the_text_wherever_they_fall(tokenizer, draft):
    engine = Engine(build(TEXT_MODEL), tokenizer, EngineOptions(draft=draft))
    (free,) = engine.complete(["the"], Sampling(max_tokens=60, temperature=0.7, seed=2))
    data = tokenizer.decode_bytes(free.ids)
    text = data.decode("utf-8", errors="replace")
    clean = [at for at in range(3, len(text) - 4) if "\ufffd" not in text[at : at + 4]]
    assert len(clean) > 5
    for at in clean[::3]:
        stop = text[at : at + 4]
        number = engine.add("the", Sampling(max_tokens=60, temperature=0.7, seed=2, stop=(stop, "never this")))
        outputs = drain(engine)
        joined = "".join(output.text for output in outputs)
        n_ids = sum(len(output.ids) for output in outputs)
        before = data[: data.find(stop.encode())].decode("utf-8", errors="replace")
        assert outputs[-1].number == number and outputs[-1].finish_reason == "stop"
        assert before.startswith(joined) and set(before[len(joined) :]) <= {"\ufffd"}
        assert stop.encode() in tokenizer.decode_bytes(free.ids[:n_ids])
        assert stop.encode() not in tokenizer.decode_bytes(free.ids[: n_ids - 1])


def test_streamed_text_joins_to_the_decoded_text(engine):
    sampling = [Sampling(max_tokens=40, temperature=2.0, seed=seed) for seed in range(8)]
    numbers = [engine.add("word", one) for one in sampling]
    ids, texts = {n: [] for n in numbers}, dict.fromkeys(numbers, "")
    for output in drain(engine):
        ids[output.number] += output.ids
        texts[output.number] += output.text
    for number in numbers:
        whole = engine.tokenizer.decode_bytes(ids[number]).decode("utf-8", errors="replace")
        assert whole.startswith(texts[number]) and len(whole) - len(texts[number]) <= 1


def test_pages_are_shared_within_a_salt_and_prompt_logprobs_read_none():
    model, prompt = fresh("dense"), prompts_of(1, DENSE, shortest=140, longest=140)[0]
    engine = Engine(model)
    sampling = Sampling(max_tokens=2, temperature=0)

    def reused(salt, one=sampling):
        engine.add(prompt, one, salt=salt)
        return drain(engine)[-1].n_reused_tokens

    assert reused(b"a") == 0
    assert reused(b"a") == 128
    assert reused(b"b") == 0 == reused(b"")
    assert reused(b"b") == 128
    assert reused(b"a", dataclasses.replace(sampling, prompt_logprobs=1)) == 0
    off = Engine(model, None, EngineOptions(prefix_reuse=False))
    assert [one.n_reused_tokens for one in off.complete([prompt] * 2, sampling)] == [0, 0]


@pytest.mark.parametrize("draft", ["none", "mtp"])
def test_updated_weights_are_those_of_a_fresh_engine_and_old_pages_are_forgotten(draft):
    old, new, config = fresh("moe_mla"), fresh("moe_mla", seed=1), MODELS["moe_mla"]
    prompts = prompts_of(4, config, shortest=100, longest=140)
    sampling = Sampling(max_tokens=20, temperature=0.5, seed=1)
    engine = Engine(old, None, EngineOptions(draft=draft))
    before = [one.ids for one in engine.complete(prompts, sampling)]
    engine.update_weights(new.state_dict())
    found = engine.complete(prompts, sampling)
    expected = Engine(new, None, EngineOptions(draft=draft)).complete(prompts, sampling)
    assert [one.ids for one in found] == [one.ids for one in expected] != before
    assert all(one.n_reused_tokens == 0 for one in found)


def test_weights_are_not_changed_under_a_running_text_nor_by_halves():
    model = fresh("dense")
    engine, state = Engine(model), fresh("dense", seed=1).state_dict()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    number = engine.add([1, 2], Sampling(max_tokens=5))
    engine.step()
    with pytest.raises(RequestError, match="update_weights: 1 requests are running"):
        engine.update_weights(state)
    engine.cancel(number)
    for wrong, message in (
        ({**state, "head.weight": state["head.weight"][:5]}, "head.weight is unknown or of another shape"),
        ({**state, "tail.weight": state["head.weight"]}, "tail.weight is unknown"),
        ({name: tensor for name, tensor in state.items() if name != "norm.weight"}, "norm.weight is missing"),
    ):
        with pytest.raises(RequestError, match=message):
            engine.update_weights(wrong)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    engine.add([1, 2], Sampling(max_tokens=2))  # waiting is not running
    engine.update_weights(state)
    assert drain(engine)[-1].finish_reason == "length"


def test_numbers_that_are_none_end_their_own_request_only():
    """One poisoned embedding: its reader ends with an error, and whoever gets its pages next is unharmed."""
    model = fresh("dense")
    prompts = [[at + 1, at + 2, at + 3] for at in range(0, 24, 4)]
    sampling = Sampling(max_tokens=6, temperature=0, logit_bias={150: -100.0})
    expected = [one.ids for one in Engine(model).complete(prompts, sampling)]
    with torch.no_grad():
        model.embedding.weight[150] = NAN
    engine = Engine(model, None, EngineOptions(cache_bytes=5 * page_bytes(model), max_rows=3, prefix_reuse=False))
    done = engine.complete([[5, 150, 7], *prompts, [9, 150]], sampling)
    assert done[0].finish_reason == done[-1].finish_reason == "error" and done[0].ids == []
    assert [one.ids for one in done[1:-1]] == expected
    assert engine.pool.n_held == 0


def test_the_pool_is_what_was_asked_for():
    for name in MODELS:
        model = fresh(name)
        one = page_bytes(model, 2 if name == "moe_mla" else 0)
        engine = Engine(
            model, None, EngineOptions(cache_bytes=11 * one + 5, draft="mtp" if name == "moe_mla" else "none")
        )
        assert engine.pool.n_pages == 11 and sum(layer.nbytes for layer in engine.runner.layers) == 11 * one
        assert n_pages_for(model, max_rows=3) == 1 + 3 * 7


def test_text_that_spells_a_special_token_stays_text(engine):
    from isoflop.tokens.bpe import EOS

    ids = engine.encode(f"a{EOS}b")
    assert engine.tokenizer.eos_id not in ids and ids[0] == engine.tokenizer.bos_id


def test_the_five_lines_of_the_docstring_work(tmp_path, tiny_recipe):
    from isoflop.training.pretrain.workload import run_pretrain

    run_pretrain(tiny_recipe(train={"n_tokens": 128, "warmup_steps": 0}), tmp_path / "run")
    engine = Engine.open(tmp_path / "run", device="cpu")
    number = engine.add("a", Sampling(max_tokens=8, seed=1))
    text = ""
    while not engine.is_finished():
        for output in engine.step():
            assert output.number == number
            text += output.text
    assert text == engine.complete(["a"], Sampling(max_tokens=8, seed=1))[0].text


def test_bfloat16_is_refused_where_the_processor_has_no_instructions_for_it(monkeypatch):
    from isoflop.errors import RecipeError
    from isoflop.serving import load

    cpu = torch.device("cpu")
    assert load.choose_dtype("auto", cpu) == torch.float32
    assert load.choose_dtype("auto", torch.device("cuda")) == torch.bfloat16
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(RecipeError, match="this processor has no instructions for it; use float32"):
        load.choose_dtype("bfloat16", cpu)
    with pytest.raises(RecipeError, match="--dtype = 'int3' must be one of auto, float32, bfloat16"):
        load.choose_dtype("int3", cpu)
