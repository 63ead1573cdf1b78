"""Hatchling hook: compiles the container init for every architecture into ``images/init/build``."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class InitBuildHook(BuildHookInterface[Any]):
    """Compiles ``init.c`` before the package is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile what is missing or older than its source."""
