"""The security group and the image, against moto."""

import io
import sys
import urllib.request

import pytest

from segray.config import RequestError
from segray.submit import aws
from segray.submit.cluster_file import GROUP, fill, read_cluster


@pytest.fixture
def cluster(cluster_file):
    return read_cluster(cluster_file)


def lets_in(client, group):
    """Its rules, but for what its members may do among themselves; and whether they may all."""
    answer = client("ec2").describe_security_group_rules(
        Filters=[{"Name": "group-id", "Values": [group]}]
    )
    rules = [rule for rule in answer["SecurityGroupRules"] if not rule["IsEgress"]]
    inner = [rule for rule in rules if "ReferencedGroupInfo" in rule]
    outer = [
        (rule["IpProtocol"], rule["FromPort"], rule["ToPort"], rule.get("CidrIpv4"))
        for rule in rules
        if rule not in inner
    ]
    everything = [(rule["IpProtocol"], rule["ReferencedGroupInfo"]["GroupId"]) for rule in inner]
    return outer, everything == [("-1", group)]


def test_port_22_is_open_to_the_latest_address_alone(client, cluster):
    values = aws.prepare(cluster, "203.0.113.7/32")
    group = values[GROUP]
    assert lets_in(client, group) == ([("tcp", 22, 22, "203.0.113.7/32")], True)
    assert aws.prepare(cluster, "203.0.113.7/32") == values  # as it was
    assert lets_in(client, group) == ([("tcp", 22, 22, "203.0.113.7/32")], True)
    world = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22}
    client("ec2").authorize_security_group_ingress(
        GroupId=group, IpPermissions=[world | {"IpRanges": [{"CidrIp": "0.0.0.0/0"}]}]
    )
    assert aws.prepare(cluster, "198.51.100.0/24") == values
    assert lets_in(client, group) == ([("tcp", 22, 22, "198.51.100.0/24")], True)


def test_groups_of_the_users_own_stay_as_they_are_and_segrays_is_not_made(client, cluster):
    ec2 = client("ec2")
    mine = ec2.create_security_group(GroupName="mine", Description="mine")["GroupId"]
    own = fill(cluster, {GROUP: mine})
    assert set(map(tuple, aws.security_groups(own).values())) == {(mine,)}
    assert GROUP not in aws.prepare(own, None)
    groups = ec2.describe_security_groups()["SecurityGroups"]
    assert {group["GroupName"] for group in groups} == {"default", "mine"}
    assert lets_in(client, mine)[0] == []


@pytest.mark.parametrize("given", [None, [], "SECURITY_GROUP", [22]])
def test_a_machine_that_would_get_rays_group_is_refused(cluster, given):
    cluster["available_node_types"]["gpu-spot"]["node_config"]["SecurityGroupIds"] = given
    with pytest.raises(
        RequestError, match=r"types\.gpu-spot\.node_config: expected Sec"
    ) as refused:
        aws.security_groups(cluster)
    assert "SecurityGroupIds: [SECURITY_GROUP]" in str(refused.value)
    assert "port 22 is open to the whole internet" in str(refused.value)


def test_groups_of_a_machines_interfaces_count(cluster):
    head = cluster["available_node_types"]["head"]["node_config"]
    del head["SecurityGroupIds"]
    head["NetworkInterfaces"] = [{"Groups": ["sg-2"]}, {"Groups": ["sg-1", "sg-2"]}]
    assert aws.security_groups(cluster)["head"] == ["sg-1", "sg-2"]
    del head["NetworkInterfaces"][1]["Groups"]
    with pytest.raises(RequestError, match=r"types\.head\.node_config: .* got None"):
        aws.security_groups(cluster)


def test_two_clusters_have_two_groups_each_in_the_vpc_that_ray_takes(client, cluster):
    first = aws.prepare(cluster, "203.0.113.7/32")[GROUP]
    second = aws.prepare(cluster | {"cluster_name": "other"}, "203.0.113.7/32")[GROUP]
    assert first != second
    ec2 = client("ec2")
    default = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0]
    groups = ec2.describe_security_groups(GroupIds=[first, second])["SecurityGroups"]
    assert {group["VpcId"] for group in groups} == {default["VpcId"]}
    assert {group["GroupName"] for group in groups} == {"segray-segray", "segray-other"}


def test_subnets_of_the_file_decide_on_the_vpc(client, cluster):
    ec2 = client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.7.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.7.1.0/24")["Subnet"]["SubnetId"]
    for node in cluster["available_node_types"].values():
        node["node_config"]["SubnetIds"] = [subnet]
    with pytest.raises(RequestError, match="gives machines a public address"):
        aws.prepare(cluster, "203.0.113.7/32")
    cluster["provider"]["use_internal_ips"] = True
    group = aws.prepare(cluster, "203.0.113.7/32")[GROUP]
    assert ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"][0]["VpcId"] == vpc


def test_an_image_is_named_in_the_file_and_has_its_id_in_the_region(client, cluster):
    filled = fill(cluster, aws.prepare(cluster, "203.0.113.7/32"))
    images = {node["node_config"]["ImageId"] for node in filled["available_node_types"].values()}
    assert images == {"ami-0123456789abcdef0"}
    assert aws.prepare(filled, "203.0.113.7/32").keys() == {GROUP}  # an id is taken as it is


def test_where_the_image_is_gone_the_newest_of_its_kind_is_named(client, cluster):
    there = cluster["available_node_types"]["head"]["node_config"]["ImageId"]
    for node in cluster["available_node_types"].values():
        node["node_config"]["ImageId"] = f"{there.rpartition(' ')[0]} 19990101"
    with pytest.raises(RequestError, match="19990101 in us-west-2; the newest") as refused:
        aws.prepare(cluster, "203.0.113.7/32")
    assert there in str(refused.value)


def test_the_head_may_hand_on_its_role_once_ray_has_made_it(client, cluster):
    with pytest.raises(RequestError, match="Role ray-autoscaler-v1 not found"):
        aws.let_head_pass_its_role(cluster)
    iam = client("iam")
    iam.create_role(RoleName=aws.RAYS_ROLE, AssumeRolePolicyDocument="{}")
    assert aws.let_head_pass_its_role(cluster)
    assert not aws.let_head_pass_its_role(cluster)
    policy = iam.get_role_policy(RoleName=aws.RAYS_ROLE, PolicyName="segray-pass-role")
    (statement,) = policy["PolicyDocument"]["Statement"]
    role = iam.get_role(RoleName=aws.RAYS_ROLE)["Role"]["Arn"]
    assert statement == {"Effect": "Allow", "Action": "iam:PassRole", "Resource": role}


def test_a_head_with_a_role_of_the_users_own_is_left_alone(cluster):
    head = cluster["available_node_types"]["head"]["node_config"]
    head["IamInstanceProfile"] = {"Name": "mine"}
    assert not aws.let_head_pass_its_role(cluster)


def test_what_is_left_empty_asks_for_nothing(client, tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(
        "cluster_name: small\nprovider: {type: aws, region: us-west-2, availability_zone: }\n"
        "head_node_type: head\navailable_node_types: {head: {node_config: }, gpu: {node_config: "
        "{ImageId: , SubnetIds: , IamInstanceProfile: }}}\n"
    )
    cluster = read_cluster(file)
    assert aws.prepare(cluster, "203.0.113.7/32").keys() == {GROUP}
    assert not aws.let_head_pass_its_role(cluster)


def test_without_boto3_the_extra_is_named(cluster, monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(RequestError, match=r"pip install .*\[aws\]"):
        aws.prepare(cluster, "203.0.113.7/32")


def test_without_credentials_it_is_said_how_to_look_for_them(cluster, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(RequestError, match="aws sts get-caller-identity"):
        aws.prepare(cluster, "203.0.113.7/32")


@pytest.mark.parametrize(
    ("given", "network"),
    [
        ("203.0.113.7", "203.0.113.7/32"),
        ("203.0.113.7/24", "203.0.113.0/24"),
        ("2001:db8::1", "2001:db8::1/128"),
    ],
)
def test_an_address_or_a_network_may_be_given(given, network):
    assert aws.callers_network(given) == network


@pytest.mark.parametrize("given", ["0.0.0.0/0", "::/0", "128.0.0.0/1"])
def test_the_internet_may_not(given):
    with pytest.raises(RequestError, match="opens port 22 to"):
        aws.callers_network(given)


def test_what_is_no_network_is_refused():
    with pytest.raises(RequestError, match="--from home: expected an address or a network"):
        aws.callers_network("home")


def test_else_the_callers_own_address_is_asked_for(monkeypatch):
    def answer(url, timeout):
        assert (url, timeout) == ("https://checkip.amazonaws.com", aws.ANSWER_S)
        return io.BytesIO(b"203.0.113.9\n")

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    assert aws.callers_network() == "203.0.113.9/32"


@pytest.mark.parametrize("body", [b"<html>", OSError("no route")])
def test_an_address_that_is_not_found_out_must_be_given(monkeypatch, body):
    def answer(url, timeout):
        if isinstance(body, OSError):
            raise body
        return io.BytesIO(body)

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    with pytest.raises(RequestError, match="--from CIDR"):
        aws.callers_network()
