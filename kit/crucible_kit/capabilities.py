"""The optional behaviour that adapters declare, by name: what each means, and the methods that only it has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Capability:
    """One capability string of the handshake.

    Attributes:
        port: whose behaviour it is.
        meaning: what an adapter that declares it does.
        methods: RPCs of the port that nobody needs to serve without it.
    """

    port: str
    meaning: str
    methods: tuple[str, ...] = ()


CAPABILITIES: dict[str, Capability] = {
    "dataset.streaming": Capability(port="dataset", meaning="OpenDataset takes `streaming`."),
    "embedding.dimension": Capability(port="embedding", meaning="EmbedTexts takes `dimension`."),
    "embedding.list_models": Capability(
        port="embedding", meaning="ListModels lists the models.", methods=("ListModels",)
    ),
    "embedding.text_use": Capability(port="embedding", meaning="EmbedTexts takes `use`."),
    "evaluator.checkpoint": Capability(port="evaluator", meaning="Checkpoints can be evaluated."),
    "evaluator.endpoint": Capability(
        port="evaluator", meaning="Servers with an OpenAI-compatible API can be evaluated."
    ),
    "hub.upload": Capability(port="hub", meaning="UploadFile stores files.", methods=("UploadFile",)),
    "llm.json_schema": Capability(port="llm", meaning="Requests may have `response_format`."),
    "llm.list_models": Capability(port="llm", meaning="ListModels lists the models.", methods=("ListModels",)),
    "llm.media_input": Capability(port="llm", meaning="Messages may hold media."),
    "llm.seed": Capability(port="llm", meaning="Requests may have `seed`."),
    "llm.stream": Capability(
        port="llm", meaning="StreamChat sends the reply's pieces as they come.", methods=("StreamChat",)
    ),
    "llm.thinking": Capability(port="llm", meaning="Requests may have `thinking_budget_tokens`."),
    "llm.tools": Capability(port="llm", meaning="Requests may have `tools`."),
    "python_bridge.stream": Capability(
        port="python_bridge", meaning="StreamFunction streams what a function yields.", methods=("StreamFunction",)
    ),
    "sampling.follow": Capability(
        port="sampling", meaning="Sessions follow the live weights of a training session of the same adapter."
    ),
    "sampling.stream": Capability(
        port="sampling", meaning="StreamSample sends tokens as they come.", methods=("StreamSample",)
    ),
    "training.checkpoint_files": Capability(
        port="training",
        meaning="Checkpoints can be read file by file and brought from elsewhere.",
        methods=("ReadCheckpointFile", "UploadCheckpoint"),
    ),
    "training.full": Capability(port="training", meaning="Sessions without `lora` train every weight."),
    "training.image_input": Capability(port="training", meaning="Data may hold images."),
    "training.local_model": Capability(
        port="training", meaning="`base_model` may be an absolute folder in transformers' format."
    ),
    "training.lora": Capability(port="training", meaning="Sessions with `lora` train an adapter."),
    "training.lora_modules": Capability(
        port="training", meaning="`lora` may have an `alpha` other than the rank, and `target_modules`."
    ),
}
"""Every capability that the contract knows. An adapter may declare others; nobody reads them."""

_BY_METHOD = {
    (capability.port, method): name for name, capability in CAPABILITIES.items() for method in capability.methods
}


def capability_of(method: str) -> str:
    """The capability that a method belongs to, by the method's full name (/package.Service/Method); empty: none, so
    that every adapter of the port serves it.
    """
    service, _, name = method.removeprefix("/").partition("/")
    parts = service.split(".")
    port = parts[2] if parts[:2] == ["crucible", "port"] and len(parts) > 3 else ""
    return _BY_METHOD.get((port, name), "")
