"""A peer of the rigs: `python -m tests.rig_peer receive|send TURN-URL`; descriptions come and go as JSON lines."""

from __future__ import annotations

import asyncio
import json
import sys

from plugin.bench_link import Babble
from plugin.transport import IceServers, Transport


async def _line() -> dict[str, str]:
    return json.loads(await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline))


async def main() -> None:
    role, url = sys.argv[1:]
    ice = IceServers((url,), "u", "p", relay_only=True)
    transport = Transport(ice, voice=Babble() if role == "send" else None, receive_only=role == "receive")
    if role == "send":
        transport.on_room = lambda: transport.send_face(bytes(range(40)))
        print(json.dumps({"sdp": await transport.answer((await _line())["sdp"])}), flush=True)
        await transport.connected()
        await transport.send_message("note", bytes(5000))
        await asyncio.sleep(4)
    else:
        faces: list[bytes] = []
        messages: list[tuple[str, int]] = []
        transport.on_face = faces.append
        transport.on_message = lambda kind, payload: messages.append((kind, len(payload)))
        print(json.dumps({"sdp": await transport.offer()}), flush=True)
        await transport.accept((await _line())["sdp"])
        await transport.connected()
        samples, end_s = 0, asyncio.get_running_loop().time() + 3
        while asyncio.get_running_loop().time() < end_s and transport.voice_received is not None:
            samples += (await asyncio.wait_for(transport.voice_received.recv(), 5)).samples
        told = {"faces": len(faces), "voice_s": samples / 48000, "messages": messages, "stats": transport.stats()}
        print(json.dumps(told), flush=True)
    await transport.close()


if __name__ == "__main__":
    asyncio.run(main())
