"""The options of DNS discovery."""

from __future__ import annotations

import attrs
from attrs import validators


@attrs.frozen(kw_only=True)
class DnsOptions:
    """What may be chosen.

    Attributes:
        name: Of the SRV records: `_PORT._tcp.SERVICE.NAMESPACE.svc.cluster.local` on Kubernetes.
        scheme: Of the transport behind each record.
        server: Address of the DNS server; empty: those of the system.
        port: Of that server.
        answer_sec: How long a look waits for an answer; 0.1 to 60 s.
    """

    name: str = attrs.field(
        validator=[validators.instance_of(str), validators.matches_re(r"_[^.\s]+\._[^.\s]+\.\S+")],
        metadata={"help": "name of the SRV records, such as _converge._tcp.agents.default.svc.cluster.local"},
    )
    scheme: str = attrs.field(
        default="tcp",
        validator=validators.matches_re(r"[a-z][a-z0-9+.-]*"),
        metadata={"help": "URL scheme of the transport behind each record"},
    )
    server: str = attrs.field(
        default="",
        validator=validators.instance_of(str),
        metadata={"help": "address of the DNS server; empty: those of the system"},
    )
    port: int = attrs.field(
        default=53,
        validator=[validators.instance_of(int), validators.ge(1), validators.le(65_535)],
        metadata={"help": "port of that server"},
    )
    answer_sec: float = attrs.field(
        default=5.0,
        validator=[validators.ge(0.1), validators.le(60.0)],
        metadata={"help": "longest wait for an answer", "unit": "s"},
    )
