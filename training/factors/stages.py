"""The stages of Wang et al. 2023 (section 3), each with what it learns, from which episodes, by which losses.

`reader` comes first and once: the face reader of `training.factors.reader`. Stage 1 parts appearance from motion, stage
2 takes lips, eyes and pose out of the unified motion, stage 3 the expression, and learns the final generator. A stage
begins with the weights of the one before; what was learnt there stays as it is, but for the appearance encoder, which
learns on in stage 3 beside its new generator. The paper gives no weights of its losses: `Recipe` holds ours.
"""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from training import losses
from training import ranks as across
from training.episodes import to_image
from training.factors import losses as own
from training.factors.clips import Moment, Moments, Sketch, Sketches, Source, Speech, Steps
from training.factors.losses import Bank
from training.factors.networks import Critic, FactorOptions, Factors
from training.factors.reader import MEASURES, FaceReader, Reader, reading_loss
from training.meta_learn import drawing_seconds
from training.networks.content import Content
from training.paper import follow
from training.ranks import Ranks

Episode = TypeVar("Episode", Sketch, Steps, Moment)

PRESETS = {
    "paper": FactorOptions(),
    "compact": FactorOptions(
        size_px=128,
        start_px=4,
        lip=64,
        expression=16,
        feature=128,
        appearance=256,
        appearance_blocks=(1, 1, 1, 1),
        appearance_width=24,
        cardinality=8,
        alignment_channels=64,
        heatmaps=32,
        audio_blocks=(1, 1, 1, 1),
        audio_widths=(16, 32, 64, 128),
        most_channels=128,
        least_channels=24,
        critic_channels=24,
        reader_width=16,
        reader_feature=128,
    ),
    "tiny": FactorOptions(
        size_px=32,
        start_px=4,
        lip=8,
        expression=4,
        feature=16,
        appearance=16,
        appearance_blocks=(1, 1, 1, 1),
        appearance_width=4,
        cardinality=2,
        alignment_channels=16,
        heatmaps=8,
        hourglass_depth=2,
        audio_blocks=(1, 1, 1, 1),
        audio_widths=(4, 4, 8, 8),
        most_channels=16,
        least_channels=8,
        critic_channels=4,
        critic_layers=2,
        reader_width=4,
        reader_feature=16,
    ),
}


@dataclass(frozen=True, slots=True)
class Recipe:
    """Weights, rates and counts. Ours: the paper names the losses and not how they are weighed."""

    rate: float = 1e-4
    critic_rate: float = 2e-4
    shots: int = 4
    """K, pictures of the person that the appearance is taken from."""
    moments: int = 16
    """W of stage 2: one sound in step and fifteen out of step."""
    window: int = 9
    """Frames of stage 3's window; 0.36 s at 25 a second, longer than a vowel or a blink."""
    bank: int = 1024
    """Moments that the correlation of stage 3 looks back on."""
    temperature: float = 0.1
    content: float = 1.0
    adversarial: float = 1.0
    features: float = 10.0
    motion: float = 5.0
    """L_mot."""
    eye: float = 1.0
    pose: float = 1.0
    lips: float = 1.0
    """Of the drawn lips against the sound, stage 3."""
    gaze: float = 1.0
    decorrelation: float = 1.0
    most_norm: float = 10.0
    """Gradients are cut to it."""


@dataclass(slots=True)
class FactorState:
    """Everything a checkpoint holds."""

    model: nn.Module
    """`Factors`, or while it is taught the `FaceReader`."""
    average: nn.Module
    optimiser: torch.optim.Optimizer
    critic: Critic | None = None
    critic_optimiser: torch.optim.Optimizer | None = None
    bank: Bank | None = None
    step: int = 0
    seconds: float = 0.0
    skipped: int = 0


class Stage(ABC, Generic[Episode]):
    """What one stage learns."""

    name: str
    before: str | None = None
    """The stage whose weights it begins with."""
    kind: type[Episode]
    adversarial = False

    def __init__(self, options: FactorOptions, recipe: Recipe) -> None:
        self.options, self.recipe = options, recipe

    def build(self) -> nn.Module:
        return Factors(self.options)

    @abstractmethod
    def learning(self, model: Any) -> list[nn.Module]:
        """The parts that learn; all others are frozen."""

    @abstractmethod
    def episodes(self, people: Mapping[str, Sequence[Source]], seed: int) -> Dataset[Episode]: ...

    @abstractmethod
    def terms(self, state: FactorState, batch: Episode, ranks: Ranks) -> tuple[dict[str, Tensor], Tensor | None]:
        """The losses by name, unweighted, and the picture if the stage draws one."""

    @abstractmethod
    def weights(self) -> dict[str, float]:
        """Of the losses, the adversarial ones left out."""

    @abstractmethod
    def measure(self, model: Any, batch: Episode) -> dict[str, float]:
        """On people kept out."""

    @abstractmethod
    def sheet(self, model: Any, batch: Episode) -> NDArray[np.uint8]:
        """A picture of a batch, RGB."""


def _rows(*cells: Tensor) -> NDArray[np.uint8]:
    """`[N, 3, S, S]` each -> a row for each of the batch."""
    return np.vstack([to_image(row) for row in torch.cat(cells, 3)])


class ReaderStage(Stage[Sketch]):
    """The face reader, from pictures as they are: it is asked about drawn ones, that are never warped."""

    name, kind = "reader", Sketch

    def build(self) -> nn.Module:
        return FaceReader(self.options)

    def learning(self, model: Any) -> list[nn.Module]:
        return [model]

    def episodes(self, people: Mapping[str, Sequence[Source]], seed: int) -> Sketches:
        return Sketches(people, 1, self.options.size_px, seed)

    def weights(self) -> dict[str, float]:
        return {"reading": 1.0}

    def terms(self, state: FactorState, batch: Sketch, ranks: Ranks) -> tuple[dict[str, Tensor], Tensor | None]:
        return {"reading": reading_loss(state.model(batch.target)[0], batch.readings)}, None

    def measure(self, model: Any, batch: Sketch) -> dict[str, float]:
        off = (model(batch.target)[0] - batch.readings).abs()
        named = {"pose": off[:, :6], "measures": off[:, 6:MEASURES], "points": off[:, MEASURES:]}
        return {name: float(value.mean()) for name, value in named.items()}

    def sheet(self, model: Any, batch: Sketch) -> NDArray[np.uint8]:
        """The picture, with the places read (green) and those of the tracker (red)."""
        marked = []
        for rgb, read, told in zip(batch.target, model(batch.target)[0], batch.readings, strict=True):
            cell = np.ascontiguousarray(to_image(rgb))
            for numbers, colour in ((told, (255, 0, 0)), (read, (0, 255, 0))):
                for x, y in ((numbers[MEASURES:].view(-1, 2) + 1) * len(cell) / 2).int().tolist():
                    cv2.circle(cell, (x, y), 0, colour, -1)
            marked.append(cell)
        return np.vstack(marked)


class SketchStage(Stage[Sketch]):
    """Stage 1 (section 3.2): appearance from K pictures, motion from a disturbed one, put together by G0."""

    name, kind, adversarial = "stage-1", Sketch, True

    def __init__(self, options: FactorOptions, recipe: Recipe, reader: Reader, content: Content) -> None:
        super().__init__(options, recipe)
        self.reader, self.content = reader, content

    def learning(self, model: Factors) -> list[nn.Module]:
        return [model.appearance, model.codes.trunk, model.draft]

    def episodes(self, people: Mapping[str, Sequence[Source]], seed: int) -> Sketches:
        return Sketches(people, self.recipe.shots, self.options.size_px, seed)

    def weights(self) -> dict[str, float]:
        return {"content": self.recipe.content, "motion": self.recipe.motion}

    def terms(self, state: FactorState, batch: Sketch, ranks: Ranks) -> tuple[dict[str, Tensor], Tensor | None]:
        assert isinstance(state.model, Factors)
        drawn = state.model.sketch(batch.pictures, batch.driver)
        with torch.no_grad():
            wanted = self.reader(batch.target)
        motion = own.motion_difference(self.reader(drawn), wanted)
        return {"content": self.content(drawn, batch.target, batch.placed), "motion": motion}, drawn

    def measure(self, model: Factors, batch: Sketch) -> dict[str, float]:
        drawn = model.sketch(batch.pictures, batch.driver)
        motion = own.motion_difference(self.reader(drawn), self.reader(batch.target))
        return {"l1": float((drawn - batch.target).abs().mean()), "motion": float(motion)}

    def sheet(self, model: Factors, batch: Sketch) -> NDArray[np.uint8]:
        """A picture of the person, driver, drawn, target."""
        return _rows(batch.pictures[:, 0], batch.driver, model.sketch(batch.pictures, batch.driver), batch.target)


class StepsStage(Stage[Steps]):
    """Stage 2 (section 3.3): lips by the sound, eyes by composites, pose by regression, out of a frozen trunk."""

    name, before, kind = "stage-2", "stage-1", Steps

    def learning(self, model: Factors) -> list[nn.Module]:
        return [model.codes.lip, model.codes.eye, model.codes.pose, model.codes.audio]

    def episodes(self, people: Mapping[str, Sequence[Source]], seed: int) -> Speech:
        return Speech(people, self.recipe.moments, self.options.size_px, seed)

    def weights(self) -> dict[str, float]:
        return {"lip": 1.0, "eye": self.recipe.eye, "pose": self.recipe.pose}

    @staticmethod
    def codes(model: Factors, batch: Steps) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Lip codes of pictures and of sounds, eye codes of composites and of frames, poses, `[N, W, C]` each."""
        shape = batch.frames.shape[:2]
        codes = model.codes
        with torch.no_grad():
            unified = codes.unified(torch.cat([batch.frames.flatten(0, 1), batch.composites.flatten(0, 1)]))
        frames, mixed = unified.chunk(2)
        found = (
            codes.lip(frames)[1],
            codes.spoken(batch.sounds.flatten(0, 1))[1],
            codes.eye(mixed)[1],
            codes.eye(frames)[1],
            codes.pose(frames)[1],
        )
        lip, spoken, eye_mixed, eye, pose = (code.unflatten(0, shape) for code in found)
        return lip, spoken, eye_mixed, eye, pose

    def terms(self, state: FactorState, batch: Steps, ranks: Ranks) -> tuple[dict[str, Tensor], Tensor | None]:
        assert isinstance(state.model, Factors)
        lip, spoken, mixed, eye, pose = self.codes(state.model, batch)
        return {
            "lip": own.in_step(lip, spoken, self.recipe.temperature),
            "eye": own.eyes_apart(mixed, eye, self.recipe.temperature),
            "pose": own.pose_l1(pose, batch.poses),
        }, None

    def measure(self, model: Factors, batch: Steps) -> dict[str, float]:
        """How often the nearest sound is that of the same moment, how often a composite is nearer to whose eyes it has,
        and the poses' mean difference."""
        lip, spoken, mixed, eye, pose = self.codes(model, batch)
        nearest = (unit_rows(lip) @ unit_rows(spoken).transpose(1, 2)).argmax(2)
        owner = F.cosine_similarity(mixed, eye.roll(-1, 1), dim=-1) > F.cosine_similarity(mixed, eye, dim=-1)
        right = nearest == torch.arange(nearest.shape[1], device=nearest.device)
        return {
            "lips retrieved": float(right.float().mean()),
            "eyes told apart": float(owner.float().mean()),
            "pose": float(own.pose_l1(pose, batch.poses)),
        }

    def sheet(self, model: Factors, batch: Steps) -> NDArray[np.uint8]:
        """Frame, composite, and the frame whose eyes it has; then a clip's lips (down) against its sounds (across)."""
        rows = _rows(batch.frames[:, 0], batch.composites[:, 0], batch.frames[:, 1])
        lip, spoken, *_ = self.codes(model, batch)
        alike = ((unit_rows(lip[0]) @ unit_rows(spoken[0]).T + 1) * 127.5).cpu().numpy().astype(np.uint8)
        side = rows.shape[1]
        table = cv2.resize(alike, (side, side), interpolation=cv2.INTER_NEAREST)
        return np.vstack([rows, np.asarray(cv2.cvtColor(table, cv2.COLOR_GRAY2RGB), np.uint8)])


def unit_rows(code: Tensor) -> Tensor:
    return F.normalize(code.float(), dim=-1)


class MomentStage(Stage[Moment]):
    """Stage 3 (section 3.4): expression, that has nothing of the lips, and the generator told all four codes.

    Lips come from the sound in half of the episodes, so that either will do in use (a choice of ours); the pose is that
    of the undisturbed frame, since six numbers carry nobody's looks and a disturbed frame has another pose.
    """

    name, before, kind, adversarial = "stage-3", "stage-2", Moment, True

    def __init__(self, options: FactorOptions, recipe: Recipe, reader: Reader, content: Content) -> None:
        super().__init__(options, recipe)
        self.reader, self.content = reader, content

    def learning(self, model: Factors) -> list[nn.Module]:
        return [model.appearance, model.codes.expression, model.generator]

    def episodes(self, people: Mapping[str, Sequence[Source]], seed: int) -> Moments:
        return Moments(people, self.recipe.shots, self.recipe.window, self.options.size_px, seed)

    def weights(self) -> dict[str, float]:
        recipe = self.recipe
        names = ("content", "motion", "lips", "gaze", "decorrelation")
        return {name: getattr(recipe, name) for name in names}

    @staticmethod
    def draw(model: Factors, batch: Moment) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """-> the picture, expression and sound features, and the sound's lip code."""
        codes = model.codes
        with torch.no_grad():
            middle = codes.unified(batch.window[:, batch.window.shape[1] // 2])
            sound, spoken = codes.spoken(batch.sound)
            seen, eye = codes.lip(middle)[1], codes.eye(middle)[1]
            pose = codes.pose(codes.unified(batch.target))[1]
            lip = torch.where(batch.by_sound[:, None] > 0, spoken, seen)
        feature, expression = codes.window_expression(batch.window)
        return model.draw(batch.pictures, lip, expression, eye, pose), feature, sound, spoken

    def terms(self, state: FactorState, batch: Moment, ranks: Ranks) -> tuple[dict[str, Tensor], Tensor | None]:
        assert isinstance(state.model, Factors)
        assert state.bank is not None
        codes = state.model.codes
        drawn, feature, sound, spoken = self.draw(state.model, batch)
        with torch.no_grad():
            wanted = self.reader(batch.target)
            gaze = codes.eye(codes.unified(batch.target))[1]
        shown = codes.unified(drawn)  # frozen: the gradient goes through, into the picture
        return {
            "content": self.content(drawn, batch.target, batch.placed),
            "motion": own.motion_difference(self.reader(drawn), wanted),
            "lips": 1 - F.cosine_similarity(codes.lip(shown)[1], spoken, dim=-1).mean(),
            "gaze": (codes.eye(shown)[1] - gaze).abs().mean(),
            "decorrelation": state.bank.decorrelation(feature, sound, ranks),
        }, drawn

    def measure(self, model: Factors, batch: Moment) -> dict[str, float]:
        drawn, feature, sound, spoken = self.draw(model, batch)
        lips = F.cosine_similarity(model.codes.lip(model.codes.unified(drawn))[1], spoken, dim=-1).mean()
        return {
            "l1": float((drawn - batch.target).abs().mean()),
            "motion": float(own.motion_difference(self.reader(drawn), self.reader(batch.target))),
            "lips like the sound": float(lips),
            "correlation": float(own.decorrelation(feature, sound)),
        }

    def sheet(self, model: Factors, batch: Moment) -> NDArray[np.uint8]:
        """A picture of the person, driver, drawn, target."""
        driver = batch.window[:, batch.window.shape[1] // 2]
        return _rows(batch.pictures[:, 0], driver, self.draw(model, batch)[0], batch.target)


# --- state --------------------------------------------------------------------------------------------------


def make_state(stage: Stage[Any], device: torch.device, ranks: Ranks | None = None) -> FactorState:
    """A stage's networks from scratch: what it does not learn is frozen."""
    ranks = ranks or Ranks()
    model = stage.build().to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model.requires_grad_(False)
    learning = stage.learning(model)
    for part in learning:
        part.requires_grad_(True)
    across.spread(model, ranks)
    betas = (0.0, 0.99) if stage.adversarial else (0.9, 0.999)
    parameters = itertools.chain.from_iterable(part.parameters() for part in learning)
    average = copy.deepcopy(model).requires_grad_(False).eval()
    state = FactorState(model, average, torch.optim.Adam(parameters, stage.recipe.rate, betas=betas))
    if stage.adversarial:
        critic = Critic(stage.options).to(device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        across.spread(critic, ranks)
        state.critic = critic
        state.critic_optimiser = torch.optim.Adam(critic.parameters(), stage.recipe.critic_rate, betas=betas)
    if isinstance(stage, MomentStage):
        state.bank = Bank(stage.recipe.bank, stage.options.feature).to(device)
    return state


def save_checkpoint(state: FactorState, stage: Stage[Any], path: Path) -> None:
    content: dict[str, Any] = {"stage": stage.name, "options": asdict(stage.options)}
    for name in ("model", "average", "optimiser", "critic", "critic_optimiser", "bank"):
        part = getattr(state, name)
        if part is not None:
            content[name] = part.state_dict()
    content |= {"step": state.step, "seconds": state.seconds, "skipped": state.skipped}
    partial = path.with_suffix(".part")
    torch.save(content, partial)
    partial.replace(path)


def _read(path: Path, name: str, options: FactorOptions | None, device: torch.device) -> dict[str, Any]:
    """A checkpoint of the stage `name`. Raises `ValueError` when it is another's, or of other sizes."""
    kept = torch.load(path, map_location=device, weights_only=True)
    if kept.get("stage") != name:
        raise ValueError(f"{path} is of {kept.get('stage', 'another system')}, and {name} is wanted")
    kept["options"] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in kept["options"].items()
    }
    if options is not None and kept["options"] != asdict(options):
        raise ValueError(f"{path} was trained with {kept['options']}, not {asdict(options)}")
    return kept


def load_checkpoint(state: FactorState, stage: Stage[Any], path: Path, device: torch.device) -> None:
    """Goes on where a run of the same stage was. Raises `ValueError` when it is another's, or of other sizes."""
    kept = _read(path, stage.name, stage.options, device)
    if state.bank is not None and len(kept["bank"]["sounds"]) != state.bank.rows:
        raise ValueError(f"{path} has a bank of {len(kept['bank']['sounds'])} moments, not {state.bank.rows}")
    for name in ("model", "average", "optimiser", "critic", "critic_optimiser", "bank"):
        part = getattr(state, name)
        if part is not None:
            part.load_state_dict(kept[name])
    state.step, state.seconds, state.skipped = kept["step"], kept["seconds"], kept["skipped"]
    for optimiser, rate in (
        (state.optimiser, stage.recipe.rate),
        (state.critic_optimiser, stage.recipe.critic_rate),
    ):  # what is asked for now, not what was then
        for group in optimiser.param_groups if optimiser else ():
            group["lr"] = rate


def begin_with(state: FactorState, stage: Stage[Any], path: Path, device: torch.device) -> None:
    """The averaged weights of the stage before. Raises `ValueError` when the file is another's, or of other sizes."""
    assert stage.before is not None
    weights = _read(path, stage.before, stage.options, device)["average"]
    state.model.load_state_dict(weights)
    state.average.load_state_dict(weights)


def load_reader(path: Path, device: torch.device) -> FaceReader:
    """The averaged, frozen face reader of a checkpoint of the stage `reader`."""
    kept = _read(path, ReaderStage.name, None, device)
    reader = FaceReader(FactorOptions(**kept["options"])).to(device)
    reader.load_state_dict(kept["average"])
    return reader.requires_grad_(False).eval()


def load_factors(path: Path, device: torch.device) -> Factors:
    """The averaged networks of stage 3's checkpoint, for use."""
    kept = _read(path, MomentStage.name, None, device)
    factors = Factors(FactorOptions(**kept["options"])).to(device)
    factors.load_state_dict(kept["average"])
    return factors.requires_grad_(False).eval()


# --- learning -----------------------------------------------------------------------------------------------


def train_step(
    state: FactorState, stage: Stage[Any], batch: Any, bf16: bool = False, ranks: Ranks | None = None
) -> dict[str, float]:
    """One step of the stage, and of its critic where it has one, on the same picture.

    A step with anything that is not finite in it is skipped, on every rank, and counted.
    """
    ranks = ranks or Ranks()
    recipe, kind = stage.recipe, next(state.model.parameters()).device.type
    with torch.autocast(kind, torch.bfloat16, enabled=bf16):
        terms, drawn = stage.terms(state, batch, ranks)
        weights = stage.weights()
        if state.critic is not None:
            assert drawn is not None
            terms |= critic_terms(state.critic, drawn, batch.target)
            weights |= {"adversarial": recipe.adversarial, "features": recipe.features}
    loss = losses.total(terms, weights)
    state.optimiser.zero_grad(set_to_none=True)
    loss.backward()
    learning = [weight for group in state.optimiser.param_groups for weight in group["params"]]
    across.average_gradients(learning, ranks)
    norm = nn.utils.clip_grad_norm_(learning, recipe.most_norm)
    told = {"loss": loss.detach(), "gradient": norm} | {name: value.detach() for name, value in terms.items()}
    well = bool(torch.isfinite(norm) & torch.isfinite(loss))
    if state.critic is not None and state.critic_optimiser is not None:
        assert drawn is not None
        with torch.autocast(kind, torch.bfloat16, enabled=bf16):
            scores, _ = state.critic(torch.cat([batch.target, drawn.detach()]))
        critic = torch.stack([losses.hinge_critic(*one.chunk(2)) for one in scores]).mean()
        state.critic_optimiser.zero_grad(set_to_none=True)
        critic.backward()
        across.average_gradients(state.critic.parameters(), ranks)
        critic_norm = nn.utils.clip_grad_norm_(state.critic.parameters(), recipe.most_norm)
        well = well and bool(torch.isfinite(critic_norm))
        told |= {"critic": critic.detach(), "critic gradient": critic_norm}
    if across.largest([float(not well)], ranks)[0] == 0:
        state.optimiser.step()
        if state.critic_optimiser is not None:
            state.critic_optimiser.step()
        follow(state.average, state.model, state.step)
    else:
        state.skipped += 1
    state.step += 1
    values = torch.stack([value.float() for value in told.values()]).tolist()  # one wait for the GPU
    return dict(zip(told, values, strict=True))


def critic_terms(critic: Critic, drawn: Tensor, target: Tensor) -> dict[str, Tensor]:
    """What the generator minimises against the critic as it is: hinge, the mean over scales, and features."""
    critic.requires_grad_(False)
    with torch.no_grad():
        _, real = critic(target)
    scores, fake = critic(drawn)
    critic.requires_grad_(True)
    hinge = torch.stack([losses.hinge_generator(one) for one in scores]).mean()
    return {"adversarial": hinge, "features": losses.feature_matching(fake, real) / len(fake)}


class FactorCourse(Generic[Episode]):
    """A stage as `training.meta_learn.run` wants it."""

    def __init__(
        self,
        stage: Stage[Episode],
        learning: Mapping[str, Sequence[Source]],
        kept: Mapping[str, Sequence[Source]],
        batch: int,
        seed: int,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self.stage, self.batch, self.device, self.ranks = stage, batch, device, ranks
        self.state = make_state(stage, device, ranks)
        self.drawn = stage.episodes(learning, seed)
        self.bf16 = device.type == "cuda"
        held = across.batches(stage.episodes(kept, 1), stage.kind, batch, device) if kept and ranks.first else iter(())
        self.held = list(itertools.islice(held, 4))

    @property
    def network(self) -> dict[str, Any]:
        return asdict(self.stage.options) | {"recipe": asdict(self.stage.recipe)}

    def batches(self, first: int, workers: int) -> Iterator[Episode]:
        return across.batches(self.drawn, self.stage.kind, self.batch, self.device, first, workers, self.ranks)

    def seconds_per_episode(self) -> float:
        return drawing_seconds(self.drawn.__getitem__)

    def learn(self, batch: Episode, progress: float) -> dict[str, float]:
        return train_step(self.state, self.stage, batch, self.bf16, self.ranks)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        measured = [self.stage.measure(self.state.average, batch) for batch in self.held]
        return (
            {f"held out {name}": float(np.mean([one[name] for one in measured])) for name in measured[0]}
            if measured
            else {}
        )

    @torch.no_grad()
    def save_samples(self, path: Path) -> None:
        if self.held:
            sheet = self.stage.sheet(self.state.average, self.held[0])
            cv2.imwrite(str(path), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])

    def save(self, path: Path) -> None:
        if self.ranks.first:
            save_checkpoint(self.state, self.stage, path)

    def load(self, path: Path) -> None:
        load_checkpoint(self.state, self.stage, path, self.device)

    def begin(self, path: Path) -> None:
        """With the weights of the stage before; for stage 2 the unified feature is centred, on every rank alike."""
        begin_with(self.state, self.stage, path, self.device)
        if isinstance(self.stage, StepsStage):
            self.calibrate()

    def calibrate(self, episodes: int = 64) -> None:
        drawn = self.drawn
        assert isinstance(drawn, Speech)
        frames = torch.cat([drawn[number].frames for number in range(episodes)])
        for model in (self.state.model, self.state.average):
            assert isinstance(model, Factors)
            model.codes.calibrate(frames.to(self.device))


def changed(recipe: Recipe, **wishes: Any) -> Recipe:
    """The recipe with what somebody asked for."""
    return replace(recipe, **{name: value for name, value in wishes.items() if value is not None})
