"""Whether the extra `[llm]` is installed, and what torch has once a process. Imports nothing heavy by itself."""

from __future__ import annotations

from importlib.util import find_spec

from cosched.errors import BadInput


def require() -> None:
    """Raise BadInput where the extra `[llm]` is not installed."""
    lacking = [name for name in ("torch", "transformers", "safetensors") if find_spec(name) is None]
    if lacking:
        raise BadInput(f"{lacking[0]} is not installed: pip install 'cosched[llm]'")


def prepare(threads: int, device: str = "cpu") -> None:
    """Set the threads of a matrix product (0: as torch chooses). Raises BadInput: no extra, or no such device."""
    require()
    import torch

    if threads:
        torch.set_num_threads(threads)
    if device != "cpu" and not (device.startswith("cuda") and torch.cuda.is_available()):
        raise BadInput(f"--device {device}: not there; cpu is")
