"""Our safetensors files are everybody's, and damage is named before a value is read."""

import hashlib
import itertools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from isoflop.errors import CheckpointError
from isoflop.interop import tensors
from isoflop.interop.tensors import TensorFile, TensorWriter, chunks

GENERATOR = torch.Generator().manual_seed(3)
CONTENT = {
    "matrix": torch.randn(7, 5, generator=GENERATOR),
    "stack": torch.randn(3, 4, 5, generator=GENERATOR).to(torch.bfloat16),
    "codes": torch.randn(6, 4, generator=GENERATOR).to(torch.float8_e4m3fn),
    "vector": torch.randn(9, generator=GENERATOR).to(torch.float16),
    "counts": torch.arange(4),
    "none": torch.empty(0, 3),
}


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def write(path, content=CONTENT, rows_at_once=2):
    plan = {name: (value.dtype, tuple(value.shape)) for name, value in content.items()}
    with TensorWriter(path, plan, {"format": "pt"}) as writer:
        for name, value in content.items():
            rows = value.reshape(-1, value.shape[-1] if value.ndim > 1 else 1)
            for first in range(0, len(rows), rows_at_once):
                writer.write(rows[first : first + rows_at_once], name)
    return writer


def test_what_we_write_the_library_reads(tmp_path):
    write(tmp_path / "a.safetensors")
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == CONTENT.keys()
    assert all(same(found[name], value) for name, value in CONTENT.items())


def test_what_the_library_writes_we_read(tmp_path):
    save_file(CONTENT, tmp_path / "a.safetensors", {"note": "x"})
    file = TensorFile(tmp_path / "a.safetensors")
    assert all(same(file.tensor(name), value) for name, value in CONTENT.items())
    assert file.metadata == {"note": "x"}
    assert same(file.rows("stack", 3, 9), CONTENT["stack"].view(12, 5)[3:9])


def test_the_hash_is_that_of_the_file(tmp_path):
    writer = write(tmp_path / "a.safetensors")
    assert writer.sha256 == hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()


def test_a_writer_that_was_promised_more_says_so(tmp_path):
    writer = TensorWriter(tmp_path / "a", {"x": (torch.float32, (5,))}, {})
    with pytest.raises(AssertionError, match="20 bytes were planned and not written"), writer:
        pass


def test_portions_cover_the_rows_in_multiples(monkeypatch):
    monkeypatch.setattr(tensors, "CHUNK_BYTES", 1000)
    found = list(chunks(100, 40, 8))
    assert found[0] == (0, 24) and found[-1][1] == 100
    assert all(a[1] == b[0] for a, b in itertools.pairwise(found))
    assert list(chunks(5, 10**6, 8)) == [(0, 5)]
    assert list(chunks(0, 4)) == []


def damaged(path, change):
    """A file whose header went through `change`."""
    write(path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = json.dumps(change(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    return path


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda h: {**h, "matrix": {**h["matrix"], "shape": [7, 6]}}, r"matrix of shape \[7, 6\] and dtype F32 does"),
        (lambda h: {**h, "matrix": {**h["matrix"], "dtype": "F3"}}, "matrix has dtype F3; readable are"),
        (lambda h: {**h, "matrix": {"dtype": "F32"}}, "entry of matrix is incomplete"),
        (lambda h: {**h, "matrix": {**h["matrix"], "data_offsets": [4, 144]}}, "overlap others or leave a gap"),
        (lambda h: {k: v for k, v in h.items() if k != "matrix"}, "overlap others or leave a gap"),
        (lambda h: {**h, "matrix": {**h["matrix"], "shape": [-7, -5]}}, r"shape \[-7, -5\]"),
        (lambda h: [h], "its header is not a table"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path, change, message):
    path = damaged(tmp_path / "a.safetensors", change)
    with pytest.raises(CheckpointError, match=message):
        TensorFile(path)


def test_truncation_and_garbage_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path)
    whole = path.read_bytes()
    for content, message in [
        (whole[:-1], "its header describes .*: truncated"),
        (whole + b"x", "something follows the last tensor"),
        (whole[:40], "is truncated or not safetensors"),
        (b"", "is truncated or not safetensors"),
        (b"\x10" + b"\0" * 7 + b"[" * 16, "its header is not JSON"),
        (b"\xff" * 64, "is truncated or not safetensors"),
    ]:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            TensorFile(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        TensorFile(tmp_path / "b.safetensors")
