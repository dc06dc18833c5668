"""The live generator's adversary: a light critic that learns beside it, told what to look at by the landmarks' raster.

`python -m training.meta_learn --adversarial` uses it. The critic sees what the perceptual loss sees: where a background
cannot be known, the target's shows through in both pictures, so that it is not what gives a drawn one away.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training import losses
from training import ranks as across
from training.networks.discriminator import CriticOptions, LiveCritic
from training.ranks import Ranks


@dataclass(frozen=True, slots=True)
class AdversaryOptions:
    """What the adversary weighs and how it learns."""

    weight: float = 0.05
    """Of the hinge term, beside the weights of `training.meta_learn.WEIGHTS`: with a critic of 60 steps its gradient on
    a picture is then about a sixth of the perceptual loss's."""
    matching: float = 5.0
    """Of feature matching; about as much."""
    rate: float = 2e-4
    warm_up: int = 300
    """Steps at the start in which only the critic learns, so that a trained generator meets no beginner."""


@dataclass(slots=True)
class Adversary:
    """Critic, its optimiser, and since which step it has been there."""

    critic: LiveCritic
    optimiser: torch.optim.Optimizer
    options: AdversaryOptions
    born: int = 0

    def warming(self, step: int) -> bool:
        return step - self.born < self.options.warm_up

    def state_dict(self) -> dict[str, Any]:
        return {
            "sizes": asdict(self.critic.options),
            "critic": self.critic.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "born": self.born,
        }

    def load_state_dict(self, kept: dict[str, Any]) -> None:
        """Raises `ValueError` when it was made with other sizes."""
        if kept["sizes"] != asdict(self.critic.options):
            raise ValueError(f"the critic was trained with {kept['sizes']}, not {asdict(self.critic.options)}")
        self.critic.load_state_dict(kept["critic"])
        self.optimiser.load_state_dict(kept["optimiser"])
        self.born = kept["born"]


def make_adversary(
    options: AdversaryOptions, device: torch.device, sizes: CriticOptions | None = None, ranks: Ranks | None = None
) -> Adversary:
    critic = LiveCritic(sizes).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    across.spread(critic, ranks or Ranks())
    return Adversary(critic, torch.optim.Adam(critic.parameters(), options.rate, betas=(0.0, 0.99)), options)


def shown(drawn: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """The drawn picture as the critic sees it, `[N, 3, S, S]`: the target where `weight [N, 1, S, S]` is small."""
    keep = weight.clamp(0, 1)
    return drawn * keep + target * (1 - keep)


def generator_terms(adversary: Adversary, fake: Tensor, real: Tensor, raster: Tensor) -> dict[str, Tensor]:
    """What the generator minimises against the critic as it is: hinge (patches and whole alike) and features."""
    critic = adversary.critic.requires_grad_(False)
    with torch.no_grad():
        goal = critic(real, raster).features
    verdict = critic(fake, raster)
    critic.requires_grad_(True)
    hinge = losses.hinge_generator(verdict.patches) + losses.hinge_generator(verdict.whole)
    return {"adversarial": hinge / 2, "matching": losses.feature_matching(verdict.features, goal)}


def teach(
    adversary: Adversary, fake: Tensor, real: Tensor, raster: Tensor, bf16: bool, ranks: Ranks | None = None
) -> tuple[dict[str, float], bool]:
    """One step of the critic; -> its loss and mean scores, and whether the step was finite and taken."""
    with torch.autocast(real.device.type, torch.bfloat16, enabled=bf16):
        verdict = adversary.critic(torch.cat([real, fake.detach()]), raster.repeat(2, 1, 1, 1))
    patches, whole = verdict.patches.chunk(2), verdict.whole.chunk(2)
    loss = (losses.hinge_critic(*patches) + losses.hinge_critic(*whole)) / 2
    adversary.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    across.average_gradients(adversary.critic.parameters(), ranks or Ranks())
    norm = nn.utils.clip_grad_norm_(adversary.critic.parameters(), 10.0)
    taken = bool(torch.isfinite(norm))
    if taken:
        adversary.optimiser.step()
    told = {"critic": loss, "real patches": patches[0].mean(), "drawn patches": patches[1].mean()}
    told |= {"real whole": whole[0].mean(), "drawn whole": whole[1].mean()}
    values = torch.stack([value.detach() for value in told.values()]).tolist()
    return dict(zip(told, values, strict=True)), taken
