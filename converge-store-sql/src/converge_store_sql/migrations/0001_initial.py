"""Step 1: the tables of the first release."""

from __future__ import annotations

from converge_store_sql.tables import create_tables


def statements(network: str) -> str:
    """The statements of this step, run in one transaction."""
    return create_tables(network)
