"""The command `converge`: a module for each command, imported when it is used."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

import cyclopts

from converge.cli.failures import failed


def _app() -> cyclopts.App:
    app = cyclopts.App(
        name="converge",
        help="Networks of agents: run them, give them work, look at what they do.",
        version=_version,
        help_format="plaintext",  # our help has no markup, and a parser for some would be a fifth of the time that --help takes
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    app.command("converge.cli.run:run", name="run", help="Run agents until their pool is drained, or until SIGTERM or SIGINT.")
    app.command("converge.cli.submit:submit", name="submit", help="Submit tasks, from flags or from a file of JSON lines.")
    tasks = cyclopts.App(name="tasks", help="Look at tasks, and act on them.")
    tasks.command("converge.cli.tasks:list_tasks", name="list", help="List tasks.")
    tasks.command("converge.cli.tasks:show", name="show", help="Show one task with its history.")
    tasks.command("converge.cli.tasks:explain", name="explain", help="Tell why a task is, or is not, claimed.")
    tasks.command("converge.cli.tasks:cancel", name="cancel", help="Cancel tasks that have not ended.")
    tasks.command("converge.cli.tasks:retry", name="retry", help="Submit a copy of each task that failed or was cancelled.")
    pools = cyclopts.App(name="pools", help="Create pools, look at them, pause and resume them.")
    pools.command("converge.cli.pools:create", name="create", help="Create a pool; one that exists is left as it is.")
    pools.command("converge.cli.pools:list_pools", name="list", help="List pools with the numbers of their tasks.")
    pools.command("converge.cli.pools:show", name="show", help="Show one pool: its settings, the numbers of its tasks, its members.")
    pools.command("converge.cli.pools:allow", name="allow", help="Put agents on a pool's allow-list, or take them off it.")
    pools.command("converge.cli.pools:pause", name="pause", help="Let nothing be claimed from pools until they are resumed.")
    pools.command("converge.cli.pools:resume", name="resume", help="Let tasks of pools be claimed again.")
    agents = cyclopts.App(name="agents", help="Look at the agents of processes that live.")
    agents.command("converge.cli.agents:list_agents", name="list", help="List agents by topic, capability and pool.")
    agents.command("converge.cli.agents:show", name="show", help="Show one agent's descriptor.")
    plugins = cyclopts.App(name="plugins", help="Look at plugins: list.")
    plugins.command("converge.cli.plugins:list_plugins", name="list", help="List installed plugins; none of them is imported.")
    app.command(tasks)
    app.command(pools)
    app.command(agents)
    app.command(plugins)
    return app


def _version() -> str:
    from importlib.metadata import version

    return version("converge-core")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    code = _code_of(arguments)
    if arguments is None and threading.active_count() > 1:
        from converge.runtime.shutdown import leave_past_threads

        leave_past_threads(code)
    return code


def _code_of(arguments: Sequence[str] | None) -> int:
    try:
        # The library takes a lone "-" for an option; as a path it means the same to us, and none to it.
        given = ["./-" if argument == "-" else argument for argument in (sys.argv[1:] if arguments is None else arguments)]
        code = _app()(given, exit_on_error=False, print_error=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except (Exception, KeyboardInterrupt) as error:  # the process's boundary: whatever it was becomes a message and an exit code
        return failed(error)
