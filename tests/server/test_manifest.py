"""What a manifest may say, what it is refused for, and that the docs describe every key of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from crucible_kit import redaction
from crucible_kit.errors import InvalidArgumentError
from crucible_kitchen.ports import manifest as manifest_module
from crucible_kitchen.ports.added import FILE, next_generation, read_added, write_added
from crucible_kitchen.ports.manifest import Manifest, base_mappings, load_manifest, read_manifest
from crucible_kitchen.ports.mapping import PortMapping, TlsFiles
from crucible_kitchen.ports.secrets import read_secrets

DOCS = Path(__file__).parents[2] / "docs" / "manifest.md"
VALUE = "hf_AbCdEf0123456789"


def load(path: Path, **ports: Any) -> dict[str, PortMapping]:
    path.write_text(yaml.safe_dump({"ports": ports}))
    return read_manifest(path).ports


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kitchen.yaml"


def refusal(path: Path, **ports: Any) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as caught:
        load(path, **ports)
    assert caught.value.reason == "MANIFEST_INVALID"
    return caught.value


def test_a_text_stands_for_the_adapter_alone(path: Path) -> None:
    found = load(path, blob="builtin:local", metrics={"adapter": "grpc:unix:/run/m.sock"})
    assert found["blob"] == PortMapping(adapter="builtin:local")
    assert (found["metrics"].kind, found["metrics"].target) == ("grpc", "unix:/run/m.sock")
    assert found["metrics"].wait_seconds == 30


def test_a_command_is_a_line_or_a_list(path: Path) -> None:
    line: dict[str, Any] = {"adapter": "exec:node blob.js --root '/mnt/my blobs'"}
    words = {"command": ["node", "blob.js", "--root", "/mnt/my blobs"]}
    for written in (line, words, {**words, "adapter": "exec"}, {**words, "adapter": "exec:"}):
        found = load(path, blob=written)["blob"]
        assert found.arguments == ["node", "blob.js", "--root", "/mnt/my blobs"]
        assert found == PortMapping(**line)
        assert found.written() == line


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ("local", "must be builtin:NAME"),
        ("builtin:", "must be builtin:NAME"),
        ("ftp:x", "must be builtin:NAME"),
        ("python:module", "python:package.module:Class"),
        ("exec:'unclosed", "is no command line"),
        ("exec:  ", "must be builtin:NAME"),
        ("grpc:localhost", "host:port"),
        ("grpc:::1:5", r"\[::1\]:50051"),
        ("grpc:unix:", "needs a path"),
        ("attach:Not A Name", "small letters"),
        ({"command": []}, "list of texts"),
        ({"command": "node x"}, "list of texts"),
        ({"command": ["node"], "adapter": "exec:node"}, "leave one of the two out"),
        ({"command": ["node"], "adapter": "builtin:local"}, "leave one of the two out"),
        ({"options": {}}, "adapter: required"),
        ({"adapter": "builtin:local", "optoins": {}}, "did you mean options"),
        ({"adapter": "grpc:unix:/s", "tls": {"cafile": "x"}}, "did you mean ca"),
        ({"adapter": "grpc:unix:/s", "tls": {"cert": "x"}}, "cert and key go together"),
        ({"adapter": "builtin:local", "tls": {}}, "tls means nothing for builtin: adapters"),
        ({"adapter": "exec:node", "token_env": "TOKEN"}, "token_env means nothing for exec: adapters"),
        ({"adapter": "python:a:B", "wait_seconds": 5}, "wait_seconds means nothing for python: adapters"),
        ({"adapter": "grpc:unix:/s", "wait_seconds": 0}, "greater than 0"),
        ({"adapter": "grpc:unix:/s", "tls": {}, "insecure": True}, "leave one of the two out"),
        ({"adapter": "exec:node", "options": {"n": 2**53 + 1}}, "write it as a text"),
        ({"adapter": "exec:node", "options": {"n": float("nan")}}, "JSON values only"),
    ],
)
def test_bad_mappings_are_refused_with_the_key(path: Path, mapping: Any, says: str) -> None:
    error = refusal(path, blob=mapping)
    assert re.search(says, error.message), error.message
    assert error.message.startswith("manifest.ports.blob")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/s", "dns:///localhost:1"])
def test_plain_text_stays_on_this_machine(path: Path, address: str) -> None:
    assert load(path, blob=f"grpc:{address}")["blob"].target == address


@pytest.mark.parametrize("address", ["10.0.0.1:1", "localhost.example:1", "dns:///adapters.internal:1", "[fe80::1]:1"])
def test_plain_text_beyond_this_machine_is_refused(path: Path, address: str) -> None:
    error = refusal(path, blob=f"grpc:{address}")
    assert "plain text" in error.message and "insecure: true" in error.message
    for fix in ({"tls": {}}, {"insecure": True}):
        assert load(path, blob={"adapter": f"grpc:{address}", **fix})["blob"].target == address


def test_relative_tls_files_count_from_the_manifest(path: Path) -> None:
    tls = {"ca": "ca.pem", "cert": "/etc/me.pem", "key": "keys/me.key", "server_name": "blobs"}
    found = load(path, blob={"adapter": "grpc:10.0.0.1:1", "tls": tls})["blob"].tls
    assert found == TlsFiles(
        ca=path.parent / "ca.pem", cert=Path("/etc/me.pem"), key=path.parent / "keys/me.key", server_name="blobs"
    )


@pytest.mark.parametrize(
    "mapping",
    [
        {"secrets": {"api_key": VALUE}},
        {"secrets": {VALUE: "API_KEY"}},
        {"secrets": VALUE},
        {"secrets": [VALUE]},
        {"token_env": VALUE},
        {"token_env": [VALUE]},
    ],
)
def test_a_value_in_the_place_of_its_variable_is_not_shown(path: Path, mapping: dict[str, Any]) -> None:
    error = refusal(path, blob={"adapter": "grpc:unix:/s", **mapping})
    assert VALUE not in f"{error.message} {error.metadata} {error.fields}"
    assert "environment variable" in error.message or "a secret's name" in error.message


def test_secrets_are_read_by_name_and_kept_out_of_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOB_KEY", "key-of-the-test")
    monkeypatch.setenv("BLOB_TOKEN", "token-of-the-test")
    mapping = PortMapping(adapter="grpc:unix:/s", secrets={"api_key": "BLOB_KEY"}, token_env="BLOB_TOKEN")
    found = read_secrets("blob", mapping, where="manifest.ports.blob")
    assert (dict(found.secrets), found.token) == ({"api_key": "key-of-the-test"}, "token-of-the-test")
    assert redaction.redact("key-of-the-test, token-of-the-test") == f"{redaction.MARK}, {redaction.MARK}"


@pytest.mark.parametrize(
    ("value", "says"), [(None, "is not set"), ("", "holds 0 characters"), ("short", "holds 5 characters.*at least 6")]
)
def test_a_variable_that_can_t_be_used_is_named(monkeypatch: pytest.MonkeyPatch, value: str | None, says: str) -> None:
    monkeypatch.delenv("BLOB_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("BLOB_KEY", value)
    places: list[tuple[dict[str, Any], str]] = [
        ({"secrets": {"api_key": "BLOB_KEY"}}, "the secret api_key"),
        ({"token_env": "BLOB_KEY"}, "the token"),
    ]
    for given, what in places:
        mapping = PortMapping(adapter="grpc:unix:/s", **given)
        with pytest.raises(InvalidArgumentError, match=says) as caught:
            read_secrets("blob", mapping, where="manifest.ports.blob")
        assert caught.value.reason == "MANIFEST_INVALID"
        for part in ("BLOB_KEY", "the port blob", what):
            assert part in caught.value.message


def test_a_token_must_fit_into_a_header(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLOB_TOKEN", "two words of it")
    with pytest.raises(InvalidArgumentError, match="visible ASCII") as caught:
        read_secrets("blob", PortMapping(adapter="grpc:unix:/s", token_env="BLOB_TOKEN"), where="w")
    assert "two words" not in caught.value.message


def test_the_profile_tinker_says_that_its_adapter_is_not_installed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest_module, "find_adapter", lambda port, name: None)
    path.write_text("profile: tinker\n")
    with pytest.raises(InvalidArgumentError, match="builtin:tinker is not installed") as caught:
        load_manifest(path)
    assert caught.value.metadata["ports"] == "sampling training"
    path.write_text('profile: tinker\nports: {training: "builtin:torch"}\n')
    with pytest.raises(InvalidArgumentError, match=r"has it for sampling\. Install") as caught:
        load_manifest(path)
    path.write_text('profile: tinker\nports: {training: "builtin:torch", sampling: "builtin:torch"}\n')
    assert load_manifest(path)["training"].adapter == "builtin:torch"
    monkeypatch.setattr(manifest_module, "find_adapter", lambda port, name: object())
    path.write_text("profile: tinker\n")
    found = load_manifest(path)
    assert {found[port].adapter for port in ("training", "sampling")} == {"builtin:tinker"}
    assert found["training"].secrets == {"api_key": "TINKER_API_KEY"} and not found["blob"].secrets
    assert found["blob"].adapter == "builtin:local"


def test_fakes_are_for_the_profile_test(path: Path) -> None:
    for adapter in ("builtin:fake_blob", "python:tests.fault.fake_child:FAKE_ENGINE"):
        path.write_text(yaml.safe_dump({"ports": {"blob": adapter}}))
        with pytest.raises(InvalidArgumentError, match="only the profile test"):
            load_manifest(path)
        path.write_text(yaml.safe_dump({"profile": "test", "ports": {"blob": adapter}}))
        assert load_manifest(path)["blob"].adapter == adapter
    # A program or an address may be called anything.
    assert base_mappings(Manifest(ports={"blob": PortMapping(adapter="exec:fake_blob --port 1")}))


def test_added_mappings_are_read_as_they_were_written(tmp_path: Path) -> None:
    mappings = {
        "blob": PortMapping(
            adapter="grpc:10.0.0.1:1",
            options={"a": [1, {"b": None}], "c": 0.5},
            secrets={"api_key": "BLOB_KEY"},
            tls=TlsFiles(ca=Path("/ca.pem")),
            token_env="BLOB_TOKEN",
            wait_seconds=5,
        ),
        "metrics": PortMapping(adapter="exec:'my program' x"),
        "hub": PortMapping(adapter="grpc:10.0.0.1:1", tls=TlsFiles()),
    }
    assert read_added(tmp_path) == {}
    write_added(tmp_path, mappings)
    assert read_added(tmp_path) == mappings
    assert (tmp_path / FILE).stat().st_mode & 0o777 == 0o600
    assert [each.name for each in tmp_path.iterdir()] == [FILE]
    (tmp_path / FILE).write_text("ports: {blob: {adapter: 'nothing'}}")
    with pytest.raises(InvalidArgumentError, match=rf"^{FILE}\.ports\.blob\.adapter"):
        read_added(tmp_path)


def test_generations_go_on_after_a_restart(tmp_path: Path) -> None:
    assert [next_generation(tmp_path) for _ in range(3)] == [1, 2, 3]


def rows(model: type[BaseModel]) -> list[str]:
    return [f"| `{name}` | {field.description} |" for name, field in model.model_fields.items()]


@pytest.mark.parametrize("model", [Manifest, PortMapping, TlsFiles])
def test_the_docs_describe_every_key_in_the_model_s_words(model: type[BaseModel]) -> None:
    lines = DOCS.read_text().splitlines()
    assert [row for row in rows(model) if row not in lines] == []
