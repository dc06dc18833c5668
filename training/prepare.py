"""Videos -> head shards: the frames, landmarks and mattes from which episodes are drawn.

A folder of square head clips with an `index.tsv` (columns `clip`, `person`, `split`, `source`) becomes one
uncompressed tar per clip, in WebDataset's layout: `00042.jpg` (the frame), `00042.npy` (landmarks, `[478, 3]`
float32, pixels of the frame), `00042.png` (matte, 8 bit) and one `clip.json` that keeps person, split, source
and licence. Done clips are skipped, so an interrupted run resumes; clips that cannot be read are named and counted.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
import os
import tarfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import av
import cv2
import numpy as np
from av.error import FFmpegError

from engine.frames import Face, Frame

logger = logging.getLogger(__name__)
MATTE_PX = 128


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def prepare_clip(clip: Path, shard: Path, about: dict[str, str], every: int, size_px: int) -> int:
    """Write one shard; returns the number of frames kept. A frame without exactly one tracked face is dropped.

    Raises `ValueError` when the clip cannot be decoded.
    """
    from engine.tracker import Tracker
    from training.matte import Matter

    kept = 0
    partial = shard.with_suffix(".part")
    with tarfile.open(partial, "w") as tar, Tracker(video=True) as tracker, Matter() as matter:
        try:
            with av.open(str(clip)) as container:
                for number, picture in enumerate(container.decode(video=0)):
                    if number % every:
                        continue
                    rgb = picture.to_ndarray(format="rgb24")
                    if rgb.shape[0] != size_px or rgb.shape[1] != size_px:
                        rgb = cv2.resize(rgb, (size_px, size_px), interpolation=cv2.INTER_AREA)
                    rgb = np.asarray(rgb, np.uint8)
                    face = tracker.track(Frame(rgb, float(picture.time or 0.0)))
                    if not isinstance(face, Face):
                        continue
                    matte = cv2.resize(matter.matte(rgb), (MATTE_PX, MATTE_PX), interpolation=cv2.INTER_AREA)
                    jpeg = cv2.imencode(".jpg", rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
                    points = io.BytesIO()
                    np.save(points, face.points.astype(np.float32))
                    _add(tar, f"{number:05d}.jpg", jpeg.tobytes())
                    _add(tar, f"{number:05d}.npy", points.getvalue())
                    _add(tar, f"{number:05d}.png", cv2.imencode(".png", matte)[1].tobytes())
                    kept += 1
        except (FFmpegError, OSError) as error:
            raise ValueError(f"{clip} cannot be decoded: {error}") from error
        _add(tar, "clip.json", json.dumps({**about, "frames": kept}).encode())
    partial.replace(shard)
    return kept


def _prepare(job: tuple[Path, Path, dict[str, str], int, int]) -> tuple[str, int | str]:
    cv2.setNumThreads(1)
    try:
        return job[0].name, prepare_clip(*job)
    except ValueError as error:
        return job[0].name, str(error)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="clips, with index.tsv")
    parser.add_argument("--out", type=Path, default=Path("runs/shards"))
    parser.add_argument("--every", type=int, default=5, help="keep one frame in so many")
    parser.add_argument("--size-px", type=int, default=256)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--licence", default="unstated", help="recorded in every shard")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = []
    with (options.folder / "index.tsv").open(newline="") as index:
        for row in csv.DictReader(index, delimiter="\t"):
            clip = options.folder / row["clip"]
            shard = options.out / f"{clip.stem}.tar"
            if not shard.exists():
                about = {key: row[key] for key in ("person", "split", "source") if key in row}
                jobs.append((clip, shard, {**about, "licence": options.licence}, options.every, options.size_px))
    broken: list[str] = []
    frames = 0
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        for done, (_, result) in enumerate(pool.map(_prepare, jobs, chunksize=4), 1):
            if isinstance(result, str):
                broken.append(result)
            else:
                frames += result
            if done % 50 == 0 or done == len(jobs):
                logger.info("%d of %d clips, %d frames, %d broken", done, len(jobs), frames, len(broken))
    for sentence in broken:
        logger.warning(sentence)


if __name__ == "__main__":
    main()
