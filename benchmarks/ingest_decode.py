"""What an image costs to decode, resize and encode: `python -m benchmarks.ingest_decode --help`.

Beside img2dataset's own resizer, one thread each and the same output: jpg of quality 95. `border` is
256 x 256, padded with white; `keep_ratio` shrinks the longer side to 256. Random OpenClipart drawings
under 4 megapixels, and JPEG photographs of 1 to 4 made of blurred noise.
"""

import argparse
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
from PIL import Image, ImageFilter

from benchmarks.figures import Figure, paired, parser, write
from data_prep.config import DecodeConfig, FilterConfig, ImageConfig
from data_prep.image.decoder import Decoder
from data_prep.image.encode import encode_image
from data_prep.schema import Status

SIZE = 256
GOAL = 1 / 3  # of the processor time, so that the fetch may take some of its own
MODES = {"border": ["border"], "keep_ratio": ["keep_ratio_largest", "--only-if-bigger"]}
_DRAWINGS = Path("/usr/share/openclipart/png")
_MAX_PIXELS = 4_000_000


def drawings(count: int) -> list[Path]:
    """Random drawings under 4 megapixels."""
    found = []
    paths = sorted(_DRAWINGS.rglob("*.png"))
    random.shuffle(paths)
    for path in paths:
        with path.open("rb") as file:
            head = file.read(24)
        width, height = struct.unpack(">II", head[16:]) if len(head) == 24 else (0, 0)
        if 0 < width * height < _MAX_PIXELS:
            found.append(path)
        if len(found) == count:
            break
    return found


def photographs(folder: Path, count: int) -> list[Path]:
    """JPEG files with the spectrum of photographs, roughly: noise of several coarsenesses."""
    rng = np.random.default_rng()
    paths = []
    for index in range(count):
        pixels = rng.uniform(1e6, _MAX_PIXELS)
        width = int((pixels * rng.uniform(0.66, 1.5)) ** 0.5)
        size = (width, int(pixels / width))
        layers = np.zeros((size[1], size[0], 3), dtype=np.float32)
        for coarse, strength in ((1, 20), (4, 30), (32, 60), (256, 90)):
            shape = (max(2, size[1] // coarse), max(2, size[0] // coarse), 3)
            noise = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
            noise = noise.filter(ImageFilter.GaussianBlur(0.7)).resize(
                size, Image.Resampling.BICUBIC
            )
            layers += (np.asarray(noise, dtype=np.float32) - 128) * (strength / 74)
        image = Image.fromarray(np.clip(layers + 128, 0, 255).astype(np.uint8))
        path = folder / f"{index}.jpg"
        image.save(path, quality=85)
        paths.append(path)
    return paths


@contextmanager
def resizer(python: str, listing: Path, mode: str, clock: str) -> Iterator[Callable[[], float]]:
    """A pass of img2dataset's resizer over the files, in a process of its own; gives seconds."""
    script = Path(__file__).with_name("ingest_decode_peer.py")
    command = [python, "-P", str(script), str(listing), "--mode", *MODES[mode]]
    command += ["--clock", clock, "--size", str(SIZE)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:

        def ask() -> float:
            print("go", file=process.stdin, flush=True)
            seconds, failed = process.stdout.readline().split()
            if int(failed):
                raise RuntimeError(f"img2dataset could not use {failed} of the files")
            return float(seconds)

        if process.stdout.readline().strip() != "ready":
            raise SystemExit(f"{python} has no img2dataset 1.47.0: see --peer-python")
        yield ask
        print("end", file=process.stdin, flush=True)


def compare(
    paths: list[Path], what: str, goal: float | None, args: argparse.Namespace
) -> Iterator[Figure]:
    """Both modes over the same files."""
    files = [path.read_bytes() for path in paths]
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listing:
        listing.write("\n".join(map(str, paths)))
        listing.flush()
        for mode in MODES:
            image, keep = ImageConfig(size=SIZE, mode=mode), FilterConfig(max_aspect_ratio=1e9)

            def ours(image: ImageConfig = image, keep: FilterConfig = keep) -> float:
                start = clock()
                failed = sum(encode_image(d, image, keep).status is not Status.OK for d in files)
                if failed:
                    raise RuntimeError(f"ours could not use {failed} of the files")
                return (clock() - start) / len(files) * 1e3

            with resizer(args.peer_python, Path(listing.name), mode, args.clock) as peer:
                pairs = paired(ours, lambda: peer() / len(files) * 1e3, args.pairs)
            name = f"decode to {mode} {SIZE}, {what}, ours / img2dataset's resizer"
            yield pairs.figure(name, "ms per image", goal)


def apart(paths: list[Path], args: argparse.Namespace) -> Figure:
    """What it costs that images are decoded in a process of their own, by both processes' clocks."""
    files = [path.read_bytes() for path in paths]
    image, keep = ImageConfig(size=SIZE), FilterConfig(max_aspect_ratio=1e9)
    with Decoder(image, keep, DecodeConfig()) as decoder:
        decoder.encode(files[0])
        (child,) = psutil.Process().children()

        def spent() -> float:
            return time.process_time() + sum(child.cpu_times()[:2])

        def timed(encode: Callable[[bytes], object]) -> float:
            start = spent()
            for data in files:
                encode(data)
            return (spent() - start) / len(files) * 1e3

        pairs = paired(
            lambda: timed(decoder.encode),
            lambda: timed(lambda data: encode_image(data, image, keep)),
            args.pairs,
        )
    return pairs.figure("decode keep_ratio, drawings, in a process apart / here", "ms per image")


def main() -> None:
    """Measure and write."""
    command = parser("decoding, resizing and encoding, beside img2dataset's resizer")
    command.set_defaults(clock="cpu")
    command.add_argument("--pairs", type=int, help="of passes (default: 7; quick: 3)")
    command.add_argument("--images", type=int, help="drawings (default: 300; quick: 60)")
    command.add_argument(
        "--peer-python",
        default=sys.executable,
        metavar="PATH",
        help="python that has img2dataset 1.47.0 (default: this one)",
    )
    args = command.parse_args()
    if not _DRAWINGS.is_dir():
        command.error("needs drawings (Debian: apt-get install openclipart-png)")
    args.pairs = args.pairs or (3 if args.quick else 7)
    args.images = args.images or (60 if args.quick else 300)
    pictures = drawings(args.images)
    with tempfile.TemporaryDirectory(prefix="roseate-decode-") as name:
        photos = photographs(Path(name), max(5, args.images // 15))
        figures = [
            *compare(pictures, "drawings", GOAL, args),
            *compare(photos, "photographs", None, args),
        ]
    write([*figures, apart(pictures, args)], args)


if __name__ == "__main__":
    main()
