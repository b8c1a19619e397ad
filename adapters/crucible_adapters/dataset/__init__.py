"""Adapters of the DatasetStore port."""
