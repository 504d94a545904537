"""The text of tokens as they come, up to a stop string."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence

from pygpt.errors import UserError
from pygpt.text.tokenizer import StreamDecoder, Tokenizer


class TextStream:
    """text grows with each token, by whole characters, and ends before the first of the stop strings.

    What may become a stop string stays out of the text until that is decided: wherever tokens meet, none of it shows.
    Raises UserError for a stop string that is empty.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        if "" in stop:
            raise UserError("a stop string is empty, expected at least one character")
        self.text = ""
        self.stopped = False
        self._decoder, self._stop = StreamDecoder(tokenizer), stop
        self._held = ""
        self._borders: list[int] = []  # characters up to the end of each token, those held back or cut off included

    def add(self, token: int) -> bool:
        """Returns whether a stop string is complete, after which nothing is added any more."""
        piece = self._decoder.add(token)
        self._borders.append(len(self.text) + len(self._held) + len(piece))
        return self._add(piece)

    def end(self) -> None:
        """No token follows: what was held back belongs to the text, and half a character is U+FFFD."""
        self._add(self._decoder.end())
        self.text, self._held = self.text + self._held, ""

    def pieces(self, begin: int = 0) -> Iterator[tuple[int, str]]:
        """The text from a character on, cut where tokens meet: each token's number, from 0, and its characters.

        A character of several tokens belongs to the one that completes it.
        """
        last = len(self._borders) - 1
        for number in range(bisect_right(self._borders, begin, hi=max(last, 0)), last + 1):
            end = min(self._borders[number], len(self.text)) if number < last else len(self.text)
            if end > begin:
                yield number, self.text[begin:end]
                begin = end

    def _add(self, piece: str) -> bool:
        if self.stopped:
            return True
        text = self._held + piece
        found = [at for at in map(text.find, self._stop) if at >= 0]
        self.stopped = bool(found)
        shown = min(found) if found else len(text) - max((_begun(text, stop) for stop in self._stop), default=0)
        self.text, self._held = self.text + text[:shown], "" if found else text[shown:]
        return self.stopped


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of the text are the beginning of a stop string."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
