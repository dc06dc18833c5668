"""The live generator's adversary: what the critic sees, who learns when, and that a checkpoint holds it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.test_episodes import write_shard
from training import adversarial, losses, meta_learn
from training.adversarial import Adversary, AdversaryOptions, make_adversary
from training.episodes import Episodes, Sample, load_shards
from training.meta_learn import PRESETS, TINY_CRITIC, State, load_checkpoint, make_state, save_checkpoint, train_step
from training.networks.discriminator import LiveCritic
from training.ranks import batches

CPU = torch.device("cpu")
MakeState = Callable[..., State]


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    folder = tmp_path_factory.mktemp("shards")
    write_shard(folder / "ann.tar", "ann", "train", [0, 20, 40])
    return next(batches(Episodes(load_shards(folder, "train")), Sample, 1, CPU))


@pytest.fixture
def make() -> MakeState:
    """`make(weight=, matching=, warm_up=)` -> a tiny state with an adversary, the same every time."""

    def made(**wishes: float) -> State:
        torch.manual_seed(0)
        state = make_state(PRESETS["tiny"], 4e-3, CPU)
        options = AdversaryOptions(**({"warm_up": 0} | wishes))  # type: ignore[arg-type]
        state.adversary = make_adversary(options, CPU, TINY_CRITIC)
        return state

    return made


def adversary_of(state: State) -> Adversary:
    assert state.adversary is not None
    return state.adversary


def weights_of(network: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in network.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# --- losses -------------------------------------------------------------------------------------------------


def test_the_hinge_is_the_papers() -> None:
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-3.0, 0.5])
    assert float(losses.hinge_critic(real, fake)) == pytest.approx((0 + 1) / 2 + (0 + 1.5) / 2)
    assert float(losses.hinge_generator(fake)) == pytest.approx(1.25)


def test_feature_matching_sums_layers_and_teaches_only_the_drawn_one() -> None:
    fake = [torch.zeros(2, 3, requires_grad=True), torch.zeros(1, requires_grad=True)]
    real = [torch.full((2, 3), 2.0, requires_grad=True), torch.ones(1, requires_grad=True)]
    loss = losses.feature_matching(fake, real)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(3)
    assert [one.grad is None for one in real] == [True, True]
    assert fake[0].grad is not None


def test_the_match_teaches_the_embedder_alone() -> None:
    embedding = torch.zeros(2, 4, requires_grad=True)
    column = torch.ones(2, 4, requires_grad=True)
    loss = losses.match(embedding, column)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1)
    assert column.grad is None
    assert embedding.grad is not None


# --- the critic ---------------------------------------------------------------------------------------------


def test_the_critic_is_light() -> None:
    with torch.device("meta"):
        assert sum(weight.numel() for weight in LiveCritic().parameters()) < 1.5e6


def test_it_judges_patches_and_the_whole_under_the_raster() -> None:
    torch.manual_seed(0)
    critic = LiveCritic(TINY_CRITIC).eval()
    rgb, raster = torch.rand(1, 3, 256, 256) * 2 - 1, torch.rand(1, 3, 128, 128)
    with torch.no_grad():
        before = critic(rgb, raster)
        assert (before.patches.shape, before.whole.shape) == ((1, 16, 16), (1,))
        assert len(before.features) == 5
        moved = raster.clone()
        moved[..., 112:, 112:] = 0
        after = critic(rgb, moved)
        changed = (after.patches - before.patches).abs()[0] > 0
        assert changed[-1, -1]
        assert not changed[:12, :12].any(), "a landmark counts where it is"
        assert after.whole != before.whole
        touched = rgb.clone()
        touched[..., :16, :16] *= -1
        changed = (critic(touched, raster).patches - before.patches).abs()[0] > 0
        assert changed[0, 0]
        assert not changed[4:, 4:].any(), "a patch is judged by itself"


def test_no_detail_is_lost_on_the_way_in() -> None:
    """A checkerboard of single pixels, grey at half the size, is seen."""
    critic = LiveCritic(TINY_CRITIC).eval()
    fine = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(128, 128).expand(1, 3, 256, 256)
    raster = torch.zeros(1, 3, 128, 128)
    with torch.no_grad():
        assert not torch.allclose(critic(fine, raster).patches, critic(torch.zeros_like(fine), raster).patches)


def test_what_cannot_be_known_gives_nothing_away() -> None:
    drawn, target = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    weight = torch.tensor([0.0, 0.25, 1.0, 6.0]).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    assert adversarial.shown(drawn, target, weight)[0, 0, 0].tolist() == [1, 0.75, 0, 0]


def test_it_learns_to_tell_drawn_from_real(batch: Sample) -> None:
    """A picture that lost its detail, from the one that has it."""
    torch.manual_seed(0)
    adversary = make_adversary(AdversaryOptions(rate=1e-2), CPU, TINY_CRITIC)
    real = batch.target[:, :3]
    fake = nn.functional.interpolate(nn.functional.avg_pool2d(real, 8), scale_factor=8.0)
    told = [adversarial.teach(adversary, fake, real, batch.raster, bf16=False)[0] for _ in range(60)]
    assert told[-1]["critic"] < 0.9 * told[0]["critic"]
    assert told[-1]["real whole"] - told[-1]["drawn whole"] > 0.2
    assert told[-1]["real patches"] > told[-1]["drawn patches"]


# --- who learns when ----------------------------------------------------------------------------------------


def test_first_the_critic_learns_alone(make: MakeState, batch: Sample) -> None:
    state = make(warm_up=2)
    adversary = adversary_of(state)
    for step in range(3):
        before = [weights_of(one) for one in (state.generator, state.average, adversary.critic)]
        told = train_step(state, batch, None, 144, bf16=False)
        after = [weights_of(one) for one in (state.generator, state.average, adversary.critic)]
        moved = [not same(a, b) for a, b in zip(before, after, strict=True)]
        assert moved == [step == 2, step == 2, True]
        assert ("loss" in told) == (step == 2)
    assert state.step == 3


def test_a_step_names_and_weighs_what_it_minimises(make: MakeState, batch: Sample) -> None:
    told = train_step(make(weight=2.0, matching=3.0), batch, None, 144, bf16=False)
    plain = sum(meta_learn.WEIGHTS[name] * told[name] for name in ("l1", "warp", "synthesis", "matte"))
    assert told["loss"] == pytest.approx(plain + 2 * told["adversarial"] + 3 * told["matching"], rel=1e-4)
    assert told["matching"] > 0
    assert {"critic", "real patches", "drawn patches", "real whole", "drawn whole"} <= told.keys()


def test_an_adversary_that_weighs_nothing_changes_nothing(make: MakeState, batch: Sample) -> None:
    silent, plain = make(weight=0.0, matching=0.0), make()
    plain.adversary = None
    for state in (silent, plain):
        for _ in range(2):
            train_step(state, batch, None, 144, bf16=False)
    for ours, theirs in zip(weights_of(silent.generator), weights_of(plain.generator), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_generators_step_leaves_the_critic_no_gradient(make: MakeState, batch: Sample) -> None:
    adversary = adversary_of(make())
    fake = torch.zeros(1, 3, 256, 256, requires_grad=True)
    terms = adversarial.generator_terms(adversary, fake, batch.target[:, :3], batch.raster)
    torch.stack(list(terms.values())).sum().backward()
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0
    assert all(weight.grad is None and weight.requires_grad for weight in adversary.critic.parameters())


def test_a_step_that_is_not_finite_moves_neither(make: MakeState, batch: Sample) -> None:
    state = make()
    before = [weights_of(state.generator), weights_of(adversary_of(state).critic)]
    spoiled = Sample(**{name: getattr(batch, name) for name in Sample.__slots__})
    spoiled.target = torch.cat([batch.target[:, :3] * float("nan"), batch.target[:, 3:]], 1)
    train_step(state, spoiled, None, 144, bf16=False)
    assert state.skipped == 1
    assert same(before[0], weights_of(state.generator))
    assert same(before[1], weights_of(adversary_of(state).critic))


# --- checkpoints --------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_the_adversary(make: MakeState, batch: Sample, tmp_path: Path) -> None:
    state, again = make(), make()
    adversary_of(state).born = -5
    for _ in range(2):
        train_step(state, batch, None, 144, bf16=False)
    save_checkpoint(state, tmp_path / "checkpoint.pt")
    load_checkpoint(again, tmp_path / "checkpoint.pt", CPU)
    assert adversary_of(again).born == -5
    for _ in range(2):
        expected = train_step(state, batch, None, 144, bf16=False)
        assert train_step(again, batch, None, 144, bf16=False) == pytest.approx(expected, rel=1e-5)


def test_an_adversary_is_not_lost_unnoticed(make: MakeState, tmp_path: Path) -> None:
    save_checkpoint(make(), tmp_path / "checkpoint.pt")
    plain = make()
    plain.adversary = None
    with pytest.raises(ValueError, match="was trained with an adversary: add --adversarial"):
        load_checkpoint(plain, tmp_path / "checkpoint.pt", CPU)


def test_a_plain_run_goes_on_with_an_adversary_that_warms_up_first(make: MakeState, tmp_path: Path) -> None:
    plain, state = make(), make(warm_up=10)
    plain.adversary, plain.step = None, 40
    save_checkpoint(plain, tmp_path / "checkpoint.pt")
    load_checkpoint(state, tmp_path / "checkpoint.pt", CPU)
    assert (state.step, adversary_of(state).born) == (40, 40)
    assert adversary_of(state).warming(49)
    assert not adversary_of(state).warming(50)


@pytest.mark.parametrize("name", ["checkpoint.pt", "weights.safetensors"])
def test_a_run_can_start_from_a_generator_alone(make: MakeState, tmp_path: Path, name: str) -> None:
    trained, state = make(), make(warm_up=10)
    trained.adversary, trained.step = None, 7
    with torch.no_grad():
        for weight in (*trained.generator.parameters(), *trained.average.parameters()):
            weight.add_(0.125)
    if name.endswith(".pt"):
        save_checkpoint(trained, tmp_path / name)
    else:
        save_file({key: value.contiguous() for key, value in trained.average.state_dict().items()}, tmp_path / name)
    meta_learn.load_start(state, tmp_path / name, CPU)
    assert same(weights_of(state.generator), weights_of(trained.average))
    assert same(weights_of(state.average), weights_of(trained.average))
    assert (state.step, adversary_of(state).warming(state.step)) == (0, True)
