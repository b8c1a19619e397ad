"""The server's side of the ports: manifests, the adapters behind them, and helpers that drive them."""
