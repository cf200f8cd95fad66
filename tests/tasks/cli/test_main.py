"""The command line's names are public: scripts depend on them."""

import typer.main

from tasks.cli.main import cli

PUBLIC = {
    "checkpoint compare": ["--json", "--rows", "left", "right"],
    "checkpoint import": ["--as-base", "--json", "--note", "path"],
    "checkpoint list": ["--json"],
    "checkpoint lm-eval": ["--include", "--json", "--limit", "--task", "checkpoint_id"],
    "checkpoint rejudge": ["--json", "--scorer", "checkpoint_id"],
    "checkpoint show": ["--json", "checkpoint_id"],
    "config schema": ["--of"],
    "config set": ["--unlock", "key", "value"],
    "config show": ["--json", "--origin"],
    "data convert": ["--drop-bad", "--json", "--profile", "path", "target"],
    "data validate": ["--json", "--profile", "path"],
    "demo": ["--keep"],
    "deploy list": ["--json"],
    "deploy now": ["--json", "checkpoint"],
    "deploy rollback": ["--json", "--reason", "release"],
    "doctor": ["--json"],
    "down": [],
    "drain": ["--after", "--json", "--reason", "host"],
    "events": ["--follow", "--job", "--json", "--limit", "--since", "subject"],
    "init-host": [
        "--add",
        "--directory",
        "--force",
        "--home",
        "--join",
        "--name",
        "--peer",
        "--peer-host-key",
        "--peer-keys",
        "--peer-port",
        "--postgresql",
        "--redis",
        "--redis-ca",
        "--redis-password-file",
        "--redis-port",
        "--registry",
        "--registry-password-file",
        "--role",
        "--signed",
        "--signing-keys",
        "--tls",
        "--torch",
        "--user",
    ],
    "job cancel": ["--reason", "job_id"],
    "job list": ["--json"],
    "job logs": ["job_id"],
    "job pause": ["--reason", "job_id"],
    "job resume": ["--reason", "job_id"],
    "job retry": ["--reason", "job_id"],
    "job show": ["--json", "--watch", "job_id"],
    "job skip": ["--reason", "job_id"],
    "job stop": ["--reason", "job_id"],
    "job wait": ["--json", "--timeout", "job_id"],
    "part check": ["name"],
    "part run": ["name"],
    "queue list": ["--json"],
    "queue move": ["--before", "--reason", "--to-end", "job_id"],
    "queue set-priority": ["--reason", "job_id", "priority"],
    "status": ["--json"],
    "submit": [
        "--after",
        "--at",
        "--force",
        "--json",
        "--name",
        "--overlong",
        "--parent",
        "--priority",
        "--profile",
        "--set",
        "--wait",
        "dataset",
    ],
    "suite build": ["--json", "--name", "--scorer", "path"],
    "suite show": ["--json"],
    "train": ["--card", "--json", "--model", "--overlong", "--plan", "--profile", "--set", "dataset"],
    "undrain": ["--json", "--reason", "host"],
    "up": ["--detach"],
}


def commands(group: object, prefix: str = "") -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, command in getattr(group, "commands", {}).items():
        path = f"{prefix} {name}".strip()
        if hasattr(command, "commands"):
            found |= commands(command, path)
        else:
            found[path] = sorted(
                next((option for option in parameter.opts if option.startswith("--")), parameter.opts[0])
                for parameter in command.params
                if parameter.name != "help"
            )
    return found


def test_commands_and_options_are_frozen() -> None:
    assert commands(typer.main.get_command(cli)) == PUBLIC
