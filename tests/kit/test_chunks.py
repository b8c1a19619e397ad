"""Chunked reads, checksums, and files that appear whole or not at all."""

from __future__ import annotations

import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from crucible_kit.chunks import CHUNK_BYTES, atomic_file, canonical_json, check_crc, crc32, read_chunks, sha256_file
from crucible_kit.errors import DataLossError


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
@pytest.mark.parametrize(("offset", "limit"), [(0, 0), (1, 0), (0, 5), (7, CHUNK_BYTES + 3)])
def test_chunks_cover_the_range(tmp_path: Path, size: int, offset: int, limit: int) -> None:
    data = bytes(index % 251 for index in range(size))
    path = tmp_path / "file"
    path.write_bytes(data)
    chunks = list(read_chunks(path, offset, limit))
    expected = data[offset : offset + limit] if limit else data[offset:]
    assert b"".join(part for _, part in chunks) == expected
    assert all(len(part) <= CHUNK_BYTES for _, part in chunks)
    place = offset
    for start, part in chunks:
        assert start == place
        place += len(part)
    assert len(chunks) >= 1


def test_checksums(tmp_path: Path) -> None:
    assert crc32(b"123456789") == 0xCBF43926  # the check value of CRC-32/ISO-HDLC
    check_crc(b"abc", zlib.crc32(b"abc"), "chunk 0")
    with pytest.raises(DataLossError, match="chunk 0") as caught:
        check_crc(b"abd", zlib.crc32(b"abc"), "chunk 0")
    assert caught.value.reason == "CHUNK_CORRUPT"
    (tmp_path / "f").write_bytes(b"abc")
    assert sha256_file(tmp_path / "f") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_canonical_json_does_not_depend_on_order() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == canonical_json({"a": "é", "b": [1, 2.5]})
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"é","b":1}'.encode()


def test_a_file_appears_when_its_block_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    with atomic_file(path) as file:
        file.write(b"content")
        assert not path.exists()
    assert path.read_bytes() == b"content"
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_file(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_killed_writer_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    code = (
        "import os, signal, sys; from pathlib import Path; from crucible_kit.chunks import atomic_file\n"
        "with atomic_file(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
