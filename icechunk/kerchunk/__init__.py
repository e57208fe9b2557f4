"""Kerchunk references into repositories, and back out.

`import_references` makes virtual chunks of references that kerchunk made, in any of their
forms; `export_references` writes a snapshot as references that fsspec, zarr and xarray open.
"""

from icechunk.kerchunk.export import export_references
from icechunk.kerchunk.importer import ImportReport, import_references

__all__ = ["ImportReport", "export_references", "import_references"]
