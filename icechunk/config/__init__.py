"""The configuration of a repository: options, conditions, containers, logs.

Each module lists what it offers, and all of that is here.
"""

from icechunk.config import (
    attribution,
    conditions,
    logs,
    manifests,
    object_stores,
    repository_config,
    storage_settings,
    virtual_chunks,
)
from icechunk.config.attribution import *
from icechunk.config.conditions import *
from icechunk.config.logs import *
from icechunk.config.manifests import *
from icechunk.config.object_stores import *
from icechunk.config.repository_config import *
from icechunk.config.storage_settings import *
from icechunk.config.virtual_chunks import *

__all__: list[str] = []
__all__ += attribution.__all__
__all__ += conditions.__all__
__all__ += logs.__all__
__all__ += manifests.__all__
__all__ += object_stores.__all__
__all__ += repository_config.__all__
__all__ += storage_settings.__all__
__all__ += virtual_chunks.__all__
