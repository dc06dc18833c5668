"""Work that kills its process. By itself here because the processes that do it import this file, and quickly."""

from __future__ import annotations

import os

from training.prepare import Job, Outcome


def poison(job: Job) -> Outcome:
    """A video named 1 takes the whole process down; the others are fine."""
    if job.video.stem == "1":
        os._exit(11)
    return Outcome(str(job.video), 1, 6)
