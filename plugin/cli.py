"""`understudy`: reads the command line, builds what it names, hands over; what is heavy is imported on use."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

log = logging.getLogger("understudy")


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are sentences like all others."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="understudy", description="Appear in video calls as your own photoreal avatar.")
    parser.add_argument("--config", type=Path, help="a TOML file with the settings to change")
    parser.add_argument("--verbose", action="store_true", help="show where an error comes from")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    enrol = commands.add_parser("enrol", help="make an avatar from photos, a folder of them, or a short video")
    enrol.add_argument("photos", nargs="+", type=Path, metavar="PHOTOS")
    enrol.add_argument("--name", required=True, help="what the avatar is called")
    enrol.add_argument("--contact", type=Path, help="where the contact sheet goes (default: beside the avatar)")
    enrol.add_argument("--tune-s", type=float, help="seconds of fine-tuning, 0 = none")

    render = commands.add_parser("render", help="drive an avatar by a clip, or each factor by its own, and write it")
    render.add_argument("--avatar", required=True, help="name or file")
    render.add_argument("--drive", type=Path, help="a video, or landmarks recorded from one (.npz)")
    render.add_argument(
        "--out", type=Path, default=Path("understudy.mp4"), help="an .mp4 to write (default: %(default)s)"
    )
    render.add_argument("--size", type=int, choices=(256, 512, 720), dest="size_px")
    render.add_argument("--background", help="photo, blur, color, image, a colour like #3c4148, or a picture file")
    render.add_argument("--motion", choices=("relative", "absolute"))
    render.add_argument(
        "--neutral",
        type=float,
        metavar="SECONDS",
        help="where in the clip the driver looks neutral (default: found)",
    )
    factors = render.add_argument_group("factors, each from its own source; --drive has those that are not named")
    factors.add_argument(
        "--lips", metavar="FILE", help="a voice (.wav, .mp3 ...), a clip, landmarks (.npz, .face), or still"
    )
    factors.add_argument("--pose", metavar="FILE", help="a clip, landmarks, still, or YAW[,PITCH[,ROLL]] in degrees")
    factors.add_argument(
        "--eyes",
        metavar="FILE",
        help="a clip, landmarks, still, or OPEN[,ASIDE[,UP]]: 0 shut to 1.5 wide, then degrees",
    )
    factors.add_argument("--expression", metavar="FILE", help="a clip, landmarks, or still")
    factors.add_argument("--loop", action="store_true", help="a source that is too short begins again")

    send = commands.add_parser("send", help="let somebody see your avatar, over a link that needs next to nothing")
    send.add_argument(
        "code", nargs="?", metavar="CODE", help="the code or link that `receive` shows (default: the last receiver)"
    )
    send.add_argument("--avatar", required=True, help="name or file of the avatar that stands in for you")
    send.add_argument("--drive", type=Path, metavar="CLIP", help="a video or landmarks (.npz) instead of the webcam")
    send.add_argument("--camera", default="", help="the webcam's name or part of it")
    send.add_argument("--voice", choices=("microphone", "clip", "none"), help="what is heard (default: what there is)")
    send.add_argument("--seconds", type=float, help="hang up after so long")
    receive = commands.add_parser("receive", help="show a pairing code, then the avatar of who has it")
    receive.add_argument("--out", type=Path, help="an .mp4 to write instead of opening a window")
    receive.add_argument(
        "--camera", action="store_true", dest="virtual_camera", help="into the virtual camera instead of a window"
    )
    receive.add_argument("--null", action="store_true", help="show nothing: for measuring")
    receive.add_argument("--size", type=int, choices=(256, 512, 720), dest="size_px")
    receive.add_argument("--fps", type=float, default=30.0, help="pictures a second, at most")
    receive.add_argument("--seconds", type=float, help="end after so long")
    receive.add_argument("--once", action="store_true", help="end when the sender ends the call")
    receive.add_argument("--qr", type=Path, metavar="PNG", help="where to write the link as a QR picture")
    receive.add_argument("--port", type=int, help="where to listen for the sender; 0 = any that is free")
    receive.add_argument("--silent", action="store_true", help="without the voice")
    meeting = commands.add_parser("rendezvous", help="a meeting place for others, where two networks can reach it")
    meeting.add_argument("--host", default="0.0.0.0", help="the address to listen at (default: all)")
    meeting.add_argument("--port", type=int, default=8471)
    meeting.add_argument("--certificate", type=Path, metavar="PEM")
    meeting.add_argument("--key", type=Path, metavar="PEM")
    meeting.add_argument("--plain", action="store_true", help="without TLS: behind a proxy that speaks it")
    commands.add_parser("avatars", help="list the avatars there are")
    compiling = commands.add_parser("compile", help="make an avatar's engines for NVIDIA cards ahead of time")
    compiling.add_argument("--avatar", required=True, help="name or file")
    compiling.add_argument("--size", type=int, choices=(256, 512, 720), action="append", dest="sizes_px")
    compiling.add_argument("--target", default="", help="kinds of cards, like sm89,sm120 (default: Ampere and later)")
    compiling.add_argument("--measure", action="store_true", help="then draw with this machine's card, and compare")
    camera = commands.add_parser("camera", help="appear in calls: webcam in, virtual camera out")
    camera.add_argument("--avatar", help="name or file (default: the one used last)")
    camera.add_argument(
        "--camera", metavar="NAME", help="name of the webcam, or part of it (default: the one used last)"
    )
    camera.add_argument("--clip", type=Path, help="a recorded clip instead of the webcam")
    camera.add_argument("--profile", default="", help="a section [profiles.NAME...] of the configuration")
    camera.add_argument("--size", choices=("640x360", "1280x720", "1920x1080"), help="the picture that leaves")
    camera.add_argument(
        "--background", help="photo, blur, color, image, green, a colour like #3c4148, or a picture file"
    )
    camera.add_argument("--device", help="the virtual camera, such as /dev/video10 (default: the first there is)")
    camera.add_argument("--preview-only", action="store_true", help="no virtual camera, only the window")
    camera.add_argument("--no-window", action="store_false", dest="window", help="no preview; stop with Ctrl-C")
    camera.add_argument(
        "--delay-voice", action="store_true", help="a microphone that is as late as the picture (Linux)"
    )
    camera.add_argument(
        "--voice",
        nargs="?",
        const="",
        metavar="FILE",
        help="while no face is seen, the microphone moves the lips (or a sound file in its place)",
    )
    camera.add_argument("--list", action="store_true", help="list the webcams there are, and stop")
    panel = commands.add_parser("panel", help="open the page that enrols, previews and controls the live avatar")
    panel.add_argument("--port", type=int, help="on this machine only; 0 = any that is free")
    panel.add_argument("--profile", default="", help="a section [profiles.NAME...] of the configuration")
    panel.add_argument("--clip", type=Path, help="a recorded clip instead of the webcam")
    panel.add_argument("--voice", type=Path, metavar="FILE", help="a sound file instead of the microphone")
    panel.add_argument("--no-browser", action="store_false", dest="browser", help="print the link, open nothing")
    demo = commands.add_parser("demo", help="enrol somebody who does not exist, render, and print what it took")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder for the results")
    bench = commands.add_parser("bench", help="measure this machine")
    bench.add_argument("--out", type=Path, default=Path("bench"), help="folder for the results")
    doctor = commands.add_parser("doctor", help="look for what is wrong with this machine, and say what to type next")
    doctor.add_argument("--json", action="store_true", help="for programs: the same as JSON")
    doctor.add_argument("--avatar", help="name or file of the avatar to look at (default: all)")
    doctor.add_argument(
        "--no-self-test", action="store_false", dest="self_test", help="leave out the ten seconds of it"
    )
    doctor.add_argument("--patience", type=float, default=1.0, metavar="TIMES", help="on a slow machine: wait longer")
    return parser


class _Bar:
    """A progress bar a stage, on stderr, only where somebody is looking."""

    def __init__(self) -> None:
        self._stage: str | None = None
        self._bar = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        from tqdm import tqdm

        if stage != self._stage:
            self.close()
            self._stage = stage
            self._bar = tqdm(total=total, desc=stage, leave=False, disable=None, unit="", dynamic_ncols=True)
        if self._bar is not None:
            self._bar.total = total
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._stage = None, None


@contextmanager
def _training() -> Iterator[None]:
    """Around what reaches into `training`: what may be missing there, in the words of this program."""
    from training.fetch import FetchError

    try:
        yield
    except ModuleNotFoundError as error:
        if error.name in ("torch", "safetensors"):
            raise ValueError("this needs the training parts: pip install 'understudy[train]'") from error
        raise
    except FetchError as error:
        raise OSError(str(error)) from error


def _enrol(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from engine import avatar as avatars
    from engine.base import open_base
    from engine.config import load
    from plugin.webcam import Clip

    avatars.check_name(options.name)
    config = load(options.config)
    if options.tune_s is not None:
        if not 0 <= options.tune_s <= 86400:
            raise ValueError(f"--tune-s is {options.tune_s:g}, not between 0 and 86400 seconds")
        config = replace(config, enrol=replace(config.enrol, tune_s=options.tune_s))
    contact = options.contact or avatars.place(options.name).with_suffix(".png")
    bar = _Bar()
    try:
        with _training():
            from training.enrol import enrol

            result = enrol(options.photos, options.name, open_base(), config, bar, Clip, contact)
    finally:
        bar.close()
    print_enrolment(result)


def print_enrolment(result: object) -> None:
    """What enrolment found and made, for a person to read."""
    from training.enrol import Enrolment

    assert isinstance(result, Enrolment)
    for photo in result.photos:
        mark = {"accepted": "+", "warned": "~", "refused": "-"}[photo.verdict]
        print(f" {mark} {photo.name}" + (f": {'; '.join(photo.reasons)}" if photo.reasons else ""))
    checks = result.avatar.checks
    if "lpips_before" in checks:
        distance = f"LPIPS {checks['lpips_before']} -> {checks['lpips_after']}"
        likeness = f"identity {checks['identity_before']} -> {checks['identity_after']}"
        print(f"fine-tuned in {checks['steps']} steps; photos held back: {distance}, {likeness}")
    elif len(result.avatar.photos) < 3:
        print("not fine-tuned: that takes three photos or more")
    else:
        print("not fine-tuned: enrol.tune_s is 0")
    if lent := checks.get("borrowed"):
        print(f"borrowed from people who do not exist, until a photo shows yours: {', '.join(lent)}")
    for wish in result.advice[:3]:
        print(f"would help: {wish}")
    spent = ", ".join(f"{name} {value:.1f} s" for name, value in result.seconds.items())
    print(f"avatar   {result.path} ({result.path.stat().st_size / 1e6:.2f} MB; {spent})")
    print(f"contact  {result.contact}")


def _background(value: str | None) -> dict[str, object]:
    """`--background` as settings of `[render]`."""
    if value is None:
        return {}
    if value in ("photo", "blur", "color", "image", "green"):
        return {"background": value}
    if value.startswith("#"):
        from engine.compositor import parse_color

        parse_color(value)
        return {"background": "color", "color": value}
    if Path(value).is_file():
        return {"background": "image", "image": Path(value).absolute()}
    raise ValueError(
        f"--background {value!r} is neither photo, blur, color, image, green, a colour like #3c4148, nor a picture file"
    )


def _render(options: argparse.Namespace) -> None:
    from engine import avatar as avatars
    from engine.base import open_base
    from engine.config import load
    from plugin.mix import Wanted, render_mixed
    from plugin.render import render, with_options

    wanted = Wanted(options.lips, options.pose, options.eyes, options.expression, options.loop)
    if not (wanted.any or options.drive):
        raise ValueError(
            "nothing drives the avatar: name a clip with --drive, or with --lips, --pose, --eyes, --expression"
        )
    if wanted.any and options.neutral is not None:
        raise ValueError("--neutral is for one driver: leave it out where factors have sources of their own")
    if wanted.loop and not wanted.any:
        raise ValueError(
            "--loop is for factors with sources of their own: name one with --lips, --pose, --eyes or --expression"
        )
    config = with_options(
        load(options.config),
        size_px=options.size_px,
        motion=options.motion,
        **_background(options.background),
    )
    if config.render.background == "image" and config.render.image is None:
        raise ValueError(
            "--background image needs a picture: name its file instead, or set render.image in the configuration"
        )
    base = open_base()
    avatar = avatars.load(avatars.find(options.avatar), base.sha256)
    bar = _Bar()
    try:
        if wanted.any or options.drive is None:
            done = render_mixed(avatar, base, config, wanted, options.drive, options.out, bar)
        else:
            done = render(avatar, base, config, options.drive, options.out, bar, options.neutral)
    finally:
        bar.close()
    print(f"{done.backend}; {done.frames} frames in {done.seconds:.1f} s, the first after {done.first_frame_s:.2f} s")
    for line in (*done.sources, *done.meter.lines()):
        print(line)
    for note in done.notes:
        print(f"note: {note}")
    print(f"video    {done.path}")


def _compile(options: argparse.Namespace) -> None:
    from engine import avatar as avatars
    from engine.base import open_base
    from engine.config import load
    from plugin.compile import compile_avatar, measure

    config, base = load(options.config), open_base()
    avatar = avatars.load(avatars.find(options.avatar), base.sha256)
    sizes_px = options.sizes_px or [config.render.size_px]
    for line in compile_avatar(avatar, base, config, sizes_px, options.target):
        print(f"compiled {line}", flush=True)
    for size_px in sizes_px if options.measure else ():
        for line in measure(avatar, base, config, size_px):
            print(line, flush=True)


def _avatars(options: argparse.Namespace) -> None:
    from engine import avatar as avatars

    there = avatars.listing()
    for one in there:
        if one.header is None:
            print(f"{one.path.stem}: {one.problem}")
        else:
            print(f"{one.path.stem}  {one.header.created}  {one.header.size_px} px  {one.path}")
    if not there:
        print(f"no avatars in {avatars.home()}; make one: understudy enrol PHOTOS... --name NAME")


def _camera(options: argparse.Namespace) -> None:
    from plugin.everyday import camera, list_webcams

    if options.list:
        list_webcams()
        return
    camera(
        options.config,
        profile=options.profile,
        avatar=options.avatar,
        webcam=options.camera,
        clip=options.clip,
        size=options.size,
        render=_background(options.background),
        device=options.device,
        preview_only=options.preview_only,
        window=options.window,
        delay_voice=options.delay_voice,
        voice=options.voice,
    )


@contextmanager
def _calling() -> Iterator[None]:
    """Around what needs the parts for calls."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name in ("aiohttp", "aiortc", "mnemonic", "segno", "spake2", "zeroconf"):
            raise ValueError("this needs the parts for calls: pip install 'understudy[call]'") from error
        raise


def _send(options: argparse.Namespace) -> None:
    from engine.avatar import own_config
    from engine.config import load

    if options.seconds is not None and not options.seconds > 0:
        raise ValueError(f"--seconds is {options.seconds:g}: take more than 0")
    with _calling():
        from plugin import calls
    calls.send(
        calls.SendOptions(options.code, options.avatar, options.drive, options.camera, options.voice, options.seconds),
        load(options.config or own_config()),
    )


def _receive(options: argparse.Namespace) -> None:
    from engine.avatar import own_config
    from engine.config import load

    if options.seconds is not None and not options.seconds > 0:
        raise ValueError(f"--seconds is {options.seconds:g}: take more than 0")
    if not 1 <= options.fps <= 120:
        raise ValueError(f"--fps is {options.fps:g}, not between 1 and 120")
    if options.port is not None and not 0 <= options.port <= 65535:
        raise ValueError(f"--port is {options.port}, not between 0 and 65535")
    with _calling():
        from plugin import calls
    calls.receive(
        calls.ReceiveOptions(
            out=options.out,
            virtual_camera=options.virtual_camera,
            null=options.null,
            size_px=options.size_px,
            fps=options.fps,
            seconds=options.seconds,
            qr=options.qr,
            port=options.port,
            once=options.once,
            silent=options.silent,
        ),
        load(options.config or own_config()),
    )


def _rendezvous(options: argparse.Namespace) -> None:
    with _calling():
        from plugin import calls
    calls.rendezvous(options.host, options.port, options.certificate, options.key, options.plain)


def _panel(options: argparse.Namespace) -> None:
    try:
        from plugin.panel.command import panel
    except ModuleNotFoundError as error:
        if error.name not in ("aiohttp", "tomlkit"):
            raise
        raise ValueError("the panel needs the parts for calls: pip install 'understudy[call]'") from error
    panel(options.config, options.profile, options.port, options.clip, options.browser, options.voice)


def _demo(options: argparse.Namespace) -> None:
    from plugin.demo import demo

    bar = _Bar()
    try:
        with _training():
            demo(options.out, options.config, bar)
    finally:
        bar.close()


def _bench(options: argparse.Namespace) -> None:
    from plugin.bench import bench

    with _training():
        bench(options.out, options.config)


def _doctor(options: argparse.Namespace) -> int:
    from plugin.doctor import doctor
    from plugin.doctor.findings import Request
    from plugin.doctor.system import System

    if not 0 < options.patience <= 1000:
        raise ValueError(f"--patience is {options.patience:g}, not between 0 and 1000")
    system, request = System(patience=options.patience), Request(options.config, options.avatar)
    return 0 if doctor(system, request, options.self_test, options.json, sys.stdout) else 1


_COMMANDS = {
    "enrol": _enrol,
    "render": _render,
    "send": _send,
    "receive": _receive,
    "rendezvous": _rendezvous,
    "avatars": _avatars,
    "compile": _compile,
    "camera": _camera,
    "panel": _panel,
    "demo": _demo,
    "bench": _bench,
    "doctor": _doctor,
}


def _stop(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 an error told in one sentence (or, of the doctor, something to mend), 130 interrupted."""
    verbose = False
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        options = _parser().parse_args(arguments)
        verbose = options.verbose
        logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
        return _COMMANDS[options.command](options) or 0
    except KeyboardInterrupt:
        print("\nstopped; nothing half-written was left", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        if verbose:
            log.exception("the trace:")
        print(f"understudy: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main())
