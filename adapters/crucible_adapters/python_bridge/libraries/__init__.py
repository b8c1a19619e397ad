"""The libraries' manifests, and the functions that some of their entries name. Only workers import the modules."""
