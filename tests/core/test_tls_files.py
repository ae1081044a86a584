"""The files of TLS while they are replaced, and when the certificate is out of date."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from converge.errors import ConfigError
from converge.net.tls import TlsFiles
from converge.testing._transport.certificates import Authority


def files(issued: dict[str, str]) -> TlsFiles:
    """Return the files of a transport."""
    return TlsFiles(**issued, is_mutual=False)


def test_files_that_are_replaced_one_by_one_stay_in_use_until_they_fit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority, elsewhere = Authority(tmp_path, "house"), tmp_path / "new"
    elsewhere.mkdir()
    used, new = authority.issue("node"), Authority(elsewhere, "house").issue("node")
    own = files(used)
    first = own.server()
    Path(used["certificate"]).write_bytes(Path(new["certificate"]).read_bytes())
    assert [own.server(), own.server()] == [first, first]
    Path(used["key"]).unlink()
    assert [own.server(), own.server()] == [first, first]
    told = [record.getMessage() for record in caplog.records if record.name == "converge.tls"]
    assert len(told) == 2, "once for each state of the files"
    assert all("those read before are" in one for one in told)
    Path(used["key"]).write_bytes(Path(new["key"]).read_bytes())
    second = own.server()
    assert second[1] == files(new).server()[1] != first[1]


def test_files_that_never_fitted_are_refused(tmp_path: Path) -> None:
    one, two = Authority(tmp_path, "house").issue("one"), Authority(tmp_path, "house").issue("two")
    with pytest.raises(ConfigError, match=r"two-key\.pem is not the key of the first certificate in .*one\.pem"):
        files(one | {"key": two["key"]}).server()


def test_a_certificate_that_is_out_of_date_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority = Authority(tmp_path, "house")
    with caplog.at_level(logging.WARNING, "converge.tls"):
        files(authority.issue("fine")).server()
        assert caplog.text == ""
        files(authority.issue("late", days=-1)).server()
    assert "late.pem is valid from" in caplog.text


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"node-key\.pem: the key is encrypted"):
        files(Authority(tmp_path, "house").issue("node", is_sealed=True)).server()


@pytest.mark.parametrize("which", ["certificate", "key", "ca"])
@pytest.mark.parametrize(
    ("content", "why"),
    [(b"", r"holds no .*must be PEM"), (None, "No such file"), (b"\x30\x82", "must be PEM"), (..., "Is a directory")],
    ids=["empty", "missing", "binary", "folder"],
)
def test_the_file_that_cannot_be_used_is_named_with_the_reason(
    tmp_path: Path, which: str, content: Any, why: str
) -> None:
    issued, wrong = Authority(tmp_path, "house").issue("node"), tmp_path / "wrong"
    if content is ...:
        wrong.mkdir()
    elif content is not None:
        wrong.write_bytes(content)
    with pytest.raises(ConfigError, match=why) as raised:
        TlsFiles(**issued | {which: str(wrong)}, is_mutual=True).server()
    assert str(wrong) in str(raised.value)


def test_a_new_key_that_could_not_be_used_at_first_is_used_when_it_can_be_though_its_time_is_the_same(
    tmp_path: Path,
) -> None:
    authority = Authority(tmp_path, "house")
    own = files(authority.issue("node"))
    own.server()
    key = Path(authority.issue("node")["key"])
    good, mended = key.read_bytes(), key.stat().st_mtime_ns
    key.write_bytes(good[::-1])  # as one that this user may not read yet
    os.utime(key, ns=(mended, mended))
    own.server()
    key.write_bytes(good)
    changed = key.stat().st_ctime_ns
    while key.stat().st_ctime_ns == changed:  # the clock of the file system has ticks
        os.utime(key, ns=(mended, mended))
    assert own.server()[1] == files(authority.files("node")).server()[1]


def test_a_key_that_every_user_can_read_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    issued = Authority(tmp_path, "house").issue("node")
    Path(issued["key"]).chmod(0o644)
    own = files(issued)
    own.server()
    own.client()
    assert [record.getMessage() for record in caplog.records if record.name == "converge.tls"] == [
        f"every user of this host can read the private key in {issued['key']}; chmod 600 it"
    ]
