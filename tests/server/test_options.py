from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crucible_kit.errors import InvalidArgumentError
from crucible_kit.settings import parse_settings
from crucible_kitchen.options import ServerOptions


def options(**given: Any) -> ServerOptions:
    return parse_settings(ServerOptions, {"data": "/data", **given}, where="options")


def test_every_option_is_described() -> None:
    assert [name for name, field in ServerOptions.model_fields.items() if not field.description] == []


def test_unknown_options_name_the_nearest() -> None:
    with pytest.raises(InvalidArgumentError, match="did you mean listen"):
        options(lissten="127.0.0.1:1")


@pytest.mark.parametrize(
    "address", ["127.0.0.1:50051", "localhost:0", "[::1]:50051", "127.8.8.8:1", "unix:/run/k.sock"]
)
def test_local_addresses_need_nothing(address: str) -> None:
    given = options(listen=address)
    assert given.is_local
    assert given.allowed_roots is None


@pytest.mark.parametrize("address", ["0.0.0.0:50051", "[::]:50051", "10.0.0.1:1", "kitchen.example:50051"])
def test_other_addresses_need_tls_and_known_callers_or_insecure(address: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"tls_cert and tls_key.*insecure.*127\.0\.0\.1"):
        options(listen=address)
    with pytest.raises(InvalidArgumentError, match="tokens or tls_client_ca"):
        options(listen=address, tls_cert="c.pem", tls_key="k.pem")
    for fix in (
        {"insecure": True},
        {"tls_cert": "c", "tls_key": "k", "tokens": "t"},
        {"tls_cert": "c", "tls_key": "k", "tls_client_ca": "a"},
    ):
        given = options(listen=address, **fix)
        assert not given.is_local
        assert given.allowed_roots == ()


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"listen": "50051"}, "host:port"),
        ({"listen": "127.0.0.1:"}, "host:port"),
        ({"listen": "127.0.0.1:70000"}, "host:port"),
        ({"listen": ":50051"}, "host:port"),
        ({"listen": "unix:"}, "needs a path"),
        ({"listen": "unix:/" + "x" * 107}, "at most 107 bytes"),
        ({"tls_cert": "c.pem"}, "go together"),
        ({"tls_client_ca": "a.pem"}, "needs tls_cert"),
        ({"max_concurrent_runs": 0}, "max_concurrent_runs"),
        ({"drain_seconds": -1}, "drain_seconds"),
    ],
)
def test_bad_values_are_refused(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidArgumentError, match=problem) as caught:
        options(**given)
    assert caught.value.reason == "CONFIG_INVALID"


def test_paths_are_absolute_and_roots_resolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    given = ServerOptions(data=Path("folder"), read_roots=(Path("link"),), listen="0.0.0.0:1", insecure=True)
    assert given.data == tmp_path / "folder"
    assert given.allowed_roots == ((tmp_path / "real").resolve(),)
    assert ServerOptions(data=Path("d"), read_roots=(Path("link"),)).allowed_roots == given.allowed_roots
