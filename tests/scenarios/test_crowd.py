"""A crowd that connects while a node's event loop is held waits in the kernel: a first packet that the kernel drops is
sent again after a second at the earliest, and an honest peer's would be among them.
"""

from __future__ import annotations

import select
import socket
from contextlib import AbstractAsyncContextManager, ExitStack
from pathlib import Path

import pytest

from converge.contracts.transport import Transport
from converge.testing.proxy import host_and_port
from converge_transport_tcp import TcpOptions, TcpTransport
from converge_transport_ws import WsOptions, WsTransport

CROWD = 400
LONGEST = Path("/proc/sys/net/core/somaxconn")

pytestmark = pytest.mark.skipif(
    not LONGEST.exists() or int(LONGEST.read_text()) <= CROWD, reason="not applicable: the kernel's queues are shorter"
)


def opened(scheme: str) -> AbstractAsyncContextManager[Transport]:
    """Open the transport of the scheme."""
    return TcpTransport.open(TcpOptions()) if scheme == "tcp" else WsTransport.open(WsOptions())


@pytest.mark.parametrize("scheme", ["tcp", "ws"])
async def test_a_crowd_that_connects_while_the_loop_is_held_waits_in_the_kernel(scheme: str) -> None:
    async with opened(scheme) as one, one.listen(f"{scheme}://127.0.0.1:0") as listener:
        address = host_and_port(listener.address)
        with ExitStack() as stack:
            poll = select.poll()
            for _ in range(CROWD):  # the loop does not run until the block is left
                client = stack.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(address)
                poll.register(client, select.POLLOUT)
            waiting = [id_ for id_, what in poll.poll(0) if what == select.POLLOUT]
            assert len(waiting) == CROWD, f"{CROWD - len(waiting)} of {CROWD} were dropped"
