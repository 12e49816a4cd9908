"""Certificates of a connection, read and checked before gRPC gets them, which tells nobody what is wrong with one."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from refrag_client.errors import InvalidRequest


@dataclass(frozen=True)
class Tls:
    """Certificates as PEM files; without `root_certificates` the system's own are trusted.

    `private_key` and `certificate_chain` belong together: they tell the server who calls.
    """

    root_certificates: str | Path | None = None
    private_key: str | Path | None = None
    certificate_chain: str | Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Return the credentials of a channel; raise InvalidRequest that names the file that is no certificate."""
        if (self.private_key is None) != (self.certificate_chain is None):
            given, lacking = ("private_key", "certificate_chain")[:: -1 if self.private_key is None else 1]
            raise InvalidRequest(f"{given} is given without {lacking}; give both, or neither")
        contents = {name: _read(name, path) for name, path in vars(self).items()}
        self._check()
        return grpc.ssl_channel_credentials(**contents)

    def _check(self) -> None:
        context = ssl.create_default_context()
        if self.root_certificates is not None:
            try:
                context.load_verify_locations(self.root_certificates)
            except ssl.SSLError as error:
                raise _refused("root_certificates", self.root_certificates, error) from None
        if self.private_key is not None and self.certificate_chain is not None:
            try:
                # An empty password, so that OpenSSL does not ask for one: gRPC takes no encrypted key.
                context.load_cert_chain(self.certificate_chain, self.private_key, password="")
            except ssl.SSLError as error:
                raise _refused("certificate_chain and private_key", self.certificate_chain, error) from None


def _read(name: str, path: str | Path | None) -> bytes | None:
    try:
        return None if path is None else Path(path).read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{name} cannot be read from {path}: {error.strerror}") from None


def _refused(name: str, path: str | Path, error: ssl.SSLError) -> InvalidRequest:
    return InvalidRequest(f"{name} do not fit ({path}): {error.reason or error}; give unencrypted PEM files")
