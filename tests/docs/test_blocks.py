"""Every block of code in the README and under docs/ works as it stands.

| language | what is done with a block |
|---|---|
| `sh` | run by `sh -e` with the tested `converge` and `python` in front of PATH |
| `python` | run as a script |
| `toml`, `json` | parsed |
| `text` | nothing: output, drawings, sketches of signatures |

A block without a language, or with another one, is an error.

Each block runs in a new folder, unless the line above it (blank lines aside) ends with "in the same folder:"; then it
runs where the block before it ran (one of `text` aside). A block whose first line is a comment with a file's name, such
as `# wordcount.py`, is saved there under that name as well (not one of `sh`), and a `python` block saved so is
imported, not run as `__main__`. A page whose code names REDIS_URL or POSTGRES_URL finds a server's URL in it; what a
block leaves running is killed at its end.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import attrs
import pytest
from warm import Warm, warm_python

from converge.testing.fixtures import wait_until_sync

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")), *sorted(ROOT.glob("converge-*/README.md"))]
LANGUAGES = ("sh", "python", "toml", "json", "text")
# Of README.md, by heading: test_readme.py does more with these two.
SPECIAL = ("Run it", "Test it")
BLOCK_SEC = 180
IS_FULL = os.environ.get("FULL_TESTS") == "1"
# Their blocks of shell are many commands, each of which tests/core/cli runs, too: here with FULL_TESTS=1 only.
LONG = [ROOT / "docs" / page for page in ("reference/cli.md", "how-to/backup-restore-upgrade.md", "how-to/upgrade.md")]
CONTINUES = re.compile(r"in the same folder:$", re.IGNORECASE)
FILE_NAME = re.compile(r"(?:#|//) ([\w.-]+\.\w+)$")
SERVERS = {"REDIS_URL": "redis_url", "POSTGRES_URL": "postgres_url"}


@attrs.frozen(kw_only=True)
class Block:
    """A fenced block of a page."""

    line: int
    language: str
    heading: str
    text: str
    continues: bool

    @property
    def file_name(self) -> str | None:
        """The name of the file that the block says it is."""
        found = FILE_NAME.match(self.text.partition("\n")[0])
        return found.group(1) if found and self.language != "sh" else None


def blocks_of(page: str) -> Iterator[Block]:
    """The blocks of a page, in order."""
    heading, above = "", ""
    lines = iter(enumerate(page.splitlines(), start=1))
    for number, line in lines:
        if line.startswith("```"):
            inside = []
            for _, text in lines:
                if text.startswith("```"):
                    break
                inside.append(text)
            body = "\n".join(inside) + "\n"
            yield Block(
                line=number,
                language=line[3:].strip(),
                heading=heading,
                text=body,
                continues=bool(CONTINUES.search(above)),
            )
            above = ""
        elif line.startswith("#"):
            heading = above = line.lstrip("#").strip()
        elif line.strip():
            above = line.strip()


def run_page(
    page: str,
    new_folder: Callable[[], Path],
    environment: Mapping[str, str],
    *,
    special: tuple[str, ...] = (),
    python: Warm | None = None,
) -> list[str]:
    """Run the blocks of a page; say which failed, and how. Those of Python begin in a new interpreter, unless one is
    given that is warm.
    """
    failures, folder = [], None
    for block in blocks_of(page):
        # What only shows something runs nowhere: it does not part the blocks around it.
        if block.heading in special or block.language == "text":
            continue
        folder = folder if folder and block.continues else new_folder()
        problem = check(block, folder, environment, python)
        if problem:
            failures.append(f"line {block.line}: {problem}")
    return failures


def check(block: Block, folder: Path, environment: Mapping[str, str], python: Warm | None = None) -> str:
    """What is wrong with a block; nothing if it is right."""
    if block.language not in LANGUAGES:
        return f"a block of language {block.language!r}; there are {', '.join(LANGUAGES)}"
    name = block.file_name or {"python": "block.py", "sh": "block.sh"}.get(block.language)
    if name:
        (folder / name).write_text(block.text)
    try:
        if block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "json":
            json.loads(block.text)
    except ValueError as error:
        return str(error)
    if block.language == "sh":
        return _run(["sh", "-e", str(name)], folder, environment)
    if block.language == "python" and python is not None:
        return _run_warm(python, str(name), "imported" if block.file_name else "__main__", folder, environment)
    if block.language == "python":
        code = (
            ["-c", f"import runpy; runpy.run_path({name!r}, run_name='imported')"] if block.file_name else [str(name)]
        )
        return _run([sys.executable, "-W", "error", *code], folder, environment)
    return ""


def _run(command: list[str], folder: Path, environment: Mapping[str, str]) -> str:
    output = folder / ".output.txt"
    # To a file: a pipe would stay open as long as a process that the block left in the background.
    with output.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(BLOCK_SEC)
        except subprocess.TimeoutExpired:
            code = -1
            os.killpg(process.pid, signal.SIGABRT)  # each Python says where it stands
            with suppress(ProcessLookupError):
                for _ in range(50):
                    os.killpg(process.pid, 0)
                    time.sleep(0.1)  # nothing says that a group of processes has ended
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return _said(code, output)


def _run_warm(python: Warm, file: str, name: str, folder: Path, environment: Mapping[str, str]) -> str:
    output = folder / ".output.txt"
    pid = python.start(file, name, folder, environment, output)
    is_late = threading.Event()

    def end() -> None:
        is_late.set()
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)

    patience = threading.Timer(BLOCK_SEC, end)
    patience.start()
    try:
        code = python.wait()
    finally:
        patience.cancel()
        patience.join()
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what it left running
    return _said(-1 if is_late.is_set() else code, output)


def _said(code: int, output: Path) -> str:
    if code == 0:
        return ""
    return f"{'took too long' if code == -1 else f'exit code {code}'}\n{output.read_text(errors='replace')[-3000:]}"


@pytest.fixture
def new_folder(tmp_path: Path) -> Callable[[], Path]:
    """Makes an empty folder for a block."""

    def make() -> Path:
        folder = tmp_path / f"block{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        return folder

    return make


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """The environment of a user who has activated the tested virtual environment, with the example plugin installed in
    it.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {
        **os.environ,
        "PATH": path,
        "PYTHONFAULTHANDLER": "1",
        "PYTHONPATH": f"{ROOT}/docs/examples/converge-store-toy/src:{ROOT}/docs/examples",
    }


@pytest.fixture(scope="module")
def urls(request: pytest.FixtureRequest) -> dict[str, str]:
    """The URLs of the servers that pages name; started before a test begins, since what a test starts it must end."""
    code = "".join(block.text for page in PAGES for block in blocks_of(page.read_text()))
    return {variable: request.getfixturevalue(fixture) for variable, fixture in SERVERS.items() if variable in code}


@pytest.fixture(scope="module")
def python(environment: dict[str, str]) -> Iterator[Warm]:
    """An interpreter that has imported what most blocks import."""
    with warm_python(environment) as process:
        yield process


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_the_page_works(
    page: Path, new_folder: Callable[[], Path], environment: dict[str, str], urls: dict[str, str], python: Warm
) -> None:
    if page in LONG and not IS_FULL:
        pytest.skip("with FULL_TESTS=1 only, for its length")
    special = SPECIAL if page == ROOT / "README.md" else ()
    assert (
        run_page(page.read_text(), new_folder, environment | urls, special=special, python=None if IS_FULL else python)
        == []
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise ValueError('so')\n", "ValueError: so"),
        ("import warnings\nwarnings.warn('so')\n", "UserWarning: so"),
        ("print('out')\nraise SystemExit(3)\n", "exit code 3\nout"),
        ("import os\nos.abort()\n", "exit code -6"),
        ("import nowhere\n", "No module named"),
    ],
)
def test_what_fails_in_a_warm_interpreter_is_found(
    text: str, said: str, new_folder: Callable[[], Path], environment: dict[str, str], python: Warm
) -> None:
    (failure,) = run_page(f"```python\n{text}```\n", new_folder, environment, python=python)
    assert said in failure
    assert run_page("```python\nimport os\nassert os.getcwd()\n```\n", new_folder, environment, python=python) == []


@pytest.mark.parametrize(
    "page",
    [
        "```sh\nexit 3\n```\n",
        "```sh\nfalse\ntrue\n```\n",
        "```python\nraise ValueError\n```\n",
        "```toml\na = \n```\n",
        "```json\n{\n```\n",
        "```\nno language\n```\n",
        "```basic\n10 GOTO 10\n```\n",
        "```sh\necho 1 > file\n```\n\n```sh\ncat file\n```\n",
    ],
)
def test_a_block_that_does_not_work_is_found(
    page: str, new_folder: Callable[[], Path], environment: dict[str, str]
) -> None:
    assert len(run_page(page, new_folder, environment)) == 1


def test_blocks_that_continue_share_a_folder_with_the_files_that_they_name(
    new_folder: Callable[[], Path], environment: dict[str, str]
) -> None:
    page = (
        "```python\n# greet.py\nWORD = 'hello'\nif __name__ == '__main__':\n    raise SystemExit(1)\n```\nThen, in the "
        "same folder:\n\n```python\nimport greet, pathlib\npathlib.Path('word.txt').write_text(greet.WORD)\n```\nIt "
        "writes:\n\n```text\nhello\n```\nAnd in the same folder:\n\n```sh\ngrep hello word.txt\n```\n"
    )
    assert [block.continues for block in blocks_of(page)] == [False, True, False, True]
    assert [block.file_name for block in blocks_of(page)] == ["greet.py", None, None, None]
    assert run_page(page, new_folder, environment) == []


def test_a_block_of_shell_leaves_no_process_behind(new_folder: Callable[[], Path], environment: dict[str, str]) -> None:
    folder = new_folder()
    page = f"```sh\nsleep 300 &\necho $! > {folder}/pid\n```\n"
    assert run_page(page, new_folder, environment) == []
    pid = int((folder / "pid").read_text())
    wait_until_sync(lambda: not _is_running(pid), what="the end of the background process")


def _is_running(pid: int) -> bool:
    done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(done.stdout.strip()) and not done.stdout.strip().startswith("Z")


def test_a_special_block_is_left_to_its_own_test(new_folder: Callable[[], Path], environment: dict[str, str]) -> None:
    page = "## Run it\n\n```sh\nexit 1\n```\n\n## Else\n\n```sh\ntrue\n```\n"
    assert run_page(page, new_folder, environment, special=("Run it",)) == []
    assert len(run_page(page, new_folder, environment)) == 1
