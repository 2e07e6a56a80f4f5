"""What a cluster on AWS needs before `ray up`: a closed security group, and its image's id here."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from segray.config import RequestError
from segray.submit.cluster_file import GROUP, Cluster

WHO_AM_I = "https://checkip.amazonaws.com"
ANSWER_S = 10.0
WIDEST = {4: 8, 6: 32}  # no network that holds more addresses may reach port 22
RAYS_ROLE = "ray-autoscaler-v1"  # what Ray gives a head that has no role in its file


def callers_network(given: str | None = None) -> str:
    """The addresses that may reach the head: `given` as a CIDR, or else the caller's own alone.

    Raises RequestError for what is no network, for one as wide as the internet, and where the
    caller's address cannot be found out.
    """
    if given is None:
        given = _own_address()
    try:
        network = ipaddress.ip_network(given.strip(), strict=False)
    except ValueError:
        raise RequestError(
            f"--from {given}: expected an address or a network, as in 203.0.113.7 or 203.0.113.0/24"
        ) from None
    if network.prefixlen < WIDEST[network.version]:
        raise RequestError(
            f"--from {given}: that opens port 22 to {network.num_addresses:,} addresses; expected "
            f"/{WIDEST[network.version]} or narrower: name your own address, or leave --from away"
        )
    return str(network)


def _own_address() -> str:
    try:
        with urllib.request.urlopen(WHO_AM_I, timeout=ANSWER_S) as answer:
            return str(ipaddress.ip_address(answer.read(100).decode().strip()))
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{WHO_AM_I} did not say which address you come from ({error}); name it yourself: "
            "--from CIDR, as in --from 203.0.113.7"
        ) from None


def security_groups(cluster: Cluster) -> dict[str, list[str]]:
    """The groups that the file gives to each node type; GROUP stands for segray's.

    Raises RequestError for a node type without any: Ray's own is open to the whole internet.
    """
    groups = {}
    for name, config in _configs(cluster).items():
        # Of a machine with several interfaces AWS and Ray want the groups there.
        given = [one.get("Groups") for one in config.get("NetworkInterfaces") or []]
        given = given or [config.get("SecurityGroupIds")]
        for some in given:
            if not some or not isinstance(some, list) or not all(isinstance(g, str) for g in some):
                raise RequestError(
                    f"available_node_types.{name}.node_config: expected SecurityGroupIds: [{GROUP}]"
                    ", a group that segray makes and opens to your address alone, or the ids of "
                    f"your own groups, got {some!r}; a machine without any gets Ray's group, whose "
                    "port 22 is open to the whole internet"
                )
        groups[str(name)] = sorted({group for some in given for group in some})
    return groups


def prepare(cluster: Cluster, network: str | None) -> dict[str, str]:
    """What `fill` puts into a cluster file: the security group's id, and images' ids.

    The group is `segray-<cluster_name>` in the VPC that Ray will take, made where it is missing. It
    is segray's own: port 22 from `network`, everything among its members, and whatever else it let
    in, such as the address of an earlier submit, is taken out. Without a `network` there is none:
    the file's groups are all the user's own. Raises RequestError where boto3 is missing, where AWS
    refuses, or where the region has no such image or no public subnet.
    """
    with _talking(cluster) as client:
        ec2 = client("ec2")
        values = {name: _image(ec2, name, _region(cluster)) for name in _images(cluster)}
        if network is None:
            return values
        group = _group(ec2, _vpc(ec2, cluster), str(cluster["cluster_name"]))
        _restrict(ec2, group, network)
    return values | {GROUP: group}


def let_head_pass_its_role(cluster: Cluster) -> bool:
    """Allow the head to start workers with its own role, which they need for s3://.

    Only where the file gives workers Ray's role and the head none. To be called when Ray has made
    that role, so after `ray up`. Says whether it changed anything; raises RequestError where AWS
    refuses (cluster.yaml has the command for somebody who may).
    """
    roles = {
        name: (config.get("IamInstanceProfile") or {}).get("Name")
        for name, config in _configs(cluster).items()
    }
    if roles.pop(cluster["head_node_type"], None) or RAYS_ROLE not in roles.values():
        return False
    name = "segray-pass-role"
    with _talking(cluster) as client:
        iam = client("iam")
        if name in iam.list_role_policies(RoleName=RAYS_ROLE)["PolicyNames"]:
            return False
        role = iam.get_role(RoleName=RAYS_ROLE)["Role"]["Arn"]
        statement = {"Effect": "Allow", "Action": "iam:PassRole", "Resource": role}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.put_role_policy(RoleName=RAYS_ROLE, PolicyName=name, PolicyDocument=policy)
    return True


def _configs(cluster: Cluster) -> dict[str, dict[str, Any]]:
    """What EC2 is asked for, by node type; a key that is left empty asks for nothing."""
    types = cluster["available_node_types"]
    return {name: node.get("node_config") or {} for name, node in types.items()}


def _region(cluster: Cluster) -> str:
    region = cluster["provider"].get("region")
    if not isinstance(region, str):
        raise RequestError(
            f"provider.region: expected an AWS region, as in us-west-2, got {region}"
        )
    return region


@contextlib.contextmanager
def _talking(cluster: Cluster) -> Iterator[Any]:
    """Yields what makes a client of a service; what AWS says no to becomes a RequestError."""
    region = _region(cluster)
    try:
        import boto3
        from botocore.exceptions import BotoCoreError, ClientError
    except ModuleNotFoundError:
        raise RequestError(
            "a cluster on AWS needs boto3, which is not installed here: "
            "pip install -c constraints.txt -e '.[aws]'"
        ) from None
    try:
        yield lambda service: boto3.client(service, region_name=region)
    except ClientError as error:
        said = error.response.get("Error", {})
        raise RequestError(
            f"AWS refuses {error.operation_name} in {region}: {said.get('Code')}: "
            f"{said.get('Message')}. Whoever starts a cluster needs the rights to EC2 and IAM that "
            "`ray up` needs; cluster.yaml names what is asked for"
        ) from None
    except BotoCoreError as error:
        raise RequestError(
            f"AWS cannot be asked: {error}. Credentials are found as the aws command finds them: "
            "`aws sts get-caller-identity` shows whose they are"
        ) from None


def _images(cluster: Cluster) -> set[str]:
    """Images that a file names rather than giving their id, which differs by region."""
    given = [config.get("ImageId") for config in _configs(cluster).values()]
    names = {image for image in given if isinstance(image, str)}
    return {image for image in names if not image.startswith(("ami-", "resolve:"))}


def _image(ec2: Any, name: str, region: str) -> str:
    def named(pattern: str) -> list[Mapping[str, Any]]:
        filters = [
            {"Name": "name", "Values": [pattern]},
            {"Name": "state", "Values": ["available"]},
        ]
        found = ec2.describe_images(Owners=["amazon"], Filters=filters)["Images"]
        return sorted(found, key=lambda image: str(image["CreationDate"]))

    if found := named(name):
        return str(found[-1]["ImageId"])
    others = named(f"{name.rpartition(' ')[0]} *") if " " in name else []
    newest = f"; the newest of its kind there is {others[-1]['Name']}" if others else ""
    raise RequestError(
        f"ImageId: Amazon has no image named {name} in {region}{newest}. Write the name or the id "
        "of one that is there into the cluster file"
    )


def _vpc(ec2: Any, cluster: Cluster) -> str:
    """The VPC that Ray will take: of the subnets in the file, or else of the first that would do.

    Ray takes public subnets unless it is told to use internal addresses, in the order of the file's
    zones, or else the last zone first (ray/autoscaler/_private/aws/config.py).
    """
    provider = cluster["provider"]
    given = sorted(
        {
            subnet
            for config in _configs(cluster).values()
            for subnet in config.get("SubnetIds") or []
        }
    )
    found = ec2.describe_subnets(**({"SubnetIds": given} if given else {}))["Subnets"]
    zones = [zone.strip() for zone in (provider.get("availability_zone") or "").split(",") if zone]
    usable = [
        subnet
        for subnet in sorted(
            found, key=lambda subnet: str(subnet["AvailabilityZone"]), reverse=True
        )
        if subnet["State"] == "available"
        and (provider.get("use_internal_ips") or subnet["MapPublicIpOnLaunch"])
        and (not zones or subnet["AvailabilityZone"] in zones)
    ]
    if zones:
        usable.sort(key=lambda subnet: zones.index(subnet["AvailabilityZone"]))
    if not usable:
        raise RequestError(
            f"no subnet in {_region(cluster)}{' of ' + ', '.join(zones) if zones else ''} gives "
            "machines a public address: `aws ec2 create-default-vpc` makes the usual ones, or name "
            "yours as SubnetIds in every node_config"
        )
    return str(usable[0]["VpcId"])


def _group(ec2: Any, vpc: str, cluster_name: str) -> str:
    name = f"segray-{cluster_name}"
    filters = [{"Name": "group-name", "Values": [name]}, {"Name": "vpc-id", "Values": [vpc]}]
    if found := ec2.describe_security_groups(Filters=filters)["SecurityGroups"]:
        return str(found[0]["GroupId"])
    made = ec2.create_security_group(
        GroupName=name,
        VpcId=vpc,
        Description="segray submit: port 22 from one address, everything among members",
        TagSpecifications=[
            {
                "ResourceType": "security-group",
                "Tags": [{"Key": "ray-cluster-name", "Value": cluster_name}],
            }
        ],
    )
    return str(made["GroupId"])


def _restrict(ec2: Any, group: str, network: str) -> None:
    """Let in what is wanted first, so that a session from an address that stays is not cut."""
    version = "CidrIpv6" if ":" in network else "CidrIpv4"

    def is_ssh(rule: Mapping[str, Any]) -> bool:
        ports = (rule["IpProtocol"], rule.get("FromPort"), rule.get("ToPort"))
        return bool(ports == ("tcp", 22, 22) and rule.get(version) == network)

    def is_inner(rule: Mapping[str, Any]) -> bool:
        inner = rule.get("ReferencedGroupInfo", {}).get("GroupId")
        return bool(rule["IpProtocol"] == "-1" and inner == group)

    answer = ec2.describe_security_group_rules(Filters=[{"Name": "group-id", "Values": [group]}])
    rules = [rule for rule in answer["SecurityGroupRules"] if not rule["IsEgress"]]
    wanted = []
    if not any(is_ssh(rule) for rule in rules):
        ranges = "Ipv6Ranges" if ":" in network else "IpRanges"
        cidr = {"CidrIpv6" if ":" in network else "CidrIp": network, "Description": "segray submit"}
        wanted.append({"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, ranges: [cidr]})
    if not any(is_inner(rule) for rule in rules):
        wanted.append({"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]})
    if wanted:
        ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=wanted)
    stale = [
        rule["SecurityGroupRuleId"] for rule in rules if not is_ssh(rule) and not is_inner(rule)
    ]
    if stale:
        ec2.revoke_security_group_ingress(GroupId=group, SecurityGroupRuleIds=stale)
