"""Certificates on this machine, and how many files a process may open here."""

from __future__ import annotations

import resource
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

from headgate_server.config import Config
from headgate_server.doctor.finding import Finding, State
from headgate_server.transports.connections import ClientCertificate, tls_context

DAY_SECONDS = 86_400
SOON_DAYS = 14
OTHER_FILES = 100
IGNORE_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME, which the ssl module does not name: an expired certificate is to be read, too."""


def certificates(config: Config) -> Iterator[Finding]:
    """Each certificate that is shown to callers or vendors, and when it expires."""
    if tls := config.server.tls:
        yield _certificate("server.tls", ClientCertificate(tls.certificate_file, tls.key_file))
        if tls.client_ca_file:
            yield _authorities("server.tls.client_ca_file", tls.client_ca_file)
    for name, provider in config.providers.items():
        if file := provider.client_certificate_file:
            yield _certificate(f"providers.{name}", ClientCertificate(file, provider.client_key_file))
        if provider.ca_file:
            yield _authorities(f"providers.{name}.ca_file", provider.ca_file)


def _certificate(subject: str, certificate: ClientCertificate) -> Finding:
    try:
        return _expiry(subject, _shown(certificate)["notAfter"])
    except OSError as error:  # as is whatever OpenSSL finds wrong
        return Finding("certificate", subject, State.FAILED, str(error), "mend the files: no connection would come up")


def _authorities(subject: str, file: Path) -> Finding:
    """The one that expires first."""
    expiries = [str(authority["notAfter"]) for authority in tls_context(file).get_ca_certs()]
    if not expiries:
        return Finding("certificate", subject, State.WARNING, "holds no certificate of an authority", "see to the file")
    return _expiry(subject, min(expiries, key=ssl.cert_time_to_seconds))


def _expiry(subject: str, not_after: str) -> Finding:
    days = (ssl.cert_time_to_seconds(not_after) - time.time()) / DAY_SECONDS
    advice = "renew it: changed files are taken without a restart"
    if days < 0:
        return Finding("certificate", subject, State.FAILED, f"expired on {not_after}", advice)
    state = State.WARNING if days < SOON_DAYS else State.OK
    detail = f"expires in {days:.0f} days, on {not_after}"
    return Finding("certificate", subject, state, detail, advice if state is State.WARNING else "")


def _shown(certificate: ClientCertificate) -> dict[str, str]:
    """What a peer would see: a handshake within this process, which the ssl module reads certificates by alone.

    Raises:
        OSError: the files cannot be used (ssl.SSLError is one).
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate.file, certificate.key_file, password="")
    client = ssl.create_default_context(cafile=certificate.file)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(IGNORE_TIME)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    peers = (client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True))
    for peer in peers * 3:
        try:
            peer.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return {name: value for name, value in (peers[0].getpeercert() or {}).items() if isinstance(value, str)}


def open_files(config: Config) -> Iterator[Finding]:
    """Each connection of a caller, and each to a vendor, is an open file."""
    _, allowed = resource.getrlimit(resource.RLIMIT_NOFILE)
    vendors = sum(provider.max_connections for provider in config.providers.values() if provider.adapter != "mock")
    needed = (config.server.max_connections or allowed) + vendors + OTHER_FILES
    detail = f"{allowed} may be open, {needed} can be needed"
    if needed <= allowed or allowed == resource.RLIM_INFINITY:
        yield Finding("open files", "this machine", State.OK, detail)
    else:
        advice = f"raise the hard limit (ulimit -n, LimitNOFILE=), or set server.max_connections below {allowed}"
        yield Finding("open files", "this machine", State.WARNING, detail, advice)
