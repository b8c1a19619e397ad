"""The `kitchen` command: a gRPC client with a server in its pocket."""

from crucible_kitchen.cli.app import main

__all__ = ["main"]
