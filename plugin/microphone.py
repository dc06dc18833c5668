"""The voice as late as the picture: a virtual microphone through PipeWire or PulseAudio, elsewhere advice.

PulseAudio's modules do the work (PipeWire answers to the same `pactl`): the real microphone plays into a null sink with
a delay (module-loopback), and what arrives there is offered as a microphone of its own (module-remap-source).
"""

from __future__ import annotations

import logging
import shutil
import subprocess

log = logging.getLogger(__name__)

NAME = "understudy_voice"
_STEP_MS = 15.0
"""A smaller change of the delay is not worth the gap that setting it costs."""


def advice(late_ms: float) -> str:
    """What to set by hand where there is no delayed microphone."""
    offset = round(late_ms / 5) * 5
    return (
        f"the picture is about {offset} ms late. If lips and voice seem apart: in OBS, Audio Mixer > Advanced Audio "
        f"Properties, set the microphone's Sync Offset to {offset} ms; on Linux, --delay-voice does it for you"
    )


class DelayedMicrophone:
    """The default microphone again, later by `delay`. Raises `ValueError` with a sentence where that cannot be.

    A negative or tiny delay is taken as what the server itself needs. `close` takes everything away again.
    """

    def __init__(self) -> None:
        if shutil.which("pactl") is None:
            raise ValueError(
                "a delayed microphone needs PipeWire or PulseAudio and their pactl (Debian: apt install "
                "pulseaudio-utils); elsewhere set the microphone's Sync Offset in OBS"
            )
        self._modules: list[str] = []
        self._loop: str | None = None
        self.late_ms: float | None = None
        self._source = _pactl("get-default-source")
        if not self._source or self._source.endswith(".monitor") or self._source.startswith(NAME):
            raise ValueError("there is no microphone to delay: plug one in, or choose it in the sound settings")
        try:
            words = "device.description='Understudy (behind the curtain)'"
            self._load("module-null-sink", f"sink_name={NAME}_sink", f'sink_properties="{words}"')
            words = "device.description='Understudy voice'"
            self._load(
                "module-remap-source",
                f"source_name={NAME}",
                f"master={NAME}_sink.monitor",
                f'source_properties="{words}"',
            )
        except ValueError:
            self.close()
            raise

    def delay(self, late_ms: float) -> bool:
        """Make the voice this late. Returns whether anything was changed: small corrections are left out."""
        if self.late_ms is not None and abs(late_ms - self.late_ms) < _STEP_MS:
            return False
        if self._loop is not None:
            _pactl("unload-module", self._loop)
        self._loop = _pactl(
            "load-module",
            "module-loopback",
            f"source={self._source}",
            f"sink={NAME}_sink",
            f"latency_msec={max(1, round(late_ms))}",
            "source_dont_move=true",
            "sink_dont_move=true",
        )
        self.late_ms = late_ms
        log.info("the microphone 'Understudy voice' is %d ms late, like the picture", round(late_ms))
        return True

    def close(self) -> None:
        """Harmless when already closed."""
        modules = [*self._modules, *([self._loop] if self._loop else [])]
        self._modules, self._loop = [], None
        for module in reversed(modules):
            try:
                _pactl("unload-module", module)
            except ValueError as error:
                log.debug("%s", error)

    def _load(self, *words: str) -> None:
        self._modules.append(_pactl("load-module", *words))


def _pactl(*words: str) -> str:
    """Its answer. Raises `ValueError` with a sentence."""
    try:
        done = subprocess.run(["pactl", *words], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"the sound server does not answer ({error}): is PipeWire or PulseAudio running?") from error
    if done.returncode:
        told = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise ValueError(f"the sound server refused {words[0]} ({told}): is PipeWire or PulseAudio running?")
    return done.stdout.strip()
