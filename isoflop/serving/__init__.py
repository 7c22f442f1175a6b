"""Generation for everything that samples: one engine, exact, without a network. Names are resolved on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoflop.serving.engine import Engine
    from isoflop.serving.options import EngineOptions
    from isoflop.serving.request import Grammar, Sampling

__all__ = ["Engine", "EngineOptions", "Grammar", "Sampling"]

_HOME = {
    "Engine": "isoflop.serving.engine",
    "EngineOptions": "isoflop.serving.options",
    "Grammar": "isoflop.serving.request",
    "Sampling": "isoflop.serving.request",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'isoflop.serving' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
