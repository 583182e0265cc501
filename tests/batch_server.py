"""AWS Batch whose jobs run: moto's control plane, with the command of each job started as a process of this machine.

As on Batch, a job that is terminated is asked with SIGTERM and killed when it does not end; a killed job has failed.
Run as ``python batch_server.py PORT``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

from moto.batch.models import Job
from moto.batch_simple.models import BatchSimpleBackend
from moto.core.config import default_user_config
from moto.server import main

TERMINATE_S = 5.0  # Batch gives 30


def run(backend: BatchSimpleBackend, include_start_attempt: bool, job: Job) -> None:
    """Instead of marking the job as finished."""
    backend.backend._jobs[job.job_id] = job
    if "size" in job.array_properties:
        return  # its children run
    job.job_started_at = datetime.now()
    job.log_stream_name = job._stream_name
    job._start_attempt()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    job.process = subprocess.Popen(  # type: ignore[attr-defined]
        job._get_container_property("command", []),
        env={**os.environ, "PATH": path, "AWS_BATCH_JOB_ID": job.job_id},
        stdin=subprocess.DEVNULL,
    )
    threading.Thread(target=follow, args=(job,), daemon=True).start()


def follow(job: Any) -> None:
    """Until the process ends."""
    job.exit_code = job.process.wait()
    job._mark_stopped(success=job.exit_code == 0)


def terminate(job: Any, reason: str) -> None:
    """Ask, then kill."""
    job.job_stopped_reason = reason
    job.process.send_signal(signal.SIGTERM)

    def kill() -> None:
        try:
            job.process.wait(TERMINATE_S)
        except subprocess.TimeoutExpired:
            job.process.kill()

    threading.Thread(target=kill, daemon=True).start()


if __name__ == "__main__":
    default_user_config["batch"] = {"use_docker": False}
    BatchSimpleBackend._mark_job_as_finished = run  # type: ignore[assignment, method-assign]
    Job.terminate = terminate  # type: ignore[assignment, method-assign]
    main(["-H", "127.0.0.1", "-p", sys.argv[1]])
