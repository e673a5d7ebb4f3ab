"""A scripted server for the tests of those who call Headgate: real gRPC on a free port, no gateway behind it.

    replies = [Reply(text="Hello"), Reply(error=RateLimited("slow down", retry_after=2))]
    with ScriptedServer({"fast": replies}) as server:
        client = Client(server.address)
        assert client.generate("fast", "Hi").text == "Hello"
        with pytest.raises(RateLimited):
            client.generate("fast", "Hi")
        assert server.calls[0].request.messages[0].parts[0].text == "Hi"

For other languages: `python -m headgate.testing --help`.
"""

from headgate.testing.script import UNKNOWN_EVENT, Model, Reply, Script, events_of, read_script
from headgate.testing.server import RecordedCall, ScriptedServer

__all__ = ["UNKNOWN_EVENT", "Model", "RecordedCall", "Reply", "Script", "ScriptedServer", "events_of", "read_script"]
