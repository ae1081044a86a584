"""The names of what an attempt records, each with a number where it is used again."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from converge.errors import InvalidName, InvalidValue, StepConflict
from converge.services.durable.limits import NAME, NAME_CHARS, NUMBERED, WAIT_NAMES, is_valid_name

STEP, WAIT, SLEEP, SPAWN, FIRST, GATHER = ".", "?", "~", "+", "^", "&"
"""With which character the label of each kind of record begins: kinds share no names."""

KINDS = {STEP: "step", WAIT: "signal", SLEEP: "sleep", SPAWN: "child"}
"""What is named, for people."""

DIGEST_CHARS = 16


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
        if not is_valid_name(name):
            raise InvalidName(KINDS.get(kind, "step"), name, NAME)
        label = kind + name
        if label in self._open:
            raise StepConflict(
                f'task {self._task_id}: step "{name}" is under way; name steps that run at once apart: "{name}:2"'
            )
        count = self._counts[label] = self._counts.get(label, 0) + 1
        label = label if count == 1 else f"{label}#{count}"
        self.called.add(label)
        return label

    def label_of_wait(self, names: Sequence[str]) -> str:
        """Return the label of the next wait for these signals; of many names it has the first ones and a digest.

        Raises:
            InvalidName, InvalidValue: One can be no signal's, or they are too few or too many.
        """
        if not 0 < len(names) <= WAIT_NAMES:
            raise InvalidValue("wait_for", f"{len(names)} names", f"the name of a signal, or up to {WAIT_NAMES}")
        for name in names:
            if not is_valid_name(name):
                raise InvalidName("signal", name, NAME)
        joined = "|".join(names)
        if not is_valid_name(joined):
            digest = hashlib.blake2b(joined.encode(), digest_size=DIGEST_CHARS // 2).hexdigest()
            joined = f"{joined[: NAME_CHARS - DIGEST_CHARS - 1]}…{digest}"
        return self.label(WAIT, joined)

    def begin(self, label: str) -> None:
        """Note that the record with this label is in progress."""
        self._open.add(NUMBERED.sub("", label))

    def end(self, label: str) -> None:
        """Note that it is no longer in progress."""
        self._open.discard(NUMBERED.sub("", label))
