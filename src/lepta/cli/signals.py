"""How a command ends when SIGTERM or SIGINT tells it to: as after an error, so that its clean-up is done."""

import os
import signal
import threading
import time
from collections.abc import Callable

AGAIN = (
    "no output is half-written; run the same command again to go on (training: from its checkpoints, which are kept)"
)
STDERR = 2
AT_ONCE = 1.0  # seconds in which signals count as one: `timeout` sends two
LATER = 0.05  # seconds until what swallowed the exception has surely returned


class Told(SystemExit):
    """Raised by a signal; if it is gone before the command is over, something swallowed it.

    Python drops all exceptions in finalisers and weakref callbacks (imports have one); libraries have bare `except`s.
    """

    def __init__(self, code: int, gone: Callable[[], None]) -> None:
        super().__init__(code)
        self._gone = gone

    def __del__(self) -> None:
        self._gone()


class Signals:
    """The two signals of a command: they raise `Told` until it ends; `code` is then its exit code, as is the custom."""

    def __init__(self) -> None:
        self.code = 0
        self._last = -AT_ONCE
        self._numbers = {signal.SIGTERM, signal.SIGINT}
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as it is for jobs in the background
            self._numbers.remove(signal.SIGINT)
        for number in self._numbers:
            signal.signal(number, self._tell)

    def over(self) -> None:
        """After the command: a signal now ends the process where it is."""
        for number in self._numbers:
            signal.signal(number, signal.SIG_DFL)
        self._numbers.clear()

    def _tell(self, number: int, _: object) -> None:
        if not self.code:
            self.code = 128 + number
            said = f"\nlepta: interrupted ({signal.Signals(number).name}); {AGAIN}\n"
            os.write(STDERR, said.encode())  # `sys.stderr` refuses this in the middle of a write of its own
        if time.monotonic() - self._last > AT_ONCE:
            self._last = time.monotonic()
            raise Told(self.code, lambda: self._tell_again(number))

    def _tell_again(self, number: int) -> None:
        if self._numbers:
            self._last = -AT_ONCE
            again = threading.Timer(LATER, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
