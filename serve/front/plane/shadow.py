"""Nobody: the client of shadow traffic, whose answers are measured and thrown away."""


class Nobody:
    """Takes an answer and forgets it."""

    __slots__ = ("keep_alive", "source")

    def __init__(self) -> None:
        self.keep_alive = True
        self.source = ""

    @property
    def is_stuck(self) -> bool:
        """Never: what is thrown away piles up nowhere."""
        return False

    def write(self, data: bytes) -> None:
        """Forget the bytes."""

    def cut(self) -> None:
        """Have nothing to cut."""

    def exchange_done(self) -> None:
        """Have nothing to go on with."""
