"""Adapters that break one requirement each, on purpose."""
