"""Adapters of the ports: one folder a port, one module an adapter. They stand on the kit and their own SDK."""
