"""The system of Zakharov et al. 2019 (arXiv 1905.08233): its episodes, its meta-learning step, its fine-tuning.

`python -m training.meta_learn --preset paper` runs it; the networks are in `training.networks.paper` and
`training.networks.discriminator`. Faithful to the paper, not to this project's own generator: pictures as they are,
background and all, one video at a time, nothing augmented.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from engine import geometry
from training import losses
from training import ranks as across
from training.episodes import Shot, raster_tensor, to_image
from training.networks.content import Content
from training.networks.discriminator import Columns, Discriminator
from training.networks.face import alignment
from training.networks.paper import Embedder, Generator, PaperOptions, full_size
from training.ranks import Ranks

PRESETS = {
    "paper": PaperOptions(),
    "paper-tiny": PaperOptions(
        size_px=32,
        least_channels=4,
        most_channels=16,
        embedding_channels=16,
        bottleneck_px=8,
        residual_blocks=1,
        attention_down_px=16,
        attention_up_px=16,
    ),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Weights and rates; the defaults are the paper's ("Implementation details")."""

    rate: float = 5e-5
    """Of embedder and generator."""
    critic_rate: float = 2e-4
    """Of V, w0, b and the columns."""
    critic_steps: int = 2
    """Steps of the discriminator for one of embedder and generator; each sees a batch of its own."""
    adversarial: float = 1.0
    features: float = 10.0
    match: float = 80.0
    most_norm: float = 10.0
    """Gradients are cut to it; the paper does not say."""

    def __post_init__(self) -> None:
        if self.critic_steps < 1:
            raise ValueError(f"critic_steps = {self.critic_steps} must be at least 1")


# --- episodes ---


@dataclass(slots=True)
class FewShot:
    """One episode: K frames of a video and one more of it; h = 128."""

    target: Tensor
    """`[3, S, S]` in -1..1."""
    raster: Tensor
    """`[3, h, h]` in 0..1, of the target."""
    pictures: Tensor
    """`[K, 3, S, S]`"""
    rasters: Tensor
    """`[K, 3, h, h]`"""
    column: Tensor
    """`[]` int64: i, the video's number."""
    placed: Tensor
    """`[2, 3]`: where the target's face lies (`training.networks.face.alignment`)."""


def develop(shot: Shot, size_px: int) -> tuple[Tensor, Tensor, Tensor]:
    """-> picture `[3, S, S]`, raster `[3, h, h]` and `alignment` `[2, 3]` of one shot, rows first."""
    rgb = shot.rgb()
    side = rgb.shape[0]
    raster = raster_tensor(geometry.raster(geometry.to_crop_units(shot.points, side)))
    placed = torch.from_numpy(alignment(shot.points, side))
    if side != size_px:
        rgb = np.asarray(cv2.resize(rgb, (size_px, size_px), interpolation=cv2.INTER_AREA), np.uint8)
    picture = np.ascontiguousarray(rgb.transpose(2, 0, 1)).astype(np.float32) / 127.5 - 1
    return torch.from_numpy(picture), raster, placed


class Videos(Dataset[FewShot]):
    """Endless and numbered, as `training.episodes.Episodes`: a video, one target frame of it, K others of it.

    Another K each time it comes round; the target is never among them. A video of fewer frames repeats some.
    """

    def __init__(
        self, people: Mapping[str, Mapping[str, Sequence[Shot]]], shots: int = 8, size_px: int = 256, seed: int = 0
    ) -> None:
        # Clips are known by their own name, and two people never share one.
        clips = {name: frames for clips in people.values() for name, frames in clips.items() if len(frames) > 1}
        if not clips:
            raise ValueError("no video here has two frames, and an episode takes two")
        self.names = sorted(clips)
        self.clips = [clips[name] for name in self.names]
        self.shots, self.size_px, self.seed = shots, size_px, seed

    def __getitem__(self, number: int) -> FewShot:
        rng = np.random.default_rng([self.seed, number])
        column, target, support = self.choose(rng)
        frames = self.clips[column]
        picture, raster, placed = develop(frames[target], self.size_px)
        seen = [develop(frames[index], self.size_px) for index in support]
        return FewShot(
            target=picture,
            raster=raster,
            pictures=torch.stack([one[0] for one in seen]),
            rasters=torch.stack([one[1] for one in seen]),
            column=torch.tensor(column),
            placed=placed,
        )

    def choose(self, rng: np.random.Generator) -> tuple[int, int, list[int]]:
        """-> the video, its target frame and its K support frames, by number."""
        column = int(rng.integers(len(self.clips)))
        drawn = rng.permutation(len(self.clips[column]))
        others = drawn[1:]
        return column, int(drawn[0]), [int(others[k % len(others)]) for k in range(self.shots)]


# --- state ---


class Portrait(nn.Module):
    """Embedder and generator together: some frames of a person and a raster -> the picture, feed-forward."""

    def __init__(self, options: PaperOptions) -> None:
        super().__init__()
        self.options = options
        self.embedder, self.generator = Embedder(options), Generator(options)

    def forward(self, raster: Tensor, pictures: Tensor, rasters: Tensor) -> tuple[Tensor, Tensor]:
        """`[N, 3, h, h]`, `[N, K, 3, S, S]`, `[N, K, 3, h, h]` -> the picture `[N, 3, S, S]` and e `[N, E]`."""
        embedding = self.embedder(pictures, rasters)
        return self.generator(raster, self.generator.project(embedding)), embedding


@dataclass(slots=True)
class PaperState:
    """Everything a checkpoint holds."""

    portrait: Portrait
    average: Portrait
    discriminator: Discriminator
    columns: Columns
    optimiser: torch.optim.Optimizer
    critic_optimiser: torch.optim.Optimizer
    column_optimiser: torch.optim.Optimizer
    videos: list[str]
    """Names of the videos, in the order of the columns."""
    step: int = 0
    seconds: float = 0.0
    skipped: int = 0


def make_state(
    options: PaperOptions, videos: Sequence[str], recipe: Recipe, device: torch.device, ranks: Ranks | None = None
) -> PaperState:
    """Adam without momentum (0, 0.999), as in BigGAN, whose schedule of steps the paper follows."""
    betas = (0.0, 0.999)
    portrait, discriminator = Portrait(options), Discriminator(options)
    columns = Columns(len(videos), options.embedding_channels, ranks).to(device)
    for network in (portrait, discriminator):
        network.to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        across.spread(network, ranks or Ranks())
    return PaperState(
        portrait,
        copy.deepcopy(portrait).requires_grad_(False).eval(),
        discriminator,
        columns,
        torch.optim.Adam(portrait.parameters(), recipe.rate, betas=betas),
        torch.optim.Adam(discriminator.parameters(), recipe.critic_rate, betas=betas),
        torch.optim.SparseAdam(list(columns.parameters()), recipe.critic_rate, betas=betas),
        list(videos),
    )


def save_checkpoint(state: PaperState, path: Path) -> None:
    """Under several ranks all of them call it, since each holds a part of W; the first one writes."""
    columns = state.columns
    moments: dict[str, Any] = {}
    for name, value in state.column_optimiser.state[columns.weight].items():
        whole = isinstance(value, Tensor) and value.dim() == 2
        moments[name] = across.gathered(value, columns.count, columns.ranks) if whole else value
    content = {
        "options": asdict(state.portrait.options),
        "videos": state.videos,
        "portrait": state.portrait.state_dict(),
        "average": state.average.state_dict(),
        "discriminator": state.discriminator.state_dict(),
        "columns": across.gathered(columns.weight.detach(), columns.count, columns.ranks),
        "moments": moments,
        "optimiser": state.optimiser.state_dict(),
        "critic_optimiser": state.critic_optimiser.state_dict(),
        "step": state.step,
        "seconds": state.seconds,
        "skipped": state.skipped,
    }
    if columns.ranks.first:
        partial = path.with_suffix(".part")
        torch.save(content, partial)
        partial.replace(path)


def load_checkpoint(state: PaperState, path: Path, device: torch.device) -> None:
    """Raises `ValueError` when the checkpoint was made with other sizes or of other videos."""
    kept = torch.load(path, map_location=device, weights_only=True)
    if kept["options"] != asdict(state.portrait.options):
        raise ValueError(f"{path} was trained with {kept['options']}, not {asdict(state.portrait.options)}")
    if kept["videos"] != state.videos:
        raise ValueError(
            f"{path} knows {len(kept['videos'])} videos, and the shards hold {len(state.videos)}, not the same ones: "
            "a column belongs to a video, so take the shards it was trained on"
        )
    for name in ("portrait", "average", "discriminator", "optimiser", "critic_optimiser"):
        getattr(state, name).load_state_dict(kept[name])
    columns = state.columns
    with torch.no_grad():
        columns.weight.copy_(across.own_part(kept["columns"], columns.ranks))
    for name, value in kept["moments"].items():
        whole = isinstance(value, Tensor) and value.dim() == 2
        state.column_optimiser.state[columns.weight][name] = across.own_part(value, columns.ranks) if whole else value
    state.step, state.seconds, state.skipped = kept["step"], kept["seconds"], kept["skipped"]


def load_paper(path: Path, device: torch.device) -> tuple[Portrait, Discriminator]:
    """The averaged embedder and generator of a checkpoint, for use, and its discriminator, to fine-tune with."""
    kept = torch.load(path, map_location=device, weights_only=True)
    if "portrait" not in kept:
        raise ValueError(f"{path} is no checkpoint of the preset paper")
    options = PaperOptions(**kept["options"])
    portrait, discriminator = Portrait(options).to(device), Discriminator(options).to(device)
    portrait.load_state_dict(kept["average"])
    discriminator.load_state_dict(kept["discriminator"])
    return portrait.requires_grad_(False).eval(), discriminator


# --- meta-learning ---


def train_step(
    state: PaperState, shots: FewShot, content: Content, recipe: Recipe, bf16: bool, ranks: Ranks | None = None
) -> dict[str, float]:
    """One step of the discriminator, and every `critic_steps`-th time one of embedder and generator before it.

    A step with anything that is not finite in it is skipped, on every rank, and counted.
    """
    ranks = ranks or Ranks()
    teaching = state.step % recipe.critic_steps == 0
    told: dict[str, Tensor] = {}
    with torch.set_grad_enabled(teaching), torch.autocast(shots.target.device.type, torch.bfloat16, enabled=bf16):
        drawn, embedding = state.portrait(shots.raster, shots.pictures, shots.rasters)
    sound = True
    if teaching:
        with torch.autocast(shots.target.device.type, torch.bfloat16, enabled=bf16):
            terms = portrait_terms(state, shots, drawn, embedding, content)
        weights = {"content": 1.0, "adversarial": recipe.adversarial, "features": recipe.features}
        loss = losses.total(terms, weights | {"match": recipe.match})
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        across.average_gradients(state.portrait.parameters(), ranks)
        norm = nn.utils.clip_grad_norm_(state.portrait.parameters(), recipe.most_norm)
        sound = bool(torch.isfinite(norm))
        told |= {"loss": loss.detach(), "gradient": norm} | {name: value.detach() for name, value in terms.items()}
    # Before the generator moves: both learn from the same picture.
    with torch.autocast(shots.target.device.type, torch.bfloat16, enabled=bf16):
        critic, real, fake = critic_loss(state, shots, drawn.detach())
    state.critic_optimiser.zero_grad(set_to_none=True)
    state.column_optimiser.zero_grad(set_to_none=True)
    critic.backward()
    across.average_gradients(state.discriminator.parameters(), ranks)
    norm = nn.utils.clip_grad_norm_(state.discriminator.parameters(), recipe.most_norm)
    row_norm = clip_rows(state.columns.weight, recipe.most_norm, ranks)
    if sound and bool(torch.isfinite(norm + row_norm)):
        if teaching:
            state.optimiser.step()
            follow(state.average, state.portrait, state.step // recipe.critic_steps)
        state.critic_optimiser.step()
        state.column_optimiser.step()
    else:
        state.skipped += 1
    state.step += 1
    told |= {"critic": critic.detach(), "critic gradient": norm, "real": real, "fake": fake}
    values = torch.stack([value.float() for value in told.values()]).tolist()  # one wait for the GPU
    return dict(zip(told, values, strict=True))


def portrait_terms(
    state: PaperState, shots: FewShot, drawn: Tensor, embedding: Tensor, content: Content
) -> dict[str, Tensor]:
    """What embedder and generator minimise, unweighted (equations 2 to 4 and L_MCH)."""
    state.discriminator.requires_grad_(False)
    with torch.no_grad():
        columns = state.columns(shots.column)
        _, real = state.discriminator(shots.target, shots.raster, columns)
    score, fake = state.discriminator(drawn, shots.raster, columns)
    state.discriminator.requires_grad_(True)
    return {
        "content": content(drawn, shots.target, shots.placed),
        "adversarial": losses.hinge_generator(score),
        "features": losses.feature_matching(fake, real),
        "match": losses.match(embedding, columns),
    }


def critic_loss(state: PaperState, shots: FewShot, drawn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """-> L_DSC (equation 7) and the mean scores of real and drawn."""
    columns = state.columns(shots.column)
    real, fake = judge_both(state.discriminator, shots.target, drawn, shots.raster, columns)
    return losses.hinge_critic(real, fake), real.detach().mean(), fake.detach().mean()


def judge_both(
    discriminator: Discriminator, target: Tensor, drawn: Tensor, raster: Tensor, columns: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Scores `[N]` of the real and the drawn pictures, in one pass."""
    both = torch.cat([target, drawn])
    scores, _ = discriminator(both, raster.repeat(2, 1, 1, 1), None if columns is None else columns.repeat(2, 1))
    real, fake = scores.chunk(2)
    return real, fake


def clip_rows(table: nn.Parameter, most: float, ranks: Ranks) -> Tensor:
    """`clip_grad_norm_` for a sparse gradient whose rows are shared out among ranks; -> its norm before."""
    assert table.grad is not None
    gradient = table.grad.coalesce()
    norm = across.summed(gradient.values().square().sum(), ranks).sqrt()
    values = gradient.values() * (most / (norm + 1e-6)).clamp(max=1)
    table.grad = torch.sparse_coo_tensor(
        gradient.indices(), values, gradient.shape, is_coalesced=True, check_invariants=False
    )
    return norm


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, step: int, most: float = 0.999) -> None:
    """Running average of the weights; what spectral norm keeps is copied."""
    decay = min(most, (1 + step) / (10 + step))
    for mean, now in zip(average.parameters(), network.parameters(), strict=True):
        mean.lerp_(now, 1 - decay)
    for mean, now in zip(average.buffers(), network.buffers(), strict=True):
        mean.copy_(now)


@torch.no_grad()
def validate(state: PaperState, batches: Sequence[FewShot], content: Content) -> dict[str, float]:
    """The running average, feed-forward, on fixed episodes of people kept out of training."""
    measured = []
    for shots in batches:
        drawn, _ = state.average(shots.raster, shots.pictures, shots.rasters)
        distance = content(drawn, shots.target, shots.placed)
        measured.append([float((drawn - shots.target).abs().mean()), float(distance)])
    means = np.mean(measured, 0)
    return {"held out l1": float(means[0]), "held out content": float(means[1])}


@torch.no_grad()
def sample_sheet(state: PaperState, shots: FewShot) -> NDArray[np.uint8]:
    """One row an episode: first support frame, raster, drawn, target; `[N S, 4 S, 3]` RGB."""
    drawn, _ = state.average(shots.raster, shots.pictures, shots.rasters)
    raster = full_size(shots.raster, shots.target.shape[-1]) * 2 - 1
    cells = torch.cat([shots.pictures[:, 0], raster, drawn, shots.target], 3)
    return np.vstack([to_image(row) for row in cells])


# --- fine-tuning ---


@dataclass(frozen=True, slots=True)
class FineTuning:
    """How long and how fast a person is tuned; weights and rates as in meta-learning (section 3.3)."""

    epochs: int = 40
    """Times every picture is drawn; the paper does not say, its reimplementations take 40."""
    batch: int = 8
    recipe: Recipe = Recipe()
    """Its `match` is not used: after enrolment there is no W_i."""
    seed: int = 0


@dataclass(slots=True)
class TunedPortrait:
    """A person's own generator and psi'."""

    generator: Generator
    coefficients: Tensor
    """`[1, M]`"""

    def draw(self, raster: Tensor) -> Tensor:
        """`[N, 3, h, h]` in 0..1 -> `[N, 3, S, S]` in -1..1."""
        with torch.no_grad():
            return self.generator(raster, self.coefficients.expand(len(raster), -1))


def fine_tune_paper(
    portrait: Portrait,
    discriminator: Discriminator,
    pictures: Tensor,
    rasters: Tensor,
    placed: Tensor,
    content: Content,
    tuning: FineTuning | None = None,
    bf16: bool = False,
) -> TunedPortrait:
    """Section 3.3: psi' starts as P e, w' as w0 + e, and both are tuned with G, V and b; no match loss, no embedder.

    `pictures [T, 3, S, S]` in -1..1, `rasters [T, 3, h, h]` and `placed [T, 2, 3]` of the person, for any T from 1 on,
    all on the networks' device. The networks given stay as they are.
    """
    tuning = tuning or FineTuning()
    recipe = tuning.recipe
    with torch.no_grad():
        embedding = portrait.embedder(pictures[None], rasters[None])
        coefficients = nn.Parameter(portrait.generator.project(embedding).clone())
    generator = copy.deepcopy(portrait.generator).requires_grad_(True).train()
    generator.projection.requires_grad_(False)  # psi' has taken its place
    critic = copy.deepcopy(discriminator).requires_grad_(True).train()
    with torch.no_grad():
        critic.realism.add_(embedding[0])
    learned = [coefficients, *(weight for weight in generator.parameters() if weight.requires_grad)]
    optimiser = torch.optim.Adam(learned, recipe.rate, betas=(0.0, 0.999))
    critic_optimiser = torch.optim.Adam(critic.parameters(), recipe.critic_rate, betas=(0.0, 0.999))
    rng = np.random.default_rng(tuning.seed)
    device = pictures.device.type
    for _ in range(tuning.epochs):
        for chosen in torch.from_numpy(rng.permutation(len(pictures))).split(tuning.batch):
            index = chosen.to(pictures.device)
            target, raster = pictures[index], rasters[index]
            with torch.autocast(device, torch.bfloat16, enabled=bf16):
                drawn = generator(raster, coefficients.expand(len(index), -1))
                critic.requires_grad_(False)
                with torch.no_grad():
                    _, real = critic(target, raster, None)
                score, fake = critic(drawn, raster, None)
                critic.requires_grad_(True)
                terms = {
                    "content": content(drawn, target, placed[index]),
                    "adversarial": losses.hinge_generator(score),
                    "features": losses.feature_matching(fake, real),
                }
            weights = {"content": 1.0, "adversarial": recipe.adversarial, "features": recipe.features}
            _descend(optimiser, learned, losses.total(terms, weights), recipe.most_norm)
            for _ in range(recipe.critic_steps):
                with torch.autocast(device, torch.bfloat16, enabled=bf16):
                    scores = judge_both(critic, target, drawn.detach(), raster, None)
                    loss = losses.hinge_critic(*scores)
                _descend(critic_optimiser, list(critic.parameters()), loss, recipe.most_norm)
    return TunedPortrait(generator.requires_grad_(False).eval(), coefficients.detach())


def _descend(optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter], loss: Tensor, most: float) -> None:
    """One step, unless it is not finite."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if torch.isfinite(nn.utils.clip_grad_norm_(parameters, most)):
        optimiser.step()
