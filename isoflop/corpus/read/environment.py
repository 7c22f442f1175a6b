"""The embedded default corpus: sources, docstrings and documentation of the running Python environment.

Every machine that can run us has tens of MB of real code, English and mathematics: the standard library and the
installed packages. Nothing is copied into our repository; pinned versions make the corpus reproducible, and the
manifest lists each file with hash and licence. The rule for domains:

    mathematics   Python sources, docstrings included, and documentation of MATH_PACKAGES and MATH_MODULES
    code          all other Python sources, docstrings taken out, comments left in
    prose         those docstrings, and documentation (.md, .rst, .txt named like a document, package descriptions)

Left out: tests, vendored copies, licence texts, build tools, ourselves. A *package* (an installed distribution, or a
top-level module of the standard library) is in training or in validation as a whole, in all its domains. Packages
are held out in the order of a hash until each domain has its share; packages are passed over that are too big for the
share, or with which another domain would lose more than twice its share.
"""

import ast
import hashlib
import importlib.metadata
import re
import sys
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from inspect import cleandoc
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from isoflop.corpus.document import BadRecord, Document, OnBad
from isoflop.corpus.read.sources import decode
from isoflop.errors import DataError
from isoflop.recipe import NotNegative, Range, Share

MATH_PACKAGES = frozenset(["sympy", "mpmath", "networkx", "scipy", "statsmodels", "scikit-learn", "gmpy2", "patsy"])
MATH_MODULES = (
    *("numpy/linalg/", "numpy/polynomial/", "numpy/fft/", "numpy/random/", "numpy/matrixlib/"),
    *("torch/distributions/", "torch/linalg/", "torch/fft/", "torch/special/", "torch/optim/"),
    *("python/statistics.py", "python/fractions.py", "python/_pydecimal.py", "python/random.py"),
    *("python/numbers.py", "python/heapq.py", "python/bisect.py", "python/graphlib.py"),
)
LEFT_OUT_PACKAGES = frozenset(["isoflop", "pip", "setuptools", "wheel"])
LEFT_OUT_FOLDERS = frozenset(
    (
        *("test", "tests", "testing", "idle_test"),
        *("_vendor", "_vendored", "vendored", "third_party", "externals", "extern", "node_modules"),
        *("site-packages", "dist-packages", "__pycache__", "ensurepip", "pydoc_data", "licenses"),
    )
)
LICENCE_NAME = re.compile(r"(licen[cs]e|copying|notice|third.?party|authors|patents)", re.IGNORECASE)
DOCUMENT_NAME = re.compile(r"(readme|change|news|history|guide|faq|howto|tutorial|intro|overview|doc)", re.IGNORECASE)
MIN_DOCSTRING_CHARS = 40  # assumption: shorter ones repeat the name of the function


@dataclass(frozen=True)
class EnvironmentOptions:
    """How much of the environment to read."""

    enabled: bool | None = None
    """Read the environment; unset: only if the recipe names no sources."""
    packages: tuple[str, ...] = ()
    """Only these distributions; empty: all installed. `python` is the standard library."""
    max_mb: NotNegative = 60.0
    """At most this much of sources and documentation, before cleaning; 0: all. Files are chosen by a hash."""
    math_share: Share = 0.4
    """Share of max_mb for the mathematics domain."""
    max_package_share: Annotated[float, Range(above=0, at_most=1)] = 0.3
    """No package has more than this share of max_mb within mathematics, or within code and prose."""
    valid_share: Annotated[float, Range(above=0, below=1)] = 0.06
    """Share of each domain that whole packages held out for validation shall reach."""


@dataclass(frozen=True, slots=True)
class EnvironmentFile:
    """A file of the environment and how to read it."""

    path: Path
    id: str
    """package/relative/path: the same on every machine."""
    package: str
    kind: Literal["python", "document", "metadata"]
    mathematics: bool
    n_bytes: int
    license: str


def find_environment_files(options: EnvironmentOptions) -> list[EnvironmentFile]:
    """All files that the rule takes, within `max_mb`, sorted by id.

    Raises:
        DataError: nothing found, for example because `packages` names none that is installed.
    """
    wanted = {_canonical(name) for name in options.packages}
    files: list[EnvironmentFile] = []
    if not wanted or "python" in wanted:
        files.extend(_standard_library())
    seen: set[str] = set()
    for distribution in importlib.metadata.distributions():
        name = _canonical(distribution.metadata["Name"] or "")
        if name and name not in seen and name not in LEFT_OUT_PACKAGES and (not wanted or name in wanted):
            seen.add(name)
            files.extend(_distribution_files(distribution, name))
    missing = wanted - seen - {"python"}
    if missing or not files:
        raise DataError(
            f"environment.packages = {sorted(wanted)}: not installed, or without files: {sorted(missing) or 'all'}; "
            "name installed packages or leave it empty"
        )
    return sorted(_within_size(files, options), key=lambda file: file.id)


def read_environment_file(file: EnvironmentFile, on_bad: OnBad) -> Iterator[Document]:
    """Documents of one file: up to two for a Python source (code and its docstrings)."""
    text = decode(file.path.read_bytes(), file.id, on_bad)
    if text is None:
        return
    if file.kind == "metadata":
        text = text.partition("\n\n")[2]  # the description follows the header
    if file.mathematics or file.kind != "python":
        yield Document(file.id, text, "mathematics" if file.mathematics else "prose", file.package, file.license)
        return
    try:
        code, docstrings = split_docstrings(text)
    except (SyntaxError, ValueError, RecursionError) as error:
        on_bad(BadRecord(file.id, f"not parsed: {error}"[:200]))
        return
    yield Document(file.id, code, "code", file.package, file.license)
    if docstrings:
        yield Document(f"{file.id}:docstrings", "\n\n".join(docstrings), "prose", file.package, file.license)


def split_docstrings(source: str) -> tuple[str, list[str]]:
    """(source without docstrings, still valid Python; the docstrings in order, indentation removed)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # old escapes in other people's strings
        warnings.simplefilter("ignore", DeprecationWarning)
        tree = ast.parse(source)
    lines, docstrings = source.split("\n"), []
    removed: list[tuple[int, int, str]] = []
    for owner in _definitions(tree):
        first = owner.body[0] if owner.body else None
        if not isinstance(first, ast.Expr) or not isinstance(first.value, ast.Constant):
            continue
        value, start, end = first.value.value, first.lineno - 1, (first.end_lineno or first.lineno) - 1
        if not isinstance(value, str):
            continue
        if len(value) >= MIN_DOCSTRING_CHARS:
            docstrings.append(cleandoc(value))
        indent = lines[start][: first.col_offset]
        ends_line = not lines[end].encode()[first.end_col_offset :].strip()
        if not indent.strip() and ends_line:  # otherwise it shares its line with code: leave it
            alone = len(owner.body) == 1 and not isinstance(owner, ast.Module)
            removed.append((start, end, f"{indent}pass" if alone else ""))
    for start, end, instead in sorted(removed, reverse=True):
        lines[start : end + 1] = [instead] if instead else []
    return "\n".join(lines), docstrings


def choose_held_out(n_bytes: Mapping[tuple[str, str], int], share: float) -> set[str]:
    """Packages to hold out, from bytes by (package, domain): whole packages until each domain has its share.

    Raises:
        DataError: a domain with a single package, which can't be in both training and validation.
    """
    totals: dict[str, int] = defaultdict(int)
    packages: dict[str, dict[str, int]] = defaultdict(dict)
    for (package, domain), size in n_bytes.items():
        totals[domain] += size
        packages[package][domain] = size
    held: set[str] = set()
    taken: dict[str, int] = defaultdict(int)

    def hold_out(name: str) -> None:
        held.add(name)
        for domain, size in packages[name].items():
            taken[domain] += size

    for domain in sorted(totals, key=lambda name: (totals[name], name)):
        here = sorted((name for name in packages if packages[name].get(domain)), key=_hash)
        if len(here) < 2:
            raise DataError(
                f"environment.packages: domain {domain} comes from {here} alone, and validation holds out whole "
                "packages; add a package of this domain or more text"
            )
        for name in here:
            if taken[domain] >= share * totals[domain]:
                break
            fits = all(
                size <= 0.75 * share * totals[where] and taken[where] + size <= 2 * share * totals[where]
                for where, size in packages[name].items()
            )
            if fits and name not in held:
                hold_out(name)
        if not any(name in held for name in here):
            hold_out(min(here, key=lambda name: (packages[name][domain], name)))
    return held


def environment_versions(files: Iterable[EnvironmentFile]) -> dict[str, str]:
    """Version of each package that has files here; `python` for the standard library."""
    names = sorted({file.id.partition("/")[0] for file in files})
    return {n: sys.version.split()[0] if n == "python" else importlib.metadata.version(n) for n in names}


def _standard_library() -> Iterator[EnvironmentFile]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in root.rglob("*.py"):
        relative = path.relative_to(root)
        if not LEFT_OUT_FOLDERS & set(relative.parts):
            package = f"python/{relative.parts[0].removesuffix('.py')}"
            yield _python_file(path, f"python/{relative.as_posix()}", package, "PSF-2.0")


def _distribution_files(distribution: importlib.metadata.Distribution, name: str) -> Iterator[EnvironmentFile]:
    licence = _licence(distribution)
    for entry in distribution.files or ():
        parts = set(entry.parts[:-1])
        if ".." in entry.parts or LEFT_OUT_FOLDERS & parts:
            continue
        kind = _kind(PurePosixPath(entry.as_posix()))
        path = Path(str(distribution.locate_file(entry)))
        if kind is None or not path.is_file():
            continue
        # a metadata folder has the version in its name; the id does not
        relative = "METADATA" if kind == "metadata" else entry.as_posix()
        if kind == "python":
            yield _python_file(path, f"{name}/{relative}", name, licence)
        else:
            yield EnvironmentFile(
                path, f"{name}/{relative}", name, kind, name in MATH_PACKAGES, path.stat().st_size, licence
            )


def _python_file(path: Path, name: str, package: str, licence: str) -> EnvironmentFile:
    inner = name if name.startswith("python/") else name.partition("/")[2]
    mathematics = package in MATH_PACKAGES or inner.startswith(MATH_MODULES)
    return EnvironmentFile(path, name, package, "python", mathematics, path.stat().st_size, licence)


def _kind(path: PurePosixPath) -> Literal["python", "document", "metadata"] | None:
    if path.suffix == ".py":
        return "python"
    if LICENCE_NAME.search(path.name):
        return None
    if path.name == "METADATA":
        return "metadata"
    if any(part.endswith(".dist-info") for part in path.parts):
        return None
    if path.suffix in (".md", ".rst") or (path.suffix == ".txt" and DOCUMENT_NAME.match(path.name)):
        return "document"
    return None


def _within_size(files: list[EnvironmentFile], options: EnvironmentOptions) -> Iterator[EnvironmentFile]:
    """Files in the order of a hash until the domain and the package have their share of max_mb."""
    quota = {True: options.math_share * options.max_mb * 1e6, False: (1 - options.math_share) * options.max_mb * 1e6}
    used: dict[object, int] = defaultdict(int)
    for file in sorted(files, key=lambda file: _hash(file.id)):
        package = (file.mathematics, file.id.partition("/")[0])
        limit = quota[file.mathematics]
        small_enough = (
            used[file.mathematics] + file.n_bytes <= limit
            and used[package] + file.n_bytes <= options.max_package_share * limit
        )
        if small_enough or options.max_mb <= 0:
            used[file.mathematics] += file.n_bytes
            used[package] += file.n_bytes
            yield file


def _definitions(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Everything that can own a docstring. Only statements are visited: expressions hold none, and are most nodes."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            children = getattr(node, name, ())
            if isinstance(children, list):
                pending.extend(children)


def _licence(distribution: importlib.metadata.Distribution) -> str:
    metadata = distribution.metadata
    expression, text = ((metadata.get_all(key) or [None])[0] for key in ("License-Expression", "License"))
    classifiers = [line for line in metadata.get_all("Classifier") or [] if line.startswith("License ::")]
    if expression:
        return str(expression)
    if text and "\n" not in text and len(text) < 80:
        return str(text)
    return classifiers[0].rpartition(" :: ")[2] if classifiers else "unknown"


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()
