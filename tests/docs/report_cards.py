"""The report cards of Converge's own backends, and the page that is made of them.

`python tests/docs/report_cards.py` lets `converge plugins check NAME --quick --report` check each plugin, or those that
are named, which takes minutes; it keeps what the cards say that does not change from run to run, and makes the page.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

KEPT = Path(__file__).with_name("report_cards.jsonl")
PAGE = Path(__file__).parents[2] / "docs/reference/report-cards.md"
PACKAGES = {
    "converge-core": ("memory", "file", "local", "static", "store"),
    "converge-store-redis": ("redis",),
    "converge-store-sql": ("sql",),
    "converge-transport-tcp": ("tcp",),
    "converge-transport-ws": ("ws",),
}
PLUGINS = [plugin for plugins in PACKAGES.values() for plugin in plugins]
DECLARED = ("distribution", "plugin", "kind", "backend", "contract", "features", "durability")
FOUND = ("tried", "not_tried", "not_applicable")
CHECK_SEC = 1_800
"""How long a check may take: that of the three databases takes minutes on a busy machine."""
HEAD = """# Report cards of the backends

What `converge plugins check NAME --quick` found of each backend that Converge brings, on a server of the check's own
where there is one: which clauses of the [contracts](clause-tests.md) it keeps, and which do not apply or were not
tried, and why. A clause in two columns was tried in part. A card with a broken clause is never kept. The class is the
best that the backend declares; `converge doctor` says which one a server gives. This page is made from the cards:
`python tests/docs/report_cards.py` checks each backend again, or those that are named, and writes it.

| package | backend | contract | declares | class | keeps | does not apply | not tried |
|---|---|---|---|---|---|---|---|
"""


def cards_of(plugin: str) -> list[dict[str, Any]]:
    """Check a plugin; return its cards, as they are kept.

    Raises:
        AssertionError: A clause is broken, or the plugin cannot be checked.
    """
    converge = [sys.executable, "-m", "converge", "plugins", "check", plugin, "--quick", "--report"]
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.jsonl"
        environment = os.environ | {"XDG_STATE_HOME": folder}
        done = subprocess.run(
            [*converge, str(report)], capture_output=True, text=True, timeout=CHECK_SEC, env=environment
        )
        assert done.returncode == 0, done.stdout + done.stderr
        cards = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    return [{name: card[name] for name in (*DECLARED, *FOUND)} for card in cards]


def kept() -> list[dict[str, Any]]:
    """Return the cards that are kept."""
    return [json.loads(line) for line in KEPT.read_text(encoding="utf-8").splitlines()]


def page() -> str:
    """Return the page."""
    rows = []
    for card in kept():
        cells = [card["distribution"], f"{card['kind']} `{card['backend']}`", str(card["contract"])]
        cells += [", ".join(card["features"]), card["durability"], card["tried"]]
        cells += ["; ".join(f"{name}: {why}" for name, why in card[left].items()) for left in FOUND[:0:-1]]
        rows.append("| " + " | ".join(cells) + " |\n")
    return HEAD + "".join(rows)


def main(named: list[str]) -> None:
    """Check the plugins that are named, else all; keep their cards and write the page."""
    cards = {plugin: [card for card in kept() if card["plugin"] == plugin] for plugin in PLUGINS if named}
    cards |= {plugin: cards_of(plugin) for plugin in named or PLUGINS}
    lines = [json.dumps(card, ensure_ascii=False) + "\n" for plugin in PLUGINS for card in cards[plugin]]
    KEPT.write_text("".join(lines), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
