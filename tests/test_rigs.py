"""The transport beside real parts: a bad network, a TURN server, an SFU, a browser. Slow; most want root.

Each rig makes its own network namespaces and says what is missing where it cannot run:
`pytest -m slow tests/test_rigs.py`, as root, with coturn, janus and chromium from the distribution.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from plugin import netns
from plugin.bench_link import call

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def needs(*programs: str) -> None:
    """Skips, with the reason, where a rig cannot be built."""
    if netns.why_not():
        pytest.skip(netns.why_not())
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"this rig takes {' and '.join(missing)}")


def sh(command: str) -> None:
    subprocess.run(command, shell=True, check=True, capture_output=True)


@contextmanager
def child(*command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended, and its pipes closed, whatever happens."""
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True, **options
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 15)
        try:
            process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.communicate()


def told(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "the other process ended early"
    return json.loads(line)


def tell(process: subprocess.Popen[str], **given: Any) -> None:
    assert process.stdin is not None
    process.stdin.write(json.dumps(given) + "\n")
    process.stdin.flush()


# --- a bad network ---------------------------------------------------------------------------------------------


def test_the_link_loses_delays_and_counts() -> None:
    needs("ping")
    with netns.LinkProcess(delay_ms=15, loss=0.2, seed=1) as link:
        command = ["ip", "netns", "exec", link.names[0], "ping", "-q", "-c", "100", "-i", "0.02", netns.ADDRESSES[1]]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        counted = link.count()
    assert counted[0]["bytes"] == 100 * 84 and counted[0]["kinds"]["other"]["packets"] == 100
    assert 20 < float(said.split("% packet loss")[0].split()[-1]) < 52, "36 % of the round trips are lost"
    assert float(said.split("=")[1].split("/")[1]) >= 30


def test_a_call_with_a_voice_stays_within_its_budget() -> None:
    needs()
    with netns.LinkProcess(delay_ms=10) as link:
        alone = call(link, 6, "--route", "audio", "--voice", "--faceless")
        both = call(link, 6, "--route", "audio", "--voice")
    assert both["route"] == "audio"
    assert both["out_kbps"]["all"] + both["back_kbps"]["all"] < 24
    assert both["out_kbps"]["all"] - alone["out_kbps"]["all"] < 5
    assert both["live_share"] > 0.8


def test_a_face_alone_stays_within_its_budget() -> None:
    needs()
    with netns.LinkProcess(delay_ms=10) as link:
        face = call(link, 6, "--route", "rtp")
    assert face["out_kbps"]["all"] + face["back_kbps"]["all"] < 12


def test_bursts_of_half_a_second_are_survived() -> None:
    needs()
    with netns.LinkProcess(delay_ms=10) as link:
        seen = call(link, 9, "--route", "audio", "--voice", burst_ms=500)
    assert seen["longest_stall_ms"] < 700
    assert seen["live_share"] > 0.6


# --- a TURN server, and nothing else between two networks ------------------------------------------------------

TURN_NETS = "usTA usTT usTB"


@pytest.mark.parametrize("protocol", ["udp", "tcp"])
def test_two_networks_meet_through_a_turn_server_alone(tmp_path: Path, protocol: str) -> None:
    needs("turnserver")
    for name in TURN_NETS.split():
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
        sh(f"ip netns add {name}; ip -n {name} link set lo up")
    try:
        for side, number in (("A", 1), ("B", 2)):
            sh(
                f"ip -n usT{side} link add e0 type veth peer name e{number} netns usTT;"
                f"ip -n usT{side} addr add 10.78.{number}.2/24 dev e0; ip -n usT{side} link set e0 up;"
                f"ip -n usTT addr add 10.78.{number}.1/24 dev e{number}; ip -n usTT link set e{number} up;"
                f"ip -n usT{side} route add default via 10.78.{number}.1"
            )
        turn = (
            "ip netns exec usTT turnserver -n --listening-ip=10.78.1.1 --listening-ip=10.78.2.1 --relay-ip=10.78.1.1 "
            "--relay-ip=10.78.2.1 --listening-port=3478 --min-port=50000 --max-port=50100 --lt-cred-mech --user=u:p "
            "--realm=test --no-tls --no-dtls --no-cli --no-multicast-peers --log-file=stdout --simple-log "
            f"--pidfile={tmp_path}/pid --userdb={tmp_path}/db"
        )
        with child(*turn.split(), stderr=subprocess.DEVNULL):
            peers = [
                ("usTA", "receive", f"turn:10.78.1.1:3478?transport={protocol}"),
                ("usTB", "send", f"turn:10.78.2.1:3478?transport={protocol}"),
            ]
            words = [[sys.executable, "-m", "tests.rig_peer", role, url] for _, role, url in peers]
            with (
                child("ip", "netns", "exec", peers[0][0], *words[0]) as receiver,
                child("ip", "netns", "exec", peers[1][0], *words[1]) as sender,
            ):
                offer = told(receiver)
                assert "typ relay" in offer["sdp"] and "typ host" not in offer["sdp"]
                tell(sender, **offer)
                tell(receiver, **told(sender))
                seen = told(receiver)
        assert seen["faces"] > 20 and seen["voice_s"] > 1 and seen["messages"] == [["note", 5000]]
    finally:
        for name in TURN_NETS.split():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


# --- a browser that knows nothing of faces ---------------------------------------------------------------------

PAGE = """<!doctype html><title>hears</title><audio id=a autoplay></audio><script>
(async () => {
  const peer = new RTCPeerConnection(), context = new AudioContext(), analyser = context.createAnalyser();
  analyser.fftSize = 8192;
  peer.ontrack = event => {
    document.getElementById("a").srcObject = event.streams[0];
    context.createMediaStreamSource(event.streams[0]).connect(analyser);
  };
  await peer.setRemoteDescription({type: "offer", sdp: await (await fetch("/offer")).text()});
  await peer.setLocalDescription(await peer.createAnswer());
  await new Promise(done => {
    if (peer.iceGatheringState === "complete") done();
    peer.onicegatheringstatechange = () => { if (peer.iceGatheringState === "complete") done(); };
  });
  await fetch("/answer", {method: "POST", body: peer.localDescription.sdp});
  const bins = new Float32Array(analyser.frequencyBinCount);
  const loudest = [];
  for (let look = 0; look < 20; look++) {
    await new Promise(done => setTimeout(done, 200));
    analyser.getFloatFrequencyData(bins);
    const best = bins.reduce((best, value, at) => value > bins[best] ? at : best, 0);
    if (bins[best] > -60) loudest.push(best * context.sampleRate / analyser.fftSize);
  }
  const told = {loudest};
  (await peer.getStats()).forEach(one => { if (one.type === "inbound-rtp") told.inbound = one; });
  await fetch("/heard", {method: "POST", body: JSON.stringify(told)});
})().catch(error => fetch("/heard", {method: "POST", body: JSON.stringify({error: String(error)})}));
</script>"""


@pytest.mark.needs_browser
@pytest.mark.parametrize("packet_ms", [20, 60])
def test_a_real_browser_hears_the_voice(tmp_path: Path, packet_ms: int) -> None:
    """Chromium, by its own decoder and jitter buffer, from packets with a face in every one."""
    aiohttp_web = pytest.importorskip("aiohttp.web", reason="this rig takes aiohttp")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("this rig takes chromium")
    from plugin.transport import Transport
    from tests.test_transport import Tone

    async def scene() -> dict[str, Any]:
        transport = Transport(voice=Tone(), packet_ms=packet_ms)
        transport.on_room = lambda: transport.send_face(os.urandom(40))
        heard: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()

        async def offer(_: Any) -> Any:
            return aiohttp_web.Response(text=await transport.offer())

        async def answer(request: Any) -> Any:
            await transport.accept(await request.text())
            return aiohttp_web.Response()

        async def report(request: Any) -> Any:
            heard.set_result(json.loads(await request.text()))
            return aiohttp_web.Response()

        async def page(_: Any) -> Any:
            return aiohttp_web.Response(text=PAGE, content_type="text/html")

        app = aiohttp_web.Application()
        app.add_routes([aiohttp_web.get("/", page), aiohttp_web.get("/offer", offer)])
        app.add_routes([aiohttp_web.post("/answer", answer), aiohttp_web.post("/heard", report)])
        runner = aiohttp_web.AppRunner(app)
        await runner.setup()
        site = aiohttp_web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--autoplay-policy=no-user-gesture-required"]
        flags += ["--disable-features=WebRtcHideLocalIpsWithMdns", f"--user-data-dir={tmp_path}"]
        command = (str(chromium), *flags, f"http://127.0.0.1:{port}/")
        with child(*command, stderr=subprocess.DEVNULL):
            seen = await asyncio.wait_for(heard, 60)
        seen["sent"] = transport.stats()
        await transport.close()
        await runner.cleanup()
        return seen

    seen = asyncio.run(scene())
    print(json.dumps(seen, indent=1))
    assert "error" not in seen
    assert seen["sent"]["face"]["out_packets"] > 30
    inbound = seen["inbound"]
    assert inbound["packetsReceived"] > 30 and inbound["totalAudioEnergy"] > 0.01
    assert inbound["concealedSamples"] - inbound["silentConcealedSamples"] < 0.1 * inbound["totalSamplesReceived"]
    assert len(seen["loudest"]) > 5
    assert sum(abs(hertz - 440) < 15 for hertz in seen["loudest"]) > 0.8 * len(seen["loudest"])


# --- an SFU: one sender, three receivers -----------------------------------------------------------------------

JANUS = {
    "janus.transport.http.jcfg": 'general: { http = true, port = 8088, interface = "lo", base_path = "/janus", '
    "https = false }\nadmin: { admin_http = false, admin_https = false }\n",
    "janus.jcfg": "general: { session_timeout = 60 }\nmedia: { ipv6 = false }\nnat: { }\n"
    'plugins: { disable = "libjanus_sip.so,libjanus_nosip.so,libjanus_lua.so,libjanus_duktape.so,'
    'libjanus_audiobridge.so,libjanus_voicemail.so,libjanus_recordplay.so,libjanus_streaming.so" }\n'
    'transports: { disable = "libjanus_mqtt.so,libjanus_nanomsg.so,libjanus_rabbitmq.so,libjanus_pfunix.so,'
    'libjanus_websockets.so" }\n',
    "janus.plugin.videoroom.jcfg": 'room-1: { description = "t", secret = "s", publishers = 6, audiocodec = "opus" }\n',
}


class Handle:
    """One handle on Janus's video room, over its HTTP interface."""

    def __init__(self, http: Any) -> None:
        self._http, self._url = http, "http://127.0.0.1:8088/janus"
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def _post(self, path: str, **given: Any) -> dict[str, Any]:
        async with self._http.post(self._url + path, json={"transaction": uuid.uuid4().hex, **given}) as response:
            return await response.json()

    async def attach(self) -> Handle:
        self._session = (await self._post("", janus="create"))["data"]["id"]
        attached = await self._post(f"/{self._session}", janus="attach", plugin="janus.plugin.videoroom")
        self._handle = attached["data"]["id"]
        self.polling = asyncio.create_task(self._poll())
        return self

    async def _poll(self) -> None:
        while True:
            async with self._http.get(f"{self._url}/{self._session}?maxev=1") as response:
                event = await response.json()
            if event.get("janus") == "event":
                await self._events.put(event)

    async def ask(self, body: dict[str, Any], kind: str = "", sdp: str = "") -> dict[str, Any]:
        jsep = {"jsep": {"type": kind, "sdp": sdp}} if sdp else {}
        answer = await self._post(f"/{self._session}/{self._handle}", janus="message", body=body, **jsep)
        return answer if answer["janus"] == "success" else await asyncio.wait_for(self._events.get(), 15)


async def fan_out() -> dict[str, Any]:
    """One sender's voice and face through the SFU to three receivers; what each of them got."""
    import aiohttp

    from plugin.transport import Transport
    from tests.test_transport import Tone

    async with aiohttp.ClientSession() as http:
        for _ in range(100):
            try:
                async with http.get("http://127.0.0.1:8088/janus/info"):
                    break
            except aiohttp.ClientError:
                await asyncio.sleep(0.1)
        publisher = await Handle(http).attach()
        await publisher.ask({"request": "join", "ptype": "publisher", "room": 1, "id": 7})
        sender = Transport(voice=Tone())
        event = await publisher.ask({"request": "publish"}, "offer", await sender.offer())
        await sender.accept(event["jsep"]["sdp"])
        await sender.connected()
        handles, receivers, faces = [publisher], [], [set() for _ in range(3)]
        for number in range(3):
            handle = await Handle(http).attach()
            handles.append(handle)
            subscribe = {"request": "join", "ptype": "subscriber", "room": 1, "streams": [{"feed": 7}]}
            event = await handle.ask(subscribe)
            receiver = Transport(receive_only=True)
            receivers.append(receiver)
            receiver.on_face = faces[number].add
            answer = await receiver.answer(event["jsep"]["sdp"])
            await handle.ask({"request": "start", "room": 1}, "answer", answer)
        await asyncio.gather(*(receiver.connected() for receiver in receivers))
        sent: list[bytes] = []

        def room() -> None:
            sent.append(len(sent).to_bytes(4, "big") + os.urandom(36))
            sender.send_face(sent[-1])

        sender.on_room = room
        await asyncio.sleep(5)
        sender.on_room = None
        await asyncio.sleep(0.5)
        voices = [receiver.stats()["voice"]["in_packets"] for receiver in receivers]
        for handle in handles:
            handle.polling.cancel()
        await asyncio.gather(sender.close(), *(receiver.close() for receiver in receivers))
        return {"sent": len(sent), "got": [len(some & set(sent)) for some in faces], "voices": voices}


def test_an_sfu_fans_out_to_three_receivers(tmp_path: Path) -> None:
    """Janus passes RTP on as it is: the face needs no datachannel and no knowledge of it there."""
    needs("janus")
    shutil.copytree("/etc/janus", tmp_path / "janus")
    for name, text in JANUS.items():
        (tmp_path / "janus" / name).write_text(text)
    command = ("janus", "-F", str(tmp_path / "janus"), "-C", str(tmp_path / "janus/janus.jcfg"))
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            told = asyncio.run(asyncio.wait_for(fan_out(), 60))
        finally:
            process.terminate()
            process.wait(10)
    print(told)
    assert told["sent"] > 50
    assert min(told["got"]) >= told["sent"] - 2
    assert min(told["voices"]) > 50
