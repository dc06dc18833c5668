"""The delayed microphone: what is asked of the sound server, that all of it is taken away again, and what is told."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path

import pytest

from plugin.microphone import DelayedMicrophone, advice

PACTL = """#!{python} -S
import json, os, sys
from pathlib import Path
log = Path(os.environ["PACTL_LOG"])
calls = json.loads(log.read_text()) if log.exists() else []
calls.append(sys.argv[1:])
log.write_text(json.dumps(calls))
if os.environ.get("PACTL_FAILS") in sys.argv:
    sys.exit("Failure: module initialization failed")
if sys.argv[1] == "get-default-source":
    print(os.environ.get("PACTL_SOURCE", "alsa_input.usb"))
if sys.argv[1] == "load-module":
    print(500 + len(calls))
"""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `pactl` that writes down what it is asked; the path of its notes."""
    if sys.platform == "win32":
        pytest.skip("there is no pactl on Windows")
    program = tmp_path / "pactl"
    program.write_text(PACTL.replace("{python}", sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PACTL_LOG", str(tmp_path / "log.json"))
    return tmp_path / "log.json"


def read(calls: Path) -> list[list[str]]:
    return json.loads(calls.read_text())


def test_delay_is_set_kept_and_taken_away(calls: Path) -> None:
    microphone = DelayedMicrophone()
    assert microphone.delay(57.4)
    assert not microphone.delay(60.0), "too little to be worth a gap"
    assert microphone.delay(95.0)
    microphone.close()
    microphone.close()
    told = read(calls)
    loops = [one for one in told if "module-loopback" in one]
    assert [word for one in loops for word in one if word.startswith("latency")] == [
        "latency_msec=57",
        "latency_msec=95",
    ]
    assert all("source=alsa_input.usb" in one for one in loops)
    loaded = [str(500 + number) for number, one in enumerate(told, 1) if one[0] == "load-module"]
    unloaded = [one[1] for one in told if one[0] == "unload-module"]
    assert sorted(loaded) == sorted(unloaded)


def test_a_server_that_refuses_leaves_nothing_behind(calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACTL_FAILS", "module-remap-source")
    with pytest.raises(ValueError, match=r"refused load-module.*is PipeWire or PulseAudio running"):
        DelayedMicrophone()
    told = read(calls)
    assert [one[1] for one in told if one[0] == "unload-module"] == ["502"]


@pytest.mark.parametrize("source", ["", "alsa_output.usb.monitor", "understudy_voice"])
def test_no_microphone_is_told(calls: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setenv("PACTL_SOURCE", source)
    with pytest.raises(ValueError, match="no microphone to delay"):
        DelayedMicrophone()


def test_without_a_sound_server_the_offset_for_obs_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"pulseaudio-utils.*OBS"):
        DelayedMicrophone()
    assert "Sync Offset to 65 ms" in advice(63.2)
