"""Addresses of gRPC servers: host:port, dns:///host:port or unix:PATH."""

from __future__ import annotations

import ipaddress

# sockaddr_un holds 108 bytes, the last of them zero.
MAX_SOCKET_PATH_BYTES = 107


def split_address(address: str) -> tuple[str, int]:
    """Host, without brackets, and port of an address. Raises ValueError, telling what is wrong, when it has none."""
    host, separator, port = address.removeprefix("dns:///").rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be host:port or unix:PATH, such as 127.0.0.1:50051")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    if not host or "/" in host or (":" in host and not bracketed):
        raise ValueError("must be host:port or unix:PATH, such as 127.0.0.1:50051 or [::1]:50051")
    return host, int(port)


def check_address(address: str) -> None:
    """Raises ValueError, telling what is wrong, for what is no address of a server."""
    if not address.startswith("unix:"):
        split_address(address)
        return
    path = address.removeprefix("unix:")
    if not path:
        raise ValueError("unix: needs a path, such as unix:/run/kitchen.sock")
    if len(path.encode()) > MAX_SOCKET_PATH_BYTES:
        raise ValueError(f"a socket's path has at most {MAX_SOCKET_PATH_BYTES} bytes: choose a shorter one")


def is_local(address: str) -> bool:
    """Whether the address leads nowhere but to this machine: a unix socket, localhost, or a loopback IP address."""
    if address.startswith("unix:"):
        return True
    try:
        host, _ = split_address(address)
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name may lead anywhere
        return False
