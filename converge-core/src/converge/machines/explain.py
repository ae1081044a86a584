"""Why a task is, or is not, claimed: the claim's own functions applied to one task, in words."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from converge.machines.lane import Lane
from converge.machines.match import Claimer, refusal
from converge.machines.task import is_terminal, state_of
from converge.model.identity import SHOWN
from converge.model.place import Held, Later, Place, Ready, Waiting
from converge.model.pool import Pool
from converge.model.task import Spec, State


@attrs.frozen(kw_only=True)
class Group:
    """Agents of a pool that are alike to a claim."""

    name: str
    count: int
    claimer: Claimer


@attrs.frozen(kw_only=True)
class Holder:
    """The holder of a claim: the process's lease (hex), its node's id, its record, and whether it lives."""

    lease: str
    node: str = ""
    endpoints: tuple[str, ...] = ()
    host: str = ""
    pid: int = 0
    is_alive: bool = True


@attrs.frozen(kw_only=True)
class Beside:
    """The records read with the task. `pool` None: it was removed. `active`: another task of its ordering key."""

    pool: Pool | None
    groups: Sequence[Group] = ()
    holder: Holder | None = None
    active: str = ""


@attrs.frozen(kw_only=True)
class Verdict:
    """What a group may do with the task; `refusal` None: it could claim it."""

    group: Group
    refusal: str | None


@attrs.frozen(kw_only=True)
class Explanation:
    """The task's place, whether the next matching claim may take it, and every reason why not."""

    state: str
    place: str
    lane: Lane
    is_claimable: bool
    reasons: tuple[str, ...]
    verdicts: tuple[Verdict, ...]


def explain(spec: Spec, state: State | None, place: Place | None, beside: Beside, now: int) -> Explanation:
    """Return why the task is or is not claimed. `place` is None once it has ended.

    A group's task types are not in its descriptors: it may pass over a task that it could claim here.
    """
    lane = Lane(spec.pool, spec.topic, spec.type, spec.capabilities)
    verdicts = tuple(Verdict(group=group, refusal=refusal(lane, group.claimer)) for group in beside.groups)
    own = list(_of_its_place(spec, state, place, beside, now))
    others = [] if place is None or type(place) is Held else [*_of_its_pool(spec, beside), *_of_agents(spec, verdicts)]
    is_claimable = type(place) is Ready and not others
    return Explanation(
        state=str(state_of(state, place)),
        place="done" if place is None else type(place).__name__.lower(),
        lane=lane,
        is_claimable=is_claimable,
        reasons=tuple(own + others),
        verdicts=verdicts,
    )


def _of_its_place(spec: Spec, state: State | None, place: Place | None, beside: Beside, now: int) -> Sequence[str]:
    if place is None or is_terminal(state):
        why = f": {state.error}" if state is not None and state.error else ""
        return [f"it has ended and is never claimed again{why}"]
    if type(place) is Held:
        return [_of_its_holder(place, beside.holder, now)]
    late = (
        [f"its deadline passed {_span(now - spec.deadline)} ago: the next sweep fails it"]
        if spec.deadline and now >= spec.deadline
        else []
    )
    if type(place) is Waiting:
        behind = f"task {beside.active}" if beside.active else "another task"
        return [*late, f'it waits behind {behind} of its ordering key "{spec.ordering_key}"']
    if type(place) is Later:
        due = state.due if state is not None else spec.due
        what = "it is tried again" if state is not None else "it is due"
        return [
            *late,
            f"{what} in {_span(due - now)}" if due > now else "it has just become due: the next sweep makes it ready",
        ]
    return late


def _of_its_holder(place: Held, holder: Holder | None, now: int) -> str:
    if holder is None:
        return "it is held by a process that is not known any more: the next sweep puts it back"
    node = f"node {holder.node[:SHOWN]}" if holder.node else "a node"
    where = f" at {' '.join(holder.endpoints)}" if holder.endpoints else ""
    where += f", process {holder.pid} on {holder.host}" if holder.pid else ""
    claim = (
        f"it was claimed {_span(now - place.claimed_at)} ago by {node}{where}, lease {holder.lease[:12]}, "
        f"token {place.token}"
    )
    return claim if holder.is_alive else f"{claim}; that lease has ended: the next sweep puts the task back"


def _of_its_pool(spec: Spec, beside: Beside) -> Sequence[str]:
    if beside.pool is None:
        return [f'its pool "{spec.pool}" does not exist any more']
    return [f'its pool "{spec.pool}" is paused'] if beside.pool.is_paused else []


def _of_agents(spec: Spec, verdicts: Sequence[Verdict]) -> Sequence[str]:
    if not verdicts:
        return [f'no agent that is listed is in pool "{spec.pool}"']
    if all(one.refusal is not None for one in verdicts):
        return [f'none of the agents listed in pool "{spec.pool}" may take it']
    return []


def _span(micros: int) -> str:
    seconds = max(0, micros) / 1_000_000
    return (
        f"{seconds:.1f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7_200
        else f"{seconds / 3_600:.0f} h"
    )
