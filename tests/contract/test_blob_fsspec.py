"""What `builtin:fsspec` takes, what it needs, and that stores of one URL are one."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from crucible_adapters.blob.fsspec import FsspecBlobOptions, FsspecBlobStore
from crucible_adapters.blob.local import LocalBlobOptions, LocalBlobStore
from crucible_kit.adapter import AdapterContext
from crucible_kit.errors import FailedPreconditionError, InvalidArgumentError
from crucible_kit.settings import parse_settings
from tests.contract.conftest import Binding
from tests.contract.refusals import refused
from tests.contract.test_blob import read, stat, write

NO_URLS = ["", "/folder", "http://host/a", "az://bucket", "file://", "file:///", "file://host/a", "s3://", "s3:///a"]
NO_URLS += [
    "s3://key:secret@bucket",
    "s3://bucket/a?b",
    "memory://a/../b",
    "s3://bucket/./a",
    "gs://",
    "gs:///a",
    "gs://t@bucket",
]


@pytest.mark.parametrize("url", NO_URLS)
def test_what_is_no_url_of_a_store_is_refused(url: str) -> None:
    with pytest.raises(ValidationError, match="url"):
        FsspecBlobOptions(url=url)


@pytest.mark.parametrize("name", ["key", "secret", "token", "username", "password"])
def test_secrets_are_no_options(name: str) -> None:
    with pytest.raises(ValidationError, match="give them as secrets"):
        FsspecBlobOptions(url="s3://bucket", storage_options={name: "value"})


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"service_account": "{}"}, "give them as secrets"),
        ({"endpoint": "value"}, "endpoint: .* with gs:// there are endpoint_url, anon"),
        ({"endpoint_url": "127.0.0.1:4443"}, "endpoint_url: "),
        ({"read_timeout": 0}, "read_timeout: "),
    ],
    ids=["secret", "unknown", "address", "timeout"],
)
def test_options_of_gs_are_checked(option: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=f"storage_options\n.*{says}"):
        FsspecBlobOptions(url="gs://bucket", storage_options=option)


@pytest.mark.parametrize("name", ["aws_secret_access_key", "aws_access_key_id", "aws_session_token", "SSECustomerKey"])
def test_secrets_are_not_within_options_either(name: str) -> None:
    with pytest.raises(ValidationError, match="give them as secrets"):
        FsspecBlobOptions(url="s3://bucket", storage_options={"client_kwargs": {name: "value"}})


@pytest.mark.parametrize(
    "given",
    [
        {"url": "s3://user:hunter2@bucket"},
        {"url": "ftp://user:hunter2@bucket"},
        {"url": "gs://bucket", "storage_options": {"token": "hunter2"}},
        {"url": "gs://bucket", "storage_options": {"tokken": "hunter2"}},
        {"url": "gs://bucket", "storage_options": {"endpoint_url": "http://user:hunter2@127.0.0.1:9"}},
        {"url": "s3://bucket", "storage_options": {"client_kwargs": {"aws_secret_access_key": "hunter2"}}},
        {"url": "s3://bucket", "storage_options": {"client_kwargs": {"endpoint_url": "http://user:hunter2@host"}}},
    ],
    ids=lambda given: " ".join(str(given).replace("hunter2", "").split("'")[1::2]),
)
def test_what_may_be_a_secret_is_refused_and_not_shown(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_settings(FsspecBlobOptions, given, where="options")
    assert "hunter2" not in f"{caught.value} {caught.value.fields}"


def test_options_of_s3_are_for_s3(context: AdapterContext) -> None:
    options = FsspecBlobOptions(url="memory://a", storage_options={"endpoint_url": "http://127.0.0.1"})
    with refused(InvalidArgumentError, "FIELD_INVALID", field="options.storage_options"):
        FsspecBlobStore(options, context)


@pytest.mark.parametrize(
    ("url", "package", "extra"),
    [
        ("s3://bucket", "s3fs", "s3"),
        ("gs://bucket", "google-cloud-storage", "gcs"),
        ("memory://a", "fsspec", "server"),
    ],
    ids=["s3", "gs", "memory"],
)
def test_a_library_that_is_not_installed_is_named_with_its_extra(
    url: str, package: str, extra: str, context: AdapterContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, module = importlib.util.find_spec, package.replace("-", ".")
    monkeypatch.setattr("crucible_adapters.blob.fsspec.find_spec", lambda name: None if name == module else found(name))
    with refused(FailedPreconditionError, "PACKAGE_MISSING", says=f"pip install 'crucible-kitchen[{extra}]'"):
        FsspecBlobStore(FsspecBlobOptions(url=url), context)


async def test_a_folder_may_be_served_by_either(tmp_path: Path, context: AdapterContext, local: Binding) -> None:
    root = tmp_path / "blobs"
    by_url = await local.stub(FsspecBlobStore(FsspecBlobOptions(url=root.as_uri()), context))
    ref = await write(by_url, "a/b", b"content", media_type="text/plain")
    assert (root / "a/b").read_bytes() == b"content"
    by_path = await local.stub(LocalBlobStore(LocalBlobOptions(root=root), context))
    assert await stat(by_path, "a/b") == ref


async def test_memory_is_the_process_s(tmp_path: Path, context: AdapterContext, local: Binding) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    url = f"memory:/{tmp_path}"
    stubs: list[Any] = [await local.stub(FsspecBlobStore(FsspecBlobOptions(url=url), context)) for _ in range(2)]
    ref = await write(stubs[0], "a/b", b"content", media_type="text/plain")
    assert ref.uri == f"{url}/a/b"
    assert await stat(stubs[1], "a/b") == ref
    assert MemoryFileSystem().cat_file(ref.uri) == b"content"
    MemoryFileSystem().pipe_file(f"{url}/given", b"given")
    assert await read(stubs[0], "given") == b"given"


_LOADS = """
import sys
from importlib.metadata import entry_points
from pathlib import Path
from crucible_kit.adapter import AdapterContext
[entry] = entry_points(group="crucible_kitchen.adapters", name="blob.fsspec")
kind = entry.load()
early = "fsspec" in sys.modules
for url in ("s3://bucket", "gs://bucket"):
    kind(kind.description.options(url=url), AdapterContext(data_dir=Path(sys.argv[1])))
libraries = ("s3fs", "botocore", "aiohttp", "google.cloud.storage", "google.auth", "requests")
print(early, [name for name in libraries if name in sys.modules])
"""


def test_its_libraries_are_loaded_when_they_are_needed(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOADS, str(tmp_path)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(maxsplit=1) == ["False", "[]\n"]
