"""Taking modules from mlx-vlm without what its import does to everybody else."""

import importlib
import os
from types import ModuleType


def import_mlx_vlm(module: str) -> ModuleType:
    """Import `mlx_vlm.models.<module>`, for when a checkpoint needs it: it takes seconds.

    The import sets environment variables, and it replaces `from_pretrained` of transformers'
    AutoProcessor. An app that embeds us would find both changed, so both are put back.
    """
    from transformers import AutoProcessor

    environment = dict(os.environ)
    from_pretrained = vars(AutoProcessor)["from_pretrained"]
    try:
        return importlib.import_module(f"mlx_vlm.models.{module}")
    finally:
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)
        if vars(AutoProcessor)["from_pretrained"] is not from_pretrained:
            AutoProcessor.from_pretrained = from_pretrained
