"""Secrets stay where they are: what looks like one never reaches a parameter, a tag, a file or a log."""

import os
import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

HIDDEN = "***"
# Of an environment variable, a key of a mapping or a value in a query.
_NAME = re.compile(
    r"((^|[_.\-])(token|secret|pwd|passphrase|credentials?|signature|sig|authorization|"
    r"(api|access|account|storage|private|signing|encryption)[_\-]?key|connection_string)|"
    r"password|passwd)([_.\-]|$)",
    re.IGNORECASE,
)
_FOLDERS = {"PWD", "OLDPWD"}  # of the environment: working folders, no passwords
_USER = re.compile(r"(?P<scheme>[a-zA-Z][\w+.\-]*://)[^\s/\"'<>]*@")
_QUERY = re.compile(r"(?P<name>[?&;][\w.\-]+=)(?P<value>[^&;#\s\"']+)")
# A line of YAML or of indented JSON with a text in it.
_LINE = re.compile(
    r"""(?P<head>^[ ]*(?:-[ ]+)?["']?(?P<name>[\w.\-]+)["']?:[ ]+)"""
    r"""(?P<value>[^\s{\[|>&*][^\n]*?)(?P<tail>,?)$""",
    re.MULTILINE,
)
_INLINE = re.compile(r"(?P<head>(?P<name>[\w.\-]+):[ ]*)(?P<value>[^\s,}\]]+)")
_PLAIN = re.compile(r"(null|~|true|false|''|\"\"|[-+]?[\d.]+([eE][-+]?\d+)?)")
_SHORTEST = 6  # characters of an environment value that is searched for elsewhere


def names_a_secret(name: str) -> bool:
    """Whether a value under this name is to be hidden, e.g. ``AWS_SECRET_ACCESS_KEY``."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return _NAME.search(spaced) is not None


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Hide the user part of URLs, secret values of queries, and secrets of the environment.

    Args:
        text: anything that a person may read later.
        environment: whose values under secret names are hidden wherever they occur.
    """
    text = _USER.sub(rf"\g<scheme>{HIDDEN}@", text)

    def query(match: re.Match) -> str:
        name = match["name"][1:-1]
        return match["name"] + HIDDEN if names_a_secret(_amazon(name)) else match[0]

    text = _QUERY.sub(query, text)
    values = {
        value
        for name, value in environment.items()
        if len(value) >= _SHORTEST and name not in _FOLDERS and names_a_secret(name)
    }
    for value in sorted(values, key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return text


def redact_file(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """The same for a file of YAML, JSON or plain text, and for `name: value` under a secret name."""

    def line(match: re.Match) -> str:
        if not names_a_secret(match["name"]) or _PLAIN.fullmatch(match["value"]):
            return match[0]
        return f'{match["head"]}"{HIDDEN}"{match["tail"]}'

    return _LINE.sub(line, redact(text, environment))


def redact_arguments(
    arguments: Sequence[str], environment: Mapping[str, str] = os.environ
) -> list[str]:
    """Those of a command line: also ``name=value``, ``--name value`` and ``a={name: value}``."""

    def inline(match: re.Match) -> str:
        return match["head"] + HIDDEN if names_a_secret(match["name"]) else match[0]

    hidden, before = [], ""
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if equals and value and names_a_secret(name.lstrip("-")):
            hidden.append(f"{name}={HIDDEN}")
        elif before.startswith("--") and "=" not in before and names_a_secret(before.lstrip("-")):
            hidden.append(HIDDEN)
        else:
            hidden.append(_INLINE.sub(inline, redact(argument, environment)))
        before = argument
    return hidden


def redact_all(value: object, environment: Mapping[str, str] = os.environ) -> object:
    """The same for every text in nested dictionaries and lists; and for all under a secret name."""
    if isinstance(value, str):
        return redact(value, environment)
    if isinstance(value, Mapping):
        return {
            key: HIDDEN
            if isinstance(inner, str) and inner and names_a_secret(str(key))
            else redact_all(inner, environment)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact_all(inner, environment) for inner in value]
    return value


def has_user(uri: str) -> bool:
    """Whether a URL carries a user or a password."""
    try:
        return "@" in urlsplit(uri).netloc
    except ValueError:
        return "@" in uri


def _amazon(name: str) -> str:
    """``X-Amz-Signature`` and ``AWSAccessKeyId`` as words."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.replace("AWS", "aws_"))
