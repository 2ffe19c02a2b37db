"""In processes of their own, since an audit hook stays."""

import subprocess
import sys
import textwrap

import pytest

from tests.helpers.raw_web import RawWeb, image

SETUP = """
import socket, urllib.request
from data_prep.fetch.addresses import AllowedHosts
from data_prep.engines.img2dataset_guard import SocketGuard
real = socket.getaddrinfo
def told(*found):
    answers = iter(found)
    socket.getaddrinfo = lambda host, port, *a, **k: real(next(answers), port, *a, **k)
def guard(*allowed):
    SocketGuard(AllowedHosts(allowed)).install()
def connect():
    socket.create_connection(("name.example", PORT), timeout=5).close()
def attempt(call):
    try:
        call()
        print("connected")
    except Exception as error:
        print(getattr(error, "status", type(error).__name__))
"""


@pytest.mark.parametrize(
    ("code", "printed", "connections"),
    [
        # Below the look-up: what connects by itself.
        ("guard(); attempt(lambda: socket.socket().connect(('127.0.0.1', PORT)))", "refused", 0),
        ("guard(); attempt(lambda: socket.socket().connect(('localhost', PORT)))", "refused", 0),
        ("guard(); attempt(lambda: socket.socket().connect_ex(('127.0.0.1', PORT)))", "refused", 0),
        ("guard(); attempt(lambda: socket.socket(socket.AF_UNIX).connect('/x'))", "refused", 0),
        # By name: the address that was checked is the one connected to, whatever the name says next.
        ("told('127.0.0.1'); guard(); attempt(connect)", "refused", 0),
        ("told('127.0.0.1'); guard('name.example'); attempt(connect)", "connected", 1),
        ("told('127.0.0.1'); guard('127.0.0.0/8'); attempt(connect)", "connected", 1),
        ("told('127.0.0.1', '127.0.0.2'); guard('127.0.0.1'); attempt(connect)", "connected", 1),
        (
            "told('127.0.0.1', '::1'); guard('127.0.0.1'); attempt(connect); attempt(connect)",
            "connected refused",
            1,
        ),
        # What an allowed name led to is no permission for another name.
        (
            "told('127.0.0.1', '127.0.0.1'); guard('name.example'); attempt(connect);"
            "attempt(lambda: socket.create_connection(('other.example', PORT)))",
            "connected refused",
            1,
        ),
    ],
)
def test_no_socket_leads_where_it_may_not(code, printed, connections):
    with RawWeb("127.0.0.1").serving() as web:
        web.answers = {"/": image(b"x")}
        program = textwrap.dedent(SETUP) + f"PORT = {web.port}\n{code}\n"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        words = {"refused_private_address": "refused"}
        assert [words.get(w, w) for w in done.stdout.split()] == printed.split(), done.stderr
        assert web.connections == connections
