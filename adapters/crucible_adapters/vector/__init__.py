"""Vector stores: collections of vectors, searched by distance."""
