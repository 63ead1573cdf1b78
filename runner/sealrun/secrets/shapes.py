"""What keys look like: a table of shapes, each with where its issuer says so. No IO.

Rules that this module keeps:

- A shape begins at a literal that bytes are searched for, and its pattern is matched there and
  nowhere else: bounded repetitions only, so that no input makes it slow.
- Every shape names its source. A shape that is also the one of harmless text is left out (JSON Web
  Tokens, bare hexadecimal digests, UUIDs): a guard that cries wolf is switched off.
- What may be shown of a key is the prefix that its issuer prints in public, and its length.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """One kind of key.

    Attributes:
        name: what it is, for people.
        anchors: literals, in lower case where ``folded``; the pattern is matched where one stands.
        text: of the pattern; its group ``key`` is the key, ``known`` its public prefix (may be
            missing).
        source: where its issuer, or who documents it, says how it looks.
        random: bits per character that the key has at least (Shannon's entropy of its characters).
        folded: the anchors are searched for whatever their case.
        assigned: it has no form of its own but stands in an assignment: judged harder, and looked
            for in text alone.
    """

    name: str
    anchors: tuple[bytes, ...]
    text: bytes
    source: str
    random: float = 2.8
    folded: bool = False
    assigned: bool = False

    @functools.cached_property
    def pattern(self) -> re.Pattern[bytes]:
        """The compiled pattern; most runs need none, and compiling all costs them too long."""
        return re.compile(self.text)


#: No letter, digit or underscore before, and none after.
_FRONT, _BACK = rb"(?<![A-Za-z0-9_])", rb"(?![A-Za-z0-9_])"


def _token(name: str, known: str, rest: str, source: str, *anchors: str) -> Shape:
    """Return the shape of a token that begins with a prefix of its own."""
    pattern = _FRONT + rb"(?P<key>(?P<known>" + known.encode() + rb")" + rest.encode() + rb")"
    found = tuple(anchor.encode() for anchor in anchors)
    return Shape(name, found or (known.encode(),), pattern + _BACK, source)


_BY_PREFIX = (
    _token(
        "AWS access key id",
        "AKIA|ASIA",
        "[A-Z2-7]{16}",
        "https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_identifiers.html",
        "AKIA",
        "ASIA",
    ),
    _token(
        "GitHub token",
        "gh[pousr]_",
        "[A-Za-z0-9]{36,251}",
        "https://github.blog/engineering/platform-security/behind-githubs-new-authentication-token-formats/",
        *("ghp_", "gho_", "ghu_", "ghs_", "ghr_"),
    ),
    _token(
        "GitHub fine-grained token",
        "github_pat_",
        "[A-Za-z0-9]{22}_[A-Za-z0-9]{59}",
        "https://docs.github.com/en/authentication/keeping-your-account-and-data-secure/about-authentication-to-github",
    ),
    _token(
        "GitLab token",
        "glpat-",
        r"[A-Za-z0-9_-]{20,60}(?:\.[0-9a-z]{2}\.[0-9a-z]{7,12})?",
        "https://docs.gitlab.com/security/tokens/#token-prefixes",
    ),
    _token(
        "Hugging Face token",
        "hf_",
        "[A-Za-z]{34}",
        "https://huggingface.co/docs/hub/security-tokens",
    ),
    _token(
        "Anthropic key",
        "sk-ant-[a-z]{2,8}[0-9]{2}-",
        "[A-Za-z0-9_-]{60,120}",
        "https://docs.github.com/en/code-security/secret-scanning/introduction/supported-secret-scanning-patterns",
        "sk-ant-",
    ),
    _token(
        "OpenAI key",
        "sk-(?:proj-|svcacct-|admin-|None-)?",
        "[A-Za-z0-9_-]{20,100}T3BlbkFJ[A-Za-z0-9_-]{20,100}",
        "https://docs.github.com/en/code-security/secret-scanning/introduction/supported-secret-scanning-patterns",
        "sk-",
    ),
    _token(
        "OpenRouter key",
        "sk-or-v1-",
        "[0-9a-f]{64}",
        "https://openrouter.ai/docs/api/reference/authentication",
    ),
    _token(
        "Groq key",
        "gsk_",
        "[A-Za-z0-9]{52}",
        "https://docs.github.com/en/code-security/secret-scanning/introduction/supported-secret-scanning-patterns",
    ),
    _token(
        "xAI key",
        "xai-",
        "[A-Za-z0-9]{80}",
        "https://docs.github.com/en/code-security/secret-scanning/introduction/supported-secret-scanning-patterns",
    ),
    _token(
        "Replicate token",
        "r8_",
        "[A-Za-z0-9]{37}",
        "https://replicate.com/docs/topics/security/api-tokens",
    ),
    _token(
        "Google API key",
        "AIza",
        "[A-Za-z0-9_-]{35}",
        "https://cloud.google.com/docs/authentication/api-keys",
    ),
    _token(
        "Weights & Biases key",
        "wandb_v[0-9]_",
        "[A-Za-z0-9_]{60,120}",
        "https://docs.wandb.ai/support/models/articles/why-does-my-api-key-fail-with-must-be-40-characters",
        "wandb_v",
    ),
    _token(
        "Slack token",
        "xox[abeoprs]-|xapp-",
        "[A-Za-z0-9-]{20,200}",
        "https://docs.slack.dev/authentication/tokens",
        *("xoxa-", "xoxb-", "xoxe-", "xoxo-", "xoxp-", "xoxr-", "xoxs-", "xapp-"),
    ),
    _token(
        "Slack webhook",
        "https://hooks.slack.com/(?:services|workflows)/",
        "T[A-Z0-9]{8,12}/[A-Z0-9]{8,20}/[A-Za-z0-9/]{20,60}",
        "https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks",
        "https://hooks.slack.com/",
    ),
    _token(
        "PyPI token",
        "pypi-",
        "Ag(?:EIcHlwaS5vcmc|ENdGVzdC5weXBpLm9yZw)[A-Za-z0-9_-]{50,300}",
        "https://pypi.org/help/#apitoken",
    ),
    _token(
        "npm token",
        "npm_",
        "[A-Za-z0-9]{36}",
        "https://docs.npmjs.com/about-access-tokens",
    ),
    _token(
        "Stripe key",
        "[rs]k_live_",
        "[A-Za-z0-9]{24,120}",
        "https://docs.stripe.com/keys",
        *("sk_live_", "rk_live_"),
    ),
    _token(
        "SendGrid key",
        r"SG\.",
        r"[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}",
        "https://www.twilio.com/docs/sendgrid/ui/account-and-settings/api-keys",
        "SG.",
    ),
    _token(
        "DigitalOcean token",
        "do[opr]_v1_",
        "[0-9a-f]{64}",
        "https://docs.digitalocean.com/reference/api/create-personal-access-token/",
        *("doo_v1_", "dop_v1_", "dor_v1_"),
    ),
    _token(
        "Docker Hub token",
        "dckr_[op]at_",
        "[A-Za-z0-9_-]{27,40}",
        "https://docs.docker.com/security/access-tokens/",
        *("dckr_pat_", "dckr_oat_"),
    ),
    _token(
        "Databricks token",
        "dapi",
        "[0-9a-f]{32}(?:-[0-9])?",
        "https://docs.databricks.com/aws/en/dev-tools/auth/pat",
    ),
)

_HEX_40 = rb"(?<![0-9a-fA-F])(?P<key>[0-9a-f]{40})(?![0-9a-fA-F])"

_BY_CONTEXT = (
    # The older key is forty hexadecimal digits, as an object id of git is: its name says which.
    Shape(
        "Weights & Biases key",
        (b"WANDB_API_KEY", b"wandb.login", b"wandb login"),
        rb"(?:WANDB_API_KEY|wandb[. ]login)[^\n0-9a-f]{1,3}[^\n]{0,24}?" + _HEX_40,
        "https://docs.wandb.ai/models/ref/cli/wandb-login",
    ),
    # netrc(5), as `wandb login` and others write it.
    Shape(
        "netrc password",
        (b"machine ", b"machine\t"),
        rb"machine[ \t]{1,8}[A-Za-z0-9.:-]{1,100}\s{1,8}login\s{1,8}[^\s]{1,100}\s{1,8}"
        rb"password\s{1,8}(?P<key>[^\s]{12,200})",
        "https://www.gnu.org/software/inetutils/manual/html_node/The-_002enetrc-file.html",
        random=3.0,
    ),
    Shape(
        "private key",
        (b"-----BEGIN ",),
        rb"(?P<known>-----BEGIN (?:(?:RSA|DSA|EC|OPENSSH|ENCRYPTED|PGP) )?PRIVATE KEY"
        rb"(?: BLOCK)?-----)(?:\\[nr]|[\s\"'+,\\]){1,24}"
        rb"(?:[A-Za-z-]{3,20}: [^\n]{1,100}\n\s{0,8}){0,4}(?P<key>[A-Za-z0-9+/]{40,80})",
        "https://datatracker.ietf.org/doc/html/rfc7468",
        random=3.0,
    ),
    Shape(
        "Azure storage key",
        (b"AccountKey=",),
        rb"AccountKey=(?P<key>[A-Za-z0-9+/]{86}==)",
        "https://learn.microsoft.com/en-us/azure/storage/common/storage-configure-connection-string",
    ),
    Shape(
        "password in a URL",
        (b"://",),
        rb"://[A-Za-z0-9._%+-]{0,60}:(?P<key>[A-Za-z0-9._~!*+=%-]{12,120})@"
        rb"(?!localhost|127\.|example\.|host\b)[A-Za-z0-9-]{1,60}[.:/]",
        "https://datatracker.ietf.org/doc/html/rfc3986#section-3.2.1",
        random=3.0,
        assigned=True,
    ),
    # What `.env` files, shell profiles, YAML, JSON and source assign to a name that says what it is.
    Shape(
        "key in an assignment",
        (b"key", b"token", b"secret", b"passw"),
        rb"(?i:(?<=api_)key|(?<=api-)key|(?<=api)key|(?<=access_)key|(?<=secret_)key"
        rb"|(?<=access)key|(?<=private_)key|token|secret|passw(?:or)?d)"
        rb"[\"'\]\\]{0,3}[ \t]{0,8}(?::=|=|:)[ \t]{0,8}\\?[\"']?"
        rb"(?P<key>[A-Za-z0-9+/_=-]{20,200})(?![A-Za-z0-9+/_=.(\[{$<-])",
        "https://12factor.net/config",
        random=3.6,
        folded=True,
        assigned=True,
    ),
)

#: Every shape that is looked for.
SHAPES: tuple[Shape, ...] = (*_BY_PREFIX, *_BY_CONTEXT)
