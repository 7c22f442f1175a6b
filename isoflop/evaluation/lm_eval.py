# pyright: reportMissingImports=false
"""Any task of lm-eval on our runs: its `TemplateLM` over the same scorer and engine that our own tasks use.

    lm_eval.simple_evaluate(model=IsoflopLM("runs/target"), tasks=["lambada_openai"])

Text becomes ids as transformers makes them: special tokens that a text spells are special tokens here, and a text that
spells begin of text itself does not get a second one. This module imports lm-eval as it is imported; nothing else of
the package does. Written against lm-eval 0.4.13.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from isoflop.errors import DataError
from isoflop.evaluation.collect import complete, room
from isoflop.evaluation.likelihood import fit, score
from isoflop.evaluation.prompts import Prompts, windows
from isoflop.evaluation.tasks.answers import cut
from isoflop.serving.engine import Engine
from isoflop.serving.options import EngineOptions
from isoflop.serving.request import MAX_STOPS, Sampling
from isoflop.tokens.chat import Message

PASSED_ON = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
WITHOUT_EFFECT = {"do_sample", "use_cache"}
"""Of generation: the first is said by the temperature, the second always holds."""


@register_model("isoflop")
class IsoflopLM(TemplateLM):
    """A run folder as a model of lm-eval."""

    def __init__(
        self,
        run: str | Path,
        *,
        device: str | None = "auto",
        dtype: str = "auto",
        tokens: str | None = None,
        max_rows: int = 32,
        budget_tokens: int = 0,
        seed: int = 0,
        batch_size: object = None,
        max_batch_size: object = None,
    ):
        """`batch_size` is taken because lm-eval gives one: batches have a budget of tokens here.

        Raises:
            CheckpointError, RecipeError, DataError: no such run, device or tokenizer.
        """
        super().__init__()
        options = EngineOptions(max_rows=max_rows, seed=seed)
        folder = Path(tokens) if tokens else None
        self.engine = Engine.open(run, options, device=device or "auto", dtype=dtype, tokens=folder)
        if self.engine.tokenizer is None:
            raise DataError(f"{run} has no tokenizer; give tokens=DIR")
        self.run, self._budget = str(run), budget_tokens
        self.prompts = Prompts(self.engine.tokenizer)
        self._backend = tokenizers.Tokenizer.from_str(self.engine.tokenizer.to_json())
        self._device = self.engine.model.embedding.weight.device

    @property
    def max_length(self) -> int:
        """Tokens of a context."""
        return self.engine.model.config.seq_len

    @property
    def eot_token_id(self) -> int:
        """Raises DataError: the tokenizer has no end of text."""
        found = self.prompts.tokenizer.eos_id
        if found is None:
            raise DataError(f"{self.run}: the tokenizer has no end of text; name one in its tokenizer_config.json")
        return found

    @property
    def prefix_token_id(self) -> int:
        return self.prompts.prefix_id

    @property
    def tokenizer_name(self) -> str:
        return self.run.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        ids = self._backend.encode(string, add_special_tokens=False).ids
        begins = add_special_tokens is not False and self.prompts.begin
        return ids if not begins or (add_special_tokens is None and ids[:1] == begins) else [*begins, *ids]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self.engine.template.source if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        messages = [Message(turn["role"], turn["content"]) for turn in chat_history]
        text = self.engine.template.render(messages, generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        last = messages[-1].content.strip()  # the answer goes on: nothing may stand behind it
        return text[: text.rfind(last) + len(last)]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        for text, _context, continuation in requests:
            if not continuation:
                raise DataError(f"continuation {text[1] if text else ''!r:.80} has no tokens; leave the item out")
        asked = [fit(context, rest, self.max_length)[0] for _, context, rest in requests]
        found: list[tuple[float, bool]] = [(0.0, False)] * len(asked)
        for one in score(self.engine.model, asked, budget=self._budget):
            found[one.number] = (one.nats, one.is_greedy)
        for (text, *_ids), answer in zip(requests, found, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        parts, owners = [], []
        for number, request in enumerate(requests):
            for part in windows(self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length):
                parts.append((None, *part))
                owners.append(number)
        sums = [0.0] * len(requests)
        for number, (nats, _) in zip(owners, self._loglikelihood_tokens(parts), strict=True):
            sums[number] += nats
        for request, nats in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, nats)
        return sums

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        asked, stops = [], []
        for request in requests:
            context, given = request.args
            wanted = dict(normalize_gen_kwargs(given))
            until = [stop for stop in handle_stop_sequences(wanted.pop("until", None), eos=None) if stop]
            n = int(wanted.pop("max_gen_toks"))
            unknown = {*wanted} - {*PASSED_ON} - WITHOUT_EFFECT
            if unknown:
                raise DataError(f"generation_kwargs {sorted(unknown)} mean nothing here; known: {', '.join(PASSED_ON)}")
            ids, n = room(self.tok_encode(context), n, self.max_length)
            sampling = Sampling(
                max_tokens=n,
                stop=tuple(until[:MAX_STOPS]),
                **{name: wanted[name] for name in PASSED_ON if wanted.get(name) is not None},
            )
            asked.append((ids, sampling))
            stops.append(until)
        found = [""] * len(asked)
        for place, done in complete(self.engine, asked):
            found[place] = cut(self._backend.decode(done.ids), stops[place])
        for request, text in zip(requests, found, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return found
