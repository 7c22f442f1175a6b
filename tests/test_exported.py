"""The public names: complete, real, and free of charge until used."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import isoflop


@pytest.mark.parametrize("name", isoflop.__all__)
def test_every_public_name_is_the_object_of_its_module(name):
    found = getattr(isoflop, name)
    assert found.__name__ == name and found.__module__.startswith("isoflop.")
    assert found.__doc__


def test_all_dir_and_the_type_checker_agree():
    assert sorted(isoflop.__all__) == isoflop.__all__ == sorted(isoflop._HOME)
    assert set(isoflop.__all__) <= set(dir(isoflop)) and "__version__" in dir(isoflop)
    tree = ast.parse(Path(isoflop.__file__).read_text(encoding="utf-8"))
    (guarded,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {name.name: item.module for item in guarded.body for name in item.names}
    assert seen == isoflop._HOME


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'isoflop' has no attribute 'trian'"):
        isoflop.trian  # noqa: B018


def test_importing_the_package_imports_nothing_heavy():
    heavy = ("torch", "numpy", "scipy", "tokenizers", "cyclopts", "pydantic")
    code = f"import sys, isoflop; print([m for m in {heavy} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
