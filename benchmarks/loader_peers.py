"""The peers of our loader: webdataset, mosaicml-streaming and litdata as their documentation advises
for training.

All are optional. Two of them ask for older numpy and transformers than ours and for
torchvision, whose builds do not go with a CPU torch; they run without, so they are installed
without their dependencies, into an environment that has torch and roseate:

    pip install -c constraints.txt boto3 s3fs "moto[server]" webdataset
    pip install -c constraints.txt brotli catalogue matplotlib python-snappy "xxhash<4" zstd
    pip install --no-deps mosaicml-streaming==0.13.0
    pip install -c constraints.txt lightning-utilities obstore tifffile
    pip install --no-deps litdata==0.2.76

Arguments and batches are those of `benchmarks.loader_ours.ours`.
"""

import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.loader_data import Place, shard_paths
from benchmarks.loader_ours import BATCH_SAMPLES, FORMAT, SIDE, Decode

SHUFFLE_SAMPLES = 5000
INSTALL = {
    "webdataset": ("webdataset", "pip install -c constraints.txt webdataset"),
    "streaming": (
        "mosaicml-streaming",
        'pip install -c constraints.txt boto3 brotli catalogue matplotlib python-snappy "xxhash<4" '
        "zstd && pip install --no-deps mosaicml-streaming==0.13.0",
    ),
    "litdata": (
        "litdata",
        "pip install -c constraints.txt boto3 lightning-utilities obstore tifffile && "
        "pip install --no-deps litdata==0.2.76",
    ),
    "moto": ("moto's S3 server", 'pip install -c constraints.txt boto3 s3fs "moto[server]"'),
}


@dataclass(frozen=True)
class Pair:
    """What is done with (JPEG, caption); a class, for processes that are not forked."""

    decode: Decode | None

    def __call__(self, sample: tuple[bytes, bytes | str]) -> tuple:
        image, text = sample
        text = text.decode() if isinstance(text, bytes) else text
        # A tensor, since torch hands those from worker to trainer without copying.
        return (image if self.decode is None else torch.from_numpy(self.decode(image))), text


def webdataset(
    place: Place, decode: Decode | None, num_workers: int, epochs: int | None
) -> Iterator:
    """Whole tars in turn through a shuffle buffer of 5,000 samples."""
    return _webdataset(place, lambda samples: samples, Pair(decode), num_workers, epochs)


def _webdataset(
    place: Place, decoded: Callable, pair: Callable, num_workers: int, epochs: int | None
) -> Iterator:
    import webdataset as wds

    if place.endpoint is None:
        urls = [str(path) for path in shard_paths(place.data)]
    else:  # read through curl, which is what webdataset does with an address
        folder = f"{place.endpoint}/{place.bucket}/dataset/shards"
        urls = [f"{folder}/{path.name}" for path in shard_paths(place.data)]
    if epochs is None:
        # Drawn with replacement, the way it documents for training without epochs: `repeat` would
        # run the buffer dry after every pass. The buffer is filled first, so that no measurement
        # falls into the time when it reads two samples for each that it gives.
        source = {"resampled": True, "shardshuffle": False}
        samples = wds.WebDataset(urls, nodesplitter=None, **source)
        samples = samples.shuffle(SHUFFLE_SAMPLES, initial=SHUFFLE_SAMPLES)
    else:
        samples = wds.WebDataset(urls * epochs, nodesplitter=None, shardshuffle=100)
        samples = samples.shuffle(SHUFFLE_SAMPLES)
    samples = decoded(samples).to_tuple("jpg", "txt").map(pair)
    samples = samples.batched(BATCH_SAMPLES)
    return iter(wds.WebLoader(samples, batch_size=None, num_workers=num_workers))


def webdataset_alone(
    place: Place, decode: Decode | None, num_workers: int, epochs: int | None
) -> Iterator:
    """The same with its own decoding, as it is mostly run; `decode` is not used."""
    return _webdataset(
        place, lambda samples: samples.decode("pil"), _transform, num_workers, epochs
    )


def _transform(sample: tuple[Image.Image, str]) -> tuple[Tensor, str]:
    """What torchvision's Resize, CenterCrop, ToTensor and Normalize do, as open_clip joins them."""
    image, text = sample
    scale = SIDE / min(image.size)
    width, height = (int(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - SIDE) / 2), round((height - SIDE) / 2)
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + SIDE, top + SIDE))))
    values = pixels.permute(2, 0, 1).contiguous().float().div(255)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (FORMAT.mean, FORMAT.std))
    return values.clone().sub_(mean).div_(std), text


def streaming(
    place: Place, decode: Decode | None, num_workers: int, epochs: int | None
) -> Iterator:
    """MDS shards, `py1e` shuffle (its default) in blocks of 2^18 samples."""
    library, pair = import_streaming(), Pair(decode)

    class Pairs(library.StreamingDataset):
        def __getitem__(self, index: int) -> tuple:
            sample = super().__getitem__(index)
            return pair((sample["jpg"], sample["txt"]))

    library.base.util.clean_stale_shared_memory()  # what a killed run left
    if place.endpoint is None:
        source = {"local": str(place.data / "mds")}
    else:
        os.environ["S3_ENDPOINT_URL"] = place.endpoint
        source = {"remote": f"s3://{place.bucket}/mds", "local": str(place.cache / "mds")}
    samples = Pairs(**source, shuffle=True, batch_size=BATCH_SAMPLES)
    loader = library.StreamingDataLoader(
        samples, batch_size=BATCH_SAMPLES, **_workers(num_workers), drop_last=epochs is None
    )
    return _passes(loader, epochs)


def litdata(place: Place, decode: Decode | None, num_workers: int, epochs: int | None) -> Iterator:
    """Chunks of 64 MB, shuffled, items in windows of 256 (its default)."""
    import litdata as library

    pair = Pair(decode)
    if place.endpoint is None:
        source = {"input_dir": str(place.data / "litdata")}
    else:
        # It reads through obstore, which wants TLS unless told; litdata has no option for that.
        importlib.import_module("litdata.streaming.downloader")._OBSTORE_CLIENT_OPTIONS[
            "allow_http"
        ] = True
        source = {
            "input_dir": f"s3://{place.bucket}/litdata",
            "cache_dir": str(place.cache / "litdata"),
            "storage_options": {"endpoint_url": place.endpoint},
        }
    samples = library.StreamingDataset(
        **source,
        shuffle=True,
        drop_last=epochs is None,
        transform=lambda sample: pair((sample["jpg"], sample["txt"])),
    )
    loader = library.StreamingDataLoader(samples, batch_size=BATCH_SAMPLES, **_workers(num_workers))
    return _passes(loader, epochs)


PEERS: dict[str, Callable] = {
    "webdataset": webdataset,
    "streaming": streaming,
    "litdata": litdata,
}


def _workers(num_workers: int) -> dict:
    return {"num_workers": num_workers, "persistent_workers": num_workers > 0}


def _passes(loader: DataLoader, epochs: int | None) -> Iterator:
    passes = 0
    while epochs is None or passes < epochs:
        yield from loader
        passes += 1


def missing() -> dict[str, str]:
    """What is not installed, by module, and how to install each: peers, and the S3 server."""
    return {
        module: f"{name} is not installed, left out. To install it: {command}"
        for module, (name, command) in INSTALL.items()
        if importlib.util.find_spec(module) is None
    }


def import_streaming() -> types.ModuleType:
    """Import mosaicml-streaming without torchvision, which it imports for two names we do not use.

    Only where torchvision cannot be imported; the stand-in goes away afterwards, so that no other
    library takes it for the real one.
    """
    if "streaming" in sys.modules:
        return sys.modules["streaming"]
    stand_ins = {}
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError):  # RuntimeError: built for another torch
        names = {"": None, ".datasets": "VisionDataset", ".transforms": None}
        names[".transforms.functional"] = "to_tensor"
        for ending, attribute in names.items():
            module = types.ModuleType(f"torchvision{ending}")
            module.__spec__ = ModuleSpec(module.__name__, None)
            if attribute:
                setattr(module, attribute, type(attribute, (), {}))
            stand_ins[module.__name__] = module
    sys.modules.update(stand_ins)
    try:
        library = importlib.import_module("streaming")
    finally:
        for name in stand_ins:
            del sys.modules[name]
    return library
