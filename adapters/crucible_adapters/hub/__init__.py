"""Adapters of the HubClient port."""
