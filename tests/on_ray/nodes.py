"""A Ray cluster of several nodes on this machine, which obeys the lines that it reads: for `conftest.py`.

Each line is JSON: {"add": {"CPU": 2, "left": 4}}, {"remove": NODE}, {"drain": NODE}, {"actors": true}. So is each
answer.
"""

from __future__ import annotations

import json
import sys
import time

from ray._private import ray_constants

ray_constants.ENABLE_RAY_CLUSTER = False  # it stays on loopback

import ray  # noqa: E402
from ray._raylet import GcsClient  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402
from ray.core.generated import autoscaler_pb2  # noqa: E402

LOOPBACK = "127.0.0.1"


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False,
                                                            "node_ip_address": LOOPBACK})  # fmt: skip
    ray.init(cluster.address, namespace="watch", log_to_driver=False)
    nodes = {}
    say({"address": cluster.address})
    for line in sys.stdin:
        match json.loads(line):
            case {"add": resources}:
                cpus = resources.pop("CPU", 1)
                node = cluster.add_node(num_cpus=cpus, resources=resources, node_ip_address=LOOPBACK)
                nodes[node.node_id] = node
                say({"node": node.node_id})
            case {"remove": node}:
                cluster.remove_node(nodes.pop(node), allow_graceful=False)
                say({})
            case {"drain": node}:
                reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
                client = GcsClient(address=cluster.address)
                say({"taken": client.drain_node(node, reason, "spot", int(time.time() * 1000) + 60_000)[0]})
            case {"actors": _}:
                say({"actors": [name["name"] for name in ray.util.list_named_actors(all_namespaces=True)]})
    cluster.shutdown()


def say(answer: object) -> None:
    print("ANSWER " + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
