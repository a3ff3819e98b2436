"""How much the load client can do on one core: python -m bench.loadgen (not by its path, which
would hide the package)

Two cases against a server in another process that answers from prepared bytes: many short requests,
and streams of many chunks. Reports what went through for each second of the client's CPU time,
which is what one core could do, since the server shares the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import resource
from multiprocessing.connection import Connection
from typing import cast

import uvloop

from loadgen.client.body import BodyMaker
from loadgen.client.driver import Driver
from loadgen.client.target import Target
from loadgen.workloads import Closed, Plan, make

EVENT = (
    b'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1,"model":"m","choices":'
    b'[{"index":0,"delta":{"content":"word "},"logprobs":null,"finish_reason":null}]}\n\n'
)
USAGE = (
    b'data: {"id":"chatcmpl-0","object":"chat.completion.chunk","created":1,"model":"m","choices":'
    b'[],"usage":{"prompt_tokens":100,"total_tokens":110,"completion_tokens":10,'
    b'"prompt_tokens_details":{"cached_tokens":50}}}\n\n'
)


def _answer(chunks: int) -> bytes:
    events = [EVENT] * chunks + [USAGE, b"data: [DONE]\n\n"]
    body = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in events)
    head = (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    return head + body + b"0\r\n\r\n"


class _Server(asyncio.Protocol):
    answer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.left = cast(asyncio.Transport, transport), 0

    def data_received(self, data: bytes) -> None:
        if not self.left:
            head, _, body = data.partition(b"\r\n\r\n")
            self.left = int(head[head.index(b"content-length: ") + 16 :].split(b"\r\n")[0])
            self.left -= len(body)
        else:
            self.left -= len(data)
        if not self.left:
            self.transport.write(self.answer)


async def _serve(pipe: Connection, chunks: int) -> None:
    _Server.answer = _answer(chunks)
    server = await asyncio.get_running_loop().create_server(_Server, "127.0.0.1", 0)
    pipe.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def _server(pipe: Connection, chunks: int) -> None:
    uvloop.run(_serve(pipe, chunks))


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def _load(port: int, requests: int, prompt_tokens: int) -> tuple[float, int, int]:
    workload = make("unique", {"prompt_tokens": str(prompt_tokens)})
    plan = Plan(workload, Closed(32), requests=requests)
    target = Target(f"http://127.0.0.1:{port}", "/v1/chat/completions")
    driver = Driver(plan, [target], BodyMaker("m"))
    before = _cpu()
    records = await driver.run()
    used = _cpu() - before
    failed = sum(1 for reason in records.reason if reason)
    if failed:
        raise SystemExit(f"{failed} of {len(records)} failed: {records.reasons.names[1:]}")
    return used, len(records), records.gaps.count + len(records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=6000)
    options = parser.parse_args()
    for title, chunks, requests in (
        ("10 chunks each, 2,000-token prompts", 10, options.requests),
        ("500 chunks each", 500, max(50, options.requests // 10)),
    ):
        ours, theirs = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=_server, args=(theirs, chunks), daemon=True
        )
        process.start()
        try:
            used, done, seen = uvloop.run(_load(ours.recv(), requests, 2000))
        finally:
            process.terminate()
            process.join()
        print(f"{title}: {done / used:,.0f} requests/s, {seen / used:,.0f} chunks/s of one core")


if __name__ == "__main__":
    main()
