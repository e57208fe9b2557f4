"""Suites and storages for testing what is built on, or into, this library."""

from icechunk.storage.wrappers import CountingStorage, FaultyStorage, LatencyStorage

__all__ = ["CountingStorage", "FaultyStorage", "LatencyStorage"]
