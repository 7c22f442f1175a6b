"""isoflop: know the result before you pay for the run.

Public names are resolved on first use, so that `import isoflop.scaling.fit` never imports torch.
"""

__version__ = "0.1.0"
