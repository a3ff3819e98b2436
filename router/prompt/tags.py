"""The tags of canonical bytes as numbers, for those who read canonical bytes again."""

from __future__ import annotations

from typing import Final

from router.prompt import canonical

MESSAGE: Final = canonical.MESSAGE[0]
TEXT: Final = canonical.TEXT[0]
MEDIA: Final = canonical.MEDIA[0]
CALL: Final = canonical.CALL[0]
KEY: Final = canonical.KEY[0]
RESULT: Final = canonical.RESULT[0]
RESULT_END: Final = canonical.RESULT_END[0]
REASONING: Final = canonical.REASONING[0]
NAME: Final = canonical.NAME[0]
TOOLS: Final = canonical.TOOLS[0]
DOCUMENTS: Final = canonical.DOCUMENTS[0]
ITEM: Final = canonical.ITEM[0]
OTHER: Final = canonical.OTHER[0]
TASK: Final = canonical.TASK[0]

PARTS: Final = frozenset(
    (
        MESSAGE,
        TEXT,
        MEDIA,
        CALL,
        RESULT,
        REASONING,
        NAME,
        TOOLS,
        DOCUMENTS,
        ITEM,
        OTHER,
        TASK,
    )
)
"""Tags that begin a part. The others stand inside one: arguments of a call, keys of an item."""
