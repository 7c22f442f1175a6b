"""The engine: requests in, tokens out, one step at a time.

    engine = Engine.open("runs/train")
    number = engine.add("Once upon a time", Sampling(max_tokens=64, seed=1))
    while not engine.is_finished():
        for output in engine.step():
            print(output.text, end="")

A step computes one token (and its drafts) for every running sequence and parts of prompts, under one token budget; what
comes out of it is the same as if each request had run alone. One thread, no network, no state outside the object.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from isoflop.errors import BusyError, RequestError
from isoflop.model.pages import PAGE, SHORT
from isoflop.model.transformer import Transformer
from isoflop.serving.blocks import PagePool
from isoflop.serving.drafts import look_up
from isoflop.serving.grammar import Grammars, Matcher
from isoflop.serving.memory import n_pages_for
from isoflop.serving.options import Completion, EngineOptions, Finish, Output, Stats
from isoflop.serving.products import hold_weights, prepare
from isoflop.serving.replay import can_replay
from isoflop.serving.request import Sampling, check_prompt, check_sampling
from isoflop.serving.runner import Ran, Runner
from isoflop.serving.sampler import Drawn, LogProbs, Place, PlainDraw, as_drawn, draw, is_plain, prompt_logprobs
from isoflop.serving.scheduler import Plan, Row, Scheduler, Work
from isoflop.serving.text import TextStream
from isoflop.serving.vocabulary import Vocabulary
from isoflop.tokens.chat import ChatTemplate, load_template

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Request:
    row: Row
    sampling: Sampling
    seed: int
    text: TextStream
    matcher: Matcher | None
    prompt_logprobs: list[LogProbs] = field(default_factory=list)


class Engine:
    """Continuous batching of one model."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Vocabulary | None = None,
        options: EngineOptions | None = None,
        *,
        n_tokens: int = 0,
    ):
        """The model's weights are cast once, to the dtype of its activations.

        Without a tokenizer, ids below `n_tokens` may be drawn; 0: all rows of the vocabulary.

        Raises:
            RequestError: options that contradict each other or the model.
        """
        self.options = o = options or EngineOptions()
        self.model, self.tokenizer = model.eval(), tokenizer
        self.tokenizer_folder: Path | None = None
        model.cast_once()
        prepare(model, fixed=o.fixed_shapes)
        config, device = model.config, model.embedding.weight.device
        n_drafts = {"none": 0, "mtp": config.mtp_depth, "lookup": o.n_drafts}[o.draft]
        budget = o.budget_tokens or (8192 if device.type == "cuda" else 512)
        self._check_options(o, n_drafts, budget)
        self.n_tokens = tokenizer.n_tokens if tokenizer is not None else n_tokens or config.vocab_size
        mtp = o.draft == "mtp"
        n_pages = n_pages_for(model, max_rows=o.max_rows, cache_bytes=o.cache_bytes, n_mtp=n_drafts if mtp else 0)
        self.pool = PagePool(n_pages, lookahead=n_drafts if mtp else 0, reuse=o.prefix_reuse)
        chunk = PAGE if o.fixed_shapes else o.chunk_tokens
        self.scheduler = Scheduler(self.pool, max_rows=o.max_rows, budget=budget, chunk=chunk, fixed=o.fixed_shapes)
        self.runner = Runner(
            model,
            n_pages=n_pages,
            max_rows=o.max_rows,
            n_tokens=self.n_tokens,
            n_drafts=n_drafts,
            mtp=mtp,
            fixed=o.fixed_shapes,
            replay=(device.type == "cuda" if o.replay is None else o.replay) and can_replay(model),
        )
        self.stats = Stats(proposed=[0] * n_drafts, accepted=[0] * n_drafts)
        self._n_drafts = n_drafts
        self._grammars = Grammars(tokenizer) if tokenizer is not None else None
        self._bytes: dict[int, bytes] = {}
        self._seeds = np.random.Generator(np.random.Philox(o.seed))
        self._requests: dict[int, _Request] = {}
        self._next_number = 0

    @classmethod
    def open(
        cls,
        run: str | Path,
        options: EngineOptions | None = None,
        *,
        device: str = "auto",
        dtype: str = "auto",
        tokens: Path | None = None,
    ) -> "Engine":
        """An engine for the newest checkpoint of a run folder.

        Raises:
            CheckpointError, RecipeError, DataError: no such run, device or tokens folder, or a damaged one.
        """
        from isoflop.serving.load import load

        model, tokenizer, folder = load(Path(run), device=device, dtype=dtype, tokens=tokens)
        engine = cls(model, tokenizer, options)
        engine.tokenizer_folder = folder
        return engine

    @cached_property
    def template(self) -> ChatTemplate:
        """How a conversation is written for this model. Raises RequestError where no tokenizer was found."""
        if self.tokenizer_folder is None:
            raise RequestError("messages need a tokenizer, and this run has none; give --tokens DIR, or ids")
        return load_template(self.tokenizer_folder)

    def add(self, prompt: str | Sequence[int], sampling: Sampling | None = None, *, salt: bytes = b"") -> int:
        """Queue a request; returns its number. Text begins with the begin-of-text token.

        Only requests with the same `salt` share pages: whoever measures times could otherwise tell what others asked.

        Raises:
            RequestError: something is wrong with it, or it can never fit; the message says what.
            BusyError: the queue is full.
        """
        sampling = sampling or Sampling()
        ids = self.encode(prompt) if isinstance(prompt, str) else [*prompt]
        limit = self._check(ids, sampling)
        self._check_queue(len(ids))
        matcher = None
        if sampling.grammar is not None and self._grammars is not None:
            matcher = self._grammars.matcher(sampling.grammar)
        seed = int(self._seeds.integers(2**63)) if sampling.seed is None else sampling.seed
        row = Row(self._next_number, ids, len(ids), limit, salt, reuse=sampling.prompt_logprobs is None)
        self._next_number += 1
        self._requests[row.number] = _Request(row, sampling, seed, TextStream(sampling.stop), matcher)
        self.scheduler.add(row)
        return row.number

    def cancel(self, number: int) -> None:
        """Forget a request, queued or running; its pages are free at once. Unknown numbers are finished ones."""
        request = self._requests.pop(number, None)
        if request is not None:
            self.scheduler.remove(request.row)

    def is_finished(self) -> bool:
        """Whether nothing is queued or running."""
        return not self._requests

    @torch.inference_mode()
    def step(self) -> list[Output]:
        """Compute one step; returns what is new, in the order of the requests."""
        began = time.perf_counter()
        plan = self.scheduler.plan()
        works = [*plan.rows, *plan.chunks]
        if not works:
            assert self.is_finished(), "requests wait, nothing runs, and none is admitted"
            return []
        ran = self.runner.run(plan, self._plain_draws(plan))
        drawn = self._draw(plan, ran) if ran.best is None else as_drawn(*ran.best.read())
        n_known = {work.row.number: len(work.row.tokens) for work in works}
        outputs, place = [], 0
        for work, hidden in zip(works, ran.hidden, strict=True):
            request = self._requests[work.row.number]
            self._note_prompt(request, work, hidden)
            n_places = work.n if work in plan.rows else int(work.draws)
            output = self._take(request, work, drawn, range(place, place + n_places))
            place += n_places
            if output is not None:
                outputs.append(output)
        self._go_on(works, ran, n_known)
        self.stats.n_steps += 1
        self.stats.n_computed_tokens += sum(work.n for work in works)
        self.stats.step_s += time.perf_counter() - began
        return sorted(outputs, key=lambda output: output.number)

    def complete(
        self,
        prompts: Sequence[str | Sequence[int]],
        sampling: Sampling | Sequence[Sampling] | None = None,
        *,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """Run prompts to their ends, and give what became of them in their order; progress is (finished, all).

        Raises:
            RequestError: one of them cannot be taken, or the engine is at work on others; then none is run.
        """
        if not self.is_finished():
            raise RequestError("complete: other requests are running; use add and step beside them")
        each = list(sampling) if isinstance(sampling, Sequence) else [sampling or Sampling()] * len(prompts)
        ids = [self.encode(prompt) if isinstance(prompt, str) else [*prompt] for prompt in prompts]
        for prompt, one in zip(ids, each, strict=True):
            self._check(prompt, one)
        found = [Completion(prompt) for prompt in ids]
        of_number: dict[int, Completion] = {}
        n_added = 0
        try:
            while n_added < len(ids) or not self.is_finished():
                while n_added < len(ids) and len(self.scheduler.waiting) < self.options.max_rows:
                    of_number[self.add(ids[n_added], each[n_added])] = found[n_added]
                    n_added += 1
                for output in self.step():
                    of_number[output.number].extend(output)
                if on_progress is not None:
                    on_progress(n_added - len(self._requests), len(ids))
        except BaseException:
            for number in of_number:
                self.cancel(number)
            raise
        return found

    def encode(self, text: str) -> list[int]:
        """Tokens of a prompt: begin of text, then the text, in which special tokens are only spelled.

        Raises:
            RequestError: there is no tokenizer, or the text has bytes that were no UTF-8.
        """
        if self.tokenizer is None:
            raise RequestError("prompt is text, and this run has no tokenizer; give --tokens DIR, or a prompt of ids")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(f"prompt = {text!r:.60} must be text that UTF-8 can say; write it anew") from error
        begin = [] if self.tokenizer.bos_id is None else [self.tokenizer.bos_id]
        return begin + self.tokenizer.encode(text)

    def update_weights(self, state: Mapping[str, Tensor]) -> None:
        """Overwrite the model's weights in place, from names of its state dict; pages of the old ones are forgotten.

        Raises:
            RequestError: sequences are running, or names or shapes are not the model's; nothing is changed then.
        """
        begun = [r for r in self._requests.values() if r.row.slot >= 0 or len(r.row.tokens) > r.row.n_prompt]
        if begun:
            raise RequestError(
                f"update_weights: {len(begun)} requests are running, and a text has the weights it began with; "
                "let them finish, or cancel them"
            )
        ours = self.model.state_dict()
        optional = {name for name in ours if name.startswith("mtp.")} if self.options.draft != "mtp" else set()
        wrong = [name for name in state if name not in ours or ours[name].shape != state[name].shape]
        missing = [name for name in ours if name not in state and name not in optional]
        if wrong or missing:
            kind, name = ("unknown or of another shape", wrong[0]) if wrong else ("missing", missing[0])
            raise RequestError(f"update_weights: {name} is {kind}; give the state dict of a model of the same sizes")
        with torch.no_grad():
            for name, tensor in state.items():
                ours[name].copy_(tensor)
        hold_weights(self.model)
        self.pool.forget_all()

    def _draw(self, plan: Plan, ran: Ran) -> Drawn:
        places: list[Place] = []
        for work in plan.rows:
            request, row = self._requests[work.row.number], work.row
            masks = request.matcher.masks(row.drafts) if request.matcher is not None else []
            for n in range(work.n):
                mask = masks[min(n, len(masks) - 1)] if masks else None  # behind a forbidden draft nothing counts
                places.append(self._place(request, [*row.tokens, *row.drafts[:n]] if n else row.tokens, mask))
        for work in plan.chunks:
            if work.draws:
                request = self._requests[work.row.number]
                mask = request.matcher.masks(())[0] if request.matcher is not None else None
                places.append(self._place(request, work.row.tokens, mask))
        return draw(ran.logits_MV, places) if places else Drawn([], [], [])

    def _plain_draws(self, plan: Plan) -> list[PlainDraw] | None:
        """How the tokens of a plan's rows are drawn, if nothing but the tokens is asked for."""
        found = []
        for work in plan.rows:
            request = self._requests[work.row.number]
            sampling = request.sampling
            if sampling.logprobs is not None or request.matcher is not None or not is_plain(sampling):
                return None
            first = len(work.row.tokens)
            found += [PlainDraw(sampling.temperature, request.seed, first + n) for n in range(work.n)]
        return found

    def _place(self, request: _Request, tokens: list[int], mask: np.ndarray | None = None) -> Place:
        return Place(request.sampling, request.seed, tokens, request.row.n_prompt, mask)

    def _take(self, request: _Request, work: Work, drawn: Drawn, places: range) -> Output | None:
        """The tokens that a work gave: draws as long as they confirm the drafts, and one more."""
        row, text, finish = work.row, "", None
        new: list[int] = []
        logprobs: list[LogProbs] = []
        drafts = [*row.drafts]
        if places and request.sampling.max_tokens == 0:
            places, finish = range(0), "length"
        for n, place in enumerate(places):
            if drawn.broken[place]:
                finish = "error"
                break
            token, found = drawn.tokens[place], drawn.logprobs[place]
            new.append(token)
            if found is not None:
                logprobs.append(found)
            piece, finish = self._append(request, token, len(row.tokens) + len(new))
            text += piece
            if finish or n >= len(drafts) or token != drafts[n]:
                break
        self._count(len(drafts), len(new))
        self.scheduler.advance(work, new)
        self.stats.n_drawn_tokens += len(new)
        if not places and not finish:
            return None
        output = Output(row.number, new, text, logprobs, finish)
        return self._finish(request, output) if finish else output

    def _append(self, request: _Request, token: int, n_tokens: int) -> tuple[str, Finish | None]:
        """Text that a new token makes certain, and whether it is the last one."""
        sampling, ends = request.sampling, request.sampling.stop_ids
        ended = token in ends or (
            self.tokenizer is not None and token == self.tokenizer.eos_id and not sampling.ignore_end
        )
        piece = ""
        if self.tokenizer is not None and not ended:
            piece = request.text.push(self._bytes_of(token))
        goes_on = request.matcher is None or request.matcher.accept(token)
        if ended or request.text.stopped or not goes_on:
            return piece, "stop"
        return piece, "length" if n_tokens >= request.row.limit else None

    def _finish(self, request: _Request, output: Output) -> Output:
        row = request.row
        if output.finish_reason == "error":
            log.warning("request %d: the model gave numbers that are not finite; it ends here", row.number)
            own = [page for page in row.pages if not self.pool.is_shared(page)]
            self.runner.wipe([*own, 0])
        elif not self.pool.lookahead:  # a prediction module's last entries are not final
            self.scheduler.share(row)
        n_reused = row.n_reused
        self.scheduler.remove(row)
        del self._requests[row.number]
        return Output(
            row.number,
            output.ids,
            output.text + request.text.finish(),
            output.logprobs,
            output.finish_reason,
            request.prompt_logprobs if request.sampling.prompt_logprobs is not None else None,
            n_reused,
        )

    def _go_on(self, works: list[Work], ran: Ran, n_known: dict[int, int]) -> None:
        """What running sequences need for their next step: hidden states, drafts, pages for others."""
        alive = [(w, hidden) for w, hidden in zip(works, ran.hidden, strict=True) if w.row.number in self._requests]
        if ran.drafts:
            for work, draft in zip(works, ran.drafts, strict=True):
                work.row.drafts = [draft] if work.row.number in self._requests else []
        else:
            held = [(work, work.row.held - work.start) for work, _ in alive]
            self.runner.remember(held, [hidden for _, hidden in alive])
        rows = [work.row for work, _ in alive if len(work.row.tokens) > n_known[work.row.number]]
        if self.options.draft == "mtp" and rows and not ran.drafts:
            self._draft_with_modules(rows, [n_known[row.number] for row in rows])
        elif self.options.draft == "lookup":
            for row in rows:
                row.drafts = look_up(row.tokens, self._n_drafts)
        for work, _ in alive:
            if work.start == work.row.n_reused:
                self.stats.n_reused_tokens += work.row.n_reused
            self.scheduler.share(work.row)

    def _draft_with_modules(self, rows: list[Row], n_known: list[int]) -> None:
        requests = [self._requests[row.number] for row in rows]

        def choose(logits_RV: Tensor, drafts: list[list[int]]) -> list[int]:
            texts = [[*row.tokens, *drafted] for row, drafted in zip(rows, drafts, strict=True)]
            return draw(logits_RV, [self._place(r, text) for r, text in zip(requests, texts, strict=True)]).tokens

        for row, drafts in zip(rows, self.runner.draft(rows, n_known, choose), strict=True):
            row.drafts = drafts

    def _note_prompt(self, request: _Request, work: Work, hidden_TD: Tensor) -> None:
        """Log-probabilities of the prompt's tokens that this work's positions predict."""
        n_top, row = request.sampling.prompt_logprobs, work.row
        last = min(work.start + work.n, row.n_prompt - 1)
        if n_top is None or work.start >= last:
            return
        del request.prompt_logprobs[work.start :]  # computed again after it was sent back
        for first in range(work.start, last, 64):  # so many rows of logits at once
            end = min(first + 64, last)
            logits_TV = self.runner.logits(hidden_TD[first - work.start : end - work.start])
            request.prompt_logprobs += prompt_logprobs(logits_TV, row.tokens[first + 1 : end + 1], n_top)

    def _count(self, n_drafts: int, n_new: int) -> None:
        for at in range(n_drafts):
            self.stats.proposed[at] += 1
            self.stats.accepted[at] += at < n_new - 1

    def _bytes_of(self, token: int) -> bytes:
        if token not in self._bytes:
            assert self.tokenizer is not None
            self._bytes[token] = self.tokenizer.decode_bytes([token])
        return self._bytes[token]

    def _check(self, ids: list[int], sampling: Sampling) -> int:
        """Tokens at which the request ends. Raises RequestError where it can never be computed."""
        check_sampling(sampling, n_tokens=self.n_tokens, has_text=self.tokenizer is not None)
        context = self.model.config.seq_len
        check_prompt(ids, n_tokens=self.n_tokens, context=context)
        limit = min(len(ids) + sampling.max_tokens, context)
        if not self.scheduler.fits(limit):
            room = (self.pool.n_pages - 1) * PAGE + 1
            raise RequestError(
                f"prompt of {len(ids)} tokens and max_tokens = {sampling.max_tokens} need a cache of {limit} tokens, "
                f"there is one of {room}; lower max_tokens, or give the engine more cache_bytes"
            )
        return limit

    def _check_queue(self, n_tokens: int) -> None:
        waiting = self.scheduler.waiting
        if len(waiting) >= self.options.max_waiting:
            raise BusyError(f"{len(waiting)} requests wait, max_waiting is {self.options.max_waiting}; try again later")
        held = sum(len(row.tokens) for row in waiting)
        if waiting and held + n_tokens > self.options.max_waiting_tokens:
            raise BusyError(
                f"waiting prompts have {held} tokens, with this one more than max_waiting_tokens = "
                f"{self.options.max_waiting_tokens}; try again later"
            )

    def _check_options(self, o: EngineOptions, n_drafts: int, budget: int) -> None:
        if o.draft == "mtp" and not self.model.config.mtp_depth:
            raise RequestError('draft = "mtp" needs prediction modules, this model has none; use "lookup" or "none"')
        if not 0 <= n_drafts < SHORT or (o.draft == "mtp" and 2 * n_drafts > SHORT):
            raise RequestError(f"{n_drafts} drafts a step are more than {SHORT - 1}, or modules more than {SHORT // 2}")
        needed = o.max_rows * (1 + n_drafts) + PAGE if o.fixed_shapes else o.max_rows
        if o.max_rows < 1 or budget < needed:
            raise RequestError(
                f"budget_tokens = {budget} must be at least {needed} for max_rows = {o.max_rows}; raise it, or lower "
                "max_rows to 1 or more"
            )
        if o.chunk_tokens < 0 or o.cache_bytes < 0:
            raise RequestError("chunk_tokens and cache_bytes must be at least 0; 0 leaves the choice to the engine")
