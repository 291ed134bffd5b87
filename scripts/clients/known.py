"""The clients that are run, and what each needs.

Versions are pinned: here, in the extra `clients` and in scripts/clients_npm/package.json.
"""

from dataclasses import dataclass, field
from enum import Enum


class Kind(Enum):
    """Where a client comes from."""

    EXTRA = "extra"
    OWN = "own"
    NPM = "npm"
    OPEN_WEBUI = "open-webui"

    @property
    def text(self) -> str:
        return {
            Kind.EXTRA: "those in Python, of the extra `clients`",
            Kind.OWN: "those in Python that need an environment of their own",
            Kind.NPM: "those for Node, of scripts/clients_npm",
            Kind.OPEN_WEBUI: "Open WebUI, started and asked by its own API",
        }[self]


@dataclass(frozen=True)
class Client:
    name: str
    kind: Kind
    program: str
    """A module of scripts.clients.programs or a file of scripts/clients_npm, and words for it."""
    requirements: tuple[str, ...] = ()
    """What an environment of its own holds."""
    environment: dict[str, str] = field(default_factory=dict)
    roomy: bool = False
    """Whether it needs a context of a size in which coding agents work."""


QUIET = {"OPENAI_AGENTS_DISABLE_TRACING": "1", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
"""What would be asked of other places is not: all that is needed is here."""

CLIENTS = (
    Client("openai (Python)", Kind.EXTRA, "openai_python"),
    Client("langchain-openai", Kind.EXTRA, "langchain"),
    Client("langchain-openai, Responses", Kind.EXTRA, "langchain responses"),
    Client("litellm", Kind.EXTRA, "litellm_python", environment=QUIET),
    Client("pydantic-ai", Kind.EXTRA, "pydantic_ai"),
    Client("pydantic-ai, Responses", Kind.EXTRA, "pydantic_ai responses"),
    Client("openai-agents", Kind.EXTRA, "openai_agents", environment=QUIET),
    Client(
        "openai-agents, Responses",
        Kind.EXTRA,
        "openai_agents responses",
        environment=QUIET,
    ),
    Client("llm", Kind.EXTRA, "llm_python"),
    Client("dspy", Kind.EXTRA, "dspy_python", environment=QUIET),
    Client("smolagents", Kind.EXTRA, "smolagents_python", roomy=True),
    Client("instructor", Kind.OWN, "instructor_python", ("instructor==1.17.0",)),
    Client(
        "anthropic, through LiteLLM",
        Kind.OWN,
        "anthropic_through_litellm",
        ("litellm[proxy]==1.108.7", "anthropic==2.14.0"),
        environment=QUIET,
    ),
    Client("openai (Node)", Kind.NPM, "openai.mjs"),
    Client("@ai-sdk/openai-compatible", Kind.NPM, "ai_sdk.mjs"),
    Client("@ai-sdk/openai", Kind.NPM, "ai_sdk.mjs responses"),
    Client("@langchain/openai", Kind.NPM, "langchain.mjs"),
    Client("opencode", Kind.NPM, "agents.mjs opencode", roomy=True),
    Client("qwen-code", Kind.NPM, "agents.mjs qwen", roomy=True),
    Client("Open WebUI", Kind.OPEN_WEBUI, "open_webui", ("open-webui==0.12.4",), roomy=True),
)
