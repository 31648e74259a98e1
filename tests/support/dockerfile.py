"""A Dockerfile, read as what it is: stages of instructions."""

from __future__ import annotations

import re
from pathlib import Path

Instruction = tuple[str, str]


class Recipe:
    """Instructions by stage, in order; what stands before the first FROM is the stage ""."""

    def __init__(self, path: Path) -> None:
        text = re.sub(r"\\\n", " ", path.read_text())
        self.stages: dict[str, list[Instruction]] = {"": []}
        name = ""
        for line in text.splitlines():
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            word, _, rest = line.strip().partition(" ")
            if word == "FROM":
                name = rest.split(" AS ")[1]
                self.stages[name] = []
            self.stages[name].append((word, rest.strip()))

    def all_of(self, word: str) -> list[str]:
        return [rest for instructions in self.stages.values() for w, rest in instructions if w == word]

    def last_of(self, stage: str, word: str) -> str:
        """The stage's own last instruction of that kind, else that of the stage it builds on."""
        own = [rest for w, rest in self.stages[stage] if w == word]
        base = self.stages[stage][0][1].split(" AS ")[0]
        return own[-1] if own else self.last_of(base, word)

    def copied(self) -> list[str]:
        """What comes from the build's context."""
        sources = []
        for rest in self.all_of("COPY"):
            words = rest.split()
            if not any(word.startswith("--from=") for word in words):
                sources += [word for word in words[:-1] if not word.startswith("--")]
        return sources
