"""Read the inputs of a task from `NAME=VALUE` and `NAME=@FILE`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from converge.errors import InputError


def read_inputs(texts: Sequence[str]) -> dict[str, str | bytes]:
    """Return the inputs: a value as it stands, or the content of a file: text where it is UTF-8, else bytes.

    Raises:
        InputError: Which one is not well formed, or cannot be read.
    """
    inputs: dict[str, str | bytes] = {}
    for text in texts:
        name, mark, value = text.partition("=")
        if not mark or not name:
            raise InputError(f"--input {text}: expected NAME=VALUE or NAME=@FILE")
        if name in inputs:
            raise InputError(f"--input {name}: is given twice")
        inputs[name] = _content(name, Path(value[1:])) if value.startswith("@") else _text(name, value)
    return inputs


def _text(name: str, value: str) -> str:
    if any(
        "\ud800" <= character <= "\udfff" for character in value
    ):  # what Python makes of an argument's bytes that are no UTF-8
        raise InputError(f"--input {name}: is not UTF-8; bytes come from a file: --input {name}=@FILE")
    return value


def _content(name: str, file: Path) -> str | bytes:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"--input {name}: {file} cannot be read: {error.strerror}") from error
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content
