"""`converge run`: agents in this process."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import anyio
from cyclopts import Parameter

from converge.cli import output
from converge.cli.failures import DONE, FAILED, NUMBER
from converge.cli.options import NONE, Common, PoolId, of_setting
from converge.cli.streams import kept
from converge.errors import ConfigError, InputError
from converge.model.task import Task
from converge.operations.agent_class import agent_class, first_on_path
from converge.operations.task_file import read_tasks
from converge.runtime.config.config import Config

if TYPE_CHECKING:
    from converge.operations.run import Run


def run(
    agent: Annotated[
        str | None, Parameter(help="The agents' class, as module:Class; the working directory comes first.")
    ] = None,
    /,
    *,
    agents: Annotated[int | None, of_setting("agents", metavar="N")] = None,
    processes: Annotated[int | None, of_setting("processes", metavar="N")] = None,
    pool: PoolId = None,
    transport: Annotated[list[str] | None, of_setting("transport", metavar="URL")] = None,
    advertise: Annotated[list[str] | None, of_setting("advertise", metavar="ADDRESS")] = None,
    discovery: Annotated[str | None, of_setting("discovery", metavar="NAME")] = None,
    health: Annotated[str | None, of_setting("health", metavar="HOST:PORT")] = None,
    submit: Annotated[
        Path | None, Parameter(metavar="FILE", help="A file of JSON lines, one task each; - for standard input.")
    ] = None,
    drain: Annotated[
        bool, Parameter(negative=(), help="End when the pool has nothing left to do, and show the results.")
    ] = False,
    grace: Annotated[float | None, of_setting("grace_sec", name="--grace", metavar="SEC")] = None,
    create_pool: Annotated[
        bool, Parameter(negative=(), help="Create the pool even if one with a near name exists.")
    ] = False,
    common: Common = NONE,
) -> int:
    """Run agents until their pool is drained, or until SIGTERM or SIGINT.

    A second signal ends the process at once.
    """
    listens, others_dial = _joined(transport), _joined(advertise)
    number = os.environ.pop(NUMBER, None)  # gone, since what agents start is not one of these processes
    settings = common.configured(
        level="info",
        agent=agent, agents=agents, processes=processes, pool_id=pool, transport=listens, advertise=others_dial,
        discovery=discovery, health=health, grace_sec=grace,
    )  # fmt: skip
    if not settings.groups:
        raise ConfigError(
            "agent: is missing: name a class as module:Class, on the command line or in the file that -c names"
        )
    first_on_path(Path.cwd())
    classes = [agent_class(group) for group in settings.groups]
    if number is not None:
        from converge.operations.processes import follow_supervisor, for_process

        follow_supervisor()
        settings = for_process(settings, int(number))
    # Imported after what can be refused without them: a typo is reported in half the time.
    from converge.operations.run import Run

    wanted = Run(agents=classes, tasks=task_file(submit, settings.pool_id), is_drain=drain, may_create_pool=create_pool)
    if settings.processes > 1:
        flags = {
            "--agents": agents, "--pool": pool, "--transport": listens, "--advertise": others_dial,
            "--discovery": discovery, "--grace": grace,
        }  # fmt: skip
        return _supervise(
            settings, wanted, [*([agent] if agent else []), *_arguments(flags), *common.arguments()], common
        )
    return _run_here(settings, wanted, common)


def _run_here(settings: Config, wanted: Run, common: Common) -> int:
    from converge.cli.loop import loop_factory
    from converge.cli.results import write_results
    from converge.operations import run as main

    main.tune_interpreter()
    with output.progress(settings.pool_id or "tasks", is_wanted=wanted.is_drain) as on_progress, kept():
        on_note = None if on_progress is None else on_progress.note
        options = {"loop_factory": loop_factory}
        drained, code = anyio.run(main.run, settings, wanted, on_progress, on_note, backend_options=options)
    if drained is None:
        return code
    write_results(drained.rows, as_json=common.json)
    return FAILED if drained.not_completed else DONE


def _supervise(settings: Config, wanted: Run, arguments: list[str], common: Common) -> int:
    """Run several processes, each with these arguments; their configuration is also in the environment and the file."""
    from converge.cli.results import write_results
    from converge.operations.processes import Start, command_of, marked, supervise

    is_json = settings.log_format == "json"

    def relay(number: int, line: bytes) -> None:
        with suppress(OSError, ValueError):  # a line that cannot be written stops no work
            sys.stderr.write(f"{marked(number, line, is_json=is_json)}\n")
            sys.stderr.flush()

    with output.progress(settings.pool_id or "tasks", is_wanted=wanted.is_drain) as on_progress:
        start = Start(command_of(arguments), NUMBER, relay)
        drained, code = anyio.run(supervise, settings, wanted, start, on_progress, backend_options=loop_options())
    if drained is None:
        return code
    write_results(drained.rows, as_json=common.json)
    return max(code, FAILED if drained.not_completed else DONE)


def _joined(given: Sequence[str] | None) -> str | None:
    """Return the addresses of a flag that may be given several times, as one given once has them."""
    return None if given is None else ",".join(given)


def _arguments(flags: Mapping[str, object]) -> list[str]:
    """Return the flags that were given, as they stand on a command line."""
    return [text for flag, value in flags.items() if value is not None for text in (flag, str(value))]


def loop_options() -> dict[str, bool]:
    """Return the options of the fastest event loop that is installed."""
    return {"use_uvloop": importlib.util.find_spec("uvloop") is not None}


def task_file(file: Path | None, pool_id: str) -> list[Task]:
    """Return the tasks of a file of JSON lines, `-` for standard input; `pool_id` is for lines that name none.

    Raises:
        InputError: It cannot be read, or everything that is wrong with its lines.
    """
    if file is None:
        return []
    if str(file) == "-":
        return read_tasks(sys.stdin, "-", pool_id=pool_id)
    try:
        with file.open(encoding="utf-8") as lines:
            return read_tasks(lines, str(file), pool_id=pool_id)
    except UnicodeDecodeError as error:
        raise InputError(f"{file}: is not UTF-8: {error}") from error
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
