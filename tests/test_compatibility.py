"""Former releases' stubs against this server, and this client against a former release's contract.

The stubs are built from descriptor sets in tests/compatibility, as that release's generated code would be.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from headgate import Client, v1 as pb

from tests.headgate_process import running
from tests.tools import ROOT, run

CONTRACTS = sorted((ROOT / "tests" / "compatibility").glob("*.protoset"))
SERVICE = "headgate.v1.InferenceService"
CONVERSATION = [{"role": "ROLE_USER", "parts": [{"text": "Grüße"}]}]

contracts = pytest.mark.parametrize("contract", CONTRACTS, ids=lambda path: path.stem)


class FormerContract:
    """Messages and methods of a descriptor set, which know nothing of what came later."""

    def __init__(self, path: Path) -> None:
        pool = DescriptorPool()
        for file in FileDescriptorSet.FromString(path.read_bytes()).file:
            pool.Add(file)
        self.methods = pool.FindServiceByName(SERVICE).methods_by_name

    def request(self, method: str, values: dict[str, Any]) -> Message:
        return json_format.ParseDict(values, GetMessageClass(self.methods[method].input_type)())

    def answer(self, method: str) -> type[Message]:
        return GetMessageClass(self.methods[method].output_type)

    def call(self, channel: grpc.aio.Channel, method: str, values: dict[str, Any]) -> Any:
        """A call by the stub of that release."""
        request = self.request(method, values)
        kind = channel.unary_stream if self.methods[method].server_streaming else channel.unary_unary
        stub: Any = kind(f"/{SERVICE}/{method}", type(request).SerializeToString, self.answer(method).FromString)
        return stub(request, timeout=30)


@contracts
async def test_stubs_of_a_former_release_call_this_server(contract: Path) -> None:
    """Every method answers what they understand."""
    former = FormerContract(contract)
    models = {"fast": {"targets": [{"provider": "demo", "model": "lorem"}]}}
    async with running(providers={"demo": {"adapter": "mock"}}, models=models) as headgate:
        asked = {"model": "demo/echo", "messages": CONVERSATION, "config": {"temperature": 0.5}}
        answer = await former.call(headgate.channel, "Generate", asked)
        assert answer.candidates[0].message.parts[0].text == "Grüße"
        kinds = [event.WhichOneof("event") async for event in former.call(headgate.channel, "StreamGenerate", asked)]
        assert kinds[0] == "generation_start"
        assert kinds[-1] == "generation_end"
        assert "text_delta" in kinds or "part_start" in kinds
        wanted = {"model": "demo/embed", "inputs": [{"text": "a"}], "dimensions": 4}
        embedded = await former.call(headgate.channel, "Embed", wanted)
        assert (embedded.rows, len(embedded.data)) == (1, 16)
        listed = await former.call(headgate.channel, "ListModels", {})
        assert "fast" in [model.name for model in listed.models]
        assert (await former.call(headgate.channel, "Health", {})).version
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await former.call(headgate.channel, "Generate", {"model": "nothing", "messages": CONVERSATION})
        assert failed.value.code() == grpc.StatusCode.NOT_FOUND


@contracts
def test_this_client_calls_a_server_of_a_former_release(contract: Path) -> None:
    """Whatever it sends is read there, and what comes is folded here."""
    former = FormerContract(contract)
    seen: list[Any] = []
    text = {"text": "Grüße"}
    replies: dict[str, list[dict[str, Any]]] = {
        "Generate": [{"candidates": [{"message": {"role": "ROLE_ASSISTANT", "parts": [text]}}]}],
        "StreamGenerate": [
            {"generationStart": {"id": "1"}},
            {"partStart": {"part": text, "complete": True}},
            {"candidateEnd": {"finish": {"reason": "FINISH_REASON_STOP"}}},
            {"generationEnd": {}},
        ],
        "Embed": [{"data": "AACAPw==", "dimensions": 1, "rows": 1}],
        "ListModels": [{"models": [{"name": "old"}]}],
        "Health": [{"state": "SERVING_STATE_SERVING"}],
    }

    def handler(method: str) -> grpc.RpcMethodHandler[Any, Any]:
        answers = [json_format.ParseDict(reply, former.answer(method)()) for reply in replies[method]]
        reader = type(former.request(method, {})).FromString

        def stream(request: Any, context: object) -> Iterator[Message]:
            seen.append(request)
            yield from answers

        def unary(request: Any, context: object) -> Message:
            return next(stream(request, context))

        if former.methods[method].server_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, reader, _serialized)
        return grpc.unary_unary_rpc_method_handler(unary, reader, _serialized)

    server = grpc.server(ThreadPoolExecutor(4))
    handlers = {method: handler(method) for method in former.methods}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"127.0.0.1:{port}") as client:
            assert client.generate("old", "Hi", temperature=0.5, max_output_tokens=5).text == "Grüße"
            stream = client.stream("old", "Hi").final()
            assert stream.text == "Grüße"
            assert stream.finish_reason == pb.FINISH_REASON_STOP
            assert client.embed("old", ["a"]).tolist() == [[1.0]]
            assert client.models()[0].name == "old"
            assert client.health().state == pb.SERVING_STATE_SERVING
    finally:
        server.stop(None).wait()
    assert seen[0].messages[0].parts[0].text == "Hi"
    assert seen[0].config.max_output_tokens == 5


@contracts
async def test_the_contract_breaks_no_former_release(contract: Path) -> None:
    """By buf's rules for files: nothing is removed, renamed, renumbered or retyped."""
    buf = str(ROOT / ".venv" / "bin" / "buf")
    finished = await run("env", "--chdir", str(ROOT), buf, "breaking", "--against", f"{contract}#format=binpb")
    assert finished.code == 0, finished.stdout + finished.stderr


async def test_a_broken_contract_is_noticed(tmp_path: Path) -> None:
    """The check above can fail: against a contract that had one field more."""
    described = FileDescriptorSet.FromString(CONTRACTS[0].read_bytes())
    broken = next(file for file in described.file if file.name.endswith("accounting.proto"))
    field = broken.message_type[0].field.add()
    field.name, field.number, field.type, field.label = "gone", 99, field.TYPE_STRING, field.LABEL_OPTIONAL
    former = tmp_path / "former.binpb"
    former.write_bytes(described.SerializeToString())
    finished = await run(
        "env", "--chdir", str(ROOT), str(ROOT / ".venv" / "bin" / "buf"), "breaking", "--against", str(former)
    )
    assert finished.code != 0
    assert '"gone"' in finished.stdout + finished.stderr


def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
