"""Decoding from pages: any mix of rows and chunks, in any pages, equals the whole forward pass of each sequence."""

import dataclasses
import random

import pytest
import torch
from test_deepseek import FAMILIES, V3, build, random_tokens, relative_error

from isoflop.model.config import ModelConfig
from isoflop.model.pages import DUMP, PAGE, LayerPages, Rows, Span, make_step

GQA = ModelConfig(2, 32, 4, 2, 8, 40, 160, 200, init_std=0.08)
LONG = {name: dataclasses.replace(config, seq_len=200) for name, config in FAMILIES.items()} | {"gqa": GQA}
ALL = pytest.mark.parametrize("config", LONG.values(), ids=LONG)


class Paged:
    """A model with sequences in shuffled pages, stepped by hand."""

    def __init__(self, config, n_sequences=4, seed=0):
        self.model = build(config)
        self.tokens_BT = random_tokens(config, batch=n_sequences)
        per_row = -(-config.seq_len // PAGE)
        numbers = list(range(1, 1 + n_sequences * per_row))
        random.Random(seed).shuffle(numbers)
        self.pages = [numbers[row * per_row : (row + 1) * per_row] for row in range(n_sequences)]
        self.layers = [
            LayerPages(len(numbers) + 1, config, dtype=torch.float32, device="cpu")
            for _ in range(config.n_layers + config.mtp_depth)
        ]

    def span(self, row, start, n):
        return Span(self.pages[row], start, n)

    def step(self, rows, chunks=(), *, width=1, **options):
        """Logits of every span given as (sequence, start, n)."""
        step = make_step(
            [self.span(*s) for s in rows], [self.span(*s) for s in chunks], width=width, device="cpu", **options
        )
        filled = [*[(row, start, width) for row, start, _ in rows]]
        filled += [(0, 0, width)] * (max(options.get("n_rows", 0), len(rows)) - len(rows))
        tokens = [self.tokens_BT[row, start : start + n] for row, start, n in (*filled, *chunks)]
        with torch.inference_mode():
            logits_NV = self.model.head(self.model.step(torch.cat(tokens), step, self.layers))
        parts = logits_NV.split([n for _, _, n in (*filled, *chunks)])
        return {
            (row, start): part[:n]
            for (row, start, n), part in zip((*rows, *chunks), (*parts[: len(rows)], *parts[len(filled) :]))
        }

    def whole(self):
        with torch.inference_mode():
            return self.model.logits(self.tokens_BT)

    def check(self, found, whole_BTV):
        for (row, start), logits_TV in found.items():
            assert relative_error(logits_TV, whole_BTV[row, start : start + len(logits_TV)]) < 1e-5, (row, start)


@pytest.mark.parametrize("width", [1, 2])
@ALL
def test_rows_whose_pages_follow_each_other_are_read_in_place(config, width):
    paged, starts = Paged(config), (69, 125, 80)
    paged.pages = [[1 + 2 * row, 2 + 2 * row] for row in range(4)]
    whole_BTV = paged.whole()
    paged.step([], [(row, 0, start) for row, start in enumerate(starts)])
    rows = [paged.span(row, start, width) for row, start in enumerate(starts)]
    step = make_step(rows, width=width, device="cpu")
    keys_RSGC = paged.layers[0].of_rows(step.rows)[0]
    assert keys_RSGC.shape[:2] == (3, 125 + width) and keys_RSGC.data_ptr() == paged.layers[0].keys[1].data_ptr()
    for order in ((0, 1, 2), (1, 0, 2)):  # the second is copied together
        paged.check(paged.step([(row, starts[row], width) for row in order], width=width), whole_BTV)
    assert make_step(rows[::-1], width=width, device="cpu").rows.run is None
    assert make_step([rows[0], paged.span(1, 3, width)], width=width, device="cpu").rows.run is not None
    assert make_step([rows[0], Span([3], 3, width)], width=width, device="cpu").rows.run is None


@ALL
def test_rows_and_chunks_of_different_lengths_equal_the_whole_forward(config):
    paged = Paged(config)
    whole_BTV = paged.whole()
    paged.check(paged.step([], [(0, 0, 70), (1, 0, 5), (2, 0, 130)]), whole_BTV)
    paged.check(paged.step([(0, 70, 1), (1, 5, 1)], [(2, 130, 20), (3, 0, 64)]), whole_BTV)
    paged.check(paged.step([(0, 71, 3), (1, 6, 1), (3, 64, 2)], [(2, 150, 7)], width=3), whole_BTV)
    paged.check(paged.step([(2, 157, 1)]), whole_BTV)


@ALL
def test_tokens_taken_back_leave_no_trace(config):
    paged = Paged(config)
    whole_BTV, right_BT = paged.whole(), paged.tokens_BT.clone()
    paged.step([], [(0, 0, 62), (1, 0, 10)])
    paged.tokens_BT[:2, 63:66] = (paged.tokens_BT[:2, 63:66] + 1) % config.vocab_size  # wrong drafts, across a page
    paged.tokens_BT[1, 11:14] = (paged.tokens_BT[1, 11:14] + 1) % config.vocab_size
    paged.step([(0, 62, 4), (1, 10, 4)], width=4)
    paged.tokens_BT = right_BT
    paged.check(paged.step([(0, 63, 1), (1, 11, 1)]), whole_BTV)
    paged.check(paged.step([(0, 64, 4), (1, 12, 4)], width=4), whole_BTV)


@ALL
def test_padded_rows_and_columns_change_nothing_and_write_to_the_dump_page_only(config):
    paged, plain = Paged(config), Paged(config)
    for one in (paged, plain):
        one.step([], [(0, 0, 62), (1, 0, 10)])
    before = [pages.keys.clone() for pages in paged.layers]
    padded = paged.step([(0, 62, 1), (1, 10, 3)], width=3, n_rows=8, n_columns=6, last_position=199)
    exact = plain.step([(0, 62, 1)]) | plain.step([(1, 10, 3)], width=3)
    for key, logits in exact.items():
        assert relative_error(padded[key], logits) < 1e-5
    written = {(paged.pages[0][0], 62), *((paged.pages[1][0], at) for at in (10, 11, 12))}
    for pages, old in zip(paged.layers[: config.n_layers], before):
        changed = (pages.keys != old).flatten(2).any(-1).nonzero().tolist()
        assert {(page, at) for page, at in changed if page != DUMP} == written


@pytest.mark.parametrize("n_kv_heads", [4, 2, 1])
@pytest.mark.parametrize("width", [1, 3])
def test_attention_of_rows_equals_explicit_softmax_in_float64(n_kv_heads, width):
    config = ModelConfig(1, 32, 4, n_kv_heads, 8, 40, 160, 200)
    pages = LayerPages(7, config, dtype=torch.float32, device="cpu")
    generator = torch.Generator().manual_seed(1)
    pages.keys.normal_(generator=generator)
    pages.values.normal_(generator=generator)
    table_RP = torch.tensor([[3, 1], [6, 2], [5, 0]])
    before_R = torch.tensor([100, 64, 0])
    q_NHC = torch.randn(3 * width, 4, 8, generator=generator)
    mixed_NHC = pages.attend_rows(Rows(width, table_RP, before_R), q_NHC, None)
    for row in range(3):
        keys, values = (x[table_RP[row]].flatten(0, 1).double() for x in (pages.keys, pages.values))
        for w in range(width):
            seen = int(before_R[row]) + w + 1
            for head in range(4):
                group = head // (4 // n_kv_heads)
                scores = keys[:seen, group] @ q_NHC[row * width + w, head].double() / 8**0.5
                exact = scores.softmax(0) @ values[:seen, group]
                assert relative_error(mixed_NHC[row * width + w, head], exact) < 1e-6


@pytest.mark.parametrize("name", ["v3", "v3-yarn", "no-shared"])
def test_stepwise_prediction_modules_equal_the_whole_sequence_ones(name):
    config = LONG[name]
    paged = Paged(config, n_sequences=1)
    n = 150
    with torch.inference_mode():
        whole_TD = paged.model(paged.tokens_BT)
        exact, _ = paged.model.mtp_hidden(whole_TD, paged.tokens_BT)
        hidden_TD = whole_TD[0]
        for depth in range(1, config.mtp_depth + 1):
            found, start, next_tokens = [], 0, paged.tokens_BT[0, depth:]
            for size in [70, 1, 1, 3, 50, 25]:
                span = paged.span(0, start, size)
                step = make_step([span] if size < 5 else [], [] if size < 5 else [span], width=size, device="cpu")
                at = slice(start, start + size)
                pages = paged.layers[config.n_layers + depth - 1]
                found.append(paged.model.mtp_step(depth, hidden_TD[at], next_tokens[at], step, pages))
                start += size
            hidden_TD = torch.cat(found)
            assert start == n and relative_error(hidden_TD, exact[depth - 1][0, :n]) < 1e-5


@pytest.mark.parametrize("config", [V3, GQA], ids=["v3", "gqa"])
def test_weights_cast_once_give_the_same_bits_and_keep_norms_and_routers_wide(config):
    model, tokens_BT = build(config, torch.bfloat16), random_tokens(config, length=20)
    with torch.no_grad():
        before = model.logits(tokens_BT)
        model.cast_once()
        assert torch.equal(model.logits(tokens_BT), before)
    wide = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    assert wide == {name for name in model.state_dict() if name.endswith(("norm.weight", "router.weight"))}
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_cache_refuses_more_than_it_holds():
    model, tokens_BT = build(GQA), random_tokens(GQA, batch=2)
    cache = model.new_cache(2, 100)
    with torch.no_grad():
        model.logits(tokens_BT[:, :90], cache)
    with pytest.raises(AssertionError, match="cache holds 100 tokens, 103 needed"):
        model.logits(tokens_BT[:, :13], cache)
