"""`segray submit` for real, on hosts of the test's own: see tests/cluster/hosts.py.

A laptop and a head, each with its own network, processes and home. On AWS's side moto plays the
API; the machine that it pretends to start is the head, to which the laptop's ssh leads.
"""

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest
import yaml

from segray.submit.cluster_file import for_own_machines, read_cluster

ROOT = Path(__file__).parent.parent.parent
_spec = importlib.util.spec_from_file_location("hosts", ROOT / "tests" / "cluster" / "hosts.py")
_hosts = importlib.util.module_from_spec(_spec)
sys.modules["hosts"] = _hosts  # where dataclasses look for a module's names
_spec.loader.exec_module(_hosts)

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
KEY = "0123456789abcdef0123456789abcdef01234567"  # of W&B; it must be seen nowhere
TINY = (
    "run_cap=1 train.epochs=1 final=null early_terminate=null data.train_images=12 "
    "data.test_images=4 data.size=[32,64] tracking.wandb.mode=offline"
)


@pytest.fixture
def hosts(tmp_path):
    if reason := _hosts.why_not():
        pytest.skip(reason)
    read = {ROOT, Path(sys.prefix).parent}  # the checkout, and what holds the virtual environment
    with _hosts.make_hosts(tmp_path, ["laptop", "head"], sorted(read)) as made:
        yield made


BUCKET = {
    "Bucket": "sweeps",
    "CreateBucketConfiguration": {"LocationConstraint": "us-west-2"},
}
STORAGE = "storage=s3://sweeps/runs"


def run(hosts, command, *, code=0, timeout=300, **variables):
    """Run a command on the laptop, as its user; what it said."""
    exports = "".join(f"export {name}={value}; " for name, value in variables.items())
    exports += f"export PYTHONPATH={ROOT} PATH=$HOME/bin:$PATH; "
    result = hosts["laptop"].run(exports + command, timeout)
    assert result.code == code, result.said
    return result.said


def state(hosts, cluster):
    return hosts["laptop"].own / "home" / ".local" / "state" / "segray" / "clusters" / cluster


@pytest.mark.timeout(900)
def test_a_sweep_on_own_machines_from_up_to_down(hosts, play_aws):
    head = hosts["head"]
    aws = play_aws(f"{head.address.rpartition('.')[0]}.1")  # this machine, as the hosts see it
    setup = ["echo 'export PYTHONPATH=$HOME/segray' >> ~/.bashrc"]  # what was shipped is what runs
    # The keys of S3, as each machine has its own; where it is, is handed on by `submit`.
    keys = {name: value for name, value in aws.items() if name != "AWS_ENDPOINT_URL"}
    setup += [f"echo 'export {name}={value}' >> ~/.bashrc" for name, value in keys.items()]
    lab = for_own_machines(
        read_cluster(ROOT / "cluster.yaml"),
        head.address,
        [],
        "root",
        hosts.key,
        setup_commands=setup,
    )
    lab["cluster_name"] = "lab"
    file = hosts.shared / "lab.yaml"
    file.write_text(yaml.safe_dump(lab))
    quickstart = f"{ROOT}/sweeps/quickstart.yaml"
    places = f"storage={hosts.shared}/runs"
    submit = f"python -m segray submit {file} {quickstart} {places} {TINY} --yes"

    said = run(hosts, f"{submit} --no-follow", WANDB_API_KEY=KEY)
    assert "needs this machine no more" in said
    assert "7 of 7: Starting the Ray runtime" in said

    # Ctrl-C while following it leaves it at work ...
    follow = f"set -m; {submit} > said 2>&1 & "
    follow += "until grep -q 'for `ray attach`' said; do sleep 0.1; done; sleep 2; "
    follow += "kill -INT $!; wait $!; code=$?; cat said; exit $code"
    said = run(hosts, follow, code=130, WANDB_API_KEY=KEY)
    assert "the sweep goes on. To follow it again: segray submit" in said

    said = run(hosts, submit, WANDB_API_KEY=KEY)  # ... and the same command follows it again
    assert "at work on the cluster already" in said
    assert "1/1 trials" in said
    assert "The results: runs/quickstart" in said
    fetched = hosts["laptop"].own / "home" / "runs" / "quickstart"
    assert json.loads((fetched / "trials" / "000" / "outcome.json").read_text())
    assert (fetched / "sweep.yaml").read_bytes() == (
        hosts.shared / "runs" / "quickstart" / "sweep.yaml"
    ).read_bytes()

    status = run(hosts, f"python -m segray status {hosts.shared}/runs/quickstart --cluster {file}")
    assert "1 of 1 trial ended" in status

    # Nobody but their owner reads the secrets, and no log, job or process shows them.
    token = (state(hosts, "lab") / "token").read_text()
    modes = head.run("stat -c '%a %s' ~/.ray/auth_token ~/.segray/netrc").said.split("\n")
    assert modes[0] == f"600 {len(token)}"
    assert modes[1].startswith("600 ")
    assert KEY in head.run("cat ~/.segray/netrc").said
    jobs = head.run("RAY_AUTH_MODE=token ray job list --address http://127.0.0.1:8265").said
    everywhere = head.run(
        "cat -- $(find /tmp/ray/ -name '*.log' -o -name '*.out' -o -name '*.err')"
    )
    shown = [jobs, everywhere.said, "\n".join(head.processes()), said, status]
    shown.append((state(hosts, "lab") / "ray.log").read_text())
    assert "quickstart" in jobs
    assert all(secret not in text for text in shown for secret in (KEY, token))

    # The dashboard is for the head itself; without the token Ray's other ports tell nothing.
    ports = {port for port, _ in head.listening()}
    assert 6379 in ports
    assert 8265 not in ports

    # One whose results are in S3: nothing of it is on the head alone, or fetched.
    s3 = service(aws, "s3")
    s3.create_bucket(**BUCKET)
    said = run(hosts, f"{submit} {STORAGE} name=afar", WANDB_API_KEY=KEY, **aws)
    assert "The results: s3://sweeps/runs/afar" in said
    there = {one["Key"] for one in s3.list_objects_v2(Bucket="sweeps")["Contents"]}
    assert "runs/afar/trials/000/outcome.json" in there
    status = run(hosts, "python -m segray status s3://sweeps/runs/afar", **aws)
    assert "1 of 1 trial ended" in status

    # A sweep that fails on the head: its exit code; and --down ends Ray there.
    said = run(
        hosts,
        f"{submit} name=refused data.train_images=12 resources.cpus_per_worker=64 --down",
        code=2,
        WANDB_API_KEY=KEY,
    )
    assert "64 CPUs" in said
    assert "Ending the cluster's machines." in said
    assert not [process for process in head.processes() if "ray" in process]


PIP = """\
#!/bin/bash
# Stands for pip: what it would install is there; what it was asked for is noted.
echo "pip $@" >> ~/asked
grep -q PYTHONPATH ~/.bashrc || echo 'export PYTHONPATH=$HOME/segray' >> ~/.bashrc
"""
SSH = """\
#!/bin/bash
# The way to every machine of the cluster leads to the head, where the user is root.
arguments=()
for argument in "$@"; do arguments+=("$(sed -E 's/^ubuntu(@|$)/root\\1/' <<< "$argument")"); done
exec /usr/bin/ssh -i {key} -o HostName={head} "${{arguments[@]}}"
"""


def executable(file, text):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)


def service(aws, name):
    """boto3's client of the AWS that these variables lead to."""
    return boto3.client(
        name,
        region_name=aws["AWS_DEFAULT_REGION"],
        endpoint_url=aws["AWS_ENDPOINT_URL"],
        aws_access_key_id=aws["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=aws["AWS_SECRET_ACCESS_KEY"],
    )


def instances(ec2):
    """Machines by Ray's node type."""
    found = ec2.describe_instances()["Reservations"]
    return {
        next(tag["Value"] for tag in one["Tags"] if tag["Key"] == "ray-user-node-type"): one
        for reservation in found
        for one in reservation["Instances"]
    }


@pytest.mark.timeout(900)
def test_the_shipped_file_on_aws(hosts, play_aws):
    """cluster.yaml as it is shipped; only what `segray submit` fills in is filled in."""
    head, home = hosts["head"], hosts["head"].own / "home"
    outside = f"{head.address.rpartition('.')[0]}.1"  # this machine, as the hosts see it
    aws = play_aws(outside)
    # What an AWS image and its machine have: sudo, and a way to ask AWS with a role's rights.
    executable(home / "bin" / "sudo", '#!/bin/bash\necho "sudo $@" >> ~/asked\n')
    with (home / ".bashrc").open("a") as file:
        file.write("export PATH=$HOME/bin:$PATH\n")
        file.write("".join(f"export {name}={value}\n" for name, value in aws.items()))
    venv = home / "segray-venv" / "bin"
    executable(venv / "pip", PIP)
    executable(venv / "python", f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    laptop = hosts["laptop"].own / "home"
    executable(laptop / "bin" / "ssh", SSH.format(key=hosts.key, head=head.address))

    service(aws, "s3").create_bucket(**BUCKET)
    said = run(
        hosts,
        f"python -m segray submit {ROOT}/cluster.yaml {ROOT}/sweeps/quickstart.yaml {STORAGE} "
        f"{TINY} --from 203.0.113.7 --no-follow --yes",
        **aws,
    )
    assert "Port 22 of the cluster is open to 203.0.113.7/32 alone." in said
    assert "may now be handed on to workers" in said

    ec2 = service(aws, "ec2")
    (kind, machine), *others = instances(ec2).items()
    assert (kind, others) == ("head", [])
    assert machine["InstanceType"] == "m6i.large"
    assert machine["ImageId"] == "ami-0123456789abcdef0"
    assert machine["IamInstanceProfile"]["Arn"].endswith("ray-autoscaler-v1")
    (group,) = machine["SecurityGroups"]
    assert group["GroupName"] == "segray-segray"
    named = [{"Name": "group-id", "Values": [group["GroupId"]]}]
    rules = ec2.describe_security_group_rules(Filters=named)["SecurityGroupRules"]
    open_to = [
        (rule.get("CidrIpv4"), rule.get("FromPort")) for rule in rules if not rule["IsEgress"]
    ]
    assert set(open_to) == {("203.0.113.7/32", 22), (None, -1)}  # the address; its members
    groups = ec2.describe_security_groups()["SecurityGroups"]
    assert not any(found["GroupName"].startswith("ray-autoscaler") for found in groups)
    asked = (home / "asked").read_text()
    assert "sudo apt-get" in asked
    assert "-c " in asked
    assert "constraints.txt" in asked

    # A trial that wants a GPU: the head's autoscaler asks AWS for a spot machine.
    wish = "import ray; ray.init('auto'); from ray.autoscaler.sdk import request_resources; "
    wish += "request_resources(bundles=[{'GPU': 1}])"
    wished = head.run(f'RAY_AUTH_MODE=token python -c "{wish}"')
    assert wished.code == 0, wished.said
    until = time.monotonic() + 120
    while "gpu-spot" not in instances(ec2):
        monitor = head.run("tail -n 40 /tmp/ray/session_latest/logs/monitor.*").said
        assert time.monotonic() < until, monitor
        time.sleep(1)
    worker = instances(ec2)["gpu-spot"]
    assert worker["InstanceType"] == "g5.2xlarge"
    assert worker["InstanceLifecycle"] == "spot"
    assert worker["IamInstanceProfile"]["Arn"].endswith("ray-autoscaler-v1")
    assert [found["GroupId"] for found in worker["SecurityGroups"]] == [group["GroupId"]]

    run(hosts, f"ray down -y {state_path('segray')}", **aws)
    assert {one["State"]["Name"] for one in instances(ec2).values()} <= {
        "shutting-down",
        "terminated",
    }


def state_path(cluster):
    return f"$HOME/.local/state/segray/clusters/{cluster}/cluster.yaml"


def test_the_shipped_file_does_nothing_before_it_is_filled_in(tmp_path, play_aws, cluster_file):
    aws = play_aws("127.0.0.1")
    command = [sys.executable, "-m", "ray.scripts.scripts", "up", "-y", "--no-config-cache"]
    ray = subprocess.run(
        [*command, str(cluster_file)],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), **aws},
    )
    assert ray.returncode != 0
    assert "security group" in ray.stdout + ray.stderr
    ec2 = service(aws, "ec2")
    assert instances(ec2) == {}
    groups = ec2.describe_security_groups()["SecurityGroups"]
    assert [group["GroupName"] for group in groups] == ["default"]
