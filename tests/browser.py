"""Pages in a browser without a network."""

from __future__ import annotations

from typing import Any


class Watched:
    """A page that may ask for nothing and complain of nothing."""

    def __init__(self, chromium: Any, address: str, width: int = 1440, allowed: str = "file:") -> None:
        self.page = chromium.new_context(
            offline=allowed == "file:", viewport={"width": width, "height": 900}
        ).new_page()
        self.trouble: list[str] = []
        self.page.on("console", lambda message: self.trouble.append(f"console: {message.text}"))
        self.page.on("pageerror", lambda error: self.trouble.append(f"error: {error}"))
        self.page.on("request", self._asked)
        self.allowed = allowed
        self.page.goto(address)

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.allowed, "data:")):
            self.trouble.append(f"request: {request.url}")

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, *failure: object) -> None:
        self.page.context.close()
        assert self.trouble == []
