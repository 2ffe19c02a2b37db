"""Serves the chat page: on loopback unless told otherwise, from this process alone."""

import ipaddress
import socket
import sys

from data_prep.errors import ConfigError, Problem
from pipeline.trained import Trained

TITLE = "Roseate"
LOOPBACK_NAMES = ["127.0.0.1", "localhost", "[::1]"]
# Whatever a library may bring along: a browser asks this process and no other host.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'"
)


def serve(models: list[Trained], *, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serve the page until it is stopped.

    Args:
        models: one checkpoint, or two to be compared.
        host: address to listen on; another than loopback is for all who reach it, and is said so.
        port: 0 for a free one.

    Raises:
        ConfigError: the library for pages is not installed, or the address cannot be listened on.
    """
    check_library()
    check_address(host, port)
    from nicegui import app, ui
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from data_prep.ports import free_port
    from pipeline.chat.page import Page

    port = port or free_port()
    if is_loopback(host):
        # A page of another host whose name leads here is not answered.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK_NAMES, host])
    else:
        told = f"everyone who reaches {host}:{port} can use this page, there is no password"
        print(f"roseate: {told}", file=sys.stderr, flush=True)

    @app.middleware("http")
    async def with_policy(request, call_next):
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    @ui.page("/")
    def page() -> None:
        Page(models).build()

    print(f"roseate: http://{host}:{port}/ (Ctrl-C ends it)", file=sys.stderr, flush=True)
    ui.run(host=host, port=port, title=TITLE, show=False, reload=False, show_welcome_message=False)


def check_library() -> None:
    """Refuse to begin without the library for pages, before a model is loaded.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import nicegui  # noqa: F401
    except ImportError:
        rule = "is installed, for a page"
        remedy = 'pip install "roseate[chat]"'
        raise ConfigError([Problem("nicegui", None, rule, remedy)]) from None


def check_address(host: str, port: int) -> None:
    """Refuse an address that cannot be listened on.

    Raises:
        ConfigError: it is taken, or not of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        rule = f"is an address of this machine that is free ({error.strerror})"
        remedy = "name another --port (0: a free one), or leave --host out"
        raise ConfigError([Problem("--port", f"{host}:{port}", rule, remedy)]) from None


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
