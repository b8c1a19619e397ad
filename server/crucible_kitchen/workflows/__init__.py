"""Workflows as typed trees, the checks before a run, and the interpreter that walks them."""
