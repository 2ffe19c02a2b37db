"""A new SQLite database for MLflow, whole or not there.

MLflow makes its tables one migration after another, without a lock: two processes that begin with the same new
file, or one that is killed within those seconds, leave a database that MLflow takes for good no more. Here it
is made under another name beside and gets its own at once; of several the first stays.
"""

import os
import uuid
from contextlib import suppress
from pathlib import Path


def make_database(uri: str) -> None:
    """Make the database of a SQLite URI and its folder, where they are not there.

    Args:
        uri: of MLflow; others than SQLite files are left alone.

    Raises:
        OSError: the file cannot be made.
    """
    from sqlalchemy.engine import make_url

    if not uri.startswith("sqlite"):
        return
    url = make_url(uri)
    if url.database in (None, "", ":memory:"):
        return
    path = Path(url.database)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        # The folder of artifacts is that of experiment "Default", which we do not use.
        store = SqlAlchemyStore(url.set(database=str(new)).render_as_string(False), "./mlruns")
        store.engine.dispose()
        with suppress(FileExistsError):
            os.link(new, path)
    finally:
        new.unlink(missing_ok=True)
