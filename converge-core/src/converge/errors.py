"""The error tree: one branch per thing a caller can do, one leaf per condition.

    ConvergeError
        InputError      fix the input: InvalidValue, InvalidName, InvalidKey, BadSignature, ValueTooLarge, NoSuchPool,
                        NoSuchTask, NotRetried, NotWaiting, DedupConflict, TooManyLanes, PoolClosed, WrongNodeState,
                        StepConflict, TooManyRecords, NoHandler, NotRunning
        ConfigError     fix the configuration: UnknownSetting, Unsupported, SecretOnCommandLine, KeyFileRefused,
                        KeyInUse, PluginError
            PluginError     PluginMissing, PluginDuplicate, PluginRefused, PluginBroken, HookUnknown, ContractMismatch
        StoreError      OutcomeUnknown: read before you retry; StoreRolledBack, SchemaTooNew, TornRecord,
                        StoreBroken: stop and look; NotApplied
            NotApplied      nothing was written, retry or fix the store: StoreUnavailable, StoreBusy, StoreFull,
                            StoreRefused; open the store again: StoreReplaced, ForkedHandle, ForeignLoop
                StoreRefused    NoSuchStore, StoreUnsafe, StoreUnfinished, CopyRefused
        TaskError       give up this attempt: StaleClaim, LeaseEnded, ResultTimeout, WaitTimeout, StepFailed,
                        StepUncertain, ChildFailed, CalledOff, WentOn
        AttemptEnd      raised by a handler, says what becomes of its task: NoRetry, RetryAfter, Release
        ActionError     an agent may not act so, or not now: ActionNotAllowed, ToolNotAllowed, ToolTimeout,
                        TooManyDecisions, TooManyActions
        UserCodeExited  mend the agent's own code
        MessageError    the message did not arrive: Undeliverable, Backpressure, HandlerFailed, DeliveryTimeout
            Undeliverable   Dropped, AskCycle
        ChannelError    reconnect, or refuse the peer: HandshakeFailed, HandshakeRefused, BadRecord, VersionMismatch,
                        PeerMismatch, NetworkMismatch, TlsMismatch, MessageTooLarge, ConnectionLost (the network did),
                        ConnectionClosed (we did), ListenFailed, ConnectFailed

Values are attributes too, so nobody parses text.
"""

from __future__ import annotations

from collections.abc import Sequence


class ConvergeError(Exception):
    """Everything that Converge raises on purpose."""


# Fix the input.


class InputError(ConvergeError):
    """The caller's input cannot be used; nothing was changed."""


class InvalidValue(InputError):
    """A value is outside what its field allows."""

    def __init__(self, path: str, value: object, expected: str, *, shown: str = "") -> None:
        super().__init__(f"{path}: {shown or _short(value)} is not allowed; expected {expected}")
        self.path, self.value, self.expected = path, value, expected


class InvalidName(InputError):
    """A name of a pool, an agent, a capability or the like is not well formed."""

    def __init__(self, what: str, name: object, expected: str) -> None:
        super().__init__(f"{what} {_short(name)} is not a valid name; expected {expected}")
        self.what, self.name, self.expected = what, name, expected


class InvalidKey(InputError):
    """A public or private key is not acceptable."""


class BadSignature(InputError):
    """Signed bytes do not verify under the key that they name, or are for another network."""


class ValueTooLarge(InputError):
    """A value is over the limit of the store."""

    def __init__(self, what: str, size_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"{what} has {size_bytes} bytes, the limit is {limit_bytes}; store large data elsewhere and pass a "
            f"reference"
        )
        self.what, self.size_bytes, self.limit_bytes = what, size_bytes, limit_bytes


class NoSuchPool(InputError):
    """The pool does not exist."""

    def __init__(self, pool_id: str, *, nearest: str | None = None) -> None:
        hint = f'; did you mean "{nearest}"?' if nearest else "; `converge run` and create_pool create it"
        super().__init__(f'pool "{pool_id}" does not exist{hint}')
        self.pool_id, self.nearest = pool_id, nearest


class NoSuchTask(InputError):
    """The task does not exist, or retention has removed it."""

    def __init__(self, task_id: str) -> None:
        super().__init__(f"task {task_id} does not exist; it was never submitted here, or its retention has passed")
        self.task_id = task_id


class NotRetried(InputError):
    """The task neither failed nor was cancelled: there is nothing to try again."""

    def __init__(self, task_id: str, *, state: str) -> None:
        super().__init__(f"task {task_id} is {state}; only one that is FAILED or CANCELLED is retried")
        self.task_id, self.state = task_id, state


class NotWaiting(InputError):
    """Only a task that waits can be ended from outside; nothing was changed."""


class DedupConflict(InputError):
    """A task with the same id or dedup key, but other content, already exists; nothing was changed."""

    def __init__(self, existing_id: str, *, dedup_key: str | None) -> None:
        what = f'dedup key "{dedup_key}"' if dedup_key is not None else "this id"
        super().__init__(
            f"{what} already belongs to task {existing_id} with other content; use another key, or submit the "
            f"same content"
        )
        self.existing_id, self.dedup_key = existing_id, dedup_key


class TooManyLanes(InputError):
    """The pool already has its greatest number of lanes (combinations of topic, type and required capabilities)."""

    def __init__(self, pool_id: str, limit: int) -> None:
        super().__init__(
            f'pool "{pool_id}" has {limit} lanes, the most there may be; use fewer distinct topics, types or '
            "capability sets"
        )
        self.pool_id, self.limit = pool_id, limit


class PoolClosed(InputError):
    """The pool does not admit this agent."""

    def __init__(self, pool_id: str, agent_id: str, reason: str) -> None:
        super().__init__(f'pool "{pool_id}" does not admit {agent_id}: {reason}')
        self.pool_id, self.agent_id, self.reason = pool_id, agent_id, reason


class WrongNodeState(InputError):
    """The node has not been entered, was left, or is entered twice; it was not used."""


class StepConflict(InputError):
    """Two steps with the same name run at once, so a later attempt could not tell them apart."""


class TooManyRecords(InputError):
    """A task has reached the limit of its recorded steps, or of its unconsumed signals."""


class NoHandler(InputError):
    """A handler was called that the agent's class does not have."""


class NotRunning(InputError):
    """Only the running handler of a task may record anything for it, and only where it runs."""


# Fix the configuration.


class ConfigError(ConvergeError):
    """The configuration cannot be used; nothing was started."""

    def __init__(self, message: str, *, problems: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class UnknownSetting(ConfigError):
    """A key of the configuration is not known."""


class Unsupported(ConfigError):
    """The configuration needs something that a chosen backend, or this release, does not have."""


class SecretOnCommandLine(ConfigError):
    """A password is where every user of the machine can read it."""


class KeyFileRefused(ConfigError):
    """A key file, or a folder around it, cannot be relied on: another user of the machine can read or change it, or it
    is no such file.
    """

    def __init__(self, path: object, reason: str, way_out: str) -> None:
        super().__init__(f"{path}: {reason}; {way_out}")
        self.path, self.reason, self.way_out = str(path), reason, way_out


class KeyInUse(ConfigError):
    """Another live process uses the key."""

    def __init__(self, path: object, reason: str, way_out: str) -> None:
        super().__init__(f"{path}: {reason}; {way_out}")
        self.path = str(path)


class PluginError(ConfigError):
    """A plugin cannot be used."""


class PluginMissing(PluginError):
    """No installed distribution provides the plugin or the URL scheme."""


class PluginDuplicate(PluginError):
    """Two distributions, or two plugins, provide one name."""


class PluginRefused(PluginError):
    """The plugin was refused by name (`--plugin no:NAME`)."""


class PluginBroken(PluginError):
    """Importing or registering the plugin failed."""


class HookUnknown(PluginError):
    """The plugin implements a hook that does not exist, or with arguments that it does not have."""


class ContractMismatch(PluginError):
    """The plugin was written for another contract number."""


# The store.


class StoreError(ConvergeError):
    """The store did not do what was asked."""


class NotApplied(StoreError):
    """The call certainly changed nothing."""


class StoreUnavailable(NotApplied):
    """The store cannot be reached."""


class StoreBusy(NotApplied):
    """The store was locked or overloaded for longer than the call may wait."""


class StoreFull(NotApplied):
    """The store has no room: its disk is full, or its memory limit is reached."""


class StoreRefused(NotApplied):
    """The store refused the call: permissions, or a setting that loses data."""


class NoSuchStore(StoreRefused):
    """There is no store at the place, and it was opened for reading only, so none was created."""


class StoreUnsafe(StoreRefused):
    """A setting of the store's server loses acknowledged work silently; the store was not opened."""

    def __init__(self, where: str, setting: str, value: str, *, why: str, mend: str) -> None:
        super().__init__(f"{where} has {setting} {value}, which {why}; {mend}")
        self.where, self.setting, self.value, self.mend = where, setting, value, mend


class StoreUnfinished(StoreRefused):
    """The store is an unfinished copy, still running or interrupted; it was not opened."""


class CopyRefused(StoreRefused):
    """A store was not copied: a live process uses it, the destination is not empty, or the two differ afterwards."""


class StoreReplaced(NotApplied):
    """The store was removed or replaced under this handle, which is dead: close it, and open the store again."""


class ForkedHandle(NotApplied):
    """The handle was opened before this process was forked; only the parent may use it."""

    def __init__(self) -> None:
        super().__init__(
            "this handle was opened before the process was forked, and is its parent's; open the store in the child"
        )


class ForeignLoop(NotApplied):
    """The handle was opened on another thread or event loop; only code there may use it."""

    def __init__(self) -> None:
        super().__init__(
            "this handle was opened on another event loop or thread; a plain handler calls it with "
            "`anyio.from_thread.run(...)`, and another loop opens the store for itself"
        )


class OutcomeUnknown(StoreError):
    """No answer came: the call may or may not have taken effect. Repeating it with the same key, token or id is
    safe.
    """


class StoreBroken(StoreError):
    """The store violated its contract: a bug in its backend."""

    def __init__(self, clause: str, what: str) -> None:
        super().__init__(f"{what}; that breaks clause {clause} of the store contract: tell the author of the backend")
        self.clause, self.what = clause, what


class StoreRolledBack(StoreError):
    """The store's history is not the one that this process saw; claiming stops until an operator accepts it."""


class SchemaTooNew(StoreError):
    """The store, or a record in it, was written by a newer release than this one."""


class TornRecord(StoreError):
    """A stored record cannot be read: it is damaged, or foreign."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(
            f"{what}: the stored record cannot be read ({reason}); it is damaged, or was not written by Converge"
        )
        self.what, self.reason = what, reason


# One attempt of a task.


class TaskError(ConvergeError):
    """This attempt is over for its holder."""


class StaleClaim(TaskError):
    """The claim was taken over or has ended; its holder must stop, and its result is refused."""

    def __init__(self, task_id: str, *, token: int, current: int | None = None, why: str = "") -> None:
        by = f" by {current}" if current is not None else ""
        cause = why or (
            f"claim {token} was superseded{by}, or has ended in another way: the task was cancelled, it was finished "
            "otherwise, or its process was away for longer than lease_sec; raise it, or find what stopped the process"
        )
        super().__init__(f"task {task_id}: {cause}")
        self.task_id, self.token, self.current = task_id, token, current


class LeaseEnded(TaskError):
    """The lease of this process has ended; everything claimed under it has gone back."""

    def __init__(self, lease_id: str) -> None:
        super().__init__(
            f"lease {lease_id} has ended: the store was not reached in time, or another process took its work back"
        )
        self.lease_id = lease_id


class ResultTimeout(TaskError, TimeoutError):
    """The task was not terminal in time; it continues."""

    def __init__(self, task_id: str, timeout_sec: float, why: str = "it goes on, ask again or raise `timeout`") -> None:
        super().__init__(f"task {task_id} was not terminal after {timeout_sec:g} s; {why}")
        self.task_id, self.timeout_sec = task_id, timeout_sec


# What a handler raises to say how its attempt ends.


class WaitTimeout(TaskError, TimeoutError):
    """A wait of a task timed out; the task continues, and later attempts get the same error."""


class StepFailed(TaskError):
    """A step has failed for good: it raised an error of a type in its `final`. Later attempts get the same error."""

    def __init__(self, task_id: str, name: str, kind: str, text: str) -> None:
        super().__init__(f'task {task_id}: step "{name}" has failed for good: {kind}: {text}')
        self.task_id, self.name, self.kind, self.text = task_id, name, kind, text


class StepUncertain(TaskError):
    """A step that runs at most once was begun by an earlier attempt, and it is unknown whether it ended."""


class ChildFailed(TaskError):
    """A child did not complete; `child_id` says which."""

    def __init__(self, task_id: str, child_id: str, state: str, error: str) -> None:
        super().__init__(f"task {task_id}: child {child_id} is {state}: {error}")
        self.task_id, self.child_id, self.state, self.error = task_id, child_id, state, error


class CalledOff(TaskError):
    """The task is being cancelled with grace: raised once in its handler, whose further steps may undo what it did, and
    by each further wait.
    """


class WentOn(TaskError):
    """A handler continued after its task was parked or restarted: everything it did since then will be done again."""


class AttemptEnd(ConvergeError):
    """Raised by a handler: how the attempt at its task ends. None of them counts as a failure of the agent."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = str(why)


class NoRetry(AttemptEnd):
    """The task is FAILED at once, even if attempts are left: trying again cannot help."""


class RetryAfter(AttemptEnd):
    """The attempt failed and counts; the next one, if any is left, begins after `sec` seconds, at most 24 hours."""

    def __init__(self, sec: float, why: str = "") -> None:
        if type(sec) not in (int, float) or not sec >= 0:
            raise InvalidValue("RetryAfter", sec, "seconds, 0 or more")
        super().__init__(why or f"asked to be tried again after {sec:g} s")
        self.sec = float(sec)


class Release(AttemptEnd):
    """The task goes back uncounted and is ready at once, for whoever claims it next."""

    def __init__(self, why: str = "") -> None:
        super().__init__(why or "its handler handed it back")


# What an agent does to the world.


class ActionError(ConvergeError):
    """The agent may not do this, or not now; it was not done, or did not end."""


class ActionNotAllowed(ActionError):
    """The action is not among the agent's `allowed_actions`; it was not done."""

    def __init__(self, agent: str, action: str, allowed: Sequence[str]) -> None:
        super().__init__(
            f"{agent} may not {action}: allowed_actions has {', '.join(allowed) or 'nothing'}; add it there, or let "
            "another agent do it"
        )
        self.agent, self.action, self.allowed = agent, action, tuple(allowed)


class ToolNotAllowed(ActionError):
    """The tool is not among the agent's `tools`; it was not called."""

    def __init__(self, agent: str, tool: str, allowed: Sequence[str], *, nearest: str | None = None) -> None:
        hint = (
            f'did you mean "{nearest}"?'
            if nearest
            else f"its tools are {', '.join(allowed)}"
            if allowed
            else "it has none"
        )
        super().__init__(f'{agent} may not call the tool "{tool}": {hint}')
        self.agent, self.tool, self.allowed, self.nearest = agent, tool, tuple(allowed), nearest


class ToolTimeout(ActionError, TimeoutError):
    """The tool did not return in time; an async one was cancelled, a sync one is abandoned with its thread."""

    def __init__(self, tool: str, timeout_sec: float) -> None:
        super().__init__(
            f'the tool "{tool}" did not return within {timeout_sec:g} s; raise its timeout_sec, or let it do '
            f"less at a "
            f"time"
        )
        self.tool, self.timeout_sec = tool, timeout_sec


class TooManyDecisions(ActionError):
    """One call of `decide` returned more decisions than the agent's `limits` allow; the rest was not carried out."""

    def __init__(self, agent: str, count: int, limit: int) -> None:
        super().__init__(
            f"{agent} decided on {count} things in one call, the limit is {limit}; decide on less, or raise "
            f"limits.decisions"
        )
        self.agent, self.count, self.limit = agent, count, limit


class TooManyActions(ActionError):
    """The agent has too many calls in flight, or acts faster than its `limits` allow; this one was not done, try again
    later.
    """

    def __init__(self, agent: str, reason: str) -> None:
        super().__init__(f"{agent}: {reason}; wait for some of them, or raise its limits")
        self.agent, self.reason = agent, reason


# Messages.


class UserCodeExited(ConvergeError):
    """User code ended in a way that would end its caller: by `sys.exit`, its own cancellation, a `BaseException`."""


class MessageError(ConvergeError):
    """The message was not delivered as asked."""


class Undeliverable(MessageError):
    """The recipient is not known, has left, or refuses the message."""


class Dropped(Undeliverable):
    """The recipient, or its node, stopped before its handler had ended; the handler may have begun, so no other agent
    gets the message.
    """


class Backpressure(MessageError):
    """The recipient's inbox is full; the connection stays open."""


class AskCycle(Undeliverable):
    """The recipient waits, further up the chain of questions, for the answer to this one. `chain`: the
    agents, from the one that asked first.
    """

    def __init__(self, text: str, chain: Sequence[str] = ()) -> None:
        super().__init__(text)
        self.chain = tuple(chain)


class HandlerFailed(MessageError):
    """The recipient's handler raised; the message was delivered."""


class DeliveryTimeout(MessageError, TimeoutError):
    """No receipt came by the deadline. `was_sent` is False: the recipient certainly does not have the message."""

    def __init__(self, text: str, *, was_sent: bool = True) -> None:
        super().__init__(text)
        self.was_sent = was_sent


# Channels between nodes.


class ChannelError(ConvergeError):
    """The connection to a peer cannot be used."""


class HandshakeFailed(ChannelError):
    """The peer's handshake is not authentic or not well formed."""


class HandshakeRefused(ChannelError):
    """The peer refused the handshake in clear text (a hint, never proof): another network, an unknown suite, or
    busy.
    """


class BadRecord(ChannelError):
    """A record of the channel is not authentic, out of order, or not well formed."""


class VersionMismatch(ChannelError):
    """The two nodes have no version or a critical extension in common."""


class PeerMismatch(ChannelError):
    """The node that answered is not the expected one, or is this node itself."""


class NetworkMismatch(ChannelError):
    """The peer belongs to another network."""


class TlsMismatch(ChannelError):
    """The two nodes saw different TLS certificates: something is between them that ends TLS."""


class MessageTooLarge(ChannelError):
    """A payload, or an answer, is over the limit of a message; nothing was sent."""


class ConnectionLost(ChannelError):
    """The connection broke: neither side had closed it."""


class ConnectionClosed(ChannelError):
    """The connection was closed by this side or, with a reason, by the peer."""


class ListenFailed(ChannelError):
    """The address cannot be bound."""


class ConnectFailed(ChannelError):
    """The address cannot be connected to."""


def _short(value: object) -> str:
    try:
        text = str.__str__(repr(value))
    except KeyboardInterrupt:
        raise
    except BaseException:  # it is anybody's object
        text = object.__repr__(value)
    return text if len(text) <= 80 else text[:77] + "..."
