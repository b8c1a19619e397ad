"""Whatever moment a crash picks, a blob is its old or its new content, with the record that belongs to it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from crucible_adapters.blob.folder import BlobFolder
from crucible_adapters.blob.local import LocalBlobOptions, LocalBlobStore
from crucible_adapters.staging import StagedFile
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import NotFoundError

OLD, NEW = b"old content", b"new content"  # of one size: only a hash tells them apart


class Crash(BaseException):
    """The process ends here."""


def store(folder: BlobFolder, data: bytes, media_type: str) -> None:
    staged = StagedFile(folder.staging)
    staged.write(data)
    folder.commit("a/k", staged, media_type, create_only=False)


def crash_at(monkeypatch: pytest.MonkeyPatch, step: int, *, after: bool) -> None:
    """Crashes at the renaming with this number, from 0: before it takes effect, or after."""
    rename, count = os.rename, iter(range(100))

    def crashing(source: str | Path, target: str | Path) -> None:
        last = next(count) == step
        if last and not after:
            raise Crash
        rename(source, target)
        if last:
            raise Crash

    monkeypatch.setattr(os, "replace", crashing)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("replaces", [False, True])
def test_a_crash_leaves_one_of_the_two_contents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, replaces: bool, step: int, after: bool
) -> None:
    folder = BlobFolder(tmp_path)
    if replaces:
        store(folder, OLD, "text/old")
    with monkeypatch.context() as patch:
        crash_at(patch, step, after=after)
        with pytest.raises(Crash):
            store(folder, NEW, "text/new")

    recovered = BlobFolder(tmp_path)
    in_place = (step, after) >= (1, True)
    if not in_place and not replaces:
        with pytest.raises(NotFoundError):
            recovered.stat("a/k")
    else:
        expected, media_type = (NEW, "text/new") if in_place else (OLD, "text/old")
        file, record = recovered.open("a/k")
        with file:
            assert file.read() == expected
        assert record == (len(expected), hashlib.sha256(expected).hexdigest(), media_type)
    store(recovered, b"later", "text/later")
    assert recovered.stat("a/k").sha256 == hashlib.sha256(b"later").hexdigest()


async def test_what_a_killed_process_left_is_removed_at_start(context: AdapterContext) -> None:
    staging = BlobFolder(context.data_dir / "blobs").staging
    staging.mkdir(parents=True)
    (staging / "left").write_bytes(b"half")
    # Another server's, on the same folder, which is writing right now; and one that is complete and not yet in place.
    writing, complete = StagedFile(staging), StagedFile(staging)
    writing.write(b"half")
    complete.write(b"whole")
    kept = complete.finish()
    await LocalBlobStore(LocalBlobOptions(), context).close()
    assert (staging / "left").exists() is False
    assert len(list(staging.iterdir())) == 2
    assert kept.read_bytes() == b"whole"
    writing.discard()
    complete.discard()
    assert not list(staging.iterdir())
