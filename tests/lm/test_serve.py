"""Where a server may listen is known before a model is loaded."""

import socket

import pytest

from lm.serve import require_port


def free_port(host: str, family: socket.AddressFamily) -> int:
    try:
        with socket.create_server((host, 0), family=family) as server:
            port: int = server.getsockname()[1]
    except OSError:
        pytest.skip(f"this machine has no address {host}")
    return port


@pytest.mark.parametrize(
    ("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)]
)
def test_a_port_that_is_free_and_one_that_is_taken(host: str, family: socket.AddressFamily) -> None:
    port = free_port(host, family)
    require_port(host, port)
    with (
        socket.create_server((host, port), family=family),
        pytest.raises(ValueError, match=f"nothing can listen at {host}:{port}: Address already"),
    ):
        require_port(host, port)
