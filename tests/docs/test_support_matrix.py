"""The support matrix says of servers what `converge doctor` says."""

from __future__ import annotations

from pathlib import Path

from converge_store_sql.mysql.server import OLDEST, TESTED
from converge_store_sql.postgresql.inspection import TESTED as TESTED_POSTGRESQL
from converge_store_sql.sqlite.store import OLDEST as OLDEST_SQLITE

PAGE = Path(__file__).parents[2] / "docs/reference/support-matrix.md"


def test_the_page_has_the_versions_that_the_code_has() -> None:
    rows = {cells[1].strip(): cells for line in PAGE.read_text().splitlines() if len(cells := line.split("|")) > 4}
    for name, oldest in OLDEST.items():
        tested = ", ".join(".".join(map(str, version)) for version in TESTED[name])
        assert rows[name][2].strip() == tested, name
        assert f"before {oldest[0]}.{oldest[1]}" in rows[name][4], name
    assert all(str(major) in rows["PostgreSQL"][2] for major in TESTED_POSTGRESQL)
    sqlite = next(cells for name, cells in rows.items() if name.startswith("SQLite"))
    assert f"before {OLDEST_SQLITE[0]}.{OLDEST_SQLITE[1]}" in sqlite[4]
