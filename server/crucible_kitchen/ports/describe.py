"""A port's adapter as AdapterAdminService tells of it, without secrets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crucible.adapter.v1 import adapter_pb2
from crucible.kitchen.v1 import adapter_admin_pb2
from crucible_kit.adapter import to_struct
from crucible_kit.ports import PORTS
from crucible_kit.redaction import MARK, redact_message
from crucible_kitchen.ports.handshake import config_schema
from crucible_kitchen.ports.mapping import PortMapping

STATES = {
    adapter_pb2.ProbeResponse.STATE_UNSPECIFIED: adapter_admin_pb2.ADAPTER_STATE_STARTING,
    adapter_pb2.ProbeResponse.STATE_READY: adapter_admin_pb2.ADAPTER_STATE_READY,
    adapter_pb2.ProbeResponse.STATE_STARTING: adapter_admin_pb2.ADAPTER_STATE_STARTING,
    adapter_pb2.ProbeResponse.STATE_DEGRADED: adapter_admin_pb2.ADAPTER_STATE_DEGRADED,
}
"""What an adapter's answer to a probe is called here."""


def describe(
    port: str,
    mapping: PortMapping,
    info: adapter_pb2.GetAdapterInfoResponse | None,
    *,
    source: adapter_admin_pb2.AdapterSource,
    options_schema: Mapping[str, Any],
    last_error: str,
) -> adapter_admin_pb2.Adapter:
    """The adapter as the last handshake left it.

    Args:
        info: that handshake; None: there was none, or its process has ended.
        options_schema: JSON Schema of the options; empty: that of the handshake.
        last_error: why it could not be made ready when that was last tried; empty: it could.
    """
    service = PORTS[port].service.full_name
    adapter = adapter_admin_pb2.Adapter(
        port=port,
        target=mapping.adapter,
        service=service,
        state=adapter_admin_pb2.ADAPTER_STATE_IDLE if info is None else adapter_admin_pb2.ADAPTER_STATE_READY,
        source=source,
        secrets=mapping.secrets,
        token_env=mapping.token_env,
        last_error=last_error,
    )
    schema = options_schema
    if info is not None:
        schema = schema or config_schema(info, port)
        adapter.name, adapter.version, adapter.instance_id = info.name, info.version, info.instance_id
        adapter.capabilities.extend(
            sorted(c for each in info.ports if each.service == service for c in each.capabilities)
        )
    adapter.options.CopyFrom(to_struct(_shown(mapping.options, schema)))
    if info is None and mapping.kind == "attach":
        put_state(adapter, adapter_admin_pb2.ADAPTER_STATE_DEGRADED, "no adapter is attached under this name")
    if last_error:
        put_state(adapter, adapter_admin_pb2.ADAPTER_STATE_DEGRADED, last_error)
    # What an adapter says of itself may hold anything.
    redact_message(adapter)
    return adapter


def put_state(
    adapter: adapter_admin_pb2.Adapter, state: adapter_admin_pb2.AdapterState, detail: str
) -> adapter_admin_pb2.Adapter:
    """The same message with another state."""
    adapter.state, adapter.detail = state, detail
    redact_message(adapter)
    return adapter


def _shown(options: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    """The options; those that their schema marks as write-only, as pydantic marks SecretStr, without their values."""
    properties = schema.get("properties", {})
    hidden = {name for name, each in properties.items() if isinstance(each, dict) and each.get("writeOnly")}
    return {name: MARK if name in hidden else value for name, value in options.items()}
