"""Which image files are there: every folder is listed once, instead of asking for each file."""

import errno
import os
from pathlib import Path

from data_prep.errors import ConfigError, Problem
from data_prep.storage import Folder

_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


class ImageFiles:
    """Files below a folder, local or behind a URL.

    Args:
        place: the folder.
        key: configuration key that named it, for messages.

    Raises:
        ConfigError: there is no such folder.
    """

    def __init__(self, place: str, key: str) -> None:
        self._key = key
        self.folder = Folder(place, key)
        self._listed: dict[str, set[str]] = {}
        if self.folder.is_local and not self.folder.path.is_dir():
            rule = "is a folder" if self.folder.path.exists() else "is a folder that is there"
            raise ConfigError([Problem(key, place, rule, "name the folder of the images")])
        if not self.folder.is_local:
            self._list_store()

    def first(self, names: tuple[str, ...]) -> str | None:
        """The first of these files that is there, or None."""
        return next((name for name in names if self._is_there(name)), None)

    def _is_there(self, name: str) -> bool:
        above, _, file = name.rpartition("/")
        if above not in self._listed:
            self._listed[above] = self._names(above) if self.folder.is_local else set()
        return file in self._listed[above]

    def _names(self, above: str) -> set[str]:
        """Names in a folder below this one; none where there is no such folder, nor could be."""
        try:
            return set(os.listdir(self.folder.path / above))
        except UnicodeEncodeError:
            return set()
        except OSError as error:
            if error.errno in _NOT_THERE:
                return set()
            rule = f"can be listed ({error})"
            remedy = "give this process the right to read it"
            raise ConfigError([Problem(self._key, self.folder.url, rule, remedy)]) from None

    def _list_store(self) -> None:
        """All files of an object store's folder, which is one listing however deep it is."""
        rule = "is a folder that is there, with files in it"
        try:
            names = self.folder.names("")
        except OSError as error:
            names, rule = [], f"is a folder that can be listed ({error})"
        if not names:
            raise ConfigError(
                [Problem(self._key, self.folder.url, rule, "name the images' folder")]
            )
        for name in names:
            above, _, file = name.rpartition("/")
            self._listed.setdefault(above, set()).add(file)


def is_image(name: str) -> bool:
    """Whether a file is an image by its extension."""
    return Path(name).suffix.lower() in IMAGE_EXTENSIONS
