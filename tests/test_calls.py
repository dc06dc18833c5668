"""`understudy send`, `receive` and `rendezvous` as they are typed: whatever cannot work is one sentence."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from plugin import calls
from plugin.calls import Teller
from plugin.cli import main
from plugin.pairing import Code
from plugin.receiver import Receiver


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDERSTUDY_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("send --avatar me", "whom"),
        ("send hello --avatar me", "not a pairing code"),
        ("send 372-cristal-orbit --avatar me", "is it 'crystal'"),
        ("send http://10.0.0.1:1/ --avatar me", "lacks the code behind the #"),
        ("send 372-crystal-orbit --avatar me", "there is no avatar called 'me'"),
        ("send 372-crystal-orbit", "--avatar"),
        ("send 372-crystal-orbit --avatar me --seconds -1", "take more than 0"),
        ("send 372-crystal-orbit --avatar me --voice loud", "--voice"),
        ("receive --port 99999", "not between 0 and 65535"),
        ("receive --fps 0", "not between 1 and 120"),
        ("receive --out {home}/none/out.mp4", "there is no folder"),
        ("receive --out {home}/out.avi", "the output is MP4"),
        ("rendezvous", "--certificate and --key"),
        ("rendezvous --certificate {home}/a.pem", "--certificate and --key"),
        ("rendezvous --plain --certificate {home}/a.pem --key {home}/b.pem", "--certificate and --key"),
        ("rendezvous --certificate {home}/a.pem --key {home}/b.pem", "no certificate and its key"),
    ],
)
def test_what_cannot_work_is_one_sentence(
    typed: str, told: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(typed.format(home=home).split()) == 1
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


@pytest.mark.parametrize("typed", ["receive", "send 372-crystal-orbit --avatar me"])
def test_the_users_own_settings_are_those_of_a_call(typed: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "home").mkdir()
    (home / "home" / "config.toml").write_text("[link]\nprot = 8470\n")
    assert main(typed.split()) == 1
    assert "link.prot is not a known setting" in capsys.readouterr().err


def test_a_taken_port_is_one_sentence_and_leaves_no_file(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(f"receive --size 256 --out {home / 'out.mp4'} --port {port}".split()) == 1
    assert f"port {port} is taken" in capsys.readouterr().err
    assert not [path for path in home.iterdir() if "out" in path.name]


def test_a_receiver_whom_nobody_calls_shows_its_code_and_a_card(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    show = Receiver.show

    def show_and_stop(self: Receiver, code: Code) -> None:
        show(self, code)
        self.stop()

    monkeypatch.setattr(Receiver, "show", show_and_stop)
    config = home / "mine.toml"
    config.write_text("[link]\nannounce = false\n")
    typed = f"--config {config} receive --size 256 --port 0 --out {home / 'out.mp4'} --seconds 60"
    assert main(typed.split()) == 0
    said = capsys.readouterr().out
    code = re.search(r"understudy send (\d{3}-[a-z]+-[a-z]+)", said)
    assert code and f"/#{code[1]}'" in said
    assert (home / "out.mp4").stat().st_size > 1000 and "0.0 s of voice" in said


def test_a_status_line_takes_the_place_of_the_last(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tell = Teller()
    tell("\rone")
    assert capsys.readouterr().out == "one\n"  # into a file: a line each
    monkeypatch.setattr(calls.sys.stdout, "isatty", lambda: True, raising=False)
    tell = Teller()
    tell("\rlonger")
    tell("\rshort")
    tell("a sentence")
    assert capsys.readouterr().out == "\rlonger\rshort \na sentence\n"
