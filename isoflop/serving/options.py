"""What an engine is made with, and what it gives: options, outputs of a step, whole completions, counts."""

from dataclasses import dataclass, field
from typing import Literal

from isoflop.serving.sampler import LogProbs

Finish = Literal["stop", "length", "error"]


@dataclass(frozen=True)
class EngineOptions:
    """How much runs at once, and how."""

    max_rows: int = 32
    """Sequences that run at once."""
    budget_tokens: int = 0
    """Tokens of a step; 0: 8,192 on a GPU, 512 on a CPU."""
    chunk_tokens: int = 0
    """Tokens of a prompt in one step; 0: what the budget leaves."""
    cache_bytes: int = 0
    """Memory for pages; 0: room for max_rows sequences of the whole context, within half of what is free."""
    draft: Literal["none", "mtp", "lookup"] = "none"
    """Who guesses ahead: nobody, the model's prediction modules, or the text itself."""
    n_drafts: int = 4
    """Guesses a step of lookup; prediction modules give one each."""
    prefix_reuse: bool = True
    """Sequences that begin the same share pages."""
    fixed_shapes: bool = False
    """Same request, same bytes, whatever else runs: slower, and pages are reserved in advance."""
    replay: bool | None = None
    """Decode through buckets of repeating shapes, on a GPU as CUDA graphs. None: on a GPU where the model allows it."""
    max_waiting: int = 1024
    """Requests that may wait."""
    max_waiting_tokens: int = 4_000_000
    """Tokens of their prompts together."""
    seed: int = 0
    """From which requests without a seed get theirs."""


@dataclass(frozen=True)
class Output:
    """What one step gave one request."""

    number: int
    ids: list[int]
    """New tokens, those that only end the text included."""
    text: str
    """New text that is certain; empty without a tokenizer."""
    logprobs: list[LogProbs]
    """One for each new token, if they were asked for."""
    finish_reason: Finish | None = None
    prompt_logprobs: list[LogProbs] | None = None
    """With the last output, if they were asked for: of the prompt's second token and those after it."""
    n_reused_tokens: int = 0
    """Of the prompt: held already from an earlier request."""


@dataclass
class Completion:
    """All of a request's outputs."""

    prompt_ids: list[int]
    ids: list[int] = field(default_factory=list)
    text: str = ""
    logprobs: list[LogProbs] = field(default_factory=list)
    finish_reason: Finish | None = None
    prompt_logprobs: list[LogProbs] | None = None
    n_reused_tokens: int = 0

    def extend(self, output: Output) -> None:
        """Add what a step gave."""
        self.ids += output.ids
        self.text += output.text
        self.logprobs += output.logprobs
        if output.finish_reason is not None:
            self.finish_reason = output.finish_reason
            self.prompt_logprobs, self.n_reused_tokens = output.prompt_logprobs, output.n_reused_tokens


@dataclass
class Stats:
    """Counts since the engine was made."""

    n_steps: int = 0
    n_computed_tokens: int = 0
    """Of prompts, drafts and continuations."""
    n_drawn_tokens: int = 0
    n_reused_tokens: int = 0
    proposed: list[int] = field(default_factory=list)
    """Drafts by their place behind the last known token."""
    accepted: list[int] = field(default_factory=list)
    step_s: float = 0.0

    @property
    def acceptance(self) -> list[float | None]:
        """Share of accepted drafts by their place behind the last known token; None where there were none."""
        pairs = zip(self.accepted, self.proposed, strict=True)
        return [accepted / proposed if proposed else None for accepted, proposed in pairs]
