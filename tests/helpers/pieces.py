"""Rows and outcomes of an ingest that never asked any web."""

import hashlib
import random

import pyarrow as pa

from data_prep.outcome import Outcome
from data_prep.schema import Status


def make_rows(first: int, count: int, **kept: list) -> pa.Table:
    """Rows as a plan reads them; further columns by name."""
    columns = {
        "row": pa.array(range(first, first + count), pa.int64()),
        "url": pa.array([f"http://host/{i}.jpg" for i in range(first, first + count)]),
        "caption": pa.array([f"caption {i}" for i in range(first, first + count)]),
    }
    columns |= {name: pa.nulls(count, pa.string()) for name in ("expected", "status", "error")}
    return pa.table(columns | kept)


def make_outcomes(draw: random.Random, count: int) -> list[Outcome]:
    """Some ok with random bytes for an image, some not."""
    outcomes = []
    for _ in range(count):
        if draw.random() < 0.3:
            transient = draw.random() < 0.5
            status = Status.TIMEOUT if transient else Status.HTTP_404
            outcomes.append(Outcome(status, "it failed", transient=transient))
            continue
        data = draw.randbytes(draw.randrange(1, 3000))
        outcomes.append(
            Outcome(
                Status.OK,
                data=data,
                format=draw.choice(["jpg", "png", "webp"]),
                final_url="http://host/final",
                http_status=200,
                fetched_bytes=len(data) + 1,
                sha256_fetched=hashlib.sha256(data + b"!").hexdigest(),
                original_width=draw.randrange(1, 5000),
                original_height=draw.randrange(1, 5000),
                width=draw.randrange(1, 500),
                height=draw.randrange(1, 500),
                seconds=0.5,
            )
        )
    return outcomes
