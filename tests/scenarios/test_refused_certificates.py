"""A certificate that is refused is refused for a reason, at both ends, over each transport that has TLS."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest

from converge.contracts.transport import Listener, Transport
from converge.errors import ChannelError, ConnectFailed
from converge.testing._transport.certificates import Authority
from converge_transport_tcp import TcpOptions, TcpTransport
from converge_transport_ws import WsOptions, WsTransport


def tls(**options: Any) -> AbstractAsyncContextManager[Transport]:
    return TcpTransport.open(TcpOptions(**options))


def wss(**options: Any) -> AbstractAsyncContextManager[Transport]:
    return WsTransport.open(WsOptions(**options))


WAYS = pytest.mark.parametrize(
    ("anyio_backend", "opened", "where"),
    [
        ("asyncio", tls, "tls://127.0.0.1:0"),
        ("trio", tls, "tls://127.0.0.1:0"),
        ("asyncio", wss, "wss://127.0.0.1:0/c"),
    ],
    ids=["tls", "tls-trio", "wss"],
)


@WAYS
@pytest.mark.parametrize(
    "why",
    [
        "unable to get local issuer certificate",
        "certificate has expired",
        "certificate is not valid for '127.0.0.1'",
    ],
)
async def test_a_certificate_that_is_refused_is_refused_for_a_reason(
    tmp_path: Path, opened: Any, where: str, why: str
) -> None:
    house, other = Authority(tmp_path, "house"), Authority(tmp_path, "other")
    elsewhere = Authority(tmp_path, "elsewhere", ["127.0.0.2"])
    issued, ca = {
        "unable to get local issuer certificate": (house.issue("server"), other.ca),
        "certificate has expired": (house.issue("late", days=-1), house.ca),
        "certificate is not valid for '127.0.0.1'": (elsewhere.issue("server"), elsewhere.ca),
    }[why]
    told: list[str] = []
    async with opened(**issued) as there, opened(ca=ca) as here, there.listen(where) as listener:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                group.start_soon(refused, listener, told)
                advice = "renew it there" if "expired" in why else "compare that certificate"
                with pytest.raises(ConnectFailed, match=f"cannot be verified: .*{why}; {advice}"):
                    await here.connect(listener.address)
    if where.startswith("tls:"):
        assert "TLS failed: the other side says" in told[0]
    else:
        assert told, "the other side learns of it"


async def refused(listener: Listener, told: list[str]) -> None:
    """Note why the channel that comes is none."""
    channel = await listener.accept()
    with pytest.raises(ChannelError) as raised:
        await channel.receive()
    told.append(str(raised.value))


@WAYS
@pytest.mark.parametrize(
    "why", ["PEER_DID_NOT_RETURN_A_CERTIFICATE", "unable to get local issuer certificate", "certificate has expired"]
)
async def test_a_client_that_is_refused_is_refused_for_a_reason(
    tmp_path: Path, opened: Any, where: str, why: str
) -> None:
    house, other = Authority(tmp_path, "house"), Authority(tmp_path, "other")
    shown = {
        "PEER_DID_NOT_RETURN_A_CERTIFICATE": {},
        "unable to get local issuer certificate": other.issue("foreign"),
        "certificate has expired": house.issue("late", days=-1),
    }[why]
    told: list[str] = []
    mutual, client = opened(**house.issue("server"), mutual=True), opened(**{**shown, "ca": house.ca})
    async with mutual as there, client as here, there.listen(where) as listener:
        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                group.start_soon(refused, listener, told)
                with pytest.raises((ConnectFailed, ChannelError), match=r"the other side says|its log says why"):
                    await (await here.connect(listener.address)).receive()
    assert why in told[0]
