"""The command `headgate`.

Exit codes:

    0    done
    1    the call failed, or the server is not serving
    2    usage or configuration
    3    the server cannot be reached
    130  interrupted
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import App, CycloptsError, Parameter

from headgate_server import __version__
from headgate_server.cli.exits import INTERRUPTED, OK, USAGE, Failed

HELP = "One gRPC contract in front of every model vendor."
EXIT_CODES = (
    "Exit codes: 0 done; 1 the call failed, or the server is not serving; 2 usage or configuration; 3 the server "
    "cannot be reached; 130 interrupted."
)

Address = Annotated[str, Parameter(env_var="HEADGATE_ADDRESS", help="HOST:PORT of a running server.")]
AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="Print JSON.")]
LOCAL = "127.0.0.1:50051"

app = App(
    name="headgate",
    help=HELP,
    help_epilogue=EXIT_CODES,
    version=__version__,
    suppress_keyboard_interrupt=False,
)


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
def models(*, address: Address = LOCAL, json: AsJson = False) -> int:
    """List what a running server lets callers name."""
    from headgate_server.cli import remote

    return remote.models(address, as_json=json)


@app.command
def call(
    *prompt: str,
    address: Address = LOCAL,
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
    return remote.call(address, request, metadata, deadline, unary=unary, as_json=json)


@app.command
def health(*, address: Address = LOCAL, json: AsJson = False) -> int:
    """Show how a running server and its providers do."""
    from headgate_server.cli import remote

    return remote.health(address, as_json=json)


@app.command
def version(*, json: AsJson = False) -> int:
    """Show the versions of Headgate and of what it stands on."""
    from headgate_server.cli import checking

    return checking.versions(as_json=json)
