"""isoflop: know the result before you pay for the run.

The main functions under one roof, each resolved on first use, so that `import isoflop` and `import isoflop.scaling.fit`
never import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from isoflop.threads import wait_briefly

if TYPE_CHECKING:
    from isoflop.alignment.dpo import run_dpo
    from isoflop.alignment.reward_model import run_reward
    from isoflop.alignment.sft import run_sft
    from isoflop.corpus.build import build_corpus
    from isoflop.interop.export_hf import export_run
    from isoflop.interop.import_hf import import_folder
    from isoflop.model.config import ModelConfig
    from isoflop.model.transformer import Transformer
    from isoflop.recipe import load_recipe
    from isoflop.scaling.fit.joint import fit
    from isoflop.scaling.fit.run import run_fit
    from isoflop.scaling.laws import Laws
    from isoflop.scaling.plan.choose import plan
    from isoflop.scaling.plan.compare import compare_files
    from isoflop.scaling.plan.next_cells import next_cells
    from isoflop.scaling.plan.predict import predict
    from isoflop.scaling.plan.score import score_run
    from isoflop.scaling.report.folder import report_study
    from isoflop.scaling.sweep.ladder import plan_ladder
    from isoflop.scaling.sweep.run import run_sweep
    from isoflop.tokens.shards import build_tokens
    from isoflop.training.pretrain.workload import run_pretrain

__version__ = "0.1.0"

wait_briefly()  # the one thing done on import: OpenMP reads it when torch is loaded, and never again

__all__ = [
    "Laws",
    "ModelConfig",
    "Transformer",
    "build_corpus",
    "build_tokens",
    "compare_files",
    "export_run",
    "fit",
    "import_folder",
    "load_recipe",
    "next_cells",
    "plan",
    "plan_ladder",
    "predict",
    "report_study",
    "run_dpo",
    "run_fit",
    "run_pretrain",
    "run_reward",
    "run_sft",
    "run_sweep",
    "score_run",
]

_HOME = {
    "Laws": "isoflop.scaling.laws",
    "ModelConfig": "isoflop.model.config",
    "Transformer": "isoflop.model.transformer",
    "build_corpus": "isoflop.corpus.build",
    "build_tokens": "isoflop.tokens.shards",
    "compare_files": "isoflop.scaling.plan.compare",
    "export_run": "isoflop.interop.export_hf",
    "fit": "isoflop.scaling.fit.joint",
    "import_folder": "isoflop.interop.import_hf",
    "load_recipe": "isoflop.recipe",
    "next_cells": "isoflop.scaling.plan.next_cells",
    "plan": "isoflop.scaling.plan.choose",
    "plan_ladder": "isoflop.scaling.sweep.ladder",
    "predict": "isoflop.scaling.plan.predict",
    "report_study": "isoflop.scaling.report.folder",
    "run_dpo": "isoflop.alignment.dpo",
    "run_fit": "isoflop.scaling.fit.run",
    "run_pretrain": "isoflop.training.pretrain.workload",
    "run_reward": "isoflop.alignment.reward_model",
    "run_sft": "isoflop.alignment.sft",
    "run_sweep": "isoflop.scaling.sweep.run",
    "score_run": "isoflop.scaling.plan.score",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'isoflop' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
