"""Functions of Python libraries in worker processes with limits: the port python_bridge."""
