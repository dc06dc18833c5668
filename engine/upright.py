"""A decoded picture of a video as it is meant to be seen; for every stage that reads video."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Colorspace

from engine.frames import Image

_UNSPECIFIED = 2  # ISO/IEC 23091-2: the file does not say which matrix its YUV is in


def upright(picture: VideoFrame, aspect: Fraction | float | None) -> Image:
    """The picture as it is meant to be seen, `[H, W, 3]` RGB: turned and mirrored as its display matrix says.

    `aspect`: width of the stream's pixels over their height, where it is known; they are made square.
    """
    width = picture.width
    if aspect and aspect > 0:
        width = max(1, round(width * float(aspect)))
    # Untagged pictures: players take BT.709 from 720 lines on and BT.601 below.
    untagged_hd = picture.colorspace == _UNSPECIFIED and picture.height >= 720
    rgb = picture.reformat(
        width=width, format="rgb24", src_colorspace=Colorspace.ITU709 if untagged_hd else None
    ).to_ndarray()
    across, down = _display_axes(picture)
    if across[0] == 0:  # a quarter turn: the stored x axis is shown vertically
        rgb = rgb.transpose(1, 0, 2)
        across, down = down, across
    rgb = rgb[:: -1 if down[1] < 0 else 1, :: -1 if across[0] < 0 else 1]
    return np.ascontiguousarray(rgb, np.uint8)


def _display_axes(picture: VideoFrame) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where the stored x axis and y axis point on the screen, as signs, from the display matrix."""
    # Not `picture.side_data`: the picture keeps that and is kept by it, a cycle that frees megabytes late.
    matrix = SideDataContainer(picture).get("DISPLAYMATRIX")  # pyright: ignore[reportCallIssue] - the stub has no init
    if matrix is None:
        return (1, 0), (0, 1)
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].astype(float)
    if abs(b) > abs(a):
        return (0, int(np.sign(b))), (int(np.sign(c)) or 1, 0)
    return (int(np.sign(a)) or 1, 0), (0, int(np.sign(d)) or 1)
