"""Our own engine: guarded asynchronous fetching, decoding in processes apart."""

import asyncio
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from data_prep.config import IngestConfig, SourceConfig
from data_prep.fetch.client import Fetcher
from data_prep.image.decoder import shared_decoder
from data_prep.image.verify import Verification
from data_prep.outcome import Outcome
from data_prep.schema import Status


def process(
    rows: pa.Table, config: IngestConfig, source: SourceConfig, put: Callable[[int, Outcome], None]
) -> None:
    """Fetches and encodes the rows that have not ended yet.

    Args:
        rows: as `data_prep.tables.shard.read_shard` gives them.
        config: the ingest section.
        source: what the rows are of.
        put: called once for every such row with its place among the rows, in any order.
    """
    asyncio.run(_process(rows, config, source, put))


async def _process(
    rows: pa.Table, config: IngestConfig, source: SourceConfig, put: Callable[[int, Outcome], None]
) -> None:
    urls, expected, ended = (rows[name].to_pylist() for name in ("url", "expected", "status"))
    loop = asyncio.get_running_loop()
    verification = Verification.of(source)
    decoder = shared_decoder(config.image, config.filter, config.decode, verification)
    with ThreadPoolExecutor(max_workers=config.decode.processes) as threads:
        async with Fetcher(config.download) as fetcher:

            async def one(i: int) -> None:
                fetched = await fetcher.fetch(urls[i])
                outcome = Outcome(
                    status=fetched.status,
                    error=fetched.error,
                    transient=fetched.transient,
                    final_url=fetched.final_url,
                    http_status=fetched.http_status,
                    seconds=fetched.seconds,
                )
                try:
                    if fetched.status is Status.OK:
                        encoded = await loop.run_in_executor(
                            threads, decoder.encode, fetched.body, expected[i]
                        )
                        outcome.fetched_bytes = len(fetched.body)
                        outcome.sha256_fetched = hashlib.sha256(fetched.body).hexdigest()
                        outcome.status, outcome.error = encoded.status, encoded.error
                        outcome.data, outcome.format = encoded.data, encoded.format
                        outcome.width, outcome.height = encoded.width, encoded.height
                        outcome.original_width = encoded.original_width
                        outcome.original_height = encoded.original_height
                finally:
                    await fetcher.release(fetched)
                put(i, outcome)

            async with asyncio.TaskGroup() as group:
                for i in range(rows.num_rows):
                    if ended[i] is None:
                        group.create_task(one(i))
