"""What `segray submit` says before anything starts, and what it makes of a head's answers."""

import json

import pytest
import yaml

from segray import cli
from segray.config import Interrupted, RequestError, WorkError
from segray.submit import submit as module
from segray.submit.head import NoAnswer
from segray.submit.submit import show_status, submit

TINY = ["run_cap=1", "train.epochs=1", "final=null", "early_terminate=null"]


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("WANDB_API_KEY", "do-not-tell")
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


class FakeHead:
    """A head whose answers are given: what was asked of it is in `asked`."""

    def __init__(self, jobs=None, log=(), codes=None):
        self.jobs, self.lines, self.codes, self.asked = jobs, list(log), codes or {}, []

    def __call__(self, file, log, say):
        self.file, self.log, self.say = file, log, say
        return self

    def up(self, *, restart=True):
        self.asked.append("up, restart" if restart else "up")
        self.jobs = self.jobs or []

    def down(self):
        self.asked.append("down")

    def push(self, here, there):
        self.asked.append(f"push {there}")
        self.pushed = yaml.safe_load(here.read_text())

    def fetch(self, there, here):
        self.asked.append(f"fetch {there} {here}")

    def run(self, command, each=None):
        if "segray.submit.jobs" in command:
            if self.jobs is None:
                raise NoAnswer("nobody there")
            return 0, [json.dumps(self.jobs)]
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


def job(status, exit_code=None, run="/mnt/runs/quickstart"):
    return {"id": "old", "runs": [run], "status": status, "exit_code": exit_code}


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
        ("no.such=1", "no.such"),
    ],
)
def test_places_that_nodes_cannot_share_are_refused_before_anything_starts(go, override, said):
    head = FakeHead()
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
    kinds = [asked.split()[0] for asked in head.asked]
    assert kinds == [
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


def test_a_sweep_that_is_at_work_is_only_followed(go, lab, tmp_path):
    state = tmp_path / "state" / "segray" / "clusters" / "lab"
    state.mkdir(parents=True)
    (state / "cluster.yaml").write_text("x")
    head = FakeHead(jobs=[job("RUNNING"), job("SUCCEEDED", 0, "/mnt/runs/x")], log=follow_log(0))
    code, said = go(head, answer=False)
    assert code == 0
    assert "at work on the cluster already, as job old" in said[0]
    assert [asked.split()[0] for asked in head.asked] == ["RAY_AUTH_MODE=token", "test", "fetch"]


def test_one_that_has_ended_is_started_again_and_ray_is_not_restarted(go, tmp_path):
    state = tmp_path / "state" / "segray" / "clusters" / "lab"
    state.mkdir(parents=True)
    (state / "cluster.yaml").write_text("x")
    head = FakeHead(jobs=[job("FAILED", 1)], log=follow_log(0))
    code, _ = go(head, follow=False)
    assert code == 0
    assert head.asked[0] == "up"
    assert "job submit" in head.asked[-1]


def test_what_other_sweeps_run_on_is_neither_changed_nor_ended(go, tmp_path):
    state = tmp_path / "state" / "segray" / "clusters" / "lab"
    state.mkdir(parents=True)
    (state / "cluster.yaml").write_text("x")
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
