"""What lies on the disk: the program's own folder, the base model, avatars, settings, what enrolment fetches."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

from plugin.doctor.findings import Check, Finding, Request, green, red, yellow
from plugin.doctor.installation import install_command
from plugin.doctor.settings import read_settings, settings_path
from plugin.doctor.system import System

_FULL = {errno.ENOSPC, errno.EDQUOT}
_LITTLE_MB, _TOO_LITTLE_MB = 500, 20
_HELPERS = ("sface", "alexnet")
"""What the first enrolment fetches: identity and likeness."""


def _existing(path: Path) -> Path:
    """The nearest one above that is there: a folder, unless something else is in the way."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def home(system: System, request: Request) -> Finding:
    from engine.avatar import home as home_folder

    folder = home_folder()
    advice = "set UNDERSTUDY_HOME to a folder that you may write to, or mend this one"
    try:
        with tempfile.NamedTemporaryFile(dir=_existing(folder), prefix=".doctor-") as file:
            file.write(b"\0" * 65536)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno in _FULL:
            return red(f"the disk under {folder} is full", "free some space there", folder=folder)
        return red(f"{folder} cannot be written to: {error.strerror or error}", advice, folder=folder)
    return green(str(folder), folder=folder)


def disk(system: System, request: Request) -> Finding:
    from engine.avatar import home as home_folder

    wanted = {"avatars": home_folder(), "temporary files": Path(tempfile.gettempdir())}
    free_mb = {what: shutil.disk_usage(_existing(folder)).free / 1e6 for what, folder in wanted.items()}
    tightest = min(free_mb, key=lambda what: free_mb[what])
    told, facts = f"{free_mb[tightest] / 1000:.1f} GB free for {tightest}", {"free_mb": free_mb}
    advice = f"free some space on the disk of {_existing(wanted[tightest])}"
    if free_mb[tightest] < _TOO_LITTLE_MB:
        return red(f"{free_mb[tightest]:.0f} MB free for {tightest}", advice, **facts)
    if free_mb[tightest] < _LITTLE_MB:
        return yellow(f"{free_mb[tightest]:.0f} MB free for {tightest}", advice, **facts)
    return green(told, **facts)


def base(system: System, request: Request) -> Finding:
    from engine.base import open_base, verify

    try:
        there = open_base()
        verify(there)
    except (ValueError, OSError) as error:
        return red(_without_advice(error), install_command(system))
    return green(f"base model {there.sha256[:8]}, every file as it was shipped", sha256=there.sha256)


def helpers(system: System, request: Request) -> Finding:
    from engine.base import file_sha256
    from training.fetch import HELPERS, cache

    damaged, there = [], []
    for helper in HELPERS.values():
        if helper.file.is_file():
            (there if file_sha256(helper.file) == helper.member_sha256 else damaged).append(helper)
    facts = {"cache": cache(), "there": [one.name for one in there], "damaged": [one.name for one in damaged]}
    if damaged:
        return yellow(
            f"{damaged[0].file.name} for enrolment is damaged", f"rm '{damaged[0].file}'   (fetched again)", **facts
        )
    if not os.access(_existing(cache()), os.W_OK):
        return yellow(
            f"{cache()} cannot be written to", "set UNDERSTUDY_CACHE to a folder that you may write to", **facts
        )
    missing = [name for name in _HELPERS if name not in {one.name for one in there}]
    if missing:
        return green(f"the first enrolment fetches {' and '.join(missing)}: it needs the network once", **facts)
    return green(f"{len(there)} helper networks for enrolment, whole", **facts)


def avatars(system: System, request: Request) -> Finding:
    from engine import avatar
    from engine.base import open_base

    base_sha256 = open_base().sha256
    if request.avatar is not None:
        try:
            loaded = avatar.load(avatar.find(request.avatar), base_sha256)
        except (ValueError, OSError) as error:
            return red(_without_advice(error), "understudy avatars   (lists those there are), or enrol it again")
        return green(f"{loaded.name}: {len(loaded.references)} pictures, made {loaded.created}", name=loaded.name)
    good, bad = [], []
    for listed in avatar.listing():
        try:
            good.append(avatar.load(listed.path, base_sha256).name)
        except (ValueError, OSError) as error:
            bad.append((listed.path, _without_advice(error)))
    facts = {"good": good, "bad": dict(bad)}
    if not good and not bad:
        return yellow("there is none yet", "understudy enrol my-selfies/ --name me", **facts)
    if bad:
        path, why = bad[0]
        advice = f"understudy enrol PHOTOS... --name {path.stem}   (makes it anew)"
        told = f"{path.stem} cannot be used: {why}"
        return (yellow if good else red)(told, advice, **facts)
    return green(f"{len(good)} that can be used: {', '.join(good[:5])}{', ...' if len(good) > 5 else ''}", **facts)


def config(system: System, request: Request) -> Finding:
    from engine.config import shipped_path

    path = settings_path(request) or shipped_path()
    try:
        settings = read_settings(request)
    except (ValueError, OSError) as error:
        return red(str(error), f"mend that line of {path}, or leave it out: then the shipped value counts", path=path)
    if settings.render.image is not None and not settings.render.image.is_file():
        return red(
            f"render.image names {settings.render.image}, which is not there", f"correct that line of {path}", path=path
        )
    return green(f"{path}", path=path)


def _without_advice(error: Exception) -> str:
    return " ".join(str(error).split()).removesuffix(": install the program again").removesuffix(": enrol again")


CHECKS = (
    Check("files.home", "own folder", home),
    Check("files.disk", "free space", disk),
    Check("files.config", "settings", config),
    Check("files.base", "base model", base),
    Check("files.helpers", "helpers", helpers),
    Check("files.avatars", "avatars", avatars),
)
