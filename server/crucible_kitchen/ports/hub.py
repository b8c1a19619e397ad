"""What of a model's repository is brought to this machine."""

from __future__ import annotations

from crucible.port.hub.v1 import hub_pb2

SNAPSHOT_SECONDS = 3600.0
TOKENIZER_FILES = ("tokenizer*", "*.jinja", "special_tokens_map.json", "added_tokens.json", "generation_config.json")
# Weights in other formats than safetensors can hold code.
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt", "tokenizer*")
# Copies of the weights for other programs.
_NEEDLESS_FILES = ("*/*", "consolidated*")


def snapshot_request(repo: str, files: tuple[str, ...] = MODEL_FILES) -> hub_pb2.SnapshotRepoRequest:
    """Asks for the files of a repository that match one of the patterns, without what lies in its folders."""
    return hub_pb2.SnapshotRepoRequest(
        ref=hub_pb2.RepoRef(repo=repo), allow_patterns=files, ignore_patterns=_NEEDLESS_FILES
    )
