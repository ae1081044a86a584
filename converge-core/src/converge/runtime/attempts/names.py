"""The names of what an attempt records, each with a number where it is used again."""

from __future__ import annotations

import re

from converge.errors import InvalidName, StepConflict
from converge.services.durable.limits import NAME_CHARS

STEP, WAIT, SLEEP, SPAWN, FIRST, GATHER = ".", "?", "~", "+", "^", "&"
"""With which character the label of each kind of record begins: kinds share no names."""

_NUMBERED = re.compile(r"#[0-9]+$")


class Names:
    """Counts the names of one attempt in the order of calls: a repeated one is `name#2`."""

    def __init__(self, task_id: str) -> None:
        self._task_id = task_id
        self._counts: dict[str, int] = {}
        self._open: set[str] = set()
        self.called: set[str] = set()
        """The labels that the attempt has come to."""

    def label(self, kind: str, name: str) -> str:
        """Return the label of the next record of this name.

        Raises:
            InvalidName: It is not a valid name.
            StepConflict: One of this name is under way, so that nothing says which of them a later attempt would mean.
        """
        if type(name) is not str or not 0 < len(name) <= NAME_CHARS or not name.isprintable() or _NUMBERED.search(name):
            expected = f"1 to {NAME_CHARS} printable characters, not ending in # and a number, which counts repeats"
            raise InvalidName("step", name, expected)
        label = kind + name
        if label in self._open:
            raise StepConflict(
                f'task {self._task_id}: step "{name}" is under way; name steps that run at once apart: "{name}:2"'
            )
        count = self._counts[label] = self._counts.get(label, 0) + 1
        label = label if count == 1 else f"{label}#{count}"
        self.called.add(label)
        return label

    def begin(self, label: str) -> None:
        """Note that the record with this label is in progress."""
        self._open.add(_NUMBERED.sub("", label))

    def end(self, label: str) -> None:
        """Note that it is no longer in progress."""
        self._open.discard(_NUMBERED.sub("", label))
