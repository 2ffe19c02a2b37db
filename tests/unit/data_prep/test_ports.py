import contextlib
import socket
import subprocess
import sys

from data_prep.ports import LOOPBACK, free_port, held_port


def can_be_bound(port):
    with socket.socket() as s, contextlib.suppress(OSError):
        s.bind((LOOPBACK, port))
        return True
    return False


def test_free_port_can_be_bound():
    # Another process may have been given it meanwhile.
    assert any(can_be_bound(free_port()) for _ in range(5))
    with held_port() as taken:
        assert not can_be_bound(taken)


def test_a_held_port_is_nobody_elses_and_can_be_listened_on_by_who_knows_it():
    code = (
        "from torch.distributed import TCPStore\nimport sys\n"
        "TCPStore(sys.argv[1], int(sys.argv[2]), 1, True)"
    )
    with held_port() as port:
        given = {free_port() for _ in range(2000)}
        assert port not in given and not can_be_bound(port)
        subprocess.run([sys.executable, "-c", code, LOOPBACK, str(port)], check=True)
        with socket.create_server((LOOPBACK, port)) as server:
            socket.create_connection((LOOPBACK, port)).close()
            server.accept()[0].close()
