import ast
from pathlib import Path

import pytest

from isoflop.corpus.build import build_corpus
from isoflop.corpus.document import BadRecord
from isoflop.corpus.read.environment import (
    EnvironmentOptions,
    choose_held_out,
    find_environment_files,
    read_environment_file,
    split_docstrings,
)
from isoflop.corpus.recipe import CorpusRecipe
from isoflop.errors import DataError

PACKAGES = ("python", "packaging", "mpmath", "networkx")

SOURCE = '''"""Module docstring that is long enough to be kept as prose.

    Second paragraph.
"""
import os

class A:
    """Class docstring that is long enough to be kept as prose."""

async def f():
    "Function docstring that is long enough to be kept, in quotes."
    # a comment stays
    return """not a docstring, so it stays where it is"""

if os:
    def g(): """Shares its line with code, so it stays in the source."""
'''


def test_docstrings_move_from_code_to_prose_and_code_stays_valid() -> None:
    code, docstrings = split_docstrings(SOURCE)
    ast.parse(code)
    assert [text.split()[0] for text in sorted(docstrings)] == ["Class", "Function", "Module", "Shares"]
    assert "Module docstring" not in code
    assert "Class docstring" not in code
    assert "    pass" in code
    assert "# a comment stays" in code
    assert "not a docstring" in code
    assert "Second paragraph." in next(text for text in docstrings if text.startswith("Module"))


def test_files_have_domains_licences_and_the_same_ids_everywhere() -> None:
    files = {file.id: file for file in find_environment_files(EnvironmentOptions(packages=PACKAGES, max_mb=0))}
    assert list(files) == sorted(files)
    assert files["python/statistics.py"].mathematics
    assert not files["python/argparse.py"].mathematics
    assert files["python/argparse.py"].license == "PSF-2.0"
    assert files["python/json/decoder.py"].package == "python/json"
    assert files["mpmath/mpmath/libmp/libmpf.py"].mathematics
    assert "BSD" in files["mpmath/mpmath/libmp/libmpf.py"].license
    assert files["packaging/METADATA"].kind == "metadata"
    assert not [name for name in files if "/tests/" in name or "LICENSE" in name or "site-packages" in name]


def test_python_sources_become_code_and_prose() -> None:
    files = {file.id: file for file in find_environment_files(EnvironmentOptions(packages=("python",), max_mb=0))}
    bad: list[BadRecord] = []
    argparse = list(read_environment_file(files["python/argparse.py"], bad.append))
    assert [document.domain for document in argparse] == ["code", "prose"]
    assert [document.domain for document in read_environment_file(files["python/fractions.py"], bad.append)] == [
        "mathematics"
    ]
    assert not bad


def test_size_limit_holds_in_all_and_per_package() -> None:
    options = EnvironmentOptions(packages=PACKAGES, max_mb=2.0, math_share=0.5, max_package_share=0.4)
    files = find_environment_files(options)
    assert sum(file.n_bytes for file in files) <= 2.0e6
    mathematics = [file for file in files if file.mathematics]
    assert sum(file.n_bytes for file in mathematics if file.package == "networkx") <= 0.4e6
    assert find_environment_files(options) == files


def test_unknown_package_is_named() -> None:
    with pytest.raises(DataError, match=r"environment\.packages = .*not installed.*no-such-package"):
        find_environment_files(EnvironmentOptions(packages=("No_Such.Package",)))


def test_held_out_packages_reach_the_share_of_every_domain_without_taking_big_ones() -> None:
    sizes = {(f"small{i}", domain): 10 + i for i in range(40) for domain in ("code", "prose")}
    sizes |= {("big", "code"): 5000, ("m1", "mathematics"): 900, ("m2", "mathematics"): 100}
    held = choose_held_out(sizes, 0.06)
    assert held == choose_held_out(dict(reversed(sizes.items())), 0.06)
    assert "big" not in held
    assert held & {"m1", "m2"} == {"m2"}  # none fits, so the smallest
    share = sum(sizes.get((name, "prose"), 0) for name in held) / sum(10 + i for i in range(40))
    assert 0.06 <= share <= 0.12
    with pytest.raises(DataError, match=r"domain code comes from .* alone"):
        choose_held_out({("only", "code"): 5}, 0.06)


def test_held_out_package_is_in_no_training_domain(tmp_path: Path) -> None:
    recipe = CorpusRecipe(environment=EnvironmentOptions(packages=PACKAGES, max_mb=4.0), workers=1)
    manifest = build_corpus(recipe, tmp_path / "corpus")
    assert {(item["split"], item["domain"]) for item in manifest["files"]} == {
        (split, domain) for split in ("train", "valid") for domain in ("code", "prose", "mathematics")
    }
    held = set(manifest["held_out"])
    for item in manifest["files"]:
        sources = _sources(tmp_path / "corpus" / item["path"])
        assert sources <= held if item["split"] == "valid" else not sources & held
    for entry in manifest["inputs"]:
        assert len(entry["sha256"]) == 64
        assert entry["license"]
    assert set(manifest["packages"]) == set(PACKAGES)


def _sources(path: Path) -> set[str]:
    import json

    import zstandard

    with zstandard.open(path, "rt", encoding="utf-8") as file:
        return {json.loads(line)["source"] for line in file}
