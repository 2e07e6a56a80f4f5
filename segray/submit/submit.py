"""`segray submit`: cluster up, sweep started on its head, followed, results fetched, cluster down.

The sweep is a job of Ray's on the head, and so needs nothing of the machine that started it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml
from platformdirs import user_state_path

from segray.config import Interrupted, RequestError, SweepConfig, WorkError, dump, read_sweep
from segray.config.load import read_unchecked
from segray.data.remote import is_remote
from segray.submit import aws, jobs
from segray.submit.cluster_file import (
    LEFT,
    NETRC,
    TOKEN,
    Cluster,
    fill,
    own_workers,
    read_cluster,
    stop_workers,
    write_cluster,
    write_private,
)
from segray.submit.credentials import write_netrc, write_token
from segray.submit.head import Head, NoAnswer
from segray.tracking.client import base_url

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")  # Ray's words for a job that is over
_BEGIN, _END = "segray: the sweep's output begins", "segray: the sweep ended with "
_RAYS = "Running entrypoint for job"  # what Ray says around the output, and at times within it


@dataclass(frozen=True)
class Job:
    """Sweeps that were started together on a cluster, as segray.submit.jobs tells it."""

    id: str
    runs: tuple[str, ...]  # their folders
    status: str
    exit_code: int | None

    @property
    def at_work(self) -> bool:
        return self.status not in ENDED


def submit(
    cluster_file: Path,
    sweeps: Sequence[str],
    overrides: Sequence[str],
    *,
    say: Callable[[str], None],
    confirm: Callable[[str], bool],
    network: str | None = None,
    follow: bool = True,
    down: bool = False,
    again: str = "the same command",
) -> int:
    """Run sweep files on a cluster, one after the other; the sweep's exit code.

    What can be checked here is checked before anything starts. Where the sweep is at work already,
    it is only followed; one that was cut off goes on from its records. With `follow`, what it says
    is said here, its results are fetched at its end, and with `down` the machines are ended then.
    `network` is what may reach the head, by default the caller's address; `again` is the command
    that follows it once more, as messages name it.

    Raises RequestError for what is wrong with a file or a place, WorkError where the cluster does
    not come up or is lost from sight, Interrupted for Ctrl-C, after which the sweep goes on.
    """
    if down and not follow:
        raise RequestError(
            "--down ends the machines once the sweep has ended, so somebody must wait for it: "
            "leave --no-follow away, and end them with `ray down` where you did not wait"
        )
    cluster = read_cluster(cluster_file)
    configs = [_for_cluster(file, overrides) for file in sweeps]
    runs = tuple(_run(config) for config in configs)
    head = _head(cluster, say)
    there = _jobs(head) if head.file.is_file() else []
    job = next((one for one in reversed(there) if one.runs == runs), None)
    if job is None or not job.at_work:
        if not confirm(_question(cluster)):
            raise RequestError("nothing was started")
        _fill_in(cluster, head, network)
        if others := [one for one in there if one.at_work]:
            say(
                f"Another sweep is at work on the cluster ({others[0].id}), so it stays as it is: "
                "what has changed here since, in segray or the cluster's file, comes after that"
            )
        else:
            _bring_up(cluster, head)
        job = _start(head, configs)
        say(
            f"The sweep is at work on the cluster, as job {job.id}, and needs this machine no more."
        )
    else:
        say(f"The sweep is at work on the cluster already, as job {job.id}.")
    here = shlex.quote(str(head.file))
    say(f"The cluster's file, for `ray attach`, `ray exec` and `ray down`: {here}")
    if not follow:
        say(f"To follow it: {again}")
        return 0
    code = _follow(head, job, again)
    fetched = _fetch(head, configs)
    beside = [one.id for one in _jobs(head) if one.at_work] if down else []
    if not down:
        say(f"The cluster is still up; to end it: {_ending(cluster, here)}")
    elif beside:
        say(f"The cluster stays, as another sweep is at work there: {', '.join(beside)}")
    elif not fetched:
        end = _ending(cluster, here)
        say(f"The cluster stays, as the results may be there alone; to end it: {end}")
    else:
        _end(cluster, head)
    return code


def show_status(cluster_file: Path, runs: Sequence[str], say: Callable[[str], None]) -> int:
    """Ask the head what runs there have done, by `segray status`; its exit code.

    Raises RequestError where no `segray submit` from here has used this cluster, NoAnswer where the
    head is not there.
    """
    head = _head(read_cluster(cluster_file), say)
    if not head.file.is_file():
        raise RequestError(
            f"no `segray submit {cluster_file}` was run here: expected what it leaves, {head.file}"
        )
    code, _ = head.run(f"{_TOKEN_MODE} python -m segray status {shlex.join(runs)}", say)
    return code


_TOKEN_MODE = (
    "RAY_AUTH_MODE=token"  # said each time: not every machine's set-up leaves it in .bashrc
)


def _head(cluster: Cluster, say: Callable[[str], None]) -> Head:
    """Where a cluster's filled-in file, token and log are kept: no cache, which may be deleted."""
    folder = user_state_path("segray") / "clusters" / str(cluster["cluster_name"])
    return Head(folder / "cluster.yaml", folder / "ray.log", say)


def _for_cluster(file: str, overrides: Sequence[str]) -> SweepConfig:
    """A sweep file's config; RequestError for places that other machines cannot share.

    Variables and `~` are expanded here and now: nodes know nothing of the caller's environment.
    """
    config = read_sweep(file, overrides).config
    raw = read_unchecked(file)
    written = {
        "storage": raw.get("storage", SweepConfig.model_fields["storage"].default),
        "data.root": raw.get("data", {}).get("root"),
    }
    for override in overrides:  # which `read_sweep` has found to be right
        key, _, value = override.partition("=")
        if key == "data":
            key, value = "data.root", yaml.safe_load(value).get("root")
        if key in written:
            written[key] = value
    fix = {
        "storage": "storage=s3://BUCKET/runs, or a folder of a shared file system, as in "
        "storage=/mnt/shared/runs",
        "data.root": "data.root=s3://BUCKET/data, or a folder that every node has, as in "
        "data.root=/mnt/shared/data",
    }
    for key, value in written.items():
        if isinstance(value, str) and not _is_shared(value):
            raise RequestError(
                f"{file}: {key}: on a cluster it must be one place for all nodes, and {value} "
                f"is a place on this machine alone: give {fix[key]}"
            )
    return config


def _is_shared(written: str) -> bool:
    place = os.path.expandvars(written)  # `~` stays: this user's home is nobody else's
    return is_remote(place) or Path(place).is_absolute()


def _run(config: SweepConfig) -> str:
    return f"{config.storage.rstrip('/')}/{config.name}"


def _jobs(head: Head) -> list[Job]:
    """What was started on the head, oldest first; nothing where it, or Ray on it, is not there."""
    try:
        code, lines = head.run(f"{_TOKEN_MODE} python -m segray.submit.jobs")
    except NoAnswer:
        return []
    if code:
        return []
    return [
        Job(job["id"], tuple(job["runs"]), job["status"], job["exit_code"])
        for job in json.loads(lines[-1])
    ]


def _question(cluster: Cluster) -> str:
    provider = cluster["provider"]["type"]
    if provider == "local":
        machines = [cluster["provider"].get("head_ip"), *cluster["provider"].get("worker_ips", [])]
        return f"Ray will be started on {', '.join(map(str, machines))}. Go on?"
    return (
        f"This starts machines on {provider}, which cost money until `ray down`: a head now, "
        f"and up to {cluster.get('max_workers', 'some')} workers as trials ask for them. Go on?"
    )


def _fill_in(cluster: Cluster, head: Head, network: str | None) -> None:
    folder = head.file.parent
    values = {TOKEN: str(write_token(folder)), NETRC: str(write_netrc(folder))}
    if cluster["provider"]["type"] == "aws":
        allowed = aws.callers_network(network)
        values |= aws.prepare(cluster, allowed)
        head.say(f"Port 22 of the cluster is open to {allowed} alone.")
    elif network is not None:
        raise RequestError(
            f"--from {network}: only on AWS does segray say who may reach the head; here the "
            "machines' own firewall does"
        )
    write_cluster(fill(cluster, values), head.file)


def _bring_up(cluster: Cluster, head: Head) -> None:
    """The head, new or brought up to date; what runs on it already goes on."""
    head.say(f"Bringing up the cluster {cluster['cluster_name']}; Ray's output is in {head.log}")
    head.up(restart=False)
    if not _answers(head):  # a machine that was there, and on which Ray has ended
        head.up(restart=True)
        if not _answers(head):
            raise WorkError(
                "Ray was started on the head, but its dashboard, which starts sweeps, does not "
                f"answer there: see {head.log}, and /tmp/ray/session_latest/logs on the head"
            )
    if cluster["provider"]["type"] != "aws":
        return
    try:
        if aws.let_head_pass_its_role(cluster):
            head.say(
                f"The role {aws.RAYS_ROLE} may now be handed on to workers; they use S3 by it."
            )
    except RequestError as error:
        end = shlex.join(["ray", "down", str(head.file)])
        raise RequestError(f"{error}\nThe head is up, and costs; to end it: {end}") from None


def _answers(head: Head) -> bool:
    """Whether Ray on the head takes jobs; it is given half a minute for it."""
    ask = f"{_TOKEN_MODE} python -m segray.submit.jobs > /dev/null"
    code, _ = head.run(f"for i in $(seq 10); do {ask} && exit 0; sleep 3; done; exit 1")
    return code == 0


def _end(cluster: Cluster, head: Head) -> None:
    """End the machines, or Ray on those that are one's own; says on which it may still run."""
    head.say("Ending the cluster's machines.")
    if own_workers(cluster):
        _, lines = head.run(stop_workers(cluster))
        for address in re.findall(rf"{LEFT}(\S+)", "\n".join(lines)):
            head.say(f"Ray may still run on {address} (see {head.log}): `ray stop` there ends it")
    head.down()


def _ending(cluster: Cluster, here: str) -> str:
    """What a person does to end the cluster of the filled-in file `here`."""
    workers = ", ".join(own_workers(cluster))
    also = f", and then `ray stop` on {workers}, which it does not look after" if workers else ""
    return f"ray down {here}{also}"


def _start(head: Head, configs: Sequence[SweepConfig]) -> Job:
    files = []
    for config in configs:
        file = head.file.parent / "sweeps" / f"{config.name}.yaml"
        write_private(file, dump(config.model_dump(mode="json")))
        files.append(f"~/.segray/sweeps/{file.name}")
    head.run("mkdir -p ~/.segray/sweeps")
    for config, there in zip(configs, files, strict=True):
        head.push(head.file.parent / "sweeps" / f"{config.name}.yaml", there)
    now = datetime.now(UTC)
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", "-".join(config.name for config in configs))
    runs = tuple(_run(config) for config in configs)
    job = Job(f"{name}-{now:%Y%m%d-%H%M%S}", runs, "PENDING", None)
    # --resume begins a sweep that is not there, so what was cut off before goes on.
    sweep = f"WANDB_BASE_URL={shlex.quote(base_url())} python -m segray.sweep {' '.join(files)}"
    script = f'echo "{_BEGIN}"; {sweep} --resume; code=$?; echo "{_END}$code"; exit $code'
    code, lines = head.run(
        f"{_TOKEN_MODE} ray job submit --address {jobs.DASHBOARD} --no-wait "
        f"--submission-id {job.id} --metadata-json {shlex.quote(jobs.metadata(runs))} "
        f"-- bash -c {shlex.quote(script)}"
    )
    if code:
        said = "\n".join(f"  {line}" for line in lines[-5:])
        raise WorkError(f"Ray did not take the sweep:\n{said}\nAll of its output is in {head.log}")
    return job


def _follow(head: Head, job: Job, again: str) -> int:
    """Say what the sweep says until it ends; its exit code."""
    within, code = False, None

    def each(line: str) -> None:
        nonlocal within, code
        if line == _BEGIN:
            within = code is None  # of one that failed Ray shows the end once more
        elif within and (found := re.fullmatch(rf"{_END}(\d+)", line)):
            within, code = False, int(found[1])
        elif within and not line.startswith(_RAYS):
            head.say(line)

    follow = f"{_TOKEN_MODE} ray job logs --address {jobs.DASHBOARD} -f {job.id}"
    stop = f"{_TOKEN_MODE} ray job stop --address {jobs.DASHBOARD} {job.id}"
    try:
        with contextlib.suppress(NoAnswer):
            head.run(follow, each)
        if code is not None:
            return code
        last = next((one for one in _jobs(head) if one.id == job.id), None)
    except KeyboardInterrupt:
        raise Interrupted(
            f"no longer following; the sweep goes on. To follow it again: {again}\nTo stop it: "
            f"ray exec {shlex.quote(str(head.file))} {shlex.quote(stop)}"
        ) from None
    if last is None or last.at_work:
        raise WorkError(
            f"the head was lost from sight; the sweep goes on as long as it lives. To follow it "
            f"again, or to go on where it was cut off: {again}"
        )
    head.say(f"Ray says of the sweep: {last.status.lower()}")
    return last.exit_code or 1


def _fetch(head: Head, configs: Sequence[SweepConfig]) -> bool:
    """Copy the results here, or say where they are; whether none is on the head alone."""
    all_safe = True
    for config in configs:
        there, here = _run(config), Path("runs") / config.name
        if is_remote(there):
            head.say(f"The results: {there}    (segray status {there})")
        elif _is_another(head, there, here):
            all_safe = False
            head.say(
                f"{here} is another run's folder, so nothing was fetched into it. The results are "
                f"at {there} on the head; to fetch them:\n  "
                + shlex.join(["ray", "rsync-down", str(head.file), f"{there}/", "FOLDER/"])
            )
        elif head.run(f"test -d {shlex.quote(there)}")[0]:
            head.say(f"It left no run folder at {there}.")
        else:
            try:
                head.fetch(there, here)
                head.say(f"The results: {here}")
            except WorkError as error:  # the sweep's own end counts for more
                all_safe = False
                head.say(str(error))
    return all_safe


def _is_another(head: Head, there: str, here: Path) -> bool:
    """Whether the folder here is there, and its sweep is not the one on the head."""
    if not here.exists():
        return False
    _, theirs = head.run(f"grep '^# id: ' {shlex.quote(there)}/sweep.yaml")
    try:
        ours = (here / "sweep.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return True
    return not theirs or theirs[-1] not in ours.splitlines()
