"""What an error of the client means, whether it is tried again, and what of it is printed."""

from __future__ import annotations

import pytest
import requests
from urllib3.exceptions import ProtocolError

from cassava_kit.kaggle.pack.credentials import redact, strip_queries
from cassava_kit.kaggle.send.advice import ADVICE, with_advice
from cassava_kit.kaggle.send.retry import WaitPolicy, may_pass, pause_before


@pytest.mark.parametrize(
    ("reply", "advice"),
    [
        ("SSLError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed')", "REQUESTS_CA_BUNDLE"),
        ("[Errno 13] Permission denied: '/home/me/.config/kaggle'", "a file or folder of this machine"),
        ("[Errno 122] Disk quota exceeded", "a file or folder of this machine"),
        ("[Errno 111] Connection refused", "does not answer as it should"),
        ("Phone verification is required", "asks for a phone number"),
        ("You must verify your account", "asks for a phone number"),
        ("Weekly GPU quota of 30.00 hours exceeded", "GPU quota is used up"),
        ("kernel source refused: me/cassava-kit-pretrain-ssl: 404 not found", "does not know it"),
        ("Permission 'kernels.get' was denied", "competitions/leaves/rules"),
    ],
)
def test_each_reply_has_its_advice(reply: str, advice: str) -> None:
    assert advice in with_advice(reply, "leaves").removeprefix(reply)


def test_advice_is_one_line_and_names_the_competition() -> None:
    for _, advice in ADVICE:
        filled = advice.format(competition="leaves")
        assert "\n" not in filled and "<" not in filled


def test_only_what_may_pass_is_tried_again() -> None:
    for local in (PermissionError(13, "Permission denied", "kaggle.json"), OSError(28, "No space left on device")):
        assert not may_pass(local)
    for passing in (ConnectionResetError(104, "reset"), TimeoutError(110, "timed out"), OSError("connection lost: ")):
        assert may_pass(passing)
    assert not may_pass(ValueError("no such kernel"))
    lost = requests.exceptions.ConnectionError(ProtocolError("Connection aborted."))
    assert may_pass(lost)
    pauses = [pause_before(lost, WaitPolicy(first=2.0, longest=60.0), attempt) for attempt in (1, 2, 3, 6, 1000)]
    assert pauses == [2.0, 4.0, 8.0, 60.0, 60.0]


def test_a_secret_that_begins_with_another_leaves_no_tail() -> None:
    secrets = ["PLANTED-KEY", "PLANTED-KEY-AND-TAIL", "PLANTED-KEY-AND"]
    assert redact("it is PLANTED-KEY-AND-TAIL.", secrets) == "it is ***."


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("with url: /data/a.csv?X-Signature=ab%2F&Expires=9 (Caused by", "with url: /data/a.csv?*** (Caused by"),
        ("403 for url: https://storage/x?sig=1&t=2", "403 for url: https://storage/x?***"),
        ("is it you, and are the rules accepted (https://k/rules)? x = 1", None),
    ],
)
def test_signed_addresses_are_not_printed(said: str, left: str | None) -> None:
    assert strip_queries(said) == (left or said)
