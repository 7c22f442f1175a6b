"""Finished runs: one JSON line each, in the order in which they ended.

A sweep appends to `records.jsonl` while others may read it, and may be killed at any moment. So a record is one write
followed by a flush to disk, a last line without its end is what a killed writer left and is ignored, and a run that
was repeated replaces its earlier line. Fields that this version doesn't know are kept.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path

from isoflop.errors import DataError, RecipeError
from isoflop.recipe import NotNegative, Positive, Tree, from_tree, plain
from isoflop.run import append_json_line, latest_of_each_run, read_json_lines

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One finished run: what was planned, what was achieved, and by which conventions it was counted.

    Units: tokens and parameters as counts, compute in FLOPs (forward and backward), losses as named.
    """

    run_id: str
    """Unique within a study; a later line with the same name replaces an earlier one."""
    study: str = ""
    kind: str = "cell"
    """cell (of a sweep), control (a cell run once more, alone), target (a predicted run) or imported."""
    status: str = "finished"
    """finished, diverged or failed."""
    error: str | None = None
    """Failed runs only: why."""
    seed: int | None = None
    budget_flops: Positive | None = None
    """The planned label; what was spent is total_flops."""
    n_layers: int | None = None
    d_model: int | None = None
    n_heads: int | None = None
    n_kv_heads: int | None = None
    d_head: int | None = None
    d_ff: int | None = None
    vocab_size: int | None = None
    seq_len: int | None = None
    n_experts: int | None = None
    """Routed experts of a block; this and the next six are absent where the model is dense."""
    n_active: int | None = None
    """Routed experts that a token uses."""
    n_shared: int | None = None
    """Experts that every token uses."""
    d_expert: int | None = None
    n_dense_layers: int | None = None
    affinity: str | None = None
    activated_share: float | None = None
    """(n_active + n_shared) / (n_experts + n_shared)."""
    d_kv_latent: int | None = None
    """Channels that keys and values are made from; this and the next four are absent without latent attention."""
    d_q_latent: int | None = None
    d_nope: int | None = None
    d_rope: int | None = None
    d_value: int | None = None
    mtp_depth: int | None = None
    n_params_total: int | float | None = None
    n_params_active: int | float | None = None
    """Used by one token, embedding and head included."""
    n_params_non_embedding: int | float | None = None
    """All experts counted."""
    flops_per_token: Positive | None = None
    """Non-embedding matmul weights that a token uses x 6 plus full attention: the paper's M, generalised."""
    flops_per_token_exact: Positive | None = None
    """flops_per_token plus the output head."""
    planned_tokens: int | float | None = None
    n_tokens: int | float | None = None
    total_flops: NotNegative | None = None
    """flops_per_token x n_tokens, as achieved."""
    total_flops_exact: NotNegative | None = None
    batch_tokens: int | float | None = None
    learning_rate: float | None = None
    schedule: str | None = None
    cooldown_fraction: float | None = None
    steps: int | float | None = None
    trunk_id: str | None = None
    trunk_tokens_shared: int | float | None = None
    cooled: bool | None = None
    """Whether the learning rate was brought down before the loss was measured; only such losses are fitted."""
    loss_nats: Positive | None = None
    """Validation, per token."""
    bits_per_byte: Positive | None = None
    """Validation, all domains pooled by bytes."""
    bits_per_byte_by_domain: dict[str, float] | None = None
    train_loss_nats: float | None = None
    expert_load: Tree | None = None
    """Mixtures only: how evenly the validation tokens were spread over the experts of each block, as the run said."""
    max_violation_global: float | None = None
    """Mean over its layers of largest load / mean load - 1, over the whole validation set."""
    unique_tokens: int | float | None = None
    epochs: float | None = None
    wall_s: float | None = None
    tokens_per_s: float | None = None
    device: str | None = None
    numerics: str | None = None
    """Number formats of the products: "float32", or what `[numerics]` said, for example "fp8_block 128 on blocks.*"."""
    threads: int | None = None
    tokenizer_sha256: str | None = None
    data_sha256: str | None = None
    eval_name: str | None = None
    held_out_sha256: str | None = None
    """Of the held-out text itself, whatever its tokenizer (isoflop.tokens.shards); absent in older records."""
    held_out_bytes: int | float | None = None
    """Text that the loss was measured on: all of it, or what validate.max_tokens took."""
    commit: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    conventions: Tree | None = None
    """flops, params, attention, loss unit, schedule, tokenizer, eval set."""
    prediction: Tree | None = None
    """Targets only: what was predicted before the run."""
    score: Tree | None = None
    """Targets only: predicted against measured."""
    extra: Tree = dataclasses.field(default_factory=dict)
    """Fields this version does not know; written back flat."""

    @classmethod
    def from_dict(cls, row: Mapping[str, object]) -> "RunRecord":
        """Build a record from one JSON object. Raises DataError: no run_id, a wrong type, a negative loss."""
        if not row.get("run_id"):
            raise DataError(f"record {str(row)[:80]} has no run_id; every record needs one: add it")
        known = {field.name for field in dataclasses.fields(cls)} - {"extra"}
        extra = {key: value for key, value in row.items() if key not in known}
        given = {key: value for key, value in row.items() if key in known and value is not None}
        try:
            return dataclasses.replace(from_tree(given, cls, f"record {row['run_id']}: "), extra=extra)
        except RecipeError as error:
            raise DataError(f"{error}; repair or remove its line") from error

    def to_dict(self) -> Tree:
        """Plain and flat, fields without a value left out."""
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "extra"}
        return {key: plain(value) for key, value in {**row, **self.extra}.items() if value is not None}


def read_records(path: str | Path) -> list[RunRecord]:
    """Read all records of a file; the last line of a run_id wins, a torn last line is ignored with a warning.

    Raises:
        DataError: the file is missing, or a line before the last is not a JSON object.
    """
    path = Path(path)
    if path.is_dir():
        raise DataError(f"records {path} is a folder; give the records.jsonl of a sweep")
    if not path.is_file():
        raise DataError(f"records {path} does not exist; run isoflop sweep first, or give the path of a table")
    rows = read_json_lines(path)
    latest = latest_of_each_run(rows)
    if len(latest) < len(rows):
        log.warning("%s: %d lines replaced by a later line of the same run_id", path, len(rows) - len(latest))
    return [RunRecord.from_dict(row) for row in latest]


def study_records(study: Path) -> Path | None:
    """The records in the folder of a study: its own, or those of its sweep; None where there are none."""
    return next((p for p in (study / "records.jsonl", study / "sweep/records.jsonl") if p.is_file()), None)


def append_record(path: str | Path, record: RunRecord) -> None:
    """Add one line and flush it to disk; what a killed writer left of a line is cut off first."""
    append_json_line(path, record.to_dict())
