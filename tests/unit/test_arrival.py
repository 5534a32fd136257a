"""What a request to a provider looks like before it is sent."""

import pytest

from mitmgate.arrival import url_of
from mitmgate.exchange import Leg


@pytest.mark.parametrize(
    ("scheme", "host", "port", "url"),
    [
        ("https", "api.openai.com", 443, "https://api.openai.com/v1/x?y=%3A"),
        ("https", "api.openai.com", 8443, "https://api.openai.com:8443/v1/x?y=%3A"),
        ("http", "10.0.0.7", 80, "http://10.0.0.7/v1/x?y=%3A"),
        ("http", "10.0.0.7", 443, "http://10.0.0.7:443/v1/x?y=%3A"),
        ("http", "fd00::7", 8000, "http://[fd00::7]:8000/v1/x?y=%3A"),
        ("https", "::1", 443, "https://[::1]/v1/x?y=%3A"),
    ],
)
def test_the_url_has_the_path_as_it_was_sent(scheme: str, host: str, port: int, url: str) -> None:
    assert url_of(Leg("openai", None, scheme, host, port, "/v1/x?y=%3A", [])) == url
