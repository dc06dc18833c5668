"""`understudy demo`: enrols somebody who does not exist, drives the avatar with recorded landmarks, says what it took.

It runs the very code of `enrol` and `render`, on the photos and the landmark stream that ship in `plugin/assets/demo`.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from pathlib import Path

import numpy as np

from engine.base import open_base
from engine.config import load
from engine.frames import Face, Frame, Image
from engine.tracker import Tracker
from plugin.render import Rendered, Report, render, with_options
from plugin.webcam import Clip

ASSETS = Path(__file__).parent / "assets" / "demo"
ENROLLED = 8
"""Photos used for enrolment; the others of each person are kept back, to be compared with."""


def people() -> list[str]:
    """The names of the people who ship with the demo."""
    return sorted(folder.name for folder in ASSETS.iterdir() if folder.is_dir())


def photos_of(person: str) -> list[Path]:
    """Every photo of one of them, in order. Raises `ValueError` for a name that is not there."""
    if person not in people():
        raise ValueError(f"the demo has no {person!r}, only {', '.join(people())}")
    return sorted((ASSETS / person).glob("*.jpg"))


def identity_similarity(video: Path, photos: list[Path], every: int = 25) -> float:
    """Mean SFace cosine between frames of the video and photos that enrolment never saw."""
    from training.identity import SFace
    from training.photos import load_photo

    sface = SFace()

    def embed(tracker: Tracker, rgb: Image) -> np.ndarray | None:
        face = tracker.track(Frame(rgb, 0.0))
        return sface.embed(rgb, face.points) if isinstance(face, Face) else None

    with Tracker(video=False) as tracker, Clip(video) as clip:
        known = [one for photo in photos if (one := embed(tracker, load_photo(photo))) is not None]
        drawn = [embed(tracker, frame.rgb) for frame in itertools.islice(clip, 0, None, every)]
    seen = [one for one in drawn if one is not None]
    if not known or not seen:
        raise ValueError(f"no face was found in {video}")
    return float(np.mean([float(one @ other) for one in seen for other in known]))


def demo(out: Path, config_path: Path | None, report: Report, person: str | None = None) -> None:
    """Write `understudy.mp4`, `contact.png` and `demo.json` into `out`, and print a table."""
    from training.enrol import enrol

    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    os.environ["UNDERSTUDY_HOME"] = str((out / "home").absolute())
    person = person or people()[0]
    photos = photos_of(person)
    base, config = open_base(), load(config_path)
    contact, video = out / "contact.png", out / "understudy.mp4"
    result = enrol(photos[:ENROLLED], person, base, config, report, None, contact)
    enrolled_s = time.perf_counter() - began
    settings = with_options(config, size_px=512, motion="relative")
    rendered = render(result.avatar, base, settings, ASSETS / "talking.npz", video, report)
    similarity = identity_similarity(video, photos[ENROLLED:] or photos)
    _tell(person, enrolled_s, rendered, similarity, result.avatar.checks, out, result.path)


def _tell(
    person: str,
    enrolled_s: float,
    done: Rendered,
    similarity: float,
    checks: dict[str, object],
    out: Path,
    avatar: Path,
) -> None:
    stages = done.meter.summary()
    rows = [
        ("person", f"{person}, who does not exist"),
        ("enrolled from", f"{checks['photos']} photos in {enrolled_s:.1f} s"),
        (
            "fine-tuning",
            ", ".join(
                f"{what} {checks.get(what + '_before', '-')} -> {checks.get(what + '_after', '-')}"
                for what in ("lpips", "identity")
            )
            + " on photos held back",
        ),
        ("drawn", f"{done.frames} frames of 512 px, {done.backend}"),
        (
            "pace",
            f"{1e3 / stages['renderer']['median_ms']:.0f} frames a second; the first after {done.first_frame_s:.2f} s",
        ),
        *((f"  {name}", f"{one['median_ms']:.2f} ms (95 %: {one['p95_ms']:.2f} ms)") for name, one in stages.items()),
        ("identity", f"{similarity:.3f} SFace cosine to photos it never saw (same person above 0.42)"),
        ("video", str(done.path)),
        ("contact sheet", str(out / "contact.png")),
        ("avatar", f"{avatar} ({avatar.stat().st_size / 1e6:.2f} MB)"),
    ]
    print("\n".join(f"{name:<16} {value}" for name, value in rows))
    told = {"person": person, "enrolled_s": enrolled_s, "stages": stages, "identity": similarity, "checks": checks}
    (out / "demo.json").write_text(json.dumps(told | {"backend": done.backend}, indent=1) + "\n", encoding="utf-8")
