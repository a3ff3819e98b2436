"""Requests that the picker holds until a replica of their model is usable."""

from __future__ import annotations

import json
from typing import Any

from picker_world import CHAT, Maker, chat, server_of, until

from loadgen.replicas import SimulatedFleet
from router.app import App
from router.picker import ext_proc as protocol
from router.picker.messages import FULL_DUPLEX_STREAMED, SUBSET_KEY, SUBSET_NAMESPACE
from router.picker.processing import Processing


class Call:
    """A data plane's call: what it is told."""

    def __init__(self, app: App) -> None:
        server = server_of(app)
        self.answers: list[Any] = []
        self.handler = Processing(
            app.gateway,
            server._endpoints,
            server._unseen,
            self,  # type: ignore[arg-type]
            server._open,
        )

    def answer(self, message: bytes) -> None:
        self.answers.append(protocol.ProcessingResponse.FromString(message))

    def fail(self, status: int, message: str) -> None:
        raise AssertionError(status, message)

    def ask(self, *subset: str) -> None:
        asked = protocol.ProcessingRequest()
        asked.protocol_config.request_body_mode = FULL_DUPLEX_STREAMED
        asked.protocol_config.response_body_mode = FULL_DUPLEX_STREAMED
        for name, value in ((":method", "POST"), (":path", CHAT)):
            header = asked.request_headers.headers.headers.add()
            header.key, header.raw_value = name, value.encode()
        if subset:
            fields = asked.metadata_context.filter_metadata[SUBSET_NAMESPACE].fields
            for each in subset:
                fields[SUBSET_KEY].list_value.values.add().string_value = each
        self.handler.message(asked.SerializeToString())
        asked = protocol.ProcessingRequest()
        asked.request_body.body = json.dumps(chat("hello")).encode()
        asked.request_body.end_of_stream = True
        self.handler.message(asked.SerializeToString())


async def test_a_call_that_ends_is_held_no_longer(maker: Maker) -> None:
    async with SimulatedFleet(1) as fleet:
        app = await maker.picker(*fleet.urls, hold_timeout=30.0)
        app.fleet.drain(fleet.urls[0])
        call, other = Call(app), Call(app)
        call.ask()
        other.ask()
        await until(lambda: app.gateway.holding.models == {"sim": 2})
        call.handler.gone()
        await until(lambda: app.gateway.holding.models == {"sim": 1})
        app.fleet.undrain(fleet.urls[0])
        await until(lambda: other.answers)
        assert other.answers[0].HasField("request_headers")
        assert not call.answers
        other.handler.gone()


async def test_nobody_is_held_for_endpoints_that_the_picker_does_not_know(maker: Maker) -> None:
    async with SimulatedFleet(1) as fleet:
        app = await maker.picker(*fleet.urls, hold_timeout=30.0)
        call = Call(app)
        call.ask("127.0.0.1:1")
        assert call.answers[-1].immediate_response.status.code == 503
        call.handler.gone()
