"""An HTTP server that speaks list and watch as a Kubernetes API server does.

Shapes, status codes and the order of things follow the Kubernetes API concepts: paged lists with
`continue`, a watch from a resourceVersion as chunked JSON lines, bookmarks, 410 as a status and as
an ERROR event, 401 and 403 as Status objects.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]


def endpoint(
    url: str, uid: str = "", *, ready: bool | None = True, terminating: bool = False
) -> Object:
    """One endpoint of a slice; its port belongs to the slice."""
    host = urlsplit(url).hostname
    conditions: Object = {"serving": True, "terminating": terminating}
    if ready is not None:
        conditions["ready"] = ready
    return {
        "addresses": [host],
        "conditions": conditions,
        "nodeName": "node-1",
        "targetRef": {
            "kind": "Pod",
            "namespace": "llm",
            "name": "vllm-0",
            "uid": uid or f"uid-{url}",
        },
    }


def endpoint_slice(
    name: str,
    endpoints: list[Object] | None,
    *,
    port: int = 8000,
    service: str = "vllm",
    namespace: str = "llm",
    ports: list[Object] | None = None,
    labels: Object | None = None,
    family: str = "IPv4",
) -> Object:
    """One EndpointSlice as the API has it."""
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {"kubernetes.io/service-name": service, **(labels or {})},
            "ownerReferences": [{"kind": "Service", "name": service}],
            "managedFields": [{"manager": "kube-controller-manager"}],
        },
        "addressType": family,
        "endpoints": endpoints,
        "ports": ports or [{"name": "http", "port": port, "protocol": "TCP"}],
    }


def _yes(options: dict[str, str], name: str) -> bool:
    return options.get(name, "").lower() == "true"


@dataclass
class Watcher:
    writer: asyncio.StreamWriter
    path: str
    options: dict[str, str]

    def send(self, text: bytes, pieces: int = 1) -> None:
        """A line, as so many chunks."""
        size = max(1, -(-len(text) // pieces))
        for start in range(0, len(text), size):
            part = text[start : start + size]
            self.writer.write(b"%x\r\n%b\r\n" % (len(part), part))


@dataclass
class ApiServer:
    """Objects by collection path; every change reaches those that watch it."""

    tls: ssl.SSLContext | None = None
    token: str = ""
    """When set, a request without it is answered 401."""
    forbidden: frozenset[str] = frozenset()
    """Verbs that are answered 403."""
    unknown: frozenset[str] = frozenset()
    """Collections of kinds that are not defined here: 404."""
    page: int = 500
    pieces: int = 1
    """Chunks an event is cut into."""
    port: int = 0
    version: int = 100
    oldest: int = 0
    """Watches from before this version are answered 410."""
    gone_as_event: bool = True
    objects: dict[str, dict[str, Object]] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """(verb, path, options) of every one."""
    watchers: list[Watcher] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def start(self) -> ApiServer:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Go away: the port refuses, watches break."""
        self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        await self._server.wait_closed()

    async def until(self, condition: Any) -> None:
        """Wait until something is so; looked at after every request."""
        async with self.changed, asyncio.timeout(30):
            await self.changed.wait_for(condition)

    def count(self, verb: str) -> int:
        return sum(1 for each, *_ in self.requests if each == verb)

    # What a cluster does

    def put(self, path: str, item: Object) -> None:
        """Create or change an object."""
        self.version += 1
        item = json.loads(json.dumps(item))
        item["metadata"]["resourceVersion"] = str(self.version)
        known = self.objects.setdefault(path, {})
        name = item["metadata"]["name"]
        kind = "MODIFIED" if name in known else "ADDED"
        known[name] = item
        self._send(path, kind, item)

    def delete(self, path: str, name: str) -> None:
        self.version += 1
        item = self.objects[path].pop(name)
        item["metadata"]["resourceVersion"] = str(self.version)
        self._send(path, "DELETED", item)

    def bookmark(self, path: str) -> None:
        self.version += 1
        self._send(
            path,
            "BOOKMARK",
            {
                "kind": "EndpointSlice",
                "apiVersion": "discovery.k8s.io/v1",
                "metadata": {"resourceVersion": str(self.version), "creationTimestamp": None},
                "endpoints": None,
                "addressType": "",
                "ports": None,
            },
        )

    def compact(self) -> None:
        """Forget all history: whoever watches from before now gets 410."""
        self.version += 1
        self.oldest = self.version

    def end_watches(self) -> None:
        """The server's own timeout: a normal end of the answer."""
        for watcher in self.watchers:
            watcher.writer.write(b"0\r\n\r\n")
        self.watchers.clear()

    def break_watches(self) -> None:
        """Connections that break in the middle of a line."""
        for watcher in self.watchers:
            watcher.writer.write(b'10\r\n{"type":"MODIFIE')
            watcher.writer.close()
        self.watchers.clear()

    # HTTP

    _open: set[asyncio.StreamWriter] = field(default_factory=set)

    def _send(self, path: str, kind: str, item: Object) -> None:
        line = json.dumps({"type": kind, "object": item}, separators=(",", ":")).encode() + b"\n"
        for watcher in self.watchers:
            if watcher.path == path and (
                kind != "BOOKMARK" or _yes(watcher.options, "allowWatchBookmarks")
            ):
                watcher.send(line, self.pieces)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *lines = head.split("\r\n")
                target = urlsplit(first.split(" ")[1])
                headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
                options = {key: values[-1] for key, values in parse_qs(target.query).items()}
                verb = "watch" if _yes(options, "watch") else "list"
                self.requests.append((verb, target.path, options))
                self._answer(writer, verb, target.path, options, headers)
                async with self.changed:
                    self.changed.notify_all()
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.CancelledError, OSError):
            pass
        finally:
            self._open.discard(writer)
            self.watchers = [each for each in self.watchers if each.writer is not writer]
            writer.close()

    def _answer(
        self,
        writer: asyncio.StreamWriter,
        verb: str,
        path: str,
        options: dict[str, str],
        headers: dict[str, str],
    ) -> None:
        given = headers.get("authorization", "").partition(" ")[2]
        if self.token and given != self.token:
            self._status(writer, 401, "Unauthorized", "Unauthorized")
        elif path in self.unknown:
            self._status(writer, 404, "Not Found", "the server could not find the resource")
        elif verb in self.forbidden:
            resource = path.rpartition("/")[2]
            self._status(
                writer,
                403,
                "Forbidden",
                f'{resource} is forbidden: User "system:serviceaccount:llm:warmroute" cannot '
                f'{verb} resource "{resource}" in API group "discovery.k8s.io" in the namespace '
                '"llm"',
            )
        elif verb == "list":
            self._list(writer, path, options)
        else:
            self._watch(writer, path, options)

    def _list(self, writer: asyncio.StreamWriter, path: str, options: dict[str, str]) -> None:
        items = list(self.objects.get(path, {}).values())
        size = min(self.page, int(options.get("limit", self.page)))
        start = int(options.get("continue", 0))
        meta: Object = {"resourceVersion": str(self.version)}
        if start + size < len(items):
            meta["continue"] = str(start + size)
        body = {"kind": "List", "apiVersion": "v1", "metadata": meta}
        body["items"] = items[start : start + size]
        self._json(writer, 200, "OK", body)

    def _watch(self, writer: asyncio.StreamWriter, path: str, options: dict[str, str]) -> None:
        since = int(options["resourceVersion"])
        gone = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "message": f"too old resource version: {since} ({self.oldest})",
            "reason": "Expired",
            "code": 410,
        }
        if since < self.oldest and not self.gone_as_event:
            self._json(writer, 410, "Gone", gone)
            return
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        watcher = Watcher(writer, path, options)
        if since < self.oldest:
            watcher.send(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            writer.write(b"0\r\n\r\n")
            return
        for item in self.objects.get(path, {}).values():
            if int(item["metadata"]["resourceVersion"]) > since:
                line = json.dumps({"type": "MODIFIED", "object": item}).encode() + b"\n"
                watcher.send(line)
        self.watchers.append(watcher)

    def _status(self, writer: asyncio.StreamWriter, code: int, reason: str, text: str) -> None:
        body = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": text,
            "reason": reason,
            "code": code,
        }
        self._json(writer, code, reason, body)

    def _json(self, writer: asyncio.StreamWriter, code: int, reason: str, body: Object) -> None:
        text = json.dumps(body).encode()
        writer.write(
            f"HTTP/1.1 {code} {reason}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(text)}\r\n\r\n".encode()
            + text
        )
