"""The losses of Wang et al. 2023 that no other system here has, each one named function, and the memory bank."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training import ranks as across
from training.ranks import Ranks


def info_nce(anchors: Tensor, positives: Tensor, negatives: Tensor, temperature: float) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, equation 4), similarities as cosines over a temperature.

    `anchors`, `positives [N, C]`, `negatives [N, M, C]` -> the mean of
    `-log exp(s(a, p) / t) / (exp(s(a, p) / t) + sum over m of exp(s(a, n_m) / t))`.
    """
    near = F.cosine_similarity(anchors.float(), positives.float(), dim=-1)[:, None]
    far = F.cosine_similarity(anchors[:, None].float(), negatives.float(), dim=-1)
    return (torch.logsumexp(torch.cat([near, far], 1) / temperature, 1) - near[:, 0] / temperature).mean()


def in_step(lips: Tensor, sounds: Tensor, temperature: float) -> Tensor:
    """Lip codes against those of sounds, both `[N, W, C]`: N clips, W moments of each (section 3.3, lip motion).

    In step are the two of one moment, out of step those of the same clip's other moments; asked in both directions,
    picture to sound and sound to picture, and averaged.
    """
    alike = F.normalize(lips.float(), dim=-1) @ F.normalize(sounds.float(), dim=-1).transpose(1, 2) / temperature
    own = torch.arange(alike.shape[1], device=alike.device).expand(len(alike), -1).flatten()
    rows, columns = alike.flatten(0, 1), alike.transpose(1, 2).flatten(0, 1)
    return (F.cross_entropy(rows, own) + F.cross_entropy(columns, own)) / 2


def eyes_apart(mixed: Tensor, frames: Tensor, temperature: float) -> Tensor:
    """Eye codes of composites and frames, both `[N, W, C]` (section 3.3, eye gaze and blink).

    Composite w is frame w with the eyes of frame w + 1, the last with those of the first
    (`training.factors.clips.Steps`): it is to be near the latter and far from the former.
    """
    owners = frames.roll(-1, 1).flatten(0, 1)
    return info_nce(mixed.flatten(0, 1), owners, frames.flatten(0, 1)[:, None], temperature)


def pose_l1(code: Tensor, wanted: Tensor) -> Tensor:
    """Section 3.3, head pose: the code is the pose, six numbers."""
    return (code.float() - wanted).abs().mean()


def correlation(one: Tensor, other: Tensor) -> Tensor:
    """Pearson's, of each dimension with its namesake, over the rows: `[n, C]`, `[n, C]` -> `[C]`."""
    one, other = (rows.float() - rows.float().mean(0) for rows in (one, other))
    size = one.square().sum(0) * other.square().sum(0)
    return (one * other).sum(0) * (size + 1e-12).rsqrt()


def decorrelation(one: Tensor, other: Tensor) -> Tensor:
    """The mean squared `correlation`: nought for what has nothing to do with one another, one for what is the same."""
    return correlation(one, other).square().mean()


class Bank(nn.Module):
    """The features of past steps, so that a correlation is taken over more than a batch (section 3.4).

    Nothing that lies in it carries a gradient. It goes round: the oldest rows are written over first.
    """

    def __init__(self, rows: int, channels: int) -> None:
        super().__init__()
        self.rows = rows
        self.register_buffer("expressions", torch.zeros(rows, channels))
        self.register_buffer("sounds", torch.zeros(rows, channels))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))

    @property
    def filled(self) -> int:
        return min(int(self.get_buffer("written")), self.rows)

    def decorrelation(self, expressions: Tensor, sounds: Tensor, ranks: Ranks) -> Tensor:
        """Of this batch, over all ranks, and the bank together; `[n, C]` both. Puts the batch in.

        The sounds are what the expression is to have nothing of: no gradient reaches them.
        """
        expressions = across.together(expressions.float(), ranks)
        sounds = across.together(sounds.detach().float(), ranks)
        past = self.filled
        loss = decorrelation(
            torch.cat([expressions, self.get_buffer("expressions")[:past]]),
            torch.cat([sounds, self.get_buffer("sounds")[:past]]),
        )
        self.put(expressions.detach(), sounds)
        return loss

    @torch.no_grad()
    def put(self, expressions: Tensor, sounds: Tensor) -> None:
        """A row that is not finite is left out, so that one bad step does not spoil all that follow."""
        sound = torch.isfinite(expressions).all(1) & torch.isfinite(sounds).all(1)
        expressions, sounds = expressions[sound][-self.rows :], sounds[sound][-self.rows :]
        written = self.get_buffer("written")
        places = (torch.arange(len(sounds), device=sounds.device) + written) % self.rows
        # Not in place: the loss that has just been taken still needs what lay here.
        self.expressions = self.get_buffer("expressions").index_copy(0, places, expressions)
        self.sounds = self.get_buffer("sounds").index_copy(0, places, sounds)
        self.written = written + len(sounds)


def motion_difference(drawn: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> Tensor:
    """L_mot (section 3.2): what a face reader says of two pictures, numbers by L1, features by their cosine."""
    numbers = (drawn[0] - wanted[0]).abs().mean()
    features = 1 - F.cosine_similarity(drawn[1].float(), wanted[1].float(), dim=-1).mean()
    return numbers + features
