"""What `segray submit` says before anything starts, and what it makes of a head's answers."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from segray import cli
from segray.config import Interrupted, RequestError, WorkError
from segray.submit import jobs as jobs_module
from segray.submit import submit as module
from segray.submit.head import Head, NoAnswer, NoHead
from segray.submit.submit import show_status, submit

TINY = ["run_cap=1", "train.epochs=1", "final=null", "early_terminate=null"]


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("WANDB_API_KEY", "do-not-tell")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(module, "WORKERS_POLL_S", 0.0)
    for name in module._HANDED_ON:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def lab(tmp_path):
    file = tmp_path / "lab.yaml"
    provider = {"type": "local", "head_ip": "10.0.0.1", "worker_ips": ["10.0.0.2"]}
    auth = {"ssh_user": "me", "ssh_private_key": "~/.ssh/id_ed25519"}
    mounts = {"~/.ray/auth_token": "TOKEN_FILE", "~/.segray/netrc": "NETRC_FILE"}
    file.write_text(
        yaml.safe_dump(
            {"cluster_name": "lab", "provider": provider, "auth": auth, "file_mounts": mounts}
        )
    )
    return file


@pytest.fixture
def kept(lab, tmp_path):
    """What an earlier submit has left."""
    file = tmp_path / "state" / "segray" / "clusters" / "lab" / "cluster.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(lab.read_text())
    return file


class FakeHead:
    """A head whose answers are given: what was asked of it is in `asked`.

    `jobs`: a list, an exit code where Ray does not say, or NoAnswer or NoHead. `runs`: whether Ray
    does. `workers`: how many there are, each time that it is asked; at last all of them.
    """

    def __init__(self, jobs=NoHead, log=(), codes=None, *, runs=False, workers=()):
        self.jobs, self.lines, self.codes, self.asked = jobs, list(log), codes or {}, []
        self.runs, self.workers = runs, list(workers)

    def __call__(self, file, log, say):
        self.file, self.log, self.say = file, log, say
        return self

    def up(self, *, restart=True):
        self.asked.append("up, restart" if restart else "up")
        if self.jobs is NoHead or restart:
            self.jobs = []

    def down(self):
        self.asked.append("down")

    def push(self, here, there):
        self.asked.append(f"push {there}")
        self.pushed = yaml.safe_load(here.read_text())

    def fetch(self, there, here):
        self.asked.append(f"fetch {there} {here}")

    def run(self, command, each=None):
        if command.endswith("segray.submit.jobs workers"):
            return 0, [json.dumps(["10.0.0.2"] * (self.workers.pop(0) if self.workers else 1))]
        if "segray.submit.jobs" in command:
            if isinstance(self.jobs, type):
                raise self.jobs("nobody there")
            if isinstance(self.jobs, int):
                return self.jobs, []
            return 0, [json.dumps(self.jobs)]
        if "gcs_server" in command:
            return 0 if self.runs else 1, []
        self.asked.append(command)
        if "job logs" in command:
            for line in self.lines:
                if isinstance(line, BaseException):
                    raise line
                each(line)
        return self.codes.get(command.split()[1], 0), ["what Ray said"]


def follow_log(code):
    return [
        "Ray talks",
        "segray: the sweep's output begins",
        "Running entrypoint for job x: bash -c",
        "trial 000",
        f"segray: the sweep ended with {code}",
        "Ray talks",
        "segray: the sweep's output begins",
        "trial 000",
    ]


@pytest.fixture
def go(lab, root, tmp_path, monkeypatch):
    """Runs `submit` with a FakeHead: (exit code, lines said)."""

    def run(head, *overrides, answer=True, **options):
        monkeypatch.setattr(module, "Head", head)
        said = []
        code = submit(
            lab,
            [str(root / "sweeps" / "quickstart.yaml")],
            [*TINY, "storage=/mnt/runs", *overrides],
            say=said.append,
            confirm=lambda question: said.append(question) or answer,
            again="AGAIN",
            **options,
        )
        return code, said

    return run


def job(status, exit_code=None, run="/mnt/runs/quickstart", settings=""):
    return {
        "id": "old",
        "runs": [run],
        "settings": settings,
        "status": status,
        "exit_code": exit_code,
    }


def kinds(head):
    return [asked.split()[0] for asked in head.asked]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("storage=runs", "storage: on a cluster it must be one place for all nodes, and runs is"),
        ("storage=~/runs", "and ~/runs is a place on this machine alone: give storage=s3://BUCKET"),
        (
            "data={format: cityscapes, root: here, size: [64, 64]}",
            "must be one place for all nodes, and here is",
        ),
        ("data.root=here", "data.root"),
        (
            "model={name: segformer, pretrained: here}",
            "model.pretrained: on a cluster it must be one place for all nodes, and here is",
        ),
        ("no.such=1", "no.such"),
    ],
)
def test_places_that_nodes_cannot_share_are_refused_before_anything_starts(go, override, said):
    head = FakeHead()
    Path("here").mkdir()
    with pytest.raises(RequestError) as refused:
        go(head, override)
    assert said in str(refused.value)
    assert head.asked == []


def test_the_files_default_storage_is_refused_too(lab, root):
    with pytest.raises(SystemExit) as ended:
        cli.main(["submit", str(lab), str(root / "sweeps" / "quickstart.yaml"), *TINY, "--yes"])
    assert ended.value.code == 2


def test_down_without_following_is_refused(go):
    with pytest.raises(RequestError, match="leave --no-follow away"):
        go(FakeHead(), follow=False, down=True)


def test_who_may_reach_own_machines_is_not_segrays_to_say(go):
    with pytest.raises(RequestError, match="the machines' own firewall"):
        go(FakeHead(), network="203.0.113.7")


def on_aws(file, **groups):
    """Makes a cluster on AWS of a file: each node type with its groups."""
    cluster = yaml.safe_load(file.read_text())
    cluster["provider"] = {"type": "aws", "region": "us-west-2"}
    cluster["available_node_types"] = {
        name: {"node_config": {"SecurityGroupIds": ids} if ids else {}}
        for name, ids in groups.items()
    }
    cluster["head_node_type"] = next(iter(groups))
    cluster["setup_commands"] = ["sudo mount -t nfs4 fs-1:/ /mnt/runs"]
    file.write_text(yaml.safe_dump(cluster))


@pytest.fixture
def asked_of_aws(monkeypatch):
    """The networks that segray's group was opened to; AWS itself is not asked."""
    asked = []

    def prepare(cluster, network):
        asked.append(network)
        return {module.GROUP: "sg-segray"} if network else {}

    monkeypatch.setattr(module.aws, "prepare", prepare)
    monkeypatch.setattr(module.aws, "let_head_pass_its_role", lambda cluster: False)
    return asked


SEGRAYS = "Port 22 of {} is open to 203.0.113.7/32 alone."
OWN = "Port 22 of {} is open to whom your own security groups let in ({}){}; segray leaves these "
OWN += "groups as they are."


@pytest.mark.parametrize(
    ("head", "gpu", "expected"),
    [
        (["SECURITY_GROUP"], ["SECURITY_GROUP"], [SEGRAYS.format("the cluster")]),
        (["SECURITY_GROUP"], ["sg-1"], [SEGRAYS.format("head"), OWN.format("gpu", "sg-1", "")]),
        (
            ["SECURITY_GROUP", "sg-1"],
            ["SECURITY_GROUP"],
            [SEGRAYS.format("gpu"), OWN.format("head", "sg-1", ", and to 203.0.113.7/32")],
        ),
    ],
)
def test_who_may_reach_port_22_is_said_as_it_is(go, lab, asked_of_aws, head, gpu, expected):
    on_aws(lab, head=head, gpu=gpu)
    _, said = go(FakeHead(), network="203.0.113.7", follow=False)
    assert [line for line in said if line.startswith("Port 22")] == expected
    assert asked_of_aws == ["203.0.113.7/32"]


def test_of_ones_own_groups_nothing_is_promised(go, kept, lab, asked_of_aws, monkeypatch):
    on_aws(lab, head=["sg-1", "sg-2"])
    kept.unlink()
    with pytest.raises(RequestError, match=r"--from 203.0.113.7: .* groups of your own alone"):
        go(FakeHead(), network="203.0.113.7")
    assert asked_of_aws == []
    # Nor is it asked where the caller is: nothing is opened to that address.
    monkeypatch.setattr(module.aws, "_own_address", lambda: pytest.fail("asked"))
    _, said = go(FakeHead(), follow=False)
    assert [line for line in said if line.startswith("Port 22")] == [
        OWN.format("head", "sg-1, sg-2", "")
    ]
    assert asked_of_aws == [None]
    types = yaml.safe_load(kept.read_text())["available_node_types"]
    assert types["head"]["node_config"]["SecurityGroupIds"] == ["sg-1", "sg-2"]


def test_a_cluster_that_would_be_open_to_the_internet_is_not_started(go, lab, asked_of_aws):
    on_aws(lab, head=["SECURITY_GROUP"], gpu=None)
    head = FakeHead()
    with pytest.raises(RequestError, match=r"gpu\.node_config: expected SecurityGroupIds"):
        go(head, network="203.0.113.7")
    assert head.asked == asked_of_aws == []


def test_a_file_that_brings_no_token_to_the_nodes_is_refused(go, lab):
    cluster = yaml.safe_load(lab.read_text())
    del cluster["file_mounts"]["~/.ray/auth_token"]
    lab.write_text(yaml.safe_dump(cluster))
    head = FakeHead()
    with pytest.raises(RequestError, match=r"lab.yaml: file_mounts: .*/auth_token: TOKEN_FILE"):
        go(head)
    assert head.asked == []


def test_nothing_starts_unless_somebody_agrees(go, tmp_path):
    head = FakeHead()
    with pytest.raises(RequestError, match="nothing was started"):
        go(head, answer=False)
    assert head.asked == []
    assert not (tmp_path / "state").exists()


def test_a_sweep_is_started_followed_and_fetched(go, tmp_path, monkeypatch):
    monkeypatch.setenv("RUNS", "/mnt/runs")
    head = FakeHead(log=follow_log(1))
    code, said = go(head, "storage=${RUNS}", down=True)
    assert code == 1
    assert "10.0.0.1, 10.0.0.2" in said[0]
    assert said.count("trial 000") == 1
    assert not any("Ray talks" in line or "entrypoint" in line for line in said)
    assert kinds(head) == [
        "up",
        "mkdir",
        "push",
        "RAY_AUTH_MODE=token",
        "RAY_AUTH_MODE=token",
        "test",
        "fetch",
        "ray",
        "down",
    ]
    assert "for ip in 10.0.0.2; do (ssh " in head.asked[-2]  # `ray down` would leave it
    assert head.pushed["storage"] == "/mnt/runs"  # expanded here
    assert "--resume" in head.asked[3]
    state = tmp_path / "state" / "segray" / "clusters" / "lab"
    filled = yaml.safe_load((state / "cluster.yaml").read_text())
    assert filled["file_mounts"] == {
        "~/.ray/auth_token": str(state / "token"),
        "~/.segray/netrc": str(state / "netrc"),
    }
    token = (state / "token").read_text()
    for text in (*head.asked, *said, json.dumps(filled), json.dumps(head.pushed)):
        assert "do-not-tell" not in text
        assert token not in text


def test_a_sweep_that_is_at_work_is_only_followed(go, kept):
    head = FakeHead(jobs=[job("RUNNING"), job("SUCCEEDED", 0, "/mnt/runs/x")], log=follow_log(0))
    code, said = go(head, answer=False)
    assert code == 0
    assert "at work on the cluster already, as job old" in said[0]
    assert kinds(head) == ["RAY_AUTH_MODE=token", "test", "fetch"]


@pytest.mark.parametrize("status", ["FAILED", "STOPPED"])
def test_one_that_was_cut_off_is_started_again_and_ray_is_not_restarted(go, kept, status):
    head = FakeHead(jobs=[job(status, 1)], log=follow_log(0))
    code, _ = go(head, follow=False)
    assert code == 0
    assert head.asked[0] == "up"
    assert "job submit" in head.asked[-1]


def submitted(head):
    """The metadata of the job that was started."""
    command = next(asked for asked in head.asked if "job submit" in asked)
    return json.loads(shlex.split(command)[shlex.split(command).index("--metadata-json") + 1])


def test_one_that_has_ended_well_is_only_fetched(go, kept):
    first = FakeHead(jobs=[], log=follow_log(0))
    go(first)
    settings = submitted(first)[jobs_module.SETTINGS]
    head = FakeHead(jobs=[job("FAILED", 1), job("SUCCEEDED", 0, settings=settings)])
    code, said = go(head, answer=False, follow=False)
    assert code == 0
    assert "ended well already, as job old, so its results are only fetched" in said[0]
    assert "as in name=quickstart-2" in said[0]
    assert kinds(head) == ["test", "fetch"]
    go(head, down=True, answer=False)
    assert kinds(head)[-1] == "down"

    head = FakeHead(jobs=[job("SUCCEEDED", 0, settings=settings)], log=follow_log(0))
    go(head, "run_cap=2")  # something else is asked for
    assert submitted(head)[jobs_module.SETTINGS] != settings
    head = FakeHead(jobs=[job("SUCCEEDED", 0, settings=settings), job("STOPPED")])
    with pytest.raises(RequestError, match="nothing was started"):  # the latest counts
        go(head, answer=False)


@pytest.mark.parametrize(("jobs", "runs"), [(NoAnswer, False), (1, True)])
def test_a_head_that_does_not_answer_just_now_is_left_as_it_is(go, kept, jobs, runs):
    head = FakeHead(jobs=jobs, runs=runs)
    with pytest.raises(WorkError, match="not known whether a sweep is at work") as refused:
        go(head, down=True)
    assert "go on with: AGAIN" in str(refused.value)
    assert f"ray down {kept}" in str(refused.value)
    assert head.asked == []


def test_a_head_on_which_ray_has_ended_gets_it_started(go, kept):
    head = FakeHead(jobs=1, runs=False, log=follow_log(0))
    go(head)
    assert head.asked[:2] == ["up", "up, restart"]


def test_a_ray_that_runs_but_takes_no_jobs_is_not_restarted(go):
    head = FakeHead(jobs=1, runs=True)
    with pytest.raises(WorkError, match="Ray runs on the head, but its dashboard") as refused:
        go(head)
    assert "which ends every sweep there: ray up" in str(refused.value)
    assert head.asked == ["up"]


def test_a_cluster_of_which_nothing_is_known_is_not_ended(go, monkeypatch):
    head = FakeHead(log=follow_log(0))
    fetch = head.fetch

    def fetch_and_be_gone(there, here):
        fetch(there, here)
        head.jobs = NoAnswer

    monkeypatch.setattr(head, "fetch", fetch_and_be_gone)
    code, said = go(head, down=True)
    assert code == 0
    assert "not known whether another sweep is at work there, and the cluster stays" in said[-1]
    assert "down" not in head.asked


@pytest.mark.parametrize(
    ("ray", "error"),
    [
        ("raise RuntimeError('Head node of cluster (lab) not found!')", NoHead),
        ("raise SystemExit('ssh: connect to host: timed out')", NoAnswer),
    ],
)
def test_no_head_is_told_from_no_answer_by_what_ray_says(tmp_path, monkeypatch, ray, error):
    # An earlier command's words, in the same log, count for nothing.
    log = tmp_path / "ray.log"
    log.write_text("RuntimeError: Head node of cluster (lab) not found!\n")
    scripts = tmp_path / "play" / "ray" / "scripts"
    scripts.mkdir(parents=True)
    (scripts.parent / "__init__.py").touch()
    (scripts / "__init__.py").touch()
    (scripts / "scripts.py").write_text(ray)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "play"))
    with pytest.raises(NoAnswer) as raised:
        Head(tmp_path / "cluster.yaml", log, print).run("true")
    assert raised.type is error


def test_whether_ray_runs_is_asked_of_proc(tmp_path):
    """Played by a copy of sleep that has the name of Ray's process, whichever others run here."""
    program = tmp_path / "gcs_server"
    shutil.copy(shutil.which("sleep"), program)
    ask = ["bash", "-c", module._RAY_RUNS.replace("*/gcs_server", str(program))]
    assert subprocess.run(ask, timeout=60).returncode == 1
    with subprocess.Popen([program, "60"]) as process:
        assert subprocess.run(ask, timeout=60).returncode == 0
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert subprocess.run(ask, timeout=60).returncode == 1  # a zombie


def test_what_ray_notes_of_own_machines_outlives_tmp(go, kept, tmp_path):
    noted = tmp_path / "tmp" / "ray" / "cluster-lab.state"
    noted.parent.mkdir(parents=True)
    noted.write_text("in use")
    go(FakeHead(log=follow_log(0)), follow=False)
    shutil.rmtree(tmp_path / "tmp")
    go(FakeHead(jobs=[job("RUNNING")]), follow=False)
    assert noted.read_text() == "in use"
    noted.write_text("ended")  # what is there is right
    go(FakeHead(jobs=[job("RUNNING")]), follow=False)
    assert noted.read_text() == "ended"


def test_own_machines_are_waited_for(go):
    head = FakeHead(workers=[0, 0, 1])
    _, said = go(head, follow=False)
    assert said.count("Waiting for the workers: 0 of 1 are there") == 1
    assert "All workers are there: 1" in said


def test_those_that_do_not_come_are_not_waited_for_for_ever(go, monkeypatch):
    monkeypatch.setattr(module, "WORKERS_S", 0.0)
    head = FakeHead(workers=[0, 0, 0])
    code, said = go(head, follow=False)
    assert code == 0
    assert any("Warning: 1 of 1 workers are missing after 0 minutes" in line for line in said)
    assert "job submit" in head.asked[-1]


def test_an_own_head_may_have_no_workers(go, lab):
    cluster = yaml.safe_load(lab.read_text())
    cluster["provider"]["worker_ips"] = cluster["min_workers"] = cluster["max_workers"] = None
    lab.write_text(yaml.safe_dump(cluster))
    code, said = go(FakeHead(workers=[0]), follow=False)
    assert code == 0
    assert said[0] == "Ray will be started on 10.0.0.1. Go on?"
    assert not any("orkers are" in line for line in said)


def test_the_head_is_asked_for_its_jobs_and_its_workers(monkeypatch, capsys):
    node = {"node_ip": "10.0.0.1", "is_head_node": True, "state": "ALIVE"}
    worker = node | {"node_ip": "10.0.0.2", "is_head_node": False}
    nodes = [node, worker, worker | {"state": "DEAD"}]
    metadata = json.loads(jobs_module.metadata(["/mnt/runs/x"], "12ab"))
    old = {"submission_id": "a", "status": "RUNNING", "metadata": metadata, "start_time": 1}
    late = old | {"submission_id": "b", "start_time": 2, "driver_exit_code": 0}
    answers = {
        "/api/jobs/": [late, old, {"metadata": None}],
        f"/api/v0/nodes?limit={jobs_module.MOST}": {"data": {"result": {"result": nodes}}},
    }
    monkeypatch.setattr(jobs_module, "_ask", answers.__getitem__)
    monkeypatch.setattr(sys, "argv", ["jobs"])
    jobs_module.main()
    found = json.loads(capsys.readouterr().out)
    assert [(one["id"], one["settings"], one["exit_code"]) for one in found] == [
        ("a", "12ab", None),
        ("b", "12ab", 0),
    ]
    monkeypatch.setattr(sys, "argv", ["jobs", "workers"])
    jobs_module.main()
    assert json.loads(capsys.readouterr().out) == ["10.0.0.2"]


def test_the_job_is_told_where_s3_is(go, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://s3.here:9000")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-tell")
    head = FakeHead()
    go(head, follow=False)
    assert "AWS_ENDPOINT_URL_S3=https://s3.here:9000 AWS_REGION=eu-west-1 python" in head.asked[-1]
    assert "do-not-tell" not in head.asked[-1]


def test_a_cluster_of_another_kind_does_not_take_anothers_place(go, kept, lab):
    was = "cluster_name: lab\nprovider: {type: aws, region: us-west-2}\n"
    was += "head_node_type: head\navailable_node_types: {head: {}}\n"
    kept.write_text(was)
    head = FakeHead()
    for ask in (lambda: go(head), lambda: show_status(lab, ["/mnt/runs/x"], print)):
        with pytest.raises(RequestError, match=r"type is aws, not local: give this one another"):
            ask()
    assert head.asked == []
    assert kept.read_text() == was


def test_what_other_sweeps_run_on_is_neither_changed_nor_ended(go, kept):
    head = FakeHead(jobs=[job("RUNNING", run="/mnt/runs/other")], log=follow_log(0))
    code, said = go(head, down=True)
    assert code == 0
    assert not any(asked.startswith(("up", "down")) for asked in head.asked)
    assert "Another sweep is at work on the cluster (old)" in said[1]
    assert said[-1] == "The cluster stays, as another sweep is at work there: old"


def test_ctrl_c_leaves_the_sweep_running_and_says_how_to_follow_again(go):
    head = FakeHead(log=[*follow_log(0)[:3], KeyboardInterrupt()])
    with pytest.raises(Interrupted, match="the sweep goes on") as stopped:
        go(head, down=True)
    assert "To follow it again: AGAIN" in str(stopped.value)
    assert "ray job stop" in str(stopped.value)
    assert "down" not in head.asked


def test_a_head_that_is_lost_from_sight_is_not_a_sweep_that_ended(go):
    head = FakeHead(log=[*follow_log(0)[:3], NoAnswer("gone")])
    with pytest.raises(WorkError, match="the sweep goes on as long as it lives"):
        go(head, down=True)
    assert "down" not in head.asked


@pytest.mark.parametrize(
    ("status", "exit_code", "expected"),
    [("SUCCEEDED", 0, 0), ("SUCCEEDED", None, 0), ("FAILED", 3, 3), ("STOPPED", None, 1)],
)
def test_what_ray_says_of_an_end_that_was_not_seen_counts(go, kept, status, exit_code, expected):
    head = FakeHead(jobs=[job("RUNNING")], log=follow_log(0)[:3])

    def run(command, each=None, ask=head.run):
        answer = ask(command, each)
        if "job logs" in command:
            head.jobs = [job(status, exit_code)]
        return answer

    head.run = run
    code, said = go(head)
    assert code == expected
    assert f"Ray says of the sweep: {status.lower()}" in said


def test_results_do_not_go_into_another_runs_folder_and_then_the_cluster_stays(go, tmp_path):
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    (tmp_path / "runs" / "quickstart" / "sweep.yaml").write_text("# id: 12ab\n")
    head = FakeHead(log=follow_log(0))
    _, said = go(head, down=True)
    assert not any(asked.startswith(("fetch", "down")) for asked in head.asked)
    assert any("another run's folder" in line for line in said)
    assert "The cluster stays" in said[-1]


def test_results_in_an_object_store_stay_there(go):
    head = FakeHead(log=follow_log(0))
    _, said = go(head, "storage=s3://bucket/runs", down=True)
    assert "The results: s3://bucket/runs/quickstart    (segray status " in "\n".join(said)
    assert not any(asked.startswith("fetch") for asked in head.asked)
    assert head.asked[-1] == "down"


def test_a_sweep_that_left_nothing_has_nothing_to_fetch(go):
    head = FakeHead(log=follow_log(2), codes={"-d": 1})
    code, said = go(head, down=True)
    assert code == 2
    assert "It left no run folder at /mnt/runs/quickstart." in said
    assert head.asked[-1] == "down"


def test_results_that_cannot_be_fetched_change_nothing_about_the_sweeps_end(go, monkeypatch):
    head = FakeHead(log=follow_log(0))

    def fail(there, here):
        raise WorkError("no space left")

    monkeypatch.setattr(head, "fetch", fail)
    code, said = go(head, down=True)
    assert code == 0
    assert "no space left" in said
    assert "down" not in head.asked


def test_status_needs_a_cluster_that_was_submitted_to(lab):
    with pytest.raises(RequestError, match=r"no `segray submit .*lab.yaml` was run here"):
        show_status(lab, ["/mnt/runs/x"], print)
