import json
import stat
from pathlib import Path

import jsonschema
import pytest
import ray.autoscaler
import yaml

from segray.config import RequestError
from segray.submit.cluster_file import (
    GROUP,
    NETRC,
    TOKEN,
    fill,
    for_own_machines,
    own_workers,
    read_cluster,
    write_cluster,
)
from segray.submit.submit import _is_shared

SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
COMMANDS = ("initialization_commands", "setup_commands", "head_setup_commands")
AWS = "cluster_name: x\nprovider: {type: aws}\n"
STARTS = ("head_start_ray_commands", "worker_start_ray_commands")


@pytest.fixture
def cluster(cluster_file):
    return read_cluster(cluster_file)


@pytest.fixture
def own(cluster):
    return for_own_machines(cluster, "10.0.0.1", ["10.0.0.2"], "root", "/keys/one")


def block(cluster_file, provider):
    """The sections that are commented out for another provider, as somebody would put them in."""
    lines = cluster_file.read_text().splitlines()
    for text in "\n".join(line[2:] if line.startswith("#:") else "" for line in lines).split(
        "\n\n"
    ):
        found = yaml.safe_load(text)
        if found and found.get("provider", {}).get("type") == provider:
            return found
    raise AssertionError(provider)


def test_the_shipped_file_is_valid_by_rays_own_schema(cluster):
    jsonschema.validate(cluster, SCHEMA)


def test_so_it_is_with_the_block_for_own_machines(cluster, cluster_file):
    sections = block(cluster_file, "local")
    taken_away = ("available_node_types", "head_node_type", "max_workers", *COMMANDS[::2])
    found = {key: value for key, value in cluster.items() if key not in taken_away} | sections
    jsonschema.validate(found, SCHEMA)
    derived = for_own_machines(
        cluster,
        sections["provider"]["head_ip"],
        sections["provider"]["worker_ips"],
        sections["auth"]["ssh_user"],
        sections["auth"]["ssh_private_key"],
    )
    assert derived == found  # by hand or by the function: the same file


def test_so_it_is_with_the_block_for_gcp(cluster, cluster_file):
    found = cluster | block(cluster_file, "gcp")
    jsonschema.validate(found, SCHEMA)
    assert found["head_node_type"] in found["available_node_types"]
    assert set(found["available_node_types"]) == set(cluster["available_node_types"])


def test_every_machine_is_in_segrays_group_and_none_in_rays(cluster):
    """Ray opens port 22 to the internet in every group that it makes or finds empty."""
    for node in cluster["available_node_types"].values():
        assert node["node_config"]["SecurityGroupIds"] == [GROUP]


def test_the_head_trains_nothing_and_workers_come_when_asked_for(cluster):
    types = dict(cluster["available_node_types"])
    head = types.pop(cluster["head_node_type"])
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert all(node["min_workers"] == 0 and node["resources"]["GPU"] for node in types.values())
    spot = types["gpu-spot"]["node_config"].pop("InstanceMarketOptions")
    assert spot == {"MarketType": "spot"}
    assert types["gpu-spot"] == types["gpu-on-demand"]  # but for that
    assert max(types) == "gpu-spot"  # of equals Ray takes the last by name


@pytest.mark.parametrize("key", STARTS)
def test_ray_starts_with_the_token_and_wandbs_key_by_file_alone(cluster, own, key):
    for one in (cluster, own):
        start = next(command for command in one[key] if "ray start" in command)
        assert "RAY_AUTH_MODE=token" in start
        assert "NETRC=~/.segray/netrc" in start
    assert cluster["file_mounts"]["~/.ray/auth_token"] == TOKEN
    assert cluster["file_mounts"]["~/.segray/netrc"] == NETRC


def test_the_dashboard_listens_on_loopback(cluster):
    assert "--dashboard-host=127.0.0.1" in " ".join(cluster["head_start_ray_commands"])


def test_everything_that_pip_needs_is_shipped_and_nothing_else(cluster, root):
    shipped = [Path(here) for here in cluster["file_mounts"].values() if here.startswith("/")]
    assert all(path.exists() for path in shipped)
    assert {path.relative_to(root).parts[0] for path in shipped} == {
        *("segray", "sweeps", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
    }


def test_own_machines_have_no_cloud_left(cluster, own):
    jsonschema.validate(own, SCHEMA)
    assert own["provider"] == {
        "type": "local",
        "head_ip": "10.0.0.1",
        "worker_ips": ["10.0.0.2"],
    }
    assert own["auth"] == {"ssh_user": "root", "ssh_private_key": "/keys/one"}
    assert own["setup_commands"] == cluster["setup_commands"]
    assert own["file_mounts"] == cluster["file_mounts"]
    assert "RAY_enable_autoscaler_v2=0" in own["head_start_ray_commands"][-1]
    assert "available_node_types" in cluster  # a copy was changed
    text = yaml.safe_dump(own)
    assert not any(word in text for word in ("sudo", "boto3", "ImageId", "max_workers"))


def test_own_machines_may_be_set_up_otherwise(cluster):
    own = for_own_machines(cluster, "h", ["w"], "u", Path("k"), setup_commands=["true"])
    assert own["setup_commands"] == ["true"]


def test_an_own_head_without_workers_trains(cluster, own):
    alone = for_own_machines(cluster, "10.0.0.1", [], "root", "/keys/one")
    assert "--num-cpus=0" in own["head_start_ray_commands"][-1]
    assert "--num-cpus" not in alone["head_start_ray_commands"][-1]


def test_docker_goes_and_autoscaler_v1_comes_for_own_machines(cluster):
    cluster["docker"] = {"image": "x", "container_name": "y"}
    cluster["head_start_ray_commands"] = ["ray stop", "ray start --head"]
    own = for_own_machines(cluster, "h", ["w"], "u", "k")
    assert "docker" not in own
    assert own["head_start_ray_commands"] == [
        "ray stop",
        "export RAY_enable_autoscaler_v2=0; ray start --head",
    ]


def test_ray_down_leaves_ray_on_own_workers_alone(cluster, own):
    assert own_workers(own) == ["10.0.0.2"]
    assert own_workers(cluster) == []  # a cloud's
    assert own_workers(own | {"docker": {"container_name": "x"}}) == []


def test_local_paths_are_relative_to_the_files_own_folder(tmp_path, monkeypatch):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.yaml").write_text(
        "cluster_name: x\nprovider: {type: gcp}\n"
        "file_mounts: {~/a: ../data, ~/b: /b, ~/c: ~/c, ~/.ray/auth_token: TOKEN_FILE}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    assert read_cluster("c/x.yaml")["file_mounts"] == {
        "~/a": str(tmp_path / "data"),
        "~/b": "/b",
        "~/c": "/home/me/c",
        "~/.ray/auth_token": TOKEN,
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no cluster file at"),
        ("a: [", "is no YAML"),
        ("- a", "expected a mapping with cluster_name and provider, got list"),
        ("provider: {type: aws}", "of letters, digits, - and _, got None"),
        ("cluster_name: ' '\nprovider: {type: aws}", "cluster_name: expected a name"),
        ("cluster_name: ../x\nprovider: {type: aws}", "cluster_name: expected a name of letters"),
        ("cluster_name: x", "provider.type: expected aws, gcp, local"),
        ("cluster_name: x\nprovider: {type: aws}\nfile_mounts: [a]", "file_mounts: expected"),
        (AWS, "available_node_types: expected a mapping with a node type for the head .* got None"),
        (f"{AWS}available_node_types: {{}}", "available_node_types: expected a mapping"),
        (f"{AWS}available_node_types: {{a: }}", r"available_node_types\.a: expected .* got None"),
        (f"{AWS}available_node_types: {{a: {{node_config: [b]}}}}", r"a\.node_config: .* got \['b"),
        (f"{AWS}available_node_types: {{a: {{}}}}", r"head_node_type: .* \(a\), got None"),
        (f"{AWS}available_node_types: {{a: {{}}}}\nhead_node_type: b", r"\(a\), got 'b'"),
    ],
)
def test_what_is_no_cluster_file_is_refused(tmp_path, text, said):
    file = tmp_path / "x.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(RequestError, match=said) as refused:
        read_cluster(file)
    assert str(file) in str(refused.value)


def test_fill_replaces_whole_texts_wherever_they_stand():
    before = {"a": ["X", {"b": "X", "c": "X Y"}], "X": 1}
    assert fill(before, {"X": "z"}) == {"a": ["z", {"b": "z", "c": "X Y"}], "X": 1}
    assert before["a"][0] == "X"


def test_a_written_file_is_its_owners_alone(tmp_path, cluster):
    file = tmp_path / "state" / "cluster.yaml"
    write_cluster(cluster, file)
    assert read_cluster(file) == cluster
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in file.parent.iterdir()] == ["cluster.yaml"]


@pytest.mark.parametrize(
    ("place", "shared"),
    [("/mnt/lab/runs", True), ("/home/me/cityscapes", False), ("s3://lab/runs", True)],
)
def test_new_machines_of_a_cloud_have_what_the_file_brings_there(place, shared):
    cluster = {
        "provider": {"type": "aws"},
        "auth": {"ssh_private_key": "/home/me/.ssh/key"},
        "file_mounts": {"~/segray/segray": "/home/me/segray/segray"},
        "setup_commands": ["sudo mount -t nfs4 fs-1:/ /mnt/lab"],
    }
    assert _is_shared(place, cluster) is shared
