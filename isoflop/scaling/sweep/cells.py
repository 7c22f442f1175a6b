"""One planned run (`Cell`) and the runs that share a trunk (`Group`): what a ladder is made of and a sweep works off.

A cell becomes a pretrain recipe (`Cell.recipe`). Its id is a hash of everything that decides its result, so a sweep can
tell a finished cell from a changed one; where it runs (device, compile, paths) is not part of it. Cells of a group do
exactly the same thing up to their branch steps.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from isoflop.model.accounting import count_parameters, flops_per_token
from isoflop.model.config import ModelConfig
from isoflop.recipe import Tree
from isoflop.scaling.sweep.family import activated_share, family_text
from isoflop.scaling.sweep.records import RunRecord
from isoflop.scaling.sweep.shapes import model_tree
from isoflop.training.pretrain.recipe import WHERE_IT_RUNS
from isoflop.training.schedule import cooldown_start


def stable_hash(value: Any) -> str:
    """Twelve hexadecimal digits that depend on plain data only, not on key order or process."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Cell:
    """One run of a sweep, planned."""

    study: str
    budget_flops: float
    """The budget this cell was planned for, C = M D; the achieved value is `total_flops`."""
    config: ModelConfig
    steps: int
    batch_tokens: int
    learning_rate: float
    sections: dict[str, Tree] = field(repr=False)
    """data, train, validate, checkpoint and numerics (if any) as in a pretrain recipe, without what the fields say."""
    data_sha256: str = ""
    """Hash of the tokens where known; part of the id."""
    shared: bool = False
    """The cell may start from a checkpoint of a longer cell of its group."""
    control: bool = False
    """A repetition of a shared cell on its own, at the rate and batch of its own budget: it prices the sharing."""

    @property
    def n_tokens(self) -> int:
        return self.steps * self.batch_tokens

    @property
    def flops_per_token(self) -> int:
        return flops_per_token(self.config, "M")

    @property
    def total_flops(self) -> float:
        return float(self.flops_per_token * self.n_tokens)

    @property
    def total_flops_exact(self) -> float:
        """The output head included."""
        return float(flops_per_token(self.config, "exact") * self.n_tokens)

    @property
    def flops_per_step(self) -> float:
        return float(self.flops_per_token * self.batch_tokens)

    @property
    def schedule(self) -> str:
        return self.sections["train"]["schedule"]

    @property
    def branch_step(self) -> int:
        """Steps it has in common with every longer cell of its group; 0 where it shares nothing."""
        if not self.shared:
            return 0
        return cooldown_start(self.steps, self.sections["train"]["cooldown_fraction"])

    @property
    def cell_id(self) -> str:
        return stable_hash({**self._trunk_identity(), "steps": self.steps})

    @property
    def trunk_id(self) -> str:
        """The same for all cells of a group; empty where the cell stands alone."""
        return stable_hash(self._trunk_identity()) if self.shared else ""

    @property
    def recipe(self) -> Tree:
        """The pretrain recipe of this cell, as the tree that isoflop.training.pretrain.recipe.PretrainRecipe reads."""
        own = {"n_tokens": self.n_tokens, "batch_tokens": self.batch_tokens, "learning_rate": self.learning_rate}
        return {
            "model": model_tree(self.config),
            "data": dict(self.sections["data"]),
            "train": {**own, **self.sections["train"]},
            "validate": dict(self.sections["validate"]),
            "checkpoint": dict(self.sections["checkpoint"]),
            **self._numerics(),
        }

    def record(self, result: Mapping[str, Any], study: str) -> RunRecord:
        """The record of this cell, finished or diverged, from the result of its training."""
        return record_of_run(
            self.config,
            self.recipe["train"],
            result,
            run_id=self.cell_id,
            study=study,
            kind="control" if self.control else "cell",
            budget_flops=self.budget_flops,
            trunk_id=self.trunk_id,
        )

    def failed(self, reason: str, study: str) -> RunRecord:
        """The record of this cell where its training cannot be done."""
        known = {"status": "failed", "step": None, "start_step": 0, "data_sha256": self.data_sha256}
        record = self.record({**dict.fromkeys(_RESULT_KEYS), **known}, study)
        return dataclasses.replace(record, error=reason, conventions=conventions(self.schedule, self.config))

    def _trunk_identity(self) -> Tree:
        train = {key: value for key, value in self.sections["train"].items() if key not in WHERE_IT_RUNS}
        if "balance" in train:  # how often loads are written decides nothing
            train["balance"] = {key: value for key, value in train["balance"].items() if key != "report_every"}
        data = {key: value for key, value in self.sections["data"].items() if key != "tokens"}
        return {
            "model": model_tree(self.config),
            "train": {**train, "batch_tokens": self.batch_tokens, "learning_rate": self.learning_rate},
            "data": {**data, "data_sha256": self.data_sha256},
            "validate": self.sections["validate"].get("max_tokens", 0),
            **self._numerics(),
        }

    def _numerics(self) -> Tree:
        """Left out where there is none, so that other cells keep their ids."""
        return {"numerics": self.sections["numerics"]} if "numerics" in self.sections else {}


@dataclass(frozen=True)
class Group:
    """Cells that share a trunk, shortest first; a cell that stands alone is a group of one."""

    cells: tuple[Cell, ...]

    @property
    def trunk_id(self) -> str:
        return self.cells[0].trunk_id

    @property
    def trunk_steps(self) -> int:
        """Steps at constant rate that are run once for all."""
        return max(cell.branch_step for cell in self.cells)

    @property
    def steps_separate(self) -> int:
        return sum(cell.steps for cell in self.cells)

    @property
    def steps_shared(self) -> int:
        """Optimizer steps actually run: the trunk once, then each branch."""
        return self.trunk_steps + sum(cell.steps - cell.branch_step for cell in self.cells)

    @property
    def flops_per_step(self) -> float:
        return self.cells[0].flops_per_step


def group_cells(cells: Iterable[Cell]) -> tuple[Group, ...]:
    """Cells with the same trunk together, shortest first within a group, groups in the order of their first cell."""
    by_trunk: dict[str, list[Cell]] = {}
    for cell in cells:
        by_trunk.setdefault(cell.trunk_id or cell.cell_id, []).append(cell)
    return tuple(Group(tuple(sorted(group, key=lambda cell: cell.steps))) for group in by_trunk.values())


_MODEL_KEYS = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_ff", "vocab_size", "seq_len")
_EXPERT_KEYS = ("n_experts", "n_active", "n_shared", "d_expert", "n_dense_layers", "affinity")
_RESULT_KEYS = (
    *("n_tokens", "flops_per_token", "flops_per_token_exact", "total_flops", "total_flops_exact", "train_loss_nats"),
    *("unique_tokens", "epochs", "wall_s", "tokens_per_s", "device", "threads", "tokenizer_sha256", "data_sha256"),
    *("commit", "started_at", "finished_at", "numerics"),
)


def record_of_run(
    config: ModelConfig,
    train: Tree,
    result: Mapping[str, Any],
    *,
    run_id: str,
    study: str,
    kind: str,
    budget_flops: float,
    trunk_id: str,
) -> RunRecord:
    """Planned values from the sizes and `[train]`, achieved ones from the run's result, conventions beside both."""
    count = count_parameters(config)
    cools = train["schedule"] == "constant_cooldown"
    finished = result["status"] == "finished"
    return RunRecord(
        run_id=run_id,
        study=study,
        kind=kind,
        status=result["status"],
        seed=int(train.get("seed", 0)),
        budget_flops=budget_flops,
        **{key: getattr(config, key) for key in _MODEL_KEYS},
        **_family_fields(config),
        n_params_total=count.n_params_total,
        n_params_active=count.n_params_active,
        n_params_non_embedding=count.n_params_non_embedding,
        planned_tokens=int(train["n_tokens"]),
        batch_tokens=int(train["batch_tokens"]),
        learning_rate=float(train["learning_rate"]),
        schedule=train["schedule"],
        cooldown_fraction=float(train.get("cooldown_fraction", 0.2)) if cools else 0.0,
        steps=result["step"],
        trunk_id=trunk_id,
        trunk_tokens_shared=(result["start_step"] if trunk_id else 0) * int(train["batch_tokens"]),
        cooled=finished,
        loss_nats=result.get("loss_nats"),
        bits_per_byte=result.get("bits_per_byte"),
        bits_per_byte_by_domain=result.get("bits_per_byte_by_domain", {}),
        expert_load=result.get("expert_load"),
        max_violation_global=result.get("max_violation_global"),
        eval_name=f"held-out split of data {result['data_sha256'][:12]}",
        held_out_sha256=result.get("held_out_sha256"),
        held_out_bytes=result.get("n_bytes"),
        conventions={**conventions(train["schedule"], config), "numerics": result["numerics"], **_stacked(result)},
        **{key: result[key] for key in _RESULT_KEYS},
    )


def _stacked(result: Mapping[str, Any]) -> dict[str, str]:
    if "stacked" not in result:
        return {}
    return {"wall_s": f"the share of one of {result['stacked']} runs trained as one program"}


def _family_fields(config: ModelConfig) -> Tree:
    """Record fields that only mixtures of experts, latent attention or multi-token prediction have."""
    fields: Tree = {}
    if config.experts is not None:
        fields = {key: getattr(config.experts, key) for key in _EXPERT_KEYS}
        fields["activated_share"] = activated_share(config)
    if config.latent is not None:
        fields |= dataclasses.asdict(config.latent)
    return fields | ({"mtp_depth": config.mtp_depth} if config.mtp_depth else {})


def conventions(schedule: str, config: ModelConfig) -> dict[str, str]:
    """How the numbers of a record were counted."""
    experts = {"experts": "FLOPs of the experts that a token uses and of the router"} if config.experts else {}
    return {
        "family": family_text(config),
        **experts,
        "flops": "M D with M = 6 x block matmul weights + 12 n (heads d_head) s; exact adds the output head 6 d V",
        "params": "n_params_non_embedding leaves out embedding and head; norms are in",
        "attention": "full s x s, causal half not taken out",
        "loss": "validation, nats per target token; targets that start a document are not counted",
        "bits_per_byte": "nats / (ln 2 x UTF-8 bytes), all domains pooled by bytes",
        "schedule": schedule,
    }
