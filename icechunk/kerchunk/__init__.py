"""Kerchunk references into repositories, and back out.

`import_references` makes virtual chunks of references that kerchunk made, in any of their
forms; `export_references` writes a snapshot as references that fsspec, zarr and xarray open.
"""

try:
    from icechunk.kerchunk.export import export_references
    from icechunk.kerchunk.importer import ImportReport, import_references
except ModuleNotFoundError as error:
    raise ImportError(
        f"icechunk.kerchunk needs {error.name}: pip install 'icechunk[virtual]'"
    ) from error

__all__ = ["ImportReport", "export_references", "import_references"]
