"""The methods of the re-exported ports: what role each takes, and which go on while the server drains."""

from __future__ import annotations

from typing import Literal

from crucible_kit.ports import PORTS

_READS = {
    "blob": ("StatBlob", "ReadBlob", "ListBlobs"),
    "dataset": ("FindDataset", "GetDatasetInfo", "ReadRows"),
    "hub": ("GetRepoInfo", "ListRepoFiles", "DownloadFile"),
    "metrics": ("QueryMetrics", "GetLatestMetrics", "ListMetricNames"),
    "registry": ("GetVersion", "ListVersions", "GetLineage"),
    "sampling": ("AwaitOperation",),
    "training": ("GetTrainingSession", "AwaitOperation", "ReadCheckpointFile"),
}
# The server's own account on a hub stands behind an upload.
_ADMIN = {"hub": ("UploadFile",)}
# A client that tidies up is let through to the end.
_FREEING = {
    "dataset": ("CloseDataset",),
    "sampling": ("CancelOperation", "CloseSamplingSession"),
    "training": ("CancelOperation", "CloseTrainingSession"),
}


def _paths(methods: dict[str, tuple[str, ...]]) -> frozenset[str]:
    return frozenset(f"/{PORTS[port].service.full_name}/{name}" for port, names in methods.items() for name in names)


def _role(path: str) -> Literal["read", "run", "admin"]:
    if path in _paths(_ADMIN):
        return "admin"
    return "read" if path in _paths(_READS) else "run"


_ALL = tuple(f"/{port.service.full_name}/{method.name}" for port in PORTS.values() for method in port.service.methods)

PORT_SERVICES = tuple(port.service.full_name for port in PORTS.values())
"""Full names of the ports' services."""
PORT_ROLES: dict[str, Literal["read", "run", "admin"]] = {path: _role(path) for path in _ALL}
"""Role by full method name: reading is `read`; what creates, changes, computes or writes is `run`."""
PORT_MUTATIONS = frozenset(path for path, role in PORT_ROLES.items() if role != "read") - _paths(_FREEING)
"""What a draining server refuses."""
