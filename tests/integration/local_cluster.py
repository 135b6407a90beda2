"""A Ray cluster of several nodes on this machine, in a process of its own: `python local_cluster.py [CPUS ...]`.

A node for each number, the head first; without numbers two nodes of two CPUs, a real job server and one for Ray's clients. Prints
`READY http://... ray://...`, the addresses of these, or `READY HOST:PORT`, that of the cluster, once it is whole, and ends when its
standard input does.
"""

import os
import socket
import sys
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

from ray.cluster_utils import Cluster

MEMORY = 100 << 20


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def main(cpus: list[int]) -> None:
    has_jobs = not cpus
    clients = free_port()
    servers = {"dashboard_host": "127.0.0.1", "dashboard_port": free_port(), "ray_client_server_port": clients}
    first, *others = [node(count) for count in cpus or [2, 2]]
    first |= {"include_dashboard": has_jobs} | (servers if has_jobs else {})
    cluster = Cluster(initialize_head=True, head_node_args=first)
    try:
        for each in others:
            cluster.add_node(**each)
        told = f"http://{cluster.webui_url} ray://127.0.0.1:{clients}" if has_jobs else cluster.address
        sys.stdout.write(f"READY {told}\n")
        sys.stdout.flush()
        sys.stdin.read()
    finally:
        cluster.shutdown()


def node(num_cpus: int) -> dict[str, Any]:
    """Its agent has a port of its own: the usual one may be that of another cluster on this machine, and then takes no job."""
    return {"num_cpus": num_cpus, "object_store_memory": MEMORY, "dashboard_agent_listen_port": free_port()}


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
