"""One planned run (`Cell`) and the runs that share a trunk (`Group`): what a ladder is made of and a sweep works off.

A cell becomes a pretrain recipe (`Cell.recipe`). Its id is a hash of everything that decides its result, so a sweep can
tell a finished cell from a changed one; where it runs (device, compile, paths) is not part of it. Cells of a group do
exactly the same thing up to their branch steps.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from isoflop.model.accounting import flops_per_token
from isoflop.model.config import ModelConfig
from isoflop.recipe import to_tree
from isoflop.training.schedule import cooldown_start

_WHERE_NOT_WHAT = ("device", "compile", "cuda_graph", "threads", "micro_batch")
"""Train keys that say where a cell runs: not part of its id."""


def stable_hash(value: Any) -> str:
    """Twelve hexadecimal digits that depend on plain data only, not on key order or process."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def model_tree(config: ModelConfig) -> dict[str, Any]:
    """The `[model]` section of a shape; what it does not have is left out, so that dense cells keep their ids."""
    tree = to_tree(config)
    return tree if config.mtp_depth else {key: value for key, value in tree.items() if key != "mtp_depth"}


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
    sections: dict[str, dict[str, Any]] = field(repr=False)
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
    def recipe(self) -> dict[str, Any]:
        """The pretrain recipe of this cell, as the tree that isoflop.training.pretrain.recipe.PretrainRecipe reads."""
        own = {
            "n_tokens": self.n_tokens,
            "batch_tokens": self.batch_tokens,
            "learning_rate": self.learning_rate,
        }
        return {
            "model": model_tree(self.config),
            "data": dict(self.sections["data"]),
            "train": {**own, **self.sections["train"]},
            "validate": dict(self.sections["validate"]),
            "checkpoint": dict(self.sections["checkpoint"]),
            **self._numerics(),
        }

    def _trunk_identity(self) -> dict[str, Any]:
        train = {key: value for key, value in self.sections["train"].items() if key not in _WHERE_NOT_WHAT}
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

    def _numerics(self) -> dict[str, Any]:
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
        return float(self.cells[0].flops_per_token * self.cells[0].batch_tokens)


def group_cells(cells: Iterable[Cell]) -> tuple[Group, ...]:
    """Cells with the same trunk together, shortest first within a group, groups in the order of their first cell."""
    by_trunk: dict[str, list[Cell]] = {}
    for cell in cells:
        by_trunk.setdefault(cell.trunk_id or cell.cell_id, []).append(cell)
    return tuple(Group(tuple(sorted(group, key=lambda cell: cell.steps))) for group in by_trunk.values())
