"""The methods of the re-exported ports: what role each takes, and which go on while the server drains."""

from __future__ import annotations

from typing import Literal

from crucible_kit.ports import PORTS

_READS = {
    "blob": ("StatBlob", "ReadBlob", "ListBlobs"),
    "dataset": ("FindDataset", "GetDatasetInfo", "ReadRows"),
    "deployment": ("GetDeployment", "ListDeployments", "CheckHealth", "GetDeploymentMetrics"),
    "embedding": ("ListModels",),
    "environment": ("ListEnvironments",),
    "evaluator": ("ListTasks", "GenerateReport"),
    "feedback": ("CheckTriggers", "ExportExamples", "ExportPreferencePairs", "GetDriftStatus", "GetQualityMetrics"),
    "hub": ("GetRepoInfo", "ListRepoFiles", "DownloadFile"),
    "llm": ("ListModels",),
    "metrics": ("QueryMetrics", "GetLatestMetrics", "ListMetricNames"),
    "python_bridge": ("ListLibraries",),
    "registry": ("GetVersion", "ListVersions", "GetLineage"),
    "reward": ("ListRewards",),
    "sampling": ("AwaitOperation",),
    "training": ("GetTrainingSession", "AwaitOperation", "ReadCheckpointFile"),
    "vector": ("GetCollection", "ListCollections", "QueryItems", "ListItems"),
}
_ADMIN = {
    # What others use is changed.
    "deployment": ("DeployModel", "UpdateDeployment", "TerminateDeployment", "SetTrafficWeight"),
    # The server's own account on a hub stands behind an upload.
    "hub": ("UploadFile",),
    # A library's functions may open files and addresses that the server keeps from its clients.
    "python_bridge": (
        "OpenSession",
        "CallFunction",
        "StreamFunction",
        "CallMethod",
        "GetAttribute",
        "ReleaseRef",
        "CloseSession",
    ),
}
# A client that tidies up is let through to the end.
_FREEING = {
    "dataset": ("CloseDataset",),
    "environment": ("Close",),
    "python_bridge": ("ReleaseRef", "CloseSession"),
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
"""Role by full method name: reading is `read`; what creates, changes, computes or writes is `run`; what acts beyond
this server in its name is `admin`.
"""
PORT_MUTATIONS = frozenset(path for path, role in PORT_ROLES.items() if role != "read") - _paths(_FREEING)
"""What a draining server refuses."""
