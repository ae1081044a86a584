"""Pages of the documentation that are made from the code: `python tests/docs/made_pages.py` writes them again, and
`test_made_pages.py` holds that they are as they would be made.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import report_cards

from converge.testing import DiscoveryContract, StoreContract, StreamTransportContract, TaskContract
from converge.testing.clauses import CLAUSES, cited

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
KITS = {
    "S": ("Stores", "store-contract.md", StoreContract),
    "T": ("A task's life", "task-contract.md", TaskContract),
    "C": ("Transports", "transport-contract.md", StreamTransportContract),
    "D": ("Discoveries", "discovery-contract.md", DiscoveryContract),
}
HEAD = """# The tests of each clause

Which tests of the conformance kit test which clause. Their modules are below `converge.testing`; `pytest -k NAME` runs
one on your backend, and a failure begins with the broken clause. This page is generated from the kit.
"""


def clause_tests() -> str:
    """Return the page that lists the tests of each clause."""
    parts = [HEAD]
    for letter, (title, page, kit) in KITS.items():
        tests = [method for name, method in inspect.getmembers(kit, inspect.isfunction) if name.startswith("test_")]
        parts.append(f"\n## {title}\n\nThe clauses are on [their page]({page}).\n")
        for clause in [name for name in CLAUSES if name.startswith(letter)]:
            # The tests whose own clause it is come first.
            found = [one for one in tests if clause in cited(one)]
            found.sort(key=lambda one: (cited(one)[0] != clause, one.__module__, one.__name__))
            lines = [f"* `{one.__name__}` in `{one.__module__.removeprefix('converge.testing.')}`" for one in found]
            parts.append(f"\n### {clause}\n\n" + "\n".join(lines) + "\n")
    return "".join(parts)


def modules() -> str:
    """Return the page of the public modules, which the site fills from their docstrings."""
    names = re.findall(r"^\| (`converge[^|]*)\|", (DOCS / "reference/api.md").read_text(), re.MULTILINE)
    public = [name for row in names for name in re.findall(r"`([\w.]+)`", row)]
    public += ["converge_store_redis", "converge_store_sql", "converge_transport_tcp", "converge_transport_ws"]
    title = "API reference"
    parts = [f"{title}\n{'=' * len(title)}\n\nThe public modules, from their docstrings.\n"]
    # What `converge` re-exports has its home there; a name that two modules show is described in the first.
    for name in public:
        again = "   :no-index:\n" if name == "converge" else ""
        parts.append(f"\n{name}\n{'-' * len(name)}\n\n.. automodule:: {name}\n{again}")
    return "".join(parts)


MADE = {
    "reference/clause-tests.md": clause_tests,
    "reference/modules.rst": modules,
    "reference/report-cards.md": report_cards.page,
}


def main() -> None:
    """Write every page."""
    for name, make in MADE.items():
        (DOCS / name).write_text(make(), encoding="utf-8")


if __name__ == "__main__":
    main()
