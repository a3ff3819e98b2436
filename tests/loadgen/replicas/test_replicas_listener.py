"""The listening socket: nobody waits at the door, whatever the loop is busy with."""

import asyncio
import contextlib
import os
import resource
import socket

import uvloop

from loadgen.replicas import SimulatedFleet
from loadgen.replicas.listener import HttpListener


class Guest(asyncio.Protocol):
    """Says that it is there."""

    def __init__(self, came):
        self.came = came

    def connection_made(self, transport):
        self.came.put_nowait(transport)


async def turns(number):
    """Let the loop go round."""
    for _ in range(number):
        await asyncio.sleep(0)


def test_all_that_wait_are_accepted_at_once():
    async def accept():
        came = asyncio.Queue()
        listener = HttpListener("127.0.0.1", 0, lambda: Guest(came))
        address = "127.0.0.1", listener.port
        clients = [socket.create_connection(address) for _ in range(100)]
        await turns(20)
        accepted = came.qsize()
        listener.close()
        for end in clients:
            end.close()
        while not came.empty():
            came.get_nowait().abort()
        return accepted

    assert uvloop.run(accept()) == 100


async def test_goes_on_once_there_is_room_for_a_connection():
    came = asyncio.Queue()
    listener = HttpListener("127.0.0.1", 0, lambda: Guest(came))
    client = socket.create_connection(("127.0.0.1", listener.port))
    lowest = os.dup(client.fileno())
    os.close(lowest)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: errors.append(told))
    try:
        await turns(20)
        assert came.empty()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    (await asyncio.wait_for(came.get(), 20)).abort()
    assert not errors
    client.close()
    listener.close()


async def test_who_comes_as_the_replica_dies_is_turned_away():
    async with SimulatedFleet(1) as fleet:
        replica = fleet.replicas[0]
        for number in range(8):
            client = socket.create_connection(("127.0.0.1", replica.port))
            client.setblocking(False)
            await turns(number)
            await replica.die()
            reader, writer = await asyncio.open_connection(sock=client)
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 20) == b""
            writer.close()
            assert not replica.connections
            await replica.start()
