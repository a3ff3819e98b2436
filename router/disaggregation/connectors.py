"""The connectors by the names of the setting `kv_connector`."""

from __future__ import annotations

import ssl
from typing import Final

from router.config import Settings
from router.disaggregation.connector import Connector
from router.disaggregation.either import Either
from router.disaggregation.mooncake import Mooncake
from router.disaggregation.nixl import Nixl
from router.disaggregation.nixl_push import NixlPush
from router.disaggregation.store import Store
from router.fleet.reader import Reader, ReadError

_SECONDS: Final = 1.0
"""For an answer of a bootstrap server."""
_LARGEST: Final = 256 * 1024
_NO_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Bootstrap servers speak plain HTTP."""


def connector_of(settings: Settings) -> Connector:
    """The one that the settings name."""
    name = settings.kv_connector
    if name == "nixl":
        return Nixl()
    if name == "nixl_push":
        return NixlPush()
    if name == "store":
        return Store()
    mooncake = Mooncake(_get, settings.mooncake_port)
    return mooncake if name == "mooncake" else Either(mooncake)


async def _get(address: str, path: str) -> bytes:
    """The answer of a bootstrap server. Raises OSError."""
    reader = Reader(f"http://{address}", "", _NO_TLS)
    try:
        answer = await reader.get(path, _LARGEST, _SECONDS)
    except ReadError as error:
        raise OSError(str(error)) from error
    finally:
        await reader.close()
    if answer.status != 200:
        raise OSError(f"{path} answered {answer.status}")
    return answer.body
