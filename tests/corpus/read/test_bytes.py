import gzip
import io
import os
import random
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import zstandard

from isoflop.corpus.read.bytes import BrokenStream, ByteStream, ReadLimits, open_bytes, split_lines

PACK = {".gz": gzip.compress, ".zst": zstandard.compress}
NOISE = random.Random(7).randbytes(300_000).hex().encode()


def _content(path: Path, limits: ReadLimits | None = None) -> tuple[bytes, str]:
    """(bytes that could be read, message of the break or "")"""
    parts = []
    with open_bytes(path, limits or ReadLimits()) as stream:
        try:
            while data := stream.read():
                parts.append(data)
        except BrokenStream as error:
            return b"".join(parts), str(error)
    return b"".join(parts), ""


@pytest.mark.parametrize("suffix", PACK)
def test_two_members_are_one_stream(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PACK[suffix](b"one") + PACK[suffix](b"two"))
    assert _content(path) == (b"onetwo", "")


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("lost", [1, 2, 9, 1000, 150_000])
def test_truncation_is_noticed_and_nothing_before_it_is_lost(tmp_path: Path, suffix: str, lost: int) -> None:
    packed = PACK[suffix](NOISE)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(packed[:-lost])
    data, problem = _content(path)
    assert problem.startswith("truncated")
    assert NOISE.startswith(data)
    reference = b""
    if suffix == ".gz":  # every byte that zlib can decode from what is there
        reference = zlib.decompressobj(31).decompress(packed[:-lost])
    assert len(data) >= len(reference)


@pytest.mark.parametrize("suffix", PACK)
def test_damage_inside_ends_the_stream_with_a_reason(tmp_path: Path, suffix: str) -> None:
    packed = bytearray(PACK[suffix](NOISE))
    packed[len(packed) // 2 : len(packed) // 2 + 50] = os.urandom(50)
    path = tmp_path / f"a{suffix}"
    path.write_bytes(bytes(packed) + b"trailing")
    data, problem = _content(path)
    assert problem
    assert len(data) <= len(NOISE)


def test_zstandard_with_checksum_and_skippable_frame_is_complete(tmp_path: Path) -> None:
    skippable = (0x184D2A50).to_bytes(4, "little") + (5).to_bytes(4, "little") + b"hello"
    frame = zstandard.ZstdCompressor(write_checksum=True, write_content_size=False).compress(b"a" * 500_000)
    path = tmp_path / "a.zst"
    path.write_bytes(skippable + frame)
    assert _content(path) == (b"a" * 500_000, "")


@pytest.mark.parametrize("suffix", PACK)
def test_bomb_stops_at_the_allowed_expansion(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(PACK[suffix](bytes(300_000_000)))
    with open_bytes(path, ReadLimits(max_expansion=10)) as stream:
        total, pieces = 0, 0
        with pytest.raises(BrokenStream, match=r"max_expansion = 10 .* raise limits.max_expansion"):
            while data := stream.read():
                total, pieces = total + len(data), pieces + 1
                assert len(data) <= 1 << 20
    assert total <= 64_000_000


def _lines(data: bytes, max_bytes: int, chunk: int) -> list:
    pieces = iter([data[i : i + chunk] for i in range(0, len(data), chunk)])
    return list(split_lines(ByteStream(pieces), max_bytes))


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
def test_lines_are_those_of_the_standard_library_for_any_chunk(chunk: int) -> None:
    rng = random.Random(chunk)
    data = bytes(rng.choice(b"ab\n") for _ in range(500))
    found = _lines(data, 1000, chunk)
    expected = [line.rstrip(b"\n") for line in io.BytesIO(data)]
    assert [line.data for line in found] == expected
    assert [line.number for line in found] == list(range(1, len(expected) + 1))


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_long_lines_are_passed_over_and_measured(chunk: int) -> None:
    found = _lines(b"ok\n" + b"x" * 50 + b"\nfine\n" + b"y" * 12, 10, chunk)
    assert [(line.data, line.n_bytes) for line in found] == [(b"ok", 2), (None, 50), (b"fine", 4), (None, 12)]


@pytest.mark.slow
def test_one_gigabyte_line_takes_no_memory(tmp_path: Path) -> None:
    """In a process of its own, whose peak memory is read from the operating system."""
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "first"}\n{"text": "')
        for _ in range(1000):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"text": "last"}\n')
    code = (
        "import sys; from isoflop.corpus.read.sources import *; bad = [];"
        "print([d.text for d in read_file(Path(sys.argv[1]), 'a', SourceOptions(path='a'), bad.append)],"
        "[(b.reason, b.n_bytes) for b in bad]);"
        "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"  # ru_maxrss begins at the parent's
    )
    run = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    found, kilobytes = run.stdout.splitlines()
    reason = "line is longer than limits.max_record_mb = 16"
    assert found == str(["first", "last"]) + " " + str([(reason, 1_000_000_012)])
    assert int(kilobytes) < 300_000
