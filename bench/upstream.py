"""The replica behind every proxy that is measured: as little work as can be, on several ports.

A POST whose body holds "stream":true is answered by a stream of as many events as it has max_tokens (CHUNKS
without), each written by itself, or by one event and then nothing if it holds "hold":true; everything
else by a small JSON body, with where the blocks are for a request that has them kept. Control paths
answer what a vLLM would.
"""

from __future__ import annotations

import asyncio
import re
import sys

import httptools
import uvloop

CHUNKS = 100
GAP = 0.002
"""Seconds between two chunks."""

_JSON = (
    b'{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"m","choices":'
    b'[{"index":0,"message":{"role":"assistant","content":"hello there"},"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":1000,"total_tokens":1016,"completion_tokens":16,'
    b'"prompt_tokens_details":{"cached_tokens":512}}}'
)
_PARAMS = (
    b',"kv_transfer_params":{"do_remote_prefill":true,"do_remote_decode":false,"remote_block_ids":'
    b'[[%b]],"remote_engine_id":"p","remote_request_id":"chatcmpl-1","remote_host":"127.0.0.1",'
    b'"remote_port":5600,"tp_size":1,"remote_num_tokens":1000,"transfer_mode":"pull"}}'
) % b",".join(b"%d" % block for block in range(64))


def _answer(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: application/json\r\n"
    return b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)


ANSWER = _answer(_JSON)
KEPT = _answer(_JSON[:-1] + _PARAMS)
"""The answer to a prefill for another engine."""
FETCHED = _answer(_JSON[:-1] + b',"system_fingerprint":"fetched"}')
"""The answer to a request that was told where its blocks are."""
HEAD = (
    b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


EVENT = _chunk(
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"m",'
    b'"choices":[{"index":0,"delta":{"content":" hello"},"logprobs":null,"finish_reason":null}]}\n\n'
)
USAGE = _chunk(
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1700000000,"model":"m",'
    b'"choices":[],"usage":{"prompt_tokens":1000,"total_tokens":1100,"completion_tokens":100,'
    b'"prompt_tokens_details":{"cached_tokens":512}}}\n\n'
)
DONE = _chunk(b"data: [DONE]\n\n")
_MODELS = b'{"object":"list","data":[{"id":"m","object":"model"}]}'
_CONTROL = {
    b"/v1/models": b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(_MODELS), _MODELS),
    b"/health": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    b"/metrics": b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n",
}


_tokens = re.compile(rb'"max_(?:completion_)?tokens":(\d+)').search


class Replica(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self.url = url
        self.stream = self.usage = self.hold = self.keep = self.fetch = False
        self.chunks = CHUNKS

    def on_body(self, body: bytes) -> None:
        # Anywhere: some proxies write a body anew, with its keys in another order.
        self.stream |= b'"stream":true' in body
        self.usage |= b'"include_usage":true' in body
        self.hold |= b'"hold":true' in body
        self.fetch |= b'"do_remote_prefill":true' in body
        self.keep |= b'"do_remote_decode":true' in body
        found = _tokens(body)
        if found:
            self.chunks = int(found[1])

    def on_message_complete(self) -> None:
        control = _CONTROL.get(self.url)
        if control is not None:
            self.transport.write(control)
        elif self.stream:
            self.left = self.chunks
            self.transport.write(HEAD)
            if self.hold:
                self.transport.write(EVENT)
            else:
                self.next()
        else:
            self.transport.write(KEPT if self.keep else FETCHED if self.fetch else ANSWER)

    def next(self) -> None:
        if self.transport.is_closing():
            return
        if self.left:
            self.left -= 1
            self.transport.write(EVENT)
            asyncio.get_running_loop().call_later(GAP, self.next)
        else:
            if self.usage:
                self.transport.write(USAGE)
            self.transport.write(DONE)
            self.transport.write(b"0\r\n\r\n")


async def main(count: int) -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(Replica, "127.0.0.1", 0) for _ in range(count)]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
