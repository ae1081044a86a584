"""What only POSIX systems have. Whoever imports it elsewhere is told in one line what to do."""

from __future__ import annotations

from converge.errors import Unsupported

try:
    import fcntl
except ModuleNotFoundError:
    raise Unsupported("Converge locks files as Linux and macOS do, and Windows does not: run it in WSL") from None

__all__ = ["fcntl"]
