"""Where this machine's pip finds packages, told to programs that do not read its configuration."""

from __future__ import annotations

import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

import pytest

from tests.support.programs import output

# In the order in which they count for pip: the last has its way.
SECTIONS = ("global", "install", ":env:")
INDICES = ("index-url", "extra-index-url")
# What says where packages come from. What else is configured says what they must be, and the
# project's own pins say that.
OPTIONS = (
    *(*INDICES, "find-links", "no-index", "trusted-host"),
    *("cert", "client-cert", "proxy", "timeout", "default-timeout"),
)
# pip says of every try that it failed, and of one thing at the end that it gives up.
TRIED = re.compile(r"connection broken by .*")
GIVEN_UP = re.compile(r"No matching dist|Max retries exceeded")
OF_OTHERS = re.compile(
    r".*error sending request.*"  # uv
    r"|.*Failed getting release file.*|.*Couldn't download.*"  # debootstrap
)


@dataclass(frozen=True)
class PackageSources:
    """The options of pip's configuration that say where packages come from."""

    options: dict[str, str]

    @classmethod
    def configured(cls) -> PackageSources:
        """Those of the Python that runs the tests, of its files and variables together."""
        text = output([sys.executable, "-m", "pip", "config", "list"], timeout=60)
        found = re.findall(r"^(\S+)\.([\w-]+)=(.*)$", text, re.MULTILINE)
        ordered = sorted(
            (SECTIONS.index(section), name, ast.literal_eval(value))
            for section, name, value in found
            if section in SECTIONS and name in OPTIONS
        )
        return cls({name: " ".join(value.split()) for _, name, value in ordered})

    def of_pip(self) -> str:
        """A configuration file for another pip."""
        lines = [f"{name} = {value}" for name, value in self.options.items()]
        return "\n".join(["[global]", *lines, "retries = 2", ""])

    def of_uv(self) -> tuple[list[str], dict[str, str]]:
        """Flags and variables for uv, which then takes the best version of all places as pip does."""
        flags = ["--no-config", "--index-strategy", "unsafe-best-match"]
        names = {
            "index-url": "--default-index",
            "extra-index-url": "--extra-index-url",
            "find-links": "--find-links",
            "trusted-host": "--allow-insecure-host",
        }
        for name, flag in names.items():
            for value in self._words(name):
                flags += [flag, value]
        if self.options.get("no-index", "").lower() in ("1", "true", "yes", "on"):
            flags.append("--no-index")
        variables = {
            "SSL_CERT_FILE": "cert",
            "SSL_CLIENT_CERT": "client-cert",
            "ALL_PROXY": "proxy",
        }
        given = {name: self.options.get(option, "") for name, option in variables.items()}
        return flags, {name: value for name, value in given.items() if value}

    def paths(self) -> set[Path]:
        """The files and folders of this machine that the options name, and what they lead to."""
        found = set()
        for name in self.options:
            for word in self._words(name):
                path = _local(word)
                if path is not None and path.exists():
                    # An index's links lead to files beside it.
                    found.add(path.parent if name in INDICES else path)
        return found - {Path("/")}

    def torch_for_cpus(self) -> str | None:
        """A folder of wheels that has torch's build for CPUs, as the URL of an index."""
        for word in self._words("find-links"):
            folder = _local(word)
            if folder is not None and list(folder.glob("torch-*+cpu-*.whl")):
                return folder.as_uri()
        return None

    def _words(self, name: str) -> list[str]:
        return self.options.get(name, "").split()


def _local(word: str) -> Path | None:
    """The path that an option's value is, or whose URL it is."""
    if word.startswith("file:"):
        return Path(url2pathname(urlparse(word).path))
    return Path(word) if word.startswith("/") else None


def skip_if_unreachable(error: RuntimeError) -> None:
    """Skip a test that failed because no registry answers."""
    text = str(error)
    said = OF_OTHERS.search(text) or (GIVEN_UP.search(text) and TRIED.search(text))
    if said:
        pytest.skip(f"no index is reached: {said[0].strip()[:200]}")
