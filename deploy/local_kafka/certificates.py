"""A certificate authority of the cluster's own, a certificate for its brokers and one for a client, all PEM.

Rule: private keys are PKCS#8 (Kafka reads no other PEM key) and readable by their owner only.
"""

from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)


@dataclass(frozen=True)
class Certificates:
    """Where the files of a cluster are."""

    folder: Path

    @property
    def ca_file(self) -> Path:
        """The authority's certificate: what clients trust, and brokers trust of clients."""
        return self.folder / "ca.pem"

    @property
    def broker_file(self) -> Path:
        """Key and chain of the brokers, for localhost and 127.0.0.1."""
        return self.folder / "broker.pem"

    @property
    def client_cert_file(self) -> Path:
        """Chain of the client; its common name is its Kafka user."""
        return self.folder / "client.pem"

    @property
    def client_key_file(self) -> Path:
        """Key of the client."""
        return self.folder / "client-key.pem"

    def create(self, host: str, client_name: str) -> None:
        """Make the authority and both certificates, and write the files.  The authority's key is not kept."""
        authority = trustme.CA()
        broker = authority.issue_cert("localhost", host)
        client = authority.issue_cert(client_name, common_name=client_name)  # Java refuses one without a name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ca_file.write_bytes(authority.cert_pem.bytes())
        self.client_cert_file.write_bytes(_chain(client))
        _write_private(self.client_key_file, _key(client))
        _write_private(self.broker_file, _key(broker) + _chain(broker))


def _chain(issued: trustme.LeafCert) -> bytes:
    return b"".join(blob.bytes() for blob in issued.cert_chain_pems)


def _key(issued: trustme.LeafCert) -> bytes:
    key = load_pem_private_key(issued.private_key_pem.bytes(), password=None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write_private(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)
