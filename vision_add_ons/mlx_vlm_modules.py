"""Taking modules from mlx-vlm without what its import does to everybody else."""

from types import ModuleType

from vision_add_ons.libraries import import_library, undisturbed


def import_mlx_vlm(module: str) -> ModuleType:
    """Import `mlx_vlm.models.<module>`, for when a checkpoint needs it: it takes seconds.

    Beside what `import_library` sees to, the import replaces `from_pretrained` of transformers'
    AutoProcessor. An app that embeds us would find that changed, so it is put back.
    """
    transformers = import_library("transformers")
    with undisturbed():
        auto_processor = transformers.AutoProcessor
    from_pretrained = vars(auto_processor)["from_pretrained"]
    try:
        return import_library(f"mlx_vlm.models.{module}")
    finally:
        if vars(auto_processor)["from_pretrained"] is not from_pretrained:
            auto_processor.from_pretrained = from_pretrained
