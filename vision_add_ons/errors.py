"""Every error that this project raises on purpose, as one small tree.

They live in the innermost package because all three packages raise them; applications import
them from `engine`. Each message says what is wrong and what to do about it.
"""


class SightlineError(Exception):
    """Base of all errors raised on purpose. Its message is one line, fit for showing to a user."""


# --- a checkpoint that cannot be loaded -------------------------------------------------------


class CheckpointError(SightlineError):
    """A model cannot be loaded from where it was looked for."""


class CheckpointNotFound(CheckpointError):
    """There is no such folder, or it holds no config.json."""


class WeightsNotFound(CheckpointError):
    """The folder holds no safetensors file."""


class BrokenIndex(CheckpointError):
    """`model.safetensors.index.json` is damaged or disagrees with the files beside it."""


class BrokenWeights(CheckpointError):
    """A safetensors file cannot be read: truncated, or not a safetensors file."""


class MissingWeight(CheckpointError):
    """The model needs a tensor that the checkpoint lacks; the message names it."""


class UnexpectedWeight(CheckpointError):
    """The checkpoint holds a tensor that no part of the model uses; the message names it."""


class UnexpectedShape(CheckpointError):
    """A tensor has another shape than the config asks for; the message names both."""


class UnexpectedDtype(CheckpointError):
    """A tensor holds another kind of number than the model computes with; names both."""


class BrokenConfig(CheckpointError):
    """A JSON file of the checkpoint is damaged, or a field has an impossible value."""


class BrokenTokenizer(CheckpointError):
    """The tokenizer's files are missing or damaged."""


class UnknownModelType(CheckpointError):
    """No decoder and no add-on is known for the config's `model_type`; lists the known ones."""


class UnsupportedCheckpoint(CheckpointError):
    """The model type is known, but this checkpoint asks for something that would not be exact."""


class AddOnError(CheckpointError):
    """A vision add-on's own code failed while it loaded; the cause holds what it raised."""


class AdapterError(CheckpointError):
    """A low-rank adapter does not fit the decoder, or is none; the message says where."""


class SaveError(SightlineError):
    """A checkpoint cannot be written there; neither its source nor an earlier one has changed."""


class ModelUnavailable(CheckpointError):
    """A model that has to be fetched first could not be fetched."""


# --- a request that cannot be answered --------------------------------------------------------


class RequestError(SightlineError):
    """The request is wrong in itself; nothing was run and no conversation has changed."""


class OptionError(RequestError, ValueError):
    """An option or another argument is of the wrong kind, outside its range, or nothing that this
    model can honour."""


class ImageError(RequestError):
    """A picture cannot be read, or is over a limit; the message gives the reason."""


class ImageCountError(RequestError):
    """The number of pictures and the number of places for them in the prompt disagree."""


class ContextExceeded(RequestError):
    """The prompt leaves no room for an answer within the context limit."""


class NotEnoughMemory(RequestError, MemoryError):
    """What the request would take does not fit the memory that there is; the message names both,
    and what would fit."""


class PromptError(RequestError):
    """The messages cannot be turned into a prompt: empty, malformed, or refused by the template."""


class ChatBusy(RequestError):
    """The conversation is still waiting for its previous answer."""


class NumericalError(SightlineError):
    """The model computed NaN or infinity; the answer ends there, and nothing of it is kept."""


class ConversationFileError(SightlineError):
    """A saved conversation cannot be read or written; nothing on disk has changed."""


class EngineClosed(SightlineError):
    """The engine has been closed."""


class EngineFailed(EngineClosed):
    """The engine's thread ended by an error, which is the cause of this one."""


class RanksLost(SightlineError):
    """One of the processes that hold a model together is gone, or was not reached."""


class ForkedProcess(SightlineError):
    """This process was forked from one that uses MLX, which does not survive that."""
