"""isoflop: know the result before you pay for the run.

The main functions under one roof, each resolved on first use, so that `import isoflop` and `import isoflop.scaling.fit`
never import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from isoflop.threads import wait_briefly

if TYPE_CHECKING:
    from isoflop.corpus.build import build_corpus
    from isoflop.interop.export import export_run
    from isoflop.interop.intake import import_folder
    from isoflop.model.config import ModelConfig
    from isoflop.model.transformer import Transformer
    from isoflop.recipe import load_recipe
    from isoflop.scaling.compare import compare_files
    from isoflop.scaling.fit import run_fit
    from isoflop.scaling.folder import report_study
    from isoflop.scaling.ladder import plan_ladder
    from isoflop.scaling.law_set import fit_law_set
    from isoflop.scaling.plan import make_plan
    from isoflop.scaling.prediction import predict
    from isoflop.scaling.sweep import run_sweep
    from isoflop.scaling.target import score_run
    from isoflop.tokens.shards import build_tokens
    from isoflop.training.pretrain import run_pretrain

__version__ = "0.1.0"

wait_briefly()  # the one thing done on import: OpenMP reads it when torch is loaded, and never again

__all__ = [
    "ModelConfig",
    "Transformer",
    "build_corpus",
    "build_tokens",
    "compare_files",
    "export_run",
    "fit_law_set",
    "import_folder",
    "load_recipe",
    "make_plan",
    "plan_ladder",
    "predict",
    "report_study",
    "run_fit",
    "run_pretrain",
    "run_sweep",
    "score_run",
]

_HOME = {
    "ModelConfig": "isoflop.model.config",
    "Transformer": "isoflop.model.transformer",
    "build_corpus": "isoflop.corpus.build",
    "build_tokens": "isoflop.tokens.shards",
    "compare_files": "isoflop.scaling.compare",
    "export_run": "isoflop.interop.export",
    "fit_law_set": "isoflop.scaling.law_set",
    "import_folder": "isoflop.interop.intake",
    "load_recipe": "isoflop.recipe",
    "make_plan": "isoflop.scaling.plan",
    "plan_ladder": "isoflop.scaling.ladder",
    "predict": "isoflop.scaling.prediction",
    "report_study": "isoflop.scaling.folder",
    "run_fit": "isoflop.scaling.fit",
    "run_pretrain": "isoflop.training.pretrain",
    "run_sweep": "isoflop.scaling.sweep",
    "score_run": "isoflop.scaling.target",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'isoflop' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
