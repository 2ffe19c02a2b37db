"""Whether a tracking URI can work at all, asked before a run begins, without MLflow's slow import."""

import base64
import json
import os
import socket
import urllib.error
import urllib.request
from urllib.parse import urlsplit

from data_prep.errors import ConfigError, Problem
from pipeline.tracking.secrets import has_user, redact

SECONDS = 5.0
SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
_ASK = "/api/2.0/mlflow/experiments/search?max_results=1"
USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"


def uri_problem(uri: str) -> tuple[str, str] | None:
    """(rule, remedy) that a URI breaks by its form alone, or None."""
    scheme = uri.partition("://")[0].partition("+")[0] if "://" in uri else uri.partition(":")[0]
    if scheme not in SCHEMES or ("://" not in uri and scheme != "databricks"):
        rule = f"begins with one of {', '.join(f'{s}://' for s in SCHEMES)}"
        return rule, "e.g. sqlite:///{root}/mlflow.db, or http://host:5000; empty for no tracking"
    if scheme in ("http", "https"):
        if has_user(uri):
            return (
                "holds no user and no password, which would be in every log",
                f"take them out and export {USER} and {PASSWORD}",
            )
        if not urlsplit(uri).hostname:
            return "names a host", "e.g. http://host:5000"
    return None


def check_uri(uri: str) -> str | None:
    """Refuse a tracking URI that will never work; what is wrong with it for now, or None.

    Raises:
        ConfigError: by its form, or see `check_server`.
    """
    if broken := uri_problem(uri):
        raise refused(uri, *broken)
    return check_server(uri)


def check_server(uri: str) -> str | None:
    """Ask a server whether it is one, and lets us in.

    Args:
        uri: of section `tracking`; others than http are not asked.

    Returns:
        what is wrong with it now and may be right later (down, slow, failing), or None.

    Raises:
        ConfigError: it will not work: no such host, no MLflow, or no permission.
    """
    if not uri.startswith(("http://", "https://")):
        return None
    parts = urlsplit(uri)
    try:
        socket.getaddrinfo(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))
    except socket.gaierror as error:
        raise refused(uri, f"names a host that is known here ({error.strerror})") from None
    request = urllib.request.Request(uri.rstrip("/") + _ASK)
    if user := os.environ.get(USER):
        pair = f"{user}:{os.environ.get(PASSWORD, '')}".encode()
        request.add_header("Authorization", f"Basic {base64.b64encode(pair).decode()}")
    elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            body = json.loads(answer.read())
            if not isinstance(body, dict):
                raise ValueError("no object")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            rule = f"lets us in (it answers {error.code} {error.reason})"
            allowed = "and start the server with this host's name in --allowed-hosts"
            raise refused(uri, rule, f"export {USER} and {PASSWORD}; {allowed}") from None
        if error.code < 500:
            raise refused(uri, f"is an MLflow server (it answers {error.code})") from None
        return f"it answers {error.code} {error.reason}"
    except ValueError:
        raise refused(uri, "is an MLflow server (what it answers is not MLflow's)") from None
    except OSError as error:
        return str(getattr(error, "reason", error))
    return None


def refused(uri: str, rule: str, remedy: str | None = None) -> ConfigError:
    """The error of a tracking URI that breaks a rule."""
    remedy = remedy or "correct the host, port and path; empty for no tracking"
    return ConfigError([Problem("tracking.uri", redact(uri), rule, remedy)])
