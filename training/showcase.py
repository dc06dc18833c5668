"""What an avatar does that its photos do not show: `python -m training.showcase plugin/assets/demo/*/ --out docs`.

People who do not exist (folders of photos in the order of `training.invent.STATES`) are enrolled from photos with open
eyes, shut lips and a straight head, and driven by photos of theirs that were kept back: a blink, teeth, an open mouth;
and by their own face turned by 30 degrees. `unaided.jpg` puts what was drawn beside the true photo. In the last row of
each person all eight photos were enrolled.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from engine.base import Base, open_base
from engine.config import Config, load
from engine.frames import Face, Frame, Image
from engine.motion import to_head
from engine.renderer import Renderer
from engine.tracker import Tracker
from training.enrol import avatar_of, turned
from training.photos import load_photo

PLAIN = (0, 6, 7)
"""Photos with open eyes, shut lips and no turn beyond ten degrees."""
KEPT_BACK = {"blink": 5, "teeth": 1, "mouth open": 4}
TURNS_DEG = {"30 degrees left": 30.0, "30 degrees right": -30.0}
"""As they would say themselves; the sign is that of `engine.tracker.euler_deg`."""
ALL = 8
"""Photos of the last row."""


def drawn_from(enrolled: Sequence[Path], targets: Sequence[Face], base: Base, config: Config) -> list[Image]:
    """One picture for each of the targets, by an avatar made of these photos."""
    avatar = avatar_of(enrolled, "shown", base, config)
    # One renderer each: none of the pictures is to follow another.
    return [Renderer(avatar, base, config).draw(target).rgb.copy() for target in targets]


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
            if len(photos) < ALL:
                raise ValueError(
                    f"{folder} holds {len(photos)} photos: {ALL} are needed, as training.invent makes them"
                )
            kept = {name: load_photo(photos[index]) for name, index in KEPT_BACK.items()}
            front = tracked(load_photo(photos[PLAIN[0]]), tracker)
            targets = [tracked(rgb, tracker) for rgb in kept.values()]
            head = to_head(front)
            targets += [replace(front, points=turned(head, yaw).to_picture()) for yaw in TURNS_DEG.values()]
            for chosen in (PLAIN[:1], PLAIN, range(ALL)):
                pictures = drawn_from([photos[index] for index in chosen], targets, base, config)
                count = {1: "1 plain photo", 3: "3 plain photos"}.get(len(chosen), f"{len(chosen)} photos")
                cells = [_cell(load_photo(photos[PLAIN[0]]), count, cell_px)]
                for (name, truth), picture in zip(kept.items(), pictures, strict=False):
                    cells += [_cell(picture, name, cell_px), _cell(truth, "the true photo", cell_px)]
                for picture, title in zip(pictures[len(kept) :], TURNS_DEG, strict=True):
                    cells.append(_cell(picture, title, cell_px))
                rows.append(np.hstack(cells))
    return np.asarray(np.vstack(rows), np.uint8)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", nargs="+", type=Path, help="a folder of photos each")
    parser.add_argument("--out", type=Path, default=Path("docs"))
    options = parser.parse_args(arguments)
    config = load()
    config = replace(config, render=replace(config.render, size_px=512, motion="absolute"))
    try:
        picture = unaided(options.people, open_base(), config)
    except ValueError as error:
        parser.exit(1, f"{error}\n")
    options.out.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(options.out / "unaided.jpg"), picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])


if __name__ == "__main__":
    main()
