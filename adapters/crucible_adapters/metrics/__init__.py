"""Adapters of the MetricsStore port."""
