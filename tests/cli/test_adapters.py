"""kitchen adapters: what its commands ask for, and what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Kitchen

SECRET = "sk-0123456789"


def asked(answer: Any) -> dict[str, Any]:
    """The request that the fake kitchen got."""
    assert answer.code == 0, answer.err
    return json.loads(answer.lines[0]["detail"])


@pytest.mark.parametrize("words", [(), ("list",), ("probe", "blob")])
def test_adapters_are_shown(kitchen: Kitchen, words: tuple[str, ...]) -> None:
    row = kitchen("adapters", *words).out.splitlines()[1].split()
    assert row == ["blob", "builtin:local", "default", "READY", "local", "1"]
    assert kitchen("adapters", *words, "--json").lines[0]["state"] == "ADAPTER_STATE_READY"


def test_add_sends_the_whole_mapping(kitchen: Kitchen, tmp_path: Path) -> None:
    request = asked(
        kitchen(
            *("adapters", "add", "llm", "grpc:10.0.0.7:7443", "--json", "--force"),
            *("--option", "model=large", "--option", "retries=3", "--option", 'limits={"tokens": 0.5}'),
            *("--secret", "api_key=LLM_KEY", "--secret", "other=OTHER_KEY"),
            *("--tls-ca", "certs/ca.pem", "--tls-cert", "/c.pem", "--tls-key", "/k.pem", "--tls-server-name", "llm"),
            *("--token-env", "LLM_TOKEN", "--wait-seconds", "5"),
        )
    )
    assert request == {
        "port": "llm",
        "force": True,
        "mapping": {
            "adapter": "grpc:10.0.0.7:7443",
            "options": {"model": "large", "retries": 3, "limits": {"tokens": 0.5}},
            "secrets": {"api_key": "LLM_KEY", "other": "OTHER_KEY"},
            "tls": {"ca": str(tmp_path / "certs" / "ca.pem"), "cert": "/c.pem", "key": "/k.pem", "server_name": "llm"},
            "token_env": "LLM_TOKEN",
            "wait_seconds": 5,
        },
    }


def test_add_sends_no_more_than_it_is_given(kitchen: Kitchen) -> None:
    given = asked(kitchen("adapters", "add", "blob", "exec:node blob.mjs", "--json"))
    assert given == {"port": "blob", "mapping": {"adapter": "exec:node blob.mjs"}}
    given = asked(kitchen("adapters", "add", "blob", "grpc:a:1", "--tls-system", "--json"))
    assert given["mapping"] == {"adapter": "grpc:a:1", "tls": {}}
    assert asked(kitchen("adapters", "add", "blob", "grpc:a:1", "--insecure", "--json"))["mapping"]["insecure"]


def test_only_checking_says_so(kitchen: Kitchen) -> None:
    answer = kitchen("adapters", "add", "blob", "builtin:local", "--validate-only")
    assert (answer.code, answer.out) == (0, "")
    assert "could be mapped to builtin:local; nothing was changed" in answer.err


def test_refusals_are_told_with_their_reason(kitchen: Kitchen) -> None:
    answer = kitchen("adapters", "add", "training", "builtin:torch", "--json")
    assert (answer.code, answer.error["reason"]) == (1, "ADAPTER_IN_USE")
    assert kitchen("adapters", "add", "training", "builtin:torch", "--force").code == 0


def test_remove_shows_what_serves_the_port_now(kitchen: Kitchen) -> None:
    assert kitchen("adapters", "remove", "blob").out.splitlines()[1].split()[:2] == ["blob", "builtin:local"]
    answer = kitchen("adapters", "remove", "llm")
    assert (answer.code, answer.out) == (0, "")
    assert "no adapter serves the port llm any more" in answer.err


def test_a_secret_given_in_place_of_its_variable_is_not_shown(kitchen: Kitchen) -> None:
    answer = kitchen("adapters", "add", "blob", "grpc:unix:/s", "--secret", SECRET)
    assert answer.code == 2
    assert SECRET not in answer.err + answer.out


def test_changes_need_a_running_server(offline: Kitchen) -> None:
    for words in (("add", "blob", "builtin:local"), ("remove", "blob")):
        answer = offline("adapters", *words)
        assert answer.code == 2
        assert f"adapters {words[0]} needs --server" in answer.err and "manifest" in answer.err


def test_options_stand_behind_the_command(offline: Kitchen) -> None:
    answer = offline("adapters", "--json", "--server", "127.0.0.1:1", "list")
    assert answer.code == 2
    assert "give --server, --json behind the command" in answer.err or "give --json, --server behind" in answer.err


def test_without_a_server_the_manifest_is_shown_and_probed(offline: Kitchen, tmp_path: Path) -> None:
    manifest = tmp_path / "kitchen.yaml"
    manifest.write_text(f"ports: {{blob: {{adapter: 'builtin:local', options: {{root: {tmp_path}/b}}}}}}\n")
    shown = {each["port"]: each for each in offline("adapters", "--manifest", str(manifest), "--json").lines}
    assert shown["blob"]["source"] == "ADAPTER_SOURCE_MANIFEST"
    assert shown["blob"]["options"] == {"root": f"{tmp_path}/b"}
    assert shown["metrics"]["source"] == "ADAPTER_SOURCE_DEFAULT"
    probed = offline("adapters", "probe", "blob", "--manifest", str(manifest), "--json").lines[0]
    assert (probed["state"], probed["name"]) == ("ADAPTER_STATE_READY", "local-blobs")
    answer = offline("adapters", "probe", "nothing", "--json")
    assert (answer.code, answer.error["reason"]) == (1, "PORT_NOT_FOUND")
