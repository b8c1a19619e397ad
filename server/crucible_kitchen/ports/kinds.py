"""The kinds of mappings: one place where each finds how its adapters are opened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from crucible_kit.errors import UnimplementedError
from crucible_kitchen.ports.binding import Kind, Opening
from crucible_kitchen.ports.executable import check_exec, open_exec
from crucible_kitchen.ports.in_process import check_loaded, open_loaded
from crucible_kitchen.ports.remote import check_grpc, open_grpc


def _no_attachments(opening: Opening) -> NoReturn:
    raise UnimplementedError(
        f"{opening.where}: this server takes no adapters that call it ({opening.mapping.adapter}): map the port "
        f"{opening.port} to a grpc: or exec: adapter",
        reason="CAPABILITY_MISSING",
        metadata={"field": opening.where, "port": opening.port, "adapter": opening.mapping.adapter},
    )


_LOADED = Kind(open=open_loaded, check=check_loaded)
KINDS: Mapping[str, Kind] = {
    "builtin": _LOADED,
    "python": _LOADED,
    "exec": Kind(open=open_exec, check=check_exec),
    "grpc": Kind(open=open_grpc, check=check_grpc),
    # A server that adapters can call puts its own kind in this one's place: see PortHost.open.
    "attach": Kind(open=_no_attachments, check=_no_attachments),
}
