"""The store in a file: one SQLite database, shared by the processes of a host; it survives a power cut."""

from converge.builtin.file.store import FileStore

__all__ = ["FileStore"]
