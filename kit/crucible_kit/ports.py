"""The table of ports: what each is called, its service, and the generated classes that speak it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor

from crucible.port.blob.v1 import blob_pb2, blob_pb2_grpc
from crucible.port.dataset.v1 import dataset_pb2, dataset_pb2_grpc
from crucible.port.deployment.v1 import deployment_pb2, deployment_pb2_grpc
from crucible.port.embedding.v1 import embedding_pb2, embedding_pb2_grpc
from crucible.port.environment.v1 import environment_pb2, environment_pb2_grpc
from crucible.port.evaluator.v1 import evaluator_pb2, evaluator_pb2_grpc
from crucible.port.feedback.v1 import feedback_pb2, feedback_pb2_grpc
from crucible.port.hub.v1 import hub_pb2, hub_pb2_grpc
from crucible.port.llm.v1 import llm_pb2, llm_pb2_grpc
from crucible.port.metrics.v1 import metrics_pb2, metrics_pb2_grpc
from crucible.port.python_bridge.v1 import python_bridge_pb2, python_bridge_pb2_grpc
from crucible.port.registry.v1 import registry_pb2, registry_pb2_grpc
from crucible.port.reward.v1 import reward_pb2, reward_pb2_grpc
from crucible.port.sampling.v1 import sampling_pb2, sampling_pb2_grpc
from crucible.port.tokenizer.v1 import tokenizer_pb2, tokenizer_pb2_grpc
from crucible.port.training.v1 import training_pb2, training_pb2_grpc
from crucible.port.vector.v1 import vector_pb2, vector_pb2_grpc


@dataclass(frozen=True, kw_only=True)
class Port:
    """One port.

    Attributes:
        name: as manifests write it, such as blob.
        service: descriptor of its gRPC service.
        stub: generated stub class; takes a channel.
        servicer: generated base class of implementations.
        register: adds a servicer to a grpc server.
    """

    name: str
    service: ServiceDescriptor
    stub: type
    servicer: type
    register: Callable[[Any, Any], None]

    @property
    def descriptor_sha256(self) -> str:
        """SHA-256 of the file that defines the service, 64 hex digits, as the handshake tells it."""
        return hashlib.sha256(self.service.file.serialized_pb).hexdigest()


def _port(name: str, file: FileDescriptor, generated: Any, service: str) -> Port:
    return Port(
        name=name,
        service=file.services_by_name[service],
        stub=getattr(generated, f"{service}Stub"),
        servicer=getattr(generated, f"{service}Servicer"),
        register=getattr(generated, f"add_{service}Servicer_to_server"),
    )


PORTS: dict[str, Port] = {
    port.name: port
    for port in (
        _port("blob", blob_pb2.DESCRIPTOR, blob_pb2_grpc, "BlobStoreService"),
        _port("dataset", dataset_pb2.DESCRIPTOR, dataset_pb2_grpc, "DatasetService"),
        _port("deployment", deployment_pb2.DESCRIPTOR, deployment_pb2_grpc, "DeploymentService"),
        _port("embedding", embedding_pb2.DESCRIPTOR, embedding_pb2_grpc, "EmbeddingService"),
        _port("environment", environment_pb2.DESCRIPTOR, environment_pb2_grpc, "EnvironmentService"),
        _port("evaluator", evaluator_pb2.DESCRIPTOR, evaluator_pb2_grpc, "EvaluatorService"),
        _port("feedback", feedback_pb2.DESCRIPTOR, feedback_pb2_grpc, "FeedbackService"),
        _port("hub", hub_pb2.DESCRIPTOR, hub_pb2_grpc, "HubService"),
        _port("llm", llm_pb2.DESCRIPTOR, llm_pb2_grpc, "LLMService"),
        _port("metrics", metrics_pb2.DESCRIPTOR, metrics_pb2_grpc, "MetricsStoreService"),
        _port("python_bridge", python_bridge_pb2.DESCRIPTOR, python_bridge_pb2_grpc, "PythonBridgeService"),
        _port("registry", registry_pb2.DESCRIPTOR, registry_pb2_grpc, "ModelRegistryService"),
        _port("reward", reward_pb2.DESCRIPTOR, reward_pb2_grpc, "RewardService"),
        _port("sampling", sampling_pb2.DESCRIPTOR, sampling_pb2_grpc, "SamplingService"),
        _port("tokenizer", tokenizer_pb2.DESCRIPTOR, tokenizer_pb2_grpc, "TokenizerService"),
        _port("training", training_pb2.DESCRIPTOR, training_pb2_grpc, "TrainingService"),
        _port("vector", vector_pb2.DESCRIPTOR, vector_pb2_grpc, "VectorStoreService"),
    )
}
