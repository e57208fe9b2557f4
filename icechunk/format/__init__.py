"""Bytes on disk and the values they stand for: no I/O, no event loop, no Zarr."""
