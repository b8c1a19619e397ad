"""Recorded stubs: exchanges with an adapter in readable files, which replay as an adapter or check another one."""
