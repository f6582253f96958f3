import asyncio
import socket

import pytest

from minetorch_launch.errors import JoinError
from minetorch_launch.rendezvous import endpoints
from minetorch_launch.validators import Endpoint


def test_an_address_is_this_machines_if_it_can_be_bound():
    assert endpoints.is_this_machine("127.0.0.1")
    assert not endpoints.is_this_machine("192.0.2.1")
    assert not endpoints.is_this_machine("no address")
    assert endpoints.address_towards("127.0.0.1", 1) == "127.0.0.1"
    assert endpoints.interface_of("127.0.0.1") == "lo"
    assert endpoints.interface_of("192.0.2.1") is None


def test_a_port_in_use():
    with endpoints.listen("127.0.0.1", 0) as server:
        port = server.getsockname()[1]
        assert asyncio.run(endpoints.reach("127.0.0.1", port)) is None
        with pytest.raises(JoinError, match=rf"cannot open port {port} at 127.0.0.1 .*Address already in use") as error:
            endpoints.listen("127.0.0.1", port)
        assert "--rdzv-endpoint HOST:PORT" in str(error.value)
        assert not error.value.job_can_be_requeued
    assert "refused by 127.0.0.1" in asyncio.run(endpoints.reach("127.0.0.1", port))


def test_a_machine_that_does_not_answer():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        address = server.getsockname()
        with socket.create_connection(address), socket.socket() as second:
            second.setblocking(False)
            second.connect_ex(address)  # the queue is full: the kernel answers nobody any more
            problem = asyncio.run(endpoints.reach(*address, seconds=0.2))
    assert problem == "no answer from 127.0.0.1 within 0.2 s"


@pytest.mark.parametrize(
    ("problem", "advice"),
    [
        ("Connection refused by 10.0.0.1", "is minetorch-launch running on gpu01"),
        ("cannot find the address of 'gpu01'", "check the spelling"),
        ("no answer from 10.0.0.1 within 5 s", "does a firewall let TCP port 5 through"),
    ],
)
def test_advice_fits_the_problem(problem, advice):
    assert advice in endpoints.what_to_check(problem, Endpoint("gpu01", 5))
