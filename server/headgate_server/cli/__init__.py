"""The command `headgate`.

Exit codes:

    0    done
    1    the call or the command failed, the server is not serving, or something that it needs is not well
    2    usage or configuration
    3    the server cannot be reached
    130  interrupted
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, CycloptsError, Parameter

from headgate_server import __version__
from headgate_server.cli.exits import INTERRUPTED, OK, USAGE, Failed
from headgate_server.cli.keys import keys
from headgate_server.cli.ledger import ledger

HELP = "One gRPC contract in front of every model vendor."
EXIT_CODES = (
    "Exit codes: 0 done; 1 the call or the command failed, the server is not serving, or something that it needs is "
    "not well; 2 usage or configuration; 3 the server cannot be reached; 130 interrupted."
)

if TYPE_CHECKING:
    from headgate_server.cli.connection import Connection

Address = Annotated[str, Parameter(env_var="HEADGATE_ADDRESS", help="HOST:PORT of a running server.")]
ApiKey = Annotated[str, Parameter(env_var="HEADGATE_API_KEY", help="API key, or another token; better by variable.")]
Tls = Annotated[bool, Parameter(negative=(), help="Connect by TLS; the next three mean it too.")]
CaFile = Annotated[Path | None, Parameter(help="Authorities to trust instead of the system's, in PEM.")]
CertFile = Annotated[Path | None, Parameter(help="Certificate to show, in PEM.")]
KeyFile = Annotated[Path | None, Parameter(help="Its private key, in PEM.")]
AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")]
ConfigFile = Annotated[
    Path | None, Parameter(help="Configuration file; by default the one that HEADGATE_CONFIG names.")
]
LedgerUrl = Annotated[
    str, Parameter(env_var="HEADGATE_LEDGER_URL", help="The ledger's URL, instead of the configuration's.")
]
LOCAL = "127.0.0.1:50051"


@Parameter(name="*")
@dataclass(frozen=True, slots=True)
class Server:
    """Where a running server is, and as whom to call it."""

    address: Address = LOCAL
    key: ApiKey = ""
    tls: Tls = False
    ca_file: CaFile = None
    cert_file: CertFile = None
    key_file: KeyFile = None

    def connection(self) -> Connection:
        """How to call it.

        Raises:
            Failed: a file cannot be read, or a key without its certificate is given.
        """
        from headgate_server.cli.connection import connection

        secure = self.tls or bool(self.ca_file or self.cert_file or self.key_file)
        return connection(self.address, self.key, secure, self.ca_file, self.cert_file, self.key_file)


To = Annotated[Server, Parameter(name="*")]
HERE = Server()

app = App(
    name="headgate",
    help=HELP,
    help_epilogue=EXIT_CODES,
    version=__version__,
    suppress_keyboard_interrupt=False,
)
app.command(keys)
app.command(ledger)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line, by default this process's own, and returns the exit code."""
    try:
        return app(arguments, exit_on_error=False, result_action="return_value") or OK
    except CycloptsError:
        return USAGE
    except Failed as failed:
        print(failed.text, file=sys.stderr)
        return failed.code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


@app.command
def serve(*, config: Path | None = None) -> int:
    """Serve until SIGTERM or SIGINT, then drain.

    Parameters
    ----------
    config
        Configuration file; by default the one that HEADGATE_CONFIG names. With neither, the mock is served on loopback,
        and every known host whose usual key variable is set.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # the core's own lines on stderr are not JSON
    from headgate_server.config import ConfigError, load, named_file

    try:
        configuration = load(config, os.environ)
    except ConfigError as error:
        raise Failed(USAGE, str(error)) from error
    from headgate_server.app import run
    from headgate_server.tls import hold_to_minimum_version

    hold_to_minimum_version(configuration.server.tls)
    try:
        run(configuration, named_file(config, os.environ), os.environ)
    except OSError as error:
        raise Failed(USAGE, f"error: {error}") from error
    return OK


@app.command
def check_config(file: Path | None = None, *, json: AsJson = False) -> int:
    """Say everything that is wrong with a configuration, without serving it.

    Parameters
    ----------
    file
        Configuration file; by default what `headgate serve` would take.
    """
    from headgate_server.cli import checking

    return checking.check(file, os.environ, as_json=json)


@app.command
def doctor(file: Path | None = None, *, json: AsJson = False) -> int:
    """Look at all that a configuration needs, and say what to do: vendors and their keys, Redis, the database and its
    tables, certificates, clocks, open files. Nothing is changed, and vendors are asked for their models alone.

    Parameters
    ----------
    file
        Configuration file; by default what `headgate serve` would take.
    """
    from headgate_server.cli import examination

    return examination.doctor(file, os.environ, as_json=json)


@app.command
def models(*, to: To = HERE, json: AsJson = False) -> int:
    """List what a running server lets callers name."""
    from headgate_server.cli import remote

    return remote.models(to.connection(), as_json=json)


@app.command
def call(
    *prompt: str,
    to: To = HERE,
    model: Annotated[str, Parameter(name=["--model", "-m"])] = "",
    data: Annotated[str, Parameter(name=["--data", "-d"], allow_leading_hyphen=True)] = "",
    header: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    deadline: float = 600.0,
    unary: Annotated[bool, Parameter(negative=())] = False,
    json: AsJson = False,
) -> int:
    """Generate, and print the answer as it comes. Thinking and usage are shown with --json only.

    Parameters
    ----------
    prompt
        What the user says, after the messages of --data.
    model
        An alias, or provider/model.
    data
        A GenerateRequest as JSON: the text itself, @FILE, or @ for standard input.
    header
        Request metadata as NAME:VALUE, any number of times.
    deadline
        Seconds until the call is given up.
    unary
        Ask for the whole answer at once.
    """
    from headgate_server.cli import remote

    request = remote.generate_request(model, " ".join(prompt), data)
    metadata = remote.metadata(header)
    return remote.call(to.connection(), request, metadata, deadline, unary=unary, as_json=json)


@app.command
def health(*, to: To = HERE, json: AsJson = False) -> int:
    """Show how a running server and its providers do."""
    from headgate_server.cli import remote

    return remote.health(to.connection(), as_json=json)


@app.command
def usage(
    *,
    by: str = "model",
    since: str = "24h",
    until: str = "",
    tenant: str | None = None,
    api_key: Annotated[str | None, Parameter(name="--api-key")] = None,
    model: str | None = None,
    provider: str | None = None,
    label: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    config: ConfigFile = None,
    url: LedgerUrl = "",
    json: AsJson = False,
    csv: Annotated[
        bool,
        Parameter(
            negative=(), help="Print CSV; what a spreadsheet would take for a formula has an apostrophe before it."
        ),
    ] = False,
) -> int:
    """Sum up calls, tokens and cost of the ledger: every upstream attempt counts, whatever became of its caller.

    Parameters
    ----------
    by
        What to sum by, with commas: tenant, key, model (as callers name it), provider, target (as the vendor names the
        model), day (in UTC), label:NAME; "" for one sum.
    since
        Attempts that began so long ago at most, such as 24h or 30d, or at this date or time (2026-11-01).
    until
        Attempts that began before that; by default now.
    tenant
        Of this tenant alone.
    api_key
        Of the key with this id alone.
    model
        Of calls alone that asked for this model.
    provider
        Of this provider alone.
    label
        Of calls alone with this label, as NAME=VALUE, any number of times.
    """
    from headgate_server.cli import accounts

    chosen = {"tenant": tenant, "key": api_key, "model": model, "provider": provider}
    only = {name: value for name, value in chosen.items() if value is not None} | accounts.labels(label)
    return accounts.usage(accounts.ledger_url(config, url), by, since, until, only, as_json=json, as_csv=csv)


@app.command
def budgets(*, config: ConfigFile = None, url: LedgerUrl = "", json: AsJson = False) -> int:
    """Show each budget of a configuration: what is spent by the ledger, what is left, and when it begins anew.

    Budgets of callers' own are shown of static keys.
    """
    from headgate_server.cli import accounts

    return accounts.budgets(config, url, as_json=json)


@app.command
def version(*, json: AsJson = False) -> int:
    """Show the versions of Headgate and of what it stands on."""
    from headgate_server.cli import checking

    return checking.versions(as_json=json)
