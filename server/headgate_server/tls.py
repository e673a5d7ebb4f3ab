"""TLS of a listener, whose certificates may be replaced while it serves."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import grpc
import structlog

from headgate_server.config import Tls
from headgate_server.transports.connections import ClientCertificate, tls_context

CIPHERS_VARIABLE = "GRPC_SSL_CIPHER_SUITES"
TLS_1_3_ALONE = "ECDHE-PSK-CHACHA20-POLY1305"
"""A suite of TLS 1.2 that needs a key both sides have, which nobody has here; those of 1.3 are always on."""

log = structlog.get_logger(component="server")

Fingerprint = tuple[tuple[int, int], ...]


class CertificateFiles:
    """The files of a listener. `changed` is called on threads of gRPC's core, before each handshake.

    Args:
        tls: what files.
        asks_clients: every client must show a certificate. gRPC's core can require one, or not ask at all.
    """

    def __init__(self, tls: Tls, *, asks_clients: bool) -> None:
        self._tls = tls
        self._authorities = tls.client_ca_file if asks_clients else None
        self.refusals = 0
        """How many changed files could not be used."""
        self._paths = [path for path in (tls.certificate_file, tls.key_file, self._authorities) if path]
        self._seen: Fingerprint = ()
        self._refused: Fingerprint = ()

    @property
    def changed_at(self) -> float:
        """When the certificate that is in use was written, in seconds since the epoch."""
        return self._seen[0][0] / 1e9

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials that take changed files from the next connection on.

        Raises:
            OSError: a file cannot be read.
        """
        self._seen = _fingerprint(self._paths)
        return grpc.dynamic_ssl_server_credentials(
            self._read(),
            self.changed,  # type: ignore[arg-type]  # None stands for no change, which types-grpcio does not know
            self._authorities is not None,
        )

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What they hold, if they changed since they were read; the last certificate goes on if they cannot be read."""
        found = _fingerprint(self._paths)
        if found in (self._seen, self._refused):
            return None
        try:
            tls_context(self._authorities, ClientCertificate(self._tls.certificate_file, self._tls.key_file))
            configuration = self._read()
        except OSError as error:  # as is whatever OpenSSL finds wrong
            self._refused = found
            self.refusals += 1
            log.error("certificate_not_reloaded", file=str(self._tls.certificate_file), detail=error.strerror)
            return None
        if _fingerprint(self._paths) != found:  # replaced meanwhile: not what was tried; the next handshake looks again
            return None
        self._seen = found
        log.info("certificate_reloaded", file=str(self._tls.certificate_file))
        return configuration

    def _read(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(self._tls.key_file.read_bytes(), self._tls.certificate_file.read_bytes())],
            self._authorities.read_bytes() if self._authorities else None,
        )


def hold_to_minimum_version(tls: Tls | None) -> None:
    """Begins this process anew where it takes TLS 1.3 alone: gRPC's core knows no other way than a variable, and reads
    it when it is imported, before any configuration is."""
    if tls and tls.minimum_version == "1.3" and os.environ.get(CIPHERS_VARIABLE) != TLS_1_3_ALONE:
        os.environ[CIPHERS_VARIABLE] = TLS_1_3_ALONE
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _fingerprint(paths: Sequence[Path]) -> Fingerprint:
    """What tells changed files from those that were seen; a missing one is a state of its own."""
    return tuple(_state(path) for path in paths)


def _state(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return 0, 0
    return status.st_mtime_ns, status.st_ino
