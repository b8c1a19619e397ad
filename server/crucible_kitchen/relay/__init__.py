"""The ports, re-exported on the server's own address."""
