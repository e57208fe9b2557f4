"""Archives of files as one dataset: scanned, compared, placed, and reported on."""
