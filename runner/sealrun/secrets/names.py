"""Files that hold keys by their name: what is mounted with a whole directory of a home. No IO.

Rules that this module keeps:

- A name counts only where its program writes keys to it; each is named with that program.
- What is mounted is not read for it: its names are known already, its bytes can be terabytes.
"""

from __future__ import annotations

import re

#: The end of a path, with whose keys it holds.
_HOLDS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(rf"(?:^|/){pattern}$"), whose)
    for pattern, whose in (
        # huggingface_hub: HF_TOKEN_PATH, HF_STORED_TOKENS_PATH
        (r"huggingface/(?:token|stored_tokens)", "the Hugging Face client"),
        (r"\.?_?netrc", "netrc"),
        (r"\.aws/credentials", "the AWS client"),
        (r"gcloud/(?:application_default_credentials\.json|credentials\.db)", "gcloud"),
        (r"\.git-credentials", "git"),
        (r"\.?kaggle/(?:kaggle\.json|access_token)", "the Kaggle client"),
        (r"\.docker/config\.json", "docker login"),
        (r"\.ssh/(?:id_[a-z0-9_]+|identity)", "ssh"),
        (r"gh/hosts\.yml", "gh"),
        (r"\.pypirc", "twine"),
        (r"\.npmrc", "npm"),
        (r"\.env", "an .env file"),
    )
)


#: Names of all of these files and no others: of a million files nearly all end here.
_NAMES = re.compile(
    r"token|stored_tokens|\.?_?netrc|credentials|application_default_credentials\.json"
    r"|credentials\.db|\.git-credentials|kaggle\.json|access_token|config\.json|id_[a-z0-9_]+"
    r"|identity|hosts\.yml|\.pypirc|\.npmrc|\.env"
)


def holder(path: str) -> str | None:
    """Return whose keys a file holds by its name; None for every other file.

    Args:
        path: absolute; ``~/.cache/huggingface`` mounted whole has ``…/huggingface/token`` in it.
    """
    if _NAMES.fullmatch(path, path.rfind("/") + 1) is None:
        return None
    return next((whose for pattern, whose in _HOLDS if pattern.search(path)), None)
