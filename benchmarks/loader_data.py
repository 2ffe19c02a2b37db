"""The pictures that the loaders read: one set of samples in every loader's own format.

    <data>/dataset/shards/000000.tar   plain WebDataset, 1,000 samples: {key}.jpg .txt .json
    <data>/dataset/index/              what `roseate index` adds to the tars, and manifest.json
    <data>/mds/  <data>/litdata/       the same bytes, written by the peers where they are installed

Drawn by computer, since the sets that they stand for cannot be downloaded everywhere: octaves of
noise over gradients, JPEG of quality 95, longer side 256. What counts for a loader is that bytes,
pixels and caption lengths are spread as in CC12M; `statistics` tells how they are.
"""

import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.index_folder import index_folder

LONGER_SIDE, QUALITY, SHARD_SAMPLES = 256, 95, 1000
ASPECTS = (1.0, 4 / 3, 4 / 3, 3 / 2, 3 / 2, 16 / 9, 3 / 4, 2 / 3)
# CC12M: 20.2 words a caption, standard deviation 16.3 (Changpinyo et al. 2021, table 1); captions
# of 3 to 256 words were kept. A log-normal with these moments has its median at 15.7 words, about
# 20 tokens of a language model.
WORDS_LOG_MEAN, WORDS_LOG_DEVIATION, WORDS_RANGE = np.log(15.7), 0.708, (3, 256)
COPIES = ("dataset", "mds", "litdata")


@dataclass(frozen=True)
class Place:
    """Where the copies of the samples are.

    Attributes:
        data: folder made by `prepare`; also read for the names of the tars.
        endpoint: address of an S3 server that holds the same folders, None to read from disk.
        bucket: of the S3 server.
        cache: empty folder for what a loader keeps of S3.
    """

    data: Path
    endpoint: str | None = None
    bucket: str = "samples"
    cache: Path | None = None


def draw_image(random: np.random.Generator) -> bytes:
    """Draw one JPEG: octaves of noise whose strength falls as in photographs, over a gradient."""
    aspect = random.choice(ASPECTS)
    width = LONGER_SIDE if aspect >= 1 else round(LONGER_SIDE * aspect)
    height = round(LONGER_SIDE / aspect) if aspect >= 1 else LONGER_SIDE
    across, down = np.linspace(-1, 1, width), np.linspace(-1, 1, height)[:, None]
    slopes = random.normal(0, 30, (2, 3))
    picture = random.uniform(60, 190, 3) + across[None, :, None] * slopes[0]
    picture = (picture + down[:, :, None] * slopes[1]).astype(np.float32)
    detail = random.lognormal(0.0, 0.4)
    for octave in range(1, 9):
        # Mostly grey: in photographs colour varies less than light, above all in fine detail.
        size = (min(2**octave, width), min(2**octave, height))
        grey = random.normal(0, 1, size[::-1]).astype(np.float32)
        layer = np.asarray(Image.fromarray(grey).resize((width, height), Image.BICUBIC))
        strength = 42 * 0.77**octave * (detail if octave > 4 else 1)
        tint = 1 + random.normal(0, 0.3 / octave, 3)
        picture += (layer * strength)[:, :, None] * tint.astype(np.float32)
    buffer = io.BytesIO()
    pixels = np.clip(picture, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _words() -> list[str]:
    """A vocabulary of 20,000 pronounceable words, the same in every run."""
    random = np.random.default_rng(0)
    parts = [first + second for first in "bcdfghklmnprstvw" for second in "aeiou"]
    return ["".join(random.choice(parts, random.integers(1, 5))) for _ in range(20_000)]


def caption_lengths(num_captions: int, seed: int = 0) -> np.ndarray:
    """int64 (num_captions,): words of captions as long as those of CC12M."""
    random = np.random.default_rng((seed, num_captions))
    lengths = random.lognormal(WORDS_LOG_MEAN, WORDS_LOG_DEVIATION, num_captions)
    return np.clip(np.rint(lengths), *WORDS_RANGE).astype(np.int64)


def _write_shard(folder: Path, shard: int, num_samples: int) -> None:
    random, words = np.random.default_rng((1, shard)), _words()
    # Zipf's law: the tokenizers that read it split rare words into more tokens, as in English.
    chances = 1 / np.arange(1, len(words) + 1)
    chances /= chances.sum()
    lengths = caption_lengths(num_samples, shard)
    partial = folder / f".{shard:06d}.partial"
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        for index in range(num_samples):
            key = f"{shard * SHARD_SAMPLES + index:09d}"
            image = draw_image(random)
            text = " ".join(random.choice(words, lengths[index], p=chances))
            meta = json.dumps({"key": key, "caption": text, "status": "success"})
            for ending, data in (("jpg", image), ("txt", text.encode()), ("json", meta.encode())):
                member = tarfile.TarInfo(f"{key}.{ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    partial.rename(folder / f"{shard:06d}.tar")


def shard_paths(data: Path) -> list[Path]:
    """The tars, in order."""
    return sorted((data / "dataset" / "shards").glob("*.tar"))


def read_tar(path: Path) -> Iterator[tuple[bytes, str]]:
    """Samples of one tar: JPEG, caption."""
    with tarfile.open(path) as tar:
        members = {m.name: m for m in tar}
        for name in members:
            if name.endswith(".jpg"):
                text = tar.extractfile(members[name[:-3] + "txt"]).read()
                yield tar.extractfile(members[name]).read(), text.decode()


def write_dataset(data: Path, num_samples: int) -> None:
    """Write the tars that are not there yet."""
    folder = data / "dataset" / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    shards = [
        (shard, min(SHARD_SAMPLES, num_samples - shard * SHARD_SAMPLES))
        for shard in range(-(-num_samples // SHARD_SAMPLES))
    ]
    missing = [s for s in shards if not (folder / f"{s[0]:06d}.tar").exists()]
    if not missing:
        return
    print(f"drawing {sum(s[1] for s in missing)} pictures", file=sys.stderr, flush=True)
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_write_shard, *zip(*[(folder, *s) for s in missing], strict=True)))


def write_mds(data: Path) -> None:
    """Copy the tars to MDS with mosaicml-streaming's own writer and shard size (64 MiB)."""
    from benchmarks.loader_peers import import_streaming

    partial = data / "mds.partial"
    shutil.rmtree(partial, ignore_errors=True)
    columns = {"jpg": "bytes", "txt": "str"}
    with import_streaming().MDSWriter(out=str(partial), columns=columns) as writer:
        for path in shard_paths(data):
            for image, text in read_tar(path):
                writer.write({"jpg": image, "txt": text})
    partial.rename(data / "mds")


def write_litdata(data: Path) -> None:
    """Copy the tars to chunks with litdata's own `optimize` and its default of 64 MB."""
    from litdata import optimize

    partial = data / "litdata.partial"
    shutil.rmtree(partial, ignore_errors=True)
    optimize(
        fn=_litdata_samples,
        inputs=[str(p) for p in shard_paths(data)],
        output_dir=str(partial),
        chunk_bytes="64MB",
        num_workers=1,
        reorder_files=False,
        verbose=False,
    )
    partial.rename(data / "litdata")


def _litdata_samples(path: str) -> Iterator[dict]:
    for image, text in read_tar(Path(path)):
        yield {"jpg": image, "txt": text}


def prepare(data: Path, num_samples: int, copies: tuple[str, ...]) -> Path:
    """Write what is missing of the set; sets of different sizes stand beside one another.

    Returns:
        The folder that holds `copies`.
    """
    data = data / str(num_samples)
    write_dataset(data, num_samples)
    if not (data / "dataset" / "manifest.json").exists():
        index_folder(str(data / "dataset"))
    for copy, write in (("mds", write_mds), ("litdata", write_litdata)):
        if copy in copies and not (data / copy).exists():
            print(f"copying to {copy}", file=sys.stderr, flush=True)
            write(data)
    return data


def statistics(data: Path) -> str:
    """Say how large images and captions are: medians of the first shard."""
    samples = list(read_tar(shard_paths(data)[0]))
    sizes = np.array([len(image) for image, _ in samples]) / 1000
    words = np.array([len(text.split()) for _, text in samples])
    low, middle, high = np.percentile(sizes, (10, 50, 90))
    return (
        f"JPEG {middle:.0f} KB ({low:.0f} to {high:.0f} for 80 %), "
        f"captions {np.median(words):.0f} words, mean {words.mean():.0f}"
    )
