"""OpenClipart as a web: thousands of drawings by people, from the Debian packages, behind nginx.

The pictures come from openclipart-png; titles, descriptions and keywords from the RDF inside the
SVGs of openclipart-svg. Both lie under /usr/share/openclipart with the same names. The captions are
noisy, there are many duplicates, and a few PNGs unfold into hundreds of megapixels: a fair sample of
the real web.
"""

import os
import re
import subprocess
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.errors import ConfigError, Problem
from data_prep.examples.web import stop, wait_until_answers
from data_prep.ports import LOOPBACK, free_port

CLIPART = Path("/usr/share/openclipart")
NGINX = Path("/usr/sbin/nginx")
CAPTION_CHARACTERS = 300

_DC = "{http://purl.org/dc/elements/1.1/}"
_RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
_CC = "{http://web.resource.org/cc/}"
_WORK_TAGS = (f"{_CC}Work", "{http://creativecommons.org/ns#}Work")
# What drawing programs fill in when the author says nothing.
_EMPTY_TITLES = {"", "untitled", "unknown", "no title", "none", "svg"}


class Work(NamedTuple):
    """What the RDF of one drawing says; empty where it says nothing."""

    title: str = ""
    description: str = ""
    keywords: tuple[str, ...] = ()
    author: str = ""
    license: str = ""


def build_openclipart_table(folder: str | Path, base_url: str, limit: int | None = None) -> Path:
    """Writes `openclipart.parquet`, one row per PNG in order of the paths.

    Args:
        folder: where the table goes.
        base_url: where /usr/share/openclipart/png will be served.
        limit: number of rows, spread evenly over the categories; None: all.

    Returns:
        path of the table: url, caption, title, keywords, author, license, path.

    Raises:
        ConfigError: the Debian packages are not installed.
    """
    _require(CLIPART / "png", "openclipart-png")
    _require(CLIPART / "svg", "openclipart-svg")
    pictures = sorted((CLIPART / "png").rglob("*.png"))
    if limit is not None and limit < len(pictures):
        pictures = [pictures[i * len(pictures) // limit] for i in range(limit)]
    rows = []
    for picture in pictures:
        path = picture.relative_to(CLIPART / "png")
        work = read_work((CLIPART / "svg" / path).with_suffix(".svg"))
        rows.append(
            {
                "url": f"{base_url.rstrip('/')}/{quote(path.as_posix())}",
                "caption": make_caption(work, path),
                "title": work.title,
                "keywords": ", ".join(work.keywords),
                "author": work.author,
                "license": work.license,
                "path": path.as_posix(),
            }
        )
    target = Path(folder) / "openclipart.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), target)
    return target


def read_work(svg: Path) -> Work:
    """The RDF of an SVG; an empty Work when the file or its RDF is missing or broken."""
    try:
        for _, element in ElementTree.iterparse(svg, events=("end",)):
            if element.tag in _WORK_TAGS:  # the drawing itself need not be read
                return _read_work_element(element)
    except (OSError, ElementTree.ParseError, ValueError):
        pass
    return Work()


def _read_work_element(work: ElementTree.Element) -> Work:
    license_element = work.find(f"{_CC}license")
    bag = work.findall(f"{_DC}subject/{_RDF}Bag/{_RDF}li")
    keywords = dict.fromkeys(_clean(item.text).lower() for item in bag)
    return Work(
        title=_clean(work.findtext(f"{_DC}title")),
        description=_clean(work.findtext(f"{_DC}description")),
        keywords=tuple(k for k in keywords if k),
        author=_clean(work.findtext(f"{_DC}creator/{_CC}Agent/{_DC}title")),
        license="" if license_element is None else license_element.get(f"{_RDF}resource", ""),
    )


def _clean(text: str | None) -> str:
    text = re.sub(r"<[^>]*>|https?://\S+", " ", text or "")
    return re.sub(r"\s+", " ", text).strip(" .,;:_-")


def make_caption(work: Work, path: Path) -> str:
    """ "title. description (keywords: a, b, c)", of what there is; never empty."""
    title = re.sub(r"[_\s]+", " ", work.title).strip()
    if title.lower() in _EMPTY_TITLES:
        title = re.sub(r"[\W_]+", " ", path.stem).strip() or path.parent.name
    caption = title
    if work.description and work.description.lower() != title.lower():
        caption += f". {work.description}"
    if work.keywords:
        caption += f" (keywords: {', '.join(work.keywords)})"
    if len(caption) > CAPTION_CHARACTERS:
        caption = caption[:CAPTION_CHARACTERS].rsplit(" ", 1)[0].rstrip(" .,;:(")
    return caption


def _require(path: Path, package: str) -> None:
    if not path.exists():
        raise ConfigError(
            [
                Problem(
                    "openclipart",
                    str(path),
                    f"the Debian package {package} must be installed",
                    "run .ci/system-packages",
                )
            ]
        )


_NGINX_CONFIG = """\
daemon off;
master_process off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  default_type application/octet-stream;
  types {{ image/png png; }}
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen {host}:{port};
    root {root};
  }}
}}
"""


class OpenClipartWeb:
    """Serves the PNGs with nginx on loopback while the context is open.

    Args:
        folder: receives nginx's configuration, log and pid file.
        port: on loopback; None: a free one. `base_url` is known before the start.
    """

    def __init__(self, folder: str | Path, port: int | None = None):
        self.folder = Path(folder).resolve()
        self.port = port or free_port()
        self.base_url = f"http://{LOOPBACK}:{self.port}"
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> "OpenClipartWeb":
        _require(NGINX, "nginx-light")
        _require(CLIPART / "png", "openclipart-png")
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / "nginx.conf"
        config.write_text(
            _NGINX_CONFIG.format(
                folder=self.folder, host=LOOPBACK, port=self.port, root=CLIPART / "png"
            )
        )
        self._process = subprocess.Popen(
            [NGINX, "-c", config, "-p", self.folder, "-e", self.folder / "error.log"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"LC_ALL": "C"},
        )
        try:
            wait_until_answers(self.base_url, self._process)
        except BaseException:
            stop(self._process)
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process is not None:
            stop(self._process)
            self._process = None
