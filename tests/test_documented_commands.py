"""Every `evener` command that a document shows is one that evener takes: its words, and the options together.

That they do what is said is shown by running them, or their like on this machine: tests/system/test_readme.py,
test_cluster_document.py, test_tutorials.py, test_standing_servers.py, test_towers_command.py, test_pipeline.py,
test_model_back.py.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from evener import settings
from evener.cli import main as cli
from evener.cli.chaos import rehearsed
from evener.cluster.environment import find

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").glob("*.md"))]


def commands() -> list[str]:
    """Lines of code blocks that begin with evener, after a prompt or what torchrun puts before; none is cut short."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        blocks += re.findall(r"^    \$ .*", text, re.MULTILINE)  # indented
        for shown in "\n".join(blocks).replace("\\\n", " ").splitlines():
            line = re.sub(r"^ *(\S*\$ )?(torchrun \S+ \S+ -m )?", "", shown)
            if re.match(r"evener [a-z]", line) and "..." not in line:
                found.append(line)
    return list(dict.fromkeys(found))


def test_the_documents_show_commands():
    words = {command.split()[1] for command in commands()}
    assert {"train", "task", "server", "doctor", "explain", "eval", "audit", "export", "keys", "data",
            "launch", "chaos"} <= words  # fmt: skip


@pytest.mark.parametrize("command", commands())
def test_a_documented_command_is_one_that_evener_takes(command):
    args = cli.parsed(shlex.split(command, comments=True)[1:])
    if args.command == "task":
        find(cli.flags(args), {})
    elif args.command == "chaos":
        assert rehearsed(args).tasks
    elif args.command == "train" and not args.existing_servers:
        settings.make({"logdir": "anywhere", "recipe": args.recipe, **cli.settings_options(args)})
