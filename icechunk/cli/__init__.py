"""The command `icechunk`: what the library does, from a terminal."""
