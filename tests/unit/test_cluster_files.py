"""The cluster files of examples/: by Ray's own checks for ``ray up``, by structure for KubeRay.

KubeRay's schema is in no Python package. What is checked is what its operator and Ray's autoscaler rely on: the fields
they read, the container they take for Ray's, and start parameters that ``ray start`` has.
"""

import json
import shlex
from pathlib import Path

import pytest
import yaml

from lorien.target import Target

ray_util = pytest.importorskip("ray.autoscaler._private.util")
EXAMPLES = Path(__file__).parents[2] / "examples" / "cluster"


def start_options():
    from ray.scripts.scripts import start

    return {option.lstrip("-") for parameter in start.params for option in parameter.opts}


def is_target(name):
    return Target.parse(name).key == name


def test_the_aws_file_is_a_cluster_of_ray():
    config = yaml.safe_load((EXAMPLES / "aws.yaml").read_text())
    ray_util.validate_config(ray_util.prepare_config(config))
    for kind, node in config["available_node_types"].items():
        custom = [name for name in node["resources"] if name != "CPU"]
        assert all(map(is_target, custom))
        assert bool(custom) == (kind != config["head_node_type"])
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    for command in starts:
        used = {word[2:].partition("=")[0] for word in shlex.split(command) if word.startswith("--")}
        assert used <= start_options()
        assert "start" not in shlex.split(command) or command.startswith("RAY_AUTH_MODE=token ")
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]


def test_the_kuberay_file_has_what_its_operator_reads():
    cluster = yaml.safe_load((EXAMPLES / "kuberay.yaml").read_text())
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    spec = cluster["spec"]
    head, workers = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head["serviceType"] == "ClusterIP"
    assert spec["authOptions"] == {"mode": "token"}
    assert head["rayStartParams"]["dashboard-host"] == "127.0.0.1"
    for group in (head, *workers):
        assert set(group["rayStartParams"]) <= start_options()
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = group["template"]["spec"]
        claims = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert container["resources"]["limits"] == container["resources"]["requests"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= claims
    for group in workers:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        (text,) = shlex.split(group["rayStartParams"]["resources"])  # the operator puts it into a shell command
        assert all(map(is_target, json.loads(text.replace("\\", ""))))


def test_the_autoscaler_reads_the_kuberay_file():
    """Ray's own translation of the resource into its node types, as it does inside of Kubernetes."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = yaml.safe_load((EXAMPLES / "kuberay.yaml").read_text())
    cluster["metadata"]["namespace"] = "default"
    config = _derive_autoscaling_config_from_ray_cr(cluster)
    ray_util.validate_config(config)
    (worker,) = (node for name, node in config["available_node_types"].items() if name != "headgroup")
    assert worker["resources"] == {"CPU": 7, "memory": 12 << 30, "llvm-mcpu_znver4-num-cores_8": 1}
