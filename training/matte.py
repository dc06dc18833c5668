"""A photo or a training frame -> its matte: MediaPipe's selfie network, edges refined."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from engine.frames import Image
from engine.tracker import quiet_stderr

Matte = NDArray[np.uint8]
"""`[H, W]` uint8: 0 is background, 255 person."""

_NETWORK_PX = 256  # the network's own input and output side
_GUIDE_PX = 512  # finer than this the coarse mask has nothing to gain from its guide


class Matter:
    """Holds the network (0.25 MB, inside mediapipe's wheel); one object per thread.

    Made for one person in front of a camera. It sees 256 x 256 pixels, so hair comes out as a soft
    edge that follows the picture, not as strands. Frames are judged one by one: nothing is carried over.
    """

    def __init__(self) -> None:
        # Imported here: mediapipe takes most of a second and not everybody who imports this module mattes.
        with quiet_stderr():
            from mediapipe.python.solutions import selfie_segmentation

            self._network: Any = selfie_segmentation.SelfieSegmentation(model_selection=0)
            self._network.process(np.zeros((_NETWORK_PX, _NETWORK_PX, 3), np.uint8))  # the chatter comes with this

    def matte(self, rgb: Image) -> Matte:
        """The mask of the person in `[H, W, 3]` RGB, `[H, W]`."""
        height, width = rgb.shape[:2]
        scale = min(1.0, _GUIDE_PX / max(height, width))
        work = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = cv2.resize(rgb, work, interpolation=cv2.INTER_AREA) if scale < 1 else rgb
        mask = self._network.process(np.ascontiguousarray(small)).segmentation_mask
        refined = refine(np.asarray(small, np.uint8), np.asarray(mask, np.float32))
        if scale < 1:
            refined = cv2.resize(refined, (width, height), interpolation=cv2.INTER_LINEAR)
        return np.rint(np.clip(refined, 0, 1) * 255).astype(np.uint8)

    def close(self) -> None:
        self._network.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def refine(rgb: Image, mask: NDArray[np.float32]) -> NDArray[np.float32]:
    """Edges of a 0..1 mask drawn to the picture's own edges (guided filter, He et al. 2010), holes closed."""
    side = max(mask.shape)
    radius = max(2, side // 48)
    guided = cv2.ximgproc.guidedFilter(rgb, mask, radius, (0.02 * 255) ** 2)
    # Steepen: the network is unsure over a wide rim, a person's outline is not.
    soft = np.clip((guided - 0.25) / 0.5, 0, 1)
    soft = soft * soft * (3 - 2 * soft)
    return np.asarray(soft, np.float32)
