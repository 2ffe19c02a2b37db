"""An S3 server on this machine's loopback that holds the samples in every loader's format."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from benchmarks.loader_data import COPIES, Place


@contextmanager
def serving(place: Place) -> Iterator[Place]:
    """Start moto's S3 on loopback in this process and copy the samples into it."""
    import boto3
    from moto.server import ThreadedMotoServer

    os.environ |= {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line for every request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        os.environ["AWS_ENDPOINT_URL"] = endpoint
        client = boto3.client("s3", endpoint_url=endpoint)
        client.create_bucket(Bucket=place.bucket)
        for copy in COPIES:
            for path in sorted((place.data / copy).rglob("*")):
                if path.is_file():
                    name = str(path.relative_to(place.data))
                    client.upload_file(str(path), place.bucket, name)
        yield replace(place, endpoint=endpoint)
    finally:
        server.stop()
