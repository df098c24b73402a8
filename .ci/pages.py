"""Every page of the documentation runs its code from torch's defaults, as a reader's new process does.

MkDocs calls `on_page_markdown` before it renders a page, and rendering runs the code. All pages run in one process, so
without this function a page that sets float64 would set it for the pages after it.
"""

from typing import Any

import torch


def on_page_markdown(markdown: str, **_: Any) -> str:
    torch.set_default_dtype(torch.float32)
    return markdown
