"""What to do about a refusal of Kaggle's: `with_advice`."""

from __future__ import annotations

import re

NO_QUOTA = "this week's GPU quota is used up; it is renewed every Saturday (kaggle.com/settings shows it)"
# The advice of the first pattern found in the reply is given; {competition} is filled in.
ADVICE = (
    (
        r"certificate",
        "Kaggle's certificate is not trusted here; behind a proxy put its certificate's path into REQUESTS_CA_BUNDLE",
    ),
    (
        r"^\[Errno \d+\] ([^:]+: '|no space|disk quota)",
        "that is a file or folder of this machine; look at its rights and at the space that is left, and try again",
    ),
    (
        r"session count of \d+ reached|maximum batch (gpu )?session",
        "two GPU sessions are already running; wait for one to end, or stop it on kaggle.com/code, and push again",
    ),
    (r"quota", NO_QUOTA),
    (
        r"rules|accept.{0,20}competition|must join|competition source",
        "join the competition and accept its rules once: https://www.kaggle.com/competitions/{competition}/rules",
    ),
    (r"phone|verify your", "Kaggle asks for a phone number before it lends a GPU: kaggle.com/settings"),
    (r"dataset source|still processing|not ready", "the dataset is not there or still processing; push again shortly"),
    (r"already in use", "that dataset exists; if it is not this kit's, choose another slug in dataset-metadata.json"),
    (
        r"submission limit|submissions? (remaining|per day|today)|daily limit",
        "today's submissions are used up; submit again after midnight UTC",
    ),
    (
        r"\b401\b|unauthori[sz]ed|invalid credentials|unauthenticated",
        "the credentials are refused; make a new API token",
    ),
    (
        r"\b403\b|permission|forbidden|denied",
        "Kaggle refuses this for your account: is the owner in dataset-metadata.json you, and are the rules accepted "
        "(https://www.kaggle.com/competitions/{competition}/rules)?",
    ),
    (r"\b404\b|not found", "Kaggle does not know it; look at owner and slugs in dataset-metadata.json"),
    (r"\b429\b|too many requests", "Kaggle asks to slow down; try again in a few minutes"),
    (
        r"\b5\d\d\b|server error|unavailable|connection|timed? ?out",
        "Kaggle does not answer as it should; try again later",
    ),
)
NO_CREDENTIALS = (
    "no Kaggle credentials that work; make a token at kaggle.com/settings and put it into KAGGLE_API_TOKEN, "
    "~/.kaggle/access_token or ~/.kaggle/kaggle.json"
)


def with_advice(reply: str, competition: str) -> str:
    """Return the reply as one line, with advice where its cause is known."""
    said = " ".join(reply.split())[:400] or "no reason given"
    for pattern, advice in ADVICE:
        if re.search(pattern, said, re.IGNORECASE):
            return f"{said}: {advice.format(competition=competition)}"
    return said
