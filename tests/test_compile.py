"""Compiled engines are found again, made again when anything changed, and refused when they are damaged."""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from engine import avatar as avatars
from engine.avatar import Avatar
from engine.backends import UnavailableError, compiled, cuda, tensorrt
from engine.backends.compiled import Wanted, find_or_make, make
from engine.backends.engine_file import MAGIC, EngineFileError, load, read_key, save
from engine.backends.tensorrt import PORTABLE, Flavour
from engine.base import Base, open_base
from engine.config import load as load_config
from engine.renderer import constants_of
from plugin import cli
from plugin.compile import compile_avatar, measure
from tests.cards import FakeCard, flavour
from tests.conftest import untuned

KEY = {"avatar": "a" * 64, "size": 512}
ADA = (8, 9)


# --- the file ---


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "one.engine"
    save(path, KEY, b"engine" * 100)
    return path


def told(path: Path, key: dict[str, str | int] | None = None) -> str:
    with pytest.raises(EngineFileError) as caught:
        load(path, key or KEY)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


def test_what_is_saved_is_loaded_and_nothing_else_is_left(stored: Path) -> None:
    assert load(stored, KEY) == b"engine" * 100
    assert read_key(stored) == KEY
    assert [path.name for path in stored.parent.iterdir()] == ["one.engine"]


def test_every_truncation_and_every_addition_is_noticed(stored: Path) -> None:
    whole = stored.read_bytes()
    for length in [*range(0, 200, 7), len(whole) - 1]:
        stored.write_bytes(whole[:length])
        told(stored)
    stored.write_bytes(whole + b"x")
    assert "behind its end" in told(stored)


def test_every_changed_byte_is_noticed(stored: Path) -> None:
    whole = bytearray(stored.read_bytes())
    zeros = range(9, 12)  # reserved
    for place in [place for place in range(0, len(whole), 3) if place not in zeros]:
        whole[place] ^= 0x10
        stored.write_bytes(whole)
        told(stored)
        whole[place] ^= 0x10


def test_each_refusal_says_what_is_wrong(stored: Path, tmp_path: Path) -> None:
    whole = stored.read_bytes()
    assert told(tmp_path / "none.engine") == "none.engine is not there"
    assert told(stored, {**KEY, "size": 256}) == "one.engine was made for another size (512)"
    assert told(stored, {**KEY, "target": "sm89"}) == "one.engine was made for another target (None)"
    stored.write_bytes(b"\x7fELF" + whole)
    assert told(stored) == "one.engine is no compiled engine"
    stored.write_bytes(whole[:8] + b"\x02" + whole[9:])
    assert told(stored) == "one.engine has format 2, and this program reads 1"
    stored.write_bytes(whole[:-20] + b"y" * 20)
    assert told(stored) == "one.engine is damaged: its content does not match its checksum"
    stored.write_bytes(struct.pack("<8sB3xIQ", MAGIC, 1, 4, 1 << 60) + b"{}[]")
    assert "truncated" in told(stored)
    stored.write_bytes(struct.pack("<8sB3xIQ", MAGIC, 1, 20000, 0) + b"[" * 20000)
    assert "header makes no sense" in told(stored)
    stored.unlink()
    stored.mkdir()
    assert "cannot be read" in told(stored)


def test_what_was_there_stays_when_saving_fails(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stored.read_bytes()

    def fail(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        save(stored, KEY, b"new")
    assert stored.read_bytes() == before and len(list(stored.parent.iterdir())) == 1


# --- found again, made again ---


@pytest.fixture
def rtx() -> Flavour:
    return flavour(FakeCard())


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The targets that were compiled for, with a compiler that takes no time."""
    targets: list[str] = []

    def build(flavour: Flavour, graph: bytes, target: str) -> bytes:
        targets.append(target)
        return f"engine {len(targets)} of {len(graph)} bytes for {target}".encode()

    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path))
    monkeypatch.setattr(compiled, "build", build)
    return targets


@pytest.fixture
def wanted(tiny_base: Base, tiny_avatar: Avatar) -> Wanted:
    return Wanted(tiny_base, "me", constants_of(tiny_avatar, tiny_base), 3, 256, "f16")


def test_it_is_made_once_and_lies_beside_the_avatar(wanted: Wanted, rtx: Flavour, made: list[str]) -> None:
    first, again = find_or_make(wanted, rtx, ADA), find_or_make(wanted, rtx, ADA)
    assert made == [PORTABLE]
    assert first.engine == again.engine and first.seconds > 0 and again.seconds == 0
    assert again.path == avatars.place("me").parent / "me.engines" / "256px-f16-rtx-sm80+.engine"
    assert not avatars.listing(), "and is none itself"


@pytest.mark.parametrize(
    "change",
    [
        lambda one: dataclasses.replace(
            one, constants={**one.constants, "modulation": one.constants["modulation"] + 1}
        ),
        lambda one: dataclasses.replace(one, references=2),
        lambda one: dataclasses.replace(one, base=dataclasses.replace(one.base, sha256="0" * 64)),
    ],
    ids=["person", "references", "base"],
)
def test_what_changed_is_made_again(
    wanted: Wanted, rtx: Flavour, made: list[str], change: Callable[[Wanted], Wanted], caplog: pytest.LogCaptureFixture
) -> None:
    find_or_make(wanted, rtx, ADA)
    find_or_make(change(wanted), rtx, ADA)
    find_or_make(change(wanted), rtx, ADA)
    assert made == [PORTABLE] * 2
    assert "was made for another" in caplog.text and "; compiled again in " in caplog.text
    assert len(list(wanted.folder.iterdir())) == 1, "the old one is gone"


def test_another_tensorrt_or_program_makes_it_again(
    wanted: Wanted, rtx: Flavour, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find_or_make(wanted, rtx, ADA)
    rtx.module.__version__ = "1.2.4"
    find_or_make(wanted, rtx, ADA)
    monkeypatch.setattr(compiled, "_program_sha256", lambda: "another graph")
    find_or_make(wanted, rtx, ADA)
    assert made == [PORTABLE] * 3


def test_sizes_and_precisions_and_flavours_lie_side_by_side(wanted: Wanted, rtx: Flavour, made: list[str]) -> None:
    full = dataclasses.replace(rtx, for_rtx=False)
    for one in (wanted, dataclasses.replace(wanted, size_px=512), dataclasses.replace(wanted, precision="f32")):
        for which in (rtx, full, rtx):
            find_or_make(one, which, ADA)
    assert made == [PORTABLE, "sm89"] * 3


def test_a_damaged_one_is_made_again_and_that_is_told(
    wanted: Wanted, rtx: Flavour, made: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = find_or_make(wanted, rtx, ADA).path
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1])
    assert find_or_make(wanted, rtx, ADA).engine.startswith(b"engine 2")
    assert f"{path.name} is truncated" in caplog.text
    caplog.clear()
    path.write_bytes(b"something else")
    assert find_or_make(wanted, rtx, ADA).engine.startswith(b"engine 3")
    assert f"{path.name} is no compiled engine" in caplog.text
    path.unlink()
    caplog.clear()
    assert find_or_make(wanted, rtx, ADA).engine.startswith(b"engine 4")
    assert not caplog.text, "a missing one is nothing to speak of"


def test_one_that_was_made_for_the_card_comes_first(wanted: Wanted, rtx: Flavour, made: list[str]) -> None:
    make(wanted, rtx, PORTABLE)
    make(wanted, rtx, "sm89+sm120")
    assert find_or_make(wanted, rtx, ADA).engine.endswith(b"sm89+sm120")
    assert find_or_make(wanted, rtx, (8, 6)).engine.endswith(PORTABLE.encode())
    assert len(made) == 2
    find_or_make(wanted, rtx, (7, 5))
    assert made[2:] == ["sm75"], "Turing needs its own"
    renamed = wanted.path(rtx, "sm89+sm120").rename(wanted.path(rtx, "sm86"))
    assert find_or_make(wanted, rtx, (8, 6)).path != renamed, "names are not believed"


def test_a_folder_that_takes_nothing_is_no_reason_not_to_draw(
    wanted: Wanted, rtx: Flavour, made: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    wanted.folder.parent.mkdir(parents=True)
    wanted.folder.write_bytes(b"a file where the folder should be")
    assert find_or_make(wanted, rtx, ADA).path is None
    assert "the engine is compiled at every start" in caplog.text


def test_without_onnx_it_says_what_to_install(
    wanted: Wanted, rtx: Flavour, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*arguments: object) -> bytes:
        raise ModuleNotFoundError("No module named 'onnx'", name="onnx")

    monkeypatch.setattr("engine.backends.card_graph.card_graph", missing)
    with pytest.raises(UnavailableError, match=r"needs the package onnx, .*; to use it: pip install"):
        find_or_make(wanted, rtx, ADA)


# --- the command ---


@pytest.fixture
def known(tiny_avatar: Avatar, tiny_base: Base, made: list[str], monkeypatch: pytest.MonkeyPatch) -> Avatar:
    """The tiny avatar is in the user's folder, its base is the one that ships, and a TensorRT is installed."""
    path = avatars.place("me")
    path.parent.mkdir(parents=True, exist_ok=True)
    avatars.save(dataclasses.replace(tiny_avatar, name="me"), path)
    monkeypatch.setattr("engine.base.open_base", lambda: tiny_base)
    rtx = flavour(FakeCard())
    rtx.module.ComputeCapability = type("ComputeCapability", (), {"SM75": 0, "SM89": 1, "SM120": 2})
    monkeypatch.setattr(tensorrt, "flavours", lambda: [rtx])
    return avatars.load(path, tiny_base.sha256)


def test_the_command_compiles_every_size(known: Avatar, made: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compile", "--avatar", "me", "--size", "256", "--size", "512", "--target", "sm120,sm89"]
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert made == ["sm89+sm120"] * 2
    assert lines[0].startswith("compiled 256 px, f16, TensorRT for RTX 1.2.3 for sm89+sm120: ")
    assert lines[1].endswith("512px-f16-rtx-sm89+sm120.engine") and Path(lines[1].split(", ")[-1]).is_file()


def test_what_was_compiled_ahead_is_what_a_call_takes(known: Avatar, tiny_base: Base, made: list[str]) -> None:
    list(compile_avatar(known, tiny_base, load_config(), [256], ""))
    constants = constants_of(known, tiny_base)
    wanted = Wanted(tiny_base, "me", constants, len(known.references), 256, "f16")
    assert find_or_make(wanted, tensorrt.flavours()[0], ADA).seconds == 0
    assert made == [PORTABLE]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--target", "sm90"], "--target knows sm75, sm89, sm120, and not 'sm90'"),
        (["--avatar", "nobody"], "there is no avatar called 'nobody'"),
        (["--measure", "--size", "256"], 'device = "cuda" cannot be used: no NVIDIA driver found; to use it'),
    ],
    ids=["target", "avatar", "measure"],
)
def test_the_command_tells_errors_in_one_line(
    known: Avatar,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    sentence: str,
) -> None:
    monkeypatch.setattr(cuda, "has_driver", lambda: False)
    assert cli.main(["compile", "--avatar", "me", *arguments]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith(f"understudy: {sentence}")


def test_without_tensorrt_the_command_says_what_to_install(
    known: Avatar, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt, "flavours", list)
    assert cli.main(["compile", "--avatar", "me"]) == 1
    assert "TensorRT is not installed; to use it: pip install 'understudy[gpu]'" in capsys.readouterr().err


def test_measuring_says_how_fast_and_how_far(known: Avatar, tiny_base: Base, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a card that is none: the numbers mean nothing, but the sentences are there and the picture is the same."""
    card = FakeCard()
    rtx = flavour(card)
    monkeypatch.setattr(cuda, "open_card", lambda: card)
    monkeypatch.setattr(tensorrt, "flavours", lambda: [rtx])
    monkeypatch.setattr(compiled, "build", lambda flavour, graph, target: graph)
    monkeypatch.setattr("plugin.compile.FRAMES", 4)
    lines = list(measure(known, tiny_base, load_config(), 256))
    assert lines[0] == "256 px: TensorRT for RTX 1.2.3 on Imaginary RTX (sm89), f16"
    assert [line.split(":")[0].strip() for line in lines[1:5]] == [
        "to the first frame",
        "up, network, down",
        "the whole drawing of a frame",
        "to the first frame of another avatar that is open too",
    ]
    words = lines[-1].split()
    assert words[1] == "OpenVINO" and float(lines[-1].split("f32: ")[1].split()[0]) <= 1


@pytest.mark.needs_gpu
def test_a_real_card_is_measured(tiny_references: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path))
    assert isinstance(tiny_references, tuple)
    for size_px in (256, 512):
        base = open_base()
        lines = list(measure(untuned("shipped", base, tiny_references), base, load_config(), size_px))
        print(*lines, sep="\n")
        assert len(lines) == 6
    kept = {path.suffix for path in (tmp_path / "avatars").rglob("*px-*")}
    assert ".engine" in kept and kept <= {".engine", ".kernels"}
