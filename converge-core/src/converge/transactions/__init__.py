"""What a store offers with which tasks can be submitted within a transaction of the caller's."""

from __future__ import annotations

from converge.contracts.transactions import Side, Within
from converge.services.tasks.submitting.riding import submit_through

__all__ = ["Side", "Within", "submit_through"]
