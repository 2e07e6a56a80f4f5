"""`segray submit`: cluster up, sweep started on its head, followed, results fetched, cluster down.

The sweep is a job of Ray's on the head, and so needs nothing of the machine that started it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
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
    GROUP,
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
from segray.submit.head import Head, NoAnswer, NoHead
from segray.tracking.client import base_url

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")  # Ray's words for a job that is over
_BEGIN, _END = "segray: the sweep's output begins", "segray: the sweep ended with "
WORKERS_S, WORKERS_POLL_S = 180.0, 3.0  # own machines' Rays are waited for, and asked for
# Where S3 is, for a job; no secret among them.
_HANDED_ON = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
_RAYS = "Running entrypoint for job"  # what Ray says around the output, and at times within it


@dataclass(frozen=True)
class Job:
    """Sweeps that were started together on a cluster, as segray.submit.jobs tells it."""

    id: str
    runs: tuple[str, ...]  # their folders
    status: str
    exit_code: int | None
    settings: str = ""  # a digest of the configs that it was started with

    @property
    def at_work(self) -> bool:
        return self.status not in ENDED

    @property
    def code(self) -> int:
        """The exit code of one that is over, where Ray may know none."""
        if self.exit_code is None:
            return 0 if self.status == "SUCCEEDED" else 1
        return self.exit_code

    def gave_the_results_of(self, settings: str) -> bool:
        """Whether it has ended well, and nothing was changed since in what was asked for."""
        return self.status == "SUCCEEDED" and self.code == 0 and self.settings == settings


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
    it is only followed; where it has ended well, its results are only fetched; one that was cut off
    goes on from its records. With `follow`, what it says is said here, its results are fetched at
    its end, and with `down` the machines are ended then. `network` is what may reach the head, by
    default the caller's address; `again` is the command that follows it once more, as messages name
    it.

    Raises RequestError for what is wrong with a file or a place, WorkError where the cluster does
    not come up, does not answer or is lost from sight, Interrupted for Ctrl-C, after which the
    sweep goes on.
    """
    if down and not follow:
        raise RequestError(
            "--down ends the machines once the sweep has ended, so somebody must wait for it: "
            "leave --no-follow away, and end them with `ray down` where you did not wait"
        )
    cluster = read_cluster(cluster_file)
    configs = [_for_cluster(file, overrides, cluster) for file in sweeps]
    runs = tuple(_run(config) for config in configs)
    head = _head(cluster, cluster_file, say)
    here = shlex.quote(str(head.file))
    try:
        there = _seen_before(cluster, head)
    except NoAnswer as error:
        raise WorkError(
            f"{error}\nSo it is not known whether a sweep is at work there, and nothing was "
            f"changed. Once it answers, go on with: {again}\nIf it never will, this ends its "
            f"machines, and with them every sweep there: ray down {here}"
        ) from None
    job = next((one for one in reversed(there) if one.runs == runs), None)
    over = job is not None and job.gave_the_results_of(_settings(configs))
    if job is not None and over:
        say(
            f"The sweep has ended well already, as job {job.id}, so its results are only fetched. "
            f"To run it again, give it another name, as in name={configs[0].name}-2"
        )
    elif job is None or not job.at_work:
        _check_token(cluster, cluster_file)
        values = _from_the_cloud(cluster, head, network)  # refuses before anybody is asked
        if not confirm(_question(cluster)):
            raise RequestError("nothing was started")
        _fill_in(cluster, head, values)
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
    say(f"The cluster's file, for `ray attach`, `ray exec` and `ray down`: {here}")
    if not follow and not over:
        say(f"To follow it: {again}")
        return 0
    code = 0 if over else _follow(head, job, again)
    fetched = _fetch(head, configs)
    if not down:
        say(f"The cluster is still up; to end it: {_ending(cluster, here)}")
        return code
    try:
        beside = [one.id for one in _jobs(head) if one.at_work]
    except NoAnswer as error:
        say(
            f"{error}\nSo it is not known whether another sweep is at work there, and the cluster "
            f"stays; to end it: {_ending(cluster, here)}"
        )
        return code
    if beside:
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
    head = _head(read_cluster(cluster_file), cluster_file, say)
    if not head.file.is_file():
        raise RequestError(
            f"no `segray submit {cluster_file}` was run here: expected what it leaves, {head.file}"
        )
    code, _ = head.run(f"{_TOKEN_MODE} python -m segray status {shlex.join(runs)}", say)
    return code


_TOKEN_MODE = (
    "RAY_AUTH_MODE=token"  # said each time: not every machine's set-up leaves it in .bashrc
)


def _head(cluster: Cluster, file: Path, say: Callable[[str], None]) -> Head:
    """Where a cluster's filled-in file, token and log are kept: no cache, which may be deleted.

    Raises RequestError where another cluster's are kept there, whose machines only they can end.
    """
    name = cluster["cluster_name"]
    folder = user_state_path("segray") / "clusters" / str(name)
    kept = folder / "cluster.yaml"
    if kept.is_file():
        provider, known = cluster["provider"], read_cluster(kept)["provider"]
        for key in ("type", "region"):
            if provider.get(key) != known.get(key):
                raise RequestError(
                    f"{file}: cluster_name: {name} is the name of another cluster, whose "
                    f"provider.{key} is {known.get(key)}, not {provider.get(key)}: give this one "
                    f"another cluster_name. Or, where the other is no longer wanted: "
                    f"ray down {shlex.quote(str(kept))} && rm {shlex.quote(str(kept))}"
                )
    return Head(kept, folder / "ray.log", say)


def _for_cluster(file: str, overrides: Sequence[str], cluster: Cluster) -> SweepConfig:
    """A sweep file's config; RequestError for places that other machines cannot share.

    Variables and `~` are expanded here and now: nodes know nothing of the caller's environment.
    """
    config = read_sweep(file, overrides).config
    raw = read_unchecked(file)
    written = {
        "storage": raw.get("storage", SweepConfig.model_fields["storage"].default),
        "data.root": raw.get("data", {}).get("root"),
        "model.pretrained": raw.get("model", {}).get("pretrained"),
    }
    for override in overrides:  # which `read_sweep` has found to be right
        key, _, value = override.partition("=")
        if key in ("data", "model"):
            leaf = "root" if key == "data" else "pretrained"
            key, value = f"{key}.{leaf}", yaml.safe_load(value).get(leaf)
        if key in written:
            written[key] = value
    there = "a folder that every node has"
    if cluster["provider"]["type"] != "local":
        there += ", which the cluster's file mounts"
    fix = {
        "storage": f"storage=s3://BUCKET/runs, or {there} and shares, as in "
        "storage=/mnt/shared/runs",
        "data.root": f"data.root=s3://BUCKET/data, or {there}, as in data.root=/mnt/shared/data",
        "model.pretrained": f"model.pretrained=OWNER/NAME of the model hub, or {there}, as in "
        "model.pretrained=/mnt/shared/weights",
    }
    for key, value in written.items():
        if not isinstance(value, str) or _is_shared(value, cluster):
            continue
        if key != "model.pretrained" or _is_folder(value):  # or else it is a name of the hub
            raise RequestError(
                f"{file}: {key}: on a cluster it must be one place for all nodes, and {value} "
                f"is a place on this machine alone: give {fix[key]}"
            )
    return config


def _is_shared(written: str, cluster: Cluster) -> bool:
    """Whether a place is one that the nodes have too, as far as that is known here.

    Of one's own machines any absolute path may be; new machines of a cloud have what the cluster's
    file brings there, whose commands then name the path, or a folder above it.
    """
    place = os.path.expandvars(written)  # `~` stays: this user's home is nobody else's
    if is_remote(place) or not Path(place).is_absolute():
        return is_remote(place)
    if cluster["provider"]["type"] == "local":
        return True
    # Not the paths on this machine: of what is mounted from here, and of the key.
    far = {key: value for key, value in cluster.items() if key not in ("auth", "file_mounts")}
    said = yaml.safe_dump([far, list(cluster["file_mounts"])], width=10_000)
    above = [str(folder) for folder in (Path(place), *Path(place).parents)]
    return any(folder in said for folder in above if folder.count("/") > 1)


def _is_folder(written: str) -> bool:
    return Path(os.path.expandvars(written)).expanduser().is_dir()


def _run(config: SweepConfig) -> str:
    return f"{config.storage.rstrip('/')}/{config.name}"


def _settings(configs: Sequence[SweepConfig]) -> str:
    """A digest of all that the sweeps are asked for."""
    written = "".join(dump(config.model_dump(mode="json")) for config in configs)
    return hashlib.sha256(written.encode()).hexdigest()[:16]


_ASK = f"{_TOKEN_MODE} python -m segray.submit.jobs"
# The process that a head's Ray is made around, of this user; one that is only still listed (a
# zombie) has no file that it runs. Asked of /proc, as segray may not be installed there yet.
_RAY_RUNS = (
    "for p in /proc/[0-9]*; do [ -O $p ] && case $(readlink $p/exe) in */gcs_server*) exit 0;; "
    "esac; done; exit 1"
)


def _jobs(head: Head) -> list[Job]:
    """What was started on the head, oldest first; nothing where it, or Ray on it, is not there.

    Raises NoAnswer where that cannot be known just now.
    """
    try:
        code, lines = head.run(_ASK)
        if code and not _ray_runs(head):
            return []
    except NoHead:
        return []
    if code:
        raise NoAnswer(
            f"Ray runs on the head of {head.file}, but does not say which sweeps are at work; what "
            f"it said is in {head.log}"
        )
    return [
        # A head that was set up by an earlier segray does not tell the settings.
        Job(job["id"], tuple(job["runs"]), job["status"], job["exit_code"], job.get("settings", ""))
        for job in json.loads(lines[-1])
    ]


def _ray_runs(head: Head) -> bool:
    return head.run(_RAY_RUNS)[0] == 0


def _seen_before(cluster: Cluster, head: Head) -> list[Job]:
    """`_jobs` of a cluster that was used from here; nothing of any other."""
    if not head.file.is_file():
        return []
    noted, kept = _notes(cluster, head)
    if kept.is_file() and not noted.exists():
        noted.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(kept, noted)
    return _jobs(head)


def _notes(cluster: Cluster, head: Head) -> tuple[Path, Path]:
    """Where Ray notes that own machines are in use, and our copy.

    Ray's is lost with /tmp as this machine starts again. Ray then takes the head for a new one, and
    ends what runs on it as it brings it up.
    """
    name = f"cluster-{cluster['cluster_name']}.state"
    places = ("RAY_TMPDIR", "TMPDIR") if sys.platform == "linux" else ("RAY_TMPDIR",)
    there = next((os.environ[place] for place in places if place in os.environ), "/tmp")
    return Path(there) / "ray" / name, head.file.parent / name


def _question(cluster: Cluster) -> str:
    provider = cluster["provider"]["type"]
    if provider == "local":
        workers = cluster["provider"].get("worker_ips") or []
        machines = [cluster["provider"].get("head_ip"), *workers]
        return f"Ray will be started on {', '.join(map(str, machines))}. Go on?"
    return (
        f"This starts machines on {provider}, which cost money until `ray down`: a head now, "
        f"and up to {cluster.get('max_workers', 'some')} workers as trials ask for them. Go on?"
    )


def _check_token(cluster: Cluster, file: Path) -> None:
    """RequestError for a file that brings Ray's token to no node, which nothing else would tell."""
    mounts = cluster["file_mounts"]
    if TOKEN not in mounts.values() and "~/.ray/auth_token" not in mounts:
        raise RequestError(
            f"{file}: file_mounts: expected ~/.ray/auth_token: {TOKEN} among them, in the place of "
            "which segray puts the secret that Ray asks of whoever connects; without it no node "
            "has one"
        )


def _from_the_cloud(cluster: Cluster, head: Head, network: str | None) -> dict[str, str]:
    """What `fill` puts into the file of a cloud's cluster; nothing for one's own machines."""
    if cluster["provider"]["type"] == "aws":
        groups = aws.security_groups(cluster)
        segrays = any(GROUP in given for given in groups.values())
        if network is not None and not segrays:
            raise RequestError(
                f"--from {network}: the cluster's file names security groups of your own alone, "
                "which segray leaves as they are: let the address in there, or write "
                f"SecurityGroupIds: [{GROUP}] for a group that segray makes and opens to it"
            )
        allowed = aws.callers_network(network) if segrays else None
        values = aws.prepare(cluster, allowed)
        for line in _who_may_reach(groups, allowed):
            head.say(line)
        return values
    if network is not None:
        raise RequestError(
            f"--from {network}: only on AWS does segray say who may reach the head; here the "
            "machines' own firewall does"
        )
    return {}


def _who_may_reach(groups: Mapping[str, Sequence[str]], allowed: str | None) -> list[str]:
    """What to say of port 22, by node type: only of segray's group is it known who may come."""
    own = {name: [one for one in given if one != GROUP] for name, given in groups.items()}
    closed = [name for name in groups if not own[name]]
    which = "the cluster" if len(closed) == len(groups) else ", ".join(closed)
    said = [f"Port 22 of {which} is open to {allowed} alone."] if closed else []
    for name, others in own.items():
        if others:
            also = f", and to {allowed}" if GROUP in groups[name] else ""
            said.append(
                f"Port 22 of {name} is open to whom your own security groups let in "
                f"({', '.join(others)}){also}; segray leaves these groups as they are."
            )
    return said


def _fill_in(cluster: Cluster, head: Head, values: Mapping[str, str]) -> None:
    folder = head.file.parent
    secret = {TOKEN: str(write_token(folder)), NETRC: str(write_netrc(folder))}
    write_cluster(fill(cluster, secret | dict(values)), head.file)


def _bring_up(cluster: Cluster, head: Head) -> None:
    """The head, new or brought up to date; what runs on it already goes on."""
    head.say(f"Bringing up the cluster {cluster['cluster_name']}; Ray's output is in {head.log}")
    head.up(restart=False)
    if not _answers(head):  # a machine that was there, and on which Ray has ended
        if _ray_runs(head):
            again = shlex.join(["ray", "up", str(head.file)])
            raise WorkError(
                "Ray runs on the head, but its dashboard, which starts sweeps, does not answer: "
                f"see {head.log}. To start Ray anew, which ends every sweep there: {again}"
            )
        head.up(restart=True)
        if not _answers(head):
            raise WorkError(
                "Ray was started on the head, but its dashboard, which starts sweeps, does not "
                f"answer there: see {head.log}, and /tmp/ray/session_latest/logs on the head"
            )
    if cluster["provider"]["type"] == "local":
        noted, kept = _notes(cluster, head)
        if noted.is_file():
            shutil.copyfile(noted, kept)
        _wait_for_workers(cluster, head)
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
    code, _ = head.run(
        f"for i in $(seq 10); do {_ASK} > /dev/null && exit 0; sleep 3; done; exit 1"
    )
    return code == 0


def _wait_for_workers(cluster: Cluster, head: Head) -> None:
    """Wait for Ray on one's own machines, which the head starts once it is up; not for ever."""
    machines = len(cluster["provider"].get("worker_ips") or [])
    bounds = [cluster.get(key) for key in ("min_workers", "max_workers")]
    wanted = min([machines, *(bound for bound in bounds if bound is not None)])
    until, shown = time.monotonic() + WORKERS_S, None
    while (there := _workers(head)) < wanted:
        if time.monotonic() > until:
            head.say(
                f"Warning: {wanted - there} of {wanted} workers are missing after "
                f"{WORKERS_S / 60:.0f} minutes, and the sweep starts without them; one that comes "
                "later gets trials, too. What the head says of them: ray exec "
                f"{shlex.quote(str(head.file))} 'tail -n 50 /tmp/ray/session_latest/logs/monitor*'"
            )
            return
        if there != shown:
            shown = there
            head.say(f"Waiting for the workers: {there} of {wanted} are there")
        time.sleep(WORKERS_POLL_S)
    if shown is not None:
        head.say(f"All workers are there: {there}")


def _workers(head: Head) -> int:
    """How many nodes beside the head Ray takes for alive."""
    code, lines = head.run(f"{_ASK} workers")
    return 0 if code else len(json.loads(lines[-1]))


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
    runs, settings = tuple(_run(config) for config in configs), _settings(configs)
    job = Job(f"{name}-{now:%Y%m%d-%H%M%S}", runs, "PENDING", None, settings)
    # --resume begins a sweep that is not there, so what was cut off before goes on.
    given = {name: os.environ[name] for name in _HANDED_ON if os.environ.get(name)}
    variables = {"WANDB_BASE_URL": base_url()} | given
    environment = " ".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())
    sweep = f"{environment} python -m segray.sweep {' '.join(files)}"
    script = f'echo "{_BEGIN}"; {sweep} --resume; code=$?; echo "{_END}$code"; exit $code'
    code, lines = head.run(
        f"{_TOKEN_MODE} ray job submit --address {jobs.DASHBOARD} --no-wait "
        f"--submission-id {job.id} --metadata-json {shlex.quote(jobs.metadata(runs, settings))} "
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
        last = None
        with contextlib.suppress(NoAnswer):
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
    return last.code


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
