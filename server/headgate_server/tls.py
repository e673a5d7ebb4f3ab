"""TLS of the listener, whose certificates may be replaced while it serves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import grpc
import structlog

from headgate_server.config import Tls
from headgate_server.transports.connections import ClientCertificate, tls_context

log = structlog.get_logger(component="server")

Fingerprint = tuple[tuple[int, int], ...]


class CertificateFiles:
    """The files of a listener. `changed` is called on threads of gRPC's core, before each handshake."""

    def __init__(self, tls: Tls) -> None:
        self._tls = tls
        self.refusals = 0
        """How many changed files could not be used."""
        self._paths = [path for path in (tls.certificate_file, tls.key_file, tls.client_ca_file) if path]
        self._seen: Fingerprint = ()
        self._refused: Fingerprint = ()

    @property
    def changed_at(self) -> float:
        """When the certificate that is in use was written, in seconds since the epoch."""
        return self._seen[0][0] / 1e9

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials that take changed files from the next connection on.

        With `client_ca_file` every client must show a certificate: gRPC's core can require one or not ask at all.

        Raises:
            OSError: a file cannot be read.
        """
        return grpc.dynamic_ssl_server_credentials(
            self.read(),
            self.changed,  # type: ignore[arg-type]  # None stands for no change, which types-grpcio does not know
            self._tls.client_ca_file is not None,
        )

    def read(self) -> grpc.ServerCertificateConfiguration:
        """What the files hold now.

        Raises:
            OSError: one cannot be read.
        """
        found = _fingerprint(self._paths)
        authorities = self._tls.client_ca_file
        configuration = grpc.ssl_server_certificate_configuration(
            [(self._tls.key_file.read_bytes(), self._tls.certificate_file.read_bytes())],
            authorities.read_bytes() if authorities else None,
        )
        self._seen = found
        return configuration

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What they hold, if they changed since they were read; the last certificate goes on if they cannot be read."""
        found = _fingerprint(self._paths)
        if found in (self._seen, self._refused):
            return None
        try:
            tls_context(self._tls.client_ca_file, ClientCertificate(self._tls.certificate_file, self._tls.key_file))
            configuration = self.read()
        except OSError as error:  # as is whatever OpenSSL finds wrong
            self._refused = found
            self.refusals += 1
            log.error("certificate_not_reloaded", file=str(self._tls.certificate_file), detail=error.strerror)
            return None
        log.info("certificate_reloaded", file=str(self._tls.certificate_file))
        return configuration


def _fingerprint(paths: Sequence[Path]) -> Fingerprint:
    """What tells changed files from those that were seen; a missing one is a state of its own."""
    return tuple(_state(path) for path in paths)


def _state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_ino
