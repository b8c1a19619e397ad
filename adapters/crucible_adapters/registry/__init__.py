"""Adapters of the ModelRegistry port."""
