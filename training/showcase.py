"""What an avatar does that its photos do not show: `python -m training.showcase plugin/assets/demo/*/ --out docs`.

People who do not exist (folders of photos in the order of `training.invent.STATES`) are enrolled from photos with open
eyes, shut lips and a straight head, and driven by photos of theirs that were kept back: a blink, teeth, an open mouth;
and by their own face turned by 30 degrees. `unaided.jpg` puts what was drawn beside the true photo. In the last row of
each person all eight photos were enrolled.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from engine import avatar as avatars
from engine.base import Base, open_base
from engine.config import Config, load
from engine.frames import Face, Frame, Image
from engine.renderer import Renderer
from engine.tracker import Tracker
from training.enrol import enrol
from training.photos import load_photo

PLAIN = (0, 6, 7)
"""Photos with open eyes, shut lips and no turn beyond ten degrees."""
KEPT_BACK = {"blink": 5, "teeth": 1, "mouth open": 4}
TURN_DEG = 30.0


def turned(face: Face, yaw_deg: float) -> Face:
    """The face turned about the vertical axis through the middle of the head."""
    angle = np.radians(yaw_deg)
    about = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]], np.float32)
    across = float(np.linalg.norm(face.points[454] - face.points[234]))
    centre = (face.points[234] + face.points[454]) / 2 + np.array([0, 0, 0.2 * across], np.float32)
    return replace(face, points=(face.points - centre) @ about.T + centre)


def drawn_from(enrolled: Sequence[Path], targets: Sequence[Face], base: Base, config: Config) -> list[Image]:
    """One picture for each of the targets, by an avatar made of these photos and forgotten again."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["UNDERSTUDY_HOME"] = folder
        enrol(list(enrolled), "shown", base, config, lambda stage, done, total: None)
        avatar = avatars.load(avatars.find("shown"), base.sha256)
        pictures = []
        for target in targets:
            renderer = Renderer(avatar, base, config)
            pictures.append(renderer.draw(target).rgb.copy())
        return pictures


def tracked(rgb: Image, tracker: Tracker) -> Face:
    face = tracker.track(Frame(rgb, 0.0))
    if not isinstance(face, Face):
        raise ValueError("no face was found in a photo")
    return face


def _cell(rgb: Image, title: str, size_px: int) -> Image:
    small = cv2.resize(rgb, (size_px, size_px), interpolation=cv2.INTER_AREA)
    bar = np.full((22, size_px, 3), 255, np.uint8)
    cv2.putText(bar, title, (4, 15), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (40, 40, 40), 1, cv2.LINE_AA)
    return np.asarray(np.vstack([bar, small]), np.uint8)


def unaided(people: Sequence[Path], base: Base, config: Config, cell_px: int = 200) -> Image:
    """A row for a single photo, one for three plain ones, one for eight, of each folder."""
    rows = []
    with Tracker(video=False) as tracker:
        for folder in people:
            photos = sorted(folder.glob("*.jpg"))
            kept = {name: load_photo(photos[index]) for name, index in KEPT_BACK.items()}
            front = tracked(load_photo(photos[PLAIN[0]]), tracker)
            targets = [tracked(rgb, tracker) for rgb in kept.values()]
            targets += [turned(front, -TURN_DEG), turned(front, TURN_DEG)]
            for chosen in (PLAIN[:1], PLAIN, range(8)):
                pictures = drawn_from([photos[index] for index in chosen], targets, base, config)
                count = {1: "1 plain photo", 3: "3 plain photos"}.get(len(chosen), f"{len(chosen)} photos")
                cells = [_cell(load_photo(photos[PLAIN[0]]), count, cell_px)]
                for (name, truth), picture in zip(kept.items(), pictures, strict=False):
                    cells += [_cell(picture, name, cell_px), _cell(truth, "the true photo", cell_px)]
                for picture, side in zip(pictures[len(kept) :], ("left", "right"), strict=True):
                    cells.append(_cell(picture, f"{TURN_DEG:.0f} degrees {side}", cell_px))
                rows.append(np.hstack(cells))
    return np.asarray(np.vstack(rows), np.uint8)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", nargs="+", type=Path, help="a folder of photos each")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    config = load(None)
    config = replace(config, render=replace(config.render, size_px=512, motion="absolute"))
    picture = unaided([folder for folder in options.people if folder.is_dir()], open_base(), config)
    cv2.imwrite(str(options.out / "unaided.jpg"), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main()
