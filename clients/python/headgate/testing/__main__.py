"""Serve a script, for the tests of clients in any language.

    python -m headgate.testing --script FILE [--port PORT] [--quiet]

FILE is JSON: models (`*` for any other), each with a list of replies. Calls of a model take them in order; the last one
is repeated. A reply has any of

    text          a string, or a list of pieces, each of which is a text_delta
    tool_calls    [{"id", "name", "arguments"}]
    response      a whole GenerateResponse in protobuf's JSON form, instead of the two above
    events        a list of StreamGenerateResponse in that form, sent as they are; {"unknown": true} is an event of a
                  later release
    error         {"reason" or "code", "message", "retry_after" (seconds), "violations": [{"field", "description"}],
                  "limits": [{"subject", "description"}], "resource": {"type", "name"}, "details": {...}};
                  it comes after the content, which is then marked as partial. With no reason no details are sent
    pushback_ms   the trailer grpc-retry-pushback-ms of that error
    delay, pause  seconds before anything, and before each further event
    hang          true: no end is sent, until the caller leaves
    dimensions    numbers in each row of Embed; all are the input's own number, or else its number of characters

Printed are lines of JSON. The first is {"address": "127.0.0.1:PORT"}. A call is told as it comes:

    {"call": 0, "method": "Generate", "metadata": {...}, "timeout": 9.99, "request": {...}}

and when it has ended, as {"ended": 0, "outcome": "OK"}, where the outcome may be an error's code, or CANCELLED when the
caller left; --quiet leaves calls out. The server runs until standard input is closed, or SIGTERM.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import threading
from pathlib import Path

from google.protobuf import json_format
from headgate.testing.script import read_script
from headgate.testing.server import RecordedCall, ScriptedServer


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m headgate.testing", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--script", type=Path, required=True, metavar="FILE", help="what to answer")
    parser.add_argument("--port", type=int, default=0, help="0, the default, takes a free one")
    parser.add_argument("--quiet", action="store_true", help="print the address alone")
    arguments = parser.parse_args()
    try:
        script = read_script(arguments.script)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    observe = (lambda call: None) if arguments.quiet else Printer().show
    with ScriptedServer(script, port=arguments.port, observe=observe) as server:
        _print(address=server.address)
        sys.stdin.read()
    return 0


class Printer:
    """Tells of calls, each by a number in the order of their coming."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._known: dict[int, int] = {}
        self._lock = threading.Lock()

    def show(self, call: RecordedCall) -> None:
        with self._lock:
            if call.outcome and id(call) in self._known:
                _print(ended=self._known.pop(id(call)), outcome=call.outcome)
                return
            number = self._known[id(call)] = next(self._numbers)
            request = json_format.MessageToDict(call.request)
            _print(call=number, method=call.method, metadata=dict(call.metadata), timeout=call.timeout, request=request)


def _print(**values: object) -> None:
    print(json.dumps(values), flush=True)


if __name__ == "__main__":
    sys.exit(main())
