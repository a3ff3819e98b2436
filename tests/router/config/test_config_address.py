from __future__ import annotations

import pytest

from router.config.address import parse_address


@pytest.mark.parametrize(
    ("url", "host", "port", "authority", "name", "prefix"),
    [
        ("http://10.0.0.1:8000", "10.0.0.1", 8000, "10.0.0.1:8000", "10.0.0.1:8000", ""),
        ("http://Engine-0.pool/", "engine-0.pool", 80, "engine-0.pool", "engine-0.pool:80", ""),
        ("https://e/a/b/", "e", 443, "e", "e:443/a/b", "/a/b"),
        ("https://e:80", "e", 80, "e:80", "e:80", ""),
        ("http://[::1]:8000", "::1", 8000, "[::1]:8000", "[::1]:8000", ""),
    ],
)
def test_takes_urls_apart(
    url: str, host: str, port: int, authority: str, name: str, prefix: str
) -> None:
    address = parse_address(url)
    assert (address.host, address.port, address.authority) == (host, port, authority)
    assert (address.name, address.prefix) == (name, prefix)
    assert address.tls == url.startswith("https")
    assert parse_address(address.url) == address


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("10.0.0.1:8000", "http://"),
        ("ftp://e", "http://"),
        ("http://", "no valid host"),
        ("http://e:99999", "no valid port"),
        ("http://e:0", "no valid port"),
        ("http://u:p@e", "replica_api_key"),
        ("http://e/?a=b", "query"),
        ("http://e\nx", "no valid host"),
        ("http://é", "no valid host"),
        ("http://[::1", "not a replica's URL"),
        ("http://e/v1", "ends in /v1"),
        ("", "http://"),
    ],
)
def test_refuses_urls_it_cannot_use_and_says_why(url: str, says: str) -> None:
    with pytest.raises(ValueError, match="replica ") as error:
        parse_address(url)
    assert says in str(error.value)
