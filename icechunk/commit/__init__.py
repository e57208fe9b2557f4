"""A commit: what it contradicts, what it consists of, and the put that makes it visible."""
