"""Training and sampling of transformers models on torch, served as a process of its own."""
