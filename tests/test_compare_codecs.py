"""A face beside video: rates are those of the bytes, pictures stay in place, and crossings are read off right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engine.frames import Face, Image
from plugin.render import read_faces
from plugin.routes import SILENCE, Opus, Rider, join, mount
from training import compare_codecs as compare
from training.compare_codecs import (
    OURS,
    THIN,
    VIDEO,
    Rung,
    as_faces,
    as_thin_faces,
    as_video,
    free_run,
    nearest_rung,
    needed_kbps,
)


def moving(count: int) -> list[Image]:
    """A bright square on its way over a soft ground; frame by frame another place."""
    down, across = np.mgrid[:256, :256]
    ground = np.stack([down // 2, across // 2, 128 - across // 4], -1).astype(np.uint8)
    pictures = []
    for number in range(count):
        picture = ground.copy()
        picture[100:140, 20 + 6 * number : 60 + 6 * number] = 250
        pictures.append(picture)
    return pictures


@pytest.mark.parametrize("name", VIDEO)
def test_video_comes_back_frame_by_frame_and_more_bits_show_more(name: str) -> None:
    true = moving(15)
    few, many = as_video(true, name, Rung(10, 96, 3)), as_video(true, name, Rung(300))
    assert len(few.pictures) == len(many.pictures) == 15
    assert len(few.packets) == 5 and len(many.packets) == 15
    off = [[float(np.abs(one.astype(int) - two).mean()) for one, two in zip(true, sent, strict=True)]
           for sent in (few.pictures, many.pictures)]  # fmt: skip
    assert 1.5 * np.mean(off[1]) < np.mean(off[0])
    # Each picture is its own moment's, not a neighbour's.
    middles = [float(np.flatnonzero(picture[120, :, 2] > 180).mean()) for picture in many.pictures[::5]]
    assert middles == pytest.approx([40, 70, 100], abs=5)
    assert many.kbps(0.6) == pytest.approx(sum(many.packets) * 8 / 600)
    assert many.wire_kbps(0.6) > many.kbps(0.6) + 15 * 50 * 8 / 600 - 1e-6


def test_faces_arrive_in_their_places_in_packets_of_sixty_milliseconds() -> None:
    faces = [replace(face, time_s=1 + number / 25) for number, face in enumerate(read_faces(compare.TALKING)[0][:50])]
    coded = as_faces(faces)
    assert len(coded.faces) == 50 and len(coded.packets) == pytest.approx(2 / 0.06, abs=1)
    assert coded.headers
    for sent, arrived in zip(faces[5:], coded.faces[5:], strict=True):
        assert isinstance(arrived, Face)
        assert arrived.time_s == sent.time_s
        assert float(np.linalg.norm((arrived.points - sent.points)[:, :2], axis=1).mean()) < 2
    voice = Opus(0x58, (bytes(90),))
    assert {len(mount(voice, Rider(packet))) - len(join(voice)) - len(packet) for packet in coded.packets} == {4}
    assert {len(mount(SILENCE, Rider(packet))) - len(packet) for packet in coded.packets} == {7}
    assert (compare.RIDER_BYTES, compare.CARRIER_BYTES) == (4, 7)
    rates = coded.rates_kbps(2.0)
    assert rates["kbps"] == pytest.approx(sum(map(len, coded.packets)) * 8e-3 / 2)
    assert 0 < rates["beside_voice_kbps"] - rates["kbps"] < 1 < rates["wire_kbps"] - rates["kbps"]
    thin = as_thin_faces(faces)
    assert len(thin.faces) == 50 and len(thin.packets) < 0.6 * len(coded.packets)
    assert thin.rates_kbps(2.0)["kbps"] < 0.6 * rates["kbps"]
    for sent, arrived in zip(faces[10:-5], thin.faces[10:-5], strict=True):
        assert isinstance(arrived, Face)
        assert float(np.linalg.norm((arrived.points - sent.points)[:, :2], axis=1).mean()) < 4


def test_what_is_needed_is_read_between_the_rungs_on_a_logarithmic_axis() -> None:
    ladder = [{"kbps": 10.0, "lpips": 0.4, "csim": 0.2}, {"kbps": 1000.0, "lpips": 0.2, "csim": 0.6}]
    assert needed_kbps(ladder, "lpips", 0.3, better=-1) == pytest.approx(100)
    assert needed_kbps(ladder, "csim", 0.3, better=1) == pytest.approx(10 ** (1 + 2 * 0.25))
    assert needed_kbps(ladder, "lpips", 0.5, better=-1) == 10, "the lowest rung is good enough already"
    assert needed_kbps(ladder, "lpips", 0.1, better=-1) is None
    scores = {"x264, a": {"kbps": 3.0}, "x264, b": {"kbps": 30.0}, "VP9, a": {"kbps": 4.0}}
    assert nearest_rung(scores, "x264", 8.0) == "x264, a" and nearest_rung(scores, "x264", 11.0) == "x264, b"


def made_up(lpips: float) -> dict[str, dict[str, float]]:
    row = {"lpips": lpips, "csim": 0.7, "identity": 0.6, "points": 2.0, "lips": 3.0, "lost": 0.0}
    ours = {"kbps": 3.0, "beside_voice_kbps": 3.6, "wire_kbps": 9.0, "avatar_bytes": 8e5, "header_bytes": 200.0}
    scores = {OURS: row | ours, THIN: row | ours | {"kbps": 1.5, "points": 2.5}}
    for title, _ in VIDEO.values():
        for place, rung in enumerate(compare.LADDER):
            better = {
                "lpips": 0.5 - 0.05 * place,
                "csim": 0.1 * place,
                "identity": 0.1 * place,
                "points": 5.0 - 0.5 * place,
            }
            scores[f"{title}, {rung}"] = row | better | {"kbps": float(rung.kbps), "wire_kbps": rung.kbps + 10.0}
    return scores


def test_tables_and_curve_hold_what_was_measured(tmp_path: Path) -> None:
    people = {"one": made_up(0.3), "two": made_up(0.01)}
    told = compare.summary(people)
    needs, thin = (told["x264"][name]["needs"] for name in (OURS, THIN))
    assert needs["lpips"]["never"] == 1
    assert needs["points"] == {"kbps": 128.0, "times": pytest.approx(128 / 3, abs=0.01), "never": 0, "always": 0}
    assert thin["points"]["kbps"] < 128.0 and thin["points"]["times"] == pytest.approx(
        thin["points"]["kbps"] / 1.5, 0.01
    )
    text = compare.markdown(people, {"three": "no face"})
    assert "1 of 2: never on this ladder" in text and "three (no face)" in text and "hands" in text
    compare.curve(people, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 10_000


def test_the_longest_run_away_from_photos_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [np.arange(250) / 25, np.arange(100) / 25]
    monkeypatch.setattr(compare, "frame_times", lambda path: times[int(path.name)])
    clips = [Path("0"), Path("1")]
    assert free_run(clips, [(0, 25)], 1000) == (0, 75, 175)
    assert free_run(clips, [(0, 25)], 50) == (0, 75, 50)
    assert free_run(clips, [(0, 25), (0, 125), (0, 225)], 1000) == (1, 0, 100)


def test_a_demo_that_would_be_written_nowhere_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        compare.main(["--demo", "mara.avatar"])
    assert "give --out a name that ends in .png" in capsys.readouterr().err
