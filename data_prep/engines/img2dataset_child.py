"""The process that img2dataset runs in, for the rows of one shard: `python -m ... FOLDER DESCRIPTOR`.

FOLDER holds job.json and rows.arrow (a `url` with the row's number as its fragment, and the expected hash
where files are verified). Messages go to the DESCRIPTOR, each a text of JSON: {"decoding": row}, or how a
row ended, {"row": row, "outcome": {...}}, with the image as a second message where it ended ok. Nothing
but messages tells how rows ended, so that what is told is kept when this process dies.
"""

import hashlib
import io
import json
import os
import resource
import sys
import threading
import types
import urllib.request
from collections.abc import Callable
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

from data_prep.config import FilterConfig, ImageConfig, IngestConfig
from data_prep.engines.img2dataset_failures import status_of_message
from data_prep.engines.img2dataset_guard import SocketGuard
from data_prep.engines.img2dataset_opener import GuardedOpener, Visit
from data_prep.fetch.addresses import AllowedHosts
from data_prep.outcome import Outcome
from data_prep.schema import Status

_PNG_COMPRESSION = 6  # zlib's default
_STACK_BYTES = 1 << 20  # of a thread; the usual 8 MiB of hundreds would count as memory taken
# Our modes in its words: its keep_ratio looks at the shorter side.
_MODES = {"keep_ratio": "keep_ratio_largest", "center_crop": "center_crop", "border": "border"}


def main() -> None:
    """Does the job and exits with 0; a row that it tells nothing of has no result."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    folder, connection = Path(sys.argv[1]), Connection(int(sys.argv[2]), readable=False)
    job = json.loads((folder / "job.json").read_bytes())
    config = IngestConfig.model_validate(job["config"])
    downloader_class, resizer_class = import_img2dataset()
    opener = GuardedOpener(config.download)
    urllib.request.install_opener(opener)
    SocketGuard(AllowedHosts(config.download.allow_private_hosts)).install()
    threading.stack_size(_STACK_BYTES)
    _limit_memory(config.decode.memory_bytes)
    results = _Results(connection, opener.visits, config.image.format)
    verified = [job["verify"]] if job["verify"] != "none" else []
    downloader = downloader_class(
        sample_writer_class=lambda *args: results,
        resizer=results.announcing(make_resizer(resizer_class, config.image, config.filter)),
        thread_count=config.download.concurrency,
        save_caption=False,
        extract_exif=False,
        output_folder=str(folder),
        column_list=["url", *verified],
        timeout=config.download.timeout_seconds,
        number_sample_per_shard=max(2, job["rows"]),
        oom_shard_count=5,
        compute_hash=None,
        verify_hash_type=verified[0] if verified else None,
        encode_format=config.image.format,
        retries=config.download.retries,
        user_agent_token=None,  # the opener sends ours, and judges what servers say of it
        disallowed_header_directives=None,
    )
    downloader.download_shard((0, str(folder / "rows.arrow")))


def import_img2dataset() -> tuple[type, type]:
    """Its Downloader and Resizer, without what its other parts would import: 3 seconds of every start."""
    sys.modules |= {"torch": None, "ray": None}  # as where they are not installed
    sys.modules["wandb"] = types.ModuleType("wandb")  # for its progress logger, which we do not run
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer

    return Downloader, Resizer


def make_resizer(resizer_class: type, image: ImageConfig, keep: FilterConfig) -> Callable:
    """img2dataset's resizer for our settings."""
    return resizer_class(
        image_size=image.size,
        resize_mode=_MODES[image.mode],
        resize_only_if_bigger=image.mode == "keep_ratio",
        encode_quality=_PNG_COMPRESSION if image.format == "png" else image.quality,
        encode_format=image.format,
        skip_reencode=image.skip_reencode,
        min_image_size=max(1, keep.min_side_pixels),
        max_image_area=keep.max_pixels,
        max_aspect_ratio=keep.max_aspect_ratio,
    )


class _Results:
    """A sample writer of img2dataset that writes messages. Used by its main thread alone."""

    def __init__(self, connection: Connection, visits: dict[int, Visit], extension: str) -> None:
        self._connection, self._visits, self._extension = connection, visits, extension

    def announcing(self, resizer: Callable) -> Callable:
        """The resizer, which before each image says whose it is, should it not survive it."""

        def resize(stream: io.BytesIO, boxes: object = None) -> tuple:
            digest = hashlib.sha256(stream.getbuffer()).hexdigest()
            for row, visit in list(self._visits.items()):
                if visit.sha256 == digest:
                    self._send(json.dumps({"decoding": row}).encode())
                    break
            return resizer(stream, boxes)

        return resize

    def write(self, img_str: bytes | None, key: str, caption: object, meta: dict) -> None:
        row = int(key)
        visit = self._visits.pop(row, None)
        outcome = self._outcome(visit, meta)
        if visit is not None:
            outcome.final_url, outcome.http_status = visit.final_url, visit.http_status
            outcome.fetched_bytes, outcome.sha256_fetched = visit.fetched_bytes, visit.sha256
            outcome.seconds = visit.seconds
        fields = asdict(outcome)
        del fields["data"]
        self._send(json.dumps({"row": row, "outcome": fields}).encode())
        if outcome.status is Status.OK:
            self._send(img_str)

    def close(self) -> None:
        """All rows are written."""

    def _outcome(self, visit: Visit | None, meta: dict) -> Outcome:
        message = meta["error_message"]
        if meta["status"] == "success":
            sizes = {k: meta[k] for k in ("original_width", "original_height", "width", "height")}
            return Outcome(Status.OK, format=self._extension, **sizes)
        if visit is None:
            return Outcome(Status.INVALID_URL, f"not a usable URL: {message}")
        if visit.failure is not None:
            failure = visit.failure
            return Outcome(failure.status, str(failure), failure.transient)
        return Outcome(
            status_of_message(message), f"img2dataset: {' '.join(message.split())[:300]}"
        )

    def _send(self, message: bytes) -> None:
        try:
            self._connection.send_bytes(message)
        except OSError:
            os._exit(1)  # nobody listens any more; img2dataset would go on through all rows


def _limit_memory(more_bytes: int) -> None:
    """Lets this process take that much more than it has now."""
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        limit = int(lines["VmData"].split()[0]) * 1024 + more_bytes
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _end_with_parent() -> None:
    os.read(0, 1)  # nothing ever comes; it ends when the parent does
    os._exit(1)


if __name__ == "__main__":
    main()
