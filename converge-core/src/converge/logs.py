"""Logs as the command writes them, for programs of your own."""

from __future__ import annotations

from converge.operations.logs import JsonFormatter, TextFormatter, set_up

__all__ = ["JsonFormatter", "TextFormatter", "set_up"]
