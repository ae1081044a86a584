"""The names of what an attempt records, each with a number where it is used again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar

from converge.errors import InvalidName, InvalidValue, StepConflict
from converge.machines.durable import Step
from converge.services.durable.limits import NAME, NAME_CHARS, NUMBERED, WAIT_NAMES, is_valid_name

STEP, WAIT, SLEEP, SPAWN, FIRST, GATHER = ".", "?", "~", "+", "^", "&"
"""With which character the label of each kind of record begins: kinds share no names."""

KINDS = {STEP: "step", WAIT: "signal", SLEEP: "sleep", SPAWN: "child"}
"""What is named, for people."""

DIGEST_CHARS = 16


STEP_NAME: ContextVar[str] = ContextVar("converge_step", default="")
"""The step whose function runs."""


class Names:
    """Counts the names of one attempt in the order of calls: a repeated one is `name#2`. What a step calls has names
    within it, counted anew each time that it is tried: an attempt that is given a step's record does not call them.
    """

    def __init__(self, task_id: str, recorded: Collection[str]) -> None:
        self._task_id, self._recorded = task_id, recorded
        self._counts: dict[str, dict[str, int]] = {}  # of each step, "" where none runs
        self._open: set[str] = set()
        self._within: dict[str, str] = {}  # of each label with a slash, the step that what it names is called in
        self._calls: dict[str, Calls] = {}
        self.called: set[str] = set()
        """The labels that the attempt has come to."""

    def label(self, kind: str, name: str) -> str:
        """Return the label of the next record of this name.

        Raises:
            InvalidName: It is not a valid name.
            StepConflict: One of this name is under way, so that nothing says which of them a later attempt would mean;
                or what another step calls has this name, with its step's before it.
        """
        if not is_valid_name(name):
            raise InvalidName(KINDS.get(kind, "step"), name, NAME)
        step = STEP_NAME.get()
        label = kind + (_short(f"{step}/{name}") if step else name)
        if label in self._open:
            raise StepConflict(
                f'task {self._task_id}: step "{name}" is under way; name steps that run at once apart: "{name}:2"'
            )
        if "/" in label and (other := self._within.setdefault(label, step)) != step:
            raise StepConflict(
                f'task {self._task_id}: "{label[1:]}" names what is called in {_shown(other)} and in {_shown(step)}; '
                f"name one of them without /, which stands between the name of a step and what it calls"
            )
        label = self._next(step, label)
        if step and label not in self._recorded:
            label = self._of_older_release(kind + name) or label
        self.called.add(label)
        return label

    def again(self, step: str) -> None:
        """Note that a step is tried, for the first time or again."""
        self._counts.pop(step, None)

    def _next(self, step: str, label: str) -> str:
        counts = self._counts.setdefault(step, {})
        count = counts[label] = counts.get(label, 0) + 1
        return _numbered(label, count)

    def _of_older_release(self, label: str) -> str:
        """Return the label that an older release has given what a step calls: one without the step's name."""
        counts = self._counts.setdefault("", {})
        older = _numbered(label, counts.get(label, 0) + 1)
        if older not in self._recorded or older in self.called:
            return ""
        counts[label] = counts.get(label, 0) + 1
        return older

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
        return self.label(WAIT, _short("|".join(names)))

    def label_of_children(
        self, name: str, steps: Mapping[str, Step], is_own: Callable[[str], bool], is_anonymous: Callable[[str], bool]
    ) -> str:
        """Return the label, without its kind, of a call that waits for some children. See `Calls.label`."""
        if name not in self._calls:
            all_ = {label[1:]: step for label, step in steps.items() if label[0] == GATHER}
            all_ |= {label[1:]: step for label, step in steps.items() if label[0] == FIRST}  # which is recorded last
            own = [(step.number, step.at, label) for label, step in all_.items() if NUMBERED.sub("", label) == name]
            self._calls[name] = Calls(name, [label for _, _, label in sorted(own)])
        return self._calls[name].label(is_own, is_anonymous)

    def begin(self, label: str) -> None:
        """Note that the record with this label is in progress."""
        self.again(label[1:])
        self._open.add(NUMBERED.sub("", label))

    def end(self, label: str) -> None:
        """Note that it is no longer in progress."""
        self._open.discard(NUMBERED.sub("", label))


def _shown(step: str) -> str:
    return f'step "{step}"' if step else "no step"


def _short(name: str) -> str:
    """Return a name that is put together; of a long one its beginning and a digest."""
    if is_valid_name(name):
        return name
    digest = hashlib.blake2b(name.encode(), digest_size=DIGEST_CHARS // 2).hexdigest()
    return f"{name[: NAME_CHARS - DIGEST_CHARS - 1]}…{digest}"


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

    def label(self, is_own: Callable[[str], bool], is_anonymous: Callable[[str], bool]) -> str:
        """Return that of the first record which is the call's, else the next label without a record.

        Args:
            is_own: Returns whether the record with a label is the call's.
            is_anonymous: Returns whether it does not say whose it is, as one of an older release: calls take these in
                turn.
        """
        while (label := _numbered(self._name, self._next)) in self._taken:
            self._next += 1
        if not is_anonymous(label):
            label = next(filter(is_own, self._left), "") or self._free()
        self._left.pop(label, None)
        self._taken.add(label)
        return label

    def _free(self) -> str:
        """Return the next label that neither a record nor a call of this attempt has."""
        number = self._next
        while (label := _numbered(self._name, number)) in self._left or label in self._taken:
            number += 1
        return label
