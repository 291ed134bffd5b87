"""The conformance kit: whether an add-on holds what every family must.

A contributor's test file hands over three things, and pytest does the rest:

    from engine import load
    from vision_add_ons.testing import Conformance, Reference

    class LlavaReference(Reference):
        ...                          # a tiny random checkpoint, and what it should give

    class TestLlava(Conformance):
        add_on = LlavaAddOn
        reference = LlavaReference
        load = staticmethod(load)

Every check is a function of a `Kit` too, in the `*_checks` modules, and raises AssertionError with
what is wrong and where to look. The package needs pytest (`pip install sightline[testing]`), and no
torch: a reference may be computed with it, or come from a file that `record` wrote, as
`StoredReference`.
"""

from vision_add_ons.testing.comparison import TOLERANCE, centred, relative_error
from vision_add_ons.testing.conformance import Conformance
from vision_add_ons.testing.drawn_conversations import as_parts, as_text
from vision_add_ons.testing.kit import Kit
from vision_add_ons.testing.photo import Photo
from vision_add_ons.testing.recording import record
from vision_add_ons.testing.reference import (
    REMOVED,
    Conversation,
    Part,
    Reference,
    Refused,
    written,
)
from vision_add_ons.testing.stored import NotRecorded, StoredReference
from vision_add_ons.testing.torch_weights import random_weights
from vision_add_ons.testing.vocabulary import (
    BOS,
    EOS,
    LINE_BREAKS,
    PAD,
    VOCAB,
    WORDS,
    write_tokenizer,
)

__all__ = [
    "BOS",
    "EOS",
    "LINE_BREAKS",
    "PAD",
    "REMOVED",
    "TOLERANCE",
    "VOCAB",
    "WORDS",
    "Conformance",
    "Conversation",
    "Kit",
    "NotRecorded",
    "Part",
    "Photo",
    "Reference",
    "Refused",
    "StoredReference",
    "as_parts",
    "as_text",
    "centred",
    "random_weights",
    "record",
    "relative_error",
    "write_tokenizer",
    "written",
]
