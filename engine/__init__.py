"""Sightline's engine: load a model, chat with it, show it pictures.

    from engine import load

    with load("demo") as engine:
        chat = engine.chat()
        for event in chat.send("Hello!"):
            print(event.text, end="", flush=True)

Importing this package is quick: MLX and transformers load with the first model.
"""

from engine.chat import Chat
from engine.engine import Engine, load
from engine.events import Event, Finished, FinishReason, Progress, TextDelta
from engine.generation import Generation
from engine.options import GenerationOptions
from engine.request import Request
from vision_add_ons.errors import (
    AdapterError,
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
    ImageCountError,
    ImageError,
    MissingWeight,
    ModelUnavailable,
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

__all__ = [
    "AdapterError",
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
    "Event",
    "FinishReason",
    "Finished",
    "Generation",
    "GenerationOptions",
    "ImageCountError",
    "ImageError",
    "MissingWeight",
    "ModelUnavailable",
    "OptionError",
    "Progress",
    "PromptError",
    "Request",
    "RequestError",
    "SaveError",
    "SightlineError",
    "TextDelta",
    "UnexpectedDtype",
    "UnexpectedShape",
    "UnexpectedWeight",
    "UnknownModelType",
    "UnsupportedCheckpoint",
    "WeightsNotFound",
    "load",
]
