"""Sightline's engine: load a model, chat with it, show it pictures.

    from engine import load

    with load("demo") as engine:
        chat = engine.chat()
        for event in chat.send("Hello!"):
            print(event.text, end="", flush=True)

Importing this package is quick: MLX and transformers load with the first model, NumPy and Pillow
with the first message.
"""

from typing import TYPE_CHECKING, Any

from engine.chat import Chat
from engine.engine import Engine
from engine.events import (
    Event,
    Finished,
    FinishReason,
    Progress,
    TextDelta,
    ToolCall,
    ToolCallDelta,
)
from engine.generation import Generation
from engine.loading import load
from engine.options import GenerationOptions
from engine.request import Request
from engine.schema import Schema
from engine.tools.tool import Tool
from vision_add_ons.errors import (
    AdapterError,
    AddOnError,
    BrokenConfig,
    BrokenIndex,
    BrokenTokenizer,
    BrokenWeights,
    ChatBusy,
    CheckpointError,
    CheckpointNotFound,
    ContextExceeded,
    ConversationFileError,
    EngineClosed,
    EngineFailed,
    ForkedProcess,
    ImageCountError,
    ImageError,
    MissingWeight,
    ModelUnavailable,
    NotEnoughMemory,
    NumericalError,
    OptionError,
    PromptError,
    RequestError,
    SaveError,
    SightlineError,
    UnexpectedDtype,
    UnexpectedShape,
    UnexpectedWeight,
    UnknownModelType,
    UnsupportedCheckpoint,
    WeightsNotFound,
)

if TYPE_CHECKING:
    from engine.images import LoadedPicture, load_picture
    from engine.prompts.messages import Message

__all__ = [
    "AdapterError",
    "AddOnError",
    "BrokenConfig",
    "BrokenIndex",
    "BrokenTokenizer",
    "BrokenWeights",
    "Chat",
    "ChatBusy",
    "CheckpointError",
    "CheckpointNotFound",
    "ContextExceeded",
    "ConversationFileError",
    "Engine",
    "EngineClosed",
    "EngineFailed",
    "Event",
    "FinishReason",
    "Finished",
    "ForkedProcess",
    "Generation",
    "GenerationOptions",
    "ImageCountError",
    "ImageError",
    "LoadedPicture",
    "Message",
    "MissingWeight",
    "ModelUnavailable",
    "NotEnoughMemory",
    "NumericalError",
    "OptionError",
    "Progress",
    "PromptError",
    "Request",
    "RequestError",
    "SaveError",
    "Schema",
    "SightlineError",
    "TextDelta",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "UnexpectedDtype",
    "UnexpectedShape",
    "UnexpectedWeight",
    "UnknownModelType",
    "UnsupportedCheckpoint",
    "WeightsNotFound",
    "load",
    "load_picture",
]


def __getattr__(name: str) -> Any:
    if name not in ("LoadedPicture", "Message", "load_picture"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from engine import images
    from engine.prompts import messages

    return getattr(messages if name == "Message" else images, name)
