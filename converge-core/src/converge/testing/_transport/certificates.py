"""Certificates for tests: an authority that signs those of this host, and writes them to files."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Authority:
    """An authority that signs certificates for `localhost` and these addresses; they are valid for a day."""

    def __init__(self, folder: Path, name: str, addresses: Sequence[str] = ("127.0.0.1",)) -> None:
        self._addresses = addresses
        self.folder, self.name, self.key = folder, name, ec.generate_private_key(ec.SECP256R1())
        self.ca = str(folder / f"{name}-ca.pem")
        self.certificate = self._sign(name, self.key.public_key())
        Path(self.ca).write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, days: float = 1.0, *, is_sealed: bool = False) -> dict[str, Any]:
        """Write a certificate that is valid for so many days more, and its key; return the files, and the authority's
        own, as options of a transport. `is_sealed`: the key has a passphrase.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        certificate, file = self._sign(name, key.public_key(), days), self.folder / f"{name}.pem"
        file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        seal = serialization.BestAvailableEncryption(b"secret") if is_sealed else serialization.NoEncryption()
        private = self.folder / f"{name}-key.pem"
        private.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, seal))
        private.chmod(0o600)
        return self.files(name)

    def files(self, name: str) -> dict[str, Any]:
        """Return the files that `issue` has written under a name."""
        file, key = self.folder / f"{name}.pem", self.folder / f"{name}-key.pem"
        return {"certificate": str(file), "key": str(key), "ca": self.ca}

    def _sign(self, name: str, key: ec.EllipticCurvePublicKey, days: float | None = None) -> x509.Certificate:
        """Sign a certificate; without days it is the authority's own."""
        is_authority = days is None
        now, subject = datetime.datetime.now(datetime.UTC), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        hosts = [x509.DNSName("localhost"), *(x509.IPAddress(ipaddress.ip_address(one)) for one in self._addresses)]
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject if is_authority else self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=2))
            .not_valid_after(now + datetime.timedelta(days=days or 1))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(hosts), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
            .sign(self.key, hashes.SHA256())
        )
