"""`understudy doctor`: what is wrong with this machine, and what to type next.

A check is a function of a `System` (this machine, replaceable in tests) and a `Request`; it returns a `Finding`. It may
fail: that is a finding too. Only the standard library is needed to start, for the packages may be what is broken.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import TextIO

from plugin.doctor import around, cameras, files, installation, machine, selftest, virtual
from plugin.doctor.findings import Check, Finding, Request, Result, Writer, as_json, worst, yellow
from plugin.doctor.settings import UnreadableError
from plugin.doctor.system import System

log = logging.getLogger(__name__)

CHECKS: tuple[Check, ...] = (
    *installation.CHECKS,
    Check("program.load", "libraries", selftest.loads, 35.0),
    *machine.CHECKS,
    Check("machine.card", "graphics card", selftest.card, 25.0),
    *files.CHECKS,
    *cameras.CHECKS,
    *virtual.CHECKS,
    *around.CHECKS,
)


def doctor(system: System, request: Request, self_test: bool, json: bool, stream: TextIO) -> bool:
    """Examine this machine and tell; whether nothing is red."""
    checks = (*CHECKS, *selftest.SelfTest().checks()) if self_test else CHECKS
    began = time.perf_counter()
    results: list[Result] = []
    writer = None if json else Writer(stream)
    for result in examine(system, request, checks):
        results.append(result)
        if writer is not None:
            writer.write(result)
    spent_s = time.perf_counter() - began
    if writer is not None:
        writer.close(results, spent_s)
    else:
        about = {"platform": system.platform, "machine": system.machine, "release": system.release}
        print(as_json(results, {**about, "spent_s": round(spent_s, 1)}), file=stream)
    return worst(results) != "red"


def examine(system: System, request: Request, checks: Sequence[Check] = CHECKS) -> Iterator[Result]:
    """Run them one after another; those that mean nothing on this machine are left out. Raises nothing."""
    for check in checks:
        began = time.perf_counter()
        finding = _guarded(check, system, request)
        if finding is not None:
            yield Result(check.id, check.title, finding, (time.perf_counter() - began) * 1e3)


def _guarded(check: Check, system: System, request: Request) -> Finding | None:
    """In a thread of its own, for a driver that hangs must not hang the doctor."""
    answers: queue.SimpleQueue[Finding | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(check.examine(system, request))
        except UnreadableError:
            answers.put(yellow("not looked at: it depends on the settings", "mend the settings first (files.config)"))
        except Exception as error:  # whatever it is, it is told, and the other checks go on
            log.info("the check %s:", check.id, exc_info=True)
            told = " ".join(f"{type(error).__name__}: {error}".split())
            answers.put(
                yellow(f"this check itself failed ({told})", "report this line, with understudy --verbose doctor")
            )

    threading.Thread(target=ask, name=f"doctor {check.id}", daemon=True).start()
    try:
        return answers.get(timeout=check.limit_s * system.patience)
    except queue.Empty:
        return yellow(
            f"no answer within {check.limit_s * system.patience:.0f} s",
            "understudy doctor --patience 10   (on a slow machine)",
        )
