"""The built-in mock: a transport that answers from inside the process, in OpenAI's wire, without a socket.

Everything around it is real: adapters, the attempt loop, cancellation, errors.
"""

from headgate_server.transports.mock.transport import MockTransport

__all__ = ["MockTransport"]
