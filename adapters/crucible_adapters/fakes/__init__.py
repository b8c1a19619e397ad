"""Fakes of the ports for tests: in memory, seeded, and the same answer to the same request."""
