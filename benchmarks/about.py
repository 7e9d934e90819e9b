"""Where and with what a measurement was made: what every record of a GPU run begins with."""

from __future__ import annotations

import datetime
from typing import Any


def about() -> dict[str, Any]:
    """Date, device and versions."""
    import torch
    import transformers
    import triton

    return {
        "date": datetime.date.today().isoformat(),
        "device": torch.cuda.get_device_name(),
        "versions": {
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "triton": triton.__version__,
        },
    }
