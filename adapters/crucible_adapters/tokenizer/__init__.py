"""Adapters of the TokenizerClient port."""
