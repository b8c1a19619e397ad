"""The server: a gRPC runtime for durable, deterministic, observable post-training runs."""
