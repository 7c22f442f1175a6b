"""Do both programs compute the same thing? Our model against `transformers`, on real text, in float32.

The report compares logits (largest and mean difference, the first as a share of the largest logit), the most likely
next token at every position, and greedy continuations. `transformers` reads the folder; ours gets its weights from the
same folder through the importer, so the report covers names, shapes, layout, config and both models. What exporting
changed in the weights (bfloat16, FP8) is reported beside it, from the run's own weights.

A mixture of experts has points where rounding decides: where two experts (or groups) score the same within TIE_MARGIN,
both programs are right and the token's path differs. Positions from such a tie on are counted and left out.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from isoflop.errors import CheckpointError, DataError, RecipeError
from isoflop.interop import tokenizer as tokenizer_files
from isoflop.interop.formats import ARCHITECTURES, derived_format
from isoflop.interop.import_hf import Folder
from isoflop.model.config import ModelConfig
from isoflop.model.transformer import Transformer
from isoflop.recipe import write_json
from isoflop.tokens.shards import TokenSet
from isoflop.training.device import choose_device

log = logging.getLogger(__name__)

TOLERANCE = 1e-5
"""Largest logit difference as a share of the largest logit, float32 (the project's acceptance, on small models)."""
WRONG = 1e-3
"""From here on it is not rounding; in between it may be, in a deep model or one with outliers (assumption)."""
TIE_MARGIN = 1e-5
"""Scores closer than this are a tie: a hundred times what float32 keeps of an affinity near 1 (assumption)."""
N_SEQUENCES, SEQUENCE_TOKENS = 8, 256
N_PROMPTS, PROMPT_TOKENS, GREEDY_STEPS = 4, 64, 64

PASSAGE = (
    "The lighthouse keeper counted the ships twice, once at dusk and once before dawn, and wrote both numbers in a "
    "ledger that nobody had asked him to keep. When the numbers agreed he slept; when they did not, he lit the lamp "
    "again and watched the water until he understood why. In forty years it had been fog eleven times, a mistake of "
    "his own three times, and once, in the winter of the long frost, a ship that had turned back for home.\n\n"
    "def count(ships, seen=()):\n    return len(set(ships) - set(seen))\n\n"
    "His successor kept the ledger and added a third column: the price of oil, 2.45 a measure in 1911. Over time that "
    "column turned out to explain the other two better than the weather did, since captains who pay for their light "
    "wait for the morning. It is an odd way to learn economics, she said, but the sample is large and the nights are "
    "long, and a number that is written down can be compared with another one.\n"
)
"""Text for models that come without any (written for this purpose)."""


def device_of(name: str, *, parity: bool) -> str:
    """Where the parity report will compute, asked before anything is written.

    Raises:
        RecipeError: no such device, or one that no report would use.
    """
    if not parity and name != "cpu":
        raise RecipeError(f"--device {name} has no effect without --parity; leave it out")
    return str(choose_device(name, key="--device"))


def compare(
    folder: Path,
    *,
    run_model: Transformer | None = None,
    tokens: Path | None = None,
    device: str = "cpu",
    report_to: Path | None = None,
) -> dict[str, Any]:
    """Compare our model with `transformers` on the weights in `folder`, write the report and return it.

    `run_model` is the model that was exported, to state what the number format cost; `tokens` a tokens folder whose
    held-out documents are the text; the report goes to parity.json in the folder unless `report_to` names a file.

    Raises:
        CheckpointError: `transformers` is there but cannot read the folder.
    """
    path = report_to or folder / "parity.json"
    report: dict[str, Any] = {"status": "skipped"}
    try:
        import transformers
    except ImportError:
        report["reason"] = "transformers is not installed: pip install 'isoflop[interop]', then export again"
        write_json(path, report)
        return report
    opened = Folder(folder)
    config = opened.config
    if not hasattr(transformers, ARCHITECTURES[opened.format]):
        report["reason"] = (
            f"transformers {transformers.__version__} has no {ARCHITECTURES[opened.format]} of its own; "
            f"--format {derived_format(config)} says the same model in a class that it has"
        )
        write_json(path, report)
        return report
    report["transformers"], report["torch"], report["device"] = transformers.__version__, torch.__version__, device
    text, tokens_BT = _real_text(config, folder, tokens)
    ours = load_model(opened, torch.device(device))
    theirs = _their_model(folder, opened, device)
    report |= {"text": text, "sequences": len(tokens_BT), "tokens_per_sequence": tokens_BT.shape[1]}
    with torch.no_grad():
        with _routing_ties(ours) as ties:
            logits_BTV = ours.logits(tokens_BT.to(device))
        report |= _difference(logits_BTV, theirs(tokens_BT.to(device)).logits, ties)
        unsure = 2 * max(report["max_logit_difference"] or 0.0, TOLERANCE * report["largest_logit"])
        report["greedy"] = _greedy(ours, theirs, tokens_BT.to(device), unsure)
        if run_model is not None and not _same_weights(ours, run_model):
            before_BTV = run_model.to(device).logits(tokens_BT.to(device))
            report["rounding"] = _difference(logits_BTV, before_BTV, [])
    report["tolerance"] = TOLERANCE
    report["status"] = _status(report)
    write_json(path, report)
    return report


def _status(report: dict[str, Any]) -> str:
    found, greedy = report["relative_difference"], report["greedy"]
    if found is None:
        report["reason"] = "every position follows a routing tie: nothing could be compared"
        return "skipped"
    if found > WRONG or greedy["equal"] < greedy["prompts"]:
        return "failed"
    return "passed" if found <= TOLERANCE else "close"


def load_model(opened: Folder, device: torch.device) -> Transformer:
    """Our model in float32 with the weights of a Hugging Face folder."""
    model = Transformer(opened.config).to(device)
    state = model.state_dict()
    for name, shape, portions in opened.weights():
        rows, first = state[name].view(-1, shape[-1] if len(shape) > 1 else 1), 0
        for portion in portions:
            rows[first : first + len(portion)].copy_(portion)
            first += len(portion)
    return model.eval()


def _their_model(folder: Path, opened: Folder, device: str) -> Any:
    """The folder in transformers, float32. FP8 is given as the values it stands for: its own FP8 needs a GPU."""
    import transformers

    given: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    name: Any = str(folder)
    if opened.quantised:
        config = transformers.AutoConfig.from_pretrained(folder)
        delattr(config, "quantization_config")
        pieces = [piece for target in opened.targets for piece in target.pieces]
        last = f"model.layers.{opened.config.n_layers}."
        given["state_dict"] = {
            piece.name: torch.cat(list(opened.rows(piece))).view(piece.shape)
            for piece in pieces
            if not piece.name.startswith(last)
        }
        given["config"], name = config, None
    level = transformers.logging.get_verbosity()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()  # it would list the multi-token prediction layer as unexpected
    try:
        model: Any = getattr(transformers, ARCHITECTURES[opened.format]).from_pretrained(name, **given)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"transformers {transformers.__version__} cannot read {folder}: {error}") from error
    finally:
        transformers.logging.set_verbosity(level)
        transformers.logging.enable_progress_bar()
    return model.to(device).eval()


def _difference(a_BTV: Tensor, b_BTV: Tensor, ties: list[Tensor]) -> dict[str, Any]:
    """How two sets of logits differ, positions from a routing tie on left out and counted."""
    tied_BT = torch.zeros(a_BTV.shape[:2], dtype=torch.bool, device=a_BTV.device)
    for tied_T in ties:
        tied_BT |= tied_T.view(tied_BT.shape)
    kept_BT = tied_BT.cummax(1).values.logical_not()  # attention carries a tie to every later position
    gap_BTV = (a_BTV - b_BTV).abs()
    largest = b_BTV.abs().max().item()
    kept_RV = gap_BTV[kept_BT]
    same_R = (a_BTV.argmax(-1) == b_BTV.argmax(-1))[kept_BT]
    return {
        "max_logit_difference": kept_RV.max().item() if len(kept_RV) else None,
        "mean_logit_difference": kept_RV.mean().item() if len(kept_RV) else None,
        "relative_difference": kept_RV.max().item() / largest if len(kept_RV) else None,
        "top1_agreement": same_R.float().mean().item() if len(kept_RV) else None,
        "largest_logit": largest,
        "positions": int(kept_BT.sum()),
        "routing_ties": int(tied_BT.sum()),
        "positions_left_out": int((~kept_BT).sum()),
        "relative_difference_with_ties": gap_BTV.max().item() / largest,
    }


def _greedy(ours: Transformer, theirs: Any, tokens_BT: Tensor, unsure: float) -> dict[str, Any]:
    """Continue the first prompts on both sides, each with its own cache.

    Where they part and the two best logits are less than `unsure` apart, neither is wrong: the prompt is left out.
    """
    seq_len = ours.config.seq_len
    n_prompt = min(PROMPT_TOKENS, tokens_BT.shape[1], max(1, seq_len - GREEDY_STEPS))
    steps = max(1, min(GREEDY_STEPS, seq_len - n_prompt))
    prompts_BT = tokens_BT[:N_PROMPTS, :n_prompt]
    mine_BT = greedy(ours, prompts_BT, steps)
    their_BT = _their_greedy(theirs, prompts_BT, steps)
    differs = [(row != other).nonzero().flatten() for row, other in zip(mine_BT, their_BT, strict=True)]
    first = [int(where[0]) if len(where) else None for where in differs]
    excused = [at is not None and _undecided(ours, their_BT[index, :at], unsure) for index, at in enumerate(first)]
    return {
        "prompts": len(prompts_BT) - sum(excused),
        "prompt_tokens": n_prompt,
        "steps": steps,
        "equal": sum(at is None for at in first),
        "first_difference": [None if at is None else at - n_prompt for at in first],
        "left_out_for_ties": sum(excused),
    }


def greedy(model: Transformer, prompts_BT: Tensor, steps: int) -> Tensor:
    """Prompts and their most likely continuation, token by token through the cache."""
    cache = model.new_cache(len(prompts_BT), prompts_BT.shape[1] + steps)
    found = [prompts_BT]
    logits_BTV = model.logits(prompts_BT, cache)
    for step in range(steps):
        found.append(logits_BTV[:, -1:].argmax(-1))
        if step + 1 < steps:
            logits_BTV = model.logits(found[-1], cache)
    return torch.cat(found, 1)


def _their_greedy(theirs: Any, prompts_BT: Tensor, steps: int) -> Tensor:
    from transformers import GenerationConfig

    theirs.generation_config = GenerationConfig()  # no end of text: both sides make the same number of steps
    settings = GenerationConfig(do_sample=False, max_new_tokens=steps, pad_token_id=0)
    return theirs.generate(prompts_BT, attention_mask=torch.ones_like(prompts_BT), generation_config=settings)


def _undecided(ours: Transformer, before_T: Tensor, unsure: float) -> bool:
    """Whether the token after `before_T` hangs on rounding: two logits within `unsure`, or a routing tie."""
    with _routing_ties(ours) as ties:
        logits_V = ours.logits(before_T[None])[0, -1]
    best = logits_V.topk(2).values
    return bool(best[0] - best[1] <= unsure) or any(bool(tied_T.any()) for tied_T in ties)


@contextmanager
def _routing_ties(model: Transformer) -> Iterator[list[Tensor]]:
    """Collects, of forward passes, the positions where routing was a tie: [T] of each layer."""
    ties: list[Tensor] = []

    def watch(router: nn.Module, _inputs: Any, output: Any) -> None:
        ties.append(_tied(router, output[2]))

    routers = [module for name, module in model.named_modules() if name.endswith("mlp.router") and "mtp" not in name]
    hooks = [router.register_forward_hook(watch) for router in routers]
    try:
        yield ties
    finally:
        for hook in hooks:
            hook.remove()


def _tied(router: Any, affinity_TE: Tensor) -> Tensor:
    """Tokens whose choice of experts or groups hangs on less than TIE_MARGIN, [T]."""
    config = router.config
    score_TE = affinity_TE + router.bias if config.selection_bias else affinity_TE
    tied_T = torch.zeros(len(score_TE), dtype=torch.bool, device=score_TE.device)
    if config.n_groups > 1:
        score_TNE = score_TE.unflatten(1, (config.n_groups, -1))
        n_best = config.n_active // config.n_groups_kept if config.group_score == "top_sum" else 1
        group_TN = score_TNE.topk(n_best, dim=-1).values.sum(-1)
        tied_T |= _close(group_TN, config.n_groups_kept)
        kept_TN = torch.zeros_like(group_TN, dtype=torch.bool).scatter_(
            1, group_TN.topk(config.n_groups_kept, dim=-1).indices, True
        )
        score_TE = score_TNE.masked_fill(~kept_TN[..., None], float("-inf")).flatten(1)
    return tied_T | _close(score_TE, config.n_active)


def _close(score_TN: Tensor, chosen: int) -> Tensor:
    """Whether the last that is chosen and the first that is not are nearly equal."""
    if chosen == score_TN.shape[1]:
        return torch.zeros(len(score_TN), dtype=torch.bool, device=score_TN.device)
    best_TN = score_TN.topk(chosen + 1, dim=-1).values
    return best_TN[:, -2] - best_TN[:, -1] < TIE_MARGIN


def _same_weights(a: nn.Module, b: nn.Module) -> bool:
    other = b.state_dict()
    return all(torch.equal(value, other[name].to(value.device)) for name, value in a.state_dict().items())


def _real_text(config: ModelConfig, folder: Path, tokens: Path | None) -> tuple[str, Tensor]:
    """Where the text comes from, and its tokens: evenly spread windows."""
    streams: list[np.ndarray] = []
    where = ""
    if tokens is not None:
        try:
            token_set = TokenSet.open(tokens)
            streams = [token_set.tokens("valid", domain) for domain in token_set.domains("valid")]
            where = "held-out documents of the run"
        except DataError as error:
            log.warning("no held-out text for the parity report: %s", error)
    if not streams and tokenizer_files.find(folder):
        ids = tokenizer_files.load(folder).encode(PASSAGE, add_special_tokens=True).ids
        streams, where = [np.array(ids)], "a passage that comes with isoflop"
    if not streams:
        drawn = np.random.default_rng(0).integers(0, config.vocab_size, N_SEQUENCES * SEQUENCE_TOKENS)
        streams, where = [drawn], "random tokens: the folder has no tokenizer"
    length = min(SEQUENCE_TOKENS, config.seq_len, *(len(stream) for stream in streams))
    rows = []
    for index in range(N_SEQUENCES):
        stream, place = streams[index % len(streams)], index // len(streams)
        last, places = len(stream) - length, max(1, -(-N_SEQUENCES // len(streams)) - 1)
        start = last * min(place, places) // places
        rows.append(np.asarray(stream[start : start + length], dtype=np.int64))
    found_BT = torch.from_numpy(np.unique(np.stack(rows), axis=0))
    if (largest := int(found_BT.max())) >= config.vocab_size:
        raise CheckpointError(
            f"{folder}: the tokenizer has id {largest}, config.json has vocab_size = {config.vocab_size}; "
            f"one of the two is not of this model"
        )
    return where, found_BT
