"""What a source tree says about its files: programming language by suffix, licence by header or nearest licence file.

A licence is recognised by the SPDX line of the file itself, or by sentences that only the text of one licence has; a
file without either has the licence that the recipe states, or none. Nothing is guessed from the name of a project.
"""

import re
from functools import lru_cache
from pathlib import Path

from isoflop.corpus.read.bytes import COMPRESSED_SUFFIXES

LANGUAGES = {
    "py": "python",
    "pyi": "python",
    "c": "c",
    "h": "c",
    "cc": "cpp",
    "cpp": "cpp",
    "cxx": "cpp",
    "hpp": "cpp",
    "cu": "cuda",
    "cuh": "cuda",
    "rs": "rust",
    "go": "go",
    "java": "java",
    "js": "javascript",
    "mjs": "javascript",
    "jsx": "javascript",
    "ts": "typescript",
    "tsx": "typescript",
    "sh": "shell",
    "bash": "shell",
    "sql": "sql",
    "r": "r",
    "jl": "julia",
    "scala": "scala",
    "kt": "kotlin",
    "swift": "swift",
    "rb": "ruby",
    "php": "php",
    "lua": "lua",
    "cs": "csharp",
    "hs": "haskell",
    "ml": "ocaml",
    "lean": "lean",
    "pl": "perl",
    "f90": "fortran",
    "ex": "elixir",
    "erl": "erlang",
    "clj": "clojure",
    "dart": "dart",
    "zig": "zig",
    "m": "objective-c",
    "cmake": "cmake",
    "proto": "protobuf",
    "vhd": "vhdl",
    "v": "verilog",
    "css": "css",
    "el": "lisp",
    "lisp": "lisp",
}
"""Suffix of a source file -> its programming language."""

_SPDX = re.compile(r"SPDX-License-Identifier:\s*([A-Za-z0-9.+\-]+(?:\s+(?:AND|OR|WITH)\s+[A-Za-z0-9.+\-]+)*)")
_LICENCE_FILE = re.compile(r"(licen[cs]e|copying|unlicense)([-._].*)?", re.IGNORECASE)
_HEAD_CHARS = 4000
_MARKS = (
    ("AGPL-3.0", ("gnu affero general public license", "version 3")),
    ("LGPL-3.0", ("gnu lesser general public license", "version 3")),
    ("LGPL-2.1", ("gnu lesser general public license", "version 2.1")),
    ("GPL-3.0", ("gnu general public license", "version 3")),
    ("GPL-2.0", ("gnu general public license", "version 2")),
    ("Apache-2.0", ("apache license", "version 2.0")),
    ("MPL-2.0", ("mozilla public license", "2.0")),
    ("BSL-1.0", ("boost software license",)),
    ("Unlicense", ("free and unencumbered software released into the public domain",)),
    ("CC0-1.0", ("creative commons", "cc0 1.0")),
    ("ISC", ("permission to use, copy, modify, and/or distribute this software for any purpose",)),
    ("MIT", ("permission is hereby granted, free of charge, to any person obtaining a copy",)),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "neither the name")),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms",)),
    ("PSF-2.0", ("python software foundation license version 2",)),
)
"""SPDX name -> phrases that all stand in its text; the more special licence first."""


def programming_language(path: Path) -> str:
    """Language by suffix; empty for text."""
    name = Path(path.name.lower())
    plain = name.with_suffix("") if name.suffix in COMPRESSED_SUFFIXES else name
    return LANGUAGES.get(plain.suffix.removeprefix("."), "")


def licence_of(path: Path, root: Path, text: str) -> str:
    """SPDX name of the licence of a source file: its own header, else the licence file nearest above it in `root`."""
    found = _SPDX.search(text[:_HEAD_CHARS])
    if found:
        return found.group(1)
    for folder in path.parents:
        name = _licence_in(folder)
        if name or folder == root:
            return name
    return ""


def name_licence(text: str) -> str:
    """SPDX name of a licence text; empty where it is none of the known ones."""
    plain = " ".join(text[: 4 * _HEAD_CHARS].lower().split())
    for name, phrases in _MARKS:
        if all(phrase in plain for phrase in phrases):
            return name
    return ""


@lru_cache(maxsize=4096)
def _licence_in(folder: Path) -> str:
    try:
        files = sorted(item for item in folder.iterdir() if _LICENCE_FILE.fullmatch(item.name) and item.is_file())
        for item in files:
            with item.open("rb") as file:
                name = name_licence(file.read(8 * _HEAD_CHARS).decode("utf-8", "replace"))
            if name:
                return name
    except OSError:
        return ""
    return ""
