"""Broken entries of a file, collected by the rule they break: a file with a thousand gives one message."""

from data_prep.errors import Problem

SHOWN = 5
BELOW = "{} is a file below the folder of images"


class Faults:
    """Of one file.

    Args:
        key: dotted name of the setting that names the file.
        value: the file's name.
    """

    def __init__(self, key: str, value: str) -> None:
        self.key, self.value = key, value
        self._places: dict[tuple[str, str], list[str]] = {}

    def add(self, rule: str, remedy: str, where: str) -> None:
        """An entry at `where` breaks a rule."""
        self._places.setdefault((rule, remedy), []).append(where)

    def problems(self) -> list[Problem]:
        """One for each rule that is broken, with how often and where at first."""
        found = []
        for (rule, remedy), places in self._places.items():
            first = ", ".join(places[:SHOWN])
            more = f" and {len(places) - SHOWN:,} more" if len(places) > SHOWN else ""
            found.append(Problem(self.key, self.value, f"{rule}; not so: {first}{more}", remedy))
        return found

    def entries(self, data: dict, name: str) -> list[tuple[str, dict]]:
        """The objects of the list `name`, each with its place; what is no object is a fault."""
        found = data.get(name)
        if not isinstance(found, list):
            self.add(f"holds a list of {name}", "name a file of this layout", f"the key {name!r}")
            return []
        places = [(f"{name}[{i}]", entry) for i, entry in enumerate(found)]
        for where, entry in places:
            if not isinstance(entry, dict):
                self.add(f"{name} is a list of objects", "correct the file", where)
        return [(where, entry) for where, entry in places if isinstance(entry, dict)]

    def number(self, entry: dict, name: str, where: str) -> str | None:
        """An identifier, number or text, as text; None and a fault if it is something else."""
        value = entry.get(name)
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            self.add(f"every entry has {name}, a number or a text", "correct the file", where)
            return None
        return str(value)

    def text(self, entry: dict, name: str, where: str) -> str | None:
        """A text without the spaces around it; None and a fault if it is something else."""
        value = entry.get(name)
        if not isinstance(value, str):
            self.add(f"every entry has {name}, a text", "correct the file", where)
            return None
        return value.strip()

    def file_name(self, entry: dict, name: str, where: str) -> str | None:
        """Name of a file below a folder; None and a fault if it is something else or lies elsewhere."""
        value = self.text(entry, name, where)
        if value is None:
            return None
        if not is_below(value):
            self.add(BELOW.format(name), "correct the file", where)
            return None
        return value


def is_below(name: str) -> bool:
    """Whether a name is that of a file below the folder it is looked for in, not of one elsewhere."""
    parts = name.replace("\\", "/").split("/")
    return (
        bool(name)
        and parts[0] != ""
        and ".." not in parts
        and "\0" not in name
        and "://" not in name
    )
