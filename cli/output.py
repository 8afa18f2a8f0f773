"""Output of objects as JSON or YAML."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

FORMATS = ("json", "yaml")


def format_option(default: str | None = None) -> Callable[[Any], Any]:
    """The flag `-o json|yaml`."""
    words = f"Output format: json or yaml{f' (default: {default})' if default else ''}."
    return click.option(
        "--output", "-o", "output", type=click.Choice(FORMATS), default=default, metavar="FORMAT", help=words
    )


def render(document: Any, form: str) -> str:
    """A document as text that ends with a newline."""
    if form == "yaml":
        import yaml

        class Dumper(yaml.SafeDumper):
            """Writes multi-line strings as block scalars."""

        def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
            return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

        Dumper.add_representer(str, text)
        return str(yaml.dump(document, Dumper=Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True))
    import json

    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def show(document: Any, form: str) -> None:
    """Prints a document."""
    sys.stdout.write(render(document, form))
    sys.stdout.flush()
