"""The jitter buffer: order, lateness, gaps, clocks; the whole of it in simulated time."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.codec import SEQUENCE_WRAP, TIME_WRAP_S, Coded
from engine.frames import Face, NoFace
from engine.motion import to_head
from engine.tracker import canonical_face, euler_deg
from plugin.jitter import MAX_FRAMES, Jitter, Shown, between
from tests import fuzz
from tests.conftest import rotation_from_euler

STEP_S = 0.04


def face_at(yaw_deg: float, x_px: float = 128.0, time_s: float = 0.0, scale: float = 8.0) -> Face:
    rotation = rotation_from_euler(yaw_deg, 0, 0).astype(np.float32)
    shape = np.zeros((478, 3), np.float32)
    shape[:468] = canonical_face().vertices_cm
    translation = np.array([x_px, 128, 0], np.float32)
    points = (scale * shape @ rotation.T + translation).astype(np.float32)
    return Face(points, rotation, translation, scale, 1.0, (256, 256), time_s)


def coded(number: int, face: Face | NoFace, origin_s: float = 100.0) -> Coded:
    """Frame `number` of a stream of 25 a second."""
    return Coded(number % SEQUENCE_WRAP, (origin_s + number * STEP_S) % TIME_WRAP_S, face, True)


def swing(seconds: float) -> float:
    """The turn of the head at a moment of the performance, degrees."""
    return 20 * math.sin(2 * math.pi * 0.5 * seconds)


@functools.cache
def _swung(number: int) -> Face:
    return face_at(swing(number * STEP_S))


def performance(number: int, origin_s: float = 100.0) -> Coded:
    """Frame `number` of a head that swings once in two seconds, which are fifty frames."""
    return coded(number, _swung(number % 50), origin_s)


def yaw_deg(shown: Shown) -> float:
    assert isinstance(shown.face, Face)
    return euler_deg(shown.face.rotation)[0]


def play(
    jitter: Jitter,
    arrivals: Iterable[tuple[float, Coded]],
    until_s: float,
    fps: float = 60.0,
    look: Callable[[float, Shown], None] | None = None,
) -> list[tuple[float, Shown]]:
    """Feeds frames at their arrival times, asks `fps` times a second."""
    waiting = sorted(arrivals, key=lambda one: one[0])
    shown, at = [], 0
    for tick in range(int(until_s * fps)):
        now_s = tick / fps
        while at < len(waiting) and waiting[at][0] <= now_s:
            jitter.put(waiting[at][1], waiting[at][0])
            at += 1
        shown.append((now_s, jitter.at(now_s)))
    return shown


def test_what_is_between_two_frames_turns_evenly_and_keeps_its_shape() -> None:
    first, second = to_head(face_at(-30, 100, scale=6)), to_head(face_at(30, 140, scale=9))
    middle = between(first, second, 0.5)
    np.testing.assert_allclose(middle.rotation, rotation_from_euler(0, 0, 0), atol=1e-5)
    np.testing.assert_allclose(middle.shape, first.shape, atol=1e-4)
    assert middle.scale == pytest.approx(54**0.5, rel=1e-5)
    quarter = between(first, second, 0.25)
    assert euler_deg(quarter.rotation)[0] == pytest.approx(-15, abs=1e-3)
    np.testing.assert_allclose(quarter.rotation @ quarter.rotation.T, np.eye(3), atol=1e-5)


def test_sixty_pictures_from_twelve_faces_are_smooth_and_true() -> None:
    every_other = [(0.02 + n * STEP_S, performance(n)) for n in range(0, 150, 2)]
    jitter = Jitter()
    shown = [(now, yaw_deg(one), jitter) for now, one in play(jitter, every_other, 5.5) if now > 3]
    steps = np.diff([yaw for _, yaw, _ in shown])
    # The sine of half a turn a second moves at most 63 degrees a second: about one degree a picture, never a jump.
    assert np.abs(steps).max() < 1.3
    assert (np.abs(steps) > 0.01).mean() > 0.9, "pictures stand still between two faces"


def test_what_is_shown_is_the_performance_later() -> None:
    jitter, errors = Jitter(), []
    arrivals = [(0.05 + n * STEP_S, performance(n)) for n in range(150)]
    for now_s, shown in play(jitter, arrivals, 5.8):
        if now_s > 3:
            sender_s = jitter.sender_s(now_s)
            assert sender_s is not None
            errors.append(yaw_deg(shown) - swing(sender_s - 100 % TIME_WRAP_S))
    assert np.abs(errors).max() < 1.0  # of 1.9 that the head turns in the 30 ms which may be guessed


def test_an_even_stream_is_shown_almost_at_once() -> None:
    jitter = Jitter()
    play(jitter, [(0.05 + n * STEP_S, performance(n)) for n in range(250)], 9.9)
    assert jitter.delay_s < 0.035


def test_bundles_raise_the_delay_by_what_the_first_of_them_waited() -> None:
    jitter = Jitter()
    bundled = [(0.05 + (n - n % 3 + 2) * STEP_S, performance(n)) for n in range(300)]
    shown = play(jitter, bundled, 11.8)
    assert 0.08 <= jitter.delay_s < 0.12
    assert all(one.showing == "live" for now, one in shown if now > 2)


def test_order_and_doubles_make_no_difference() -> None:
    rng = np.random.default_rng(0)
    straight = [(0.15 + n * STEP_S, performance(n)) for n in range(200)]
    mixed = [(0.05 + n * STEP_S + float(rng.uniform(0, 0.1)), performance(n)) for n in range(200)]
    jitter = Jitter(start_delay_s=0.2)
    shown = play(jitter, mixed + mixed[::3], 7.5)
    assert jitter.counts.twice + jitter.counts.late >= 50
    assert jitter.counts.missing == 0
    steps = np.diff([yaw_deg(one) for now, one in shown if now > 2])
    calm = Jitter(start_delay_s=0.2)
    smooth = np.diff([yaw_deg(one) for now, one in play(calm, straight, 7.5) if now > 2])
    assert np.abs(steps).max() < 1.6 * np.abs(smooth).max()


def test_losses_are_counted_and_bridged() -> None:
    rng = np.random.default_rng(1)
    lossy = [(0.05 + n * STEP_S, performance(n)) for n in range(250) if rng.random() > 0.3]
    jitter = Jitter()
    shown = play(jitter, lossy, 9.5)
    assert jitter.counts.missing == pytest.approx(75, abs=20)
    steps = np.abs(np.diff([yaw_deg(one) for now, one in shown if now > 3]))
    assert steps.max() < 4, "a jump of more than four degrees between two pictures"
    assert all(one.showing in ("live", "carried", "held") for now, one in shown if now > 3)


def test_a_burst_is_carried_held_and_left_without_a_jump() -> None:
    """Half a second without frames: motion dies away, the face is held, and the way back is a blend."""
    gone = range(100, 113)
    jitter = Jitter()
    shown = play(jitter, [(0.05 + n * STEP_S, performance(n)) for n in range(250) if n not in gone], 9.5)
    told = [(now, one.showing) for now, one in shown if 3.9 < now < 5.2]
    kinds = [kind for kind, _ in itertools.groupby(kind for _, kind in told)]
    assert kinds == ["live", "carried", "held", "live"]
    frozen_s = sum(kind != "live" for _, kind in told) / 60
    assert frozen_s < len(gone) * STEP_S + 0.1
    assert np.abs(np.diff([yaw_deg(one) for _, one in shown if _ > 1])).max() < 6


def test_a_long_gap_ends_in_no_face_and_frames_bring_it_back() -> None:
    jitter = Jitter()
    before = [(0.05 + n * STEP_S, performance(n)) for n in range(50)]
    after = [(0.05 + n * STEP_S, performance(n)) for n in range(150, 200)]
    shown = play(jitter, before + after, 7.9)
    lost = [now for now, one in shown if one.showing == "lost"]
    assert 2.6 < lost[0] < 2.9 and 5.9 < lost[-1] < 6.2
    assert all(isinstance(one.face, NoFace) for _, one in shown if one.showing == "lost")
    assert shown[-1][1].showing == "live"


def test_a_face_that_the_sender_does_not_see_is_away_not_lost() -> None:
    jitter = Jitter()
    frames = [performance(n) if n < 50 else coded(n, NoFace(0.0)) for n in range(120)]
    shown = play(jitter, [(0.05 + n * STEP_S, one) for n, one in enumerate(frames)], 4.7)
    assert shown[-1][1].showing == "away" and isinstance(shown[-1][1].face, NoFace)
    assert "lost" not in {one.showing for _, one in shown}


def test_delay_follows_the_network_up_and_down() -> None:
    rng = np.random.default_rng(2)
    jitter = Jitter()
    calm = [(0.05 + n * STEP_S, performance(n)) for n in range(250)]
    rough = [(0.05 + n * STEP_S + float(rng.uniform(0, 0.2)), performance(n)) for n in range(250, 500)]
    calm_again = [(0.05 + n * STEP_S, performance(n)) for n in range(500, 1300)]
    delays = []
    waiting = sorted(calm + rough + calm_again, key=lambda one: one[0])
    for now_s, one in waiting:
        jitter.put(one, now_s)
        jitter.at(now_s)
        delays.append((now_s, jitter.delay_s))
    assert dict(delays)[max(now for now, _ in delays if now < 9.9)] < 0.05
    assert max(delay for now, delay in delays if 12 < now < 20) > 0.15
    assert delays[-1][1] < 0.05


def test_a_line_that_stood_still_once_does_not_raise_the_delay() -> None:
    """Two seconds arrive at once: the newest of them is shown, and the delay stays what it was."""
    jitter = Jitter()
    arrivals = [(max(0.05 + n * STEP_S, 6.0 if n > 100 else 0.0), performance(n)) for n in range(300)]
    shown = play(jitter, arrivals, 11.9)
    assert max(one.delay_ms for now, one in shown if now > 7) < 60
    assert next(now for now, one in shown if now > 5.5 and one.showing == "live") < 6.1


@pytest.mark.parametrize("ppm", [-1000, 1000])
def test_clocks_may_drift(ppm: int) -> None:
    jitter = Jitter()
    arrivals = [(0.05 + n * STEP_S * (1 + ppm * 1e-6), performance(n)) for n in range(25 * 40)]
    late = 0
    for now_s, one in arrivals:
        jitter.put(one, now_s)
        late += jitter.at(now_s + 0.016).showing != "live"
    assert jitter.counts.restarts == 0
    assert late < 20
    assert jitter.delay_s < 0.05


def test_time_and_sequence_wrap_unseen() -> None:
    jitter = Jitter()
    shown = play(jitter, [(0.05 + n * STEP_S, performance(n, TIME_WRAP_S - 2)) for n in range(400)], 15.9)
    assert jitter.counts.restarts == jitter.counts.strange == jitter.counts.missing == 0
    assert all(one.showing == "live" for now, one in shown if now > 1)


@pytest.mark.parametrize("origin_s", [0.0, 17.0, 63.0])
def test_a_sender_that_starts_anew_is_followed_at_once(origin_s: float) -> None:
    jitter = Jitter()
    first = [(0.05 + n * STEP_S, performance(n)) for n in range(100)]
    second = [(5.05 + n * STEP_S, performance(n, origin_s)) for n in range(100)]
    shown = play(jitter, first + second, 9.0)
    assert jitter.counts.restarts == 1
    back = next(now for now, one in shown if now > 5 and one.showing == "live")
    assert back < 5.4
    assert shown[-1][1].showing == "live"


@pytest.mark.parametrize("jump_s", [-3600.0, -2.0, 30.0, 86400.0])
def test_our_own_clock_may_jump(jump_s: float) -> None:
    """Sleep, or a clock that somebody sets."""
    jitter = Jitter()
    shown = jitter.at(4999.0)
    for number in range(300):
        now_s = 5000 + number * STEP_S + (jump_s if number >= 150 else 0)
        jitter.put(performance(number), now_s)
        shown = jitter.at(now_s)
    assert shown.showing == "live" and jitter.delay_s < 0.3


def test_the_voice_can_hold_the_face_back() -> None:
    jitter = Jitter()
    jitter.floor_s = 0.25
    play(jitter, [(0.05 + n * STEP_S, performance(n)) for n in range(200)], 7.9)
    assert jitter.delay_s == pytest.approx(0.25, abs=0.01)


def test_somebody_who_joins_sees_the_first_face_that_comes() -> None:
    jitter = Jitter()
    assert jitter.at(0.0) == Shown(None, "waiting", 0.0, 100.0)
    jitter.put(performance(700), 0.01)
    assert isinstance(jitter.at(0.02).face, Face)


def test_one_stray_frame_of_another_clock_changes_nothing() -> None:
    jitter = Jitter()
    for number in range(100):
        jitter.put(performance(number), number * STEP_S)
        if number % 10 == 9:
            jitter.put(performance(number, 140.0), number * STEP_S)
        jitter.at(number * STEP_S)
    assert jitter.counts.restarts == 0 and jitter.counts.strange == 10


ODD = [0.0, -0.0, math.nan, math.inf, -math.inf, 1e308, -1e308, 65.535, 65.536]


@st.composite
def odd_frames(draw: st.DrawFn) -> Coded:
    time_s = draw(st.one_of(st.floats(0, TIME_WRAP_S), st.sampled_from(ODD)))
    sequence = draw(st.integers(-3, SEQUENCE_WRAP + 3))
    if draw(st.booleans()):
        return Coded(sequence, time_s, NoFace(time_s), True)
    face = face_at(draw(st.floats(-90, 90)), draw(st.floats(-1e4, 1e4)), 0.0, draw(st.sampled_from([8.0, 1e-3, 1e5])))
    if draw(st.integers(0, 4)) == 0:
        face.points[draw(st.integers(0, 477)), 0] = draw(st.sampled_from([math.nan, math.inf, 3e30, -3e30]))
    return Coded(sequence, time_s, face, draw(st.booleans()))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(odd_frames(), st.floats(-5, 5), st.booleans()), max_size=60))
def test_whatever_comes_nothing_raises_and_what_is_shown_is_finite(steps: list[tuple[Coded, float, bool]]) -> None:
    jitter, now_s = Jitter(), 0.0
    for one, step_s, ask in steps:
        now_s += step_s
        jitter.put(one, now_s)
        if ask:
            shown = jitter.at(now_s)
            assert math.isfinite(shown.delay_ms) and shown.gap_ms >= 0
            if isinstance(shown.face, Face):
                assert np.isfinite(shown.face.points).all()
                np.testing.assert_allclose(shown.face.rotation @ shown.face.rotation.T, np.eye(3), atol=1e-3)
    assert jitter.counts.came == len(steps)


def test_a_flood_takes_no_room() -> None:
    jitter = Jitter()
    face = face_at(0)
    for number in range(3_000):
        jitter.put(Coded(number % SEQUENCE_WRAP, number * 1e-3 % TIME_WRAP_S, face, True), number * 1e-4)
    assert len(jitter._kept) <= MAX_FRAMES
    assert len(jitter._least) < 2 * MAX_FRAMES


def test_a_flood_of_ever_slower_ways_is_not_remembered_packet_by_packet() -> None:
    jitter = Jitter()
    for number in range(20_000):
        now_s = 100 + number * 4e-4
        jitter.put(coded(number, face_at(0), 100 - number * (STEP_S - 3.9e-4)), now_s)
    assert len(jitter._least) < 250


def test_the_fuzzer_finds_nothing_in_a_few_thousand() -> None:
    taken, _ = fuzz.fuzz("jitter", 3000, seed=3)
    assert 1000 < taken < 3000


def test_a_face_of_another_size_two_milliseconds_later_is_no_motion() -> None:
    jitter = Jitter()
    for number in range(20):
        jitter.put(coded(number, face_at(0, scale=8)), 5 + number * STEP_S)
    last_s = 100 + 19 * STEP_S
    jitter.put(Coded(20, (last_s + 0.002) % TIME_WRAP_S, face_at(0, scale=1000), True), 5 + 19 * STEP_S + 0.002)
    for tick in range(40):
        shown = jitter.at(5 + 19 * STEP_S + tick * 0.01)
        if isinstance(shown.face, Face):
            assert 7 < shown.face.scale < 1001 and np.isfinite(shown.face.points).all()
