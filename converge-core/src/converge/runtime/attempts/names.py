"""The names of what an attempt records, each with a number where it is used again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar

from converge.errors import InvalidName, InvalidValue, StepConflict
from converge.machines.durable import Step
from converge.model.keys import NAME_BYTES
from converge.services.durable.limits import NAME, NUMBERED, OR, WAIT_NAMES, WITHIN, is_valid_name

STEP, WAIT, SLEEP, SPAWN, FIRST, GATHER = ".", "?", "~", "+", "^", "&"
"""With which character the label of each kind of record begins: kinds share no names."""

KINDS = {STEP: "step", WAIT: "signal", SLEEP: "sleep", SPAWN: "child"}
"""What is named, for people."""

DIGEST_CHARS = 16

LABEL_BYTES = NAME_BYTES - 10
"""The longest label in UTF-8 without its kind and number, with which it is a part of a key."""


STEP_NAME: ContextVar[str] = ContextVar("converge_step", default="")
"""The step whose function runs."""


class Names:
    """Counts the names of one attempt in the order of calls: a repeated one is `name#2`. What a step calls has names
    within it, counted anew each time that it is tried: an attempt that is given a step's record does not call them.
    """

    def __init__(self, task_id: str) -> None:
        self._task_id = task_id
        self._counts: dict[str, dict[str, int]] = {}  # of each step, "" where none runs
        self._open: set[str] = set()
        self._calls: dict[str, Calls] = {}
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
        return self._label(kind, name)

    def _label(self, kind: str, name: str) -> str:
        step = STEP_NAME.get()
        label = kind + _short(step + WITHIN + name if step else name)
        if label in self._open:
            raise StepConflict(
                f'task {self._task_id}: step "{name}" is under way; name steps that run at once apart: "{name}:2"'
            )
        counts = self._counts.setdefault(step, {})
        count = counts[label] = counts.get(label, 0) + 1
        label = _numbered(label, count)
        self.called.add(label)
        return label

    def again(self, step: str) -> None:
        """Note that a step is tried, for the first time or again."""
        self._counts.pop(step, None)

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
        return self._label(WAIT, OR.join(names))

    def label_of_children(self, name: str, steps: Mapping[str, Step], is_own: Callable[[str], bool]) -> str:
        """Return the label, without its kind, of a call that waits for some children. See `Calls.label`."""
        if name not in self._calls:
            all_ = {label[1:]: step for label, step in steps.items() if label[0] == GATHER}
            all_ |= {label[1:]: step for label, step in steps.items() if label[0] == FIRST}  # which is recorded last
            own = [(step.number, step.at, label) for label, step in all_.items() if NUMBERED.sub("", label) == name]
            self._calls[name] = Calls(name, [label for _, _, label in sorted(own)])
        return self._calls[name].label(is_own)

    def begin(self, label: str) -> None:
        """Note that the record with this label is in progress."""
        self.again(label[1:])
        self._open.add(NUMBERED.sub("", label))

    def end(self, label: str) -> None:
        """Note that it is no longer in progress."""
        self._open.discard(NUMBERED.sub("", label))


def _short(name: str) -> str:
    """Return a name as it fits into a key; of a long one its beginning and a digest."""
    raw = name.encode()
    if len(raw) <= LABEL_BYTES:
        return name
    digest = hashlib.blake2b(raw, digest_size=DIGEST_CHARS // 2).hexdigest()
    return f"{raw[: LABEL_BYTES - DIGEST_CHARS - 3].decode(errors='ignore')}…{digest}"


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}#{number}"


class Calls:
    """The calls of one attempt that wait for children, and which records are whose: of calls under way at once, each
    attempt may come to another one first.
    """

    def __init__(self, name: str, recorded: Sequence[str]) -> None:
        self._name, self._next = name, 1
        self._left = dict.fromkeys(recorded)
        self._taken: set[str] = set()

    def label(self, is_own: Callable[[str], bool]) -> str:
        """Return that of the first record which is the call's, as `is_own` says of a label; else the next one that has
        no record.
        """
        label = next(filter(is_own, self._left), "") or self._free()
        self._left.pop(label, None)
        self._taken.add(label)
        return label

    def _free(self) -> str:
        """Return the next label that neither a record nor a call of this attempt has."""
        while (label := _numbered(self._name, self._next)) in self._left or label in self._taken:
            self._next += 1
        return label
