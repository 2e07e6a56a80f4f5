"""A sweep on a cluster of three hosts, from `ray up` to `ray down`.

The tests of this file are one story, told in their order.
"""

import csv
import itertools
import json
import re
import shlex
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import yaml

from segray.submit.cluster_file import LEFT, read_cluster, stop_workers

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

EPOCHS = 8
SCENES_OF_TEST = 3
SWEEP = {
    "model": {"name": "unet", "width": 4, "depth": 2},
    "train": {"epochs": EPOCHS, "batch_size": 4, "optimizer": {"lr": 1e-2}},
    "parameters": {
        "train.optimizer.lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-1}
    },
    "method": "random",
    "run_cap": 3,
    "failure": {"retries": 0},  # the loss of a node is no failure of a trial
    "tracking": {"wandb": {"mode": "disabled"}},
}

# Who listens on an address of the head's that others reach, apart from the processes of trials.
FIXED = {
    22: "sshd",
    6379: "Ray's GCS",
    6380: "the raylet",
    6381: "the object manager",
    6382: "the agent for runtime environments",
    6383: "the dashboard's agent, by gRPC",
    6384: "the node's metrics",
    10001: "Ray Client",
    44217: "the autoscaler's metrics",
    44227: "the dashboard's metrics",
    52365: "the dashboard's agent, by HTTP",
}
WORKERS = range(10002, 20000)  # one for each of Ray's worker processes
DASHBOARD = 8265


def wait_for(condition, seconds, what):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"after {seconds} s, {what()}"
        time.sleep(0.1)


class Cluster:
    """What a person does with the cluster, from the laptop or on its head."""

    def __init__(self, hosts, file):
        self.hosts, self.file = hosts, file
        self.runs = hosts.shared / "runs"

    def ray(self, command, timeout=180):
        environment = "RAY_UP_enable_autoscaler_v2=0"
        return self.hosts["laptop"].run(f"{environment} ray {command}", timeout)

    def alive(self):
        """The addresses of the nodes that Ray takes for alive."""
        code = "import ray, json; ray.init('auto', log_to_driver=False); " + (
            "print(json.dumps([n['NodeManagerAddress'] for n in ray.nodes() if n['Alive']]))"
        )
        said = self.hosts["head"].run(f"python -c {shlex.quote(code)} 2>/dev/null").said
        return set(json.loads(said.splitlines()[-1])) if said.strip() else set()

    def command(self, name, **changes):
        """The command that runs a sweep on the head."""
        data = {"format": "cityscapes", "root": str(self.hosts.data / "scenes"), "size": [32, 64]}
        content = SWEEP | {"name": name, "storage": str(self.runs), "data": data} | changes
        file = self.hosts.shared / f"{name}.yaml"
        file.write_text(yaml.safe_dump(content))
        address = f"{self.hosts['head'].address}:6379"
        cache = self.hosts.cache
        return f"RAY_ADDRESS={address} SEGRAY_CACHE={cache} python -m segray.sweep {file}"

    def epochs(self, name):
        files = (self.runs / name).rglob("metrics.jsonl")
        return sum(file.read_text().count("\n") for file in files)

    def start(self, name, **changes):
        """Start a sweep on the head; returns its process, and the file with what it says."""
        log = self.hosts.shared / f"{name}.log"
        return self.hosts["head"].start_command(self.command(name, **changes), log), log

    def wait_for_epochs(self, name, number, process, log, seconds=180):
        def reached():
            there = self.epochs(name) >= number
            assert there or process.poll() is None, log.read_text()
            return there

        wait_for(reached, seconds, log.read_text)


@pytest.fixture(scope="module")
def cluster(hosts, cluster_file):
    made = Cluster(hosts, cluster_file)
    token = hosts["laptop"].own / "home/.ray/auth_token"
    token.parent.mkdir()
    token.write_text((hosts.base / "token").read_text())
    began = time.monotonic()
    up = made.ray(f"up -y {cluster_file}")
    assert up.code == 0, up.said
    print(f"ray up: {time.monotonic() - began:.1f} s")
    return made


def test_ray_up_brings_the_head_and_then_both_workers(cluster, hosts):
    began = time.monotonic()
    expected = {hosts[name].address for name in ("head", "worker1", "worker2")}
    monitor = hosts["head"].own / "tmp/ray/session_latest/logs/monitor.out"
    wait_for(lambda: cluster.alive() == expected, 90, lambda: monitor.read_text()[-5000:])
    print(f"both workers: {time.monotonic() - began:.1f} s later")


@pytest.fixture(scope="module")
def story(cluster, hosts):
    """A sweep of trials with two workers, one on each worker host; in its middle, everything on
    one of these is killed.
    """
    began = time.monotonic()
    process, log = cluster.start(
        "story", resources={"workers": 2, "cpus_per_worker": 1, "max_concurrent": 1}
    )
    cluster.wait_for_epochs("story", 3, process, log)
    print(f"first trial: {time.monotonic() - began:.1f} s")
    ports = hosts["worker2"].scan(hosts["head"])
    programs = dict(hosts["head"].listening())
    cluster.wait_for_epochs("story", EPOCHS + 2, process, log)
    hosts["worker1"].kill_everything()
    killed = time.monotonic()
    cluster.wait_for_epochs("story/trials/001", EPOCHS, process, log)
    print(f"from the kill to the end of its trial: {time.monotonic() - killed:.1f} s")
    process.wait(240)
    print(f"the sweep: {time.monotonic() - began:.1f} s\n{log.read_text()}")
    return {"code": process.returncode, "said": log.read_text(), "ports": ports, "who": programs}


def leaderboard(run):
    with (run / "leaderboard.csv").open() as file:
        return {row["trial"]: row for row in csv.DictReader(file)}


def assert_complete(run, epochs=EPOCHS):
    """Every trial has finished, with each of its epochs on record once."""
    rows = leaderboard(run)
    assert sorted(rows) == [f"{number:03d}" for number in range(SWEEP["run_cap"])]
    assert {row["state"] for row in rows.values()} == {"finished"}
    for trial in rows:
        lines = (run / "trials" / trial / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["epoch"] for line in lines] == list(range(1, epochs + 1))


def test_a_sweep_survives_that_everything_on_a_host_is_killed(cluster, story):
    assert story["code"] == 0, story["said"]
    assert_complete(cluster.runs / "story")


def test_the_sweep_says_which_node_was_lost(story, hosts):
    named = rf"lost.*({hosts['worker1'].address}|worker1)"
    assert re.search(named, story["said"]), story["said"]


def test_each_worker_host_built_its_own_cache_from_its_own_data(story, hosts):
    for name in ("worker1", "worker2"):
        assert len(list(hosts[name].cache.rglob("images.npy"))) == 1, name
    assert not list(hosts.cache.iterdir())  # the folder that the hosts' own ones hide


def test_only_documented_ports_of_the_head_answer_from_another_host(story):
    open_ports = set(story["ports"])
    assert DASHBOARD not in open_ports
    assert set(FIXED) <= open_ports
    strangers = {port: story["who"].get(port) for port in open_ports - set(FIXED)}
    assert {port for port in strangers if port not in WORKERS} == set(), strangers


JOIN = "import ray; ray.init(address='{address}:6379', log_to_driver=False); print('joined')"
CLIENT = "import ray; ray.init('ray://{address}:10001'); print('joined')"
COMMANDS = {
    "a driver": f'python -c "{JOIN}"',
    "a driver through Ray Client": f'python -c "{CLIENT}"',
    "ray status": "ray status --address {address}:6379 && echo joined",
    "a node": "ray start --address={address}:6379 && ray stop && echo joined",
    "a job": "ray job submit --address http://{address}:8265 -- echo joined",
    "a job through the agent": "ray job submit --address http://{address}:52365 -- echo joined",
}
REFUSED = re.compile(r"AuthenticationError|InvalidAuthToken|client connection timeout")


@pytest.fixture(scope="module")
def strangers(cluster, hosts):
    """What each of the commands comes to on the laptop, by (command, token)."""
    home = hosts.shared / "stranger"  # without the file that has the token
    home.mkdir()

    def call(what, token):
        given = {
            "right": f"RAY_AUTH_TOKEN={(hosts.base / 'token').read_text()}",
            "wrong": f"RAY_AUTH_TOKEN={'f' * 64}",
            "missing": "-u RAY_AUTH_MODE",
        }[token]
        command = COMMANDS[what].format(address=hosts["head"].address)
        quick = "RAY_NUM_REDIS_GET_RETRIES=2"  # else it is asked twenty times over
        stranger = f"env {given} {quick} HOME={home} PYTHONPATH= bash -c {shlex.quote(command)}"
        return hosts["laptop"].run(f"timeout -k 5 100 {stranger}", timeout=120)

    # One by one: Ray gives the server of a client no longer than half a minute to start.
    let_in = {(what, "right"): call(what, "right") for what in CONTROLS}
    refused = list(itertools.product(COMMANDS, ("missing", "wrong")))
    with ThreadPoolExecutor(6) as pool:
        return let_in | dict(zip(refused, pool.map(lambda one: call(*one), refused), strict=True))


CONTROLS = ("a driver through Ray Client", "ray status")  # which work from outside with the token


@pytest.mark.parametrize("what", CONTROLS)
def test_who_has_the_token_is_let_in(strangers, what):
    done = strangers[what, "right"]
    assert done.code == 0, done.said
    assert "joined" in done.said


@pytest.mark.parametrize("token", ["missing", "wrong"])
@pytest.mark.parametrize("what", COMMANDS)
def test_who_lacks_the_token_is_refused(strangers, what, token):
    done = strangers[what, token]
    assert done.code not in (0, 124), done.said
    assert "joined" not in done.said
    if what == "a job":  # the dashboard is on the head's loopback alone
        assert "Failed to connect" in done.said
    else:
        assert REFUSED.search(done.said), done.said


def test_a_node_without_the_data_is_named_before_a_trial_starts(cluster, hosts):
    scenes = hosts["worker2"].data / "scenes"
    scenes.rename(scenes.with_name("elsewhere"))
    try:
        command = cluster.command("nodata", seed=1)
        run = hosts["head"].run(f"{command} data.size=[32,32]", timeout=120)
    finally:
        scenes.with_name("elsewhere").rename(scenes)
    assert run.code == 2, run.said
    assert re.search(rf"worker2|{hosts['worker2'].address}", run.said), run.said
    assert "Traceback" not in run.said
    assert not list(cluster.runs.glob("nodata/trials/*"))


BUCKET = "lab-results"
MAKE_BUCKET = f"import boto3; boto3.client('s3').create_bucket(Bucket='{BUCKET}')"


@pytest.fixture
def object_store(hosts):
    """An S3 that all hosts reach, and its keys in the home of each; its variables for a command."""
    keys = "[default]\naws_access_key_id = a\naws_secret_access_key = b\n"
    for host in hosts.by_name.values():
        folder = host.own / "home/.aws"
        folder.mkdir()
        (folder / "credentials").write_text(keys)
    laptop = hosts["laptop"]
    log = hosts.shared / "moto.log"
    server = laptop.start_command("python -m moto.server -H 0.0.0.0 -p 5000", log)
    where = f"AWS_ENDPOINT_URL=http://{laptop.address}:5000 AWS_DEFAULT_REGION=us-east-1"
    make = f"{where} python -c {shlex.quote(MAKE_BUCKET)}"
    wait_for(lambda: laptop.run(make).code == 0, 60, log.read_text)
    yield where
    server.kill()


def test_results_of_hosts_that_share_no_folder_are_in_an_object_store(cluster, hosts, object_store):
    """The final training's second worker has no file of the first one's."""
    command = cluster.command(
        "stored",
        storage=f"s3://{BUCKET}/runs",
        run_cap=1,
        train=SWEEP["train"] | {"epochs": 2},
        resources={"workers": 2, "cpus_per_worker": 1},
        final={"seeds": [1], "workers": 2},
        tracking={"wandb": {"mode": "offline", "images": SCENES_OF_TEST}},
    )
    run = hosts["head"].run(f"{object_store} {command}", timeout=300)
    assert run.code == 0, run.said
    assert f"Everything is in s3://{BUCKET}/runs/stored" in run.said
    for name in ("worker1", "worker2"):  # nothing of a training is left on its machine
        assert not list(hosts[name].cache.rglob("*.safetensors")), name
    segray = f"{object_store} SEGRAY_CACHE=~/copies python -m segray"
    status = hosts["laptop"].run(f"{segray} status s3://{BUCKET}/runs/stored")
    assert "1 of 1 trial ended, 1 of 1 final training" in status.said, status.said
    page = f"{segray} compare s3://{BUCKET}/runs/stored --no-cost --out ~/page"
    compared = hosts["laptop"].run(page, timeout=120)
    assert compared.code == 0, compared.said
    final = next((hosts["laptop"].own / "home/copies/read").glob("*/stored/final/seed_1"))
    assert len(list(final.rglob("preds/**/*.png"))) == SCENES_OF_TEST
    assert "Traceback" not in (final / "log.txt").read_text()
    ask = (
        f"from segray.data.remote import RemoteFolder as F; print(*F('s3://{BUCKET}/runs').files())"
    )
    there = hosts["laptop"].run(f'{object_store} python -c "{ask}"').said.split()
    shown = [
        name for name in there if re.search(r"-final-seed1/files/media/images/images/test", name)
    ]
    assert len(shown) == SCENES_OF_TEST  # of both hosts' predictions
    # What was counted is what was predicted, on whichever host.
    with np.load(final / "confusion.npz") as table:
        counted = table["confusion"].sum((1, 2)).tolist()
    assert len(counted) == SCENES_OF_TEST
    assert min(counted) > 0


def test_trials_of_a_host_that_never_comes_back_go_on_elsewhere(cluster, hosts):
    began = time.monotonic()
    resources = {"workers": 1, "cpus_per_worker": 1, "max_concurrent": 2}
    longer = SWEEP["train"] | {"epochs": 5 * EPOCHS}  # so that it is at work when it is taken away
    process, log = cluster.start("taken", resources=resources, train=longer)
    cluster.wait_for_epochs("taken", 3, process, log)
    hosts["worker2"].vanish()
    taken = time.monotonic()
    process.wait(240)
    print(
        f"taken: {taken - began:.1f} s, over: {time.monotonic() - began:.1f} s\n{log.read_text()}"
    )
    assert process.returncode == 0, log.read_text()
    assert_complete(cluster.runs / "taken", 5 * EPOCHS)
    assert re.search(rf"lost.*(worker2|{hosts['worker2'].address})", log.read_text())


def test_ray_down_leaves_nothing_running(cluster, hosts):
    began = time.monotonic()
    stop = stop_workers(read_cluster(cluster.file))
    stopped = cluster.ray(f"exec {cluster.file} {shlex.quote(stop)}")
    assert re.findall(rf"{LEFT}([0-9.]+)", stopped.said) == [hosts["worker2"].address]  # taken away
    down = cluster.ray(f"down -y {cluster.file}")
    print(f"ray down: {time.monotonic() - began:.1f} s")
    assert down.code == 0, down.said
    for name in ("head", "worker1"):
        assert hosts[name].processes() == []
        assert [port for port, _ in hosts[name].listening()] == [22]
