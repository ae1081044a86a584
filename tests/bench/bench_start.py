"""How long do `import converge` and `converge --help` take in a fresh process, and what is loaded that should not be?

    python tests/bench/bench_start.py [--rounds 10]

The medians of fresh processes, run in turn with a bare `python -c pass`, whose time is part of each figure. Drivers,
CLI and test libraries are named if they were loaded.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time

HEAVY = (
    "redis", "sqlalchemy", "asyncpg", "websockets", "pluggy", "cattrs", "rich", "typer", "click", "rich_click",
    "pytest", "_pytest", "hypothesis",
    "trio", "uvloop", "ssl", "asyncio", "cryptography", "converge.cli", "converge.testing", "converge.runtime",
)  # fmt: skip

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "import converge": [sys.executable, "-c", "import converge"],
    "from converge import Agent, Node, Task": [sys.executable, "-c", "from converge import Agent, Node, Task"],
    "converge --help": [sys.executable, "-m", "converge", "--help"],
}


def took(command: list[str]) -> float:
    """Return the milliseconds of one fresh process."""
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return (time.perf_counter() - began) * 1e3


def loaded(statement: str) -> list[str]:
    """Return which of the heavy modules a statement loads, and after them how many modules in all."""
    script = f"import sys; {statement}; print(*sys.modules)"
    names = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True).stdout.split()
    return [*(name for name in HEAVY if name in names), f"{len(names)} modules in all"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rounds = [
        {name: took(command) for name, command in COMMANDS.items()}
        for _ in range(3 if arguments.quick else arguments.rounds)
    ]
    results: dict[str, object] = {name: f"{statistics.median(one[name] for one in rounds):.0f} ms" for name in COMMANDS}
    for statement in ("import converge", "from converge import Agent, Node, Task", "import converge.cli"):
        results[f"loaded by {statement}"] = loaded(statement)
    if arguments.json:
        print(
            json.dumps(
                {
                    "v": 1,
                    "command": sys.argv,
                    "python": platform.python_version(),
                    "machine": platform.machine(),
                    "results": results,
                }
            )
        )
        return
    for name, found in results.items():
        print(f"{name}: {', '.join(found) if isinstance(found, list) else found}")


if __name__ == "__main__":
    main()
