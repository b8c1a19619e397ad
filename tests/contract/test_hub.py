"""HubClient: repositories as folders of this machine, named by what they hold."""

from __future__ import annotations

import asyncio
import hashlib
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from crucible.port.hub.v1 import hub_pb2
from crucible_adapters.builtin import weights as builtin_models
from crucible_adapters.fakes.hub import FakeHub, FakeHubOptions
from crucible_adapters.hub.huggingface import HuggingFaceHub
from crucible_adapters.hub.local import LocalHub, LocalHubOptions
from crucible_adapters.huggingface.options import HuggingFaceOptions
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from tests.contract.conftest import Binding
from tests.contract.refusals import refused

CHUNK = 256 * 1024
FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 1025, "empty": b"", "sub/deep/x.txt": b"x"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "hub"


def local_hub(context: AdapterContext) -> LocalHub:
    return LocalHub(LocalHubOptions(), context)


def huggingface_hub(context: AdapterContext) -> HuggingFaceHub:
    """With a hub that is not there: nothing here may ask it."""
    return HuggingFaceHub(HuggingFaceOptions(endpoint="http://127.0.0.1:9"), context)


MakeHub = Callable[[AdapterContext], LocalHub | HuggingFaceHub]


@pytest.fixture(params=[local_hub, huggingface_hub])
def make_hub(request: pytest.FixtureRequest) -> MakeHub:
    """Every adapter that has builtin models and folders."""
    return request.param


@pytest.fixture
async def stub(binding: Binding, make_hub: MakeHub, context: AdapterContext) -> Any:
    return await binding.stub(make_hub(context))


@pytest.fixture
async def root_stub(binding: Binding, root: Path, context: AdapterContext) -> Any:
    """The adapter that has owner/name in folders."""
    return await binding.stub(LocalHub(LocalHubOptions(root=root), context))


@pytest.fixture(params=["local", "fake"])
async def named_stub(request: pytest.FixtureRequest, binding: Binding, root: Path, context: AdapterContext) -> Any:
    """Every adapter that stores uploads to owner/name on this machine."""
    if request.param == "fake":
        return await binding.stub(FakeHub(FakeHubOptions(), context))
    return await binding.stub(LocalHub(LocalHubOptions(root=root), context))


@dataclass(frozen=True)
class Repo:
    """A repository that holds FILES, and what serves it."""

    stub: Any
    name: object


@pytest.fixture(params=["folder of local", "folder of huggingface", "name of local", "name of fake"])
async def repo(
    request: pytest.FixtureRequest, binding: Binding, root: Path, context: AdapterContext, tmp_path: Path
) -> Repo:
    if request.param == "name of fake":
        stub = await binding.stub(FakeHub(FakeHubOptions(), context))
        for path, data in FILES.items():
            await upload(stub, "me/model", path, data)
        return Repo(stub, "me/model")
    if request.param == "name of local":
        make_repo(root / "me" / "model")
        return Repo(await binding.stub(LocalHub(LocalHubOptions(root=root), context)), "me/model")
    make = local_hub if request.param == "folder of local" else huggingface_hub
    return Repo(await binding.stub(make(context)), make_repo(tmp_path / "model"))


def make_repo(folder: Path) -> Path:
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("not part of it")
    return folder


def revision_of(files: dict[str, bytes]) -> str:
    lines = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def ref(repo: object, revision: str = "") -> hub_pb2.RepoRef:
    return hub_pb2.RepoRef(repo=str(repo), revision=revision)


async def info(stub: Any, repo: object, revision: str = "") -> hub_pb2.GetRepoInfoResponse:
    return await stub.GetRepoInfo(hub_pb2.GetRepoInfoRequest(ref=ref(repo, revision)))


async def download(stub: Any, repo: object, path: str) -> list[hub_pb2.DownloadFileResponse]:
    request = hub_pb2.DownloadFileRequest(ref=ref(repo), path=path)
    return [response async for response in stub.DownloadFile(request)]


async def upload(stub: Any, repo: object, path: str, data: bytes, sha256: str = "", revision: str = "") -> Any:
    async def requests() -> AsyncIterator[hub_pb2.UploadFileRequest]:
        header = hub_pb2.UploadFileHeader(
            ref=ref(repo, revision), path=path, sha256=sha256 or hashlib.sha256(data).hexdigest()
        )
        yield hub_pb2.UploadFileRequest(header=header)
        for place in range(0, len(data), CHUNK):
            yield hub_pb2.UploadFileRequest(chunk=data[place : place + CHUNK])

    return await stub.UploadFile(requests())


async def test_a_repository_is_described_by_what_it_holds(repo: Repo) -> None:
    response = await info(repo.stub, repo.name)
    assert response.ref == ref(repo.name, revision_of(FILES))
    assert (response.num_files, response.size_bytes) == (4, sum(map(len, FILES.values())))
    assert response.HasField("update_time")


async def test_a_folder_has_changed_when_its_newest_file_has(stub: Any, tmp_path: Path) -> None:
    folder = make_repo(tmp_path / "model")
    response = await info(stub, folder)
    newest = max((folder / name).stat().st_mtime_ns for name in FILES)
    assert response.update_time.ToNanoseconds() == newest


async def test_a_changed_file_is_another_revision(stub: Any, tmp_path: Path) -> None:
    folder = make_repo(tmp_path / "model")
    before = (await info(stub, folder)).ref.revision
    (folder / "config.json").write_bytes(b'{"a": 1}')
    after = (await info(stub, folder)).ref.revision
    assert after == revision_of(FILES | {"config.json": b'{"a": 1}'})
    await info(stub, folder, after)
    with refused(NotFoundError, "REVISION_NOT_FOUND", says=after):
        await info(stub, folder, before)


async def test_a_snapshot_of_a_folder_is_the_folder(stub: Any, tmp_path: Path) -> None:
    folder = make_repo(tmp_path / "model")
    for patterns in ([], ["*.json"]):
        request = hub_pb2.SnapshotRepoRequest(ref=ref(folder), allow_patterns=patterns)
        response = await stub.SnapshotRepo(request)
        assert Path(response.local_path) == folder
        assert response.ref == ref(folder, revision_of(FILES))


async def test_files_are_listed_by_path_with_their_hashes(repo: Repo) -> None:
    files, token = [], ""
    while True:
        request = hub_pb2.ListRepoFilesRequest(ref=ref(repo.name), page_size=3, page_token=token)
        response = await repo.stub.ListRepoFiles(request)
        files.extend((each.path, each.size_bytes, each.sha256) for each in response.files)
        token = response.next_page_token
        if not token:
            break
    assert files == [(name, len(data), hashlib.sha256(data).hexdigest()) for name, data in sorted(FILES.items())]
    request = hub_pb2.ListRepoFilesRequest(ref=ref(repo.name), page_size=1)
    token = (await repo.stub.ListRepoFiles(request)).next_page_token
    other = hub_pb2.ListRepoFilesRequest(ref=ref("builtin:tiny-qwen3"), page_token=token)
    with refused(InvalidArgumentError, "PAGE_TOKEN_INVALID", field="page_token"):
        await repo.stub.ListRepoFiles(other)


async def test_files_download_in_checked_chunks(repo: Repo) -> None:
    for name, data in FILES.items():
        responses = await download(repo.stub, repo.name, name)
        assert b"".join(each.data for each in responses) == data
        assert [each.offset for each in responses] == list(range(0, max(len(data), 1), CHUNK))
        assert all(each.crc32 == zlib.crc32(each.data) and len(each.data) <= CHUNK for each in responses)


async def test_only_the_repository_s_own_files_download(repo: Repo, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    for path in ("missing.json", "sub", ".git/HEAD"):
        with refused(NotFoundError, "HUB_FILE_NOT_FOUND", says=repr(path)):
            await download(repo.stub, repo.name, path)
    for path in ("../secret", "/etc/passwd", "sub/../../secret"):
        with refused(InvalidArgumentError, "FIELD_INVALID", field="path"):
            await download(repo.stub, repo.name, path)


async def test_a_snapshot_is_a_folder_with_the_files_that_were_asked_for(repo: Repo) -> None:
    request = hub_pb2.SnapshotRepoRequest(
        ref=ref(repo.name), allow_patterns=["*.json", "*.txt"], ignore_patterns=["sub/*"]
    )
    first = await repo.stub.SnapshotRepo(request)
    assert await repo.stub.SnapshotRepo(request) == first
    assert first.ref == ref(repo.name, revision_of(FILES))
    assert (Path(first.local_path) / "config.json").read_bytes() == FILES["config.json"]
    everything = await repo.stub.SnapshotRepo(hub_pb2.SnapshotRepoRequest(ref=ref(repo.name)))
    held = {name: (Path(everything.local_path) / name).read_bytes() for name in FILES}
    assert held == FILES


async def test_the_fake_brings_only_what_was_asked_for(binding: Binding, context: AdapterContext) -> None:
    stub = await binding.stub(FakeHub(FakeHubOptions(), context))
    request = hub_pb2.SnapshotRepoRequest(
        ref=ref("fake/model"), allow_patterns=["*"], ignore_patterns=["*.safetensors"]
    )
    folder = Path((await stub.SnapshotRepo(request)).local_path)
    assert folder.is_relative_to(context.data_dir)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "tokenizer.json"]


async def test_the_fake_gives_the_same_files_for_the_same_seed(binding: Binding, context: AdapterContext) -> None:
    stubs = [await binding.stub(FakeHub(FakeHubOptions(seed=seed), context)) for seed in (1, 1, 2)]
    revisions = [(await info(stub, "builtin:tiny-qwen3")).ref.revision for stub in stubs]
    assert revisions[0] == revisions[1] != revisions[2]
    with refused(NotFoundError, "REPO_NOT_FOUND", says="fake/model"):
        await info(stubs[0], "me/model")


async def test_paths_stay_within_the_allowed_folders(binding: Binding, make_hub: MakeHub, tmp_path: Path) -> None:
    allowed = make_repo(tmp_path / "allowed")
    (tmp_path / "secret").write_text("x")
    (allowed / "link").symlink_to(tmp_path / "secret")
    context = AdapterContext(data_dir=tmp_path, read_roots=(allowed,))
    stub = await binding.stub(make_hub(context))
    await info(stub, allowed)
    with refused(InvalidArgumentError, "PATH_NOT_ALLOWED", field="ref.repo"):
        await info(stub, make_repo(tmp_path / "outside"))
    with refused(InvalidArgumentError, "PATH_NOT_ALLOWED", field="path"):
        await download(stub, allowed, "link")


async def test_builtin_models_are_made_once_and_named_by_their_content(
    stub: Any, context: AdapterContext, binding: Binding, make_hub: MakeHub
) -> None:
    request = hub_pb2.SnapshotRepoRequest(ref=ref("builtin:tiny-qwen3"))
    both = await asyncio.gather(stub.SnapshotRepo(request), stub.SnapshotRepo(request))
    assert both[0] == both[1]
    folder = Path(both[0].local_path)
    assert folder.is_relative_to(context.data_dir)
    assert both[0].ref == ref("builtin:tiny-qwen3", builtin_models.content_hash("tiny-qwen3"))
    assert {"config.json", "tokenizer.json", "model.safetensors"} <= {path.name for path in folder.iterdir()}
    written = (folder / "model.safetensors").stat().st_mtime_ns
    again = await binding.stub(make_hub(context))
    assert await again.SnapshotRepo(request) == both[0]
    assert (folder / "model.safetensors").stat().st_mtime_ns == written


async def test_a_damaged_builtin_is_refused(local: Binding, make_hub: MakeHub, context: AdapterContext) -> None:
    stub = await local.stub(make_hub(context))
    folder = Path((await stub.SnapshotRepo(hub_pb2.SnapshotRepoRequest(ref=ref("builtin:tiny-qwen3")))).local_path)
    (folder / "config.json").write_text("{}")
    again = await local.stub(make_hub(context))
    with refused(FailedPreconditionError, "BUILTIN_DAMAGED", says=str(folder)):
        await info(again, "builtin:tiny-qwen3")


async def test_owner_and_name_are_looked_for_below_the_root(root_stub: Any, root: Path) -> None:
    with refused(NotFoundError, "REPO_NOT_FOUND", says=f"no network and looks only in {root}"):
        await info(root_stub, "Qwen/Qwen3-0.6B")
    make_repo(root / "Qwen" / "Qwen3-0.6B")
    assert (await info(root_stub, "Qwen/Qwen3-0.6B")).num_files == 4


async def test_what_is_not_there_is_refused(stub: Any, tmp_path: Path) -> None:
    with refused(NotFoundError, "REPO_NOT_FOUND", says="did you mean tiny-qwen3?"):
        await info(stub, "builtin:tiny-qwen")
    with refused(NotFoundError, "REPO_NOT_FOUND", says="no such folder"):
        await info(stub, tmp_path / "missing")


async def test_what_is_no_name_is_refused(repo: Repo, tmp_path: Path) -> None:
    for name in ("gpt2", "a/b/c", "../x", "./x", "owner/..", "a b/c"):
        with refused(InvalidArgumentError, "FIELD_INVALID", field="ref.repo"):
            await info(repo.stub, name)
    for name in ("builtin:tiny-qwen", tmp_path / "missing"):
        with refused(NotFoundError, "REPO_NOT_FOUND"):
            await info(repo.stub, name)
    with refused(NotFoundError, "REVISION_NOT_FOUND", says="0" * 40):
        await info(repo.stub, repo.name, "0" * 40)


async def test_an_upload_makes_a_revision(named_stub: Any) -> None:
    stub = named_stub
    files: dict[str, bytes] = {}
    for path, data in (
        ("config.json", b"{}"),
        ("sub/w.bin", b"\1" * (CHUNK + 1)),
        ("empty", b""),
        ("config.json", b"2"),
    ):
        response = await upload(stub, "me/model", path, data)
        files[path] = data
        assert response.ref == ref("me/model", revision_of(files))
    for path, data in files.items():
        assert b"".join(each.data for each in await download(stub, "me/model", path)) == data
    current = (await info(stub, "me/model")).ref.revision
    await upload(stub, "me/model", "more", b"x", revision=current)
    with refused(NotFoundError, "REVISION_NOT_FOUND"):
        await upload(stub, "me/model", "more", b"y", revision=current)
    with refused(NotFoundError, "REVISION_NOT_FOUND"):
        await upload(stub, "me/new", "more", b"y", revision=current)
    assert [each.data for each in await download(stub, "me/model", "more")] == [b"x"]


async def test_an_upload_is_a_file_below_the_root(root_stub: Any, binding: Binding, root: Path) -> None:
    await upload(root_stub, "me/model", "sub/more", b"x")
    await binding.stop()
    assert (root / "me/model/sub/more").read_bytes() == b"x"


async def test_a_damaged_or_broken_upload_leaves_what_was_there(named_stub: Any, binding: Binding, root: Path) -> None:
    stub = named_stub
    await upload(stub, "me/model", "a", b"old")
    with refused(DataLossError, "HUB_FILE_CORRUPT", says="nothing was stored"):
        await upload(stub, "me/model", "a", b"new", sha256="0" * 64)

    async def failing() -> AsyncIterator[hub_pb2.UploadFileRequest]:
        header = hub_pb2.UploadFileHeader(ref=ref("me/model"), path="a", sha256="0" * 64)
        yield hub_pb2.UploadFileRequest(header=header)
        yield hub_pb2.UploadFileRequest(chunk=b"ne")
        raise LookupError("gone")

    with pytest.raises(LookupError):
        await stub.UploadFile(failing())
    assert [each.data for each in await download(stub, "me/model", "a")] == [b"old"]
    assert (await info(stub, "me/model")).num_files == 1
    await binding.stop()
    assert [path.name for path in root.rglob("*") if path.is_file()] in ([], ["a"])


async def test_uploads_go_only_into_named_repositories(repo: Repo, tmp_path: Path) -> None:
    stub = repo.stub
    for name in (tmp_path, "builtin:tiny-qwen3"):
        with refused(FailedPreconditionError, "REPO_READ_ONLY", says="owner/name"):
            await upload(stub, name, "x", b"x")
    # .git is no part of a repository, on a disk or on a hub.
    for path in ("../x", "/x", "a//b", ".git/config", ""):
        with refused(InvalidArgumentError, "FIELD_INVALID", field="header.path"):
            await upload(stub, "me/model", path, b"x")
    with refused(InvalidArgumentError, "FIELD_INVALID", field="header.ref.repo"):
        await upload(stub, "../model", "x", b"x")


async def test_an_upload_is_a_header_and_chunks(repo: Repo) -> None:
    async def only(*requests: hub_pb2.UploadFileRequest) -> AsyncIterator[hub_pb2.UploadFileRequest]:
        for request in requests:
            yield request

    for requests in ((), (hub_pb2.UploadFileRequest(chunk=b"x"),)):
        with refused(InvalidArgumentError, "FIELD_INVALID", field="header"):
            await repo.stub.UploadFile(only(*requests))


async def test_files_and_folders_do_not_take_each_other_s_place(named_stub: Any) -> None:
    await upload(named_stub, "me/model", "a/b", b"x")
    for path in ("a", "a/b/c"):
        with refused(InvalidArgumentError, "FIELD_INVALID", field="header.path"):
            await upload(named_stub, "me/model", path, b"x")
