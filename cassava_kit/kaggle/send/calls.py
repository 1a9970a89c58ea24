"""Call the official Kaggle client with retries, and without secrets in what is said: `RetriedCalls`.

`import kaggle` signs in and creates a folder, so it is imported late. What the client prints is discarded: it may hold
request headers, and says "successfully" where the reply says otherwise.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any, TypeVar

from cassava_kit.kaggle.pack.credentials import collect_secrets, redact, strip_queries
from cassava_kit.kaggle.send.advice import NO_CREDENTIALS, with_advice
from cassava_kit.kaggle.send.official import make_official_api
from cassava_kit.kaggle.send.remote import KaggleError, Say
from cassava_kit.kaggle.send.retry import WaitPolicy, answer_text, http_status, may_pass, pause_before

T = TypeVar("T")
GONE = (403, 404)  # the answers for what does not exist or belongs to someone else


class RetriedCalls:
    """Calls of the official client, retried on HTTP 429, 5xx and lost connections; other errors are a KaggleError.

    `waits` says how long, `say` prints a line, `api` replaces the official client in tests.
    """

    def __init__(self, competition: str, *, waits: WaitPolicy | None = None, say: Say = print, api: Any = None) -> None:
        self.competition, self.waits, self.say = competition, waits or WaitPolicy(), say
        self.secrets = collect_secrets()
        self.api = api or self._sign_in()
        self._answered = False  # before the first answer a lost connection is no outage

    def _sign_in(self) -> Any:
        with self.silence():
            try:
                return make_official_api()
            except ImportError as error:
                raise KaggleError(f"the Kaggle client does not start ({error}); run: pip install kaggle six") from None
            except SystemExit:
                raise KaggleError(NO_CREDENTIALS) from None
            except OSError as error:
                raise KaggleError(f"signing in failed: {self.advise(str(error))}") from None

    @contextlib.contextmanager
    def silence(self) -> Iterator[io.StringIO]:
        """Keep back what is printed meanwhile; yields the buffer that collects it."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield said

    def call(
        self,
        what: str,
        function: Callable[[], T],
        *,
        done: Callable[[], T | None] | None = None,
        optional: bool = False,
    ) -> T:
        """Return the answer of a call, repeated while its failure may pass.

        Calls that change something have a `done`: it returns the answer of a call that was carried out although the
        answer was lost, else None. Such a call, or an `optional` one, is not repeated for hours where Kaggle answers
        with an error.
        """
        began = self.waits.clock()
        for attempt in count(1):
            with self.silence() as said:
                try:
                    answer = function()
                    self._answered = True
                    return answer
                except KeyError as error:
                    unknown = self.clean(str(error))
                    raise KaggleError(
                        f"{what}: the reply holds {unknown}, which this version of the client does not know; "
                        "run: pip install -U kaggle, and call again: nothing is done twice"
                    ) from None
                except (OSError, ValueError, SystemExit) as error:  # requests' errors are OSErrors
                    failure = error
            pause = pause_before(failure, self.waits, attempt)
            waited = self.waits.clock() - began + pause
            if not may_pass(failure) or not self._goes_on(
                attempt, waited, failure, patient=done is None and not optional
            ):
                break
            if done is not None and (found := done()) is not None:
                return found
            self.say(f"{what}: {self._said(failure)}; again in {pause:.0f} s")
            self.waits.sleep(pause)
        printed = self.clean(said.getvalue())[-300:] if isinstance(failure, SystemExit) else ""
        raise KaggleError(f"{what} failed: {self.advise(f'{failure} {answer_text(failure)} {printed}')}") from None

    def _goes_on(self, attempt: int, waited: float, failure: BaseException, *, patient: bool) -> bool:
        """Return whether to try again after `attempt` tries and `waited` seconds."""
        if attempt < self.waits.attempts:
            return True
        outlasts = self._answered and (patient or http_status(failure) is None)
        return outlasts and waited <= self.waits.outage

    def _said(self, error: BaseException) -> str:
        return " ".join(self.clean(str(error)).split())[:200]

    def advise(self, reason: str) -> str:
        """Return the reason of a failure as one line without secrets, with advice where its cause is known."""
        return with_advice(self.clean(reason), self.competition)

    def clean(self, text: str) -> str:
        """Return the text without secrets and signed addresses; call it before the text is cut."""
        return redact(strip_queries(text), self.secrets)

    def call_unless_gone(self, what: str, function: Callable[[], T], *, optional: bool = False) -> T | None:
        """Return the answer, or None where the thing asked for does not exist."""

        def ask() -> T | None:
            try:
                return function()
            except OSError as error:
                if http_status(error) in GONE:
                    return None
                raise

        return self.call(what, ask, optional=optional)

    def ask(self, what: str, function: Callable[[], T]) -> T | None:
        """Return the answer, or None where there is none: gone, refused, or unknown to this version of the client."""
        try:
            return self.call_unless_gone(what, function, optional=True)
        except (KaggleError, AttributeError, TypeError, ImportError):
            return None
