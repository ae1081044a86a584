"""Calls of etcd's JSON gateway, and what each failure means for the caller of a store."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from typing import Any

import httpx

from converge.errors import OutcomeUnknown, StoreBusy, StoreFull, StoreRefused, StoreUnavailable

Op = dict[str, Any]
"""An operation, or a comparison, of a transaction, as JSON."""

# What etcd says when it has not even proposed the change; after any other failure it may have been made.
NOT_PROPOSED = {
    "database space exceeded": StoreFull,
    "too many requests": StoreBusy,
    "request is too large": StoreRefused,
    "too many operations": StoreRefused,
    "no leader": StoreUnavailable,
    "permission denied": StoreRefused,
}


def text(data: bytes) -> str:
    """Return bytes as the gateway takes them."""
    return b64encode(data).decode()


class Body(httpx.AsyncByteStream):
    """The body of a request. httpx's own is an async generator, which trio warns of when its call is cancelled."""

    def __init__(self, data: bytes) -> None:
        self._parts = iter([data])

    def __aiter__(self) -> Body:
        return self

    async def __anext__(self) -> bytes:
        for part in self._parts:
            return part
        raise StopAsyncIteration


class Client:
    """The members of one cluster; a member that cannot be reached is passed over."""

    def __init__(self, members: Sequence[str], call_sec: float) -> None:
        self._members, self._first = list(members), 0
        self._http = httpx.AsyncClient(timeout=call_sec, trust_env=False)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def call(self, path: str, body: Op, *, writes: bool) -> Any:
        """Ask the member that answered last, then the others.

        Raises:
            NotApplied: Nothing was written; its leaves say why.
            OutcomeUnknown: No answer; what was to be written may have been.
        """
        failure: Exception = StoreUnavailable("no member of the cluster is named")
        for _ in self._members:
            member = self._members[self._first]
            try:
                answer = await self._http.send(self._request(f"http://{member}/v3/{path}", body))
                said = answer.json()
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:  # it has seen nothing of this call
                failure = StoreUnavailable(f"etcd at {member} cannot be reached: {error}")
                failure.__cause__ = error
            except (httpx.HTTPError, ValueError) as error:
                failure = OutcomeUnknown(f"etcd at {member} did not answer: {type(error).__name__}")
                failure.__cause__ = error
            else:
                if answer.is_success:
                    return said
                failure = self._refusal(member, str(said.get("error", said)))
            if isinstance(failure, OutcomeUnknown) and not writes:  # nothing can have been written
                cause, failure = failure, StoreUnavailable(str(failure))
                failure.__cause__ = cause
            if not isinstance(failure, StoreUnavailable):
                break
            self._first = (self._first + 1) % len(self._members)
        raise failure

    def _request(self, url: str, body: Op) -> httpx.Request:
        data = json.dumps(body).encode()
        headers = {"content-type": "application/json", "content-length": str(len(data))}
        request = self._http.build_request("POST", url, headers=headers)
        request.stream = Body(data)
        return request

    def _refusal(self, member: str, said: str) -> Exception:
        known = next((kind for words, kind in NOT_PROPOSED.items() if words in said), OutcomeUnknown)
        return known(f"etcd at {member}: {said}")
