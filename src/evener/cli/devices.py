"""The command line's part about devices: `evener devices`, and the options of train and task."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any


def add_devices(commands: Any) -> None:
    command = commands.add_parser("devices", help="the processor and the GPUs of this machine, with their memory")
    command.add_argument("--json", action="store_true", help="print one JSON array; memory in bytes")
    command.set_defaults(run=run_devices, options=command.options())


def run_devices(args: argparse.Namespace) -> int:
    from evener.devices.machine import existing, table

    found = existing()
    print(json.dumps([dataclasses.asdict(device) for device in found]) if args.json else table(found))
    return 0


def add_device_options(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("on which devices").add_argument
    switch = argparse.BooleanOptionalAction
    add("--place", metavar="MODULE=DEVICE,...", help="modules of the model on devices; one DEVICE: all of it there")
    add("--soft-placement", "--allow-soft-placement", action=switch, default=None,
        help="what a device cannot take goes to the CPU with a warning; default on")  # fmt: skip
    add("--log-device-placement", action=switch, default=None, help="print which module is on which device")
    add_gpu_options(command)
    add("--gpu-memory-fraction", type=float, metavar="F", help="of each GPU's memory that one worker may take")
    add("--allow-growth", action=switch, default=None, help="GPU memory grows in place (expandable segments)")


def add_gpu_options(command: argparse.ArgumentParser) -> None:
    """Which GPUs there are, and whose they are."""
    add = command.add_argument_group("GPUs").add_argument
    add("--num-gpus", type=int, metavar="N", help="of this machine: worker i takes GPU i mod N; default 0: the CPU")
    add("--share-gpus", action=argparse.BooleanOptionalAction, default=None, help="workers may be more than GPUs")
    add("--visible-devices", metavar="0,2", help="the only GPUs there are, counted from 0 again; default all")
