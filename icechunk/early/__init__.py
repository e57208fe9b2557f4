"""The API that Icechunk began with: one store that opens, checks out and commits."""
