"""Commands for clusters that stay: standing servers, and the doctor who looks at a cluster. Declares, calls, prints."""

from __future__ import annotations

import argparse
import json
from typing import Any

from evener.cli.options import add_cluster_options, add_key_options, truth
from evener.cluster.cluster import Task
from evener.cluster.environment import Flags
from evener.errors import ConfigError


def add_server(commands: Any) -> None:
    command = commands.add_parser("server", help="stand by as one task of a cluster, for one job after the other")
    add_cluster_options(command)
    add_key_options(command)
    text = "recipes that clients may name, as mnist or mypackage.*; default: those that evener ships"
    command.add_argument("--recipes", metavar="NAME,...", help=text)
    text = "directories whose programs clients may run (evener launch --existing-servers); default: none"
    command.add_argument("--scripts", metavar="DIR,...", help=text)
    text = "directories that runs may write below; default: the current one"
    command.add_argument("--logdirs", metavar="DIR,...", help=text)
    command.set_defaults(run=run_server, options=command.options())


def add_doctor(commands: Any) -> None:
    command = commands.add_parser("doctor", help="try every task of a cluster from here; exit code 0: all are ready")
    add_cluster_options(command)
    command.add_argument("--keys", default="", metavar="DIR", help="the cluster's keys, if it has some")
    command.add_argument("--insecure", action="store_true", help="the cluster has no keys")
    command.add_argument("--json", action="store_true", help="print one JSON object")
    command.set_defaults(run=run_doctor, options=command.options())


def add_existing_servers(command: argparse.ArgumentParser) -> None:
    """For `train`, and for `task`, whose old command lines have it."""
    add = command.add_argument
    text = "run on standing servers (evener server ...), which are named by --ps-hosts and --worker-hosts"
    add("--existing-servers", type=truth, nargs="?", const=True, default=False, help=text)


def flags(args: argparse.Namespace) -> Flags:
    """What a command line says of its cluster."""
    return Flags(
        job_name=args.job_name, task_index=args.task_index, ps_hosts=args.ps_hosts, worker_hosts=args.worker_hosts,
        ps=args.ps,
    )  # fmt: skip


def old_flags(args: argparse.Namespace) -> None:
    """`evener task` takes the command lines of TensorFlow's programs, which read one flag only beside another."""
    if args.sync_replicas:
        if args.mode not in (None, "sync"):
            raise ConfigError(f"--sync_replicas and --mode {args.mode} are both given.", fix="leave one of them out.")
        args.mode = "sync"
    elif args.mode is None and args.replicas_to_aggregate is not None:
        given, args.replicas_to_aggregate = args.replicas_to_aggregate, None
        print(f"--replicas_to_aggregate={given} is not used without --sync_replicas, as in TensorFlow: "
              "each gradient is applied as it comes", flush=True)  # fmt: skip


def run_server(args: argparse.Namespace) -> int:
    from evener.cluster.environment import hosts
    from evener.commands.clustered import stand_by

    given = {name: getattr(args, name) for name in ("keys", "insecure", "heartbeat_timeout")}
    allowed = {name: hosts(getattr(args, name) or "") for name in ("recipes", "scripts", "logdirs")}
    own = {name: value for name, value in given.items() if value is not None}
    stand_by(flags(args), lambda line: print(line, flush=True), **allowed, **own)
    return 0


def run_doctor(args: argparse.Namespace) -> int:
    from evener.cluster.environment import find_cluster
    from evener.commands.doctor import as_json, examine, table

    task = None if args.job_name is None or args.task_index is None else Task(args.job_name, args.task_index)
    findings = examine(find_cluster(flags(args)), args.keys, task, insecure=args.insecure)
    print(json.dumps(as_json(findings)) if args.json else table(findings))
    return 0 if all(one.ready for one in findings) else 1


def add_keys(commands: Any) -> None:
    command = commands.add_parser("keys", help="make the keys of a cluster of several machines")
    actions = command.add_subparsers(dest="action", metavar="new", required=True)
    new = actions.add_parser("new", help="one pair for each task; pairs that exist are never replaced")
    new.add_argument("directory", metavar="DIR", help="where to write them")
    new.add_argument("--ps", type=int, default=1, metavar="P", help="parameter server tasks; default 1")
    new.add_argument("--workers", type=int, default=2, metavar="W", help="worker tasks; default 2")
    new.set_defaults(run=run_keys_new, options=new.options())


def run_keys_new(args: argparse.Namespace) -> int:
    from evener.transport import keys

    keys.new(args.directory, names := keys.names(args.ps, args.workers))
    print(f"{args.directory} now holds the keys of {', '.join(names)}.")
    print("Give each machine all *.public files and the *.secret files of its own tasks, and no other *.secret.")
    print("client.secret is for whoever starts runs on standing servers (evener train --existing-servers).")
    return 0


def add_explain(commands: Any) -> None:
    command = commands.add_parser("explain", help="which cluster this process would be in, as which task, who said so")
    add_cluster_options(command)
    command.set_defaults(run=run_explain, options=command.options())


def run_explain(args: argparse.Namespace) -> int:
    from evener.commands.clustered import explain_task

    print(explain_task(flags(args)))
    return 0
