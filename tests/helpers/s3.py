"""An object store on the loopback interface, for tests that read datasets from s3:// URLs."""

import logging
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path

import pytest
import s3fs
from moto.server import ThreadedMotoServer


class Bucket:
    """A new bucket.

    Attributes:
        url: s3://bucket.
        endpoint: http://127.0.0.1:port; stands in AWS_ENDPOINT_URL, for processes started here too.
    """

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.url = f"s3://roseate-{uuid.uuid4().hex}"
        self._files = s3fs.S3FileSystem(skip_instance_cache=True)
        self._files.mkdir(self.url)

    def upload(self, folder: Path, name: str | None = None) -> str:
        """Copy a folder into the bucket; its URL."""
        url = f"{self.url}/{name or folder.name}"
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                target = f"{url}/{path.relative_to(folder).as_posix()}"
                self._files.pipe_file(target, path.read_bytes())
        s3fs.S3FileSystem.clear_instance_cache()  # and with it the listings they remember
        return url


@contextmanager
def s3_bucket() -> Iterator[Bucket]:
    """A bucket of a server that runs as long as the context; credentials are in the environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as environment:
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": "dummy",
            "AWS_SECRET_ACCESS_KEY": "dummy",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "NO_PROXY": "127.0.0.1",
        }.items():
            environment.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        # Started by an earlier test, it and its workers would not know the credentials.
        forkserver._forkserver._stop()
        try:
            yield Bucket(endpoint)
        finally:
            s3fs.S3FileSystem.clear_instance_cache()
            server.stop()
