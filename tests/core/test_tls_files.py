"""The files of TLS while they are replaced, and when the certificate is out of date."""

from __future__ import annotations

import logging
from pathlib import Path

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
    with pytest.raises(ConfigError, match="key values mismatch"):
        files(one | {"key": two["key"]}).server()


def test_a_certificate_that_is_out_of_date_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    authority = Authority(tmp_path, "house")
    with caplog.at_level(logging.WARNING, "converge.tls"):
        files(authority.issue("fine")).server()
        assert caplog.text == ""
        files(authority.issue("late", days=-1)).server()
    assert "late.pem is valid from" in caplog.text


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the key is encrypted"):
        files(Authority(tmp_path, "house").issue("node", is_sealed=True)).server()
