"""Texts as vectors, from providers and models."""
