"""Every loss of the generators, one named function each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from training.networks.face import FaceFeatures, cut_eyes_and_mouth, cut_faces
from training.networks.live import Drawn


def pixel_weight(matte: Tensor, background: Tensor, focus: Tensor) -> Tensor:
    """How much each pixel counts, `[N, 1, S, S]`.

    The person counts 1, and more on eyes and mouth, the rest as far as it stands still.
    `matte [N, 1, S, S]`, `background [N]`, `focus [N, 1, S, S]`.
    """
    person = F.max_pool2d(matte, 9, 1, 4)
    return person + (1 - person) * background[:, None, None, None] * 0.7 + 5 * focus


def weighted_l1(drawn: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean absolute difference; `drawn`, `target [N, 3, S, S]`, `weight [N, 1, S, S]`."""
    return ((drawn - target).abs() * weight).mean()


def warp_l1(looks: Tensor, target: Tensor, detail: Tensor, weight: Tensor) -> Tensor:
    """What each slot looks at, before weighing, against the target (at half size: it teaches the maps, not the detail).

    `looks [N, 2, 3, S, S]`; slot B counts only where `detail [N, 1, S/4, S/4]` lets it speak.
    """
    small = F.avg_pool2d(looks.flatten(0, 1), 2).unflatten(0, looks.shape[:2])
    goal, half = F.avg_pool2d(target, 2), F.avg_pool2d(weight, 2)
    spoken = F.interpolate(detail, scale_factor=2.0, mode="bilinear", align_corners=False)
    return weighted_l1(small[:, 0], goal, half) + weighted_l1(small[:, 1], goal, half * spoken)


def matte_loss(matte: Tensor, target: Tensor) -> Tensor:
    """Binary cross entropy plus L1 on alpha, `[N, 1, S, S]` in 0..1.

    Not a number where the matte is not: torch's cross entropy would raise, and a bad step is to be skipped.
    """
    surely = torch.nan_to_num(matte, nan=0.5).clamp(1e-4, 1 - 1e-4)
    return F.binary_cross_entropy(surely, target) + (matte - target).abs().mean()


def perceptual_pair(
    drawn: Tensor, target: Tensor, weight: Tensor, crop_px: int, corner: tuple[int, int] | None
) -> tuple[Tensor, Tensor]:
    """The two pictures the perceptual loss compares: a crop at full detail, or (`corner` None) the whole made small.

    Where `weight` is small (a background that does not stand still) the target shows through, so that it costs nothing.
    """
    keep = weight.clamp(0, 1)
    mixed = drawn * keep + target * (1 - keep)
    if corner is None:
        return (
            F.interpolate(mixed, size=(crop_px, crop_px), mode="area"),
            F.interpolate(target, size=(crop_px, crop_px), mode="area"),
        )
    y, x = corner
    return mixed[..., y : y + crop_px, x : x + crop_px], target[..., y : y + crop_px, x : x + crop_px]


def eyes_and_mouth_pair(drawn: Tensor, target: Tensor, placed: Tensor, size_px: int) -> tuple[Tensor, Tensor]:
    """The two faces from brows to lower lip, enlarged: what people look at is a small part of the picture."""
    return cut_eyes_and_mouth(drawn, placed, size_px), cut_eyes_and_mouth(target, placed, size_px)


def likeness(drawn: Tensor, target: Tensor, placed: Tensor, network: FaceFeatures) -> Tensor:
    """One minus the cosine of the two faces' embeddings; `drawn`, `target [N, 3, S, S]`, `placed [N, 2, 3]`."""
    with torch.no_grad():
        goal, _ = network(cut_faces(target, placed))
    embedding, _ = network(cut_faces(drawn, placed))
    return (1 - (embedding * goal).sum(1)).mean()


def reconstruction(
    drawn: Drawn, target: Tensor, detail: Tensor, background: Tensor, focus: Tensor
) -> dict[str, Tensor]:
    """The pixel losses of one batch, by name; `target [N, 4, S, S]`."""
    rgb, matte = target[:, :3], target[:, 3:]
    weight = pixel_weight(matte, background, focus)
    return {
        "l1": weighted_l1(drawn.rgb, rgb, weight),
        "warp": warp_l1(drawn.looks, rgb, detail, weight),
        "synthesis": weighted_l1(drawn.synthesised, rgb, weight),
        "matte": matte_loss(drawn.matte, matte),
    }


def total(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    """The weighted sum; the two dicts must have the same keys."""
    if losses.keys() != weights.keys():
        raise ValueError(f"losses {sorted(losses)} and weights {sorted(weights)} do not name the same things")
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


# --- adversarial -------------------------------------------------------------------------------------------


def hinge_critic(real: Tensor, fake: Tensor) -> Tensor:
    """What a critic minimises, max(0, 1 - real) + max(0, 1 + fake) (Zakharov et al. 2019, equation 7)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """What a generator minimises, -D(fake) (equation 4, without its feature matching)."""
    return -fake.mean()


def feature_matching(fake: Sequence[Tensor], real: Sequence[Tensor]) -> Tensor:
    """L1 between what the two pictures leave in the critic, summed over its layers (pix2pixHD, equation 4)."""
    return content(fake, [features.detach() for features in real])


def content(drawn: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """L1 between two pictures' features, the mean of each layer, summed over layers (Zakharov et al. 2019, L_CNT)."""
    distances = [(ours - theirs).abs().float().mean() for ours, theirs in zip(drawn, target, strict=True)]
    return torch.stack(distances).sum()


def match(embedding: Tensor, column: Tensor) -> Tensor:
    """L1 between the embedder's vector and the video's column W_i, `[N, E]` both (L_MCH); the column is learned by
    the discriminator alone."""
    return (embedding - column.detach()).abs().mean()
