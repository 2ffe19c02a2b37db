"""robots.txt: which paths its rules leave to us.

Source: RFC 9309. Which group is ours is found here, by the product token as section 2.2.1 has it
(protego takes a name that begins like ours for ours); the rules of the group are protego's matter:
longest match, * and $, percent-encoding (section 2.2.2 and 2.2.3).
"""

import re
from dataclasses import dataclass

from protego import Protego
from yarl import URL

MAX_BYTES = 500 * 1024  # section 2.5: at least that much is parsed
_LINE_ENDS = re.compile(r"[\r\n]+")
_AGENT = re.compile(r"user[ -]?agent(?:[:\s]+(.*))?", re.IGNORECASE)
_TOKEN = re.compile(r"[A-Za-z_-]+")
# Lines that stand for the whole site and end no group.
_SITE_WIDE = re.compile(r"(sitemaps?|site-map|host)\s*:", re.IGNORECASE)
_EVERYONE = "*"
_PLAIN_RULE = re.compile(
    r"(allow|disallow|crawl-delay)\s*:\s*((?:[/*][!-$&-~]*)?|[0-9.]+)", re.IGNORECASE
)
_MAX_PARTS = 32
# Measured: a rule of protego takes some 600 bytes beside its text.
_RULE_BYTES = 600


class RobotsRules:
    """The rules of one robots.txt for one user agent.

    Attributes:
        wants_delay: a Crawl-delay stands among them.
        weight: memory it takes, bytes, about.
    """

    def __init__(self, text: str, agent: str):
        """Reads a robots.txt.

        Args:
            text: of at most `MAX_BYTES`.
            agent: our product token.
        """
        rules = _group(text, agent)
        self._parsed = (
            Protego.parse("\n".join([f"User-agent: {_EVERYONE}", *rules])) if rules else None
        )
        self._hints = _hints(rules)
        self.wants_delay = bool(self._parsed and self._parsed.crawl_delay(_EVERYONE))
        self.weight = 500 + sum(_RULE_BYTES + 2 * len(rule) for rule in rules)

    def allow(self, url: URL) -> bool:
        """Whether a URL of the site may be fetched."""
        if self._parsed is None:
            return True
        if self._hints is not None and not self._hints.may_match(url.raw_path_qs):
            return True
        return self._parsed.can_fetch(str(url), _EVERYONE)


@dataclass(frozen=True, slots=True)
class _Hints:
    """What a path must begin with or hold for any Disallow to match: most have none of it, and
    this tells them faster than the rules themselves."""

    prefixes: tuple[str, ...]
    parts: tuple[str, ...]

    def may_match(self, path: str) -> bool:
        # An escape may stand for a character that a rule spells out.
        if "%" in path or path.startswith(self.prefixes):
            return True
        return any(part in path for part in self.parts)


def _hints(rules: list[str]) -> _Hints | None:
    """None where rules are too many, or say things that protego reads in its own way."""
    prefixes, parts = [], []
    for rule in rules:
        if not (plain := _PLAIN_RULE.fullmatch(rule)):
            return None
        if plain[1].lower() == "disallow" and plain[2]:
            pieces = plain[2].removesuffix("$").split("*")
            if len(pieces) == 1:
                prefixes.append(pieces[0])
            else:
                parts.append(max(pieces, key=len))
    return _Hints(tuple(prefixes), tuple(parts)) if len(parts) <= _MAX_PARTS else None


def _group(text: str, agent: str) -> list[str]:
    """The lines of all groups that name us, else of those that are for everyone."""
    lines: dict[str, list[str]] = {}
    current: set[str] = set()
    is_open = False  # whether further user agents join the current group
    for line in _LINE_ENDS.split(text.removeprefix("\ufeff")):
        line = line.partition("#")[0].strip()
        if not line or _SITE_WIDE.match(line):
            continue
        named = _AGENT.fullmatch(line)
        if not named:
            is_open = False
            for name in current:
                lines[name].append(line)
            continue
        if not is_open:
            current, is_open = set(), True
        name = _agent_name(named[1] or "", agent)
        if name is not None:
            current.add(name)
            lines.setdefault(name, [])
    return lines.get(agent, lines.get(_EVERYONE, []))


def _agent_name(value: str, agent: str) -> str | None:
    if value.startswith(_EVERYONE):
        return _EVERYONE
    token = _TOKEN.match(value)  # behind it a version may stand
    return agent if token and token[0].lower() == agent.lower() else None


ALL_ALLOWED = RobotsRules("", "")
